"""Losses over pairs and over groups of answers equal those of TRL on fixed numbers, and their papers' formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from khola.train import policy, preference
from khola.train.methods import grpo

WIDE = torch.float64
TRL: dict[str, Any] = json.loads((Path(__file__).parent / "references" / "trl.json").read_text())
"""See `references/by_trl.py`."""


def flat(name: str) -> torch.Tensor:
    """Log-probabilities of all tokens, one answer after another."""
    return torch.tensor([value for answer in TRL[name] for value in answer], dtype=WIDE)


def owners() -> torch.Tensor:
    return torch.tensor([number for number, answer in enumerate(TRL["now"]) for _ in answer])


def sums(name: str) -> torch.Tensor:
    return policy.by_answer(flat(name), owners(), 4)


def tokens() -> torch.Tensor:
    return policy.by_answer(torch.ones(len(owners()), dtype=WIDE), owners(), 4)


@pytest.mark.parametrize(("kind", "beta"), [(kind, beta) for kind in ("grpo", "dr_grpo", "dapo") for beta in (0.0, 0.04)])
def test_groups(kind: str, beta: float) -> None:
    advantage_R = torch.tensor(TRL["advantages"], dtype=WIDE)[owners()]
    losses_R, cut_R = policy.clipped(flat("now"), flat("old"), advantage_R, 0.2, 0.28)
    assert 0 < cut_R.sum() < len(cut_R)
    losses_R = losses_R + beta * policy.to_reference(flat("now"), flat("reference"))
    config = grpo.Config(loss={"grpo": "answer", "dr_grpo": "dr", "dapo": "token"}[kind], answer_tokens=10)
    count = {"grpo": 4, "dr_grpo": 4 * 10, "dapo": len(owners())}[kind]
    found = grpo._summed(losses_R, owners(), config, 4) / count
    assert float(found) == pytest.approx(TRL["grpo"][f"{kind} {beta}"], rel=1e-12)


def test_pairs() -> None:
    ratios_A = sums("now") - sums("reference")
    assert float(preference.dpo(ratios_A[:2], ratios_A[2:], 0.1).mean()) == pytest.approx(TRL["dpo"], rel=1e-12)
    means_A = ratios_A / tokens()
    assert float(preference.ipo(means_A[:2], means_A[2:], 0.1).mean()) == pytest.approx(TRL["ipo"], rel=1e-12)
    means_A = sums("now") / tokens()
    assert float(preference.simpo(means_A[:2], means_A[2:], 2.0, 1.0).mean()) == pytest.approx(TRL["simpo"], rel=1e-12)
    assert float(preference.simpo(means_A[:2], means_A[2:], 2.0, 1.0, 0.1).mean()) == pytest.approx(TRL["simpo smoothed"], rel=1e-12)


def test_a_label_that_may_be_wrong_pulls_less() -> None:
    apart = torch.tensor([4.0], dtype=WIDE, requires_grad=True)
    steep, mild = (
        torch.autograd.grad(preference.dpo(apart, torch.zeros(1, dtype=WIDE), 1.0, wrong).sum(), apart)[0] for wrong in (0.0, 0.3)
    )
    assert float(steep) < 0 < float(mild), "at a distance of 4 a share of 0.3 is already believed enough"


def test_advantages_are_those_of_the_group() -> None:
    assert policy.advantages([1.0, 0.0, 0.0, 1.0], scaled=False).tolist() == [0.5, -0.5, -0.5, 0.5]
    spread = math.sqrt(4 * 0.25 / 3)
    assert policy.advantages([1.0, 0.0, 0.0, 1.0], scaled=True) == pytest.approx([sign * 0.5 / (spread + 1e-4) for sign in (1, -1, -1, 1)])
    assert policy.advantages([0.3] * 5, scaled=True).tolist() == [0.0] * 5


def test_mirror_descent_has_the_gradient_of_the_paper() -> None:
    """Section 2.3.2: the gradient of log p (r - mean) - tau / 2 (log p - log p_i)^2."""
    torch.manual_seed(1)
    now_A = torch.randn(4, dtype=WIDE, requires_grad=True)
    old_A, advantage_A, tau = torch.randn(4, dtype=WIDE), torch.randn(4, dtype=WIDE), 0.3
    (found,) = torch.autograd.grad(policy.mirror(now_A, old_A, advantage_A, tau).sum(), now_A)
    assert torch.allclose(found, -(advantage_A - tau * (now_A.detach() - old_A)), rtol=1e-14)


def test_what_the_sampler_liked_less_is_trusted_up_to_the_cap() -> None:
    old_R, sampled_R = torch.tensor([-1.0, -1.0, -1.0], dtype=WIDE), torch.tensor([-1.0, -3.0, -0.5], dtype=WIDE)
    assert policy.trusted(old_R, sampled_R, 2.0).tolist() == pytest.approx([1.0, 2.0, math.exp(-0.5)])
    assert policy.trusted(old_R, sampled_R, 0.0).tolist() == [1.0] * 3


def test_the_divergence_is_never_negative_and_right_in_the_mean() -> None:
    torch.manual_seed(2)
    now_V, other_V = (torch.randn(50, dtype=WIDE).log_softmax(0) for _ in range(2))
    estimates_V = policy.to_reference(now_V, other_V)
    assert float(estimates_V.min()) >= 0
    exact = float((now_V.exp() * (now_V - other_V)).sum())
    assert float((now_V.exp() * estimates_V).sum()) == pytest.approx(exact, rel=1e-12)
