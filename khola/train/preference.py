"""Losses over pairs of answers of which one is preferred.

Shapes   P pairs. `log_ratio` is log p(answer) under the model less that under the reference, summed over the answer's tokens.

Sources  DPO: arXiv:2305.18290, equation 7; with a share of wrong labels, arXiv:2306.09479 section 3 (conservative DPO).
         IPO: arXiv:2310.12036, equation 17, over mean log-probabilities, so that long pairs do not weigh more.
         SimPO: arXiv:2405.14734, equation 6: no reference, mean log-probabilities, a margin.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(chosen_P: Tensor, rejected_P: Tensor, beta: float, wrong: float = 0.0) -> Tensor:
    """-log sigmoid of beta times the difference of log ratios, [P].

    Args:
        chosen_P, rejected_P: log ratios.
        beta: how dear it is to leave the reference.
        wrong: share of pairs whose label is believed to be the wrong way round.
    """
    return _sided(beta * (chosen_P - rejected_P), wrong)


def ipo(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    """Squared distance of the difference from 1 / (2 beta), [P].

    Args:
        chosen_P, rejected_P: log ratios divided by the answers' tokens.
        beta: of the regularisation; tau in the paper.
    """
    return torch.square(chosen_P - rejected_P - 1 / (2 * beta))


def simpo(chosen_P: Tensor, rejected_P: Tensor, beta: float, margin: float, wrong: float = 0.0) -> Tensor:
    """-log sigmoid of beta times the difference less a margin, [P].

    Args:
        chosen_P, rejected_P: log p(answer) under the model, divided by the answers' tokens.
        beta: scale of the reward.
        margin: by which the chosen answer's reward shall be greater; gamma in the paper.
        wrong: as of `dpo`.
    """
    return _sided(beta * (chosen_P - rejected_P) - margin, wrong)


def _sided(x_P: Tensor, wrong: float) -> Tensor:
    return -(1 - wrong) * logsigmoid(x_P) - wrong * logsigmoid(-x_P)
