"""Low-rank adapters beside frozen matrices, which may lie in groups of 64 with 8 or 4 bits.

Shapes   T rows, N inputs, D outputs, R rank, G groups of 64 inputs.
Source   LoRA, arXiv:2106.09685 section 4.1; DoRA, arXiv:2402.09353 sections 4.1 and 4.3 (the norm carries no gradient); rank-stabilised
         scale, arXiv:2312.03732 section 3; frozen quantised bases, arXiv:2305.14314 section 3. Groups: `docs/formats.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from khola.ops.vocabulary import Stored, Weight
from khola.store.quantisers import quantise_well

GROUP = 64
PIECE = 1 << 16
"""Values that are quantised at once."""
KINDS = {"int8": "INT8G64", "int4": "INT4G64"}


class Linear(Protocol):
    """What an adapter needs of an interpreter."""

    def linear(self, x_TN: Tensor, weight: Weight) -> Tensor:
        """x times the transposed weight, plus its bias."""


@dataclass(frozen=True, eq=False)
class Grouped:
    """A frozen matrix in groups of 64 inputs; dequantised for a product, and again for its gradient, and never kept."""

    codes: Tensor
    """uint8 [D, G, 32] or int8 [D, G, 64]."""
    scales_DG: Tensor
    """float16."""
    dtype: torch.dtype
    """To compute in."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.codes.shape[0], self.codes.shape[1] * GROUP

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.codes.nbytes + self.scales_DG.nbytes

    def whole(self, dtype: torch.dtype | None = None) -> Tensor:
        """The matrix [D, N]: scale times code."""
        codes = self.codes
        if codes.dtype is torch.uint8:
            codes = torch.cat([codes & 15, codes >> 4], dim=-1).to(torch.int8) - 8
        return (codes.float() * self.scales_DG.float()[..., None]).reshape(self.shape).to(dtype or self.dtype)

    def product(self, x_TN: Tensor, bias_D: Tensor | None, ops: Linear) -> Tensor:
        """x times the transposed matrix, plus a bias."""
        found: Tensor = cast(Any, _GroupedProduct).apply(x_TN, self)
        return found if bias_D is None else found + bias_D


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TN: Tensor, matrix: Grouped) -> Tensor:
        ctx.matrix = matrix
        return functional.linear(x_TN, matrix.whole(x_TN.dtype))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return upstream[0] @ ctx.matrix.whole(upstream[0].dtype), None


def grouped(stored: Stored, base: str, dtype: torch.dtype, device: torch.device) -> Grouped:
    """A stored matrix in groups; bytes that are groups of this format already are taken as they lie.

    Args:
        stored: [D, N]; N a multiple of 64.
        base: "int8" or "int4".
    """
    kind = KINDS[base]
    rows, inputs = stored.shape
    if stored.kind == kind:
        found = np.frombuffer(stored.raw(), np.uint8).copy()
    else:
        values, piece = stored.float32(), max(1, PIECE // inputs)
        found = np.concatenate([quantise_well(kind, values[at : at + piece], tensor=stored.name) for at in range(0, rows, piece)])
    blocks = torch.from_numpy(found).reshape(rows, inputs // GROUP, -1)
    scales = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    codes = blocks[..., 2:].contiguous()
    return Grouped((codes if base == "int4" else codes.view(torch.int8)).to(device), scales.contiguous().to(device), dtype)


@dataclass(frozen=True, eq=False)
class Adapted:
    """A frozen matrix with its adapter; `khola.ops.torch_ops.TorchOps.linear` multiplies by it."""

    base: Tensor | Grouped
    a_RN: Tensor
    b_DR: Tensor
    scale: float
    magnitude_D: Tensor | None = None
    """DoRA's lengths of rows; None is plain LoRA."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the base."""
        return tuple(self.base.shape)

    def product(self, x_TN: Tensor, bias_D: Tensor | None, ops: Linear) -> Tensor:
        """x times the transposed adapted matrix, plus a bias."""
        inner_TR = ops.linear(x_TN, Weight("lora_a", self.a_RN))
        added = ops.linear(inner_TR, Weight("lora_b", self.b_DR)) * self.scale
        if self.magnitude_D is None:
            return ops.linear(x_TN, Weight("base", self.base, bias_D)) + added
        with torch.no_grad():
            length_D = self._summed().float().norm(dim=1)
        y: Tensor = (ops.linear(x_TN, Weight("base", self.base)) + added) * (self.magnitude_D / length_D).to(x_TN.dtype)
        return y if bias_D is None else y + bias_D

    def merged(self) -> Tensor:
        """The adapted matrix as one, [D, N] in float32."""
        with torch.no_grad():
            found = self._summed().float()
            return found if self.magnitude_D is None else found * (self.magnitude_D.float() / found.norm(dim=1))[:, None]

    def _summed(self) -> Tensor:
        base = self.base.whole(torch.float32) if isinstance(self.base, Grouped) else self.base.float()
        return base + self.scale * (self.b_DR.float() @ self.a_RN.float())


def fresh(shape: tuple[int, ...], rank: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A new adapter in float32: a is uniform within 1 / sqrt(N), b is zero, so that nothing changes yet."""
    outputs, inputs = shape
    bound = inputs**-0.5
    a_RN = torch.from_numpy(rng.uniform(-bound, bound, (rank, inputs)).astype(np.float32))
    return a_RN, torch.zeros(outputs, rank)
