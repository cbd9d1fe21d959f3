"""What a model is asked when it speaks as a character: card, lore within its budget, memory of what no longer fits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

from khola.chat.message import Message
from khola.serve.backend import Backend, ChatJob, ModelState, Piece
from khola.serve.characters.card import Character, character
from khola.serve.characters.cast import Scene, lore, messages_of, prompt
from khola.serve.characters.memory import forgotten
from khola.serve.kept.database import Lazy
from khola.serve.kept.history import Draft, History, Kept, Persona

BOOK = {
    "scan_depth": 2,
    "token_budget": 6,
    "entries": [
        {"keys": ["padma"], "content": "wide brown river", "enabled": True, "insertion_order": 2, "priority": 1},
        {"keys": ["boat"], "content": "old red boat", "enabled": True, "insertion_order": 1, "priority": 5},
        {"keys": ["uncle"], "content": "uncle is far away now", "enabled": True, "insertion_order": 0, "priority": 9, "selective": True,
         "secondary_keys": ["letter"]},
        {"keys": ["Moon"], "content": "moon", "enabled": True, "insertion_order": 3, "case_sensitive": True},
        {"keys": ["off"], "content": "never", "enabled": False, "insertion_order": 3},
    ],
}  # fmt: skip


class Words:
    """A backend whose tokens are words; it writes down what it is asked and answers with a short text."""

    def __init__(self, context: int, answer: str = "word of n0") -> None:
        self.context, self.answer = context, answer
        self.jobs: list[ChatJob] = []

    async def tokens(self, text: str, model: str, *, special: bool = True) -> list[int]:
        return list(range(len(text.split())))

    async def models(self) -> list[ModelState]:
        return [ModelState(name="m", state="loaded", created=0, context_tokens=self.context)]

    async def start(self, job: ChatJob, model: str) -> AsyncIterator[Piece]:
        self.jobs.append(job)

        async def pieces() -> AsyncIterator[Piece]:
            yield Piece(text=self.answer)

        return pieces()


async def words(text: str) -> int:
    return len(text.split())


def who(**more: Any) -> Character:
    return character({"name": "Rina", "description": "{{char}} knows <USER>.", **more})


def told(spoken: Sequence[str], **book: Any) -> list[str]:
    rina = who(character_book={**BOOK, **book})
    return [entry.content for entry in asyncio.run(lore(rina, Scene(who=rina, persona=Persona()), spoken, words))]


def test_lore_is_told_when_its_keys_are_spoken_of() -> None:
    assert told(["the PADMA"]) == ["wide brown river"]
    assert told(["a boat", "on the Padma"]) == ["old red boat", "wide brown river"]
    assert told(["padma", "x", "y"]) == [] and told(["padma", "x", "y"], scan_depth=3) == ["wide brown river"]
    assert told(["uncle"]) == [] and told(["uncle sent a letter"]) == ["uncle is far away now"]
    assert told(["moon"]) == [] and told(["Moon"]) == ["moon"] and told(["off"]) == []


def test_lore_keeps_its_budget_and_the_important_goes_first() -> None:
    assert told(["padma boat"], token_budget=3) == ["old red boat"]
    assert told(["padma boat uncle letter"], token_budget=8) == ["uncle is far away now", "old red boat"]
    assert told(["padma boat"], token_budget=0) == []


def test_lore_finds_lore_only_where_it_may() -> None:
    chain = [{"keys": ["a"], "content": "b", "insertion_order": 0}, {"keys": ["b"], "content": "c", "insertion_order": 1}]
    assert told(["a"], entries=chain) == ["b"]
    assert told(["a"], entries=chain, recursive_scanning=True) == ["b", "c"]


def kept(history: History, count: int, each: int = 10) -> tuple[str, list[Kept]]:
    """A conversation of so many messages, each of so many words."""
    key = history.begin("", model="m", memory=True).id
    parent = ""
    for number in range(count):
        text = f"n{number} " + "word " * (each - 1)
        parent = history.write("", key, Draft(role="assistant" if number % 2 else "user", content=text, parent=parent)).id
    return key, history.path("", key, parent)


def test_a_character_speaks_with_all_that_its_card_says(tmp_path: Path) -> None:
    _, path = kept(History(tmp_path / "h"), 1)
    rina = who(
        personality="calm", mes_example="<START>\n{{user}}: hi", post_history_instructions="Be brief.", system_prompt="{{original}} Always."
    )
    scene = Scene(who=rina, persona=Persona(name="Anna", description="a doctor"), summary="they met")
    system, question = asyncio.run(messages_of(path, scene, words))
    assert system.role == "system" and "{{" not in system.content and "<USER>" not in system.content
    for part in ("Rina knows Anna.", "calm", "Anna: hi", "About Anna: a doctor", "they met", "Stay in character", "Always."):
        assert part in system.content
    assert question == Message(role="user", content=f"{path[0].content}\n\nBe brief.")


def test_a_plain_conversation_is_left_as_it_is(tmp_path: Path) -> None:
    _, path = kept(History(tmp_path / "h"), 3)
    plain = asyncio.run(messages_of(path, Scene(who=None, persona=Persona()), words))
    assert [(message.role, message.content) for message in plain] == [(message.role, message.content) for message in path]


def ask(history: History, backend: Words, key: str, leaf: str) -> tuple[list[Message], int]:
    lazy = Lazy(Path("h"), lambda _: history)
    return asyncio.run(prompt(lazy, cast(Backend, backend), "", key, leaf, model="m", who=None))


def test_what_does_not_fit_is_summarised_once_and_remembered(tmp_path: Path) -> None:
    history, backend = History(tmp_path / "h"), Words(context=100)
    key, path = kept(history, 7)
    messages, covered = ask(history, backend, key, path[-1].id)
    assert covered == 4 and len(backend.jobs) == 1 and "word of n0" in messages[0].content
    assert [message.content for message in messages[1:]] == [message.content for message in path[4:]]
    assert "n0" in backend.jobs[0].messages[0].content and "n5" not in backend.jobs[0].messages[0].content
    assert ask(history, backend, key, path[-1].id) == (messages, covered) and len(backend.jobs) == 1
    assert len(history.messages("", key)) == 7


def test_a_short_conversation_is_not_summarised(tmp_path: Path) -> None:
    history, backend = History(tmp_path / "h"), Words(context=100)
    key, path = kept(history, 6)
    assert ask(history, backend, key, path[-1].id)[1] == 0 and not backend.jobs


def test_what_was_said_stands_for_a_summary_that_was_not_written(tmp_path: Path) -> None:
    history, backend = History(tmp_path / "h"), Words(context=100, answer=" ")
    key, path = kept(history, 9)
    messages, covered = ask(history, backend, key, path[-1].id)
    assert covered == 6 and len(messages) == 4 and backend.jobs and "What happened before:\n" in messages[0].content
    assert "n4" in messages[0].content or "word" in messages[0].content


def test_a_long_past_is_summarised_in_pieces_that_fit(tmp_path: Path) -> None:
    history, backend = History(tmp_path / "h"), Words(context=100)
    key, path = kept(history, 4, each=130)
    ask(history, backend, key, path[-1].id)
    assert len(backend.jobs) > 6
    asked = [job.messages[0].content for job in backend.jobs]
    assert all(len(text.split()) < 100 for text in asked) and sum(text.count(" word") for text in asked) >= 3 * 125


def test_the_question_itself_is_never_summarised() -> None:
    assert forgotten([10, 10, 500], 0, 100) == 2 and forgotten([500], 0, 100) == 0 and forgotten([], 0, 100) == 0
    assert forgotten([10] * 6, 0, 100) == 0 and forgotten([10] * 7, 0, 100) == 4 and forgotten([10] * 9, 4, 100) == 4
