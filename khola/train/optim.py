"""AdamW and Muon on master weights, gradients summed in float32, rates over time, clipping.

Source   AdamW, arXiv:1711.05101 algorithm 2; Muon as in "Muon is Scalable for LLM Training", arXiv:2502.16982 section 2.2 (momentum with
         Nesterov's step, five Newton-Schulz steps, updates scaled by 0.2 sqrt(max(A, B))); the quintic's coefficients are K. Jordan's,
         2024; warm-up, stable, decay: arXiv:2404.06395 section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from khola.errors import AskedWrong
from khola.train import config

QUINTIC = (3.4445, -4.7750, 2.0315)
NEWTON_STEPS = 5
PIECE = 1 << 18
"""Numbers whose squares are added up in their own dtype before float64 takes over."""


def rate(step: int, total: int, c: config.Optimiser) -> float:
    """Share of the peak rate in a step, 0 to 1.

    Args:
        step: from 0.
        total: steps of the whole run.
    """
    warm = round(c.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    at = (step - warm) / max(1, total - warm)
    if c.schedule == "constant":
        return 1.0
    if c.schedule == "wsd":
        falls = max(1, round(c.decay * total))
        at = max(0.0, (step - (total - falls)) / falls)
        return 1.0 - (1.0 - c.floor) * at
    left = 0.5 * (1 + math.cos(math.pi * at)) if c.schedule == "cosine" else 1.0 - at
    return c.floor + (1.0 - c.floor) * left


@final
class Gradients:
    """Gradients of the masters, added up over micro-batches in the masters' own dtype.

    A parameter's gradient is taken from it as soon as it is whole, so that only sums stay.
    """

    def __init__(self, masters: Mapping[str, Tensor], parameters: Mapping[str, Any], *, sharded: bool = False) -> None:
        self.sums: dict[str, Tensor] = {}
        """By name; nothing where nothing flowed."""
        self._masters, self._sharded = masters, sharded
        for name, parameter in parameters.items():
            parameter.register_post_accumulate_grad_hook(self._taking(name))

    def _taking(self, name: str) -> Any:
        def take(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            local: Tensor = cast(Any, gradient).to_local() if self._sharded else gradient
            if name in self.sums:
                self.sums[name].add_(local)
            else:
                master = self._masters[name]
                self.sums[name] = local.to(master.dtype) if local.dtype is not master.dtype else local
            parameter.grad = None

        return take

    def clear(self) -> None:
        """Forget the sums."""
        self.sums.clear()

    def squares(self) -> Tensor:
        """The sum of squares of all numbers here, in float64, added up in the order of names."""
        found = torch.zeros((), dtype=torch.float64)
        for name in sorted(self.sums):
            flat = self.sums[name].reshape(-1)
            for at in range(0, len(flat), PIECE):
                found += torch.dot(flat[at : at + PIECE], flat[at : at + PIECE]).double().cpu()
        return found

    def scale(self, factor: float) -> None:
        """Multiply all."""
        if factor != 1.0:
            for gradient in self.sums.values():
                gradient.mul_(factor)


@final
class Optimiser:
    """Moves master weights; its state is tensors by name and a count of steps.

    Args:
        masters: what learns, by name.
        c: how.
        lr: the peak rate.
        outer: how names begin that lie around the blocks; Muon leaves them to AdamW.
    Raises:
        AskedWrong: Muon has no matrix to move.
    """

    def __init__(self, masters: Mapping[str, Tensor], c: config.Optimiser, lr: float, blocks: str) -> None:
        self._masters, self._c, self._lr = masters, c, lr
        self._muon = {name for name, one in masters.items() if c.name == "muon" and one.dim() > 1 and name.startswith(blocks)}
        if c.name == "muon" and not self._muon:
            raise AskedWrong("Muon moves matrices, and nothing that learns here is one", hint="use optimiser.name=adamw")
        self.steps = 0
        """Updates so far; steps that were left out because of numbers that are not finite do not count."""
        self.moments: dict[str, Tensor] = {}
        """By "m/NAME" and "v/NAME"."""
        for name, master in masters.items():
            self.moments[f"m/{name}"] = torch.zeros_like(master)
            if name not in self._muon:
                self.moments[f"v/{name}"] = torch.zeros_like(master)

    @torch.no_grad()
    def move(self, gradients: Mapping[str, Tensor], share: float) -> None:
        """One update.

        Args:
            gradients: by name; a weight without one stays where it is.
            share: of the peak rate.
        """
        self.steps += 1
        for name, gradient in gradients.items():
            if name in self._muon:
                self._orthogonal(name, gradient, self._lr * share)
            else:
                self._adaptive(name, gradient, self._lr * share)

    def _adaptive(self, name: str, gradient: Tensor, lr: float) -> None:
        c, master = self._c, self._masters[name]
        # Torch's own kernel: one pass over memory where separate operations take six.
        adamw(
            [master], [gradient], [self.moments[f"m/{name}"]], [self.moments[f"v/{name}"]], [], [torch.tensor(self.steps - 1.0)],
            fused=True, amsgrad=False, maximize=False, beta1=c.beta1, beta2=c.beta2, lr=lr, eps=c.eps,
            weight_decay=c.weight_decay if master.dim() > 1 else 0.0,
        )  # fmt: skip

    def _orthogonal(self, name: str, gradient: Tensor, lr: float) -> None:
        c, master, m = self._c, self._masters[name], self.moments[f"m/{name}"]
        m.mul_(c.momentum).add_(gradient)
        turned = orthogonal(gradient.add(m, alpha=c.momentum))
        master.mul_(1 - lr * c.weight_decay)
        master.add_(turned, alpha=-lr * 0.2 * max(master.shape[-2:]) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the nearest matrix whose singular values are 1, for the last two axes; in the dtype given."""
    a, b, c = QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    found: Tensor = x.mT if tall else x
    return found
