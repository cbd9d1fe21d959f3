"""From a plan to numbers: packs the rows of all sequences into one `Step` and runs the architecture on it.

Shapes   T packed rows, S sequences, R wanted rows, P pages of the longest sequence, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from khola.errors import OurFault
from khola.ops.native_program import NativeProgram
from khola.ops.scores import Scores
from khola.ops.vocabulary import PAGE_TOKENS, Forward, Program, Step

if TYPE_CHECKING:
    from khola.loader.loaded import Loaded


MAX_ROWS = 512
"""Rows of a step when nobody says how many there may be."""


@dataclass(slots=True)
class Kept:
    """Hidden states of the rows of a part, from the forward pass to the one that guesses further tokens."""

    rows_TD: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive tokens of one sequence that a step computes."""

    ids: Sequence[int]
    first: int
    """Position of the first of them."""
    pages: Sequence[int]
    """Pages of its sequence, enough for the last of them."""
    wanted: range
    """Which of them want logits or hidden states, counted from 0."""
    drafts: int = 0
    """How many of them, the last ones, are guesses; all of these want logits."""
    answers: bytes = b""
    """1 for every one of them that is a token of an answer, 0 for the others; empty: none is."""
    draws: int = 0
    """How many of the wanted ones, the last ones, a token is drawn from."""
    best: int = 0
    """So many of the best logits of a row are all that is needed of it; 0: others are needed too."""
    states: tuple[int, int] | None = None
    """Slots that its sequence's state is read from (-1: it starts) and written to; None where the model keeps none."""
    kept: Kept | None = None
    """Where its hidden states are left, or found; None: nobody wants them."""

    @property
    def length(self) -> int:
        """Tokens of the sequence that are known once the step is done, guesses included."""
        return self.first + len(self.ids)

    def certain(self) -> Part:
        """The part without its guesses."""
        ids = self.ids[: len(self.ids) - self.drafts]
        wanted = range(self.wanted.start, len(ids))
        draws = max(0, self.draws - self.drafts)
        return Part(ids, self.first, self.pages, wanted, 0, self.answers[: len(ids)], draws, self.best, self.states, self.kept)


