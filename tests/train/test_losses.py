"""Losses over chunks of rows equal torch's own over whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from khola.train import losses

ROWS, WIDTH, WORDS = 37, 12, 101


def made(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden rows, a head and targets."""
    rng = torch.Generator().manual_seed(3)
    x_RD = torch.randn(ROWS, WIDTH, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    head_VD = torch.randn(WORDS, WIDTH, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    return x_RD, head_VD, torch.randint(0, WORDS, (ROWS,), generator=rng)


@pytest.mark.parametrize("chunk", [1, 5, ROWS, 1000])
def test_cross_entropy_equals_that_of_torch(chunk: int) -> None:
    x_RD, head_VD, targets_R = made()
    whole = functional.cross_entropy(x_RD @ head_VD.T, targets_R, reduction="sum")
    expected = torch.autograd.grad(whole * 0.25, [x_RD, head_VD])
    found = losses.cross_entropy(lambda x: x @ head_VD.T, x_RD, targets_R, [head_VD], chunk)
    assert found.dtype is torch.float64
    gradients = torch.autograd.grad(found * 0.25, [x_RD, head_VD])
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=0)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 5, ROWS, 1000])
def test_log_probs_equal_those_of_torch(chunk: int) -> None:
    x_RD, head_VD, targets_R = made()
    weights_R = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    whole_R = (x_RD @ head_VD.T).log_softmax(-1).gather(1, targets_R[:, None])[:, 0]
    expected = torch.autograd.grad((whole_R * weights_R).sum(), [x_RD, head_VD])
    found_R = losses.log_probs(lambda x: x @ head_VD.T, x_RD, targets_R, [head_VD], chunk)
    gradients = torch.autograd.grad((found_R * weights_R).sum(), [x_RD, head_VD])
    torch.testing.assert_close(found_R, whole_R, rtol=1e-12, atol=0)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_frozen_head_gets_no_gradient() -> None:
    x_RD, head_VD, targets_R = made()
    frozen_VD = head_VD.detach()
    found = losses.cross_entropy(lambda x: x @ frozen_VD.T, x_RD, targets_R, [], 8)
    (gradient,) = torch.autograd.grad(found, [x_RD])
    expected = torch.autograd.grad(functional.cross_entropy(x_RD @ frozen_VD.T, targets_R, reduction="sum"), [x_RD])
    torch.testing.assert_close(gradient, expected[0], rtol=1e-10, atol=1e-12)


def test_gradients_of_a_narrow_head_are_summed_in_float32() -> None:
    """A hundred chunks whose parts vanish beside the sum when bfloat16 adds them."""
    rows = 1024
    x_RD = torch.ones(rows, 4, dtype=torch.bfloat16, requires_grad=True)
    head_VD = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    targets_R = torch.zeros(rows, dtype=torch.long)
    found = losses.cross_entropy(lambda x: x @ head_VD.T, x_RD, targets_R, [head_VD], 1)
    (gradient,) = torch.autograd.grad(found, [head_VD])
    assert gradient[0, 0].item() == -rows / 2


def test_nothing_to_learn_is_zero() -> None:
    x_RD, head_VD, targets_R = made()
    for function in (losses.cross_entropy, losses.log_probs):
        found = function(lambda x: x @ head_VD.T, x_RD[:0], targets_R[:0], [head_VD], 8).sum()
        assert found == 0
        assert torch.autograd.grad(found, [x_RD])[0].abs().sum() == 0


def test_without_gradients_nothing_is_kept() -> None:
    x_RD, head_VD, targets_R = made()
    with torch.no_grad():
        found = losses.cross_entropy(lambda x: x @ head_VD.T, x_RD, targets_R, [], 8)
    assert not found.requires_grad
