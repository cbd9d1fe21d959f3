"""The page's files, read once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from khola.errors import NotFound
from khola.serve.operation import Operation

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "woff2": "font/woff2",
    "txt": "text/plain; charset=utf-8",
    "LICENSE": "text/plain; charset=utf-8",
}
HEADERS = {
    "content-security-policy": "require-trusted-types-for 'script'",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
"""Besides those of every document (`khola.serve.app`): no text ever becomes HTML."""


@dataclass(frozen=True)
class File:
    """One file of the page."""

    body: bytes
    type: str
    tag: str
    """Changes when the body does."""


@cache
def page_files() -> dict[str, File]:
    """Every file of the page by its path below `/page/static/`."""
    return dict(_below(files("khola.serve").joinpath("page"), ""))


def _below(folder: Traversable, prefix: str) -> list[tuple[str, File]]:
    found: list[tuple[str, File]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _below(entry, f"{prefix}{entry.name}/")
        elif (kind := TYPES.get(entry.name.rpartition(".")[2])) is not None:
            body = entry.read_bytes()
            found.append((prefix + entry.name, File(body, kind, f'"{hashlib.sha256(body).hexdigest()[:24]}"')))
    return found


def operations() -> list[Operation]:
    """The page at `/`, and its files."""

    async def index(request: Request) -> ASGIApp:
        return _answer(request, "index.html")

    async def file(request: Request) -> ASGIApp:
        return _answer(request, request.path_params["path"])

    return [
        Operation(method="GET", path="/", run=index, scope="open", summary="The page", document=True),
        Operation(method="GET", path="/page/static/{path:path}", run=file, scope="open", summary="A file of the page", document=True),
    ]


def _answer(request: Request, path: str) -> Response:
    found = page_files().get(path)
    if found is None:
        raise NotFound("there is no {key!r} here", key=path[:80])
    headers = {**HEADERS, "etag": found.tag}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    return Response(found.body, headers=headers, media_type=found.type)
