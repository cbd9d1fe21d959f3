"""Attention over pages, in every instruction set, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.native.pack import pack
from khola.ops.native_ops import CacheForm
from tests.native.rig import PAGE, Raw, Rig, Run, nmse, rounded
from tests.needs import needs_library
from tests.tolerances import INT8_CACHE, OP_BFLOAT16, OP_FLOAT32, PRECISE

pytestmark = needs_library

Array = NDArray[Any]
LIMITS = {"bf16": OP_BFLOAT16, "int8": OP_BFLOAT16, "float32": PRECISE}
"""Squared errors against the formula of the numbers that a cache holds; queries and shares are rounded unless it holds float32."""


def tokens(length: int, group: int, heads: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows of q, k and v side by side; scores are about as far apart as a model's."""
    x = np.random.default_rng([seed, length, size]).standard_normal((length, (group + 2) * heads * size))
    x[:, : group * heads * size] *= 1.5
    return rounded(x)


def parts(x: Array, group: int, heads: int, size: int) -> tuple[Array, Array, Array]:
    """q [T, H, E], k and v [T, G, E] in float64."""
    q, k, v = np.split(x.astype(np.float64), [group * heads * size, (group + 1) * heads * size], axis=1)
    return q.reshape(len(x), group * heads, size), k.reshape(len(x), heads, size), v.reshape(len(x), heads, size)


