"""Frames: what goes in comes out, and nothing that is no frame kills or hangs either side."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from khola import errors
from khola.api import Model
from khola.chat.message import Message, Tool, ToolCall
from khola.errors import AskedWrong, BadSchema, EngineDied, KholaError, OurFault
from khola.serve.backend import ChatJob, Cost, TextJob, Token
from khola.serve.engines import wire
from khola.serve.engines.dispatch import Link, Worker
from khola.serve.engines.process import EngineProcess
from tests.engine.fakes import FakeRunner, fake_loaded
from tests.serve.engines.test_answering import Special

ASKS: list[wire.Ask] = [
    wire.Chat(1, ChatJob(messages=(Message(role="user", content="খোলা"),), tools=(Tool(name="add", parameters={"a": [1]}),), tenant="t")),
    wire.Continue(2, TextJob(prompt=(1, 2, 3), sampling={"temperature": 0.5, "stop": ["a"]}, prompt_logprobs=1)),
    wire.Cancel(3),
    wire.Embed(4, ("text", (1, 2)), ""),
    wire.Encode(5, "text", True),
    wire.Spell(6, (1, 2)),
    wire.Render(7, ChatJob(messages=(Message(role="user", content="hi"),))),
    wire.Look(8),
]
LAST = wire.Rest(
    tokens=(Token(id=1, spells=b"\xe0", logprob=-0.5, top=((2, b"", -1.0),)),),
    calls=wire.calls_as_json((ToolCall(name="add", arguments={"a": 10**30, "b": "\ud800"}, id="x"),)),
    finish_reason="stop",
    cost=Cost(prompt_tokens=1, cached_tokens=0, answer_tokens=2, thinking_tokens=1),
)
TELLS: list[wire.Told] = [
    wire.Ready(1, 512, 1000, False),
    wire.Step((wire.Said(1, "a"), wire.Said(2, "", "thought"), wire.Said(3, "b", "", LAST))),
    wire.wrong(4, BadSchema("{file}: {why}", hint="see {file}", file=Path("/x"), why=["ok", 1 << 70])),
    wire.Vectors(5, (b"\0\0\0\0",), 3),
    wire.Note("{a}", {"a": 1}),
]


def test_messages_come_out_as_they_went_in() -> None:
    for message in ASKS:
        assert list(map(wire.asked, wire.Frames().feed(wire.framed(message)))) == [message]
    for told in TELLS:
        assert list(map(wire.told, wire.Frames().feed(wire.framed(told)))) == [told]
    (call,) = wire.Said(1, rest=LAST).piece().tool_calls
    assert call == ToolCall(name="add", arguments={"a": 10**30, "b": "\ud800"}, id="x")


def test_frames_do_not_depend_on_where_the_stream_is_cut() -> None:
    stream = b"".join(map(wire.framed, ASKS)) * 3
    rng = random.Random(1)
    for _ in range(50):
        frames, at, found = wire.Frames(), 0, []
        while at < len(stream):
            size = rng.choice([1, 2, 3, 7, 60, 500])
            found += [wire.asked(frame) for frame in frames.feed(stream[at : at + size])]
            at += size
        assert found == ASKS * 3


def test_what_no_message_can_hold_is_refused() -> None:
    for content in ("\ud800", {"a": 1 << 70}):
        job = TextJob(prompt="x", sampling={"stop": content})
        with pytest.raises(AskedWrong, match="cannot be sent on"):
            wire.framed(wire.Continue(1, job))
    with pytest.raises(AskedWrong, match="expected at most 67108864"):
        wire.framed(wire.Encode(1, "x" * wire.FRAME_BYTES, True))
    with pytest.raises(OurFault, match="was announced"):
        list(wire.Frames().feed(struct.pack(">I", wire.FRAME_BYTES + 1)))


def classes() -> list[type[KholaError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KholaError)]


def test_errors_have_codes_of_their_own_and_come_back_as_what_they_were() -> None:
    assert len({kind.code for kind in classes()}) == len(classes()) == len(errors.kinds())
    for kind in classes():
        given = kind("{name!r} of {n}", hint="do {name}", name="x", n=1.5)
        (sent,) = wire.Frames().feed(wire.framed(wire.wrong(1, given)))
        message = wire.told(sent)
        assert isinstance(message, wire.Wrong)
        back = message.error()
        assert (type(back), str(back), back.hint(), back.facts) == (kind, str(given), given.hint(), given.facts)
    assert type(wire.Wrong(1, "busy", "{lost}", "", {"found": 1}).error()) is OurFault
    assert type(wire.Wrong(1, "nonsense", "x", "", {"hint": "y"}).error()) is OurFault


def mutated(stream: bytes, rng: random.Random) -> bytes:
    """A stream with bits turned over, bytes left out, put in or repeated."""
    raw = bytearray(stream)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(raw))
        match rng.randrange(5):
            case 0:
                raw[at] ^= 1 << rng.randrange(8)
            case 1:
                del raw[at : at + rng.randint(1, 9)]
            case 2:
                raw[at:at] = rng.randbytes(rng.randint(1, 9))
            case 3:
                raw[at:at] = raw[at : at + rng.randint(1, 90)]
            case _:
                raw[at : at + 4] = struct.pack(">I", rng.choice([0, 1, wire.FRAME_BYTES, wire.FRAME_BYTES + 1, (1 << 32) - 1]))
        if not raw:
            break
    return bytes(raw)


@contextlib.contextmanager
def worker() -> Iterator[socket.socket]:
    """A worker in this process, its model a fake, and the socket to it."""
    ours, theirs = socket.socketpair()
    model = Model(fake_loaded(tokenizer=Special()), runner=FakeRunner(64), cache_tokens=2048)

    def run() -> None:
        with contextlib.suppress(KholaError):
            Worker(Link(theirs), model).run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(10)
        theirs.close()
        assert not thread.is_alive()


CASES = [150, pytest.param(20_000, marks=pytest.mark.soak)]


@pytest.mark.parametrize("cases", CASES)
def test_a_worker_lives_through_frames_that_are_none(cases: int) -> None:
    rng = random.Random(cases)
    whole = [wire.framed(ask)[4:] for ask in ASKS]
    with worker() as link:
        link.settimeout(10)
        frames = wire.Frames()
        told = (wire.told(frame) for data in iter(lambda: link.recv(1 << 16), b"") for frame in frames.feed(data))
        for number in range(1 << 40, (1 << 40) + cases // 10):
            for body in [mutated(rng.choice(whole), rng) for _ in range(10)]:
                link.sendall(struct.pack(">I", len(body)) + body)
            # It still answers.
            link.sendall(wire.framed(wire.Encode(number, "ab", True)))
            assert next(ids.ids for ids in told if isinstance(ids, wire.Ids) and ids.number == number) == (97, 98)


def test_a_worker_ends_when_lengths_are_lost() -> None:
    rng = random.Random(0)
    stream = b"".join(map(wire.framed, ASKS))
    for _ in range(30):
        with worker() as link, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            link.sendall(mutated(stream, rng))


def after(peer: Callable[[socket.socket], None]) -> KholaError:
    """How a question ends that is asked of something else than an engine process."""

    async def asked() -> KholaError:
        ours, theirs = socket.socketpair()
        engine = EngineProcess("fake", lambda _: None, lambda *_, **__: None)
        engine._process = await asyncio.to_thread(_ended)
        await asyncio.get_running_loop().create_unix_connection(lambda: engine, sock=ours)
        engine._said_all.set()
        answer = asyncio.create_task(engine.call(wire.Look))
        peer(theirs)
        try:
            with pytest.raises(KholaError) as found:
                await asyncio.wait_for(answer, 10)
        finally:
            engine.kill()
            await engine.gone
            theirs.close()
        return found.value

    return asyncio.run(asked())


def _ended() -> subprocess.Popen[bytes]:
    """A process that needs no killing."""
    return subprocess.Popen(["true"])


@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.soak) for block in range(1, 40))])
def test_a_server_lives_through_frames_that_are_none(block: int) -> None:
    rng = random.Random(block)
    stream = b"".join(map(wire.framed, TELLS))
    for _ in range(25):
        torn = mutated(stream, rng)

        def peer(link: socket.socket, torn: bytes = torn) -> None:
            link.sendall(torn)
            link.shutdown(socket.SHUT_RDWR)

        assert isinstance(after(peer), EngineDied)
