"""A server in this process and what it answers: ASGI spoken directly, because a client library would be most of the time."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from khola.errors import KholaError
from khola.serve.app import App
from khola.serve.backend import Piece, TextJob
from khola.serve.dialects import Dialect, dialects
from khola.serve.engines.echo import Echo
from khola.serve.http import refusal
from khola.serve.http.body import json_response, meant, read_json
from khola.serve.http.sse import Event, Events, event_response
from khola.serve.operation import Operation, caller
from khola.serve.service import Service
from khola.settings import Settings

JSON = {"content-type": "application/json"}
LOCAL = ("127.0.0.1", 50_000)
HOMES = tempfile.TemporaryDirectory(prefix="khola-serve-")  # goes with the interpreter


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text that is said again."""

    prompt: str
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "echo"
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 1.0
    stop: list[Annotated[str, msgspec.Meta(max_length=256)]] = []
    stream: bool = False
    deep: dict[str, Any] = {}


class Heard(msgspec.Struct, frozen=True):
    """What was said."""

    text: str
    tenant: str


class Parrot:
    """A small dialect with everything that real ones have: work, streams, parameters, a document."""

    PREFIXES = ("/parrot",)
    error_body = staticmethod(refusal.error_body)

    @staticmethod
    def operations(service: Service) -> list[Operation]:
        """Its addresses."""

        async def say(request: Request) -> ASGIApp:
            said = meant(await read_json(request, service), Said)
            sampling = {"max_tokens": said.max_tokens, "stop": tuple(said.stop)}
            job = TextJob(prompt=said.prompt, sampling=sampling, tenant=caller(request).tenant)

            async def pieces() -> Any:
                async with aclosing(await service.backend.start(job, said.model)) as found:
                    async for piece in found:
                        yield piece

            async def events() -> Events:
                async for piece in pieces():
                    yield Event(msgspec.to_builtins(piece))
                yield Event("[DONE]")

            if said.stream:
                return await event_response(request, service, events(), errors=told)
            whole: list[Piece] = [piece async for piece in pieces()]
            return json_response(service, Heard("".join(piece.text for piece in whole), caller(request).tenant))

        async def named(request: Request) -> ASGIApp:
            return json_response(service, {"name": request.path_params["name"]})

        async def page(request: Request) -> ASGIApp:
            return json_response(service, {})

        return [
            Operation(
                method="POST",
                path="/parrot",
                run=say,
                scope="infer",
                summary="Say it again",
                body=Said,
                answer=Heard,
                work=True,
                streams=True,
            ),
            Operation(method="GET", path="/parrot/{name:path}", run=named, scope="infer", summary="Its name"),
            Operation(method="DELETE", path="/parrot/{name:path}", run=named, scope="admin", summary="Forget it"),
            Operation(method="PUT", path="/parrot/{name:path}", run=named, scope="infer", summary="Name it", body=dict[str, Any]),
            Operation(method="GET", path="/parrots", run=page, scope="open", summary="A page", document=True),
        ]


def told(error: KholaError, number: str) -> Sequence[Event]:
    """An error in the middle of a stream."""
    return [Event(refusal.error_body(error, number))]


def offered() -> list[Dialect]:
    """Every dialect there is, and the parrot."""
    return [*dialects(), Parrot]


def service_of(**options: Any) -> Service:
    """A service that echoes, in a home of its own."""
    options.setdefault("backend", Echo())
    home = Path(tempfile.mkdtemp(dir=HOMES.name))
    return Service(settings=Settings(home=home, user_home=home, offline=True), **options)


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def code(self) -> str:
        """Code of the error."""
        return str(self.json()["error"]["code"])


async def ask(
    app: ASGIApp,
    method: str,
    path: str,
    body: bytes | dict[str, Any] | None = None,
    headers: dict[str, str] | Sequence[tuple[str, str]] = (),
    *,
    client: tuple[str, int] = LOCAL,
) -> Answer:
    """Send one request and wait for its whole answer."""
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    given = [*(headers.items() if isinstance(headers, dict) else headers)]
    names = {name.lower() for name, _ in given}
    given += [("host", "127.0.0.1:11500")] if "host" not in names else []
    if raw is not None:
        given += [("content-length", str(len(raw)))] if "content-length" not in names else []
        given += [*JSON.items()] if "content-type" not in names and isinstance(body, dict) else []
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "client": client,
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in given],
    }
    answer, parts, sent, ended = Answer(), list[bytes](), False, asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await ended.wait()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": raw or b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    answer.body = b"".join(parts)
    return answer


def asked(service: Service, *requests: tuple[Any, ...], **options: Any) -> list[Answer]:
    """Answers to some requests, one after the other."""
    app = App(service, offered())

    async def all_of_them() -> list[Answer]:
        return [await ask(app, *request, **options) for request in requests]

    return asyncio.run(all_of_them())
