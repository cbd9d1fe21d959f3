"""Responses that are kept: one row each in an SQLite file, with its owner; nobody else can tell that it exists.

A row holds the items that were new in its request, and points to the response that it follows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from khola.errors import AskedWrong, NotFound
from khola.serve.kept.database import Database, Lazy

T = TypeVar("T")
PARAM = "response_id"
"""Names the id in errors."""
UNDONE = ("queued", "in_progress")
"""States of a response that is being made."""
KEPT_S = 30 * 86_400
"""How long a response is kept, as OpenAI keeps it."""
MIGRATIONS = (
    """
    CREATE TABLE IF NOT EXISTS responses (
      id TEXT PRIMARY KEY, owner TEXT NOT NULL, created REAL NOT NULL, previous TEXT, items BLOB NOT NULL, body BLOB NOT NULL
    ) WITHOUT ROWID""",
)
"""See `khola.serve.kept.database.Database`; before there were versions the table was there already."""


class ResponseStore:
    """The file, made for the first response that is kept. Calls do not block the event loop.

    Args:
        file: its path.
        clock: seconds since 1970.
    """

    def __init__(self, file: Path, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.database = Lazy(file, self._open)

    async def put(self, owner: str, body: dict[str, Any], items: Sequence[dict[str, Any]]) -> None:
        """Keep a response, or what has become of it."""
        encode = msgspec.json.encode
        row = (body["id"], owner, body["created_at"], body["previous_response_id"], encode(list(items)), encode(body))

        def put(database: Database) -> None:
            with database.change() as db:
                db.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?)", row)

        await self.database.ask(put)

    async def get(self, owner: str, number: str) -> dict[str, Any]:
        """A response.

        Raises:
            NotFound: there is none of this id, or it is somebody else's.
        """
        _, _, body = await self._run(lambda db: _row(db, owner, number, PARAM), number)
        return body

    async def items(self, owner: str, number: str) -> list[dict[str, Any]]:
        """The items that were new in the request of a response.

        Raises:
            NotFound: there is none of this id, or it is somebody else's.
        """
        _, items, _ = await self._run(lambda db: _row(db, owner, number, PARAM), number)
        return items

    async def delete(self, owner: str, number: str) -> None:
        """Forget a response.

        Raises:
            NotFound: there is none of this id, or it is somebody else's.
        """

        def forget(db: sqlite3.Connection) -> None:
            _row(db, owner, number, PARAM)
            db.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (number, owner))

        await self._run(forget, number)

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

        return [] if number is None else await self._run(follow, number, "previous_response_id")

    async def _run(self, work: Callable[[sqlite3.Connection], T], number: str, param: str = PARAM) -> T:
        def run(database: Database) -> T:
            with database.change() as db:
                return work(db)

        if not self.database.there:
            raise _missing(number, param)
        return await self.database.ask(run)

    def _open(self, file: Path) -> Database:
        """The file, without what is too old."""
        database = Database(file, MIGRATIONS)
        with database.change() as db:
            db.execute("DELETE FROM responses WHERE created < ?", (self._clock() - KEPT_S,))
        return database


def _row(db: sqlite3.Connection, owner: str, number: str, param: str) -> tuple[str | None, list[dict[str, Any]], dict[str, Any]]:
    """What a response follows, its items, and itself."""
    found = db.execute("SELECT previous, items, body FROM responses WHERE id = ? AND owner = ?", (number, owner)).fetchone()
    if found is None:
        raise _missing(number, param)
    previous, items, body = found
    return previous, msgspec.json.decode(items), msgspec.json.decode(body)


def _missing(number: str, param: str) -> NotFound:
    """Of a response that nobody knows, or that is somebody else's: nothing tells which."""
    return NotFound("there is no response {number}", number=number[:128], param=param)
