"""Optimisers against torch's own and their definitions."""

from __future__ import annotations

import pytest
import torch

from khola.errors import AskedWrong
from khola.train import config
from khola.train.optim import Gradients, Optimiser, orthogonal, rate


def test_adamw_equals_that_of_torch() -> None:
    rng = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(4, 3, generator=rng, dtype=torch.float64), "b": torch.randn(5, generator=rng, dtype=torch.float64)}
    theirs = {name: torch.nn.Parameter(one.clone()) for name, one in start.items()}
    c = config.Optimiser(weight_decay=0.1)
    other = torch.optim.AdamW(
        [{"params": [theirs["a"]], "weight_decay": 0.1}, {"params": [theirs["b"]], "weight_decay": 0.0}], lr=0.01, betas=(c.beta1, c.beta2)
    )
    mine = Optimiser(start, c, 0.01, "layers.")
    for _ in range(10):
        gradients = {name: torch.randn(one.shape, generator=rng, dtype=torch.float64) for name, one in start.items()}
        for name, one in theirs.items():
            one.grad = gradients[name].clone()
        other.step()
        mine.move(gradients, 1.0)
    for name, one in start.items():
        torch.testing.assert_close(one, theirs[name].detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (3, 10, 6)])
def test_muon_makes_singular_values_about_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
    assert values.min() > 0.3 and values.max() < 1.3


def test_muon_moves_as_its_definition_says() -> None:
    c = config.Optimiser(name="muon", weight_decay=0.1, momentum=0.9)
    start, gradient = torch.full((2, 6), 0.5), torch.randn(2, 6, generator=torch.Generator().manual_seed(2))
    masters = {"layers.0.w": start.clone(), "embed": start.clone()}
    Optimiser(masters, c, 0.1, "layers.").move({"layers.0.w": gradient}, 0.5)
    expected = start * (1 - 0.05 * 0.1) - 0.05 * 0.2 * 6**0.5 * orthogonal(gradient * 1.9)
    torch.testing.assert_close(masters["layers.0.w"], expected)
    torch.testing.assert_close(masters["embed"], start)


def test_muon_needs_a_matrix() -> None:
    with pytest.raises(AskedWrong, match="nothing that learns here is one"):
        Optimiser({"embed": torch.zeros(3, 3)}, config.Optimiser(name="muon"), 0.1, "layers.")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 11, 10 / 11, 1, 1, 1, 1]),
        ("linear", [1 / 11, 10 / 11, 1, 1 - 40 / 90, 1 - 70 / 90, 1 - 89 / 90]),
        ("cosine", [1 / 11, 10 / 11, 1, 0.5868240888334652, 0.11697777844051105, 0.0003045865]),
        ("wsd", [1 / 11, 10 / 11, 1, 1, 1, 0.05]),
    ],
)
def test_rates(schedule: str, expected: list[float]) -> None:
    c = config.Optimiser(schedule=schedule, warmup=0.1, decay=0.2)
    assert [rate(step, 100, c) for step in (0, 9, 10, 50, 80, 99)] == pytest.approx(expected, rel=1e-6)


def test_a_rate_ends_at_its_floor() -> None:
    for schedule in ("linear", "cosine", "wsd"):
        c = config.Optimiser(schedule=schedule, floor=0.1)
        assert rate(100, 100, c) == pytest.approx(0.1)


def test_gradients_of_narrow_weights_are_summed_wide() -> None:
    """256 + 1 + 1 + ... in bfloat16 would stay 256."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    gradients = Gradients({"w": torch.zeros(1)}, {"w": weight})
    for value in (256.0, *[1.0] * 10):
        (weight * value).sum().backward()
    assert gradients.sums["w"].item() == 266.0
    assert weight.grad is None
    assert gradients.squares() == 266.0**2
    gradients.scale(0.5)
    assert gradients.sums["w"].item() == 133.0
