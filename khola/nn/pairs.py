"""Rows of projections that lie in another order in a checkpoint than computing wants them; they are moved once, when they are loaded.

Rotary pairs may lie side by side: dimension 2 i turns with 2 i + 1, where every interpreter turns dimension i with i + width / 2. The order
of the dimensions of a head does not matter to a score, as long as queries and keys share it. And what several projections give may lie head
by head, so that no part of it is whole.

Source   arXiv:2104.09864 section 3.4.2 for adjacent pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Pairs(NamedTuple):
    """How a tensor of heads has its pairs."""

    head_size: int
    """Rows of a head."""
    width: int
    """Rotated rows of each head; the others stay."""
    start: int = 0
    """The first of them."""

    def order(self, rows: int) -> NDArray[np.intp]:
        """Which row of the checkpoint stands where, once its pairs are half-split.

        Args:
            rows: of the tensor: heads times their size.
        """
        head = np.arange(self.head_size)
        turned = slice(self.start, self.start + self.width)
        head[turned] = head[turned].reshape(-1, 2).T.reshape(-1)
        order: NDArray[np.intp] = (np.arange(0, rows, self.head_size)[:, None] + head).reshape(-1)
        return order


class Grouped(NamedTuple):
    """How a tensor has several parts of each head one after another."""

    sizes: tuple[int, ...]
    """Rows of each part in one head."""

    def order(self, rows: int) -> NDArray[np.intp]:
        """Which row of the checkpoint stands where, once the first parts of all heads stand before the second ones, and so on.

        Args:
            rows: of the tensor: heads times the sum of the sizes.
        """
        heads = np.arange(rows, dtype=np.intp).reshape(-1, sum(self.sizes))
        return np.concatenate([part.reshape(-1) for part in np.split(heads, np.cumsum(self.sizes)[:-1], axis=1)])


Moved = Pairs | Grouped
"""Either way to move rows."""
