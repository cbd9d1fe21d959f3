"""Teachers: a model of this machine, or one behind any server that speaks OpenAI's API; both answer questions, and a cache remembers.

Shapes   T tokens of a sequence, N pieces of the text in it, V vocabulary, K alternatives kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from khola.api.model import Model
from khola.api.quality import text_logprobs
from khola.chat.formats import Format, format_named
from khola.chat.message import Message
from khola.data.align import boundary_tokens, vocabulary_hash
from khola.engine.runner import ModelRunner
from khola.errors import ContextOverflow, NoTemplate
from khola.fetch.disk import sha256_of
from khola.ops.vocabulary import PAGE_TOKENS
from khola.tokens.tokenizer import Tokenizer
from khola.train.dialogue import continued, taught
from khola.train.opinion import Opinion, Question, scored, written
from khola.train.teacher_cache import TeacherCache

FLUSH_S = 20.0
"""Answers reach the disk at least so often: what a kill can lose."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a teacher is to tell of every text, and how it writes; part of what its answers depend on."""

    top: int = 0
    """Alternatives kept at every place."""
    boundary: bool = False
    """Whether the mass of tokens that begin a word is told."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Over what the lab recommends, where the teacher writes."""


class Teacher(Protocol):
    """Who answers."""

    @property
    def at_once(self) -> int:
        """Questions that are best asked together."""

    def header(self) -> dict[str, Any]:
        """Everything that its answers depend on, as JSON."""

    def answers(self, questions: Sequence[Question]) -> list[Opinion]:
        """An opinion on each.

        Raises:
            KholaError: a question cannot be answered.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Spoken:
    """A question's text as one model writes and reads it."""

    ids_T: NDArray[np.int32]
    """With all that stands before the text."""
    first: int
    """Where the text begins."""
    closed: bool
    """Whether the last token is the one that ends an answer or a text."""
    text: str
    """What the ids spell: the text in the vocabulary's normal form."""
    lengths: tuple[int, ...]
    """Bytes of each token of the text; the one that closes it counts one."""

    @property
    def ends(self) -> NDArray[np.int64]:
        """Where each token of the text ends, in bytes, [N]."""
        return np.cumsum(self.lengths, dtype=np.int64)


def spoken(question: Question, tokenizer: Tokenizer, chat: Format | None, *, text: str | None = None, thinking: str = "") -> Spoken:
    """A question as a model reads it, its text closed by the token that ends one.

    Args:
        question: what stands before the text.
        tokenizer, chat: of the model; its chat format is needed for messages only.
        text: in place of the question's own.
        thinking: a thought before the text.
    Raises:
        AskedWrong: the chat format cannot write this.
        BadText: half of a surrogate pair.
    """
    text = question.text if text is None else text
    end = min(tokenizer.end_ids) if tokenizer.end_ids else None
    if question.messages:
        if chat is None:
            raise NoTemplate(
                "rows of messages need a chat format that khola knows", hint="give rows with text, or with prompt and completion"
            )
        turns = [*question.messages, Message(role="assistant", content=text, thinking=thinking)]
        (sample,) = taught(chat, tokenizer, turns, only_last=True)
        first = int(np.argmax(sample.learned))
    else:
        before = continued([], question.prompt, tokenizer, None).ids.tolist() if question.prompt else []
        sample = continued(before, text, tokenizer, end)
        first = len(before) or int(tokenizer.adds_bos and tokenizer.bos_id is not None)
    closed = bool(question.messages) or end is not None
    ids = sample.ids.tolist()
    pieces = [tokenizer.token_bytes(token) for token in ids[first : len(ids) - closed]]
    if tokenizer.strips_space and b"".join(pieces) == b" " + text.encode():
        pieces[0] = pieces[0][1:]
    lengths = (*(len(piece) for piece in pieces), *([1] if closed else []))
    return Spoken(ids_T=sample.ids, first=first, closed=closed, text=b"".join(pieces).decode("utf-8", "replace"), lengths=lengths)


