"""Matrix products of every packed form, in every instruction set, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.native.pack import Packed, pack
from khola.ops.native_ops import CacheForm
from tests.native.made_blocks import KINDS_PACKED, PLAIN, made
from tests.native.rig import Rig, nmse, rounded, splits
from tests.needs import needs_library
from tests.tolerances import INT8_PRODUCT, OP_BFLOAT16, OP_FLOAT32

pytestmark = needs_library

Array = NDArray[Any]
FEW = 16
"""Rows up to which the input is quantised to int8."""
FORMS = {
    "4": "Q4_0",
    "4 minimum": "Q4_1",
    "4 group 16": "Q3_K",
    "4 group 16 minimum": "Q2_K",
    "5": "Q5_0",
    "5 minimum": "Q5_1",
    "6": "Q6_K",
    "8": "Q8_0",
    "4 group 64": "INT4G64",
    "8 group 64": "INT8G64",
    "16": "BF16",
    "8 split": "Q8_0",
}
"""One format for each form that formats have on their own."""
JOINED = {
    "5 group 16": ("Q3_K", "Q5_0"),
    "5 group 16 minimum": ("Q2_K", "Q5_0"),
    "6 minimum": ("Q5_K", "Q6_K"),
    "8 group 16": ("Q6_K", "Q8_0"),
    "8 minimum": ("Q4_1", "Q8_0"),
    "8 group 64 twice": ("INT4G64", "INT8G64"),
    "8 group 16 from 64": ("INT8G64", "Q6_K"),
    "8 group 16 minimum": ("Q2_K", "Q8_0"),
}
"""Forms that come from joining two formats."""


def inputs(rows: int, k: int, seed: int = 3) -> NDArray[np.float32]:
    """Rows of different sizes, some of whose groups are zero."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, k)) * 10.0 ** random.integers(-2, 3, (rows, 1))
    x[:, : 32 * (k > 200)] = 0
    return rounded(x)


