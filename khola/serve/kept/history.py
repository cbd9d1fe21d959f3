"""Conversations of the page, kept on the server: trees of messages in one SQLite file.

A conversation is a tree: every message names the one that it follows, an edited question or another answer is a sibling of the first,
and the conversation remembers which leaf is shown. Every row has an owner; a row of somebody else is as absent as one that never was.

File     `KHOLA_HOME/page.sqlite3`.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, final

import msgspec

from khola.errors import AskedWrong, NotFound
from khola.serve.kept.database import Database

Role = Literal["user", "assistant"]

MOST_CONVERSATIONS = 10_000
"""Of one owner."""
MOST_MESSAGES = 20_000
"""Of one conversation, all branches together."""
LONGEST_TEXT = 4 << 20
"""Characters of one message."""

MIGRATIONS = (
    """
    CREATE TABLE conversations (
      id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL, model TEXT NOT NULL, character TEXT NOT NULL,
      memory INTEGER NOT NULL, leaf TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL);
    CREATE INDEX conversations_of ON conversations (owner, updated DESC);
    CREATE TABLE messages (
      id TEXT PRIMARY KEY, number INTEGER NOT NULL, conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
      parent TEXT NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL, thinking TEXT NOT NULL, tool_calls TEXT NOT NULL,
      model TEXT NOT NULL, facts TEXT NOT NULL, created REAL NOT NULL, UNIQUE (conversation, number));
    CREATE TABLE memories (
      conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE, message TEXT NOT NULL, text TEXT NOT NULL,
      created REAL NOT NULL, PRIMARY KEY (conversation, message));
    CREATE TABLE characters (
      id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, card TEXT NOT NULL, portrait BLOB,
      created REAL NOT NULL, updated REAL NOT NULL);
    CREATE INDEX characters_of ON characters (owner, name);
    CREATE TABLE personas (owner TEXT PRIMARY KEY, name TEXT NOT NULL, description TEXT NOT NULL);
    """,
)
"""See `khola.serve.kept.database.Database`."""


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation without its messages."""

    id: str
    title: str
    model: str
    character: str
    """Id of a character; empty for a plain conversation."""
    memory: bool
    """Whether what is too long for the context is summarised."""
    leaf: str
    """Message that is shown last; empty while there is none."""
    created: float
    """Seconds since 1970, as `updated`."""
    updated: float


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    id: str
    number: int
    """Order in which messages were written, from 1."""
    parent: str
    """Message that it follows; empty for a first one."""
    role: Role
    content: str
    thinking: str
    tool_calls: list[dict[str, Any]]
    model: str
    """Who answered; empty for questions."""
    facts: dict[str, Any]
    """What the page tells of an answer: tokens, seconds, why it ended."""
    created: float


class Draft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message to be written."""

    role: Role
    content: str
    parent: str = ""
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = []
    model: str = ""
    facts: dict[str, str | int | float | bool | None] = {}


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be changed in a conversation; what is left out stays."""

    title: str | None = None
    model: str | None = None
    memory: bool | None = None
    leaf: str | None = None


