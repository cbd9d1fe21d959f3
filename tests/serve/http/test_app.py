"""The application as clients meet it: addresses, errors, streams."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2
import pytest

from khola.serve.app import app
from khola.serve.echo import Echo
from khola.serve.service import Service
from khola.settings import Settings


def service() -> Service:
    return Service(backend=Echo(), settings=Settings(home=Path("none"), user_home=Path("none")))


async def ask(method: str, path: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app(service()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:11500") as client:
        return await client.request(method, path)


@pytest.mark.parametrize("path", ["/health", "/v1/health", "/ping"])
def test_health(path: str) -> None:
    answer = asyncio.run(ask("GET", path))
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_an_unknown_path_is_json() -> None:
    answer = asyncio.run(ask("GET", "/v2/nothing"))
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
