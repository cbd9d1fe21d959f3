"""Every op of every interpreter against its formula in float64, at odd sizes, with unwritten memory full of NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from khola.errors import AskedWrong, OurFault
from khola.ops.latent import LatentSizes, TwoUps, key_matrices, value_matrices
from khola.ops.numpy_latent import absorbed, expanded
from khola.ops.numpy_ops import NumpyOps
from khola.ops.vocabulary import PAGE_TOKENS, CacheSpec, Interpreter, LayerCache, Rope, Routing, Step, Weight, whole_sequences
from tests.models.stored import Plain
from tests.ops import formulas
from tests.tolerances import EXPERTS_BFLOAT16, LATENT_BFLOAT16, OP_BFLOAT16, OP_FLOAT32, OP_FLOAT64

SIZES = (1, 63, 1000)


def torch_ops(dtype: str) -> Any:
    from khola.ops.torch_ops import TorchOps

    return TorchOps(dtype=dtype)


INTERPRETERS: dict[str, tuple[Callable[[], Any], float]] = {
    "numpy-float32": (NumpyOps, OP_FLOAT32),
    "numpy-float64": (lambda: NumpyOps(dtype="float64"), OP_FLOAT64),
    "torch-float32": (lambda: torch_ops("float32"), OP_FLOAT32),
    "torch-float64": (lambda: torch_ops("float64"), OP_FLOAT64),
    "torch-bfloat16": (lambda: torch_ops("bfloat16"), OP_BFLOAT16),
}
BY_TORCH = [pytest.mark.parity]


class Case:
    """One interpreter: its values are made from float64 arrays, rounded first, so that all start from the same numbers."""

    def __init__(self, name: str) -> None:
        make, self.tolerance = INTERPRETERS[name]
        self.ops: Interpreter = make()
        self.dtype = name.split("-")[1]
        self.rng = np.random.default_rng(7)

    def array(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        """Random numbers that the interpreter's dtype can hold exactly."""
        wide = self.rng.standard_normal(shape) * scale
        if self.dtype == "bfloat16":
            bits = (wide.astype(np.float32).view(np.uint32) + 0x8000) & 0xFFFF0000
            return bits.astype(np.uint32).view(np.float32).astype(np.float64)
        return wide.astype(self.dtype).astype(np.float64)

    def value(self, array: np.ndarray) -> Any:
        """A float64 array as the interpreter's own."""
        if self.ops.name == "torch":
            import torch

            return torch.tensor(array, dtype=self.ops.dtype)
        return array.astype(self.dtype)

    def weight(self, array: np.ndarray, bias: np.ndarray | None = None) -> Weight:
        """A named weight."""
        return Weight("w", self.value(array), None if bias is None else self.value(bias))

    def check(self, got: Any, want: np.ndarray) -> None:
        """The value is the wanted one, to the tolerance of its dtype."""
        found = got.detach().double().numpy() if self.ops.name == "torch" else got
        if self.ops.name == "numpy":
            assert found.dtype == self.dtype, "an array of another dtype slipped in"
        assert found.shape == want.shape
        assert np.isfinite(found).all()
        error = float(np.sum((found - want) ** 2) / max(float(np.sum(want**2)), 1e-300))
        assert error <= self.tolerance, f"NMSE {error:.2e}"


@pytest.fixture(params=[pytest.param(name, marks=BY_TORCH if "torch" in name else []) for name in INTERPRETERS])
def case(request: pytest.FixtureRequest) -> Case:
    """Every interpreter and dtype."""
    return Case(request.param)


@pytest.mark.parametrize("width", SIZES)
def test_norms(case: Case, width: int) -> None:
    x, weight, bias = case.array(5, width, scale=3.0), case.array(width), case.array(width)
    case.check(case.ops.rms_norm(case.value(x), case.weight(weight), 1e-5), formulas.rms_norm(x, weight, 1e-5))
    got = case.ops.rms_norm(case.value(x.reshape(5, 1, width)), case.weight(weight), 1e-6, plus_one=True)
    case.check(got, formulas.rms_norm(x.reshape(5, 1, width), weight, 1e-6, plus_one=True))
    if width > 1:
        case.check(case.ops.layer_norm(case.value(x), case.weight(weight, bias), 1e-5), formulas.layer_norm(x, weight, bias, 1e-5))
        case.check(case.ops.layer_norm(case.value(x), case.weight(weight), 1e-5), formulas.layer_norm(x, weight, None, 1e-5))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 63, 65])
