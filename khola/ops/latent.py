"""Latent attention, as far as interpreters share it: which of its two forms costs less, and the two matrices in one.

Shapes   H query heads, L latent, N and P parts of a head's key without and with rotary position, E value size; G = N + E.
Source   arXiv:2405.04434 section 2.1.2 and appendix C: the matrix that makes keys can be folded into queries, the one that makes values
         into what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from khola.ops.rows import Rows
from khola.ops.vocabulary import Stored


class LatentSizes(NamedTuple):
    """Sizes of one latent attention."""

    heads: int
    plain: int
    """Of a head's key, what has no position: N."""
    turned: int
    """What has: P."""
    latent: int
    value: int

    def absorbs(self, rows: int, seen: int) -> bool:
        """Whether folding `up` into these rows' queries and mixtures is cheaper than making the keys and values of all that they see."""
        up, expanded, absorbed = (
            self.latent * (self.plain + self.value),
            self.plain + self.turned + self.value,
            2 * self.latent + self.turned,
        )
        return rows * (up + seen * absorbed) <= seen * (up + rows * expanded)


def latent_sizes(q_THN: tuple[int, ...], turned_THP: tuple[int, ...], up_GL: tuple[int, ...]) -> LatentSizes:
    """Sizes from the shapes of an attention's arguments."""
    heads, plain = q_THN[1:]
    return LatentSizes(heads, plain, turned_THP[2], up_GL[1], up_GL[0] // heads - plain)


@dataclass(frozen=True, eq=False)
class TwoUps:
    """Keys' and values' parts of `up` that a file holds apart, as the one matrix of a checkpoint, [H x G, L]; satisfies `Stored`."""

    name: str
    keys: Stored
    """[H, L, N]: already as queries are multiplied with it."""
    values: Stored
    """[H, E, L]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        heads, latent, plain = self.keys.shape
        return (heads * (plain + self.values.shape[1]), latent)

    @property
    def kind(self) -> str:
        """As handed out whole: dequantised, for one part would have to be turned."""
        return "F32"

    def float32(self) -> NDArray[np.float32]:
        """The values, dequantised."""
        both = np.concatenate([self.keys.float32().swapaxes(1, 2), self.values.float32()], axis=1)
        return np.ascontiguousarray(both).reshape(self.shape)

    def raw(self) -> memoryview:
        """Bytes of the whole."""
        return memoryview(self.float32().data).cast("B")


@dataclass(frozen=True, slots=True, eq=False)
class Flat:
    """A stored tensor [H, rows, columns] as one matrix, in its own number format; satisfies `Stored`."""

    name: str
    whole: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows of all heads, and columns."""
        heads, rows, columns = self.whole.shape
        return (heads * rows, columns)

    @property
    def kind(self) -> str:
        """Number format of the whole."""
        return self.whole.kind

    def float32(self) -> NDArray[np.float32]:
        """The values, dequantised."""
        return self.whole.float32().reshape(self.shape)

    def raw(self) -> memoryview:
        """The bytes as they lie in the file."""
        return self.whole.raw()


@dataclass(frozen=True, slots=True, eq=False)
class HeadRows:
    """A matrix for each head, one below the other, each padded with rows of zeros; satisfies `Stored`. Numbers are dequantised."""

    name: str
    heads: int
    rows: int
    """Of a head, with those of zeros."""
    columns: int
    make: Callable[[], NDArray[np.float32]]
    """Gives them without the zeros, [H, rows, columns]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all heads."""
        return (self.heads * self.rows, self.columns)

    @property
    def kind(self) -> str:
        """Whatever they were before."""
        return "F32"

    def float32(self) -> NDArray[np.float32]:
        """The values, made anew."""
        made = self.make()
        padded = np.zeros((self.heads, self.rows, self.columns), np.float32)
        padded[:, : made.shape[1]] = made
        return padded.reshape(self.shape)

    def raw(self) -> memoryview:
        """Their bytes."""
        return memoryview(self.float32().data).cast("B")


def key_matrices(up: Stored, sizes: LatentSizes, step: int) -> Stored:
    """What every head's query is multiplied with where `up` is folded into it, [H x L, N], L rounded up to a multiple of `step`."""
    name, rows = f"{up.name.removesuffix('.weight')}.keys", -(-sizes.latent // step) * step
    if isinstance(up, TwoUps):
        if rows == sizes.latent:
            return Flat(name, up.keys)
        return HeadRows(name, sizes.heads, rows, sizes.plain, up.keys.float32)
    return HeadRows(name, sizes.heads, rows, sizes.plain, lambda: _by_head(up, sizes)[:, : sizes.plain].swapaxes(1, 2))


def value_matrices(up: Stored, sizes: LatentSizes, step: int) -> Stored:
    """What every head's mixture of latents is multiplied with, [H x E, L], E rounded up to a multiple of `step`."""
    name, rows = f"{up.name.removesuffix('.weight')}.values", -(-sizes.value // step) * step
    whole = rows == sizes.value
    if isinstance(up, TwoUps):
        return Flat(name, up.values) if whole else HeadRows(name, sizes.heads, rows, sizes.latent, up.values.float32)
    if whole:
        own = np.arange(up.shape[0]).reshape(sizes.heads, -1)[:, sizes.plain :]
        return Rows(name, up, own.reshape(-1))
    return HeadRows(name, sizes.heads, rows, sizes.latent, lambda: _by_head(up, sizes)[:, sizes.plain :])


def _by_head(up: Stored, sizes: LatentSizes) -> NDArray[np.float32]:
    """[H, G, L]."""
    return up.float32().reshape(sizes.heads, sizes.plain + sizes.value, sizes.latent)
