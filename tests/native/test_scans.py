"""Scans over states and short convolutions, in every instruction set: the formulas token by token, and the same bits however rows come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.native.rig import Rig, Run, available, nmse, rounded
from tests.needs import needs_library
from tests.ops import formulas
from tests.tolerances import NATIVE_SCAN

pytestmark = needs_library
Array = NDArray[Any]
ROWS = 150
PAGES = list(range(5))
# Key heads, heads, keys, values: odd, of a tiny model, more than a panel of columns, and of the real ones.
SIZES = {"one number": (1, 1, 1, 1), "odd": (3, 3, 7, 65), "tiny": (2, 4, 8, 12), "panels": (1, 2, 33, 130), "real": (1, 2, 128, 128)}


class Layer:
    """One layer of each kind with inputs of its own, and what comes out of it for a sequence that starts at any of its rows."""

    def __init__(self, sizes: str, seed: int = 0) -> None:
        key_heads, self.heads, self.keys, self.values = SIZES[sizes]
        self.key_heads, self.columns, self.taps = key_heads, 3 * self.values, 4
        random = np.random.default_rng(seed)

        def some(width: int) -> Array:
            return rounded(random.standard_normal((ROWS, width)))

        self.q, self.k = some(self.heads * self.keys), some(self.heads * self.keys)
        self.v, self.a, self.b, self.x = some(self.heads * self.values), some(self.heads), some(self.heads), some(self.columns)
        self.decay = np.array([0.5, 0.9, 0.99, 0.999][: self.heads], np.float32)
        self.rate, self.bias = (random.standard_normal(self.heads).astype(np.float32) for _ in "rb")
        self.weight = random.standard_normal((self.columns, 1, self.taps)).astype(np.float32)

    def rig(self, isa: str, threads: int) -> tuple[Rig, dict[str, int]]:
        """All words in one program, in layers of their own."""
        rig = Rig(isa, threads=threads, max_rows=ROWS, max_context=ROWS, num_states=6)
        rig.layers, rig.num_pages = [(0, 0, 0)] * 3, len(PAGES)
        h, e, f = self.heads, self.keys, self.values
        rig.states = [(h, e, f, 0, 1), (h, e, f, 0, 1), (0, 0, 0, self.columns, self.taps)]
        q, k, v, a, b, x = (rig.feed(values) for values in (self.q, self.k, self.v, self.a, self.b, self.x))
        few_q, few_k = (rig.op("slice", [slot], self.key_heads * e) for slot in (q, k))
        share, decay = rig.op("sigmoid", [b], h), rig.op("log_decay", [a], h, w0=rig.vector(self.rate), w1=rig.vector(self.bias))
        taps = rig.vector(self.weight.reshape(self.columns, self.taps).T.reshape(-1))
        slots = {
            "decay_scan": rig.op("decay_scan", [q, k, v], h * f, w0=rig.vector(self.decay), arg=[0]),
            "delta_scan": rig.op("delta_scan", [few_q, few_k, v], h * f, arg=[1, decay, share, self.key_heads]),
            "log_decay": decay,
            "causal_conv": rig.op("causal_conv", [x], self.columns, w0=taps, arg=[2]),
            "scale": rig.op("scale", [x], self.columns, f=[3.25]),
        }
        return rig.build(), slots

    def wanted(self, first: int, last: int) -> dict[str, Array]:
        """Of the sequence that starts at a row."""
        here = slice(first, last)
        q, k = (x[here].reshape(last - first, self.heads, self.keys).astype(np.float64) for x in (self.q, self.k))
        v = self.v[here].reshape(last - first, self.heads, self.values).astype(np.float64)
        logs = formulas.log_decay(self.a[here].astype(np.float64), self.rate.astype(np.float64), self.bias.astype(np.float64))
        shares, few = formulas.sigmoid(self.b[here].astype(np.float64)), self.key_heads
        return {
            "decay_scan": formulas.decay_scan(q, k, v, self.decay.astype(np.float64)).reshape(last - first, -1),
            "delta_scan": formulas.delta_scan(q[:, :few], k[:, :few], v, logs, shares).reshape(last - first, -1),
            "log_decay": logs,
            "causal_conv": formulas.causal_conv(self.x[here].astype(np.float64), self.weight.astype(np.float64)),
            "scale": self.x[here] * 3.25,
        }


def step(rig: Rig, ids: Any, runs: list[Run], slots: list[tuple[int, int]]) -> int:
    """One step on memory full of NaN."""
    return rig.step(ids, runs, states=np.array(slots, np.int32))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("threads", [1, 3])
def test_formulas(isa: str, sizes: str, threads: int) -> None:
    """A sequence in uneven steps; slots of states are full of NaN where nobody wrote."""
    layer = Layer(sizes)
    rig, slots = layer.rig(isa, threads)
    assert step(rig, range(40, 43), [Run(0, 3, PAGES)], [(-1, 3)]) == 0
    at, read, write, found = 0, -1, 0, {name: [] for name in slots}  # type: dict[str, list[Array]]
    for count in (1, 1, 2, 70, 1, 75):
        assert step(rig, range(at, at + count), [Run(at, count, PAGES)], [(read, write)]) == 0
        for name, slot in slots.items():
            found[name].append(rig.slot(slot, count))
        at, read, write = at + count, write, {0: 5, 5: 2, 2: 0}[write]
    for name, wanted in layer.wanted(0, ROWS).items():
        assert nmse(np.concatenate(found[name]), wanted) < NATIVE_SCAN, name


def rows_of(isa: str, threads: int, cuts: list[int], company: bool) -> dict[str, Array]:
    """What a sequence reads, cut into steps, alone or between two others."""
    rig, slots = Layer("panels").rig(isa, threads)
    found: dict[str, list[Array]] = {name: [] for name in slots}
    at, turn = 0, 0
    for count in cuts:
        mine = (turn, 1 - turn) if at else (-1, 1)
        ids, runs, states = list(range(at, at + count)), [Run(at, count, PAGES)], [mine]
        if company:
            ids, runs, states = [7, 8, *ids, 9], [Run(0, 2, PAGES), *runs, Run(0, 1, PAGES)], [(-1, 2), mine, (-1, 4)]
        assert step(rig, ids, runs, states) == 0
        for name, slot in slots.items():
            found[name].append(rig.slot(slot, len(ids))[2 * company :][:count])
        at, turn = at + count, 1 - turn if at else 1
    return {name: np.concatenate(parts) for name, parts in found.items()}


def test_bits_of_a_row_are_its_own(isa: str) -> None:
    """Whatever the steps, the threads and the company; a prompt and single tokens alike."""
    whole = rows_of(isa, 1, [100], company=False)
    for threads, cuts, company in ((1, [33, 1, 1, 65], True), (3, [100], False), (2, [1] * 100, False), (3, [64, 36], True)):
        for name, rows in rows_of(isa, threads, cuts, company).items():
            assert np.array_equal(rows, whole[name]), f"{name}: {threads} threads, {len(cuts)} steps, company {company}"


def test_the_width_of_a_vector_changes_no_bit() -> None:
    """Sets that join products and sums agree, and so do those that cannot; gates have an exponential of each set's own."""
    joins = ("amx", "avx512", "avxvnni", "avx2")
    for group in ([isa for isa in available() if isa in joins], [isa for isa in available() if isa not in joins]):
        every = [rows_of(isa, 1, [50], company=False) for isa in group]
        for name in ("decay_scan", "log_decay", "scale"):
            assert all(np.array_equal(found[name], every[0][name]) for found in every[1:]), name


