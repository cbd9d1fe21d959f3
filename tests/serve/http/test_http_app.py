"""The application as clients meet it: addresses, errors, streams, deadlines, queues."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest

from khola.serve.access.limits import Limits
from khola.serve.app import App
from khola.serve.engines.echo import Echo
from khola.serve.log import Log
from tests.serve.http.ask import Answer, ask, asked, offered, service_of


@pytest.mark.parametrize("path", ["/health", "/v1/health", "/ping"])
def test_health(path: str) -> None:
    (answer,) = asked(service_of(), ("GET", path))
    assert (answer.status, answer.json()) == (200, {"status": "ok"})


def test_what_is_not_there_is_json() -> None:
    unknown, wrong, head = asked(service_of(), ("GET", "/v2/x"), ("POST", "/health"), ("HEAD", "/health"))
    assert (unknown.status, unknown.code()) == (404, "not_found")
    assert unknown.json()["error"]["request_id"] == unknown.headers["x-request-id"]
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD")
    assert head.status == 200


def test_a_stream_is_events_in_ascii() -> None:
    (answer,) = asked(service_of(), ("POST", "/parrot", {"prompt": "আমার সোনার বাংলা", "stream": True}))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.body.isascii()
    *events, last, end = answer.body.split(b"\n\n")
    assert (last, end) == (b"data: [DONE]", b"")
    pieces = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert "".join(piece["text"] for piece in pieces) == "আমার সোনার বাংলা"
    assert pieces[-1]["finish_reason"] == "stop"


def test_letters_may_stay_as_they_are() -> None:
    (answer,) = asked(service_of(raw_utf8=True), ("POST", "/parrot", {"prompt": "বাংলা"}))
    assert "বাংলা".encode() in answer.body


def test_an_error_before_the_first_event_has_its_status() -> None:
    (answer,) = asked(service_of(), ("POST", "/parrot", {"prompt": "", "stream": True}))
    assert (answer.status, answer.code(), answer.json()["error"]["param"]) == (400, "empty_prompt", "prompt")


def test_a_late_answer_says_so() -> None:
    echo = Echo(delay_s=0.02)
    service = service_of(backend=echo, limits=Limits(deadline_s=0.05))
    prompt = {"prompt": "one two three four five six seven eight nine ten"}
    whole, stream = asked(service, ("POST", "/parrot", prompt), ("POST", "/parrot", {**prompt, "stream": True}))
    assert (whole.status, whole.code()) == (504, "deadline_exceeded")
    assert stream.status == 200
    assert b"[DONE]" not in stream.body
    assert json.loads(stream.body.split(b"\n\n")[-2].removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"
    assert not echo.running, "late answers hold nothing"


def test_a_silent_stream_says_that_it_lives() -> None:
    service = service_of(backend=Echo(delay_s=0.08), limits=Limits(ping_s=0.02))
    (answer,) = asked(service, ("POST", "/parrot", {"prompt": "one two", "stream": True}))
    assert answer.body.startswith(b": ping\n\n"), "the first event takes longer than a silence may"
    assert answer.body.count(b": ping\n\n") >= 3
    assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_whoever_hangs_up_stops_the_answer(stream: bool) -> None:
    echo = Echo(delay_s=0.01)
    service = service_of(backend=echo, log=Log(out := io.StringIO()))

    async def hang_up() -> None:
        body = json.dumps({"prompt": "word " * 1000, "stream": stream}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        left, sent = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, object]:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: object) -> None:
            sent.set()

        scope = {"type": "http", "method": "POST", "path": "/parrot", "query_string": b"", "headers": headers, "client": ("::1", 1)}
        request = asyncio.ensure_future(App(service, offered())(scope, receive, send))
        while not echo.running:
            await asyncio.sleep(0.001)
        if stream:
            await sent.wait()
        left.set()
        await asyncio.wait_for(request, 0.5)

    asyncio.run(hang_up())
    assert not echo.running
    assert service.admission.running == 0
    assert json.loads(out.getvalue())["status"] == (200 if stream else 499)


def test_a_reader_that_does_not_read_is_let_go() -> None:
    echo = Echo()
    service = service_of(backend=echo, limits=Limits(reader_s=0.05))

    async def stall() -> None:
        body = json.dumps({"prompt": "word " * 1000, "stream": True}).encode()
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, object]:
            return messages.pop() if messages else await asyncio.get_running_loop().create_future()

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.body":
                await asyncio.get_running_loop().create_future()

        scope = {"type": "http", "method": "POST", "path": "/parrot", "query_string": b"", "headers": headers, "client": ("::1", 1)}
        await asyncio.wait_for(App(service, offered())(scope, receive, send), 1.0)

    asyncio.run(stall())
    assert not echo.running


def test_a_body_that_comes_too_slowly_is_refused() -> None:
    service = service_of(limits=Limits(body_grace_s=0.05))

    async def drip() -> Answer:
        answer = Answer()
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"100000")]

        async def receive() -> dict[str, object]:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]

        scope = {"type": "http", "method": "POST", "path": "/parrot", "query_string": b"", "headers": headers, "client": ("::1", 1)}
        await asyncio.wait_for(App(service, offered())(scope, receive, send), 1.0)
        return answer

    assert asyncio.run(drip()).status == 408


def test_what_is_too_much_is_refused_at_once() -> None:
    """P18 in small: ten times what is taken on."""
    service = service_of(backend=Echo(delay_s=0.02), limits=Limits(queue=8))

    async def flood() -> tuple[list[Answer], list[float]]:
        app, loop = App(service, offered()), asyncio.get_running_loop()
        times: list[float] = []

        async def one() -> Answer:
            begun = loop.time()
            answer = await ask(app, "POST", "/parrot", {"prompt": "one two three four five six", "stream": True})
            if answer.status == 429:
                times.append(loop.time() - begun)
            return answer

        return list(await asyncio.gather(*(one() for _ in range(80)))), times

    answers, times = asyncio.run(flood())
    taken = [answer for answer in answers if answer.status == 200]
    assert len(taken) == 8
    assert all(answer.body.endswith(b"[DONE]\n\n") for answer in taken)
    refused = [answer for answer in answers if answer.status == 429]
    assert len(refused) == 72
    assert all(int(answer.headers["retry-after"]) >= 1 and answer.code() == "rate_limit_exceeded" for answer in refused)
    assert max(times) < 0.1
    assert service.admission.running == 0


def test_a_server_that_stops_ends_what_it_took_on() -> None:
    """P23 in small: what can end does, what cannot says so, what is new is refused."""
    service = service_of(backend=Echo(delay_s=0.01))

    async def stopping() -> list[Answer]:
        app = App(service, offered())
        short = asyncio.ensure_future(ask(app, "POST", "/parrot", {"prompt": "one two three", "stream": True}))
        long = asyncio.ensure_future(ask(app, "POST", "/parrot", {"prompt": "word " * 10_000, "stream": True}))
        whole = asyncio.ensure_future(ask(app, "POST", "/parrot", {"prompt": "word " * 10_000}))
        await asyncio.sleep(0.02)
        service.stop(0.1)
        new = await ask(app, "POST", "/parrot", {"prompt": "one"})
        return [await short, await long, await whole, new]

    short, long, whole, new = asyncio.run(stopping())
    assert short.body.endswith(b"data: [DONE]\n\n")
    assert json.loads(long.body.split(b"\n\n")[-2].removeprefix(b"data: "))["error"]["code"] == "busy"
    assert (whole.status, whole.code()) == (503, "busy")
    assert (new.status, new.headers["retry-after"]) == (503, "10")


def test_states_of_models_are_told_as_they_change() -> None:
    service = service_of()
    key = {"authorization": f"Bearer {service.guard.page_key}"}

    async def look() -> list[bytes]:
        app = App(service, offered())
        changes = asyncio.ensure_future(ask(app, "GET", "/models/sse"))
        await asyncio.sleep(0.01)
        assert (await ask(app, "POST", "/models/unload", {"model": "echo"}, key)).json() == {"success": True}
        listed = (await ask(app, "GET", "/models")).json()
        assert listed["data"][0]["status"] == {"value": "unloaded"}
        service.stop(1.0)
        return (await changes).body.split(b"\n\n")

    first = asyncio.run(look())[0]
    assert json.loads(first.removeprefix(b"data: ")) == {"model": "echo", "event": "model_status", "data": {"status": "loaded"}}
