"""Losses as TRL 1.16.0 computes them from fixed log-probabilities; prints `trl.json` beside this file.

    python -m tests.train.references.by_trl > tests/train/references/trl.json

TRL's own loss functions run; only the model is left out: what it would say of the tokens is given. Needs trl, which nothing else here does.
"""

from __future__ import annotations

import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from trl import DPOTrainer, GRPOTrainer
from trl.experimental.cpo import CPOTrainer

LENGTHS = (5, 3, 7, 4)


def numbers(seed: int) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """Log-probabilities of the tokens of four answers: of the model, of an older one, of a reference."""
    torch.manual_seed(seed)
    made = [-3 * torch.rand(3, length, dtype=torch.float64) for length in LENGTHS]
    near = [torch.cat([one[:1], one[:1] + 0.4 * torch.randn(1, one.shape[1], dtype=torch.float64), one[2:]]) for one in made]
    now, old, reference = ([one[place].tolist() for one in near] for place in range(3))
    return now, old, reference


def padded(values: list[list[float]]) -> torch.Tensor:
    """[4, 7], zeros behind each answer."""
    found = torch.zeros(len(values), max(LENGTHS), dtype=torch.float64)
    for row, one in zip(found, values, strict=True):
        row[: len(one)] = torch.tensor(one, dtype=torch.float64)
    return found


def mask() -> torch.Tensor:
    """Which places of `padded` are tokens."""
    return padded([[1.0] * length for length in LENGTHS])


def grpo(kind: str, now: Any, old: Any, reference: Any, advantages: list[float], beta: float) -> float:
    """TRL's GRPO loss."""
    logged = padded(now)
    zeros = torch.zeros_like(logged)
    stub: Any = SimpleNamespace(
        loss_type=kind, beta=beta, epsilon_low=0.2, epsilon_high=0.28, top_entropy_quantile=1.0, aux_loss_enabled=False,
        off_policy_mask_threshold=None, importance_sampling_level="token", use_vllm=False, max_completion_length=10,
        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False, use_adaptive_entropy=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x),
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)}, _get_per_token_logps_and_entropies=lambda *_, **__: (logged, zeros, None),
    )  # fmt: skip
    inputs = {
        "prompt_ids": zeros.long()[:, :1], "prompt_mask": mask()[:, :1], "completion_ids": zeros.long(), "completion_mask": mask(),
        "advantages": torch.tensor(advantages, dtype=torch.float64), "old_per_token_logps": padded(old),
        "ref_per_token_logps": padded(reference), "num_items_in_batch": mask().sum(),
    }  # fmt: skip
    return float(GRPOTrainer._compute_loss(stub, None, inputs))


def dpo(kind: str, now: Any, reference: Any, beta: float) -> float:
    """TRL's DPO trainer's loss; the first two answers are preferred to the last two."""
    tokens = torch.cat([torch.zeros(4, 1, dtype=torch.float64), mask()], 1)
    shown = {"entropy": mask(), "mean_logits": mask(), "is_top1": mask().bool()}
    stub: Any = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x),
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[kind],
        loss_weights=[1.0], beta=beta, label_smoothing=0.0, use_weighting=False, _metrics={"train": defaultdict(list)},
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    before = padded(reference).sum(1)
    inputs = {
        "input_ids": tokens.long(), "attention_mask": tokens.long(), "completion_mask": tokens,
        "ref_chosen_logps": before[:2], "ref_rejected_logps": before[2:],
    }  # fmt: skip
    return float(DPOTrainer._compute_loss(stub, lambda **_: SimpleNamespace(log_probs=padded(now), **shown), inputs, False))


def simpo(now: Any, beta: float, gamma: float, smoothing: float) -> float:
    """TRL's CPO trainer's SimPO loss."""
    means = padded(now).sum(1) / mask().sum(1)
    stub: Any = SimpleNamespace(
        loss_type="simpo", beta=beta, simpo_gamma=gamma, label_smoothing=smoothing, alpha=0.0, accelerator=SimpleNamespace(device="cpu")
    )
    return float(CPOTrainer.cpo_loss(stub, means[:2], means[2:])[0].mean())


def main() -> None:
    """Print them all."""
    now, old, reference = numbers(0)
    advantages = [1.2, -0.7, 0.4, -0.9]
    kinds = [(kind, beta) for kind in ("grpo", "dr_grpo", "dapo") for beta in (0.0, 0.04)]
    found = {
        "now": now, "old": old, "reference": reference, "advantages": advantages,
        "grpo": {f"{kind} {beta}": grpo(kind, now, old, reference, advantages, beta) for kind, beta in kinds},
        "dpo": dpo("sigmoid", now, reference, 0.1), "ipo": dpo("ipo", now, reference, 0.1), "simpo": simpo(now, 2.0, 1.0, 0.0),
        "simpo smoothed": simpo(now, 2.0, 1.0, 0.1),
    }  # fmt: skip
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
