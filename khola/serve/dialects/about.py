"""What the server says of itself: its description, its counters, and what its own page needs before it may change anything."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from khola.serve.http import refusal
from khola.serve.http.body import encoded, json_response
from khola.serve.metrics import KIND
from khola.serve.openapi import document
from khola.serve.operation import Operation
from khola.serve.service import Service

PREFIXES = ("/openapi.json", "/metrics", "/csrf")
error_body = refusal.error_body


class Csrf(msgspec.Struct, frozen=True):
    """What the page sends in the header `x-khola-csrf`."""

    token: str


def operations(service: Service) -> list[Operation]:
    """The addresses of the server itself."""

    written: list[bytes] = []

    async def openapi(request: Request) -> ASGIApp:
        if not written:  # what is offered never changes
            written.append(encoded(document(service.operations)))
        return Response(written[0], media_type="application/json")

    async def metrics(request: Request) -> ASGIApp:
        levels = {"requests_running": float(service.admission.running), "stopping": float(service.deadlines.stopping)}
        return Response(service.metrics.text(levels, await service.backend.figures()), media_type=KIND)

    async def csrf(request: Request) -> ASGIApp:
        return json_response(service, Csrf(service.guard.csrf), headers={"cache-control": "no-store"})

    return [
        Operation(method="GET", path="/openapi.json", run=openapi, scope="open", summary="This document"),
        Operation(method="GET", path="/metrics", run=metrics, scope="admin", summary="Counters, in the text format of Prometheus"),
        Operation(
            method="GET", path="/csrf", run=csrf, scope="infer", summary="What the server's own page sends with changes", answer=Csrf
        ),
    ]
