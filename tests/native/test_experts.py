"""Mixtures of experts: who is chosen with which share, what comes of it in every number format, and that a row's bits are its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.native.pack import pack
from khola.ops.native_ops import CacheForm
from khola.ops.native_program import NORMALISED, SIGMOID_SCORES
from khola.ops.stack import Stack
from khola.ops.vocabulary import Routing
from khola.store.quantise import quantise
from tests.native.rig import Raw, Rig, nmse, rounded
from tests.needs import needs_library
from tests.ops import formulas
from tests.tolerances import EXPERTS_BFLOAT16, EXPERTS_INT8, OP_FLOAT32

pytestmark = needs_library
EXPERTS, CHOSEN, WIDTH, INNER = 12, 3, 64, 96
KINDS = ("F32", "Q8_0", "Q4_0")
ROUTINGS = {
    "softmax, normalised": Routing(chosen=2),
    "softmax": Routing(chosen=3, normalised=False),
    "all": Routing(chosen=12),
    "sigmoid in groups": Routing(chosen=3, score="sigmoid", groups=4, kept_groups=2, scale=2.5),
    "every group its own": Routing(chosen=1, groups=12, kept_groups=5, normalised=False),
}


def routed(rig: Rig, logits: int, routing: Routing, bias: int = -1) -> int:
    """A slot with experts and shares."""
    kind = SIGMOID_SCORES * (routing.score == "sigmoid") + NORMALISED * routing.normalised
    arguments = [routing.chosen, routing.groups, routing.kept_groups, kind]
    return rig.op("route", [logits], 2 * routing.chosen, w0=bias, arg=arguments, f=[routing.floor, routing.scale])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=list(ROUTINGS))
def test_choices_and_shares(isa: str, routing: Routing, biased: bool) -> None:
    random = np.random.default_rng(2)
    logits = rounded(random.permuted(np.tile(np.geomspace(0.1, 6, EXPERTS), (40, 1)), axis=1))
    bias = random.standard_normal(EXPERTS).astype(np.float32)
    rig = Rig(isa, threads=2)
    out = routed(rig, rig.feed(logits), routing, rig.vector(bias) if biased else -1)
    assert rig.build().step(range(40)) == 0
    found = rig.slot(out, 40)
    wanted = formulas.route(logits.astype(np.float64), bias.astype(np.float64) if biased else None, routing)
    shares = [[wanted[row][int(expert)] for expert in ids] for row, ids in enumerate(found[:, : routing.chosen])]
    assert all(len(set(ids)) == routing.chosen for ids in found[:, : routing.chosen])
    assert nmse(found[:, routing.chosen :], np.array(shares)) < OP_FLOAT32


def test_rows_that_are_no_numbers_still_name_experts(isa: str) -> None:
    """What is not a number must not become the number of an expert that is not there."""
    logits = np.full((3, EXPERTS), np.nan, np.float32)
    logits[1], logits[2, 1:] = np.inf, 0
    rig = Rig(isa)
    slots = [routed(rig, rig.feed(logits), routing) for routing in ROUTINGS.values()]
    assert rig.build().step(range(3)) == 0
    for slot, routing in zip(slots, ROUTINGS.values(), strict=True):
        for row in rig.slot(slot, 3)[:, : routing.chosen]:
            assert len(set(row)) == routing.chosen and set(row) <= set(range(EXPERTS))


class Mixture:
    """Experts of one number format, and rows with routes of their own."""

    def __init__(self, kind: str, rows: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.rows = rows
        self.x = rounded(random.standard_normal((rows, WIDTH)))
        # Experts 0 to 3 get most of the rows, 11 none.
        weights = np.array([8, 8, 6, 4, 1, 1, 1, 1, 1, 1, 1, 0]) / 33
        self.ids = np.stack([random.choice(EXPERTS, CHOSEN, replace=False, p=weights) for _ in range(rows)])
        self.shares = rounded(random.uniform(0.1, 1, (rows, CHOSEN)))
        stacks = []
        for name, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)), ("down", (WIDTH, INNER))):
            values = random.standard_normal((EXPERTS, *shape)).astype(np.float32) * 0.2
            parts = [Raw(kind, shape, bytes(quantise(kind, one))) for one in values]
            stacks.append(Stack(name, tuple(parts)))
        gate, up, down = stacks
        self.gate_up, self.down = pack([gate, up], alternate=True), pack([down])

    def rig(self, isa: str, threads: int, cache: CacheForm = "bf16") -> tuple[Rig, int]:
        """The mixture as a program, and the slot of its result."""
        rig = Rig(isa, threads=threads, max_rows=self.rows, max_context=self.rows + 1, cache_form=cache)
        routes = rig.feed(np.concatenate([self.ids, self.shares], 1).astype(np.float32))
        weights = [rig.weight(self.gate_up), rig.weight(self.down)]
        out = rig.op("experts", [rig.feed(self.x), routes], WIDTH, w0=weights[0], w1=weights[1], arg=[EXPERTS, CHOSEN])
        return rig.build(), out

    def wanted(self) -> NDArray[np.float64]:
        """The formula, with the values that were packed."""
        strips = self.gate_up.unpacked().astype(np.float64).reshape(-1, 2, 16, WIDTH)
        gate, up = (strips[:, part].reshape(EXPERTS, INNER, WIDTH) for part in (0, 1))
        down = self.down.unpacked().astype(np.float64).reshape(EXPERTS, WIDTH, -1)
        routes = [dict(zip(map(int, ids), map(float, shares), strict=True)) for ids, shares in zip(self.ids, self.shares, strict=True)]
        return formulas.experts(self.x.astype(np.float64), routes, gate, up, down)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 5, 63, 200])
@pytest.mark.parametrize("answers", ["none", "all", "some"])
def test_what_experts_make_of_rows(isa: str, kind: str, rows: int, answers: str) -> None:
    mixture = Mixture(kind, rows)
    few = {"none": np.zeros(rows), "all": np.ones(rows), "some": np.arange(rows) % 3 == 1}[answers]
    rig, out = mixture.rig(isa, threads=2)
    assert rig.step(range(rows), answers=few) == 0
    tolerance = EXPERTS_BFLOAT16 if kind == "F32" or answers == "none" else EXPERTS_INT8
    assert nmse(rig.slot(out, rows), mixture.wanted()) < tolerance


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_bits_of_a_row_are_its_own(isa: str, kind: str) -> None:
    """Alone or among others, on one thread or three, twice in a row on memory full of NaN."""
    mixture = Mixture(kind, 90, seed=1)
    few = np.random.default_rng(5).random(90) < 0.5
    crowd: list[Any] = []
    for threads in (1, 3):
        rig, out = mixture.rig(isa, threads)
        for _ in range(2):
            assert rig.step(range(90), answers=few) == 0
            crowd.append(rig.slot(out, 90))
    assert all(np.array_equal(crowd[0], other) for other in crowd[1:])
    for row in (0, 1, 2, 3, 47, 89):
        assert rig.step([row], answers=few[[row]]) == 0
        assert np.array_equal(rig.slot(out, 1)[0], crowd[0][row]), f"row {row}"


def test_one_column_multiplies_a_row(isa: str) -> None:
    random = np.random.default_rng(3)
    factor, x = rounded(random.standard_normal((5, 1))), rounded(random.standard_normal((5, 33)))
    rig = Rig(isa, threads=2)
    out = rig.op("mul", [rig.feed(factor), rig.feed(x)], 33)
    assert rig.build().step(range(5)) == 0
    assert np.array_equal(rig.slot(out, 5), factor * x)
