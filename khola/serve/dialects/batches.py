"""OpenAI's batches: rows of a file that are answered while nobody waits for anything else; see `khola.serve.kept.offline`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from khola.serve.dialects import anthropic
from khola.serve.dialects.files import page
from khola.serve.dialects.openai.errors import error_body
from khola.serve.http.body import json_response, meant, read_json
from khola.serve.kept.stored import Batch, Stored
from khola.serve.operation import Operation, caller
from khola.serve.service import Service

__all__ = ["PREFIXES", "error_body", "operations"]
PREFIXES = ("/v1/batches",)
DAY_S = 86_400
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"]
ENDPOINTS: tuple[str, ...] = get_args(Endpoint)


class BatchBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A batch that is wanted."""

    input_file_id: str
    endpoint: Endpoint
    completion_window: Literal["24h"]
    """khola takes as long as it takes; the word is OpenAI's, and no batch expires."""
    metadata: Annotated[dict[str, Annotated[str, msgspec.Meta(max_length=512)]], msgspec.Meta(max_length=16)] | None = None


class BatchList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of batches."""

    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


def operations(service: Service) -> list[Operation]:
    """Begin a batch, list batches, look at one, cancel it."""
    work = service.offline
    work.shapes |= dict.fromkeys(ENDPOINTS, error_body) | {"/v1/messages": anthropic.error_body}

    async def create(request: Request) -> ASGIApp:
        given, now, who = meant(await read_json(request, service), BatchBody), int(service.clock()), caller(request)
        await work.ask(Stored.file, who.name, given.input_file_id, now)
        batch = Batch(
            id=f"batch_{service.number()}",
            endpoint=given.endpoint,
            input_file_id=given.input_file_id,
            completion_window=given.completion_window,
            created_at=now,
            expires_at=now + DAY_S,
            metadata=given.metadata,
        )
        await work.ask(Stored.add_batch, who.name, batch, tenant=who.tenant)
        work.wake()
        return json_response(service, batch)

    async def listed(request: Request) -> ASGIApp:
        after, most, _ = page(request, 100)
        found = await work.ask(Stored.batches, caller(request).name, after, most + 1)
        shown = found[:most]
        ends = (shown[0].id, shown[-1].id) if shown else (None, None)
        return json_response(service, BatchList(data=shown, first_id=ends[0], last_id=ends[1], has_more=len(found) > most))

    async def one(request: Request) -> ASGIApp:
        return json_response(service, await work.ask(Stored.batch, caller(request).name, request.path_params["batch"]))

    async def cancel(request: Request) -> ASGIApp:
        key, now = request.path_params["batch"], int(service.clock())
        found = await work.ask(Stored.change, caller(request).name, key, status="cancelling", cancelling_at=now)
        work.wake()
        return json_response(service, found)

    here: dict[str, Any] = {"scope": "infer"}
    return [
        Operation(method="POST", path="/v1/batches", run=create, summary="Begin a batch", body=BatchBody, answer=Batch, **here),
        Operation(method="GET", path="/v1/batches", run=listed, summary="Batches of yours", answer=BatchList, **here),
        Operation(method="GET", path="/v1/batches/{batch}", run=one, summary="One of them", answer=Batch, **here),
        Operation(method="POST", path="/v1/batches/{batch}/cancel", run=cancel, summary="Cancel it", answer=Batch, **here),
    ]
