"""A server in this process, and ways to ask it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from khola.errors import KholaError
from khola.serve.app import app
from khola.serve.backend import Job, Piece
from khola.serve.engines.echo import Echo
from khola.serve.service import Service
from khola.settings import Settings
from tests.serve.others.pieces import Given

NOWHERE = Settings(home=Path("none"), user_home=Path("none"))


class Scripted(Echo):
    """Gives the same pieces to every job."""

    def __init__(self, pieces: Sequence[Piece | KholaError]) -> None:
        super().__init__()
        self._script = pieces
        self.jobs: list[Job] = []
        self.given: list[Given] = []

    async def start(self, job: Job, model: str) -> Any:
        """The pieces."""
        self.jobs.append(job)
        self.given.append(Given(self._script))
        return self.given[-1]


def service(backend: Any = None, **more: Any) -> Service:
    """A service that knows no disk."""
    return Service(**{"backend": backend or Echo(), "settings": NOWHERE, **more})


def client(served: Service) -> httpx2.AsyncClient:
    """A client of a server in this process, with the key of its page, which may do everything; answers come whole."""
    key = {"authorization": f"Bearer {served.guard.page_key}"}
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app(served)), base_url="http://127.0.0.1:11500", headers=key)


def ask(served: Service, path: str, body: Any = None, *, method: str = "POST", headers: dict[str, str] | None = None) -> httpx2.Response:
    """One answer."""

    async def asked() -> httpx2.Response:
        async with client(served) as http:
            return await http.request(method, path, json=body, headers=headers)

    return asyncio.run(asked())


def events(raw: str) -> list[tuple[str, Any]]:
    """Names and data of server-sent events; comments are left out."""
    found = []
    for block in raw.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields.get("event", ""), json.loads(fields["data"])))
    return found
