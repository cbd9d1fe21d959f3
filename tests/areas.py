"""How well one number tells two cases apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def area(smaller: Sequence[float], larger: Sequence[float]) -> float:
    """Area under the curve of a guess by a number: how likely one of the first is below one of the second; 0.5 where they are alike."""
    ranks = np.argsort(np.argsort([*smaller, *larger]))[len(smaller) :] + 1
    return float((ranks.sum() - len(larger) * (len(larger) + 1) / 2) / (len(smaller) * len(larger)))
