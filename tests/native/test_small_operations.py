"""Norms, gates, sums and the other small operations of a program, in every instruction set, against float64."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from khola.errors import NoKernel
from khola.native.lib import choose_isa, library
from khola.native.pack import pack
from tests.native.made_blocks import made
from tests.native.rig import Rig, Run, available, nmse, plain, rounded
from tests.needs import needs_library
from tests.tolerances import OP_FLOAT32

pytestmark = needs_library


@pytest.mark.parametrize("n", [1, 15, 63, 96, 1000])
@pytest.mark.parametrize("rows", [1, 5])
def test_formulas(n: int, rows: int, isa: str) -> None:
    random = np.random.default_rng(n)
    x, y = (rounded(random.standard_normal((rows, n)) * 3) for _ in range(2))
    weight = random.standard_normal(n).astype(np.float32)
    rig = Rig(isa, threads=2, max_rows=rows)
    a, b, vector = rig.feed(x), rig.feed(y), rig.vector(weight)
    slots = {
        "rms_norm": rig.op("rms_norm", [a], n, w0=vector, f=[1e-5, 1.0]),
        "layer_norm": rig.op("layer_norm", [a], n, w0=vector, f=[1e-5]),
        "silu_mul": rig.op("silu_mul", [a, b], n),
        "gelu": rig.op("gelu", [a], n),
        "sigmoid": rig.op("sigmoid", [a], n),
        "add": rig.op("add", [a, b], n),
        "mul": rig.op("mul", [a, b], n),
        "slice": rig.op("slice", [a], n - n // 3, arg=[n // 3]),
        "join": rig.op("join", [a, b], 2 * n),
    }
    assert rig.build().step(range(rows)) == 0
    u, v, w = x.astype(np.float64), y.astype(np.float64), weight.astype(np.float64)
    centred = u - u.mean(-1, keepdims=True)
    wanted = {
        "rms_norm": u / np.sqrt(np.square(u).mean(-1, keepdims=True) + 1e-5) * (w + 1),
        "layer_norm": centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5) * w,
        "silu_mul": u / (1 + np.exp(-u)) * v,
        "gelu": u * 0.5 * np.vectorize(math.erfc)(-u / math.sqrt(2)),
        "sigmoid": 1 / (1 + np.exp(-u)),
        "add": u + v,
        "mul": u * v,
        "slice": u[:, n // 3 :],
        "join": np.concatenate([u, v], axis=1),
    }
    for name, slot in slots.items():
        if name == "layer_norm" and n == 1:
            continue  # 0 / 0 in the measure of the error
        assert nmse(rig.slot(slot, rows), wanted[name]) < OP_FLOAT32, name


def test_far_out_gates(isa: str) -> None:
    x = rounded(np.array([[-(2.0**100), -500, -88.5, -20, 0, 20, 88.5, 500, 2.0**100]]))
    rig = Rig(isa)
    a, ones = rig.feed(x), rig.feed(np.ones_like(x))
    out = rig.op("silu_mul", [a, ones], x.shape[1])
    rig.build().step([0])
    found = rig.slot(out, 1)[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[[3, 4, 5, 6, 7, 8]], [-20 / (1 + math.exp(20)), 0, 20, 88.5, 500, 2.0**100], rtol=1e-6)
    assert np.abs(found[:3]).max() < 1e-30


def test_an_instruction_set_is_forced() -> None:
    names = available()
    assert "scalar" in names
    for name in names:
        assert choose_isa(name) == name
    assert choose_isa("") == names[-1] if "neon" not in names else "neon"
    with pytest.raises(NoKernel, match="riscv"):
        choose_isa("riscv")


def broken_steps() -> dict[str, tuple[list[int], list[Run]]]:
    """Steps that name what is not there."""
    return {
        "token below the table": ([-1], [Run(0, 1, [0])]),
        "token beyond the table": ([4], [Run(0, 1, [0])]),
        "too many rows": ([0] * 65, [Run(0, 65, [0, 1, 0])]),
        "beyond the context": ([0], [Run(64, 1, [0, 1, 0])]),
        "page beyond the cache": ([0], [Run(0, 1, [2])]),
        "no page": ([0], [Run(0, 1, [-1])]),
        "too few pages": ([0], [Run(40, 1, [0])]),
        "no rows": ([0], [Run(0, 1, [0]), Run(3, 0, [1])]),
    }


@pytest.mark.parametrize("name", broken_steps())
def test_a_step_that_contradicts_itself_is_refused(name: str) -> None:
    ids, sequences = broken_steps()[name]
    rig = Rig("", threads=2)
    rig.layers, rig.num_pages = [(1, 32, 32)], 2
    slots = [rig.feed(np.zeros((4, 32))) for _ in range(3)]
    rig.op("attend", slots, 32, arg=[0, 32, 0], f=[1.0])
    rig.build()
    assert rig.step([0, 3], [Run(0, 1, [0]), Run(40, 1, [0, 1])], poison=False) == 0
    assert rig.step(ids, sequences, poison=False) == -2


def test_no_logits_wanted(isa: str) -> None:
    """A prompt whose last rows come later wants nothing yet."""
    rig = Rig(isa, threads=2)
    x = rig.feed(np.ones((2, 64)))
    rig.op("linear", [rig.op("rows", [x], 64, wanted=True)], 8, w0=rig.weight(plain(np.ones((8, 64)))), flags=["head"], wanted=True)
    rig.build()
    from khola.native.lib import KhBatch

    arrays = [np.array(a, np.int32) for a in ([0, 1], [0, 1], [0, 2], [2], [0])]
    ids, positions, starts, lengths, pages = (a.ctypes.data for a in arrays)
    batch = KhBatch(num_rows=2, num_sequences=1, num_wanted=0, ids=ids, positions=positions, starts=starts, lengths=lengths, wanted=ids,
                    pages=pages, page_stride=1)  # fmt: skip
    assert library().kh_step(rig.model, None, ctypes.byref(batch)) == 0


def test_many_threads_meet_many_times() -> None:
    """More threads than cores, thousands of barriers, and steps that follow each other at once or after a sleep."""
    import time

    rig = Rig("", threads=5, max_rows=8)
    x = rounded(np.random.default_rng(0).standard_normal((8, 64)))
    slot, weight = rig.feed(x), rig.weight(pack([made("Q8_0", 64, 64)]))
    for _ in range(20):
        slot = rig.op("linear", [slot], 64, w0=weight)
    rig.build()
    assert rig.step(range(8)) == 0
    first = rig.slot(slot, 8)
    for turn in range(20):
        assert rig.step(range(8), poison=False) == 0
        np.testing.assert_array_equal(rig.slot(slot, 8), first)
        if turn % 5 == 0:
            time.sleep(0.002)