class Runner(Protocol):
    """What the engine needs of a model: numbers for the wanted rows, part by part. A call may be repeated with equal results."""

    def logits(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        """Logits of the wanted rows of every part, [r, V] each."""

    def scores(self, parts: Sequence[Part]) -> Sequence[NDArray[np.float32] | Scores]:
        """The same, in a form in which the best are found sooner, if there is one. Where the parts say so, only these need be exact."""

    def hidden(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        """Normed hidden states of the wanted rows of every part, [r, D] each."""

    def further(self, parts: Sequence[Part]) -> Sequence[NDArray[np.float32] | Scores]:
        """Logits of the tokens after the next ones, of the wanted rows of every part, from what was kept of them; ids are the next ones."""


def pack(parts: Sequence[Part], cache: Any, kept_TD: NDArray[np.float32] | None = None) -> tuple[NDArray[np.int32], Step]:
    """The ids of a step, [T], and everything else that a forward pass must know.

    Args:
        parts: of different sequences.
        cache: the interpreter's planes.
        kept_TD: hidden states of the rows, or room for them.
    """
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    starts, lengths = [0], []
    for part in parts:
        length = part.length
        rows.extend(range(starts[-1] + part.wanted.start, starts[-1] + part.wanted.stop))
        ids.extend(part.ids)
        positions.extend(range(part.first, length))
        starts.append(len(ids))
        lengths.append(length)
    pages_SP = np.full((len(parts), -(-max(lengths) // PAGE_TOKENS)), -1, np.int32)
    for row_P, part, length in zip(pages_SP, parts, lengths, strict=True):
        used = -(-length // PAGE_TOKENS)
        row_P[:used] = part.pages[:used]
    # One array, cut: every array made costs a microsecond, and there are many.
    numbers = np.array([*ids, *positions, *starts, *lengths, *rows], np.int32)
    ends = accumulate(map(len, (ids, positions, starts, lengths)))
    ids_T, positions_T, starts_S1, lengths_S, rows_R = (numbers[slice(*cut)] for cut in pairwise((0, *ends, len(numbers))))
    answers = b"".join(part.answers or bytes(len(part.ids)) for part in parts)
    drawn = b"".join(bytes(len(part.wanted) - part.draws) + b"\1" * part.draws for part in parts)
    kinds = np.frombuffer(answers, np.bool_), np.frombuffer(drawn, np.bool_)
    slots = [part.states for part in parts if part.states is not None]
    states_S2 = np.array(slots, np.int32) if slots else None
    return ids_T, Step(positions_T, starts_S1, lengths_S, rows_R, pages_SP, cache, *kinds, states_S2, kept_TD)


class ModelRunner:
    """Runs a loaded model with its interpreter over a paged cache; each forward pass is compiled once, before its first step.

    Args:
        loaded: the model.
        num_pages: pages of its cache.
        max_rows: rows of a step at most.
        max_context: positions of a sequence at most; by default as many as the pages hold.
        num_states: slots for states of sequences.
    Raises:
        NoMemory: the cache or the buffers of a step do not fit.
    """

    def __init__(self, loaded: Loaded, num_pages: int, *, max_rows: int = MAX_ROWS, max_context: int = 0, num_states: int = 0) -> None:
        self._loaded = loaded
        self._cache = loaded.ops.new_cache(loaded.cache, num_pages, num_states)
        self._limits = (max_context or num_pages * PAGE_TOKENS, max_rows)
        self._logits = self._compiled(loaded.logits)
        self._hidden: Program | None = None
        self._further = self._compiled(loaded.further) if loaded.second_token else None

    def logits(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        """Logits of the wanted rows of every part, [r, V] each."""
        return self._run(self._logits, parts)

    def scores(self, parts: Sequence[Part]) -> Sequence[NDArray[np.float32] | Scores]:
        """Logits of the wanted rows of every part, of which the best can be found without reading all of them.

        Where all parts want no more than the best, the others may be approximations.
        """
        kept_TD = None
        if any(part.kept for part in parts):
            kept_TD = np.empty((sum(len(part.ids) for part in parts), self._loaded.config.hidden_size), np.float32)
        found = self._scores(self._logits, parts, kept_TD)
        first = 0
        for part in parts:
            if kept_TD is not None and part.kept is not None:
                part.kept.rows_TD = kept_TD[first : first + len(part.ids)]
            first += len(part.ids)
        return found

    def further(self, parts: Sequence[Part]) -> Sequence[NDArray[np.float32] | Scores]:
        """Logits of the tokens after the next ones; the model must have the layer for it.

        Raises:
            OurFault: it has none, or nothing was kept of the rows.
        """
        kept = [part.kept.rows_TD for part in parts if part.kept is not None and part.kept.rows_TD is not None]
        if self._further is None or len(kept) < len(parts):
            raise OurFault("hidden states of {found} of {expected} parts were kept", found=len(kept), expected=len(parts))
        kept_TD = np.concatenate([rows_TD[: len(part.ids)] for part, rows_TD in zip(parts, kept, strict=True)])
        return self._scores(self._further, parts, kept_TD)

    def hidden(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        """Normed hidden states of the wanted rows of every part, [r, D] each."""
        if self._hidden is None:
            self._hidden = self._compiled(self._loaded.hidden)
        return self._run(self._hidden, parts)

    def _compiled(self, forward: Forward) -> Program:
        return self._loaded.ops.compile(forward, self._loaded.cache, *self._limits)

    def _scores(
        self, program: Program, parts: Sequence[Part], kept_TD: NDArray[np.float32] | None
    ) -> Sequence[NDArray[np.float32] | Scores]:
        """The rows of each part, in a form in which the best are found sooner, if there is one."""
        if isinstance(program, NativeProgram):
            found = program.scores(*pack(parts, self._cache, kept_TD), [part.best for part in parts for _ in part.wanted])
            if found is not None:
                return [found[end - len(part.wanted) : end] for part, end in _ends(parts)]
        return self._run(program, parts, kept_TD)

    def _run(self, program: Program, parts: Sequence[Part], kept_TD: NDArray[np.float32] | None = None) -> list[NDArray[np.float32]]:
        """The rows of each part."""
        # Whoever reads the rows refuses numbers that are not finite; a warning in the middle of an answer helps nobody.
        with np.errstate(all="ignore"):
            rows = program(*pack(parts, self._cache, kept_TD))
        return [rows[end - len(part.wanted) : end] for part, end in _ends(parts)]


def in_turn(chunk: int) -> tuple[int, int]:
    """Slots for the state of a sequence that is computed by itself, chunk by chunk: two, which take turns.

    Args:
        chunk: its number, from 0.
    """
    return (chunk - 1) % 2 if chunk else -1, chunk % 2


def _ends(parts: Sequence[Part]) -> Iterator[tuple[Part, int]]:
    """Each part, and where its wanted rows end among those of all."""
    return zip(parts, accumulate(len(part.wanted) for part in parts), strict=True)
