"""Notes of a long talk: bounded, about the talk, with its names, whatever the model writes; and with a real model over many turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from khola.serve.backend import Backend, ChatJob, Cost, Piece
from khola.serve.characters.cast import prompt
from khola.serve.characters.memory import NAMES, SUMMARY_SHARE, Scribe, names_in, stands_in
from khola.serve.engines.pool import Engines
from khola.serve.kept.database import Lazy
from khola.serve.kept.history import Draft, History, Kept
from khola.settings import Settings
from tests.needs import needs_library

EN = [
    "Hi, I am Karim, and I build boats in Barisal.",
    "My sister, Nasrin, wants to buy the blue boat for 4000 taka.",
    "She wants to call it Shapla, after our mother.",
    "Our uncle, Rafiq, lost a boat in 1998 and does not like the idea.",
    "Let us meet on Friday at the port and decide.",
]
BN = [
    "আমি করিম। আমি বরিশালে নৌকা বানাই।",
    "আমার বোন নাসরিন নীল নৌকাটা ৪০০০ টাকায় কিনতে চায়।",
    "সে নৌকাটার নাম রাখতে চায় শাপলা।",
    "আমাদের চাচা রফিক ১৯৯৮ সালে নৌকা হারান।",
    "চলো শুক্রবার ঘাটে দেখা করি।",
]


class Writer:
    """A backend that writes what it is told to, whoever asks."""

    def __init__(self, answer: str, reason: Any = "stop") -> None:
        self.answer, self.reason = answer, reason
        self.jobs: list[ChatJob] = []

    async def start(self, job: ChatJob, model: str) -> AsyncIterator[Piece]:
        self.jobs.append(job)

        async def pieces() -> AsyncIterator[Piece]:
            yield Piece(text=self.answer)
            yield Piece(finish_reason=self.reason, cost=Cost(prompt_tokens=1, cached_tokens=0, answer_tokens=1))

        return pieces()


async def words(text: str) -> int:
    return len(text.split())


def notes(writer: Writer, said: list[str], *, context: int = 400, before: str = "") -> str:
    roles: list[Any] = ["user", "assistant"]
    path = [
        Kept(id=str(n), number=n, parent="", role=roles[n % 2], content=text, thinking="", tool_calls=[], model="", facts={}, created=0.0)
        for n, text in enumerate(said)
    ]
    scribe = Scribe(backend=cast(Backend, writer), model="m", tenant="t", user="Karim", other="Mina", context=context, count=words)
    return asyncio.run(scribe.notes(path, [len(text.split()) for text in said], before))


def test_good_notes_are_believed_and_added_to_those_before() -> None:
    writer = Writer("Nasrin wants to buy the blue boat.")
    told = notes(writer, EN, before=f"{NAMES}Mina, 12\nThey met at the river.")
    assert told.startswith(f"{NAMES}Mina, 12, ") and all(name in told for name in ("Karim", "4000", "Rafiq", "1998", "Friday"))
    assert told.endswith("They met at the river.\nNasrin wants to buy the blue boat.")
    assert "Karim: Hi, I am Karim" in writer.jobs[0].messages[0].content and writer.jobs[0].tenant == "t"


@pytest.mark.parametrize("answer", ["", " \n ", "I am a language model and belong to no group.", "আমি একটি ভাষা মডেল, আমি কারও নই।", "..."])
@pytest.mark.parametrize("said", [EN, BN])
def test_bad_notes_give_way_to_what_was_said(answer: str, said: list[str]) -> None:
    told = notes(Writer(answer), said)
    assert answer.strip() == "" or answer == "..." or answer not in told
    assert said[-1] in told and ("1998" in told or "১৯৯৮" in told)


@pytest.mark.parametrize("said", [EN, BN])
@pytest.mark.parametrize("context", [100, 400, 4000])
def test_notes_stay_bounded_however_long_the_talk_and_the_answer(said: list[str], context: int) -> None:
    endless = Writer(" ".join(said[1].split() * 200), "length")
    told = ""
    for _ in range(6):
        told = notes(endless, said * 4, context=context, before=told)
        assert 0 < len(told.split()) <= SUMMARY_SHARE * context + 1
    assert all(job.sampling["max_tokens"] <= SUMMARY_SHARE * context for job in endless.jobs)


def test_an_answer_that_was_cut_off_ends_with_a_whole_sentence() -> None:
    told = notes(Writer("Nasrin wants the boat. Rafiq does not li", "length"), EN)
    assert told.endswith("Nasrin wants the boat.")


def test_names_and_numbers_are_found() -> None:
    assert names_in("My sister, Nasrin, gave 4000 to Rafiq. She met Nasrin on Friday.") == ["Nasrin", "4000", "Rafiq", "Friday"]
    assert names_in("নাসরিন ১৯৯৮ সালে") == ["১৯৯৮"]
    assert stands_in("নাসরিনের নৌকা", BN[1]) and not stands_in("a model of Alibaba", BN[1]) and not stands_in("", "x")


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize(("said", "context"), [(EN, 320), (BN, 1024)])
def test_a_real_model_remembers_a_long_talk(tmp_path: Path, real_model: Callable[[str], Path], said: list[str], context: int) -> None:
    """The prompt stays below the context, notes replace old turns and grow no longer than they may; a new start knows them."""
    file = real_model("smollm2-135m-instruct")

    async def road() -> None:
        engines = Engines(Settings(home=tmp_path, user_home=tmp_path), [str(file)], options={"context": context})
        name = (await engines.models())[0].name
        kept, covers, leaf = Lazy(tmp_path / "page.sqlite3", History), [0], ""
        key = (await kept.ask(History.begin, "me", model=name, memory=True)).id
        for number in range(12):
            text = said[number % len(said)]
            for role, content in (("user", text), ("assistant", f"{text} {said[(number + 1) % len(said)]}")):
                leaf = (await kept.ask(History.write, "me", key, Draft(role=cast(Any, role), content=content, parent=leaf))).id
            messages, covered = await prompt(kept, cast(Backend, engines), "me", key, leaf, model=name, who=None)
            path = await kept.ask(History.path, "me", key, leaf)
            assert [turn.content for turn in messages if turn.role != "system"] == [turn.content for turn in path[covered:]]
            _, ids = await engines.rendered(ChatJob(messages=tuple(messages)), name)
            assert len(ids) < context and covered >= covers[-1]
            covers.append(covered)
            if covered:
                told = messages[0].content.split("What happened before:\n")[1]
                assert 3 <= len(await engines.tokens(told, name, special=False)) <= SUMMARY_SHARE * context + 2
                line = told.split("\n")[0]
                assert line.startswith(NAMES) and all(name in " ".join(said) for name in line.removeprefix(NAMES).split(", "))
        assert len(set(covers)) >= 3, "nothing was forgotten"
        await kept.close()
        again = Lazy(tmp_path / "page.sqlite3", History)
        before = await engines.figures()
        assert await prompt(again, cast(Backend, engines), "me", key, leaf, model=name, who=None) == (messages, covered)
        after = await engines.figures()
        assert after[name]["steps"] == before[name]["steps"], "what is remembered is not written again"
        async with aclosing(await engines.start(ChatJob(messages=tuple(messages), sampling={"max_tokens": 5}), name)) as pieces:
            assert [piece async for piece in pieces]
        await again.close()
        await engines.close(1.0)

    asyncio.run(road())
