"""Scans and short convolutions of every interpreter against their formulas token by token, whole and through slots full of NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from khola.errors import OurFault
from khola.ops.vocabulary import CacheSpec, LayerCache, StateCache, Step, whole_sequences
from tests.ops import formulas
from tests.ops.test_interpreters import BY_TORCH, INTERPRETERS, Case
from tests.tolerances import SCAN_BFLOAT16

KEY_HEADS, HEADS, KEY, VALUE, COLUMNS, TAPS = 2, 4, 8, 12, 20, 4
DECAY = (0.5, 0.9, 0.99, 0.999)
LENGTHS = (150, 3, 70)


@pytest.fixture(params=[pytest.param(name, marks=BY_TORCH if "torch" in name else []) for name in INTERPRETERS])
def case(request: pytest.FixtureRequest) -> Case:
    """Every interpreter and dtype."""
    found = Case(request.param)
    if found.dtype == "bfloat16":
        found.tolerance = SCAN_BFLOAT16
    return found


class Inputs:
    """What three sequences bring to each word, and what comes out of it."""

    def __init__(self, case: Case) -> None:
        q, k = ([case.array(n, HEADS, KEY) for n in LENGTHS] for _ in "qk")
        few_q, few_k = ([x[:, :KEY_HEADS] for x in each] for each in (q, k))
        v = [case.array(n, HEADS, VALUE) for n in LENGTHS]
        a, b = ([case.array(n, HEADS) for n in LENGTHS] for _ in "ab")
        rate, bias, self.weight = case.array(HEADS), case.array(HEADS), case.array(COLUMNS, 1, TAPS)
        logs, shares = [formulas.log_decay(one, rate, bias) for one in a], [formulas.sigmoid(one) for one in b]
        x = [case.array(n, COLUMNS) for n in LENGTHS]
        rate_weight, bias_weight = case.weight(rate), case.weight(bias)
        self.words: dict[str, tuple[list[list[Any]], list[Any], Any]] = {
            "decay_scan": (
                [q, k, v],
                [formulas.decay_scan(*one, np.array(DECAY)) for one in zip(q, k, v, strict=True)],
                lambda step, q, k, v: case.ops.decay_scan(q, k, v, DECAY, step, 0),
            ),
            "delta_scan": (
                [few_q, few_k, v, a, b],
                [formulas.delta_scan(*one) for one in zip(few_q, few_k, v, logs, shares, strict=True)],
                lambda step, q, k, v, a, b: case.ops.delta_scan(
                    q, k, v, case.ops.log_decay(a, rate_weight, bias_weight), case.ops.sigmoid(b), step, 1
                ),
            ),
            "causal_conv": (
                [x],
                [formulas.causal_conv(one, self.weight) for one in x],
                lambda step, x: case.ops.causal_conv(x, case.weight(self.weight), step, 1),
            ),
        }


WORDS = ("decay_scan", "delta_scan", "causal_conv")


@pytest.mark.parametrize("word", WORDS)
def test_whole_sequences(case: Case, word: str) -> None:
    values, wanted, call = Inputs(case).words[word]
    case.check(call(whole_sequences(LENGTHS), *(case.value(np.concatenate(x)) for x in values)), np.concatenate(wanted))
    twice = [case.value(np.concatenate([x[2], x[2]])) for x in values]
    case.check(call(whole_sequences([LENGTHS[2]] * 2), *twice), np.concatenate([wanted[2]] * 2))


@pytest.mark.parametrize("word", WORDS)
def test_sequences_that_grow(case: Case, word: str) -> None:
    """Random chunks, some of one row; each step is made twice, because what it reads is still there."""
    values, wanted, call = Inputs(case).words[word]
    spec = CacheSpec((StateCache(HEADS, KEY, VALUE), StateCache(HEADS, KEY, VALUE, COLUMNS, TAPS), LayerCache(1, 2, 2)))
    cache, rng = case.ops.new_cache(spec, 1, 6), np.random.default_rng(3)
    for plane in (*cache.states.values(), *cache.tails.values()):
        plane[:] = float("nan")
    done, slots = [0, 0, 0], np.array([[-1, 4], [-1, 0], [-1, 3]], np.int32)
    while any(at < n for at, n in zip(done, LENGTHS, strict=True)):
        taken = [min(n - at, int(rng.choice([1, 1, 2, 70]))) for at, n in zip(done, LENGTHS, strict=True)]
        chosen = [s for s in range(3) if taken[s]]
        spans = [slice(done[s], done[s] + taken[s]) for s in chosen]
        step = Step(
            np.concatenate([np.arange(span.start, span.stop) for span in spans]).astype(np.int32),
            np.cumsum([0, *(taken[s] for s in chosen)]).astype(np.int32),
            np.array([span.stop for span in spans], np.int32),
            np.array([0], np.int32),
            np.zeros((len(chosen), 5), np.int32),
            cache,
            states_S2=slots[chosen],
        )
        rows = [case.value(np.concatenate([x[s][span] for s, span in zip(chosen, spans, strict=True)])) for x in values]
        want = np.concatenate([wanted[s][span] for s, span in zip(chosen, spans, strict=True)])
        for _ in range(2):
            case.check(call(step, *rows), want)
        for s in chosen:
            done[s] += taken[s]
            slots[s] = slots[s, 1], {0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4}[int(slots[s, 1])]


def test_what_is_kept_of_a_sequence(case: Case) -> None:
    spec = CacheSpec((LayerCache(2, 4, 6), StateCache(4, 8, 12, 20, 4)))
    assert spec.numbers_per_token() == 2 * 10
    assert spec.numbers_per_state() == 4 * 8 * 12 + 20 * 3
    bytes_each = 8 if case.dtype == "float64" else 4
    assert case.ops.state_bytes(spec) == spec.numbers_per_state() * bytes_each


@pytest.mark.parametrize("slots", [[[0, 1]], [[-1, -1]], [[1, 1]]])
def test_slots_that_contradict_the_sequence_are_refused(case: Case, slots: list[list[int]]) -> None:
    """A sequence that starts reads nothing; what is read is not written."""
    values, _, call = Inputs(case).words["decay_scan"]
    fresh = slots != [[1, 1]]
    length = 3 if fresh else 5
    arrays = [np.arange(length - 3, length), np.array([0, 3]), np.array([length]), np.array([0])]
    cache = case.ops.new_cache(CacheSpec((StateCache(HEADS, KEY, VALUE),)), 1, 2)
    for states in (np.array(slots, np.int32), None):
        step = Step(*(a.astype(np.int32) for a in arrays), np.zeros((1, 1), np.int32), cache, states_S2=states)
        with pytest.raises(OurFault, match="state"):
            call(step, *(case.value(x[1]) for x in values))


@pytest.mark.parametrize("decay", [1e-30, 1.0])
def test_decays_at_both_ends(case: Case, decay: float) -> None:
    """A state that is forgotten at once, and one that never fades."""
    q, k, v = case.array(130, 1, 2), case.array(130, 1, 2), case.array(130, 1, 3)
    got = case.ops.decay_scan(case.value(q), case.value(k), case.value(v), (decay,), whole_sequences([130]), 0)
    case.check(got, formulas.decay_scan(q, k, v, np.array([decay])))
