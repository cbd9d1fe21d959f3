"""A server in this process, and what a client makes of its streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from khola.serve.app import app
from khola.serve.backend import Cost, Job, Piece
from khola.serve.engines.echo import Echo
from khola.serve.service import Service
from khola.settings import Settings

COST = Cost(prompt_tokens=3, cached_tokens=1, answer_tokens=5, thinking_tokens=2)


class Scripted(Echo):
    """Answers every job with the same pieces, and keeps the jobs."""

    def __init__(self, *pieces: Piece | Exception) -> None:
        super().__init__()
        self.pieces = pieces
        self.jobs: list[Job] = []
        self.open = 0

    async def start(self, job: Job, model: str) -> Any:
        self.jobs.append(job)
        self.open += 1
        return ScriptedPieces(self)


class ScriptedPieces:
    """One answer of `Scripted`."""

    def __init__(self, backend: Scripted) -> None:
        self._backend = backend
        self._left = list(backend.pieces)
        self._open = True

    def __aiter__(self) -> ScriptedPieces:
        return self

    async def __anext__(self) -> Piece:
        await asyncio.sleep(0)
        if not self._left:
            raise StopAsyncIteration
        piece = self._left.pop(0)
        if isinstance(piece, Exception):
            raise piece
        return piece

    async def aclose(self) -> None:
        self._backend.open -= self._open
        self._open = False


class Client:
    """Asks one server, without sockets.

    Args:
        backend: what answers; an echo by default.
        home: folder of what the server keeps.
    """

    def __init__(self, backend: Echo | None = None, home: Path = Path("none")) -> None:
        self.backend = backend or Echo()
        settings = Settings(home=home, user_home=Path("none"))
        self.service = Service(backend=self.backend, settings=settings)
        self.app = app(self.service)
        self._transport = httpx2.ASGITransport(self.app)

    def session(self) -> httpx2.AsyncClient:
        """For requests that meet each other in one event loop."""
        return httpx2.AsyncClient(transport=self._transport, base_url="http://127.0.0.1:11500")

    def ask(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        """One request and its whole answer."""

        async def run() -> httpx2.Response:
            async with self.session() as client:
                return await client.request(method, path, **({} if body is None else {"json": body}))

        return asyncio.run(run())

    def post(self, path: str, **body: Any) -> Any:
        """The JSON of an answer that succeeds."""
        answer = self.ask("POST", path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, path: str, **body: Any) -> dict[str, Any]:
        """The error of an answer that fails, and its status beside it."""
        answer = self.ask("POST", path, body)
        assert answer.status_code >= 400, answer.text
        error = answer.json()["error"]
        assert {"message", "type", "param", "code"} <= set(error)
        return {**error, "status": answer.status_code}

    def events(self, path: str, **body: Any) -> list[Any]:
        """The data of a stream's events."""
        answer = self.ask("POST", path, {**body, "stream": True})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return data_of(answer.content)


def data_of(stream: bytes) -> list[Any]:
    """What the events of a stream say; `[DONE]` stays text."""
    events = [event for event in stream.decode().split("\n\n") if event and not event.startswith(":")]
    lines = [line for event in events for line in event.split("\n") if line.startswith("data: ")]
    return [said if (said := line.removeprefix("data: ")) == "[DONE]" else json.loads(said) for line in lines]


def user(text: str) -> list[dict[str, str]]:
    """A conversation of one turn."""
    return [{"role": "user", "content": text}]


def joined(chunks: Sequence[dict[str, Any]], key: str) -> str:
    """What the deltas of a stream's first choice say together."""
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == 0]
    return "".join(delta.get(key) or "" for delta in deltas)
