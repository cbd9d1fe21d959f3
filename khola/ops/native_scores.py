"""What a native step leaves: logits, the greatest of every 32, and how far logits may be off where the head was read half.

Shapes   R rows, V vocabulary, B blocks of 32 logits, K inputs of the head, k best ids.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from khola.errors import OurFault
from khola.native.lib import KhRow, library
from khola.ops.scores import Changes

NOT_FINITE = -4
"""`KH_NOT_FINITE`."""
FLOAT_BYTES = 4
BLOCK = 32
"""Logits of which the greatest is kept."""
KEEPERS = 4
"""References to free memory that a look at it counts: the list, the loop, the method and the count itself."""


class Arrays:
    """Memory of the scores of one step.

    Args:
        rows: of a step at most.
        width: logits of a row.
        inputs: of the head.
    """

    __slots__ = (
        "_memory",
        "block_bytes",
        "input_bytes",
        "inputs",
        "logits",
        "logits_RV",
        "margins",
        "maxima",
        "maxima_RB",
        "row_bytes",
        "rows",
    )

    def __init__(self, rows: int, width: int, inputs: int) -> None:
        blocks = -(-width // 32)
        self.rows = rows
        self.logits_RV = np.empty((rows, width), np.float32)
        self._memory = np.empty(rows * (2 * blocks + inputs), np.float32)
        self.row_bytes, self.block_bytes, self.input_bytes = FLOAT_BYTES * width, FLOAT_BYTES * blocks, FLOAT_BYTES * inputs
        self.logits: int = self.logits_RV.ctypes.data
        self.maxima: int = self._memory.ctypes.data
        self.maxima_RB = self._memory[: rows * blocks].reshape(rows, blocks)
        self.margins = self.maxima + rows * self.block_bytes
        self.inputs = self.margins + rows * self.block_bytes

    def is_free(self) -> bool:
        """Whether nobody but its keeper knows of it, nor of a view of its logits."""
        return sys.getrefcount(self) <= KEEPERS and sys.getrefcount(self.logits_RV) <= 2


class Firsts:
    """The greatest logit of every row of a step, found for all rows together when the first is asked for.

    Args:
        arrays: of the step, all logits exact.
        rows: that it filled.
    """

    __slots__ = ("_arrays", "_found", "_num_tokens", "_rows")

    def __init__(self, arrays: Arrays, rows: int) -> None:
        self._arrays, self._rows, self._num_tokens = arrays, rows, 0
        self._found: tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.bool_]] | None = None

    def of(self, row: int, num_tokens: int) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
        """Id and logit of one row, [1] each; None if a logit of it is NaN or infinite.

        Args:
            row: of the step.
            num_tokens: ids from here on do not count.
        """
        if self._found is None or num_tokens != self._num_tokens:
            self._found, self._num_tokens = self._search(num_tokens), num_tokens
        ids_R, logits_R, finite_R = self._found
        return (ids_R[row : row + 1].astype(np.int32), logits_R[row : row + 1]) if finite_R[row] else None

    def _search(self, num_tokens: int) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.bool_]]:
        """Ids, logits, and whether all logits of the row are finite, [R] each: the best block first, then the best in it."""
        logits_RV, whole = self._arrays.logits_RV[: self._rows], num_tokens // BLOCK
        ids_R, every = np.zeros(self._rows, np.intp), np.arange(self._rows)
        best_R = np.full(self._rows, -np.inf, np.float32)
        finite_R = np.ones(self._rows, np.bool_)
        if whole:
            maxima_RB = self._arrays.maxima_RB[: self._rows, :whole]
            first_R = BLOCK * maxima_RB.argmax(axis=1)
            # The greatest of some numbers is NaN where one of them is.
            finite_R = np.isfinite(maxima_RB[every, first_R // BLOCK])
            inside = np.take_along_axis(logits_RV, first_R[:, None] + np.arange(BLOCK), axis=1)
            ids_R = first_R + inside.argmax(axis=1)
            best_R = logits_RV[every, ids_R]
        rest = logits_RV[:, BLOCK * whole : num_tokens]
        if rest.shape[1]:
            last_R = rest.argmax(axis=1)
            better_R = rest[every, last_R] > best_R
            ids_R = np.where(better_R, BLOCK * whole + last_R, ids_R)
            best_R = np.where(better_R, rest[every, last_R], best_R)
            finite_R = finite_R & np.isfinite(rest).all(axis=1)
        return ids_R, best_R, finite_R


@dataclass(frozen=True, slots=True, eq=False)
class NativeScores:
    """Some rows of a step; see `khola.ops.scores.Scores`."""

    model: Handle
    arrays: Arrays
    rough: bool
    """Whether logits with a margin are approximations."""
    places: range
    firsts: Firsts | None = None
    """The best of all rows of the step, where these are exact."""

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, part: slice) -> NativeScores:
        return NativeScores(self.model, self.arrays, self.rough, self.places[part], self.firsts)

    def row(self, at: int) -> NativeRow:
        """One of the rows."""
        return NativeRow(self, self.places[at])

    def whole(self) -> NDArray[np.float32]:
        """All logits, [R, V]."""
        logits_RV: NDArray[np.float32] = self.arrays.logits_RV[self.places.start : self.places.stop]
        return logits_RV


@dataclass(slots=True, eq=False)
class Handle:
    """A model of the library, freed with the last who needs it."""

    address: int

    def __del__(self) -> None:
        library().kh_model_free(self.address)


@dataclass(frozen=True, slots=True, eq=False)
class NativeRow:
    """One row; see `khola.ops.scores.Row`."""

    scores: NativeScores
    place: int

    def best(
        self, most: int, num_tokens: int, changes: Changes, least: float = -np.inf
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
        """The greatest logits; makes exact what may be among them."""
        arrays, place, firsts = self.scores.arrays, self.place, self.scores.firsts
        most = min(most, num_tokens)
        if most == 1 and firsts is not None and not len(changes) and least == -np.inf:
            return firsts.of(place, num_tokens)
        row = KhRow(
            logits=arrays.logits + arrays.row_bytes * place,
            block_max=arrays.maxima + arrays.block_bytes * place,
            margins=arrays.margins + arrays.block_bytes * place if self.scores.rough else None,
            input=arrays.inputs + arrays.input_bytes * place,
            num_tokens=num_tokens,
        )
        if len(changes):
            changed = changes.arrays
            row.num_changed = len(changes)
            row.changed, row.bias, row.penalty, row.minus = (array.ctypes.data for array in changed)
        ids_k, logits_k = np.empty(most, np.int32), np.empty(most, np.float32)
        found = library().kh_best(self.scores.model.address, ctypes.byref(row), most, least, ids_k.ctypes.data, logits_k.ctypes.data)
        if found == NOT_FINITE:
            return None
        if found < 0:
            raise OurFault("the native library refused a search for the best logits (code {code})", code=found)
        return ids_k[:found], logits_k[:found]

    def whole(self) -> NDArray[np.float32]:
        """All logits, [V]."""
        logits_V: NDArray[np.float32] = self.scores.arrays.logits_RV[self.place]
        return logits_V
