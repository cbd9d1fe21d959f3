"""pass@k against counting, intervals against their closed form, differences in pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from khola.errors import AskedWrong
from khola.evals.score import difference, mean, pass_at_k


def test_pass_at_k_equals_counting_all_choices() -> None:
    for samples, passed, k in itertools.product(range(1, 8), range(8), range(1, 8)):
        if passed > samples or k > samples:
            continue
        outcomes = [True] * passed + [False] * (samples - passed)
        chosen = list(itertools.combinations(outcomes, k))
        assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, chosen)) / len(chosen), abs=1e-12)


def test_pass_at_k_is_not_biased() -> None:
    generator = np.random.default_rng(1)
    estimates = [pass_at_k(10, int(generator.binomial(10, 0.1)), 5) for _ in range(20_000)]
    assert np.mean(estimates) == pytest.approx(1 - 0.9**5, abs=0.008)


@pytest.mark.parametrize(("samples", "passed", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_impossible_counts_are_refused(samples: int, passed: int, k: int) -> None:
    with pytest.raises(AskedWrong, match="samples"):
        pass_at_k(samples, passed, k)


def test_an_interval_is_that_of_the_normal_law_where_that_holds() -> None:
    scores = [1.0] * 100 + [0.0] * 400
    found = mean(scores)
    half = 1.96 * math.sqrt(0.2 * 0.8 / 500)
    assert (found.value, found.count) == (0.2, 500)
    assert found.low == pytest.approx(0.2 - half, abs=0.004) and found.high == pytest.approx(0.2 + half, abs=0.004)
    assert mean(scores) == found
    spread = list(np.random.default_rng(2).random(50))
    assert mean(spread) == mean(spread) and mean(spread).low != mean(spread, seed=1).low


def test_pairs_see_what_two_intervals_do_not() -> None:
    generator = np.random.default_rng(0)
    hard = generator.random(400)
    theirs, ours = hard, hard + 0.02 + generator.normal(0, 0.02, 400)
    found = difference(list(ours), list(theirs))
    assert not found.says_nothing and found.value == pytest.approx(0.02, abs=0.004)
    assert mean(list(ours)).low < mean(list(theirs)).high
    assert difference(list(hard), list(generator.permutation(hard))).says_nothing


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(AskedWrong, match="same problems"):
        difference([1.0], [1.0, 0.0])
    with pytest.raises(AskedWrong, match="no score"):
        mean([])
