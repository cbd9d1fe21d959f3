"""The server as one ASGI application: every request walks through `App` alone, so no address can go around a check."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from khola.errors import Cancelled, KholaError, NotFound, OurFault, WrongMethod
from khola.serve.access.guard import Headers
from khola.serve.access.quota import Account
from khola.serve.dialects import Dialect, dialects
from khola.serve.http.body import announced_bytes, json_response
from khola.serve.http.line import Line
from khola.serve.http.refusal import error_body, error_headers, quota_headers
from khola.serve.operation import Operation
from khola.serve.paths import Paths
from khola.serve.service import Service

LEFT = 499
"""Status in logs and metrics of a request whose client went before it was answered."""
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; connect-src 'self'; manifest-src 'self'; "
    b"worker-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
SAFE = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
PAGE = [(b"content-security-policy", POLICY), (b"cross-origin-opener-policy", b"same-origin")]


def app(service: Service) -> ASGIApp:
    """The server that offers everything that the dialects offer."""
    return App(service, list(dialects()))


class App:
    """Finds who is asked and who asks, lets them answer, and turns errors into the bodies of the dialect that owns the path."""

    def __init__(self, service: Service, offered: Sequence[Dialect]) -> None:
        self._service = service
        self._paths = Paths([operation for dialect in offered for operation in dialect.operations(service)])
        service.operations = self._paths.operations
        owners = {prefix: dialect for dialect in offered for prefix in dialect.PREFIXES}
        self._owners = dict(sorted(owners.items(), key=lambda owner: -len(owner[0])))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = _Exchange(self._service, scope, Line(receive, send, self._service.limits))
        reply = asyncio.ensure_future(self._reply(exchange))
        gone = asyncio.ensure_future(exchange.line.gone())
        try:
            await asyncio.wait({reply, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            reply.cancel()
            await asyncio.wait({reply, gone})
            exchange.note(None if reply.cancelled() else reply.exception())

    async def _reply(self, exchange: _Exchange) -> None:
        """Answer one request whole; it is cancelled when its client leaves."""
        service, scope = self._service, exchange.scope
        try:
            try:
                headers = service.guard.headers(scope["headers"], scope.get("raw_path") or scope["path"].encode())
                if not headers.body:
                    await exchange.line.expect_nothing()
                exchange.cross = service.guard.cross_origin(headers)
                await self._answer(exchange, headers)
            except Cancelled:
                raise
            except KholaError as error:
                await self._refuse(exchange, error)
            except Exception as wrong:
                service.log.failure("request failed", wrong, id=exchange.number)
                await self._refuse(exchange, OurFault("{kind}: {what}", kind=type(wrong).__name__, what=str(wrong)))
        except Cancelled as left:
            exchange.left = left.code

    async def _answer(self, exchange: _Exchange, headers: Headers) -> None:
        service, scope, guard = self._service, exchange.scope, self._service.guard
        method = scope["method"]
        guard.check_host(headers)
        try:
            operation, scope["path_params"] = self._paths.find(method, scope["path"])
        except (NotFound, WrongMethod):
            if method == "OPTIONS" and headers.asked_method and headers.origin:
                await Response(status_code=204, headers=guard.preflight(headers))(scope, exchange.line.receive, exchange.send)
                return
            guard.check_site(headers, method, None)
            guard.caller(headers, method, None, exchange.address, service.clock())
            raise
        exchange.operation = operation
        guard.check_site(headers, method, operation)
        caller = guard.caller(headers, method, operation, exchange.address, service.clock())
        guard.check_kind(headers, method, operation)
        scope["state"]["caller"], exchange.caller = caller, caller.name
        if not operation.work:
            await self._run(exchange, operation)
            return
        exchange.account = service.account(caller)
        service.admission.check(caller)
        # Whoever sends slowly must not hold a place meanwhile, or some hundreds of them would hold all.
        if headers.body and announced_bytes(Request(scope)) <= service.limits.body_bytes:
            await exchange.line.take_in(service.limits.body_bytes)
        with service.admission.place(caller):
            if exchange.account is not None:
                exchange.account.request(service.clock())
            await self._run(exchange, operation)

    async def _run(self, exchange: _Exchange, operation: Operation) -> None:
        """Let the operation answer before its deadline, and send what it answers; a stream minds the deadline itself."""
        line, scope = exchange.line, exchange.scope
        async with self._service.deadlines.until(scope["state"]["deadline"]):
            answer = await operation.run(Request(scope, line.receive))
        await answer(scope, line.receive, exchange.send)

    async def _refuse(self, exchange: _Exchange, error: KholaError) -> None:
        self._service.metrics.refused(error.code)
        exchange.code = error.code
        if exchange.line.status:
            return  # it has begun: what is cut short says that it failed
        path = exchange.scope["path"]
        shape = next((owner.error_body for prefix, owner in self._owners.items() if path.startswith(prefix)), error_body)
        answer = json_response(self._service, shape(error, exchange.number), error.http_status, error_headers(error))
        await answer(exchange.scope, exchange.line.receive, exchange.send)


class _Exchange:
    """One request and what becomes of it."""

    def __init__(self, service: Service, scope: Scope, line: Line) -> None:
        self._service = service
        self._begun = asyncio.get_running_loop().time()
        self.scope = scope
        self.line = line
        self.number = secrets.token_hex(8)
        self.address = str(scope["client"][0]) if scope.get("client") else ""
        self.operation: Operation | None = None
        self.caller: str | None = None
        self.account: Account | None = None
        self.cross: list[tuple[bytes, bytes]] = []
        self.code: str | None = None
        """Of the error that was answered."""
        self.left: str | None = None
        state = scope.setdefault("state", {})
        state |= {"request_id": self.number, "deadline": self._begun + service.limits.deadline_s}

    async def send(self, message: Any) -> None:
        """Send, with the headers that every answer has; Anthropic's clients read the id of a request under another name than OpenAI's."""
        if message["type"] == "http.response.start":
            page = PAGE if self.operation is not None and self.operation.document else []
            policy = b"cross-origin" if any(name == b"access-control-allow-origin" for name, _ in self.cross) else b"same-origin"
            number = self.number.encode()
            own = [(b"x-request-id", number), (b"request-id", number), (b"cross-origin-resource-policy", policy)]
            end = [] if self.line.whole else [(b"connection", b"close")]
            left = () if self.account is None else quota_headers(self.account.levels(self._service.clock()), self._service.clock())
            message["headers"] = [*message.get("headers", ()), *own, *left, *SAFE, *page, *self.cross, *end]
        await self.line.send(message)

    def note(self, wrong: BaseException | None) -> None:
        """Write what became of it; never what was in it."""
        service, seconds = self._service, asyncio.get_running_loop().time() - self._begun
        if wrong is not None:
            service.log.failure("answer failed", wrong, id=self.number)
        status = self.line.status or LEFT
        route = self.operation.path if self.operation is not None else ""
        method = self.scope["method"] if self.operation is not None else ""
        service.metrics.answered(route, method, status, seconds, self.line.sent_bytes)
        service.log.line(
            "request",
            id=self.number,
            key=self.caller,
            method=method,
            route=route,
            status=status,
            code=self.code or self.left,
            seconds=round(seconds, 4),
            bytes=self.line.sent_bytes,
        )
