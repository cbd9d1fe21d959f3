"""Streams: server-sent events and lines of JSON, with signs of life, a deadline, and errors in the dialect's own events.

Source   https://html.spec.whatwg.org/multipage/server-sent-events.html (framing), https://github.com/ndjson/ndjson-spec
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from khola.errors import Cancelled, KholaError, OurFault
from khola.serve.http.body import encoded
from khola.serve.http.resume import HEADER
from khola.serve.operation import caller, deadline, request_id
from khola.serve.service import Service

PING = b": ping\n\n"


class Event(msgspec.Struct, frozen=True):
    """One event of a stream."""

    data: Any
    """Becomes JSON; a `str` goes out as it is, and must not have line ends (OpenAI's `[DONE]`)."""
    name: str = ""
    """Kind of the event, where the dialect names them; the page's `EventSource` and Anthropic's clients read it."""
    id: str = ""
    """Where a reader can begin again."""


Events = AsyncGenerator[Event, None]
ErrorEvents = Callable[[KholaError, str], Sequence[Event]]
"""What a dialect says of an error, with the request's id, once a stream has begun."""


async def event_response(
    request: Request,
    service: Service,
    events: Events,
    *,
    errors: ErrorEvents,
    lines: bool = False,
    headers: Mapping[str, str] | None = None,
) -> ASGIApp:
    """Answer with a stream; one whose request has `X-Conversation-Id` outlives its connection, see `khola.serve.http.resume`.

    The first event is awaited before anything is sent, for at most `Limits.ping_s`: an error until then is raised here and has a status
    of its own; a later one becomes the events that `errors` makes of it. When the client goes, or the deadline passes, `events` is closed
    at its current step: a generator holds its pieces in `async with aclosing(...)`.

    Args:
        events: what to send; begin the job inside of it, so that a model that loads for long is waited for with pings.
        errors: events that tell of an error.
        lines: lines of JSON instead of server-sent events; these have no pings.
        headers: further ones of the answer.
    Raises:
        KholaError: what `events` raised before its first event.
    """
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait({first}, timeout=service.limits.ping_s)
        if first.done() and (wrong := first.exception()) is not None and not isinstance(wrong, StopAsyncIteration):
            raise wrong
    except BaseException:
        await _stop(first, events)
        raise
    stream = _Stream(request, service, events, first, errors, lines, headers or {})
    if (name := request.headers.get(HEADER)) is None:
        return stream
    try:
        return await service.tapes.keep(caller(request).name, name, stream, request.scope)
    except BaseException:
        await _stop(first, events)
        raise


async def _stop(first: asyncio.Future[Event], events: Events) -> None:
    """Let go of a generator that may be in the middle of a step."""
    first.cancel()
    await asyncio.wait({first})
    if not first.cancelled():
        first.exception()  # asked for, so that asyncio does not report it as forgotten
    await events.aclose()


class _Stream:
    """The answer as an ASGI application."""

    def __init__(
        self,
        request: Request,
        service: Service,
        events: Events,
        first: asyncio.Future[Event],
        errors: ErrorEvents,
        lines: bool,
        headers: Mapping[str, str],
    ) -> None:
        self._service = service
        self._events = events
        self._first = first
        self._errors = errors
        self._lines = lines
        self._headers = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._id = request_id(request)
        self._deadline = deadline(request)
        self._sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = b"application/x-ndjson" if self._lines else b"text/event-stream; charset=utf-8"
        headers = [(b"content-type", kind), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"), *self._headers]
        pings: asyncio.Task[None] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if not self._lines:
                pings = asyncio.create_task(self._ping(send))
            try:
                async with self._service.deadlines.until(self._deadline):
                    await self._pump(send)
            except Cancelled:  # nobody is there to hear of it
                raise
            except KholaError as error:
                self._service.metrics.refused(error.code)
                await self._tell(send, self._errors(error, self._id))
        finally:
            if pings is not None:
                pings.cancel()
            await _stop(self._first, self._events)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, send: Send) -> None:
        try:
            await self._tell(send, [await self._first])
            async for event in self._events:
                await self._tell(send, [event])
        except StopAsyncIteration:
            return
        except (KholaError, TimeoutError):
            raise
        except Exception as wrong:
            self._service.log.failure("stream failed", wrong, id=self._id)
            raise OurFault("a stream failed: {kind}: {what}", kind=type(wrong).__name__, what=str(wrong)) from wrong

    async def _tell(self, send: Send, events: Sequence[Event]) -> None:
        self._sent = asyncio.get_running_loop().time()
        body = b"".join(self._framed(event) for event in events)
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _ping(self, send: Send) -> None:
        loop, silence = asyncio.get_running_loop(), self._service.limits.ping_s
        while True:
            quiet = loop.time() - self._sent
            if quiet >= silence:
                self._sent = loop.time()
                await send({"type": "http.response.body", "body": PING, "more_body": True})
            else:
                await asyncio.sleep(silence - quiet)

    def _framed(self, event: Event) -> bytes:
        data = event.data.encode() if isinstance(event.data, str) else encoded(event.data, raw_utf8=self._service.raw_utf8)
        if self._lines:
            return data + b"\n"
        name = b"event: " + event.name.encode() + b"\n" if event.name else b""
        number = b"id: " + event.id.encode() + b"\n" if event.id else b""
        return name + number + b"data: " + data + b"\n\n"
