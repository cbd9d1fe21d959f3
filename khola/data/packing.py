"""Samples of ids packed into batches without crossing, in an order that only the seed and the epoch decide.

Shapes   T packed tokens of one batch, R rows that are trained on.

A batch is a row of whole sequences; none is padded and none is cut. Which samples share a batch changes no sample's own numbers: attention
never leaves a sequence.

Source   best-fit decreasing, "Fewer Truncations Improve Language Modeling", arXiv:2404.10830 section 2.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from khola.errors import OurFault
from khola.ops.vocabulary import Step, whole_sequences

WINDOW = 512
"""Samples that are packed together: neighbours in the shuffled order, so that lengths sort only within a window."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One sequence, and which of its tokens the model learns to write."""

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    """By token; the first one is never learned, because nothing stands before it."""
    where: str = ""
    """File and line, for messages."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """What else a method wants to find in its batches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Sequences one after another."""

    ids_T: NDArray[np.int32]
    lengths: tuple[int, ...]
    """Of each sequence."""
    rows_R: NDArray[np.int32]
    """Rows whose next token is learned."""
    targets_R: NDArray[np.int32]
    """That token."""
    samples: tuple[int, ...]
    """Which samples these are."""
    count: float
    """What the sum of its loss counts."""
    extras: tuple[Mapping[str, Any], ...] = ()
    """Of each sequence."""

    @cached_property
    def step(self) -> Step:
        """For a forward pass: whole sequences, and the rows that are trained on."""
        return whole_sequences(self.lengths, self.rows_R.tolist())

    @cached_property
    def owners(self) -> NDArray[np.int32]:
        """Which sequence of the batch each trained row belongs to, [R]."""
        ends = np.cumsum(self.lengths)
        return np.searchsorted(ends, self.rows_R, side="right").astype(np.int32)


def packed(samples: Sequence[Sample], numbers: Sequence[int], count: float | None = None) -> Batch:
    """Some samples as one batch.

    Args:
        samples: all of them.
        numbers: which ones, in order.
        count: what the loss counts; by default the learned tokens.
    """
    chosen = [samples[number] for number in numbers]
    learned = np.concatenate([np.append(sample.learned[1:], False) for sample in chosen])
    ids_T = np.concatenate([sample.ids for sample in chosen])
    rows_R = np.flatnonzero(learned).astype(np.int32)
    return Batch(
        ids_T=ids_T,
        lengths=tuple(len(sample.ids) for sample in chosen),
        rows_R=rows_R,
        targets_R=ids_T[rows_R + 1] if len(rows_R) else np.zeros(0, np.int32),
        samples=tuple(int(number) for number in numbers),
        count=float(len(rows_R)) if count is None else count,
        extras=tuple(sample.extras for sample in chosen),
    )


def plan(lengths: Sequence[int], tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Which samples share a batch, batch by batch, in one epoch; each sample stands in exactly one.

    Args:
        lengths: tokens of each sample; one that is longer than `tokens` is alone in its batch.
        tokens: of a batch at most.
        seed, epoch: decide the order.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    bins: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        bins += _best_fit(sorted((int(n) for n in order[start : start + WINDOW]), key=lambda n: -lengths[n]), lengths, tokens)
    return [bins[place] for place in rng.permutation(len(bins))]


def _best_fit(numbers: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Each sample into the fullest batch that still has room for it."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for number in numbers:
        length = lengths[number]
        at = bisect_left(room, (length, -1))
        left, place = room.pop(at) if at < len(room) else (max(tokens, length), len(bins))
        if place == len(bins):
            bins.append([])
        bins[place].append(number)
        insort(room, (left - length, place))
    return bins


@final
class Packed:
    """The batches of samples on disk, epoch after epoch; satisfies `khola.train.methods.Source`.

    Args:
        samples: all of them.
        tokens: of a batch at most.
        seed: decides the order.
        epochs: how often each sample is read; a fraction ends within an epoch.
        accumulate: batches of one step and process.
        rank, world: this process, and how many train together; batch i of a step belongs to process i mod `world`.
        pack: makes a batch of sample numbers; by default `packed`.
        groups: numbers of samples that stay together (pairs, say), by default each alone.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        tokens: int,
        seed: int,
        epochs: float,
        accumulate: int,
        rank: int = 0,
        world: int = 1,
        pack: Callable[[Sequence[Sample], Sequence[int]], Batch] = packed,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._samples, self._tokens, self._seed, self._epochs = samples, tokens, seed, epochs
        self._accumulate, self._rank, self._world, self._pack = accumulate, rank, world, pack
        self._groups = groups if groups is not None else [[number] for number in range(len(samples))]
        self._lengths = [sum(len(samples[number].ids) for number in group) for group in self._groups]
        whole, part = int(epochs), epochs - int(epochs)
        sizes = [len(self._plan(epoch)) for epoch in range(whole + (part > 0))]
        if part > 0:
            sizes[-1] = max(1, round(sizes[-1] * part))
        self._sizes = sizes
        self._epoch, self._place = 0, 0
        self._now: tuple[int, list[list[int]]] | None = None

    @property
    def num_steps(self) -> int:
        """Steps until the data ends; the last may be shorter."""
        return -(-sum(self._sizes) // (self._accumulate * self._world))

    def next(self) -> list[Batch]:
        """The batches of the next step; where processes would get unequal numbers, the rest get one that counts nothing."""
        taken: list[list[int]] = []
        while len(taken) < self._accumulate * self._world and self._epoch < len(self._sizes):
            taken.append(self._bins()[self._place])
            self._place += 1
            if self._place == self._sizes[self._epoch]:
                self._epoch, self._place = self._epoch + 1, 0
        mine = taken[self._rank :: self._world]
        batches = [self._pack(self._samples, numbers) for numbers in mine]
        for _ in range(-(-len(taken) // self._world) - len(mine)):
            batches.append(_uncounted(self._pack(self._samples, taken[0])))
        return batches

    def state(self) -> dict[str, Any]:
        """Epoch and place in it; the order follows from the seed."""
        return {"epoch": self._epoch, "place": self._place, "batches": self._sizes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            OurFault: it belongs to other data.
        """
        if list(state["batches"]) != self._sizes:
            raise OurFault("the place in the data is one of other data")
        self._epoch, self._place = int(state["epoch"]), int(state["place"])

    def _bins(self) -> list[list[int]]:
        if self._now is None or self._now[0] != self._epoch:
            self._now = (self._epoch, self._plan(self._epoch))
        return self._now[1]

    def _plan(self, epoch: int) -> list[list[int]]:
        bins = plan(self._lengths, self._tokens, self._seed, epoch)
        return [[number for group in bin_ for number in self._groups[group]] for bin_ in bins]


def _uncounted(batch: Batch) -> Batch:
    """The same batch, of which nothing counts: so that processes take the same number of steps."""
    from dataclasses import replace

    return replace(batch, rows_R=batch.rows_R[:0], targets_R=batch.targets_R[:0], count=0.0)
