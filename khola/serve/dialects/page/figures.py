"""What the engines do now, for the page's curves."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from khola.serve.backend import ModelState
from khola.serve.http.body import json_response
from khola.serve.operation import Operation
from khola.serve.service import Service


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Counters and levels of one moment."""

    at: float
    """Seconds since 1970."""
    engines: dict[str, dict[str, float]]
    """By model, as `khola.engine.stats.Stats` names them."""
    models: list[ModelState]


def operations(service: Service) -> list[Operation]:
    """One address, to be asked again and again."""

    async def figures(request: Request) -> ASGIApp:
        engines, models = await service.backend.figures(), await service.backend.models()
        return json_response(service, Figures(at=service.clock(), engines=engines, models=models))

    return [Operation(method="GET", path="/page/figures", run=figures, scope="infer", summary="Figures of the engines", answer=Figures)]