def wanted(x: Array, group: int, heads: int, size: int, window: int) -> Array:
    """The formula, a head at a time."""
    q, k, v = parts(x, group, heads, size)
    past = np.arange(len(x))[:, None] - np.arange(len(x))
    seen = (past >= 0) & ((past < window) if window else True)
    out = np.empty_like(q)
    for head in range(group * heads):
        scores = np.where(seen, q[:, head] @ k[:, head // group].T * size**-0.5, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = shares / shares.sum(-1, keepdims=True) @ v[:, head // group]
    return out.reshape(len(x), -1)


def kept(x: Array, heads: int, size: int, cache: CacheForm) -> Array:
    """The rows as the cache has them: the codes of a key or a value lie in steps of a 127th of its greatest number, rounded to bfloat16."""
    if cache != "int8":
        return x
    width = 2 * heads * size
    numbers = np.asarray(x[:, -width:], np.float32).reshape(len(x), 2 * heads, size)
    scale = rounded(np.abs(numbers).max(-1, keepdims=True) / np.float32(127))
    codes = np.rint(numbers * (np.float32(1) / scale))
    return np.concatenate([x[:, :-width], (codes * scale).reshape(len(x), width)], axis=1)


def rig_for(
    isa: str, x: Array, group: int, heads: int, size: int, *, window: int = 0, threads: int = 1, pages: int = 0, cache: CacheForm = "bf16"
) -> tuple[Rig, int]:
    """A program that attends, and the slot of its result."""
    rig = Rig(isa, threads=threads, max_rows=len(x), max_context=-(-len(x) // PAGE) * PAGE, cache_form=cache)
    rig.layers, rig.num_pages = [(heads, size, size)], pages or -(-len(x) // PAGE)
    row, width = rig.feed(x), heads * size
    q = rig.op("slice", [row], group * width, arg=[0])
    k, v = (rig.op("slice", [row], width, arg=[(group + i) * width]) for i in range(2))
    out = rig.op("attend", [q, k, v], group * width, arg=[0, size, window], f=[size**-0.5])
    return rig.build(), out


def whole(isa: str, x: Array, group: int, heads: int, size: int, **facts: Any) -> Array:
    """The prompt in one step."""
    rig, out = rig_for(isa, x, group, heads, size, **facts)
    assert rig.step(range(len(x))) == 0
    return rig.slot(out, len(x))


@pytest.fixture(params=LIMITS)
def cache(request: pytest.FixtureRequest) -> CacheForm:
    """How the cache keeps numbers."""
    form: CacheForm = request.param
    return form


@pytest.mark.parametrize("size", [64, 80, 96, 128, 256])
@pytest.mark.parametrize(("group", "heads"), [(1, 3), (3, 3), (7, 2), (16, 1)])
def test_prompts(size: int, group: int, heads: int, cache: CacheForm, isa: str) -> None:
    for length in (1, 33, 150):
        x = tokens(length, group, heads, size)
        found = whole(isa, x, group, heads, size, cache=cache)
        assert nmse(found, wanted(kept(x, heads, size, cache), group, heads, size, 0)) < LIMITS[cache]


@pytest.mark.parametrize(("group", "heads", "size"), [(3, 3, 64), (7, 2, 64), (1, 2, 128), (4, 1, 256)])
def test_codes_cost_little_accuracy(group: int, heads: int, size: int, isa: str) -> None:
    """Against the formula of the numbers that were stored, and not of what the cache made of them."""
    for length in (33, 300):
        x = tokens(length, group, heads, size)
        error = nmse(whole(isa, x, group, heads, size, cache="int8"), wanted(x, group, heads, size, 0))
        assert OP_BFLOAT16 < error < INT8_CACHE, length


@pytest.mark.parametrize("group", range(1, 17))
def test_every_group(group: int, cache: CacheForm, isa: str) -> None:
    x = tokens(70, group, 2, 16)
    assert nmse(whole(isa, x, group, 2, 16, cache=cache), wanted(kept(x, 2, 16, cache), group, 2, 16, 0)) < LIMITS[cache]


def test_more_query_heads_than_a_pair_of_tiles_holds(cache: CacheForm, isa: str) -> None:
    x = tokens(40, 71, 1, 64)
    assert nmse(whole(isa, x, 71, 1, 64, cache=cache), wanted(kept(x, 1, 64, cache), 71, 1, 64, 0)) < LIMITS[cache]


@pytest.mark.parametrize("window", [1, 20, 128, 200])
def test_windows(window: int, cache: CacheForm, isa: str) -> None:
    x = tokens(300, 4, 2, 64)
    found = whole(isa, x, 4, 2, 64, window=window, threads=2, cache=cache)
    assert nmse(found, wanted(kept(x, 2, 64, cache), 4, 2, 64, window)) < LIMITS[cache]


def test_pages_behind_a_window_may_be_gone(cache: CacheForm, isa: str) -> None:
    x = tokens(300, 4, 2, 64)
    rig, out = rig_for(isa, x, 4, 2, 64, window=40, cache=cache)
    rig.step(range(299), [Run(0, 299, list(range(10)))])
    assert rig.step([299], [Run(299, 1, [-1] * 8 + [8, 9])]) == 0
    np.testing.assert_array_equal(rig.slot(out, 1)[0], whole(isa, x, 4, 2, 64, window=40, cache=cache)[299])


@pytest.mark.parametrize(("group", "heads"), [(3, 3), (7, 2), (1, 1)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_tokens_one_by_one_give_the_bits_of_the_prompt(group: int, heads: int, threads: int, cache: CacheForm, isa: str) -> None:
    """Whatever the step holds, and however threads share a long context."""
    x = tokens(300, group, heads, 64)
    prompt = whole(isa, x, group, heads, 64, cache=cache)
    rig, out = rig_for(isa, x, group, heads, 64, threads=threads, cache=cache)
    pages = [3, 5, 7, 9, 0, 1, 2, 4, 6, 8]
    for before, rows in ((0, 130), (130, 1), (131, 14), (145, 65), (210, 88), (298, 1), (299, 1)):
        assert rig.step(range(before, before + rows), [Run(before, rows, pages)]) == 0
        np.testing.assert_array_equal(rig.slot(out, rows), prompt[before : before + rows], err_msg=f"{rows} rows after {before}")


@pytest.mark.parametrize("threads", [1, 2])
def test_sequences_do_not_see_each_other(threads: int, cache: CacheForm, isa: str) -> None:
    group, heads, size = 3, 2, 64
    lengths = [1, 260, 45, 33]
    prompts = [tokens(length, group, heads, size, seed) for seed, length in enumerate(lengths)]
    alone = [whole(isa, x, group, heads, size, cache=cache) for x in prompts]
    rig, out = rig_for(isa, np.concatenate(prompts), group, heads, size, threads=threads, pages=20, cache=cache)
    free = iter(np.random.default_rng(0).permutation(20).tolist())
    pages = [[next(free) for _ in range(-(-length // PAGE))] for length in lengths]
    firsts = np.cumsum([0, *lengths])
    last = [1, 1, 3, 2]
    for part in ("prompts", "ends"):
        sequences, ids = [], []
        for i, (length, ending) in enumerate(zip(lengths, last, strict=True)):
            before, rows = (0, length - ending) if part == "prompts" else (length - ending, ending)
            if rows:
                sequences.append(Run(before, rows, pages[i]))
                ids += list(range(firsts[i] + before, firsts[i] + before + rows))
        assert rig.step(ids, sequences) == 0
        found = rig.slot(out, len(ids))
    for i, (_, ending) in enumerate(zip(lengths, last, strict=True)):
        np.testing.assert_array_equal(found[sum(last[:i]) : sum(last[: i + 1])], alone[i][-ending:])


def test_what_a_page_held_before_is_not_seen(cache: CacheForm, isa: str) -> None:
    """Pages come back from sequences whose numbers were broken."""
    x = tokens(70, 2, 2, 80)
    broken = np.full_like(x, np.nan)
    rig, out = rig_for(isa, np.concatenate([x, broken]), 2, 2, 80, pages=4, cache=cache)
    pages = [Run(0, 70, [2, 0, 3])]
    assert rig.step(range(70, 140), [Run(0, 70, [2, 0, 3])]) == 0
    assert rig.step(range(69), [Run(0, 69, pages[0].pages)]) == 0
    np.testing.assert_array_equal(rig.slot(out, 69), whole(isa, x, 2, 2, 80, cache=cache)[:69])
    assert rig.step([69], [Run(69, 1, pages[0].pages)]) == 0
    np.testing.assert_array_equal(rig.slot(out, 1)[0], whole(isa, x, 2, 2, 80, cache=cache)[69])


@pytest.mark.parametrize("broken", [np.nan, *(pytest.param(broken, marks=pytest.mark.slow) for broken in (np.inf, -np.inf))])
@pytest.mark.parametrize(("group", "heads"), [(1, 2), (3, 3), (16, 1), (40, 1)])
def test_a_broken_row_harms_no_row_before_it(group: int, heads: int, broken: float, cache: CacheForm, isa: str) -> None:
    """A share of zero must not meet a value that is no number: rows of one step look back, never forward."""
    size, length = 48, 150
    x = tokens(length, group, heads, size)
    undamaged = {window: whole(isa, x, group, heads, size, window=window, cache=cache) for window in (0, 40)}
    for at, before in ((149, 0), (131, 0), (70, 0), (33, 30), (3, 0), (96, 95)):
        bad = x.copy()
        bad[at, group * heads * size + 5 :] = broken
        for window, clean in undamaged.items():
            rig, out = rig_for(isa, bad, group, heads, size, threads=2, window=window, cache=cache)
            pages = list(range(5))
            if before:
                assert rig.step(range(before), [Run(0, before, pages)]) == 0
            assert rig.step(range(before, length), [Run(before, length - before, pages)]) == 0
            found = rig.slot(out, length - before)
            np.testing.assert_array_equal(found[: at - before], clean[before:at], err_msg=f"{at} {window}")
            assert not np.isfinite(found[at - before]).all()
            if window:
                np.testing.assert_array_equal(found[at - before + window :], clean[at + window :], err_msg=f"behind {at}")


@pytest.mark.parametrize("what", ["key", "value"])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_broken_number_shows_in_its_own_head_alone(broken: float, what: str, isa: str) -> None:
    """The scale of its token and head is no number: rows that look at it are none either, and other heads are what they were."""
    group, heads, size, at = 2, 3, 40, 70
    x = tokens(150, group, heads, size)
    bad = x.copy()
    bad[at, ((group if what == "key" else group + 1) * heads + 1) * size + 7] = broken
    good, found = (whole(isa, rows, group, heads, size, cache="int8").reshape(150, heads, -1) for rows in (x, bad))
    np.testing.assert_array_equal(found[:, [0, 2]], good[:, [0, 2]])
    np.testing.assert_array_equal(found[:at, 1], good[:at, 1])
    assert np.isnan(found[at:, 1]).all()


@pytest.mark.parametrize("source", ["bias", "bias, turned on its own", "norm"])
def test_a_few_large_inputs_of_keys_do_not_hide_the_others(source: str, isa: str) -> None:
    """Where weights tell which inputs are large, a hundred times in some models, these have steps of their own."""
    group, heads, size, length = 2, 2, 64, 150
    x = tokens(length, group, heads, size)
    width, keys = heads * size, slice(group * heads * size, (group + 1) * heads * size)
    large = np.zeros((heads, size), np.float32)
    large[0, [29, 31]], large[1, [5, 40]] = (120, -90), (-60, 30)
    if source == "norm":
        large[1] = large[0]
    # Keys of a usual size. The large inputs have coarse codes; what queries ask of them counts little here, so that the others decide.
    x[:, keys] *= 4
    queries = x[:, : group * heads * size].reshape(length, heads, group, size)
    queries *= np.where(large, np.float32(1 / 64), np.float32(1 / 4))[:, None]
    rig = Rig(isa, threads=2, max_rows=length, max_context=160, cache_form="int8")
    rig.layers, rig.num_pages = [(heads, size, size)], 5
    rope = rig.rope(np.zeros(size // 2))
    row = rig.feed(x)
    exact = x.astype(np.float64)
    if source == "norm":
        weight = 1 + np.abs(large[0])
        k = exact[:, keys].reshape(length, heads, size)
        exact[:, keys] = (k / np.sqrt(np.square(k).mean(-1, keepdims=True)) * weight).reshape(length, width)
    else:
        bias = np.zeros(x.shape[1], np.float32)
        bias[keys] = large.ravel()
        exact += bias
        identity = np.eye(x.shape[1], dtype=np.float32)
        row = rig.op("linear", [row], x.shape[1], w0=rig.weight(pack([Raw("F32", identity.shape, identity.tobytes())], [bias])))
    if source == "bias":
        q = rig.op("rotate_store", [row], group * width, w1=rope, arg=[0, size, group * heads, heads])
        out = rig.op("attend_stored", [q], group * width, arg=[0, size, 0], f=[size**-0.5])
    else:
        q = rig.op("slice", [row], group * width, arg=[0])
        k, v = (rig.op("slice", [row], width, arg=[(group + i) * width]) for i in range(2))
        k = rig.op("rms_norm", [k], width, w0=rig.vector(weight), arg=[size]) if source == "norm" else k
        out = rig.op("attend", [q, rig.op("rotate", [k], width, arg=[rope, size]), v], group * width, arg=[0, size, 0], f=[size**-0.5])
    assert rig.build().step(range(length), answers=np.zeros(length)) == 0
    right = wanted(exact, group, heads, size, 0)
    assert nmse(rig.slot(out, length), right) < 4 * INT8_CACHE
    assert nmse(wanted(kept(exact, heads, size, "int8"), group, heads, size, 0), right) > 20 * INT8_CACHE


@pytest.mark.parametrize("greatest", [0.0, 2.0**-140, 2.0**-125, 2.0**-100, 2.0**60])
def test_numbers_of_any_size(greatest: float, isa: str) -> None:
    """Of a token whose value is nothing, or nearly so, nothing is left; otherwise the size plays no part."""
    x = tokens(40, 1, 1, 32)
    x[:, 64:] = rounded(x[:, 64:] / np.abs(x[:, 64:]).max(-1, keepdims=True) * greatest)
    found, exact = whole(isa, x, 1, 1, 32, cache="int8"), wanted(x, 1, 1, 32, 0)
    if greatest >= 2.0**-100:
        assert nmse(found / greatest, exact / greatest) < INT8_CACHE
    else:
        assert np.isfinite(found).all()
        assert np.abs(found).max() <= greatest


@pytest.mark.parametrize(("size", "rotated"), [(64, 64), (80, 32), (96, 96)])
def test_turned_and_stored_in_one_pass(size: int, rotated: int, cache: CacheForm, isa: str) -> None:
    """The fused pass gives the bits of slices, turns and attention one after another."""
    group, heads, length = 3, 2, 50
    x = tokens(length, group, heads, size)
    frequencies = 10000.0 ** -(np.arange(rotated // 2) / (rotated // 2))
    plain, fused = (Rig(isa, threads=2, max_rows=length, cache_form=cache) for _ in range(2))
    width = heads * size
    for rig in (plain, fused):
        rig.layers, rig.num_pages = [(heads, size, size)], 2
        rig.rope(frequencies)
    row = plain.feed(x)
    q, k, v = (plain.op("slice", [row], w * width, arg=[at * width]) for w, at in ((group, 0), (1, group), (1, group + 1)))
    turned = [plain.op("rotate", [slot], w * width, arg=[0, size]) for slot, w in ((q, group), (k, 1))]
    first = plain.op("attend", [*turned, v], group * width, arg=[0, size, 0], f=[size**-0.5])
    query = fused.op("rotate_store", [fused.feed(x)], group * width, w1=0, arg=[0, size, group * heads, heads])
    second = fused.op("attend_stored", [query], group * width, arg=[0, size, 0], f=[size**-0.5])
    for rig in (plain.build(), fused.build()):
        assert rig.step(range(length)) == 0
    np.testing.assert_array_equal(plain.slot(first, length), fused.slot(second, length))
    angles = np.arange(length)[:, None] * frequencies.astype(np.float32).astype(np.float64)
    heads_of = plain.slot(turned[0], length).reshape(length, -1, size)
    left, right = (part.reshape(length, -1, size).astype(np.float64) for part in (x[:, : group * width],) * 2)
    half = rotated // 2
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    np.testing.assert_array_equal(heads_of[..., rotated:], left[..., rotated:])
    assert nmse(heads_of[..., :half], left[..., :half] * cosine - right[..., half:rotated] * sine) < OP_FLOAT32
    assert nmse(heads_of[..., half:rotated], left[..., half:rotated] * cosine + right[..., :half] * sine) < OP_FLOAT32


def test_a_planted_fault_is_seen(cache: CacheForm, isa: str) -> None:
    """The limit tells a right mask from one that is off by one."""
    x = tokens(150, 2, 2, 64)
    assert nmse(whole(isa, x, 2, 2, 64, cache=cache), wanted(kept(x, 2, 64, cache), 2, 2, 64, 149)) > OP_BFLOAT16
