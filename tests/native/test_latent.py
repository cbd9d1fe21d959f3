"""Latent attention: products of heads and attention over latents, in every instruction set, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.errors import NoKernel
from khola.native.pack import Packed, pack
from khola.ops.latent import HeadRows
from khola.ops.native_ops import CacheForm, NativeOps
from khola.ops.vocabulary import CacheSpec, LayerCache
from khola.store.quantise import quantise
from tests.native.rig import PAGE, Raw, Rig, Run, nmse, rounded
from tests.needs import needs_library
from tests.tolerances import EXPERTS_INT8, OP_BFLOAT16

pytestmark = needs_library

Array = NDArray[Any]
SIZES = [(1, 1, 2), (4, 16, 4), (16, 512, 64), (3, 65, 30), (128, 40, 8)]
"""Heads, latent, turned: odd ones, Moonlight's, and as many heads as DeepSeek-V3 has."""


def tokens(length: int, heads: int, latent: int, turned: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows of q, latent and key side by side; scores are about as far apart as a model's."""
    x = np.random.default_rng([seed, length, latent]).standard_normal((length, (heads + 1) * (latent + turned)))
    x[:, : heads * (latent + turned)] *= 1.5
    return rounded(x)


def wanted(x: Array, heads: int, latent: int, turned: int) -> Array:
    """The formula, a head at a time."""
    size = latent + turned
    q, kept = x[:, : heads * size].astype(np.float64).reshape(len(x), heads, size), x[:, heads * size :].astype(np.float64)
    seen = np.arange(len(x))[:, None] >= np.arange(len(x))
    out = np.empty((len(x), heads, latent))
    for head in range(heads):
        scores = np.where(seen, q[:, head] @ kept.T * size**-0.5, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = shares / shares.sum(-1, keepdims=True) @ kept[:, :latent]
    return out.reshape(len(x), -1)


def rig_for(
    isa: str, x: Array, heads: int, latent: int, turned: int, *, threads: int = 1, pages: int = 0, cache: CacheForm = "bf16"
) -> tuple[Rig, int]:
    """A program that attends to latents, and the slot of its result."""
    rig = Rig(isa, threads=threads, max_rows=len(x), max_context=-(-len(x) // PAGE) * PAGE, cache_form=cache)
    rig.layers, rig.num_pages = [(1, latent + turned, 0)], pages or -(-len(x) // PAGE)
    row, queries = rig.feed(x), heads * (latent + turned)
    q = rig.op("slice", [row], queries, arg=[0])
    kept = [rig.op("slice", [row], size, arg=[queries + first]) for first, size in ((0, latent), (latent, turned))]
    out = rig.op("attend_latent", [q, *kept], heads * latent, arg=[0], f=[(latent + turned) ** -0.5])
    return rig.build(), out


def whole(isa: str, x: Array, heads: int, latent: int, turned: int, **facts: Any) -> Array:
    """The prompt in one step."""
    rig, out = rig_for(isa, x, heads, latent, turned, **facts)
    assert rig.step(range(len(x))) == 0
    return rig.slot(out, len(x))


@pytest.mark.parametrize(("heads", "latent", "turned"), SIZES)
def test_prompts(heads: int, latent: int, turned: int, isa: str) -> None:
    for length in (1, 33, 150):
        x = tokens(length, heads, latent, turned)
        assert nmse(whole(isa, x, heads, latent, turned), wanted(x, heads, latent, turned)) < OP_BFLOAT16


@pytest.mark.parametrize(("heads", "latent"), [(3, 48), (16, 24), (64, 8)])
@pytest.mark.parametrize("threads", [1, 3])
def test_tokens_one_by_one_give_the_bits_of_the_prompt(heads: int, latent: int, threads: int, isa: str) -> None:
    """Whatever the step holds, wherever the pages lie, and however threads share a long context."""
    x = tokens(300, heads, latent, 8)
    prompt = whole(isa, x, heads, latent, 8)
    rig, out = rig_for(isa, x, heads, latent, 8, threads=threads)
    for before, rows in ((0, 131), (131, 1), (132, 13), (145, 65), (210, 88), (298, 1), (299, 1)):
        assert rig.step(range(before, before + rows), [Run(before, rows, [3, 5, 7, 9, 0, 1, 2, 4, 6, 8])]) == 0
        np.testing.assert_array_equal(rig.slot(out, rows), prompt[before : before + rows], err_msg=f"{rows} rows after {before}")


def test_what_a_page_held_before_is_not_seen(isa: str) -> None:
    """Pages come back from sequences whose numbers were broken."""
    x, pages = tokens(70, 3, 40, 8), [2, 0, 3]
    rig, out = rig_for(isa, np.concatenate([x, np.full_like(x, np.nan)]), 3, 40, 8, pages=4)
    good = whole(isa, x, 3, 40, 8)
    assert rig.step(range(70, 140), [Run(0, 70, pages)]) == 0
    for first, last in ((0, 69), (69, 70)):
        assert rig.step(range(first, last), [Run(first, last - first, pages)]) == 0
        np.testing.assert_array_equal(rig.slot(out, last - first), good[first:last])


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_row_harms_no_row_before_it(broken: float, isa: str) -> None:
    """A share of zero must not meet a value that is no number: rows of one step look back, never forward."""
    x = tokens(150, 5, 40, 8)
    good = whole(isa, x, 5, 40, 8)
    for at in (149, 131, 70, 3):
        bad = x.copy()
        bad[at, 5 * 48 + 5 :] = broken
        found = whole(isa, bad, 5, 40, 8, threads=2)
        np.testing.assert_array_equal(found[:at], good[:at], err_msg=str(at))
        assert not np.isfinite(found[at]).all()


class Heads:
    """Matrices of some heads in one number format, and rows with inputs for each."""

    def __init__(self, kind: str, heads: int, outputs: int, inputs: int, rows: int) -> None:
        random = np.random.default_rng([heads, outputs, inputs])
        matrices = random.standard_normal((heads, outputs, inputs)).astype(np.float32) * np.float32(inputs**-0.5)
        padded = HeadRows("heads", heads, -(-outputs // 32) * 32, inputs, lambda: matrices).float32()
        self.shape = heads, outputs, inputs
        self.packed: Packed = pack([Raw(kind, padded.shape, bytes(quantise(kind, padded)))])
        self.x, self.tail = (rounded(random.standard_normal((rows, heads * size))) for size in (inputs, 6))

    def rig(self, isa: str, threads: int, tailed: bool, cache: CacheForm = "bf16") -> tuple[Rig, int]:
        """The products as a program, and the slot of their result."""
        heads, outputs, _ = self.shape
        rig = Rig(isa, threads=threads, max_rows=len(self.x), max_context=len(self.x) + 1, cache_form=cache)
        slots = [rig.feed(self.x), rig.feed(self.tail)][: 1 + tailed]
        width = heads * (outputs + 6 * tailed)
        out = rig.op("head_linear", slots, width, w0=rig.weight(self.packed), arg=[heads, outputs])
        return rig.build(), out

    def wanted(self, tailed: bool) -> Array:
        """The formula, with the values that were packed."""
        heads, outputs, inputs = self.shape
        matrices = self.packed.unpacked().astype(np.float64).reshape(heads, -1, inputs)[:, :outputs]
        found = np.einsum("thi,hoi->tho", self.x.astype(np.float64).reshape(-1, heads, inputs), matrices)
        parts = [found, self.tail.reshape(-1, heads, 6)] if tailed else [found]
        return np.concatenate(parts, axis=-1).reshape(len(self.x), -1)


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize(("heads", "outputs", "inputs"), [(1, 32, 32), (3, 40, 96), (5, 1, 128)])
def test_products_of_heads(kind: str, heads: int, outputs: int, inputs: int, isa: str) -> None:
    for rows, tailed in ((1, True), (63, False), (150, True)):
        made = Heads(kind, heads, outputs, inputs, rows)
        for answers in (np.zeros(rows), np.ones(rows), np.arange(rows) % 3 == 1):
            rig, out = made.rig(isa, 2, tailed)
            assert rig.step(range(rows), answers=answers) == 0
            tolerance = OP_BFLOAT16 if kind == "F32" or not np.any(answers) else EXPERTS_INT8
            assert nmse(rig.slot(out, rows), made.wanted(tailed)) < tolerance, rows


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_bits_of_a_row_are_its_own(kind: str, isa: str) -> None:
    """Alone or among others, on one thread or three."""
    made, few = Heads(kind, 3, 40, 96, 90), np.random.default_rng(5).random(90) < 0.5
    crowd = []
    for threads in (1, 3):
        rig, out = made.rig(isa, threads, True)
        assert rig.step(range(90), answers=few) == 0
        crowd.append(rig.slot(out, 90))
    np.testing.assert_array_equal(crowd[0], crowd[1])
    for row in (0, 1, 2, 47, 89):
        assert rig.step([row], answers=few[[row]]) == 0
        np.testing.assert_array_equal(rig.slot(out, 1)[0], crowd[0][row], err_msg=f"row {row}")


def test_latents_are_not_kept_in_codes() -> None:
    spec = CacheSpec((LayerCache(1, 576, 0),))
    assert NativeOps().token_bytes(spec) == 2 * 576
    with pytest.raises(NoKernel, match="bfloat16"):
        NativeOps(cache="int8").new_cache(spec, 1)
