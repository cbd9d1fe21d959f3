"""Streams that are picked up again after a lost connection; see `khola.serve.http.resume`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from khola.errors import AskedWrong, NotFound
from khola.serve.http import refusal
from khola.serve.http.body import json_response, meant, read_json
from khola.serve.http.resume import Tape
from khola.serve.operation import Operation, caller
from khola.serve.service import Service

PREFIXES = ("/v1/stream",)
error_body = refusal.error_body


class Lookup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which streams are asked about."""

    conversation_ids: Annotated[list[str], msgspec.Meta(max_length=256)]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """How far a stream is."""

    conversation_id: str
    is_done: bool
    total_bytes: int
    started_at: int
    completed_at: int | None


def operations(service: Service) -> list[Operation]:
    """Read a stream again, ask how far some are, stop one."""

    async def read(request: Request) -> ASGIApp:
        return service.tapes.play(caller(request).name, _name(request), _place(request))

    async def stop(request: Request) -> ASGIApp:
        await service.tapes.forget(caller(request).name, _name(request))
        return Response(status_code=204)

    async def lookup(request: Request) -> ASGIApp:
        asked = meant(await read_json(request, service), Lookup)
        return json_response(service, [found for name in asked.conversation_ids if (found := _kept(service, caller(request).name, name))])

    paths: dict[str, Any] = {"path": "/v1/stream", "scope": "infer"}
    return [
        Operation(method="GET", run=read, summary="Go on reading a stream", streams=True, **paths),
        Operation(method="DELETE", run=stop, summary="Stop a stream", statuses=(204,), **paths),
        Operation(
            method="POST",
            path="/v1/streams/lookup",
            run=lookup,
            scope="infer",
            summary="How far streams are",
            body=Lookup,
            answer=list[Kept],
        ),
    ]


def _kept(service: Service, owner: str, name: str) -> Kept | None:
    try:
        tape: Tape = service.tapes.find(owner, name)
    except NotFound:
        return None
    ended = None if tape.ended is None else int(tape.ended)
    return Kept(conversation_id=name, is_done=ended is not None, total_bytes=tape.total, started_at=int(tape.began), completed_at=ended)


def _name(request: Request) -> str:
    name = request.query_params.get("conv_id", "")
    if not name:
        raise AskedWrong("{param} is missing", param="conv_id")
    return name


def _place(request: Request) -> int:
    text = request.query_params.get("from", "0")
    if not text.isdecimal() or len(text) > 15:
        raise AskedWrong("{param}: {why}", param="from", why="expected a byte of the stream, 0 or more")
    return int(text)
