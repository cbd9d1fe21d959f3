"""What an engine process says of an answer, from a script: calls when they are whole, thoughts counted, tokens by their bytes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from khola.api import Model
from khola.chat.message import Message, Tool, ToolCall
from khola.engine.request import TokenInfo
from khola.engine.runner import Part
from khola.errors import BadSchema, Busy, KholaError
from khola.serve.backend import ChatJob, Piece, TextJob
from khola.serve.engines import dispatch, wire
from khola.serve.engines.answering import Spelling, joined
from khola.serve.engines.dispatch import Link, Worker
from tests.api.test_api_model import ChatTokenizer, scripted
from tests.engine.fakes import BEGIN, END, FakeRunner, fake_loaded, require_empty

THOUGHT, REST = "দুই, two</think>", "\n\nSum: "
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
CHAT = ChatJob(messages=(Message(role="user", content="2+2?"),), tools=(Tool(name="add"),), sampling={"logprobs": 2})


class Special(ChatTokenizer):
    special_ids = frozenset({BEGIN, END})


@contextmanager
def asked(model: Model) -> Iterator[tuple[socket.socket, Iterator[wire.Told]]]:
    """A worker with this model, as the server sees it."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    thread = threading.Thread(target=Worker(Link(theirs), model).run)
    thread.start()
    frames = wire.Frames()
    try:
        yield ours, (wire.told(frame) for data in iter(lambda: ours.recv(1 << 16), b"") for frame in frames.feed(data))
    finally:
        ours.close()
        thread.join(10)
        theirs.close()
        assert not thread.is_alive()


def pieces_of(told: Iterator[wire.Told], number: int) -> Iterator[Piece]:
    """Pieces of one answer, to the last."""
    for message in told:
        if isinstance(message, wire.Wrong):
            raise message.error()
        for said in message.said if isinstance(message, wire.Step) else ():
            if said.number == number:
                yield said.piece()
                if said.rest is not None and said.rest.finish_reason is not None:
                    return


def test_calls_come_at_once_and_thoughts_are_counted() -> None:
    model = scripted(THOUGHT + REST + CALL + " end", chat_format="qwq", tokenizer=Special())
    with asked(model) as (link, told):
        link.sendall(wire.framed(wire.Chat(7, CHAT)))
        pieces = list(pieces_of(told, 7))
        calls = [place for place, piece in enumerate(pieces) if piece.tool_calls]
        assert [pieces[place].tool_calls for place in calls] == [(ToolCall(name="add", arguments={"a": 1}),)]
        assert calls[0] < len(pieces) - 2
        assert "".join(piece.thinking for piece in pieces) == "দুই, two"
        assert "".join(piece.text for piece in pieces).split() == ["Sum:", "end"]
        assert b"".join(token.spells for piece in pieces for token in piece.tokens).decode() == THOUGHT + REST + CALL + " end"
        assert {len(token.top) for piece in pieces for token in piece.tokens} == {2}
        cost = pieces[-1].cost
        assert cost is not None
        assert cost.thinking_tokens == len(THOUGHT.encode())
        assert cost.answer_tokens == len((THOUGHT + REST + CALL + " end").encode()) + 1


def test_a_tool_whose_schema_cannot_be_held_is_named() -> None:
    model = scripted("x", chat_format="qwen2_5", tokenizer=Special())
    wrong = Tool(name="add", parameters={"properties": {"a": {"not": {}}}}, strict=True)
    with asked(model) as (link, told):
        link.sendall(wire.framed(wire.Chat(7, msgspec.structs.replace(CHAT, tools=(wrong,)))))
        with pytest.raises(BadSchema, match=r"add\.properties\.a\.not") as caught:
            list(pieces_of(told, 7))
        assert caught.value.facts["param"] == "tools"


