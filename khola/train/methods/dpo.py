"""Direct preference optimisation: of two answers the preferred one is made more likely than the other.

A row is one of

    {"messages": [...], "chosen": "..." | {message}, "rejected": "..." | {message}, "tools": [...]}
    {"prompt": "...", "chosen": "...", "rejected": "..."}

`variant` chooses the loss: DPO itself, IPO or SimPO; see `khola.train.preference`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor

from khola.data.packing import Batch, Packed, Sample, packed
from khola.data.rows import Row
from khola.errors import BadRow
from khola.train import policy, preference
from khola.train.config import Share, Strict
from khola.train.methods import Loss, Setup
from khola.train.methods.sft import batches_of, collected, sequences
from khola.train.model import Trainee

NAME = "dpo"


class Config(Strict, frozen=True):
    """The table [dpo]."""

    variant: Literal["dpo", "ipo", "simpo"] = "dpo"
    beta: Annotated[float, Meta(gt=0)] | None = None
    """None is 0.1; 2.0 with SimPO."""
    margin: Annotated[float, Meta(ge=0)] = 1.0
    """Of SimPO: gamma, by which the chosen answer's reward shall be greater."""
    wrong: Share = 0.0
    """Share of pairs whose label is believed to be the wrong way round; not with IPO."""

    @property
    def scale(self) -> float:
        """Beta."""
        return self.beta if self.beta is not None else 2.0 if self.variant == "simpo" else 0.1


def samples(setup: Setup) -> list[Sample]:
    """All pairs: chosen, rejected, chosen, rejected …

    Raises:
        BadRow: a row is broken, too long, or prefers an answer to itself.
    """
    return collected(setup, lambda row: [_answered(row, key, setup) for key in ("chosen", "rejected")], together=True)


def source(samples: Sequence[Sample], setup: Setup, model: Trainee) -> Packed:
    """Batches of whole pairs."""
    return batches_of(
        samples,
        setup,
        pack=lambda samples, numbers: packed(samples, numbers, count=len(numbers) / 2),
        groups=[(number, number + 1) for number in range(0, len(samples), 2)],
    )


def loss(model: Trainee, batch: Batch, config: Config) -> Loss:
    """The sum of the pairs' losses; shown are how often, and by how much, the chosen answer is ahead."""
    if not batch.count:
        return Loss(sum=model.log_probs(batch).sum())
    scores_A = _summed(model.log_probs(batch), batch)
    if config.variant != "simpo":
        with model.reference() as before:
            before_A = _summed(before.log_probs(batch), batch)
        scores_A = scores_A - before_A
    if config.variant != "dpo":
        scores_A = scores_A / _tokens(batch, scores_A)
    chosen_P, rejected_P = scores_A[0::2], scores_A[1::2]
    if config.variant == "dpo":
        losses_P = preference.dpo(chosen_P, rejected_P, config.scale, config.wrong)
    elif config.variant == "ipo":
        losses_P = preference.ipo(chosen_P, rejected_P, config.scale)
    else:
        losses_P = preference.simpo(chosen_P, rejected_P, config.scale, config.margin, config.wrong)
    ahead_P = (config.scale * (chosen_P - rejected_P)).detach()
    figures = {"right": float((ahead_P > 0).sum()), "ahead": float(ahead_P.sum())}
    return Loss(sum=losses_P.sum(), figures=figures)


def _summed(values_R: Tensor, batch: Batch) -> Tensor:
    """Sums over each answer's tokens, [2 P]."""
    return policy.by_answer(values_R, torch.as_tensor(batch.owners, device=values_R.device), len(batch.lengths))


def _tokens(batch: Batch, like: Tensor) -> Tensor:
    """Learned tokens of each answer, [2 P]."""
    return _summed(torch.ones(len(batch.rows_R), dtype=like.dtype, device=like.device), batch)


def _answered(row: Row, key: str, setup: Setup) -> Sample:
    """The prompt with one of its answers, as fine-tuning would learn it."""
    value: Mapping[str, Any] = row.value
    row.only(("messages", "tools", "chosen", "rejected") if "messages" in value else ("prompt", "chosen", "rejected"))
    if value.get("chosen") == value.get("rejected"):
        raise BadRow("{file}, line {line}: chosen and rejected are the same", **row.place)
    if "messages" not in value:
        return sequences(Row(row.file, row.line, {"prompt": row.text("prompt"), "completion": row.text(key)}), setup, only_last=True)[-1]
    answer = value.get(key)
    said = answer if isinstance(answer, dict) else {"role": "assistant", "content": row.text(key)}
    if not isinstance(value["messages"], list) or said.get("role") != "assistant":
        raise BadRow("{file}, line {line}: {key} is no answer of the assistant to a list of messages", **row.place, key=key)
    whole = {**{name: value[name] for name in ("tools",) if name in value}, "messages": [*value["messages"], said]}
    return sequences(Row(row.file, row.line, whole), setup, only_last=True)[-1]
