"""The two forms of latent attention in torch.

Shapes   T rows, n tokens, H query heads, L latent, N and P parts of a head's key without and with rotary position, C = L + P, E value size,
         G = N + E.
Source   `khola.ops.latent`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from khola.ops.latent import LatentSizes


def made_of(seen_nC: Tensor, up_GL: Tensor, sizes: LatentSizes) -> tuple[Tensor, Tensor]:
    """Keys and values of every head, [n, H, N + P] and [n, H, E], made of latents."""
    made_nHG = functional.linear(seen_nC[:, : sizes.latent], up_GL).reshape(len(seen_nC), sizes.heads, -1)
    turned_nHP = seen_nC[:, None, sizes.latent :].expand(-1, sizes.heads, -1)
    return torch.cat([made_nHG[..., : sizes.plain], turned_nHP], dim=-1), made_nHG[..., sizes.plain :]


def folded_queries(q_THN: Tensor, turned_THP: Tensor, up_GL: Tensor, sizes: LatentSizes) -> Tensor:
    """Queries that meet latents and rotated keys themselves, [T, H, C]."""
    up_HNL = up_GL.reshape(sizes.heads, -1, sizes.latent)[:, : sizes.plain]
    return torch.cat([torch.bmm(q_THN.transpose(0, 1), up_HNL).transpose(0, 1), turned_THP], dim=-1)


def values_of(mixed_THL: Tensor, up_GL: Tensor, sizes: LatentSizes) -> Tensor:
    """Mixtures of values from mixtures of latents, [T, H, E]."""
    up_HEL = up_GL.reshape(sizes.heads, -1, sizes.latent)[:, sizes.plain :]
    return torch.bmm(mixed_THL.transpose(0, 1), up_HEL.mT).transpose(0, 1)
