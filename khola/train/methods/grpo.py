"""Group relative policy optimisation: answers that were better than others to the same prompt become more likely.

A row is {"prompt": "..."} or {"messages": [...]} with whatever the rewards read ("answer", "tests", ...). The repairs of later papers are
settings: `loss` says over what is averaged, `clip_high` lets unlikely tokens rise further, `scale` takes the standard deviation away,
`redraw` replaces groups that teach nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor

from khola.data.packing import Batch, Sample
from khola.train import policy
from khola.train.methods import Loss, Setup
from khola.train.model import Trainee
from khola.train.rollouts import Rollout, Rollouts, Sampling, learned, prompts, tempered

NAME = "grpo"


class Config(Sampling, frozen=True):
    """The table [grpo]."""

    loss: Literal["token", "answer", "dr"] = "token"
    """Mean over all tokens of a step (DAPO); over answers, each the mean of its tokens (GRPO); or over answers, each the sum of its tokens
    by the longest that may be (Dr. GRPO)."""
    scale: bool = True
    """Advantages are divided by their group's standard deviation."""
    clip_low: Annotated[float, Meta(gt=0, le=1)] = 0.2
    clip_high: Annotated[float, Meta(gt=0)] = 0.28
    """Ratios count as no less than 1 - clip_low and no more than 1 + clip_high."""
    kl: Annotated[float, Meta(ge=0)] = 0.0
    """Weight of the divergence from the model as it was."""
    cap: Annotated[float, Meta(ge=0)] = 2.0
    """Most that a token weighs for being likelier to the model than to the sampler; 0, or another temperature than 1, weighs all the
    same."""

    def counted(self, rollouts: Sequence[Rollout]) -> float:
        """What the sum of the losses of some answers counts."""
        if self.loss == "token":
            return float(sum(len(one.ids) for one in rollouts))
        return float(len(rollouts)) * (self.answer_tokens if self.loss == "dr" else 1)


def samples(setup: Setup) -> list[Sample]:
    """All prompts; errors as `prompts`."""
    return prompts(setup)


def source(samples: Sequence[Sample], setup: Setup, model: Trainee) -> Rollouts:
    """Groups of the model's own answers."""
    scaled: bool = setup.config.scale
    return Rollouts(samples, setup, model, lambda group: policy.advantages([one.reward for one in group], scaled).tolist())


def loss(model: Trainee, batch: Batch, config: Config) -> Loss:
    """The clipped surrogate; shown are reward, how often the clip was in force, and the gap between sampler and trainer."""
    if not len(batch.rows_R):
        return Loss(sum=model.log_probs(batch).sum())
    both_R2 = tempered(model, batch, config.temperature)
    now_R, known = both_R2[:, 0], learned(batch, both_R2, config)
    losses_R, cut_R = policy.clipped(now_R, known.old_R, known.by_token(), config.clip_low, config.clip_high)
    if config.temperature == 1.0:  # the sampler tells what it would have drawn with at 1
        losses_R = losses_R * policy.trusted(known.old_R, known.sampled_R, config.cap)
    figures = known.figures(batch, {"clipped": cut_R})
    if config.kl:
        with model.reference() as before:
            before_R = tempered(before, batch, config.temperature)[:, 0]
        apart_R = policy.to_reference(now_R, before_R)
        losses_R = losses_R + config.kl * apart_R
        figures |= known.figures(batch, {"kl": apart_R.detach()})
    return Loss(sum=_summed(losses_R, known.owners_R, config, len(batch.lengths)), figures=figures)


def _summed(losses_R: Tensor, owners_R: Tensor, config: Config, answers: int) -> Tensor:
    """Over tokens, or over answers of which each is the mean of its tokens; `counted` is what it is divided by."""
    if config.loss != "answer":
        return losses_R.sum()
    tokens_A = policy.by_answer(torch.ones_like(losses_R), owners_R, answers)
    return (policy.by_answer(losses_R, owners_R, answers) / tokens_A.clamp(min=1)).sum()
