"""SQLite files of the server: what is no such file, who else has it open, and what is left of a change that fails."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest

from khola.errors import BadFiles, Busy, KholaError, NoDisk, NoRoom
from khola.serve.kept.database import Database, Lazy

TABLE = "CREATE TABLE words (word TEXT PRIMARY KEY)"
ADD = "INSERT INTO words VALUES (?)"
MOVE = "move the file away; khola makes a new one"


@pytest.fixture(name="path")
def a_path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "words.sqlite3"


@pytest.fixture(name="database")
def a_database(path: Path) -> Iterator[Database]:
    with closing(Database(path, [TABLE])) as database:
        yield database


def words(database: Database) -> list[str]:
    return [row["word"] for row in database.rows("SELECT word FROM words ORDER BY word")]


def add(database: Database, *given: str) -> None:
    with database.change() as db:
        for word in given:
            db.execute(ADD, (word,))


def test_what_is_kept_is_there_after_a_new_start(path: Path) -> None:
    for number in range(3):
        with closing(Database(path, [TABLE])) as database:
            add(database, str(number))
            assert (words(database), database.version) == ([str(n) for n in range(number + 1)], 1)


@pytest.mark.parametrize("lasting", [True, False])
def test_only_the_owner_may_read_any_of_its_files(path: Path, lasting: bool) -> None:
    with closing(Database(path, [TABLE], lasting=lasting)) as database:
        add(database, "a")
        modes = {file.name.removeprefix(path.name): file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        assert modes == dict.fromkeys(("", "-wal", "-shm", ".lock"), 0o600)
        assert [database.rows(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous")] == ["wal", 2 if lasting else 1]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_others_could_read_is_closed_to_them(path: Path) -> None:
    Database(path, [TABLE]).close()
    path.chmod(0o644)
    Database(path, [TABLE]).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_change_is_whole_or_nothing(database: Database) -> None:
    add(database, "a")
    with pytest.raises(ZeroDivisionError), database.change() as db:
        db.execute(ADD, ("b",))
        raise ZeroDivisionError
    with pytest.raises(BadFiles, match="UNIQUE"):
        add(database, "c", "a")
    add(database, "d")
    assert words(database) == ["a", "d"]


def test_threads_take_turns(database: Database) -> None:
    threads = [Thread(target=lambda start=start: [add(database, f"{start}{n}") for n in range(25)]) for start in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(words(database)) == 100


def grown(path: Path) -> bytes:
    """The bytes of a file of many pages."""
    with closing(Database(path, [TABLE])) as database:
        add(database, *(f"{number:0200d}" for number in range(200)))
    return path.read_bytes()


@pytest.mark.parametrize("cut", [15, 16, 99, 100, 512, 4095, 4097, 8192, -4096])
def test_a_file_that_was_cut_off_is_said_to_be_damaged(path: Path, cut: int) -> None:
    whole = grown(path)
    path.write_bytes(whole[:cut])
    with pytest.raises(BadFiles, match=r"words\.sqlite3: ") as told:
        Database(path, [TABLE])
    assert told.value.hint() == MOVE and path.read_bytes() == whole[:cut]
    path.rename(path.with_suffix(".away"))
    with closing(Database(path, [TABLE])) as database:
        assert words(database) == []


@pytest.mark.parametrize("content", [b"xx", b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4080, b"\0" * 4096])
def test_what_is_no_database_is_left_as_it_is(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(BadFiles) as told:
        Database(path, [TABLE])
    assert told.value.hint() == MOVE and path.read_bytes() == content


def test_a_page_that_was_overwritten_is_an_error_of_ours(path: Path) -> None:
    whole = grown(path)
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with closing(Database(path, [TABLE])) as database, pytest.raises(BadFiles, match="malformed"):
        words(database)


def test_older_files_are_brought_on_and_newer_ones_refused(path: Path) -> None:
    later = [TABLE, "ALTER TABLE words ADD COLUMN means TEXT", "CREATE TABLE others (x)"]
    with closing(Database(path, later[:1])) as database:
        add(database, "a")
    with closing(Database(path, later)) as database:
        assert (words(database), database.version, database.rows("SELECT count(*) FROM others")[0][0]) == (["a"], 3, 0)
    with pytest.raises(BadFiles, match="has version 3; this khola knows versions up to 2"):
        Database(path, later[:2])
    Database(path, later).close()


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    Database(path, [TABLE]).close()
    with pytest.raises(BadFiles, match="already exists"):
        Database(path, [TABLE, "CREATE TABLE more (x); CREATE TABLE more (x)"])
    with closing(Database(path, [TABLE])) as database:
        assert database.version == 1 and not database.rows("SELECT name FROM sqlite_master WHERE name = 'more'")


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    (tmp_path / "folder.sqlite3").mkdir()
    # Nobody, not even root, may make a file in the folder of a process.
    for path, wrong in (
        (blocked / "words.sqlite3", NoRoom),
        (Path("/proc/self/words.sqlite3"), NoRoom),
        (tmp_path / "folder.sqlite3", NoDisk),
    ):
        with pytest.raises(wrong) as told:
            Database(path, [TABLE])
        assert path.name in told.value.told()


def test_a_full_disk_is_told_and_loses_nothing(database: Database) -> None:
    add(database, "a")
    database.rows("PRAGMA max_page_count = 3")
    with pytest.raises(NoDisk, match=r"words\.sqlite3 cannot be written"):
        add(database, *(f"{number:0900d}" for number in range(100)))
    assert words(database) == ["a"]


def test_one_process_writes(path: Path) -> None:
    other = f"from pathlib import Path; from khola.serve.kept.database import Database; Database(Path({str(path)!r}), [{TABLE!r}]); input()"
    command = [sys.executable, "-c", f"{other.removesuffix('; input()')}; print('open', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(Busy, match=f"held by process {process.pid}"):
            Database(path, [TABLE])
        process.kill()
    Database(path, [TABLE]).close()


def test_a_refused_file_is_not_held(path: Path) -> None:
    Database(path, [TABLE, "CREATE TABLE more (x)"]).close()
    for _ in range(2):
        with pytest.raises(BadFiles, match="version 2"):
            Database(path, [TABLE])
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT count(*) FROM more").fetchone() == (0,)


def test_a_lazy_store_is_opened_by_the_first_who_asks(path: Path) -> None:
    opened: list[Path] = []

    def make(where: Path) -> Database:
        opened.append(where)
        return Database(where, [TABLE])

    async def road() -> None:
        lazy = Lazy(path, make)
        assert not lazy.there and not path.parent.exists()
        await lazy.close()
        await asyncio.gather(*(lazy.ask(add, str(number)) for number in range(8)))
        assert lazy.there and opened == [path] and len(await lazy.ask(words)) == 8
        await lazy.close()
        assert lazy.there and len(await lazy.ask(words)) == 8 and opened == [path, path]
        await lazy.close()

    asyncio.run(road())


def test_a_store_that_cannot_be_opened_is_tried_again(path: Path) -> None:
    async def road() -> None:
        path.parent.mkdir()
        path.write_bytes(b"no database")
        lazy = Lazy(path, lambda where: Database(where, [TABLE]))
        with pytest.raises(KholaError):
            await lazy.ask(words)
        path.unlink()
        assert await lazy.ask(words) == []
        await lazy.close()

    asyncio.run(road())
