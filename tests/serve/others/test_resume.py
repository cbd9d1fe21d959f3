"""Streams that are picked up again: the same bytes, for the same owner, and no more of them than fit."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from khola.errors import AskedWrong, NotFound, TooMany
from khola.serve.engines.echo import Echo
from khola.serve.http import resume
from khola.serve.http.resume import Player, Tapes
from tests.serve.others.server import ask, client, service

CHAT = {"model": "m", "messages": [{"role": "user", "content": "এক দুই তিন চার পাঁচ"}]}
ROADS = [("/v1/messages", {**CHAT, "max_tokens": 50, "stream": True}), ("/api/chat", CHAT)]


async def read(player: Player, stop_behind: int | None = None) -> bytes:
    """What a reader receives; it leaves after so many parts."""
    got: list[bytes] = []

    async def send(message: Any) -> None:
        got.append(message.get("body", b""))
        if stop_behind is not None and len(got) > stop_behind:
            raise ConnectionError

    with suppress(ConnectionError):
        await player({}, resume._nobody_leaves, send)
    return b"".join(got)


def answer_of(*parts: bytes, gate: asyncio.Event | None = None) -> Any:
    """An answer in so many parts; the last one waits for the gate."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number, part in enumerate(parts):
            if gate is not None and number == len(parts) - 1:
                await gate.wait()
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return answer


@pytest.mark.parametrize(("path", "body"), ROADS)
def test_a_reader_goes_on_where_it_was_cut_off(path: str, body: Any) -> None:
    async def road() -> None:
        async with client(service(Echo(delay_s=0.002))) as http:
            first = await http.post(path, json=body, headers={"X-Conversation-Id": "a b::m"})
            whole = first.content
            for place in (0, 1, len(whole) // 2, len(whole)):
                again = await http.get("/v1/stream", params={"conv_id": "a b::m", "from": place})
                assert (again.status_code, again.content) == (200, whole[place:])
                assert again.headers["content-type"] == first.headers["content-type"]
            (state,) = (await http.post("/v1/streams/lookup", json={"conversation_ids": ["a b::m", "other"]})).json()
            assert (state["conversation_id"], state["is_done"], state["total_bytes"]) == ("a b::m", True, len(whole))
            for _ in range(2):
                assert (await http.delete("/v1/stream", params={"conv_id": "a b::m"})).status_code == 204
            assert (await http.get("/v1/stream", params={"conv_id": "a b::m"})).status_code == 404

    asyncio.run(road())


def test_the_answer_is_made_to_its_end_without_a_reader_and_not_without_a_name() -> None:
    async def road() -> None:
        tapes, gate = Tapes(), asyncio.Event()
        player = await tapes.keep("me", "c", answer_of(b"one ", b"two ", b"three", gate=gate), {})
        seen = await read(player, stop_behind=1)
        gate.set()
        rest = await asyncio.wait_for(read(tapes.play("me", "c", len(seen))), 1)
        assert seen + rest == b"one two three" and rest

    asyncio.run(road())


def test_two_readers_follow_a_stream_while_it_is_made() -> None:
    async def road() -> None:
        tapes, gate = Tapes(), asyncio.Event()
        first = await tapes.keep("me", "c", answer_of(b"ab", b"cd", b"ef", gate=gate), {})
        readers = [asyncio.create_task(read(player)) for player in (first, tapes.play("me", "c", 0))]
        await asyncio.sleep(0.01)
        assert not any(reader.done() for reader in readers)
        gate.set()
        assert [await asyncio.wait_for(reader, 1) for reader in readers] == [b"abcdef"] * 2

    asyncio.run(road())


def test_nobody_elses_stream_is_found_or_stopped() -> None:
    async def road() -> None:
        tapes = Tapes()
        await tapes.keep("me", "c", answer_of(b"x"), {})
        with pytest.raises(NotFound) as wrong:
            tapes.find("you", "c")
        with pytest.raises(NotFound) as never:
            tapes.find("you", "d")
        assert wrong.value.told() == never.value.told()
        await tapes.forget("you", "c")
        assert await read(tapes.play("me", "c", 0)) == b"x"

    asyncio.run(road())


def test_a_stopped_stream_ends_its_answer() -> None:
    async def road() -> None:
        backend = Echo(delay_s=5)
        served = service(backend)
        async with client(served) as http:
            asked = asyncio.create_task(http.post(*ROADS[0][:1], json=ROADS[0][1], headers={"X-Conversation-Id": "c"}))
            while not backend.running or not served.tapes._tapes:
                await asyncio.sleep(0.005)
            assert (await http.delete("/v1/stream", params={"conv_id": "c"})).status_code == 204
            assert not backend.running and "message_stop" not in (await asyncio.wait_for(asked, 1)).text

    asyncio.run(road())


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "TAPE_BYTES", 10)
    monkeypatch.setattr(resume, "ALL_BYTES", 40)
    monkeypatch.setattr(resume, "OWNER_TAPES", 3)

    async def road() -> None:
        now = 0.0
        tapes = Tapes(lambda: now)
        await tapes.keep("me", "long", answer_of(*[b"0123"] * 5), {})
        await asyncio.sleep(0.01)
        tape = tapes.find("me", "long")
        assert (tape.total, tape.size, tape.dropped) == (20, 10, 10)
        for place, right in [(9, False), (10, True), (20, True), (21, False)]:
            if right:
                assert len(await read(tapes.play("me", "long", place))) == 20 - place
            else:
                with pytest.raises(AskedWrong):
                    tapes.play("me", "long", place)
        for number in range(8):
            await tapes.keep("me", str(number), answer_of(*[b"0123"] * 5), {})
            await asyncio.sleep(0.01)
            assert len(tapes._tapes) <= 3 and sum(kept.size for kept in tapes._tapes.values()) <= 40
        gate = asyncio.Event()
        for number in range(3):
            await tapes.keep("you", str(number), answer_of(b"x", gate=gate), {})
        with pytest.raises(TooMany):
            await tapes.keep("you", "more", answer_of(b"x"), {})
        now += resume.KEPT_S + 1
        with pytest.raises(NotFound):
            tapes.find("me", "7")
        await tapes.close()

    asyncio.run(road())


@pytest.mark.parametrize("name", ["", "x" * 257, "a\tb"])
def test_names_that_cannot_be(name: str) -> None:
    async def road() -> None:
        with pytest.raises(AskedWrong):
            await Tapes().keep("me", name, answer_of(b"x"), {})

    asyncio.run(road())


@pytest.mark.parametrize("query", ["", "?conv_id=", "?conv_id=a&from=-1", "?conv_id=a&from=x"])
def test_queries_that_cannot_be_meant(query: str) -> None:
    assert ask(service(), f"/v1/stream{query}", method="GET").status_code == 400
