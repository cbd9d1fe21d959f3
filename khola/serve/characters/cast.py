"""How a character speaks: its card, its lore and what is remembered of the conversation become the messages that a model is asked with.

Lore     entries whose keys stand in the last messages are told until the book's budget of tokens is spent, those of high priority first.
Memory   when a conversation takes more than a share of the context, notes of its older part stand for that part from then on; see
         `khola.serve.characters.memory`. The messages stay in the history.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from khola.chat.message import Message
from khola.serve.backend import Backend
from khola.serve.characters.card import Character, LoreEntry
from khola.serve.characters.memory import Count, Scribe, forgotten
from khola.serve.kept.database import Lazy
from khola.serve.kept.history import History, Kept, Persona

DEFAULT_CONTEXT = 4096
"""Tokens, where the model's own number is not known."""
LORE_TOKENS = 512
"""Budget of a lore book that names none."""
SCANNED_MESSAGES = 4
"""Messages in which keys are looked for, where the book does not say."""
STAY = (
    "Write {{char}}'s next reply in a conversation between {{char}} and {{user}}. Stay in character, and answer in the language of "
    "{{user}}."
)
_MACRO = re.compile(r"\{\{(char|user|original)\}\}|<(bot|user)>", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that shapes the messages, but the conversation itself."""

    who: Character | None
    persona: Persona
    summary: str = ""

    def filled(self, text: str, original: str = "") -> str:
        """A text of the card with the names in their places."""
        names = {"char": self.nick, "bot": self.nick, "user": self.user, "original": original}
        return _MACRO.sub(lambda match: names[(match[1] or match[2]).lower()], text)

    @property
    def user(self) -> str:
        """What the one who asks is called."""
        return self.persona.name or "User"

    @property
    def nick(self) -> str:
        """What the character is called; empty where there is none."""
        return (self.who.text("nickname") or self.who.name) if self.who else ""


async def lore(who: Character, scene: Scene, spoken: Sequence[str], count: Count) -> list[LoreEntry]:
    """The entries that are told now, in the order in which they stand in the prompt.

    Args:
        spoken: texts of the conversation, the latest last.
        count: tokens of a text.
    """
    book = who.book
    depth = SCANNED_MESSAGES if book.scan_depth is None else max(0, book.scan_depth)
    heard = "\n".join(spoken[-depth:] if depth else ())
    met: list[LoreEntry] = []
    waiting = [entry for entry in book.entries if entry.enabled and not entry.use_regex]
    while fresh := [entry for entry in waiting if entry.constant or _met(entry, heard)]:
        met += fresh
        waiting = [entry for entry in waiting if entry not in fresh]
        heard = "\n".join(entry.content for entry in fresh)
        if not book.recursive_scanning:
            break
    left = LORE_TOKENS if book.token_budget is None else book.token_budget
    told: list[LoreEntry] = []
    for entry in sorted(met, key=lambda entry: (not entry.constant, -(entry.priority or 0), entry.insertion_order)):
        cost = await count(scene.filled(entry.content))
        if cost <= left:
            left -= cost
            told.append(entry)
    return sorted(told, key=lambda entry: entry.insertion_order)


async def messages_of(path: Sequence[Kept], scene: Scene, count: Count) -> list[Message]:
    """What a model is asked: who it is, what it knows and remembers, and the conversation.

    Args:
        path: the messages that are said word by word; the last one is the question.
    """
    who = scene.who
    parts: list[str] = []
    if who:
        found = await lore(who, scene, [message.content for message in path], count)
        before = [entry.content for entry in found if entry.position != "after_char"]
        after = [entry.content for entry in found if entry.position == "after_char"]
        own = who.text("system_prompt")
        parts += [scene.filled(own, STAY) if own else STAY, *before, who.text("description"), who.text("personality"), who.text("scenario")]
        parts += after
        parts += [f"About {{{{user}}}}: {scene.persona.description}" if scene.persona.description else ""]
        parts += [f"How {{{{char}}}} speaks:\n{who.text('mes_example')}" if who.text("mes_example").strip() else ""]
    if scene.summary:
        parts.append(f"What happened before:\n{scene.summary}")
    system = "\n\n".join(scene.filled(part).strip() for part in parts if part.strip())
    said = [Message(role=message.role, content=message.content) for message in path]
    last = scene.filled(who.text("post_history_instructions")) if who else ""
    if last and said and said[-1].role == "user":
        said[-1] = Message(role="user", content=f"{said[-1].content}\n\n{last}")
    return [Message(role="system", content=system), *said] if system else said


async def prompt(
    kept: Lazy[History], backend: Backend, owner: str, key: str, leaf: str, *, model: str, who: Character | None, tenant: str = ""
) -> tuple[list[Message], int]:
    """Messages for the next answer of a conversation; its older part is summarised first, where that is wanted and needed.

    Returns:
        The messages, and how many of the path stand in a summary.
    """
    path = await kept.ask(History.path, owner, key, leaf)
    keeps = (await kept.ask(History.conversation, owner, key)).memory
    covered, summary = await kept.ask(History.memory, owner, key, path) if keeps else (0, "")
    persona = await kept.ask(History.persona, owner)

    async def count(text: str) -> int:
        return len(await backend.tokens(text, model, special=False))

    if keeps:
        states = {state.name: state for state in await backend.models()}
        context = (states[model].context_tokens if model in states else 0) or DEFAULT_CONTEXT
        lengths = [await count(message.content) for message in path]
        cut = forgotten(lengths, covered, context)
        if cut > covered:
            names = Scene(who=who, persona=persona)
            scribe = Scribe(
                backend=backend,
                model=model,
                tenant=tenant,
                user=names.user,
                other=names.nick or "Assistant",
                context=context,
                count=count,
            )
            written = await scribe.notes(path[covered:cut], lengths[covered:cut], summary)
            if written:
                covered, summary = cut, written
                await kept.ask(History.remember, owner, key, path[cut - 1].id, summary)
    return await messages_of(path[covered:], Scene(who=who, persona=persona, summary=summary), count), covered


def _met(entry: LoreEntry, heard: str) -> bool:
    """Whether one of its keys is spoken of, and, where it is selective, one of the second keys as well."""
    where = heard if entry.case_sensitive else heard.casefold()

    def stands(keys: Sequence[str]) -> bool:
        return any(key and (key if entry.case_sensitive else key.casefold()) in where for key in keys)

    return stands(entry.keys) and (not entry.selective or not entry.secondary_keys or stands(entry.secondary_keys))
