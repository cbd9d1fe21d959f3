"""Honest figures from verdicts: pass@k without bias, intervals, and the difference of two models on the same problems.

Source   pass@k: arXiv:2107.03374, section 2.1, equation 1. Intervals: the percentile bootstrap over problems (Efron and Tibshirani, 1993,
section 13.3); for two models problems are drawn in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from khola.errors import AskedWrong

Floats = NDArray[np.float64]
_DRAWS, _CHUNK = 10_000, 256


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Chance that at least one of `k` samples passes, estimated without bias from more: 1 - C(n - c, k) / C(n, k).

    Args:
        samples: how many were judged (n).
        passed: how many of them passed (c).
        k: 1 to n.
    Raises:
        AskedWrong: k or the counts cannot be meant.
    """
    if not (1 <= k <= samples and 0 <= passed <= samples):
        raise AskedWrong(
            "pass@{k} needs at least {k} samples of a problem; there are {samples}, of which {passed} passed",
            k=k,
            samples=samples,
            passed=passed,
        )
    if samples - passed < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with the interval that 95 of 100 repetitions with other problems would cover."""

    value: float
    low: float
    high: float
    count: int
    """Problems it rests on."""

    @property
    def says_nothing(self) -> bool:
        """Whether zero lies in the interval: for a difference, no difference is shown."""
        return self.low <= 0.0 <= self.high


def mean(scores: Sequence[float], *, seed: int = 0, draws: int = _DRAWS) -> Estimate:
    """The mean of one score a problem.

    Raises:
        AskedWrong: there is no score.
    """
    return _bootstrapped(np.asarray(scores, np.float64), seed, draws)


def difference(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0, draws: int = _DRAWS) -> Estimate:
    """How much better the first is, both judged on the same problems in the same order.

    Raises:
        AskedWrong: the lists differ in length, or are empty.
    """
    if len(ours) != len(theirs):
        raise AskedWrong(
            "two models can be compared on the same problems only; there are {ours} scores and {theirs}", ours=len(ours), theirs=len(theirs)
        )
    return _bootstrapped(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64), seed, draws)


def _bootstrapped(scores: Floats, seed: int, draws: int) -> Estimate:
    if not scores.size:
        raise AskedWrong("there is no score to take the mean of")
    generator = np.random.default_rng(seed)
    means = [
        scores[generator.integers(0, scores.size, (min(_CHUNK, draws - done), scores.size))].mean(axis=1)
        for done in range(0, draws, _CHUNK)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Estimate(value=float(scores.mean()), low=float(low), high=float(high), count=int(scores.size))