def product(
    isa: str,
    packed: Packed,
    x: Array,
    *,
    threads: int = 1,
    maxima: bool = False,
    ids: Any = None,
    answers: Any = None,
    cache: CacheForm = "bf16",
) -> Array:
    """Rows of x times the matrix, as the head of a program; up to sixteen rows are those of an answer unless it is said which are."""
    if packed.form.split and not splits(isa):
        pytest.skip("splits no head")
    n, rows = packed.form.n, np.arange(len(x)) if ids is None else np.asarray(ids)
    rig = Rig(isa, threads=threads, max_rows=len(rows), max_context=max(len(rows), 1), cache_form=cache)
    rig.op("linear", [rig.feed(x)], n, w0=rig.weight(packed), flags=["head"])
    out = np.full((len(rows), n), np.nan, np.float32)
    most = np.full((len(rows), -(-n // 32)), np.nan, np.float32)
    assert rig.build().step(rows, logits=out, block_max=most if maxima else None, answers=answers) == 0
    if maxima:
        np.testing.assert_array_equal(most, [[row[i : i + 32].max() for i in range(0, n, 32)] for row in out])
    return out


def quantised(x: Array) -> Array:
    """What few rows are rounded to: 8 bits a number, a scale for every 32."""
    whole = np.zeros((len(x), -(-x.shape[1] // 32) * 32), np.float32)
    whole[:, : x.shape[1]] = x
    groups = whole.reshape(len(x), -1, 32)
    scale = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return (np.rint(groups * inverse).astype(np.float64) * scale).reshape(whole.shape)[:, : x.shape[1]]


def off(found: Array, x: Array, values: Array) -> float:
    """Squared error over the squared size that a product of such rows has; sums that happen to cancel out count as any other."""
    size = np.square(x.astype(np.float64)).sum(-1)[:, None] * np.square(values).sum(-1)
    error = float((np.square(found - x.astype(np.float64) @ values.T) / size).mean())
    return error if np.isfinite(error) else float("inf")


def check(packed: Packed, x: Array, found: Array) -> None:
    """The product equals what the rounded operands say, and is near what the exact ones say."""
    values = packed.unpacked().astype(np.float64)
    if len(x) > FEW:
        assert off(found, x, rounded(values).astype(np.float64)) < OP_FLOAT32
        assert off(found, x, values) < OP_BFLOAT16
    elif packed.form.bits == 16:
        assert off(found, x, values) < OP_FLOAT32
    else:
        assert off(found, quantised(x), values) < OP_FLOAT32
        assert off(found, x, values) < INT8_PRODUCT


def form(name: str, n: int, k: int) -> Packed:
    """A matrix in one of the forms."""
    if name in FORMS:
        return pack([made(FORMS[name], n, k)], head="split" in name)
    first, second = JOINED[name]
    return pack([made(first, n - n // 3, k, 1), made(second, n // 3, k, 2)])


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 11, 16, 17, 33])
@pytest.mark.parametrize("name", [*FORMS, *JOINED])
def test_every_form(name: str, rows: int, isa: str) -> None:
    packed, x = form(name, 64, 256), inputs(rows, 256)
    check(packed, x, product(isa, packed, x))


@pytest.mark.parametrize("kind", KINDS_PACKED)
@pytest.mark.parametrize(("n", "k"), [(1, 256), (31, 512), (49, 256), (130, 768)])
def test_odd_shapes(kind: str, n: int, k: int, isa: str) -> None:
    k = k if kind not in PLAIN else k - 51
    packed = pack([made(kind, n, k)])
    for rows in (1, 7, 18):
        x = inputs(rows, k)
        check(packed, x, product(isa, packed, x, maxima=True))


@pytest.mark.parametrize("k", [32, 96, 160])
def test_a_depth_that_is_no_whole_tile(k: int, isa: str) -> None:
    packed = pack([made("Q4_1", 40, k)])
    for rows in (1, 9, 40):
        x = inputs(rows, k)
        check(packed, x, product(isa, packed, x))


def test_a_depth_that_is_cut_into_pieces(isa: str) -> None:
    packed, x = pack([made("Q4_0", 33, 4864)]), inputs(1, 4864)
    rows = {1: 1, 6: 6, 70: 70} | ({} if isa == "scalar" else {512: 512})
    whole = np.repeat(x, 512, axis=0)
    few = {count: product(isa, packed, whole[:count]) for count in rows}
    for count, found in few.items():
        check(packed, whole[:count], found)
        np.testing.assert_array_equal(found, np.broadcast_to(found[:1], found.shape))
    if isa != "scalar":
        np.testing.assert_array_equal(few[70][0], few[512][0])


@pytest.mark.parametrize("name", [*FORMS, *JOINED])
def test_a_row_does_not_depend_on_the_others(name: str, isa: str) -> None:
    packed, x = form(name, 96, 512), inputs(33, 512)
    for few, counts in ((True, (1, 2, 3, 4, 5, 6, 9, 13, 16)), (False, (17, 18, 31, 32, 33))):
        whole = product(isa, packed, x[: FEW if few else 33])
        for count in counts:
            np.testing.assert_array_equal(product(isa, packed, x[:count]), whole[:count])
        turned = np.roll(np.arange(len(whole)), 3)
        np.testing.assert_array_equal(product(isa, packed, x, ids=turned), whole[turned])


@pytest.mark.parametrize("name", [*FORMS, *JOINED])
def test_rows_of_many_answers_are_those_of_a_few(name: str, isa: str) -> None:
    """Several blocks of sixteen share a reading of the weights; the last may have any number of rows."""
    packed, x = form(name, 96, 512), inputs(83, 512)
    alone = np.concatenate([product(isa, packed, x[first : first + FEW]) for first in range(0, 83, FEW)])
    for rows in (17, 20, 21, 32, 36, 48, 49, 53, 64, 65, 68, 83):
        np.testing.assert_array_equal(product(isa, packed, x[:rows], answers=np.ones(rows)), alone[:rows], err_msg=f"{rows} rows")


@pytest.mark.parametrize("name", [*FORMS, *JOINED])
def test_rows_of_answers_and_of_prompts_do_not_see_each_other(name: str, isa: str) -> None:
    """Any number of both, in any order: each row has the bits that it has alone, and its kind decides which."""
    packed, x = form(name, 96, 512), inputs(75, 512)
    random = np.random.default_rng(7)
    alone = [np.concatenate([product(isa, packed, x[r : r + 1], answers=[kind]) for r in range(len(x))]) for kind in (0, 1)]
    assert (name == "16") == np.array_equal(*alone), "of quantised weights the two kinds differ"
    for count, share in ((2, 0.5), (17, 1.0), (33, 1.0), (40, 0.9), (40, 0.1), (64, 1.0), (75, 0.5)):
        ids, answers = random.permutation(75)[:count], np.arange(count) < share * count
        for order in (answers, random.permutation(answers)):
            found = product(isa, packed, x, ids=ids, answers=order, threads=int(random.integers(1, 3)), maxima=True)
            np.testing.assert_array_equal(found, np.where(order[:, None], alone[1][ids], alone[0][ids]), err_msg=str((count, share)))


@pytest.mark.parametrize("name", ["4", "16"])
@pytest.mark.parametrize("rows", [1, 20, 40])
def test_epilogues_of_rows_of_both_kinds(name: str, rows: int, isa: str) -> None:
    """The residual and the gate belong to the row whatever place it has among those of its kind."""
    n, k = 64, 128
    x, carried, packed = inputs(rows, k), rounded(np.random.default_rng(5).standard_normal((rows, n))), form(name, n, k)
    gates = pack([made("Q4_0", n, k, 1), made("Q4_0", n, k, 2)], alternate=True)
    rig = Rig(isa, threads=2, max_rows=rows)
    from_x, from_carried = rig.feed(x), rig.feed(carried)
    gated = rig.op("linear", [from_x], n, w0=rig.weight(gates), flags=["gated"])
    added = rig.op("linear", [from_x, from_carried], n, w0=rig.weight(packed), flags=["add"])
    rig.build()
    found = []
    for answers in (np.zeros(rows), np.ones(rows), np.arange(rows) % 3 == 0):
        assert rig.step(range(rows), answers=answers) == 0
        found.append((rig.slot(gated, rows), rig.slot(added, rows)))
    for prompt, answer, both in zip(*found, strict=True):
        np.testing.assert_array_equal(both, np.where((np.arange(rows) % 3 == 0)[:, None], answer, prompt))


@pytest.mark.parametrize("name", ["4 minimum", "6", "16"])
@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_threads_give_the_same_bits(name: str, rows: int, isa: str) -> None:
    packed, x = form(name, 200, 256), inputs(rows, 256)
    alone = product(isa, packed, x)
    for threads in (2, 3):
        np.testing.assert_array_equal(product(isa, packed, x, threads=threads), alone)


@pytest.mark.parametrize("name", [name for name in (*FORMS, *JOINED) if name != "16"])
def test_instruction_sets_give_the_same_bits(name: str) -> None:
    """Of few rows and quantised weights: integer sums are exact, and all add up scaled sums in one order. Plain C++ alone does not fuse."""
    from tests.native.rig import available

    best, *others = [isa for isa in reversed(available()) if isa != "scalar"] or [""]
    if not others:
        pytest.skip("needs two instruction sets")
    packed, x = form(name, 96, 512), inputs(FEW, 512)
    for rows in (1, 4, 5, 8, 9, 12, 13, 16):
        wanted = product(best, packed, x[:rows])
        for isa in others:
            np.testing.assert_array_equal(product(isa, packed, x[:rows]), wanted, err_msg=f"{isa}, {rows} rows")


@pytest.mark.parametrize("rows", [1, 6, 20])
def test_epilogues(rows: int, isa: str) -> None:
    check_epilogues(isa, rows, INT8_PRODUCT if rows <= FEW else OP_BFLOAT16)


def check_epilogues(isa: str, rows: int, limit: float, cache: CacheForm = "bf16") -> None:
    """Bias, gating, the residual, and a norm on the way in."""
    random = np.random.default_rng(5)
    n, k = 48, 96
    x, weight = inputs(rows, k), random.standard_normal(k).astype(np.float32)
    gate, up = made("Q8_0", n, k, 1), made("Q8_0", n, k, 2)
    biases = [rounded(random.standard_normal(n)), rounded(random.standard_normal(n))]
    carried = rounded(random.standard_normal((rows, n)))
    rig = Rig(isa, threads=2, max_rows=rows, max_context=max(rows, 64), cache_form=cache)
    from_x, from_carried = rig.feed(x), rig.feed(carried)
    gated = rig.op("linear", [from_x], n, w0=rig.weight(pack([gate, up], biases, alternate=True)), flags=["gated"])
    added = rig.op("linear", [from_x, from_carried], n, w0=rig.weight(pack([gate], biases[:1])), flags=["add"])
    normed = rig.op("linear", [from_x], n, w0=rig.weight(pack([up])), w1=rig.vector(weight), f=(1e-5, 1.0), flags=["normed"])
    assert rig.build().step(range(rows)) == 0
    wide = x.astype(np.float64)
    g, u = (wide @ m.float32().astype(np.float64).T + b for m, b in zip((gate, up), biases, strict=True))
    assert nmse(rig.slot(gated, rows), g / (1 + np.exp(-g)) * u) < limit
    assert nmse(rig.slot(added, rows), g + carried) < limit
    turned = wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + 1e-5) * (weight + 1)
    assert nmse(rig.slot(normed, rows), turned @ up.float32().astype(np.float64).T) < limit * 1.5


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 6, 20])
def test_what_is_no_number_stays_none(rows: int, strange: float, isa: str) -> None:
    """NaN or infinity in a row is not rounded to something; the other rows do not see it."""
    packed, x = form("4", 40, 128), inputs(rows, 128)
    good = product(isa, packed, x)
    x[rows // 2, 77] = strange
    found = product(isa, packed, x)
    assert not np.isfinite(found[rows // 2]).any()
    others = np.arange(rows) != rows // 2
    np.testing.assert_array_equal(found[others], good[others])


def test_a_planted_fault_is_seen(isa: str) -> None:
    """The limits tell a kernel with one wrong scale from a right one."""
    packed, x = form("4", 64, 256), inputs(6, 256)
    found = product(isa, packed, x)
    scale = packed.data[512 + 32 : 512 + 34].view("<f2")  # of the second group: the inputs of the first are zero
    scale *= 2
    with pytest.raises(AssertionError):
        check(packed, x, found)
