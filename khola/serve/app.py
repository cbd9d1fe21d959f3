"""The server as one ASGI application: every request walks through `App` alone, so no address can go around a check."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from khola.errors import KholaError, Late, OurFault
from khola.serve.body import json_response
from khola.serve.dialects import Dialect, dialects
from khola.serve.operation import Caller
from khola.serve.paths import Paths
from khola.serve.refusal import error_body, error_headers
from khola.serve.service import Service

_log = logging.getLogger("khola.serve")


def app(service: Service) -> ASGIApp:
    """The server that offers everything that the dialects offer."""
    return App(service, list(dialects()))


class App:
    """Finds who is asked, lets them answer, and turns errors into the bodies of the dialect that owns the path."""

    def __init__(self, service: Service, offered: list[Dialect]) -> None:
        self._service = service
        self._paths = Paths([operation for dialect in offered for operation in dialect.operations(service)])
        owners = {prefix: dialect for dialect in offered for prefix in dialect.PREFIXES}
        self._owners = dict(sorted(owners.items(), key=lambda owner: -len(owner[0])))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        number = secrets.token_hex(8)
        loop = asyncio.get_running_loop()
        state = scope.setdefault("state", {})
        caller = Caller(name="local", scopes=frozenset({"infer", "admin"}))
        state |= {"request_id": number, "caller": caller, "deadline": loop.time() + self._service.limits.deadline_s}

        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number.encode())]
            await send(message)

        try:
            answer = await self._answer(scope, receive)
        except KholaError as error:
            answer = self._refusal(scope["path"], error, number)
        except Exception as wrong:
            _log.exception("request %s", number)
            fault = OurFault("{kind}: {what}", kind=type(wrong).__name__, what=str(wrong))
            answer = self._refusal(scope["path"], fault, number)
        await answer(scope, receive, named)

    async def _answer(self, scope: Scope, receive: Receive) -> ASGIApp:
        operation, scope["path_params"] = self._paths.find(scope["method"], scope["path"])
        try:
            async with asyncio.timeout_at(scope["state"]["deadline"]):
                return await operation.run(Request(scope, receive))
        except TimeoutError:
            raise Late("the answer took longer than {seconds} s", seconds=self._service.limits.deadline_s) from None

    def _refusal(self, path: str, error: KholaError, number: str) -> ASGIApp:
        shape = next((owner.error_body for prefix, owner in self._owners.items() if path.startswith(prefix)), error_body)
        return json_response(self._service, shape(error, number), error.http_status, error_headers(error))
