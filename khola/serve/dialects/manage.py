"""Loading and unloading models in the words of llama.cpp's router, which Open WebUI speaks.

Source   https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md (router mode)
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from khola.errors import KholaError
from khola.serve.backend import ModelState, State
from khola.serve.http import refusal
from khola.serve.http.body import json_response, meant, read_json
from khola.serve.http.sse import Event, Events, event_response
from khola.serve.operation import Operation
from khola.serve.service import Service

PREFIXES = ("/models",)
error_body = refusal.error_body
LOOK_S = 0.5
"""How often the states of models are looked at for those who listen."""


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model is meant."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class Done(msgspec.Struct, frozen=True):
    """It was done."""

    success: bool = True


class Status(msgspec.Struct, frozen=True):
    """Of one model: unloaded, loading or loaded."""

    value: str


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the list."""

    id: str
    status: Status
    created: int
    object: str = "model"
    owned_by: str = "khola"


class Listed(msgspec.Struct, frozen=True):
    """All models that are offered."""

    data: list[Entry]
    object: str = "list"


def operations(service: Service) -> list[Operation]:
    """The addresses of model management."""
    backend = service.backend

    async def listed(request: Request) -> ASGIApp:
        return json_response(service, Listed([entry(state) for state in await backend.models()]))

    async def load(request: Request) -> ASGIApp:
        await backend.load(meant(await read_json(request, service), Named).model)
        return json_response(service, Done())

    async def unload(request: Request) -> ASGIApp:
        await backend.unload(meant(await read_json(request, service), Named).model)
        return json_response(service, Done())

    async def changes(request: Request) -> ASGIApp:
        return await event_response(request, service, state_events(service), errors=_failed)

    return [
        Operation(method="GET", path="/models", run=listed, scope="infer", summary="Models and their states", answer=Listed),
        Operation(method="POST", path="/models/load", run=load, scope="admin", summary="Load a model", body=Named, answer=Done),
        Operation(method="POST", path="/models/unload", run=unload, scope="admin", summary="Unload a model", body=Named, answer=Done),
        Operation(method="GET", path="/models/sse", run=changes, scope="infer", summary="States of models as they change", streams=True),
    ]


def entry(state: ModelState) -> Entry:
    """A model as the list shows it."""
    return Entry(id=state.name, status=Status(state.state), created=state.created)


async def state_events(service: Service, every_s: float = LOOK_S) -> Events:
    """The state of every model, then each change of one; to the end of the server."""
    known: dict[str, State] = {}
    while not service.deadlines.stopping:
        found = {state.name: state.state for state in await service.backend.models()}
        for name in known.keys() - found.keys():
            yield Event({"model": name, "event": "model_remove", "data": {}})
        for name, state in found.items():
            if known.get(name) != state:
                yield Event({"model": name, "event": "model_status", "data": {"status": state}})
        known = found
        await asyncio.sleep(every_s)


def _failed(error: KholaError, number: str) -> list[Event]:
    return [Event(error_body(error, number))]
