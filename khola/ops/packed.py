"""Where the packed rows of a step lie: in which sequence, and in which slot of the cache.

Every interpreter needs the same answer, and every layer of a step asks for it again; `LastStep` remembers it.

Shapes   T packed rows, S sequences, P pages of one sequence, N tokens a sequence sees.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from khola.errors import OurFault
from khola.ops.vocabulary import PAGE_TOKENS, Rope, Step

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """One sequence of a step: its rows, and what they may see."""

    first: int
    """First packed row."""
    last: int
    """The row after its last."""
    length: int
    """Tokens of context once this step is done."""
    pages_P: NDArray[np.intp]
    """Pages that hold these tokens, in order; empty without a cache."""
    run: bool
    """The pages lie one after another, so that reading them needs no copy."""
    read: int = -1
    """Slot of its state before this step; -1 where it starts."""
    write: int = -1
    """Slot of its state afterwards; -1 where none is kept."""

    @property
    def num_rows(self) -> int:
        """New tokens of this sequence."""
        return self.last - self.first

    def first_seen(self, window: int | None) -> int:
        """First position that any of its rows sees, rounded down to a whole page."""
        if window is None:
            return 0
        return max(0, self.length - self.num_rows - window + 1) // PAGE_TOKENS * PAGE_TOKENS


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """All sequences of a step, and the cache slot of every row."""

    spans: tuple[Span, ...]
    slots_T: NDArray[np.intp]
    """Page times `PAGE_TOKENS` plus offset of each row; empty without a cache."""


def layout_of(step: Step) -> Layout:
    """Work out where the rows of a step lie.

    Raises:
        OurFault: the step contradicts itself: rows without a page, a sequence that is shorter than its new rows, or one that starts and
            has a state.
    """
    starts = step.starts_S1.tolist()
    spans = []
    slots = np.empty(len(step.positions_T) if step.pages_SP is not None else 0, np.intp)
    for sequence, (first, last, length) in enumerate(zip(starts, starts[1:], step.lengths_S.tolist(), strict=False)):
        pages = np.empty(0, np.intp)
        if length < last - first or (step.pages_SP is None and length != last - first):
            raise OurFault(
                "sequence {sequence} has {rows} new rows and {length} tokens", sequence=sequence, rows=last - first, length=length
            )
        if step.pages_SP is not None:
            pages = step.pages_SP[sequence, : -(-length // PAGE_TOKENS)].astype(np.intp)
            if len(pages) * PAGE_TOKENS < length or (len(pages) and pages.min() < 0):
                raise OurFault("sequence {sequence} has {length} tokens but no page for some of them", sequence=sequence, length=length)
            positions = step.positions_T[first:last]
            slots[first:last] = pages[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
        read, write = (-1, -1) if step.states_S2 is None else step.states_S2[sequence].tolist()
        if step.states_S2 is not None and (write in (-1, read) or (read < 0) != (length == last - first)):
            raise OurFault(
                "sequence {sequence} of {length} tokens, {rows} of them new, reads its state from slot {read} and writes it to {write}",
                sequence=sequence,
                length=length,
                rows=last - first,
                read=read,
                write=write,
            )
        spans.append(Span(first, last, length, pages, bool(np.all(np.diff(pages) == 1)), read, write))
    return Layout(tuple(spans), slots)


def require_slot(span: Span) -> int:
    """The slot that a sequence of a cached step writes its state to.

    Raises:
        OurFault: it has none.
    """
    if span.write < 0:
        raise OurFault("a sequence of {length} tokens has no slot for its state", length=span.length)
    return span.write


def kept_of(step: Step, width: int) -> NDArray[np.float32]:
    """The hidden states that a step brings, [T, width].

    Raises:
        OurFault: it brings none, or others.
    """
    kept_TD = step.kept_TD
    if kept_TD is None or kept_TD.shape != (len(step.positions_T), width):
        raise OurFault("a step of {rows} rows lacks their hidden states of width {width}", rows=len(step.positions_T), width=width)
    return kept_TD


class LastStep(Generic[T]):
    """What was worked out for the step in hand; forgotten with the step."""

    def __init__(self, make: Callable[[Step], T]) -> None:
        self._make = make
        self._last: tuple[weakref.ref[Step], T] | None = None

    def __call__(self, step: Step) -> T:
        """The result for this step; worked out once."""
        last = self._last
        if last is not None and last[0]() is step:
            return last[1]
        made = self._make(step)
        self._last = (weakref.ref(step), made)
        return made


def check_ids(ids_T: NDArray[np.integer], size: int) -> None:
    """Every id must be a row of a table; numpy would read a negative one from the end, and a GPU would stop for good.

    Raises:
        OurFault: an id is negative or too large.
    """
    if ids_T.size and not 0 <= (low := int(ids_T.min())) <= (high := int(ids_T.max())) < size:
        raise OurFault("token id {id} is not in a vocabulary of {size}", id=low if low < 0 else high, size=size)


def turns(rope: Rope, first: int, last: int) -> NDArray[np.float64]:
    """Cosines and sines of positions first to last - 1, [2, positions, width / 2], times the rope's factor.

    The angles are float32 products of a position and a float32 frequency, as in the code the models were trained with: at position
    8,000 they differ from exact ones by up to 0.0005. Cosines and sines of them are exact.
    """
    angles = np.arange(first, last, dtype=np.float32)[:, None] * np.asarray(rope.frequencies, np.float32)
    wide = angles.astype(np.float64)
    return np.stack([np.cos(wide), np.sin(wide)]) * rope.factor
