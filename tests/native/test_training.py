"""Native operations of training and their gradients against float64, in every instruction set; nothing but the inputs decides a bit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from khola.errors import AskedWrong, NoKernel, OurFault
from khola.ops.vocabulary import Rope, Weight, whole_sequences
from tests.needs import said

if TYPE_CHECKING:
    from torch import Tensor

    from khola.ops.torch_native import NativeKernels

pytestmark = pytest.mark.parity

ROUNDED = 5e-3
"""Relative distance of results in bfloat16 that come of values in bfloat16; a number is off by at most 2^-9."""
EXACT = 1e-6
"""Relative distance of sums in float32."""
ROPE = Rope((1.0, 0.3, 0.01), 1.2)


@pytest.fixture
def kernels(isa: str) -> Iterator[NativeKernels]:
    """Two threads with one instruction set."""
    from khola.native.lib import choose_isa
    from khola.ops.torch_native import NativeKernels

    choose_isa(isa)
    yield NativeKernels(2)
    choose_isa()


def made(*shape: int, seed: int = 0, dtype: str = "bfloat16") -> Tensor:
    """A leaf of random numbers."""
    import torch

    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(getattr(torch, dtype))
    return found.requires_grad_()


def off(found: Tensor, exact: Tensor) -> float:
    """Relative distance."""
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm().clamp(min=1e-30))


def compare(mine: Callable[..., Tensor], exact: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    """Results and the gradients of every leaf."""
    import torch

    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, wanted = mine(*leaves), exact(*wide)
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(9)).to(found.dtype)
    found.backward(slope)
    wanted.backward(slope.double())
    assert off(found, wanted) < ROUNDED
    for place, (leaf, other) in enumerate(zip(leaves, wide, strict=True)):
        assert leaf.grad is not None and other.grad is not None
        assert leaf.grad.dtype is leaf.dtype
        assert off(leaf.grad, other.grad) < ROUNDED, f"gradient {place}"


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 1, 1), (5, 3, 7), (33, 65, 100), (63, 96, 1000), (200, 33, 31)])
def test_products(kernels: NativeKernels, rows: int, outputs: int, inputs: int, kind: str) -> None:
    import torch

    x, weight, bias = made(rows, inputs), made(outputs, inputs, seed=1, dtype=kind), made(outputs, seed=2, dtype=kind)
    # What a product sees of a float32 weight is its bfloat16; the gradient is that of the weight as it is.
    seen = weight.detach().bfloat16().to(weight.dtype).requires_grad_()
    compare(kernels.linear, lambda x, w, b: x @ w.T + b, [x, seen, bias])
    assert seen.grad is not None and x.grad is not None
    slope = torch.randn(rows, outputs, generator=torch.Generator().manual_seed(9)).bfloat16()
    if kind == "float32":
        assert off(seen.grad, slope.double().T @ x.detach().double()) < EXACT
    rough = weight.detach().clone().requires_grad_()
    assert torch.equal(kernels.linear(x, rough, bias), kernels.linear(x, seen, bias))


def by_hand(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float, window: int | None) -> Tensor:
    """Attention of every sequence with whole scores."""
    import torch

    mixed, first, group = [], 0, q.shape[1] // k.shape[1]
    for length in lengths:
        mine = slice(first, first + length)
        scores = torch.einsum("qhe,khe->hqk", q[mine], k[mine].repeat_interleave(group, 1)) * scale
        at = torch.arange(length)
        seen = (at[None] <= at[:, None]) & (at[None] > at[:, None] - (window or length))
        mixed.append(torch.einsum("hqk,khf->qhf", scores.masked_fill(~seen, -torch.inf).softmax(-1), v[mine].repeat_interleave(group, 1)))
        first += length
    return torch.cat(mixed)


SHAPES = {
    "small": ([3, 4], 4, 2, 3, 3, None),
    "panels": ([33, 1, 160], 6, 2, 64, 64, None),
    "window": ([130, 200], 3, 3, 40, 24, 37),
    "narrow window": ([129], 2, 1, 128, 16, 5),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_attention(kernels: NativeKernels, shape: str) -> None:
    lengths, heads, key_heads, size, value_size, window = SHAPES[shape]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    rows = int(starts[-1])
    leaves = [made(rows, heads, size), made(rows, key_heads, size, seed=1), made(rows, key_heads, value_size, seed=2)]
    scale = size**-0.5
    compare(
        lambda q, k, v: kernels.attend(q, k, v, starts, scale, window), lambda q, k, v: by_hand(q, k, v, lengths, scale, window), leaves
    )


def test_a_sequence_never_sees_its_neighbours(kernels: NativeKernels) -> None:
    """The same rows alone and between others have the same bits, gradients too, and others get none."""
    import torch

    leaves = [made(150, heads, 32, seed=heads) for heads in (4, 2, 2)]
    inner = [leaf.detach()[40:90].clone().requires_grad_() for leaf in leaves]
    whole = kernels.attend(*leaves, np.array([0, 40, 90, 150], np.int32), 0.2, None)
    alone = kernels.attend(*inner, np.array([0, 50], np.int32), 0.2, None)
    assert torch.equal(whole[40:90], alone)
    whole[40:90].sum().backward()
    alone.sum().backward()
    for leaf, own in zip(leaves, inner, strict=True):
        assert leaf.grad is not None and own.grad is not None
        assert torch.equal(leaf.grad[40:90], own.grad)
        assert not leaf.grad[:40].any() and not leaf.grad[90:].any()


def test_losses_of_tokens(kernels: NativeKernels) -> None:
    """Rows, targets and vocabulary at odd sizes; rows without a target weigh nothing; large logits do not overflow."""
    import torch
    from torch.nn import functional

    for rows, width, vocabulary, scale, kind in ((70, 65, 5000, 30, "float32"), (3, 1, 2, 1, "bfloat16"), (1, 40, 2049, 1, "float32")):
        x, table = made(rows, width), (scale * made(vocabulary, width, seed=1).detach()).bfloat16()
        targets = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(3))
        targets[rows // 3 : rows // 2] = -100
        leaves = [x, table.to(getattr(torch, kind)).requires_grad_()]
        compare(
            lambda x, table, targets=targets: kernels.token_losses(x, table, targets),
            lambda x, table, targets=targets: functional.cross_entropy(x @ table.T, targets, reduction="none"),
            leaves,
        )
    with pytest.raises(OurFault, match="target 7"):
        kernels.token_losses(made(2, 4), made(7, 4), torch.tensor([1, 7]))


def test_operations_on_rows(kernels: NativeKernels) -> None:
    import torch
    from torch.nn import functional

    def norm(x: Tensor, weight: Tensor, offset: float) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * (weight + offset)

    for width in (1, 63, 576):
        for plus_one in (False, True):
            leaves = [made(70, 2, width), made(width, seed=1, dtype="float32")]
            compare(lambda x, w, p=plus_one: kernels.rms_norm(x, w, 1e-5, p), lambda x, w, p=plus_one: norm(x, w, float(p)), leaves)
        compare(kernels.silu_mul, lambda gate, up: functional.silu(gate) * up, [made(70, width, seed=2), made(70, width, seed=3)])
    angles = torch.randn(9, 1, 21, generator=torch.Generator().manual_seed(4))
    cosines, sines = angles.cos(), angles.sin()

    def turned(x: Tensor) -> Tensor:
        left, right, rest = x.split([21, 21, 5], -1)
        return torch.cat([left * cosines - right * sines, right * cosines + left * sines, rest], -1)

    compare(lambda x: kernels.rotate(x, cosines, sines), turned, [made(9, 3, 47)])


def layer(ops: Any, w: dict[str, Tensor], lengths: tuple[int, ...] = (70, 41)) -> Tensor:
    """A decoder's layer and its loss, in the words of the vocabulary."""
    step = whole_sequences(lengths)
    ids = np.random.default_rng(1).integers(0, 99, sum(lengths))
    x = ops.embed(ids, Weight("embed", w["table"]))
    h = ops.rms_norm(x, Weight("norm", w["norm"]), 1e-5)
    q, k, v = (ops.heads(ops.linear(h, Weight(n, w[n])), 16) for n in ("q", "k", "v"))
    q, k = ops.rotate(q, step, ROPE), ops.rotate(k, step, ROPE)
    x = x + ops.linear(ops.flat(ops.attend(q, k, v, step, 0, 0.25)), Weight("o", w["o"]))
    return ops.linear(x + ops.linear(ops.silu_mul(ops.linear(x, Weight("g", w["g"])), x), Weight("d", w["d"])), Weight("head", w["table"]))


