"""Responses that are kept: one row each in an SQLite file, with its owner; nobody else can tell that it exists.

A row holds the items that were new in its request, and points to the response that it follows.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from khola.errors import AskedWrong, NotFound

T = TypeVar("T")
UNDONE = ("queued", "in_progress")
"""States of a response that is being made."""
KEPT_S = 30 * 86_400
"""How long a response is kept, as OpenAI keeps it."""
WAIT_S = 5.0
"""For another process that writes."""
_TABLE = """
CREATE TABLE IF NOT EXISTS responses (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, created REAL NOT NULL, previous TEXT, items BLOB NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID"""


class ResponseStore:
    """The file, made for the first response that is kept. Calls do not block the event loop.

    Args:
        file: its path.
        clock: seconds since 1970.
    """

    def __init__(self, file: Path, clock: Callable[[], float]) -> None:
        self._file = file
        self._clock = clock
        self._made = False
        self._lock = threading.Lock()

    async def put(self, owner: str, body: dict[str, Any], items: Sequence[dict[str, Any]]) -> None:
        """Keep a response, or what has become of it."""
        encode = msgspec.json.encode
        row = (body["id"], owner, body["created_at"], body["previous_response_id"], encode(list(items)), encode(body))
        await asyncio.to_thread(self._make)
        await self._run(lambda db: db.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?)", row))

    async def get(self, owner: str, number: str) -> dict[str, Any]:
        """A response.

        Raises:
            NotFound: there is none of this id, or it is somebody else's.
        """
        _, _, body = await self._run(lambda db: _row(db, owner, number, "response_id"))
        return body

    async def items(self, owner: str, number: str) -> list[dict[str, Any]]:
        """The items that were new in the request of a response.

        Raises:
            NotFound: there is none of this id, or it is somebody else's.
        """
        _, items, _ = await self._run(lambda db: _row(db, owner, number, "response_id"))
        return items

    async def delete(self, owner: str, number: str) -> None:
        """Forget a response.

        Raises:
            NotFound: there is none of this id, or it is somebody else's.
        """

        def forget(db: sqlite3.Connection) -> None:
            _row(db, owner, number, "response_id")
            db.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (number, owner))

        await self._run(forget)

    async def before(self, owner: str, number: str | None, limit: int) -> list[dict[str, Any]]:
        """Everything that was said up to the end of a response, oldest first.

        Args:
            number: id of the response; None has nothing before it.
            limit: responses that are followed back.
        Raises:
            NotFound: one of them is not kept, or is somebody else's.
            AskedWrong: one of them has not ended, or they are too many.
        """

        def follow(db: sqlite3.Connection) -> list[dict[str, Any]]:
            said: list[list[dict[str, Any]]] = []
            at = number
            while at is not None:
                at, items, body = _row(db, owner, at, "previous_response_id")
                said.append([*items, *body["output"]])
                if body["status"] in UNDONE or len(said) > limit:
                    raise AskedWrong("{param} is still being made, or follows too many others", param="previous_response_id")
            return [item for one in reversed(said) for item in one]

        return [] if number is None else await self._run(follow)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with self._lock:
                source = str(self._file) if self._file.exists() else ":memory:"
                with closing(sqlite3.connect(source, timeout=WAIT_S)) as db, db:
                    db.execute(_TABLE)
                    return work(db)

        return await asyncio.to_thread(run)

    def _make(self) -> None:
        """The file, once; readable by its owner alone, and without what is too old."""
        with self._lock:
            if self._made:
                return
            self._file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600))
            with closing(sqlite3.connect(self._file, timeout=WAIT_S)) as db, db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute(_TABLE)
                db.execute("DELETE FROM responses WHERE created < ?", (self._clock() - KEPT_S,))
            self._made = True


def _row(db: sqlite3.Connection, owner: str, number: str, param: str) -> tuple[str | None, list[dict[str, Any]], dict[str, Any]]:
    """What a response follows, its items, and itself."""
    found = db.execute("SELECT previous, items, body FROM responses WHERE id = ? AND owner = ?", (number, owner)).fetchone()
    if found is None:
        raise NotFound("there is no response {number}", number=number[:128], param=param)
    previous, items, body = found
    return previous, msgspec.json.decode(items), msgspec.json.decode(body)