@pytest.mark.parametrize("width", SIZES)
def test_linear_on_every_road(case: Case, rows: int, width: int) -> None:
    x, weight, bias = case.array(rows, width), case.array(63, width), case.array(63)
    case.check(case.ops.linear(case.value(x), case.weight(weight, bias)), formulas.linear(x, weight, bias))
    case.check(case.ops.linear(case.value(x), case.weight(weight)), formulas.linear(x, weight, None))


@pytest.mark.parametrize("size", SIZES)
def test_elementwise(case: Case, size: int) -> None:
    x, up = case.array(2, size, scale=4.0), case.array(2, size)
    case.check(case.ops.silu_mul(case.value(x), case.value(up)), formulas.silu_mul(x, up))
    case.check(case.ops.sigmoid(case.value(x)), formulas.sigmoid(x))
    case.check(case.ops.gelu(case.value(x)), formulas.gelu(x))


def test_far_values_neither_overflow_nor_warn(case: Case) -> None:
    x = np.array([[-1e4, -200.0, -88.0, 0.0, 88.0, 200.0, 1e4]])
    ones = case.value(np.ones_like(x))
    for got in (case.ops.silu_mul(case.value(x), ones), case.ops.gelu(case.value(x))):
        array = case.ops.to_numpy(got)
        assert np.isfinite(array).all() and abs(array[0, 0]) < 1e-30 and abs(array[0, -1] - 1e4) < 50
    assert case.ops.to_numpy(case.ops.sigmoid(case.value(x)))[0].tolist()[::6] == [0.0, 1.0]


def test_views(case: Case) -> None:
    x = case.array(4, 12)
    heads = case.ops.heads(case.value(x), 3)
    case.check(heads, x.reshape(4, 4, 3))
    case.check(case.ops.flat(heads), x)
    parts = case.ops.split(case.value(x), (1, 8, 3))
    for part, (first, last) in zip(parts, ((0, 1), (1, 9), (9, 12)), strict=True):
        case.check(part, x[:, first:last])
    with pytest.raises(OurFault):
        case.ops.split(case.value(x), (1, 8))
    step = whole_sequences([3, 1], rows=[2, 3])
    case.check(case.ops.rows(case.value(x), step), x[[2, 3]])
    case.check(case.ops.join(case.value(x), case.value(x[:, 3:])), np.concatenate([x, x[:, 3:]], axis=1))
    ids = np.array([3, 0, 3])
    case.check(case.ops.embed(ids, case.weight(x)), x[ids])
    for wrong in ([-1], [0, 4]):
        with pytest.raises(OurFault, match=f"token id {wrong[-1]} is not in a vocabulary of 4"):
            case.ops.embed(np.array(wrong), case.weight(x))


def test_what_is_kept_is_found(case: Case) -> None:
    x = case.array(4, 12).astype(np.float32)
    step = replace(whole_sequences([3, 1]), kept_TD=np.full((4, 12), np.nan, np.float32))
    case.ops.keep(case.value(x), step)
    case.check(case.ops.kept(12, step), x)
    case.ops.keep(case.value(x), whole_sequences([3, 1]))
    for width, wrong in ((11, step), (12, whole_sequences([3, 1])), (12, replace(step, positions_T=step.positions_T[:3]))):
        with pytest.raises(OurFault, match="lacks their hidden states"):
            case.ops.kept(width, wrong)