def test_a_step_may_be_made_again(isa: str) -> None:
    rig, slots = Layer("tiny").rig(isa, 2)
    assert step(rig, range(5), [Run(0, 5, PAGES)], [(-1, 0)]) == 0
    twice = []
    for _ in range(2):
        assert step(rig, range(5, 9), [Run(5, 4, PAGES)], [(0, 1)]) == 0
        twice.append({name: rig.slot(slot, 4) for name, slot in slots.items()})
    assert all(np.array_equal(twice[0][name], twice[1][name]) for name in slots)


@pytest.mark.parametrize(
    "slots", [[(-1, -1)], [(-1, 6)], [(0, 1)], [(-1, 0), (-1, 0)], [(-2, 1)]], ids=["none", "beyond", "a past", "one for two", "below"]
)
def test_slots_that_contradict_a_step_are_refused(slots: list[tuple[int, int]]) -> None:
    rig, _ = Layer("tiny").rig("", 1)
    runs = [Run(0, 2, PAGES) for _ in slots]
    assert step(rig, range(2 * len(runs)), runs, slots) == -2
    assert step(rig, range(2), [Run(0, 2, PAGES)], [(-1, 0)]) == 0
    for wrong in ([(-1, 1)], [(0, 0)], [(6, 1)]):
        assert step(rig, range(2), [Run(2, 2, PAGES)], wrong) == -2
    assert rig.step(range(2)) == -2, "no slots at all"


def test_states_of_other_sizes_are_refused() -> None:
    rig, _ = Layer("tiny").rig("", 1)
    other, _ = Layer("odd").rig("", 1)
    rig.cache, other.cache = other.cache, rig.cache
    assert step(rig, range(2), [Run(0, 2, PAGES)], [(-1, 0)]) == -2
