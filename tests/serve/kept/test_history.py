"""The page's history: trees of messages, owners, versions of the file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from khola.errors import AskedWrong, BadFiles, NotFound
from khola.serve.kept import history as module
from khola.serve.kept.history import Change, Draft, History, Persona


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "page.sqlite3", clock=iter(range(1, 10_000)).__next__)


def talk(history: History, owner: str = "anna") -> tuple[str, list[str]]:
    """A conversation with a question that was answered twice; ids of its messages."""
    key = history.begin(owner, title="নদী", model="m").id
    asked = history.write(owner, key, Draft(role="user", content="পদ্মা কোথায়?")).id
    first = history.write(owner, key, Draft(role="assistant", content="এখানে", parent=asked, model="m")).id
    second = history.write(owner, key, Draft(role="assistant", content="ওখানে", parent=asked, model="m", facts={"tokens": 3})).id
    return key, [asked, first, second]


def test_branches_are_kept_and_the_shown_leaf_with_them(history: History) -> None:
    key, (asked, first, second) = talk(history)
    assert history.conversation("anna", key).leaf == second
    assert [message.id for message in history.path("anna", key, first)] == [asked, first]
    assert [message.parent for message in history.messages("anna", key)] == ["", asked, asked]
    assert history.change("anna", key, Change(leaf=first)).leaf == first
    assert history.messages("anna", key)[2].facts == {"tokens": 3}


def test_a_second_start_finds_everything(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "page.sqlite3"
    one = History(path)
    key, ids = talk(one)
    one.close()
    two = History(path)
    assert [message.id for message in two.messages("anna", key)] == ids
    assert path.stat().st_mode & 0o077 == 0


def test_an_answer_grows_in_place_and_a_question_does_not(history: History) -> None:
    key, (asked, first, _) = talk(history)
    grown = history.complete("anna", key, first, Draft(role="assistant", content="এখানেই", thinking="ভাবি", tool_calls=[{"name": "f"}]))
    assert (grown.content, grown.thinking, grown.tool_calls, grown.parent) == ("এখানেই", "ভাবি", [{"name": "f"}], asked)
    with pytest.raises(AskedWrong):
        history.complete("anna", key, asked, Draft(role="user", content="x"))


def test_somebody_elses_row_is_absent_for_every_verb(history: History) -> None:
    key, (asked, first, _) = talk(history)
    other = history.begin("bela").id
    who = history.keep_character("anna", "", "Rina", "{}", None)
    for verb in (
        lambda: history.conversation("bela", key),
        lambda: history.messages("bela", key),
        lambda: history.path("bela", key, first),
        lambda: history.change("bela", key, Change(title="mine")),
        lambda: history.forget("bela", key),
        lambda: history.write("bela", key, Draft(role="user", content="x")),
        lambda: history.write("bela", other, Draft(role="user", content="x", parent=asked)),
        lambda: history.complete("bela", key, first, Draft(role="assistant", content="x")),
        lambda: history.remember("bela", key, first, "x"),
        lambda: history.memory("bela", key, []),
        lambda: history.change("bela", other, Change(leaf=first)),
        lambda: history.character("bela", who),
        lambda: history.keep_character("bela", who, "x", "{}", None),
        lambda: history.forget_character("bela", who),
    ):
        with pytest.raises(NotFound, match="there is no"):
            verb()
    assert [c.id for c in history.conversations("bela")] == [other] and history.characters("bela") == []
    assert [m.content for m in history.messages("anna", key)][1] == "এখানে"


def test_search_takes_letters_as_they_are(history: History) -> None:
    key, _ = talk(history)
    history.begin("anna", title="100% sure")
    assert [c.id for c in history.conversations("anna", "পদ্মা")] == [key]
    assert [c.title for c in history.conversations("anna", "0%")] == ["100% sure"]
    assert history.conversations("anna", "' OR 1=1 --") == [] and history.conversations("anna", "_______") == []


def test_forgetting_takes_messages_and_memories_along(history: History) -> None:
    key, ids = talk(history)
    history.remember("anna", key, ids[0], "s")
    history.forget("anna", key)
    with pytest.raises(NotFound):
        history.conversation("anna", key)
    counts = [history._rows(f"SELECT count(*) AS n FROM {table}", ())[0]["n"] for table in ("messages", "memories")]
    assert counts == [0, 0]


def test_the_longest_memory_of_a_path_counts(history: History) -> None:
    key, (asked, first, second) = talk(history)
    history.remember("anna", key, asked, "short")
    history.remember("anna", key, first, "long")
    assert history.memory("anna", key, history.path("anna", key, first)) == (2, "long")
    assert history.memory("anna", key, history.path("anna", key, second)) == (1, "short")


def test_a_failed_write_leaves_nothing(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = talk(history)
    monkeypatch.setattr(module, "LONGEST_TEXT", 10)
    with pytest.raises(AskedWrong, match="characters"):
        history.write("anna", key, Draft(role="user", content="x" * 11))
    monkeypatch.setattr(module, "MOST_MESSAGES", 3)
    with pytest.raises(AskedWrong, match="messages already"):
        history.write("anna", key, Draft(role="user", content="x"))
    monkeypatch.undo()
    assert len(history.messages("anna", key)) == 3 and history.write("anna", key, Draft(role="user", content="x")).number == 4


def test_older_files_are_brought_on_and_newer_ones_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.sqlite3"
    old = History(path)
    key, _ = talk(old)
    old.close()
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, "ALTER TABLE personas ADD COLUMN extra TEXT;"))
    newer = History(path)
    assert newer._db.version == 2 and len(newer.messages("anna", key)) == 3
    newer.close()
    monkeypatch.undo()
    with pytest.raises(BadFiles, match="version 2"):
        History(path)


def test_a_broken_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.sqlite3"
    History(path).close()
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, "CREATE TABLE a (x); CREATE TABLE a (x);"))
    with pytest.raises(BadFiles):
        History(path)
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (1,)
        assert not raw.execute("SELECT name FROM sqlite_master WHERE name = 'a'").fetchall()
    raw.close()


def test_what_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "page.sqlite3"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(BadFiles, match=r"page\.sqlite3"):
        History(path)


def test_a_persona_is_the_owners(history: History) -> None:
    history.set_persona("anna", Persona(name="Anna", description="likes rivers"))
    assert history.persona("anna").name == "Anna" and history.persona("bela") == Persona()
