"""SQLite files of the server: each is opened in one way, by one process, when it is first needed.

SQLite before 3.51.3 may damage a write-ahead log when two connections write and fold it at once, so a file has one connection, and a lock
beside it keeps other processes away for as long as it is open.

Source   https://www.sqlite.org/wal.html, https://www.sqlite.org/howtocorrupt.html section 2.2 (closing a file gives its locks up)
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock, RLock
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, final

from khola.errors import BadFiles, NoDisk
from khola.fetch.locks import locked

UNWRITABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR)
"""What SQLite says of a disk, and not of what stands in a file."""


@final
class Database:
    """One file, open. Methods may be called from any thread.

    Args:
        path: of the file; it is made where there is none, readable by its owner alone.
        migrations: one script a version; a published one is never changed, the next is appended.
        lasting: whether a change is on the disk when it returns; else the last ones may be lost with the power, but the file is whole.
    Raises:
        BadFiles: it is no such file, it is damaged, or a newer khola wrote it.
        NoDisk, NoRoom: it cannot be written.
        Busy: another process has it open.
    """

    def __init__(self, path: Path, migrations: Sequence[str], *, lasting: bool = True) -> None:
        self._path, self._lock = path, RLock()
        with ExitStack() as opening:
            opening.enter_context(locked(path.with_name(f"{path.name}.lock")))
            opening.enter_context(self._telling())
            if not path.exists():  # closing a file that a connection of this process has open would give its locks up
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            path.chmod(0o600)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            opening.callback(self._db.close)
            self._db.row_factory = sqlite3.Row
            for pragma in ("journal_mode = WAL", "foreign_keys = ON", f"synchronous = {'FULL' if lasting else 'NORMAL'}"):
                self._db.execute(f"PRAGMA {pragma}")
            self._migrate(migrations)
            self._held = opening.pop_all()

    def close(self) -> None:
        """Write everything and let the file go."""
        with self._lock:
            self._held.close()

    @property
    def version(self) -> int:
        """How many migrations the file has seen."""
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a query finds.

        Raises:
            BadFiles, NoDisk: the file is damaged, or cannot be read.
        """
        with self._lock, self._telling():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it, or nothing.

        Raises:
            BadFiles, NoDisk: the file is damaged, or cannot be written.
        """
        with self._lock, self._telling():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _migrate(self, migrations: Sequence[str]) -> None:
        if self.version > len(migrations):
            raise BadFiles(
                "{file} has version {found}; this khola knows versions up to {known}",
                hint="use the khola that wrote it, or move the file away",
                file=self._path.name,
                found=self.version,
                known=len(migrations),
            )
        for number in range(self.version, len(migrations)):
            self._db.executescript(f"BEGIN; {migrations[number]}; PRAGMA user_version = {number + 1}; COMMIT")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Translate what SQLite and the disk say."""
        name = self._path.name
        try:
            yield
        except OSError as problem:
            raise NoDisk("{file} cannot be written: {reason}", file=name, reason=str(problem.strerror)) from problem
        except sqlite3.DatabaseError as problem:
            if getattr(problem, "sqlite_errorcode", 0) & 0xFF in UNWRITABLE:
                raise NoDisk("{file} cannot be written: {reason}", file=name, reason=str(problem)) from problem
            raise BadFiles(
                "{file}: {reason}", hint="move the file away; khola makes a new one", file=name, reason=str(problem)
            ) from problem


class Closes(Protocol):
    """What can be closed."""

    def close(self) -> None:
        """Let go what is held."""


T = TypeVar("T", bound=Closes)
P = ParamSpec("P")
R = TypeVar("R")


@final
class Lazy(Generic[T]):
    """A store that is opened when it is first asked, and never on the event loop.

    Args:
        path: of its file.
        make: opens it.
    """

    def __init__(self, path: Path, make: Callable[[Path], T]) -> None:
        self._path, self._make = path, make
        self._store: T | None = None
        self._opening = Lock()

    @property
    def there(self) -> bool:
        """Whether anything was ever kept."""
        return self._store is not None or self._path.exists()

    async def ask(self, method: Callable[Concatenate[T, P], R], *args: P.args, **more: P.kwargs) -> R:
        """What a method of the store answers, computed in a thread; what opening it raises as well."""
        return await asyncio.to_thread(lambda: method(self._opened(), *args, **more))

    async def close(self) -> None:
        """Close it, if it was ever opened; who asks again opens it again."""
        with self._opening:
            store, self._store = self._store, None
        if store is not None:
            await asyncio.to_thread(store.close)

    def _opened(self) -> T:
        with self._opening:
            if self._store is None:
                self._store = self._make(self._path)
            return self._store