def layer_weights(dtype: str = "float32") -> dict[str, Tensor]:
    """Weights of `layer`."""
    sizes = {"table": (99, 64), "norm": (64,), "q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64), "g": (64, 64), "d": (64, 64)}
    return {
        name: (made(*shape, seed=place).detach() * 0.2).to(made(1, dtype=dtype).dtype).requires_grad_()
        for place, (name, shape) in enumerate(sizes.items())
    }


def gradients(threads: int, *, recomputed: bool = False) -> list[Tensor]:
    """The result of `layer` and all gradients."""
    from torch.utils.checkpoint import checkpoint

    from khola.ops.torch_native import NativeKernels
    from khola.ops.torch_ops import TorchOps

    ops, w = TorchOps(dtype="bfloat16", kernels=NativeKernels(threads)), layer_weights()
    out: Any = checkpoint(layer, ops, w, use_reentrant=False) if recomputed else layer(ops, w)
    out.float().square().sum().backward()
    found = [out.detach()]
    for one in w.values():
        assert one.grad is not None
        found.append(one.grad)
    return found


def test_threads_runs_and_checkpoints_change_no_bit(isa: str) -> None:
    import torch

    from khola.native.lib import choose_isa

    choose_isa(isa)
    first = gradients(2)
    for others in (gradients(1), gradients(2), gradients(3), gradients(2, recomputed=True)):
        assert all(torch.equal(a, b) for a, b in zip(first, others, strict=True))
    choose_isa()


def test_the_interpreter_with_kernels_is_the_interpreter() -> None:
    """The option changes rounding and nothing else: gradients in float64 of the same layer."""
    from khola.native.lib import library_path
    from khola.ops.torch_ops import TorchOps

    if library_path() is None:
        return
    mine = gradients(2)
    w = {name: one.detach().double().requires_grad_() for name, one in layer_weights().items()}
    out = layer(TorchOps(dtype="float64"), w)
    out.square().sum().backward()
    for found, exact in zip(mine, [out, *(one.grad for one in w.values())], strict=True):
        assert exact is not None
        assert off(found, exact) < 0.02


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from khola.native.lib import library_path
    from khola.ops import torch_native
    from khola.ops.torch_ops import TorchOps

    said: list[str] = []

    def none(threads: int) -> Any:
        raise NoKernel("no native library was built here")

    if library_path() is not None:
        kernels = torch_native.NativeKernels(1)
        for dtype in ("float32", "float64"):
            with pytest.raises(AskedWrong, match="bfloat16"):
                TorchOps(dtype=dtype, kernels=kernels)
        with pytest.raises(OurFault, match="float32"):
            kernels.silu_mul(torch.ones(2, 2), torch.ones(2, 2))
        for wrong in (
            lambda: kernels.linear(made(2, 3), made(2, 4), None),
            lambda: kernels.silu_mul(made(2, 3), made(3, 2)),
            lambda: kernels.rms_norm(made(2, 3), made(4), 1e-5, False),
            lambda: kernels.attend(made(4, 2, 8), made(4, 1, 8), made(4, 1, 8), np.array([0, 5], np.int32), 1.0, None),
            lambda: kernels.rotate(made(2, 1, 4), torch.ones(3, 1, 2), torch.ones(3, 1, 2)),
        ):
            with pytest.raises(OurFault, match="of shapes"):
                wrong()
        assert torch_native.native_kernels(1, "cpu", lambda text, **facts: said.append(text)) is not None
    monkeypatch.setattr(torch_native, "NativeKernels", none)
    assert torch_native.native_kernels(1, "cpu", lambda text, **facts: said.append(text.format(**facts))) is None
    assert torch_native.native_kernels(1, "meta", lambda text, **facts: said.append(text.format(**facts))) is None
    assert said == [
        "plain torch computes this training: no native library was built here",
        "plain torch computes this training: native kernels are for the CPU, not for meta",
    ]


def test_freed_memory_is_kept() -> None:
    """Pages of a large block that was freed serve the next one: asking for it again faults next to none in."""
    code = """
import resource, sys
from khola.native.train import keep_memory
if keep_memory():
    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = bytearray(64 << 20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    first = faults()
    assert faults() < first / 8, first
"""
    said(sys.executable, "-c", code)
