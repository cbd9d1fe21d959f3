"""Kernels that round nothing but sums, in every instruction set they are compiled for, against float64; attention: see test_attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.native.lib import CACHE_FORMS
from khola.native.pack import Packed, pack
from khola.ops.native_ops import NativeOps
from khola.ops.vocabulary import CacheSpec, LayerCache
from tests.native import test_attention, test_latent
from tests.native.made_blocks import KINDS_PACKED, PLAIN, made
from tests.native.rig import nmse
from tests.native.test_experts import KINDS, Mixture
from tests.native.test_latent import Heads
from tests.native.test_models import CONFIGS, LIMITS, PROMPT, one, reference
from tests.native.test_models import made as made_model
from tests.native.test_products import FORMS, JOINED, check_epilogues, form, inputs, off, product
from tests.needs import needs_library
from tests.tolerances import PRECISE, PRECISE_LOGITS

pytestmark = needs_library

Array = NDArray[Any]


def precise(isa: str, packed: Packed, x: Array, **facts: Any) -> Array:
    """Rows of x times the matrix."""
    return product(isa, packed, x, cache="float32", **facts)


@pytest.mark.parametrize("name", [*FORMS, *JOINED])
def test_every_form(name: str, precise_isa: str) -> None:
    """Also: a row has the same bits alone and among others, as one of a prompt or of an answer, on one thread or three."""
    packed, x = form(name, 96, 256), inputs(300, 256)
    values = packed.unpacked().astype(np.float64)
    whole = precise(precise_isa, packed, x, threads=3, maxima=True, answers=np.arange(300) % 2)
    assert off(whole, x, values) < PRECISE
    for rows in (1, 2, 3, 4, 5, 7, 9, 16, 33):
        np.testing.assert_array_equal(precise(precise_isa, packed, x[-rows:], answers=np.zeros(rows)), whole[-rows:], err_msg=str(rows))


@pytest.mark.parametrize("kind", KINDS_PACKED)
@pytest.mark.parametrize(("n", "k"), [(1, 256), (49, 256), (130, 768)])
def test_odd_shapes(kind: str, n: int, k: int, precise_isa: str) -> None:
    k = k if kind not in PLAIN else k - 51
    packed, x = pack([made(kind, n, k)]), inputs(18, k)
    assert off(precise(precise_isa, packed, x, maxima=True), x, packed.unpacked().astype(np.float64)) < PRECISE


@pytest.mark.parametrize("rows", [1, 20])
def test_epilogues(rows: int, precise_isa: str) -> None:
    check_epilogues(precise_isa, rows, PRECISE, "float32")


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_none(strange: float, precise_isa: str) -> None:
    packed, x = form("4", 40, 128), inputs(20, 128)
    good = precise(precise_isa, packed, x)
    x[7, 77] = strange
    found = precise(precise_isa, packed, x)
    assert not np.isfinite(found[7]).any()
    np.testing.assert_array_equal(np.delete(found, 7, 0), np.delete(good, 7, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_experts(kind: str, precise_isa: str) -> None:
    mixture = Mixture(kind, 200)
    rig, out = mixture.rig(precise_isa, 2, "float32")
    assert rig.step(range(200), answers=np.arange(200) % 3 == 1) == 0
    crowd = rig.slot(out, 200)
    assert nmse(crowd, mixture.wanted()) < PRECISE
    for row in (0, 3, 199):
        assert rig.step([row]) == 0
        np.testing.assert_array_equal(rig.slot(out, 1)[0], crowd[row], err_msg=str(row))


@pytest.mark.parametrize(("heads", "outputs", "inputs"), [(1, 32, 32), (3, 40, 96), (5, 1, 128)])
def test_products_of_heads(heads: int, outputs: int, inputs: int, precise_isa: str) -> None:
    for rows, tailed in ((1, True), (63, False)):
        made_heads = Heads("Q8_0", heads, outputs, inputs, rows)
        rig, out = made_heads.rig(precise_isa, 2, tailed, "float32")
        assert rig.step(range(rows), answers=np.arange(rows) % 2) == 0
        assert nmse(rig.slot(out, rows), made_heads.wanted(tailed)) < PRECISE


@pytest.mark.parametrize(("heads", "latent", "turned"), [(1, 1, 2), (3, 65, 30), (16, 512, 64)])
def test_latents(heads: int, latent: int, turned: int, precise_isa: str) -> None:
    x = test_latent.tokens(150, heads, latent, turned)
    found = test_latent.whole(precise_isa, x, heads, latent, turned, threads=2, cache="float32")
    assert nmse(found, test_latent.wanted(x, heads, latent, turned)) < PRECISE


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_models(name: str, kind: str, precise_isa: str) -> None:
    """The whole prompt at once and in short steps, which give the same bits; as numpy has it."""
    model, wanted = made_model(name, kind), reference(name, kind)
    program, cache = model.native(precise_isa, kept="float32")
    whole = program(model.ids, one(cache, 0, PROMPT, list(range(PROMPT))))
    assert nmse(whole, wanted) < PRECISE_LOGITS
    for before in range(0, PROMPT, 11):
        ids = model.ids[before : before + 11]
        found = program(ids, one(cache, before, len(ids), list(range(len(ids))), answer=before % 2 == 1))
        np.testing.assert_array_equal(found, whole[before : before + 11], err_msg=str(before))


@pytest.mark.parametrize("cache", CACHE_FORMS)
def test_a_cache_of_other_numbers_is_refused(cache: str) -> None:
    """A program writes and reads pages in its own form; those of others are of another size."""
    x = test_attention.tokens(3, 1, 1, 32)
    for mine in CACHE_FORMS:
        rig, _ = test_attention.rig_for("", x, 1, 1, 32, cache=mine)
        other, _ = test_attention.rig_for("", x, 1, 1, 32, cache=cache)
        rig.cache, other.cache = other.cache, rig.cache
        assert (rig.step(range(3)) == 0) == ((mine == "float32") == (cache == "float32"))


def test_numbers_of_float32_take_four_bytes() -> None:
    spec = CacheSpec((LayerCache(2, 64, 32), LayerCache(1, 576, 0)))
    assert NativeOps(cache="float32").token_bytes(spec) == 4 * (2 * (64 + 32) + 576)


def test_a_planted_fault_is_seen(precise_isa: str) -> None:
    """One input in the wrong place is seen, and so is one that was rounded."""
    packed, x = form("4", 64, 256), inputs(6, 256)
    values = packed.unpacked().astype(np.float64)
    off_by_one = x.copy()
    off_by_one[:, 100] = x[:, 101]
    assert off(precise(precise_isa, packed, off_by_one), x, values) > PRECISE
    assert off(product(precise_isa, packed, x, answers=np.zeros(6)), x, values) > PRECISE
