"""Gradients of the torch interpreter against numerical ones of the numpy interpreter in float64, and of both outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from khola.ops.numpy_ops import NumpyOps
from khola.ops.vocabulary import Rope, Routing, Weight, whole_sequences

pytestmark = pytest.mark.parity

STEP = whole_sequences([3, 4])
ROPE = Rope((1.0, 0.01), 1.2)

CASES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "linear": (lambda ops, x, w, b: ops.linear(x, Weight("w", w, b)), [(7, 5), (3, 5), (3,)]),
    "rms_norm": (lambda ops, x, w: ops.rms_norm(x, Weight("w", w), 1e-5), [(7, 5), (5,)]),
    "rms_norm_plus_one": (lambda ops, x, w: ops.rms_norm(x, Weight("w", w), 1e-5, True), [(7, 5), (5,)]),
    "layer_norm": (lambda ops, x, w, b: ops.layer_norm(x, Weight("w", w, b), 1e-5), [(7, 5), (5,), (5,)]),
    "rotate": (lambda ops, x: ops.rotate(x, STEP, ROPE), [(7, 2, 6)]),
    "attend": (lambda ops, q, k, v: ops.attend(q, k, v, STEP, 0, 0.4), [(7, 4, 3), (7, 2, 3), (7, 2, 3)]),
    "attend_window": (lambda ops, q, k, v: ops.attend(q, k, v, STEP, 0, 0.4, 2), [(7, 4, 3), (7, 2, 3), (7, 2, 3)]),
    "silu_mul": (lambda ops, g, u: ops.silu_mul(g, u), [(7, 5), (7, 5)]),
    "gelu": (lambda ops, x: ops.gelu(x), [(7, 5)]),
    "sigmoid": (lambda ops, x: ops.sigmoid(x), [(7, 5)]),
    "rows": (lambda ops, x: ops.rows(x, STEP), [(7, 5)]),
    "embed": (lambda ops, table: ops.embed(np.array([1, 4, 1]), Weight("t", table)), [(5, 3)]),
    "experts": (
        lambda ops, x, router, gate, up, down: ops.experts(
            x, ops.route(x, Weight("r", router), Routing(chosen=2)), Weight("g", gate), Weight("u", up), Weight("d", down)
        ),
        [(7, 3), (4, 3), (4, 2, 3), (4, 2, 3), (4, 3, 2)],
    ),
    "decay_scan": (lambda ops, q, k, v: ops.decay_scan(q, k, v, (0.9, 0.5), STEP, 0), [(7, 2, 3), (7, 2, 3), (7, 2, 2)]),
    "delta_scan": (
        lambda ops, q, k, v, a, rate, bias, b: ops.delta_scan(
            q, k, v, ops.log_decay(a, Weight("r", rate), Weight("b", bias)), ops.sigmoid(b), STEP, 0
        ),
        [(7, 1, 3), (7, 1, 3), (7, 2, 2), (7, 2), (2,), (2,), (7, 2)],
    ),
    "causal_conv": (lambda ops, x, w: ops.causal_conv(x, Weight("w", w), STEP, 0), [(7, 5), (5, 1, 4)]),
    "views": (lambda ops, x: ops.split(ops.flat(ops.heads(x, 2)), (2, 4))[1], [(7, 6)]),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient(name: str) -> None:
    """Central differences of the numpy function, projected on a random direction, for every input number."""
    import torch

    from khola.ops.torch_ops import TorchOps

    function, shapes = CASES[name]
    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    numpy_ops, torch_ops = NumpyOps(dtype="float64"), TorchOps(dtype="float64")
    leaves = [torch.tensor(array, requires_grad=True) for array in arrays]
    out = function(torch_ops, *leaves)
    plain = function(numpy_ops, *arrays)
    assert np.abs(out.detach().numpy() - plain).max() < 1e-12
    direction = rng.standard_normal(plain.shape)
    (out * torch.tensor(direction)).sum().backward()
    for which, leaf in enumerate(leaves):
        numeric = np.empty_like(arrays[which])
        for index in np.ndindex(*numeric.shape):
            ends = []
            for sign in (1, -1):
                moved = [array.copy() for array in arrays]
                moved[which][index] += sign * 1e-6
                ends.append(float((function(numpy_ops, *moved) * direction).sum()))
            numeric[index] = (ends[0] - ends[1]) / 2e-6
        assert leaf.grad is not None
        assert np.abs(leaf.grad.numpy() - numeric).max() < 1e-7 * max(1.0, float(np.abs(numeric).max()))
