"""Losses of policy gradients over groups of answers to one prompt.

Shapes   A answers, R their tokens, all answers one after another.

Sources  GRPO: DeepSeekMath, arXiv:2402.03300, equations 3 and 4. Clip-higher, token-level loss, dynamic sampling: DAPO, arXiv:2503.14476
         sections 3.1 to 3.3. Neither length nor standard deviation: Dr. GRPO, arXiv:2503.20783 section 3.2. Truncated importance sampling
         against the sampler: arXiv:2508.18588, equation 5 (weights min(ratio, cap)). Mirror descent: Kimi k1.5, arXiv:2501.12599
         section 2.3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EPSILON = 1e-4
"""Added to a group's standard deviation, so that equal rewards divide by something."""


def advantages(rewards: Sequence[float], scaled: bool) -> NDArray[np.float64]:
    """How much better than its group each answer is.

    Args:
        rewards: of the answers to one prompt.
        scaled: divide by the group's standard deviation (of a sample, n - 1) as GRPO does; else only the mean is taken away.
    """
    found = np.asarray(rewards, np.float64)
    centred: NDArray[np.float64] = found - found.mean()
    if scaled and len(found) > 1:
        centred /= found.std(ddof=1) + EPSILON
    return centred


def clipped(now_R: Tensor, old_R: Tensor, advantage_R: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate of each token, to be made small, and whether its clip was in force, [R] each.

    Args:
        now_R: log-probabilities under the model, with gradients.
        old_R: under the model that the answers are learned from.
        advantage_R: of the token's answer.
        low, high: the ratio counts as no less than 1 - low, and no more than 1 + high.
    """
    ratio_R = torch.exp(now_R - old_R)
    whole_R, cut_R = ratio_R * advantage_R, ratio_R.clamp(1 - low, 1 + high) * advantage_R
    return -torch.minimum(whole_R, cut_R), (cut_R < whole_R).detach()


def to_reference(now_R: Tensor, reference_R: Tensor) -> Tensor:
    """An estimate of the divergence from a reference that is never negative and right in the mean, [R].

    Source   Schulman, "Approximating KL divergence" (2020), k3; DeepSeekMath equation 4.
    """
    apart_R = reference_R - now_R
    return torch.exp(apart_R) - apart_R - 1


def trusted(old_R: Tensor, sampled_R: Tensor, cap: float) -> Tensor:
    """What a token's loss is multiplied by because another program drew it, [R]; all 1 with a cap of 0.

    Args:
        old_R: log-probabilities under the model that learns, before it learned.
        sampled_R: as the sampler gave them.
        cap: no token weighs more.
    """
    if not cap:
        return torch.ones_like(old_R)
    return torch.exp((old_R - sampled_R).clamp(-20, 20)).clamp(max=cap)


def mirror(now_A: Tensor, old_A: Tensor, advantage_A: Tensor, tau: float) -> Tensor:
    """The loss of one step of online mirror descent for each answer, [A].

    Args:
        now_A: log-probability of the whole answer under the model, with gradients.
        old_A: under the model of the iteration's beginning.
        advantage_A: reward less the group's mean.
        tau: weight of the regularisation.
    """
    return -(now_A * advantage_A - tau / 2 * torch.square(now_A - old_A))


def by_answer(values_R: Tensor, owners_R: Tensor, answers: int) -> Tensor:
    """Sums over each answer's tokens, [A]; `owners_R` says whose each token is."""
    return torch.zeros(answers, dtype=values_R.dtype, device=values_R.device).index_add(0, owners_R, values_R)
