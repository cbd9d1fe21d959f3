"""Whether a model's weights fit into memory, and how fast they could be read from the disk where they do not.

A token reads its active weights. Of a mixture of experts any may be needed next, so the share that memory does not hold is the share that
misses. A dense model larger than memory is read in the same order again and again, and what was read longest ago, which memory gives up
first, is what is needed next: all of it is read for every token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from khola.cards.sizes import sizes_of
from khola.errors import BadConfig, NoMemory, UnknownOption
from khola.native.probe import disk_bandwidth, usable_memory
from khola.ops.vocabulary import Stored

BESIDE_BYTES = 1_000_000_000
"""Of the free memory, what the cache, a step and Python take, where weights stream."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Memory for weights.

    Args:
        name: of the model, for messages.
        config: keys of its config.json.
        file: of its weights, whose disk is measured.
        number_bytes: of a weight in interpreters that do not pack; 0: they lie in a memory that is not asked about here.
        stream: whether weights may stay on the disk.
        available_bytes: memory that weights may take; None: what is free now.
    """

    name: str
    config: Mapping[str, Any]
    file: Path
    number_bytes: int
    stream: bool = False
    available_bytes: int | None = None

    def require(self, needed: int, *, streams: bool) -> bool:
        """Whether weights have to stream.

        Args:
            needed: their bytes in the interpreter.
            streams: whether the interpreter can read them from the disk.
        Raises:
            NoMemory: they do not fit, and nobody allowed that they stream.
            UnknownOption: somebody did, and this interpreter cannot.
        """
        available = usable_memory()[1] if self.available_bytes is None else self.available_bytes
        if needed <= available:
            return False
        if self.stream and streams:
            return True
        if self.stream:
            raise UnknownOption("this interpreter holds all weights in memory and cannot stream them", hint="use the native interpreter")
        raise NoMemory(
            "the weights of {name} need {needed_mb} MB, and {available_mb} MB of memory are free",
            hint=(
                "with --stream they are read from the disk as they are needed, some {tokens_s} tokens a second here; "
                "`khola fit {name}` says which formats and relatives fit"
                if streams
                else "the native interpreter keeps them packed; `khola fit {name}` says what it needs"
            ),
            name=self.name,
            needed_mb=-(-needed // 1_000_000),
            available_mb=available // 1_000_000,
            tokens_s=f"{self._tokens_s(needed, available):.2g}" if streams else "",
        )

    def require_whole(self, stored: Mapping[str, Stored]) -> None:
        """Refuse weights that do not fit into memory unpacked.

        Raises:
            NoMemory, UnknownOption: as above.
        """
        self.require(self.number_bytes * sum(math.prod(tensor.shape) for tensor in stored.values()), streams=False)

    def _tokens_s(self, needed: int, available: int) -> float:
        """Tokens a second that the disk allows."""
        return disk_bandwidth(self.file) / missed_bytes(needed, active_share(self.config), available - BESIDE_BYTES)


def missed_bytes(weights: int, active: float, memory: int) -> float:
    """Bytes that one token reads from the disk, weights being more than memory.

    Args:
        weights: bytes of all.
        active: share that one token reads.
        memory: bytes of weights that memory can hold.
    """
    return weights * active * (1 if active == 1 else 1 - max(0, memory) / weights)


def active_share(config: Mapping[str, Any]) -> float:
    """Share of the weights that one token reads: 1 for dense models, and where the sizes of an architecture are not known."""
    try:
        sizes = sizes_of(config)
    except BadConfig:
        return 1.0
    dense = sizes.active_matrices == sizes.matrices
    return 1.0 if dense else sizes.active / sizes.parameters