class Persona(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom characters speak to."""

    name: str = ""
    description: str = ""


@final
class History:
    """The file. Methods may be called from any thread; each is one transaction."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open, or make, a file; errors as in `Database`."""
        self._clock = clock
        self._db = Database(path, MIGRATIONS, lasting=False)
        self._rows, self._change = self._db.rows, self._db.change

    def close(self) -> None:
        """Write everything and let the file go."""
        self._db.close()

    def conversations(self, owner: str, search: str = "", most: int = 200) -> list[Conversation]:
        """Those of an owner, the latest first; with `search`, those whose title or messages have these letters."""
        like = "%" + search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        found = self._rows(
            "SELECT * FROM conversations c WHERE owner = ? AND (? = '' OR title LIKE ? ESCAPE '\\' OR EXISTS"
            " (SELECT 1 FROM messages m WHERE m.conversation = c.id AND m.content LIKE ? ESCAPE '\\'))"
            " ORDER BY updated DESC, id LIMIT ?",
            (owner, search, like, like, most),
        )
        return [_conversation(row) for row in found]

    def conversation(self, owner: str, key: str) -> Conversation:
        """One conversation.

        Raises:
            NotFound: this owner has none of this id.
        """
        found = self._rows("SELECT * FROM conversations WHERE id = ? AND owner = ?", (key, owner))
        if not found:
            raise absent(key)
        return _conversation(found[0])

    def begin(self, owner: str, *, title: str = "", model: str = "", character: str = "", memory: bool = False) -> Conversation:
        """A new conversation; with a character, `memory` is on."""
        now = self._clock()
        with self._change() as db:
            count = db.execute("SELECT count(*) FROM conversations WHERE owner = ?", (owner,)).fetchone()[0]
            if count >= MOST_CONVERSATIONS:
                raise AskedWrong("there are {count} conversations already", hint="export some of them and delete them", count=count)
            key = _new_id()
            row = (key, owner, _short(title), model, character, int(memory or bool(character)), "", now, now)
            db.execute("INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return self.conversation(owner, key)

    def change(self, owner: str, key: str, change: Change) -> Conversation:
        """Change what the change names.

        Raises:
            NotFound: this owner has no such conversation, or it has no such leaf.
        """
        with self._change() as db:
            before = self.conversation(owner, key)
            leaf = before.leaf if change.leaf is None else change.leaf
            if change.leaf:
                self._message(key, change.leaf)
            title = before.title if change.title is None else _short(change.title)
            model = before.model if change.model is None else change.model
            memory = before.memory if change.memory is None else change.memory
            db.execute(
                "UPDATE conversations SET title = ?, model = ?, memory = ?, leaf = ?, updated = ? WHERE id = ?",
                (title, model, int(memory), leaf, self._clock(), key),
            )
        return self.conversation(owner, key)

    def forget(self, owner: str, key: str) -> None:
        """Delete a conversation with all its messages.

        Raises:
            NotFound: this owner has no such conversation.
        """
        with self._change() as db:
            self.conversation(owner, key)
            db.execute("DELETE FROM conversations WHERE id = ?", (key,))

    def messages(self, owner: str, key: str) -> list[Kept]:
        """All messages of all branches, in the order in which they were written.

        Raises:
            NotFound: this owner has no such conversation.
        """
        self.conversation(owner, key)
        return [_kept(row) for row in self._rows("SELECT * FROM messages WHERE conversation = ? ORDER BY number", (key,))]

    def path(self, owner: str, key: str, leaf: str) -> list[Kept]:
        """The messages from the first to a leaf.

        Raises:
            NotFound: this owner has no such conversation, or it has no such message.
        """
        by_id = {message.id: message for message in self.messages(owner, key)}
        found: list[Kept] = []
        while leaf:
            if leaf not in by_id:
                raise absent(leaf)
            found.append(by_id[leaf])
            leaf = found[-1].parent
        return found[::-1]

    def write(self, owner: str, key: str, draft: Draft) -> Kept:
        """Append a message and show it.

        Raises:
            NotFound: this owner has no such conversation, or it has no such parent.
            AskedWrong: the message or the conversation is longer than it may be.
        """
        with self._change() as db:
            self.conversation(owner, key)
            if draft.parent:
                self._message(key, draft.parent)
            _check_text(draft.content, draft.thinking)
            number = 1 + db.execute("SELECT coalesce(max(number), 0) FROM messages WHERE conversation = ?", (key,)).fetchone()[0]
            if number > MOST_MESSAGES:
                raise AskedWrong("the conversation has {count} messages already", hint="begin a new one", count=MOST_MESSAGES)
            found, now = _new_id(), self._clock()
            row = (found, number, key, draft.parent, draft.role, draft.content, draft.thinking, _json(draft.tool_calls), draft.model)
            db.execute("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, _json(draft.facts), now))
            db.execute("UPDATE conversations SET leaf = ?, updated = ? WHERE id = ?", (found, now, key))
            return self._message(key, found)

    def complete(self, owner: str, key: str, message: str, draft: Draft) -> Kept:
        """Put what an answer has become in place of what was kept of it while it was written; its parent and role stay.

        Raises:
            NotFound: there is no such message.
            AskedWrong: a question is to be changed, or the text is too long.
        """
        with self._change() as db:
            self.conversation(owner, key)
            if self._message(key, message).role != "assistant":
                raise AskedWrong("a question cannot be changed", hint="write another one beside it")
            _check_text(draft.content, draft.thinking)
            db.execute(
                "UPDATE messages SET content = ?, thinking = ?, tool_calls = ?, model = ?, facts = ? WHERE id = ?",
                (draft.content, draft.thinking, _json(draft.tool_calls), draft.model, _json(draft.facts), message),
            )
            db.execute("UPDATE conversations SET updated = ? WHERE id = ?", (self._clock(), key))
            return self._message(key, message)

    def remember(self, owner: str, key: str, message: str, text: str) -> None:
        """Keep a summary of everything up to and with a message.

        Raises:
            NotFound: there is no such conversation or message.
        """
        with self._change() as db:
            self.conversation(owner, key)
            self._message(key, message)
            db.execute("INSERT OR REPLACE INTO memories VALUES (?, ?, ?, ?)", (key, message, text, self._clock()))

    def memory(self, owner: str, key: str, path: Sequence[Kept]) -> tuple[int, str]:
        """How many messages of a path the longest summary covers, and its text; 0 and nothing without one."""
        self.conversation(owner, key)
        kept = {row["message"]: row["text"] for row in self._rows("SELECT * FROM memories WHERE conversation = ?", (key,))}
        for count in range(len(path), 0, -1):
            if path[count - 1].id in kept:
                return count, str(kept[path[count - 1].id])
        return 0, ""

    def persona(self, owner: str) -> Persona:
        """Whom characters speak to."""
        found = self._rows("SELECT name, description FROM personas WHERE owner = ?", (owner,))
        return Persona(name=found[0]["name"], description=found[0]["description"]) if found else Persona()

    def set_persona(self, owner: str, persona: Persona) -> Persona:
        """Keep a persona."""
        _check_text(persona.description)
        with self._change() as db:
            row = (owner, _short(persona.name), persona.description)
            db.execute("INSERT OR REPLACE INTO personas VALUES (?, ?, ?)", row)
        return self.persona(owner)

    def meets(self, owner: str) -> bool:
        """Whether this owner was never here before; from now on they were."""
        with self._change() as db:
            return bool(db.execute("INSERT OR IGNORE INTO personas VALUES (?, '', '')", (owner,)).rowcount)

    def characters(self, owner: str) -> list[sqlite3.Row]:
        """Rows of an owner's characters without their pictures."""
        text = "SELECT id, name, card, portrait IS NOT NULL AS pictured, updated FROM characters WHERE owner = ? ORDER BY name, id"
        return self._rows(text, (owner,))

    def character(self, owner: str, key: str) -> sqlite3.Row:
        """Row of one character with its picture.

        Raises:
            NotFound: this owner has none of this id.
        """
        found = self._rows("SELECT *, portrait IS NOT NULL AS pictured FROM characters WHERE id = ? AND owner = ?", (key, owner))
        if not found:
            raise absent(key)
        return found[0]

    def keep_character(self, owner: str, key: str, name: str, card: str, portrait: bytes | None) -> str:
        """Write a new character, or over one of this id; without a picture, one that was there stays. Returns its id.

        Raises:
            NotFound: this owner has none of this id.
        """
        now = self._clock()
        with self._change() as db:
            if key:
                self.character(owner, key)
                text = "UPDATE characters SET name = ?, card = ?, portrait = coalesce(?, portrait), updated = ? WHERE id = ?"
                db.execute(text, (_short(name), card, portrait, now, key))
                return key
            made = _new_id()
            db.execute("INSERT INTO characters VALUES (?, ?, ?, ?, ?, ?, ?)", (made, owner, _short(name), card, portrait, now, now))
            return made

    def forget_character(self, owner: str, key: str) -> None:
        """Delete a character; conversations with it stay.

        Raises:
            NotFound: this owner has none of this id.
        """
        with self._change() as db:
            self.character(owner, key)
            db.execute("DELETE FROM characters WHERE id = ?", (key,))

    def _message(self, conversation: str, key: str) -> Kept:
        found = self._rows("SELECT * FROM messages WHERE id = ? AND conversation = ?", (key, conversation))
        if not found:
            raise absent(key)
        return _kept(found[0])


def absent(key: str) -> NotFound:
    """The same answer for what is not there and what is somebody else's."""
    return NotFound("there is no {key!r} here", key=key[:80])


def _new_id() -> str:
    return secrets.token_urlsafe(12)


def _short(text: str) -> str:
    """A title or a name on one line."""
    return " ".join(text.split())[:200]


def _check_text(*texts: str) -> None:
    longest = max(map(len, texts))
    if longest > LONGEST_TEXT:
        text = "a message of {found} characters; at most {most} are kept"
        raise AskedWrong(text, hint="cut it into several", found=longest, most=LONGEST_TEXT)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _conversation(row: sqlite3.Row) -> Conversation:
    values = {name: row[name] for name in Conversation.__struct_fields__}
    return Conversation(**values | {"memory": bool(row["memory"])})


def _kept(row: sqlite3.Row) -> Kept:
    values = {name: row[name] for name in Kept.__struct_fields__}
    return Kept(**values | {"tool_calls": msgspec.json.decode(row["tool_calls"]), "facts": msgspec.json.decode(row["facts"])})
