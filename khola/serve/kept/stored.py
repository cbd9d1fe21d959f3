"""Files and batches that outlive the server: one SQLite file, every row with its owner.

File     `KHOLA_HOME/offline.sqlite3`. What a method has returned from is on the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import msgspec

from khola.errors import NotFound, TooLarge, TooMany
from khola.serve.kept.database import Database

FILE_BYTES = 32 << 20
OWNER_BYTES = 1 << 30
OWNER_FILES = 1000
BATCH_ROWS = 50_000
ENDS = ("completed", "failed", "cancelled")
OWNER_BATCHES = 16
"""Of one owner that have not ended."""

MIGRATIONS = (
    """
CREATE TABLE files (id TEXT PRIMARY KEY, owner TEXT NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL, bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER, content BLOB NOT NULL) STRICT;
CREATE TABLE batches (id TEXT PRIMARY KEY, owner TEXT NOT NULL, tenant TEXT NOT NULL, ended INTEGER NOT NULL,
    created_at INTEGER NOT NULL, told BLOB NOT NULL) STRICT;
CREATE TABLE results (batch TEXT NOT NULL REFERENCES batches(id) ON DELETE CASCADE, row INTEGER NOT NULL, failed INTEGER NOT NULL,
    line BLOB NOT NULL, PRIMARY KEY (batch, row)) STRICT, WITHOUT ROWID;
CREATE INDEX files_of ON files(owner, created_at);
CREATE INDEX batches_of ON batches(owner, created_at);
""",
)
"""See `khola.serve.kept.database.Database`."""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file as OpenAI's clients see it."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None
    object: str = "file"
    status: str = "processed"


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Wrong(msgspec.Struct, frozen=True, kw_only=True):
    """Why a batch could not be begun."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Wrongs(msgspec.Struct, frozen=True, kw_only=True):
    """All of them."""

    data: tuple[Wrong, ...]
    object: str = "list"


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as OpenAI's clients see it. Times are seconds since 1970."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    status: str = "validating"
    """validating, in_progress, completed, failed, cancelled."""
    errors: Wrongs | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None
    object: str = "batch"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.status in ENDS