@pytest.mark.parametrize(("size", "width"), [(2, 2), (64, 64), (30, 10)])
def test_rotate(case: Case, size: int, width: int) -> None:
    rope = Rope(tuple(np.geomspace(1, 1e-4, width // 2).astype(np.float32).tolist()), 1.1386)
    positions = np.array([0, 1, 1000, 7, 300])
    step = Step(positions.astype(np.int32), np.array([0, 5], np.int32), np.array([5], np.int32), np.arange(5, dtype=np.int32))
    x = case.array(5, 3, size)
    want = formulas.rotate(x, positions, np.array(rope.frequencies), rope.factor)
    case.check(case.ops.rotate(case.value(x), step, rope), want)
    case.check(case.ops.rotate(case.value(x[:, :1]), step, rope), want[:, :1])
    other = Step(positions.astype(np.int32) * 2, step.starts_S1, step.lengths_S, step.rows_R)
    case.check(case.ops.rotate(case.value(x), other, rope), formulas.rotate(x, positions * 2, np.array(rope.frequencies), rope.factor))


@pytest.mark.parametrize("window", [None, 1, 8, 100])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(1, 1, 1), (6, 2, 63), (4, 4, 8)])
def test_attention_without_a_cache(case: Case, heads: int, key_heads: int, size: int, window: int | None) -> None:
    for lengths in ([1], [9, 1, 33], [4, 4]):
        rows = sum(lengths)
        q, k, v = case.array(rows, heads, size), case.array(rows, key_heads, size), case.array(rows, key_heads, size)
        step = whole_sequences(lengths)
        want, first = np.empty_like(q), 0
        for length in lengths:
            mine = slice(first, first + length)
            want[mine] = formulas.attend(q[mine], k[mine], v[mine], 0.3, window)
            first += length
        case.check(case.ops.attend(case.value(q), case.value(k), case.value(v), step, 0, 0.3, window), want)


ROUTINGS = {
    "softmax, normalised": Routing(chosen=2),
    "softmax": Routing(chosen=3, normalised=False),
    "all": Routing(chosen=12),
    "sigmoid in groups": Routing(chosen=3, score="sigmoid", groups=4, kept_groups=2, scale=2.5),
    "every group its own": Routing(chosen=1, groups=12, kept_groups=5, normalised=False),
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=list(ROUTINGS))
@pytest.mark.parametrize(("rows", "width", "inner"), [(1, 16, 8), (63, 16, 8), (300, 63, 5)])
def test_experts(case: Case, rows: int, width: int, inner: int, routing: Routing, biased: bool) -> None:
    """Twelve experts, of which some get many rows and some none."""
    x, router = case.array(rows, width), case.array(12, width, scale=width**-0.5)
    bias = case.array(12, scale=0.1) if biased else None
    gate, up, down = case.array(12, inner, width), case.array(12, inner, width), case.array(12, width, inner)
    routes = case.ops.route(case.value(x), case.weight(router, bias), routing)
    want = formulas.route(x @ router.T, bias, routing)
    case.check(routes.shares_TC, np.array([[want[row][int(expert)] for expert in chosen] for row, chosen in enumerate(routes.ids_TC)]))
    case.tolerance = EXPERTS_BFLOAT16 if case.dtype == "bfloat16" else case.tolerance
    got = case.ops.experts(case.value(x), routes, *(case.weight(weight) for weight in (gate, up, down)))
    case.check(got, formulas.experts(x, want, gate, up, down))


def planes(cache: Any) -> list[Any]:
    """All planes of an interpreter's cache."""
    return [*cache.keys, *cache.values]


def poisoned(ops: Interpreter, spec: CacheSpec, num_pages: int) -> Any:
    """A cache whose unwritten memory is NaN."""
    cache = ops.new_cache(spec, num_pages)
    for plane in planes(cache):
        plane[:] = float("nan")
    return cache


@pytest.mark.parametrize("window", [None, 1, 40, 1000])
@pytest.mark.parametrize("shuffled", [False, True])
def test_attention_through_pages(case: Case, window: int | None, shuffled: bool) -> None:
    """Three sequences grow by random chunks; what each row sees is compared after every step, on two layers."""
    heads, key_heads, size, lengths = 6, 2, 16, (75, 40, 33)
    cache = poisoned(case.ops, CacheSpec((LayerCache(key_heads, size, size),) * 2), 12)
    q = [case.array(n, heads, size) for n in lengths]
    k, v = ([case.array(n, key_heads, size) for n in lengths] for _ in "kv")
    for step, chosen, spans in growing(lengths, cache, shuffled):
        rows = [np.concatenate([x[s][span] for s, span in zip(chosen, spans, strict=True)]) for x in (q, k, v)]
        want = np.concatenate(
            [formulas.attend(q[s][p], k[s][: p.stop], v[s][: p.stop], 0.25, window) for s, p in zip(chosen, spans, strict=True)]
        )
        for layer in (1, 0):
            case.check(case.ops.attend(*(case.value(x) for x in rows), step, layer, 0.25, window), want)


def growing(lengths: tuple[int, ...], cache: Any, shuffled: bool) -> Iterator[tuple[Step, list[int], list[slice]]]:
    """Steps in which sequences grow by random chunks; which sequences, and which of their positions."""
    rng = np.random.default_rng(3)
    tables = rng.permutation(12).reshape(3, 4) if shuffled else np.arange(12).reshape(3, 4)
    pages = np.where(np.arange(4) * PAGE_TOKENS < np.array(lengths)[:, None], tables, -1).astype(np.int32)
    done = [0, 0, 0]
    while any(at < n for at, n in zip(done, lengths, strict=True)):
        taken = [min(n - at, int(rng.choice([1, 1, 2, 31]))) for at, n in zip(done, lengths, strict=True)]
        chosen = [s for s in range(3) if taken[s]]
        spans = [slice(done[s], done[s] + taken[s]) for s in chosen]
        yield (
            Step(
                np.concatenate([np.arange(span.start, span.stop) for span in spans]).astype(np.int32),
                np.cumsum([0, *(taken[s] for s in chosen)]).astype(np.int32),
                np.array([span.stop for span in spans], np.int32),
                np.array([0], np.int32),
                pages[chosen],
                cache,
            ),
            chosen,
            spans,
        )
        for s in chosen:
            done[s] += taken[s]


class Latents:
    """Random arguments of a latent attention of one sequence."""

    def __init__(self, case: Case, sizes: LatentSizes, rows: int, up: Any = None) -> None:
        heads, plain, turned, latent, value = sizes
        case.tolerance = LATENT_BFLOAT16 if case.dtype == "bfloat16" else case.tolerance
        self.arrays = case.array(rows, heads, plain), case.array(rows, heads, turned), case.array(rows, latent), case.array(rows, turned)
        self.up = case.array(heads * (plain + value), latent, scale=latent**-0.5) if up is None else up

    def wanted(self, span: slice) -> np.ndarray:
        """What its rows mix."""
        q, turned, latent, key = self.arrays
        return formulas.attend_latent(q[span], turned[span], latent[: span.stop], key[: span.stop], self.up, 0.3)


@pytest.mark.parametrize("sizes", [LatentSizes(1, 1, 2, 1, 1), LatentSizes(3, 7, 4, 9, 5)])
def test_latent_attention_without_a_cache(case: Case, sizes: LatentSizes) -> None:
    for lengths in ([1], [9, 1, 33], [4, 4]):
        parts = [Latents(case, sizes, lengths[0])]
        parts += [Latents(case, sizes, length, parts[0].up) for length in lengths[1:]]
        arrays = [case.value(np.concatenate(arrays)) for arrays in zip(*(part.arrays for part in parts), strict=True)]
        got = case.ops.attend_latent(*arrays, case.weight(parts[0].up), whole_sequences(lengths), 0, 0.3)
        case.check(got, np.concatenate([part.wanted(slice(0, n)) for part, n in zip(parts, lengths, strict=True)]))


@pytest.mark.parametrize("shuffled", [False, True])
def test_latent_attention_through_pages(case: Case, shuffled: bool) -> None:
    """Only latents and rotated keys are kept; chunks large and small take both forms, and decoding the absorbed one."""
    sizes, lengths = LatentSizes(heads=3, plain=7, turned=4, latent=9, value=5), (75, 40, 33)
    cache = poisoned(case.ops, CacheSpec((LayerCache(1, sizes.latent + sizes.turned, 0),) * 2), 12)
    parts = [Latents(case, sizes, lengths[0])]
    parts += [Latents(case, sizes, length, parts[0].up) for length in lengths[1:]]
    forms = set()
    for step, chosen, spans in growing(lengths, cache, shuffled):
        forms |= {sizes.absorbs(p.stop - p.start, p.stop) for p in spans}
        together = list(zip(chosen, spans, strict=True))
        arrays = [case.value(np.concatenate([parts[s].arrays[place][p] for s, p in together])) for place in range(4)]
        want = np.concatenate([parts[s].wanted(p) for s, p in together])
        for layer in (1, 0):
            case.check(case.ops.attend_latent(*arrays, case.weight(parts[0].up), step, layer, 0.3), want)
    assert forms == {False, True}


@pytest.mark.parametrize(("rows", "seen"), [(1, 1), (1, 500), (63, 63), (63, 200)])
def test_both_forms_of_latent_attention_are_equal(rows: int, seen: int) -> None:
    """With the sizes of DeepSeek's models, in float32."""
    sizes, random = LatentSizes(heads=4, plain=128, turned=64, latent=512, value=128), np.random.default_rng(3)
    shapes = ((rows, 4, 128), (rows, 4, 64), (seen, 576), (4 * 256, 512))
    q, turned, kept, up = (random.standard_normal(shape, np.float32) for shape in shapes)
    arguments = (q, turned, kept, up / np.float32(512**0.5), sizes, 192**-0.5)
    one, other = absorbed(*arguments), expanded(*arguments)
    assert one.dtype == other.dtype == np.float32
    assert np.square(one - other).sum() / np.square(other).sum() <= OP_FLOAT32


@pytest.mark.parametrize("step", [1, 32])
def test_matrices_of_heads_are_parts_of_the_whole(step: int) -> None:
    """Out of a checkpoint's matrix and out of the two that newer GGUF files hold; rows up to a multiple of the step are zeros."""
    sizes = LatentSizes(heads=3, plain=7, turned=4, latent=9, value=5)
    up = Plain("up", np.random.default_rng(1).standard_normal((36, 9)))
    by_head = up.float32().reshape(3, 12, 9)
    two = TwoUps("up", Plain("k", by_head[:, :7].swapaxes(1, 2)), Plain("v", by_head[:, 7:]))
    assert two.shape == up.shape and np.array_equal(two.float32(), up.float32())
    for whole in (up, two):
        for part, wanted in ((key_matrices, by_head[:, :7].swapaxes(1, 2)), (value_matrices, by_head[:, 7:])):
            stored = part(whole, sizes, step)
            found = stored.float32().reshape(3, -1, wanted.shape[2])
            assert stored.raw() == memoryview(found.tobytes()) and stored.shape == (3 * found.shape[1], found.shape[2])
            assert found.shape[1] % step == 0
            assert np.array_equal(found[:, : wanted.shape[1]], wanted) and not found[:, wanted.shape[1] :].any()


def test_long_prompts_are_scored_in_blocks() -> None:
    """More rows than one block, in a budget of few scores: the same values, and nothing of the size of rows times tokens."""
    import tracemalloc

    ops = NumpyOps()
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((3000, 1, 4), np.float32) for _ in "qkv")
    tracemalloc.start()
    got = ops.attend(q, k, v, whole_sequences([3000]), 0, 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 4 / 2
    for row in (0, 255, 256, 511, 512, 2999):
        want = formulas.attend(*(x[: row + 1].astype(np.float64) for x in (q, k, v)), 0.5, None)[-1] if row < 600 else None
        if want is not None:
            assert np.abs(got[row] - want).max() < 1e-5
    exact = np.exp((q[-1:, 0] * 0.5).astype(np.float64) @ k[:, 0].T.astype(np.float64))
    assert np.abs(got[-1, 0] - (exact / exact.sum()) @ v[:, 0]).max() < 1e-5


def test_steps_that_contradict_themselves_are_refused(case: Case) -> None:
    spec = CacheSpec((LayerCache(1, 2, 2),))
    x = case.value(case.array(2, 1, 2))
    arrays = [np.array([32, 33], np.int32), np.array([0, 2], np.int32), np.array([34], np.int32), np.array([0], np.int32)]
    no_page = Step(*arrays, np.array([[0, -1]], np.int32), case.ops.new_cache(spec, 2))
    short = Step(*arrays[:2], np.array([1], np.int32), arrays[3], np.array([[0]], np.int32), case.ops.new_cache(spec, 2))
    no_past = Step(*arrays)
    for step in (no_page, short, no_past):
        with pytest.raises(OurFault):
            case.ops.attend(x, x, x, step, 0, 1.0)


def test_taking_stored_tensors(case: Case) -> None:
    array = case.array(3, 5).astype(np.float32)
    weight = case.ops.take(Plain("a.b.weight", array), Plain("a.b.bias", array[:, 0]))
    assert weight.name == "a.b"
    case.check(weight.data, array.astype(np.float64))
    case.check(weight.bias, array[:, 0].astype(np.float64))
    assert case.ops.take(Plain("norm.weight", array[0])).bias is None


def test_equal_sequences_get_equal_bits() -> None:
    """In numpy a decoding row has the same bits alone, beside others, and wherever its pages lie."""
    ops = NumpyOps()
    rng = np.random.default_rng(1)
    spec = CacheSpec((LayerCache(2, 16, 16),))
    k, v = (rng.standard_normal((50, 2, 16), np.float32) for _ in "kv")
    q = rng.standard_normal((1, 4, 16), np.float32)
    found = []
    for table in ([[0, 1]], [[5, 2]], [[7, 1], [3, 6]]):
        cache = poisoned(ops, spec, 8)
        pages = np.array(table, np.int32)
        count = len(table)
        for plane, rows in ((cache.keys[0], k), (cache.values[0], v)):
            for pair in table:
                plane.reshape(-1, 2, 16)[[p * 32 + o for p in pair for o in range(32)][:49]] = rows[:49]
        step = Step(
            np.full(count, 49, np.int32), np.arange(count + 1, dtype=np.int32), np.full(count, 50, np.int32), pages[:, 0], pages, cache
        )
        repeat = [np.repeat(x, count, 0) for x in (q, k[49:], v[49:])]
        found += list(ops.attend(*repeat, step, 0, 0.25))
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_unknown_dtypes_are_refused() -> None:
    with pytest.raises(AskedWrong):
        NumpyOps(dtype="bfloat16")


@pytest.mark.parity
def test_torch_refuses_what_it_cannot_do() -> None:
    import torch

    from khola.ops.torch_ops import TorchOps

    with pytest.raises(AskedWrong):
        TorchOps(dtype="int8")
    with pytest.raises(AskedWrong):
        TorchOps(device="cuda:99")
    ops = TorchOps()
    x = torch.ones(1, 1, 2, requires_grad=True)
    cache = ops.new_cache(CacheSpec((LayerCache(1, 2, 2),)), 1)
    arrays = [np.array([0], np.int32), np.array([0, 1], np.int32), np.array([1], np.int32), np.array([0], np.int32)]
    with pytest.raises(OurFault, match="gradients"):
        ops.attend(x, x, x, Step(*arrays, np.array([[0]], np.int32), cache), 0, 1.0)


@pytest.mark.parity
def test_torch_takes_plain_numbers_as_they_lie() -> None:
    import torch

    from khola.ops.torch_ops import TorchOps

    class BFloat16:
        name, shape, kind = "x.weight", (2, 2), "BF16"

        def float32(self) -> np.ndarray:
            raise AssertionError("no detour over float32")

        def raw(self) -> memoryview:
            return memoryview(np.array([0x3F80, 0x4000, 0xBF80, 0x0000], np.uint16)).cast("B")

    weight = TorchOps(dtype="bfloat16").take(BFloat16())
    assert weight.data.dtype is torch.bfloat16
    assert weight.data.tolist() == [[1.0, 2.0], [-1.0, 0.0]]


@pytest.mark.parity
def test_torch_works_under_inference_mode() -> None:
    import torch

    from khola.ops.torch_ops import TorchOps

    ops = TorchOps()
    spec = CacheSpec((LayerCache(1, 2, 2),))
    with torch.inference_mode():
        cache = ops.new_cache(spec, 1)
    x = torch.randn(1, 1, 2)
    for position in range(3):
        arrays = [np.array([position], np.int32), np.array([0, 1], np.int32), np.array([position + 1], np.int32), np.array([0], np.int32)]
        step = Step(*arrays, np.array([[0]], np.int32), cache)
        with torch.inference_mode(position % 2 == 0), torch.no_grad():
            assert torch.isfinite(ops.attend(ops.rotate(x, step, Rope((1.0,))), x, x, step, 0, 1.0)).all()
