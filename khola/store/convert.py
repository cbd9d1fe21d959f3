"""A tensor in another number format, made piece by piece when its bytes are asked for.

Memory   beside the finished bytes of one tensor, a few pieces of a megabyte for each thread, whatever the size of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from math import prod

import numpy as np

from khola.store.blocks import Bytes, Floats
from khola.store.kinds import KINDS, bytes_of
from khola.store.quantise import dequantise, dequantise_scaled
from khola.store.quantisers import quantise_well
from khola.store.stored import StoredTensor

PIECE = 1 << 16
"""Values made at a time: a whole number of blocks of every format, and little enough for a core's cache."""

Read = Callable[[], Floats]


def converted(stored: StoredTensor, kind: str, executor: Executor, *, count: Callable[[int], None] | None = None) -> StoredTensor:
    """The same tensor in another number format; nothing is computed before its bytes are asked for.

    Args:
        stored: in any format that khola reads.
        kind: a key of `khola.store.quantisers.WRITABLE`; the tensor's own format gives its own bytes.
        executor: its threads make pieces side by side; the result does not depend on their number.
        count: hears how many bytes were made, from whichever thread asks for the bytes.
    Raises:
        BadHeader: the rows are not whole blocks of this format.
        UnsupportedFormat: khola cannot read or write one of the formats.
        NonFinite: when the bytes are asked for: a value is NaN or infinite.
    """
    if kind == stored.kind and stored.scales is None:
        return stored if count is None else counted(stored, count)
    nbytes = bytes_of(kind, stored.shape, file="memory", tensor=stored.name)
    return replace(stored, kind=kind, nbytes=nbytes, load=lambda: _made(stored, kind, nbytes, executor, count), scales=None)


def counted(stored: StoredTensor, count: Callable[[int], None]) -> StoredTensor:
    """The same tensor, which tells how many bytes it has when they are asked for."""

    def load() -> memoryview:
        count(stored.nbytes)
        return stored.load()

    return replace(stored, load=load)


def _made(stored: StoredTensor, kind: str, nbytes: int, executor: Executor, count: Callable[[int], None] | None) -> memoryview:
    out = np.empty(nbytes, np.uint8)
    block = KINDS[kind]

    def make(piece: tuple[int, Read]) -> int:
        start, read = piece
        values = read()
        target = out[start // block.values * block.bytes :][: values.size // block.values * block.bytes]
        target[:] = quantise_well(kind, values, tensor=stored.name)
        return len(target)

    # Exceptions of pieces are raised here, by whoever asked for the bytes.
    for done in executor.map(make, _pieces(stored)):
        if count is not None:
            count(done)
    return out.data


def _pieces(stored: StoredTensor) -> Iterator[tuple[int, Read]]:
    """Places of pieces, counted in values, and what reads each."""
    raw = np.frombuffer(stored.load(), np.uint8)
    if stored.scales is not None:
        yield from _bands(stored, raw, stored.scales.float32())
        return
    block, total = KINDS[stored.kind], prod(stored.shape)
    for start in range(0, total, PIECE):
        end = min(start + PIECE, total)
        part = raw[start // block.values * block.bytes : end // block.values * block.bytes]
        yield start, partial(dequantise, stored.kind, part, tensor=stored.name)


def _bands(stored: StoredTensor, raw: Bytes, scales: Floats) -> Iterator[tuple[int, Read]]:
    """Pieces of 8-bit floats: whole rows of the rectangles that share a scale."""
    rows, columns = stored.shape
    step = stored.scale_block[0]
    for band, first in enumerate(range(0, rows, step)):
        height = min(step, rows - first)
        part = raw[first * columns : (first + height) * columns]

        def read(part: Bytes = part, height: int = height, band: int = band) -> Floats:
            one = scales[band : band + 1]
            return dequantise_scaled(stored.kind, part, (height, columns), one, stored.scale_block, tensor=stored.name).reshape(-1)

        yield first * columns, read