class LocalTeacher:
    """A model of this machine.

    Args:
        model: loaded; it stays the caller's.
        wanted: what is told.
    """

    def __init__(self, model: Model, wanted: Wanted) -> None:
        loaded = model.loaded
        self._model, self._wanted, self._loaded = model, wanted, loaded
        self._format = format_named(loaded.chat_format) if loaded.chat_format else None
        self._boundary_V = boundary_tokens(loaded.tokenizer) if wanted.boundary else None
        self._runner: ModelRunner | None = None
        self.at_once = model.engine.limits.max_rows

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the teacher."""
        return self._loaded.tokenizer

    def header(self) -> dict[str, Any]:
        """Its name, its files' hashes, and what is told."""
        files = {Path(file).name: sha256_of(Path(file)) for file in self._loaded.files}
        told = {"top": self._wanted.top, "boundary": self._wanted.boundary, "sampling": dict(self._wanted.sampling)}
        kind = {"interpreter": self._loaded.ops.name, "vocabulary": vocabulary_hash(self.tokenizer)}
        return {"teacher": self._loaded.name, "files": files, **kind, **told}

    def answers(self, questions: Sequence[Question]) -> list[Opinion]:
        """Scores texts one by one, and writes side by side.

        Raises:
            ContextOverflow: a text is longer than the context.
            KholaError: the chat format or the engine refuses it.
        """
        writing = [question for question in questions if not question.text]
        texts = iter(self._write(writing))
        return [self._score(question) if question.text else next(texts) for question in questions]

    def _write(self, questions: Sequence[Question]) -> list[Opinion]:
        with ExitStack() as streams:
            running = []
            for question in questions:
                sampling = {**self._wanted.sampling, "seed": question.seed}
                if question.messages:
                    stream = self._model.stream(question.messages, sampling=sampling)
                else:
                    stream = self._model.stream_complete(question.prompt, sampling=sampling)
                running.append(streams.enter_context(stream))
            found = [stream.whole() for stream in running]
        return [written(answer.text, answer.finish_reason == "stop", answer.thinking) for answer in found]

    def _score(self, question: Question) -> Opinion:
        """Log-probabilities of the text's tokens, a few rows of logits at a time."""
        said = spoken(question, self.tokenizer, self._format)
        ids, first = said.ids_T.tolist(), said.first
        room = self._model.context_tokens
        if len(ids) > room:
            raise ContextOverflow("the teacher reads {limit} tokens at most; this text has {found}", limit=room, found=len(ids))
        if self._runner is None:
            self._runner = ModelRunner(self._loaded, -(-room // PAGE_TOKENS), num_states=2)
        size, kept = len(said.lengths), self._wanted.top
        logprobs_N, masses_N = np.full(size, np.nan, np.float32), np.full(size, np.nan, np.float32)
        ids_NK, top_NK = np.full((size, kept), -1, np.int32), np.full((size, kept), -np.inf, np.float32)
        # Behind the end of an answer there is nothing, which is where a word ends; behind any other last token the next row tells.
        asked = ids if said.closed else [*ids, ids[-1]]
        masses_N[size - 1] = 1.0
        at = -first
        for rows_tV in text_logprobs(self._loaded, asked, self._runner):
            for row_V in rows_tV:
                if self._boundary_V is not None and 0 <= at < size - said.closed:
                    masses_N[at] = np.exp(row_V[self._boundary_V]).sum()
                at += 1
                if 0 <= at < size:
                    logprobs_N[at] = row_V[ids[first + at]]
                    if kept:
                        best = np.argpartition(row_V, -kept)[-kept:]
                        ids_NK[at] = best[np.argsort(-row_V[best], kind="stable")]
                        top_NK[at] = row_V[ids_NK[at]]
        masses = masses_N if self._boundary_V is not None else None
        return scored(said.text, list(said.lengths), logprobs_N, masses, ids_NK, top_NK)


def consult(
    teacher: Teacher, questions: Sequence[Question], cache: TeacherCache, progress: Callable[[int, int], None] | None = None
) -> list[Opinion]:
    """Opinions on all questions, asked where the cache does not know them; it does afterwards, whatever stops this.

    Args:
        teacher: who answers.
        questions: in any order, perhaps several times the same.
        cache: made with the teacher's header.
        progress: hears how many of how many are known.
    Raises:
        KholaError: a question cannot be answered; those before it are kept.
    """
    missing = [question for question in dict.fromkeys(questions) if question not in cache]
    known, flushed = len(set(questions)) - len(missing), time.monotonic()
    try:
        for start in range(0, len(missing), teacher.at_once):
            some = missing[start : start + teacher.at_once]
            for question, opinion in zip(some, teacher.answers(some), strict=True):
                cache.put(question, opinion)
            known += len(some)
            if progress is not None:
                progress(known, known + len(missing) - start - len(some))
            if time.monotonic() - flushed > FLUSH_S:
                cache.flush()
                flushed = time.monotonic()
    finally:
        cache.flush()
    found = [cache.get(question) for question in questions]
    return [opinion for opinion in found if opinion is not None]
