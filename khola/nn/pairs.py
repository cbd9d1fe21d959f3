"""Rotary pairs that lie side by side in a checkpoint: dimension 2 i turns with 2 i + 1.

Every interpreter turns dimension i with i + width / 2. The order of the dimensions of a head does not matter to a score, as long as queries
and keys share it, so the rows of their projections are moved once, when they are loaded.

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

    def half_split(self, rows: int) -> NDArray[np.intp]:
        """Which row of the checkpoint stands where, once its pairs are half-split.

        Args:
            rows: of the tensor: heads times their size.
        """
        head = np.arange(self.head_size)
        turned = slice(self.start, self.start + self.width)
        head[turned] = head[turned].reshape(-1, 2).T.reshape(-1)
        order: NDArray[np.intp] = (np.arange(0, rows, self.head_size)[:, None] + head).reshape(-1)
        return order
