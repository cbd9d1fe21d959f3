"""Rows of data as questions to a teacher, and the teacher's answers on disk before anything is trained.

A row is one of those of supervised fine-tuning (`khola.train.methods.sft`). Where the teacher scores texts, the last answer of a
conversation, a completion or a text is scored; where it writes, its own answer takes their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from khola.api.model import load
from khola.chat.conversation import conversation
from khola.data.align import common_tokens
from khola.data.rows import Row, read_rows
from khola.errors import AskedWrong, BadRow, KholaError
from khola.fetch.server import connected
from khola.loader import find, tokenizer_of
from khola.settings import Settings
from khola.tokens.tokenizer import Tokenizer
from khola.train.opinion import Question
from khola.train.served_teacher import ServedTeacher
from khola.train.teacher import LocalTeacher, Teacher, Wanted, consult
from khola.train.teacher_cache import TeacherCache

if TYPE_CHECKING:
    from khola.train.config import Run
    from khola.train.methods.distil import Config

READ_S = 600.0
"""Longest silence of a server that writes a whole answer before it says anything."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """What is asked about a row."""

    row: Row
    question: Question
    tokens: int = 0
    """Of the student, in the text that is scored."""


def lessons(rows: Sequence[Row], student: Tokenizer, config: Config) -> list[Lesson]:
    """The questions of all rows, in order.

    Args:
        rows: of the data.
        student: whose normal form the scored texts have.
        config: what the teacher is asked for.
    Raises:
        BadRow: a row has another form, or nothing that could be scored or answered.
    """
    found: list[Lesson] = []
    for row in rows:
        try:
            question, tokens = (_written(row), 0) if config.writes else _scored(row, student)
        except BadRow:
            raise
        except KholaError as problem:
            raise row.located(problem) from None
        seeds = range(config.answers) if config.objective == "sequence" else range(1)
        found += [Lesson(row=row, question=msgspec.structs.replace(question, seed=seed), tokens=tokens) for seed in seeds]
    return found


def wanted(config: Config) -> Wanted:
    """What a teacher is asked to tell, or how it writes."""
    if config.objective == "sequence":
        return Wanted(sampling={"temperature": config.answer_temperature, "max_tokens": config.answer_tokens})
    return Wanted(
        top=config.top if config.objective in ("logits", "uld") else 0,
        boundary=config.objective == "alm" and config.debias > 0,
    )


def teacher_of(config: Config, settings: Settings, student: Tokenizer, stack: ExitStack) -> Teacher:
    """The teacher, until the stack is closed.

    Raises:
        AskedWrong: none is named; or the address is none, or the server cannot tell what is asked of it.
        KholaError: whatever loading it raises.
    """
    if not config.teacher:
        raise AskedWrong("no teacher is named", hint="khola distil --teacher MODEL --student MODEL --data FILE --out DIR")
    if config.server:
        client = stack.enter_context(connected(config.server, settings, READ_S))
        return ServedTeacher(client, config.teacher, wanted(config), student)
    return LocalTeacher(stack.enter_context(load(config.teacher, settings=settings)), wanted(config))


def ask_teacher(run: Run, settings: Settings, progress: Callable[[int, int], None] | None = None) -> Run:
    """Have the teacher answer all that a run needs, and give the run with the folder of the answers in it.

    A run on-policy needs nothing beforehand, and is given back as it is. What the cache knows is not asked again.

    Args:
        run: of the method distil.
        settings: where models and caches lie.
        progress: hears how many of how many answers are known.
    Raises:
        BadRow: a row is broken, or longer than the student reads.
        KholaError: the teacher cannot be loaded or reached, or cannot answer; what it answered before is kept.
    """
    config: Config = run.options
    if config.objective == "onpolicy":
        return run
    student = tokenizer_of(find(run.model, settings).path)
    asked = lessons(read_rows([Path(name).expanduser() for name in run.data]), student, config)
    limit = run.packing.length
    for lesson in asked if run.packing.too_long == "refuse" else ():
        if lesson.tokens > limit:
            raise BadRow(
                "{file}, line {line}: {tokens} tokens; at most {limit} are read",
                hint="raise packing.length, or let packing.too_long be cut or leave_out",
                **lesson.row.place,
                tokens=lesson.tokens,
                limit=limit,
            )
    if run.packing.too_long == "leave_out":
        asked = [lesson for lesson in asked if lesson.tokens <= limit]
    with ExitStack() as stack:
        teacher = teacher_of(config, settings, student, stack)
        cache = TeacherCache(settings.home / "teachers", teacher.header())
        consult(teacher, [lesson.question for lesson in asked], cache, progress)
    return msgspec.structs.replace(run, options=msgspec.structs.replace(config, cache=str(cache.folder)))


def _scored(row: Row, student: Tokenizer) -> tuple[Question, int]:
    """What stands before a row's text, the text in the student's normal form, and how many tokens that is."""
    if "messages" in row.value:
        row.only(("messages",))
        *before, answer = conversation(row.value["messages"])
        if answer.role != "assistant" or not before or not answer.content or answer.tool_calls or answer.thinking:
            raise BadRow("{file}, line {line}: the last message is no plain answer of the assistant behind a question", **row.place)
        question = Question(messages=tuple(before), text=answer.content)
    elif "prompt" in row.value or "completion" in row.value:
        row.only(("prompt", "completion"))
        question = Question(prompt=row.text("prompt"), text=row.text("completion"))
    else:
        row.only(("text",))
        question = Question(text=row.text("text"))
    text, (tokens,) = common_tokens(question.text, student)
    return msgspec.structs.replace(question, text=text), len(tokens.ids)


def _written(row: Row) -> Question:
    """What the teacher goes on from; an answer that the row has is left out."""
    if "messages" in row.value:
        row.only(("messages",))
        turns = conversation(row.value["messages"])
        turns = turns[:-1] if turns[-1].role == "assistant" else turns
        if not turns:
            raise BadRow("{file}, line {line}: there is no question that the teacher could answer", **row.place)
        return Question(messages=turns)
    row.only(("prompt", "completion"))
    return Question(prompt=row.text("prompt"))
