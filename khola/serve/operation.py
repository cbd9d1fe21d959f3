"""One address of the server and one method: who may ask it, what it reads and what it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from khola.serve.access.quota import Quota

Scope = Literal["open", "infer", "admin"]
Handler = Callable[[Request], Awaitable[ASGIApp]]
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks."""

    name: str
    """Public id of the key, or "local"."""
    scopes: frozenset[str]
    tenant: str = ""
    """Whose cache may be shared; see `khola.serve.backend.ChatJob.tenant`."""
    quota: Quota | None = None
    """What the key may use; None without bounds."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What a dialect offers; `khola.serve.app` routes, authorises, limits and describes it by this alone."""

    method: Method
    """GET answers HEAD as well."""
    path: str
    """With `{name}` for one segment and `{name:path}` for the rest, slashes and all."""
    run: Handler
    """Answers; it may raise any `KholaError`, which becomes the error body of the dialect that owns the path."""
    scope: Scope
    """What the caller's key must allow; "open" needs no key."""
    summary: str
    """One line for the OpenAPI document."""
    body: Any = None
    """Type of the body, as msgspec takes it; None where there is none."""
    answer: Any = None
    """Type of the answer; None where it is not JSON or empty."""
    statuses: tuple[int, ...] = (200,)
    """Of answers that are no errors."""
    types: tuple[str, ...] = ("application/json",)
    """Media types of the body that are read; a body of another one is refused."""
    work: bool = False
    """Makes a model work: counts against the queue, and against the caller's requests in flight."""
    streams: bool = False
    """May answer with events."""
    document: bool = False
    """A page or a part of one, to which a link on another site may lead."""


def caller(request: Request) -> Caller:
    """Who sent this request."""
    found: Caller = request.scope["state"]["caller"]
    return found


def request_id(request: Request) -> str:
    """Id of this request, which stands in its log lines, its errors and the header `x-request-id`."""
    return str(request.scope["state"]["request_id"])


def deadline(request: Request) -> float:
    """When its answer must have ended, in seconds of the event loop's clock."""
    return float(request.scope["state"]["deadline"])