@final
class Stored:
    """The file. Methods may be called from any thread; each is one transaction.

    Args:
        path: of the file; it is made where there is none.
    Raises:
        KholaError: as in `khola.serve.kept.database.Database`.
    """

    def __init__(self, path: Path) -> None:
        self._db = Database(path, MIGRATIONS)

    def close(self) -> None:
        """Let the file go."""
        self._db.close()

    def add_file(self, owner: str, file: File, content: bytes, *, bounded: bool = True) -> File:
        """Keep a file.

        Args:
            bounded: whether the owner's room counts; what the server itself writes always finds a place.
        Raises:
            TooLarge: it is larger than a file may be.
            TooMany: the owner has as many files, or bytes, as may be.
        """
        if bounded and len(content) > FILE_BYTES:
            raise TooLarge(
                "{body} has {found} bytes or more; at most {limit} are read", body="the file", found=len(content), limit=FILE_BYTES
            )
        with self._db.change() as db:
            db.execute("DELETE FROM files WHERE expires_at < ?", (file.created_at,))
            count, size = db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM files WHERE owner = ?", (owner,)).fetchone()
            if bounded and (count >= OWNER_FILES or size + len(content) > OWNER_BYTES):
                raise TooMany("{count} files of {bytes} bytes are kept for you", hint="delete some", count=count, bytes=size)
            values = (file.id, owner, file.filename, file.purpose, file.bytes, file.created_at, file.expires_at, content)
            db.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        return file

    def file(self, owner: str, key: str, now: float) -> File:
        """A file of this owner's.

        Raises:
            NotFound: there is none; it is the same answer where it is somebody else's.
        """
        query = (
            "SELECT id, bytes, created_at, filename, purpose, expires_at FROM files"
            " WHERE id = ? AND owner = ? AND coalesce(expires_at, ?) >= ?"
        )
        return _file(self._one(query, key, owner, now, now))

    def content(self, owner: str, key: str, now: float) -> bytes:
        """What is in a file; errors as in `file`."""
        query = "SELECT content FROM files WHERE id = ? AND owner = ? AND coalesce(expires_at, ?) >= ?"
        return bytes(self._one(query, key, owner, now, now)[0])

    def files(self, owner: str, purpose: str, after: str, most: int, newest_first: bool, now: float) -> list[File]:
        """Files of this owner's behind one of them, in the order in which they came."""
        query = _NEWEST_FIRST if newest_first else _OLDEST_FIRST
        rows = self._all(query, owner, purpose, purpose, now, now, after, after, owner, most)
        return [_file(row) for row in rows]

    def remove_file(self, owner: str, key: str) -> None:
        """Delete a file; errors as in `file`."""
        with self._db.change() as db:
            if not db.execute("DELETE FROM files WHERE id = ? AND owner = ?", (key, owner)).rowcount:
                raise _no_such()

    def add_batch(self, owner: str, batch: Batch, *, tenant: str = "") -> Batch:
        """Keep a batch.

        Args:
            tenant: whose cache its rows share.
        Raises:
            TooMany: the owner has as many that have not ended as may be.
        """
        with self._db.change() as db:
            (count,) = db.execute("SELECT count(*) FROM batches WHERE owner = ? AND ended = 0", (owner,)).fetchone()
            if count >= OWNER_BATCHES:
                raise TooMany("{count} batches of yours have not ended", hint="wait for one, or cancel it", count=count)
            values = (batch.id, owner, tenant, batch.ended, batch.created_at, msgspec.json.encode(batch))
            db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", values)
        return batch

    def batch(self, owner: str, key: str) -> Batch:
        """A batch of this owner's, with its counts as they are now; errors as in `file`."""
        return self._counted(self._one("SELECT told FROM batches WHERE id = ? AND owner = ?", key, owner)[0])

    def batches(self, owner: str, after: str, most: int) -> list[Batch]:
        """Batches of this owner's behind one of them, the newest first."""
        rows = self._all(
            "SELECT told FROM batches WHERE owner = ? AND (? = '' OR rowid < (SELECT rowid FROM batches WHERE id = ? AND owner = ?))"
            " ORDER BY rowid DESC LIMIT ?",
            *(owner, after, after, owner, most),
        )
        return [self._counted(row[0]) for row in rows]

    def unended(self) -> list[tuple[str, str, Batch]]:
        """Owners, tenants and their batches that have not ended, in the order in which they came."""
        rows = self._all("SELECT owner, tenant, told FROM batches WHERE ended = 0 ORDER BY rowid")
        return [(str(owner), str(tenant), self._counted(told)) for owner, tenant, told in rows]

    def change(self, owner: str, key: str, *, only_from: str = "", **fields: Any) -> Batch:
        """Change a batch that has not ended; one that has stays as it is. Errors as in `file`.

        Args:
            only_from: change it only where this is its status.
        """
        with self._db.change() as db:
            batch = self.batch(owner, key)
            if not batch.ended and batch.status == (only_from or batch.status):
                if "request_counts" not in fields and fields.get("status") in ENDS:
                    fields["request_counts"] = batch.request_counts
                batch = msgspec.structs.replace(batch, **fields)
                db.execute("UPDATE batches SET ended = ?, told = ? WHERE id = ?", (batch.ended, msgspec.json.encode(batch), key))
        return batch

    def add_result(self, batch: str, row: int, failed: bool, line: bytes) -> None:
        """Keep the result of a row, once."""
        with self._db.change() as db:
            db.execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?)", (batch, row, failed, line))

    def rows_done(self, batch: str) -> set[int]:
        """Rows that have a result."""
        return {row for (row,) in self._all("SELECT row FROM results WHERE batch = ?", batch)}

    def results(self, batch: str, failed: bool) -> bytes:
        """The lines of all rows that failed, or of those that did not, in the order of the rows."""
        rows = self._all("SELECT line FROM results WHERE batch = ? AND failed = ? ORDER BY row", batch, failed)
        return b"".join(bytes(line) + b"\n" for (line,) in rows)

    def forget_results(self, batch: str) -> None:
        """Drop the results of a batch whose files hold them now."""
        with self._db.change() as db:
            db.execute("DELETE FROM results WHERE batch = ?", (batch,))

    def _counted(self, told: bytes) -> Batch:
        """A batch with its counts: those of its results while it runs."""
        batch = msgspec.json.decode(told, type=Batch)
        if batch.ended:
            return batch
        failed, count = self._all("SELECT coalesce(sum(failed), 0), count(*) FROM results WHERE batch = ?", batch.id)[0]
        counts = Counts(total=batch.request_counts.total, completed=count - failed, failed=failed)
        return msgspec.structs.replace(batch, request_counts=counts)

    def _all(self, query: str, *values: Any) -> Sequence[Any]:
        return self._db.rows(query, values)

    def _one(self, query: str, *values: Any) -> Any:
        if rows := self._all(query, *values):
            return rows[0]
        raise _no_such()


_NEWEST_FIRST = (
    "SELECT id, bytes, created_at, filename, purpose, expires_at FROM files"
    " WHERE owner = ? AND (? = '' OR purpose = ?) AND coalesce(expires_at, ?) >= ?"
    " AND (? = '' OR rowid < (SELECT rowid FROM files WHERE id = ? AND owner = ?)) ORDER BY rowid DESC LIMIT ?"
)
_OLDEST_FIRST = _NEWEST_FIRST.replace("rowid <", "rowid >").replace("DESC", "ASC")


def _file(row: Any) -> File:
    return File(id=row[0], bytes=row[1], created_at=row[2], filename=row[3], purpose=row[4], expires_at=row[5])


def _no_such() -> NotFound:
    return NotFound("there is no such file or batch of yours", param="id")
