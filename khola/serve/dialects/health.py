"""Whether the server lives, and which version it is.

Source   the paths that load balancers and clients ask: llama.cpp's and vLLM's `/health`, SageMaker's `/ping`, Ollama's `HEAD /`.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from khola import __version__
from khola.serve.http import refusal
from khola.serve.http.body import json_response
from khola.serve.operation import Operation
from khola.serve.service import Service

PREFIXES = ("/health", "/v1/health", "/ping", "/version")
error_body = refusal.error_body


class Health(msgspec.Struct, frozen=True):
    """The server answers."""

    status: str = "ok"


class Version(msgspec.Struct, frozen=True):
    """Of khola."""

    version: str


def operations(service: Service) -> list[Operation]:
    """The addresses of health, each for anyone."""

    async def health(request: Request) -> ASGIApp:
        return json_response(service, Health())

    async def version(request: Request) -> ASGIApp:
        return json_response(service, Version(version=__version__))

    lives = [
        Operation(method="GET", path=path, run=health, scope="open", summary="Whether the server lives", answer=Health)
        for path in ("/health", "/v1/health", "/ping")
    ]
    return [*lives, Operation(method="GET", path="/version", run=version, scope="open", summary="Version of khola", answer=Version)]
