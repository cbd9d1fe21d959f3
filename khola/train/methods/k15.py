"""The objective of Kimi k1.5: online mirror descent with a length reward.

Each round is an iteration: its answers come from the model of that moment, and `reuse` steps learn from them while the model is held near
to it. Rows are those of `grpo`. `choose = "failing"`, `easy_first` and `partial` are the paper's ways with prompts and long answers.

Source   arXiv:2501.12599 sections 2.3 and 2.6.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from khola.data.packing import Batch, Sample
from khola.train import policy
from khola.train.methods import Loss, Setup
from khola.train.model import Trainee
from khola.train.rewards.form import group_lengths
from khola.train.rollouts import Rollout, Rollouts, Sampling, learned, prompts, tempered

NAME = "k15"


class Config(Sampling, frozen=True):
    """The table [k15]."""

    tau: Annotated[float, Meta(gt=0)] = 0.1
    """Weight of the squared log-ratio that holds the model near to that of the round's beginning."""
    short: Annotated[float, Meta(ge=0)] = 0.0
    """Weight of the length reward: right answers gain by being shorter than others of their group, long ones lose."""
    right: float = 1.0
    """Reward from which on an answer counts as right."""

    def counted(self, rollouts: Sequence[Rollout]) -> float:
        """What the sum of the losses of some answers counts."""
        return float(len(rollouts))


def samples(setup: Setup) -> list[Sample]:
    """All prompts; errors as `prompts`."""
    return prompts(setup)


def source(samples: Sequence[Sample], setup: Setup, model: Trainee) -> Rollouts:
    """Groups of the model's own answers."""
    config: Config = setup.config

    def advantages(group: Sequence[Rollout]) -> list[float]:
        lengths = [len(one.before) + len(one.ids) for one in group]
        extra = group_lengths(lengths, [one.reward >= config.right for one in group])
        rewards = [one.reward + config.short * more for one, more in zip(group, extra, strict=True)]
        found: list[float] = policy.advantages(rewards, scaled=False).tolist()
        return found

    return Rollouts(samples, setup, model, advantages)


def loss(model: Trainee, batch: Batch, config: Config) -> Loss:
    """Mirror descent, answer by answer; shown are reward, squared distance to the round's beginning, and the gap to the sampler."""
    if not len(batch.rows_R):
        return Loss(sum=model.log_probs(batch).sum())
    both_R2 = tempered(model, batch, config.temperature)
    now_R, known = both_R2[:, 0], learned(batch, both_R2, config)
    answers = len(batch.lengths)
    now_A, old_A = (policy.by_answer(values_R, known.owners_R, answers) for values_R in (now_R, known.old_R))
    losses_A = policy.mirror(now_A, old_A, known.advantage_A, config.tau)
    figures = known.figures(batch, {"moved": (now_R - known.old_R).detach().square()})
    return Loss(sum=losses_A.sum(), figures=figures)