def test_one_call_ends_the_answer() -> None:
    model = scripted(CALL + "\n" + CALL, chat_format="qwen2_5", tokenizer=Special())
    with asked(model) as (link, told):
        link.sendall(wire.framed(wire.Chat(7, msgspec.structs.replace(CHAT, one_call=True))))
        pieces = list(pieces_of(told, 7))
    assert [len(piece.tool_calls) for piece in pieces if piece.tool_calls] == [1]
    assert pieces[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("opened", "answer", "count"),
    [
        (True, "a</think>b", 9),
        (True, "<think>a</think>b", 16),
        (True, "never ends", 10),
        (False, "\n<think>a</think>b", 17),
        (False, "plain </think> <think>", 0),
        (False, "<th", 0),
    ],
)
def test_tokens_of_thoughts(opened: bool, answer: str, count: int) -> None:
    from khola.chat.thinking import ThoughtTokens

    for size in (1, 3, 100):
        tokens = ThoughtTokens(opened=opened, token_bytes=lambda at, size=size: answer.encode()[at * size : at * size + size])
        for token in range(-(-len(answer) // size)):
            tokens.push(token)
        assert tokens.count == -(-count // size)


def test_tokens_are_spelled_as_they_stand_in_the_text() -> None:
    words = {1: b"<s>", 2: b" hi", 3: b" \xe0"}
    tokenizer: Any = SimpleNamespace(token_bytes=words.__getitem__, special_ids=frozenset({1}), strips_space=True)
    told = Spelling(tokenizer).tokens([TokenInfo(1), TokenInfo(2, -1.0, ((3, -0.5),)), TokenInfo(2)])
    assert [token.spells for token in told] == [b"", b"hi", b" hi"]
    assert told[1].top == ((3, b"\xe0", -0.5),)
    assert Spelling(tokenizer, shown=[1]).tokens([TokenInfo(1)])[0].spells == b"<s>"


def test_pieces_of_one_step_are_one() -> None:
    calls = (ToolCall(name="a", arguments={}), ToolCall(name="b", arguments={}))
    first = wire.Said(1, "a", "t", wire.Rest(calls=wire.calls_as_json(calls[:1])))
    more = wire.Said(1, "b", "h", wire.Rest(calls=wire.calls_as_json(calls[1:]), finish_reason="stop"))
    piece = joined(first, more).piece()
    assert (piece.text, piece.thinking, piece.tool_calls, piece.finish_reason) == ("ab", "th", calls, "stop")
    assert joined(wire.Said(1, "a", "", first.rest), wire.Said(1, "b")) == wire.Said(1, "ab", "", first.rest)


class Held(FakeRunner):
    """Computes nothing until it may."""

    def __init__(self) -> None:
        super().__init__(64)
        self.may = threading.Event()

    def logits(self, parts: Sequence[Part]) -> list[Any]:
        assert self.may.wait(10)
        return super().logits(parts)


def test_a_worker_is_drained_and_takes_no_more() -> None:
    with asked(Model(fake_loaded(tokenizer=Special()), runner=(runner := Held()), cache_tokens=2048)) as (link, told):
        link.sendall(wire.framed(wire.Continue(1, TextJob(prompt="a", sampling={"max_tokens": 30, "ignore_end": True}))))
        assert isinstance(next(told), wire.Accepted)
        link.sendall(wire.framed(wire.Drain(2)) + wire.framed(wire.Look(3)))
        refused = next(told)
        assert isinstance(refused, wire.Wrong)
        assert (refused.number, type(refused.error())) == (3, Busy)
        runner.may.set()
        last = list(iter(told.__next__, wire.Drained(2)))
        assert last
        assert all(isinstance(message, wire.Step) for message in last)


def test_what_is_too_long_for_a_frame_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(fake_loaded(tokenizer=Special()), runner=FakeRunner(64), cache_tokens=2048)
    monkeypatch.setattr(wire, "FRAME_BYTES", 2000)
    jobs = [TextJob(prompt="a" * size, prompt_logprobs=3, sampling={"max_tokens": 3, "ignore_end": True}) for size in (3, 100)]
    with asked(model) as (link, told):
        link.sendall(b"".join(wire.framed(wire.Continue(number, job)) for number, job in enumerate(jobs, 1)))
        messages = [next(told)]
        while not any(isinstance(message, wire.Wrong) for message in messages):
            messages.append(next(told))
        link.sendall(wire.framed(wire.Continue(3, jobs[0])))
        assert list(pieces_of(told, 3))[-1].finish_reason == "length"
    (wrong,) = [message for message in messages if isinstance(message, wire.Wrong)]
    assert (wrong.number, wrong.code) == (2, "bad_request")


def test_no_more_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    model = Model(fake_loaded(tokenizer=Special()), runner=FakeRunner(64), cache_tokens=2048)
    monkeypatch.setattr(dispatch, "MOST_PREPARING", 6)
    monkeypatch.setattr(model, "ids", lambda text: [int(gate.wait(10))])
    with asked(model) as (link, told):
        link.sendall(b"".join(wire.framed(wire.Encode(number, "x", True)) for number in range(1, 9)))
        refused = [next(told), next(told)]
        gate.set()
        assert [(message.number, message.code) for message in refused if isinstance(message, wire.Wrong)] == [(7, "busy"), (8, "busy")]
        assert {message.number for _ in range(6) if isinstance(message := next(told), wire.Ids)} == set(range(1, 7))


@pytest.mark.parametrize("slow", [{"form": {"regex": "a+"}}, {"prompt": "b" * 70_000}])
def test_what_takes_long_to_prepare_holds_nobody_up(slow: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    model = Model(fake_loaded(tokenizer=Special()), runner=FakeRunner(64), cache_tokens=2048)
    prepared = model.prepared_text
    monkeypatch.setattr(
        model, "prepared_text", lambda text, **more: prepared(text, **more) if text == "a" and not more.get("regex") else gate.wait(10)
    )
    with asked(model) as (link, told):
        for number in range(1, 7):
            link.sendall(wire.framed(wire.Continue(number, TextJob(**{"prompt": "a", **slow}))))
        link.sendall(wire.framed(wire.Continue(9, TextJob(prompt="a", sampling={"max_tokens": 3, "ignore_end": True}))))
        assert list(pieces_of(told, 9))[-1].finish_reason == "length"
        gate.set()


class Ear:
    """A link that keeps what is sent."""

    def __init__(self) -> None:
        self.told: list[wire.Told] = []

    def send(self, message: wire.Told) -> None:
        self.told.append(message)


@pytest.mark.parametrize("ask", [wire.Chat(1, CHAT), wire.Continue(1, TextJob(prompt="a text", sampling={"max_tokens": 3}))])
def test_p21_out_of_memory_is_an_answer(ask: wire.Ask) -> None:
    """The first to the hundredth allocation of a request fails, one at a time."""
    memory = pytest.importorskip("_testcapi", reason="this Python was built without its test modules")
    model = scripted("answer", chat_format="qwq", tokenizer=Special())
    ear: Any = Ear()
    asked = Worker(ear, model)
    ends = []
    # What is imported and compiled for the first request is there before memory runs short.
    for place in range(-1, 100):
        asked._preparing[1] = ""
        if place >= 0:
            memory.set_nomemory(place, place + 1)
        try:
            asked._prepare(ask)
        finally:
            memory.remove_mem_hooks()
        told = [message.error() if isinstance(message, wire.Wrong) else message for message in ear.told]
        assert len(told) == 1, place
        assert isinstance(told[0], wire.Accepted) or _typed(told[0]), (place, told)
        ends.append(type(told[0]))
        ear.told.clear()
        asked._forget(1)
        assert not asked._members
        model.engine.step()
        require_empty(model.engine)
    assert ends[0] is wire.Accepted
    assert len(set(ends)) == 2
    asked._quick.shutdown()
    asked._slow.shutdown()
    model.close()


def _typed(error: object) -> bool:
    return isinstance(error, KholaError) and error.code == "no_memory" and error.http_status == 503
