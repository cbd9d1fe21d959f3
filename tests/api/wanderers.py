"""Models of random weights that say how an answer begins, and anything behind it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import khola
from khola.api import Model
from khola.api.stream import Prepared
from tests.engine.fakes import ByteTokenizer, FakeRunner, fake_loaded


class Marks(ByteTokenizer):
    """Bytes, tokens of several bytes, and control tokens for the marks of a chat format."""

    MERGED = (b'l>\n{"n', b"l>x", b'"}\n</', b"e_call>", b'": "', b"\n{", b'r",', b"</", "ভা".encode(), b"parameter>\n<")

    def __init__(self, marks: Collection[str] = ()) -> None:
        self._extra = [*self.MERGED, *(mark.encode() for mark in marks)]
        self.marks = {mark: 259 + len(self.MERGED) + place for place, mark in enumerate(marks)}
        self.size = 259 + len(self._extra)
        self.control_ids = ByteTokenizer.control_ids | frozenset(self.marks.values())
        self.special_ids = self.control_ids

    def token_bytes(self, token_id: int) -> bytes:
        return super().token_bytes(token_id) if token_id < 259 else self._extra[token_id - 259]

    def id_of(self, token: str) -> int | None:
        return self.marks.get(token, 258 if token.startswith(("<|", "<｜", "<beg", "<end", "[g", "<sop")) and "tool" not in token else None)

    def encode(self, text: str, *, control: bool = False, first: bool = True) -> list[int]:
        return list(text.encode())

    def stream(self, skip_control: bool = True, shown: Collection[int] = ()) -> Any:
        return Shown(self, frozenset(shown))


class Shown:
    """Decodes whole characters."""

    def __init__(self, tokenizer: Marks, shown: frozenset[int]) -> None:
        self._tokenizer, self._shown = tokenizer, shown
        self._held = b""

    def push(self, token: int) -> str:
        if token in self._tokenizer.control_ids and token not in self._shown:
            return ""
        self._held += self._tokenizer.token_bytes(token)
        for cut in range(len(self._held), max(-1, len(self._held) - 4), -1):
            try:
                text = self._held[:cut].decode()
            except UnicodeDecodeError:
                continue
            self._held = self._held[cut:]
            return text
        text, self._held = self._held.decode("utf-8", "replace"), b""
        return text

    def finish(self) -> str:
        return self._held.decode("utf-8", "replace")


class Wanderer(FakeRunner):
    """Says how an answer begins, then anything."""

    def __init__(self, tokenizer: Marks) -> None:
        super().__init__(256)
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.begun = 0
        self._row_V = np.zeros(tokenizer.size, np.float32)
        self._row_V[[257, *b'"}]\n<:']] = 4
        self._row_V[[index for mark, index in tokenizer.marks.items() if "end" in mark]] = 10
        self._row_V[258] = -1000

    def _row(self, context: NDArray[np.int64]) -> NDArray[np.float32]:
        said = len(context) - self.begun
        row_V = self._row_V.copy()
        if said < len(self.tokens):
            row_V[self.tokens[said]] = 1000
        return row_V


def spelled(tokenizer: Marks, text: str) -> list[int]:
    """Ids of a text, marks as tokens where there are such."""
    parts = re.split(f"({'|'.join(map(re.escape, tokenizer.marks))})", text) if tokenizer.marks else [text]
    return [index for part in parts for index in ([tokenizer.marks[part]] if part in tokenizer.marks else part.encode())]


@cache
def marks_of(name: str) -> list[str]:
    """What could be tokens of the calls of a format."""
    form = Model(fake_loaded(context_tokens=8192, tokenizer=Marks(), chat_format=name), runner=FakeRunner(256), cache_tokens=8192)
    call = form.prepared("?", tools=[{"name": "x"}]).parser.call_form
    assert call is not None
    parts = (*call.before, *call.between, *call.after, *call.section[0], *call.section[1])
    return [part for part in dict.fromkeys(parts) if part.startswith("<") and part.endswith(">")]


@cache
def model_of(name: str, marks: tuple[str, ...]) -> tuple[Model, Wanderer]:
    """A model of a chat format; one for all tests, so that what it compiled is compiled once."""
    tokenizer = Marks(marks)
    facts = {"tokenizer": tokenizer, "vocab_tokens": tokenizer.size, "chat_format": name, "stop_ids": frozenset({257})}
    runner = Wanderer(tokenizer)
    return Model(fake_loaded(context_tokens=8192, **facts), runner=runner, cache_tokens=8192), runner


def wanderer(
    name: str, opening: str, *, marked: bool, tools: Sequence[dict[str, Any]], said: str = "", **asked: Any
) -> tuple[Model, Prepared]:
    """A model that says something, opens a call, and then says anything."""
    marks = dict.fromkeys([*marks_of(name), *([opening] if opening.startswith("<") else [])]) if marked else {}
    model, runner = model_of(name, tuple(marks))
    prepared = model.prepared("?", tools=tools, **asked)
    thought = prepared.request.thought is not None and prepared.request.thought.opened
    runner.tokens = [*("ভাবি <tool_call>{</think>\n\n".encode() if thought else b""), *said.encode(), *spelled(runner.tokenizer, opening)]
    runner.begun = len(prepared.request.prompt)
    return model, prepared


def seeded(model: Model, prepared: Prepared, seed: int, **sampling: Any) -> khola.api.Answer:
    """One of its answers. A parser reads one answer only, so it is made anew."""
    how = msgspec.structs.replace(prepared.request.sampling, **{"seed": seed, "temperature": 2.0, "max_tokens": 1500, **sampling})
    again = replace(prepared.request, sampling=how)
    return model._answer(Prepared(request=again, parser=deepcopy(prepared.parser))).whole()
