"""What is computed of logits, a chunk of rows at a time: a whole matrix of logits is never there.

Shapes   R trained rows, C rows of a chunk, D hidden, V vocabulary, K numbers of a row.

Logits are made in the model's dtype and widened to float32 (float64 where the model computes in it). The gradient of a chunk is taken
while its logits are there: at once where the loss is a plain sum (`cross_entropy`), in a second pass where whoever asked has yet to say how
much each row weighs (`per_row`). Gradients of the head are summed over chunks in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from khola.data.packing import Batch
    from khola.train.model import Trainee

CHUNK_NUMBERS = 1 << 25
"""Logits of a chunk: 128 MiB in float32."""

Head = Callable[[Tensor], Tensor]
"""Hidden rows to logits."""
PerRow = Callable[[Tensor, slice], Tensor]
"""Logits of some rows, [C, V] in float32, and which rows these are, to [C, ...]."""


def cross_entropy(head: Head, x_RD: Tensor, targets_R: Tensor, weights: Sequence[Tensor], chunk: int) -> Tensor:
    """The sum of -log p(target) over rows, with gradients to the hidden rows and to the head's weights.

    Args:
        head: hidden rows to logits.
        x_RD: normed hidden rows.
        targets_R: ids.
        weights: tensors of the head that learn.
        chunk: rows at a time.
    Returns:
        A scalar in float32.
    """

    def summed(logits_CV: Tensor, rows: slice) -> Tensor:
        return functional.cross_entropy(logits_CV, targets_R[rows], reduction="sum")

    found: Tensor = cast(Any, _Summed).apply(head, summed, chunk, x_RD, *weights)
    return found


def log_probs(head: Head, x_RD: Tensor, targets_R: Tensor, weights: Sequence[Tensor], chunk: int) -> Tensor:
    """log p(target) of every row, [R] in float32, with gradients; arguments as of `cross_entropy`."""

    def logged(logits_CV: Tensor, rows: slice) -> Tensor:
        return -functional.cross_entropy(logits_CV, targets_R[rows], reduction="none")

    return chunked(head, x_RD, logged, weights, chunk)


def per_row(model: Trainee, batch: Batch, function: PerRow) -> Tensor:
    """Any function of the logits of each trained row of a batch, [R, ...], with gradients."""
    return chunked(model.head, model.hidden(batch), function, model.head_weights(), model.chunk)


def chunked(head: Head, x_RD: Tensor, function: PerRow, weights: Sequence[Tensor], chunk: int) -> Tensor:
    """A function of the logits of each row, [R, ...]; other arguments as of `cross_entropy`."""
    found: Tensor = cast(Any, _PerRow).apply(head, function, chunk, x_RD, *weights)
    return found


def wide(logits: Tensor) -> Tensor:
    """In float32, or float64 where they are."""
    return logits if logits.dtype is torch.float64 else logits.float()


def _slices(rows: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]


class _Sums:
    """Gradients of the head's weights, summed over chunks in float32 at least."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._kinds = [weight.dtype for weight in weights]
        self._sums: list[Tensor | None] = [None] * len(weights)

    def add(self, found: Sequence[Tensor | None]) -> None:
        for place, one in enumerate(found):
            before = self._sums[place]
            if one is not None:
                self._sums[place] = wide(one) if before is None else before.add_(one)

    def whole(self) -> list[Tensor | None]:
        return [None if one is None else one.to(kind) for one, kind in zip(self._sums, self._kinds, strict=True)]


class _Summed(torch.autograd.Function):
    """A sum over chunks, whose gradients are made on the way."""

    @staticmethod
    def forward(ctx: Any, head: Head, function: PerRow, chunk: int, x_RD: Tensor, *weights: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=torch.float64 if x_RD.dtype is torch.float64 else torch.float32, device=x_RD.device)
        d_x, sums = torch.zeros_like(x_RD) if wanted else None, _Sums(weights)
        learning = [weight for weight in weights if weight.requires_grad]
        for rows in _slices(len(x_RD), chunk):
            with torch.set_grad_enabled(wanted):
                x_CD = x_RD[rows].detach().requires_grad_(wanted)
                part = function(wide(head(x_CD)), rows)
                if d_x is not None:
                    d_x[rows], *further = torch.autograd.grad(part, [x_CD, *learning], allow_unused=True)
                    sums.add(further)
            total += part.detach()
        ctx.count = len(weights)
        ctx.save_for_backward(*([d_x, *(one for one in sums.whole())] if d_x is not None else []))
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        d_x, *further = ctx.saved_tensors
        factor = upstream[0]
        return None, None, None, d_x * factor.to(d_x.dtype), *(one * factor.to(one.dtype) if one is not None else None for one in further)


class _PerRow(torch.autograd.Function):
    """Numbers of each row; logits are made again for the gradients."""

    @staticmethod
    def forward(ctx: Any, head: Head, function: PerRow, chunk: int, x_RD: Tensor, *weights: Tensor) -> Tensor:
        ctx.head, ctx.function, ctx.chunk = head, function, chunk
        ctx.save_for_backward(x_RD, *weights)
        with torch.no_grad():
            parts = [function(wide(head(x_RD[rows])), rows) for rows in _slices(len(x_RD), chunk)]
        return torch.cat(parts) if parts else x_RD.new_zeros(0, dtype=torch.float64 if x_RD.dtype is torch.float64 else torch.float32)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        x_RD, *weights = ctx.saved_tensors
        d_x, sums = torch.zeros_like(x_RD), _Sums(weights)
        for rows in _slices(len(x_RD), ctx.chunk):
            with torch.enable_grad():
                x_CD = x_RD[rows].detach().requires_grad_()
                part = ctx.function(wide(ctx.head(x_CD)), rows)
                d_x[rows], *further = torch.autograd.grad(part, [x_CD, *weights], upstream[0][rows], allow_unused=True)
            sums.add(further)
        return None, None, None, d_x, *sums.whole()
