"""Latent attention of one sequence in numpy: keys and values made of the latents, or the matrix that makes them folded into the queries.

Shapes   R new rows, n tokens they see (the new ones are the last R), H query heads, L latent, N and P parts of a head's key without and
         with rotary position, C = L + P, E value size, G = N + E.
Source   `khola.ops.latent`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from khola.ops.latent import LatentSizes
from khola.ops.numpy_attention import mix_values

Array = NDArray[Any]

MAX_MADE = 1 << 24
"""Numbers of keys and values that exist at once: 64 MiB in float32, however many heads there are."""


def mix_latents(q_RHN: Array, turned_RHP: Array, seen_nC: Array, up_GL: Array, sizes: LatentSizes, scale: float) -> Array:
    """Values mixed by the softmax of scaled scores, [R, H, E], in the form that costs less; arguments as `Ops.attend_latent`.

    Args:
        q_RHN: queries of the last R of n positions, what has no position.
        turned_RHP: and what has, rotated.
        seen_nC: latent and rotated key of every token.
        up_GL: [H x G, L].
        sizes: of all these.
        scale: multiplies the scores.
    """
    form = absorbed if sizes.absorbs(len(q_RHN), len(seen_nC)) else expanded
    return form(q_RHN, turned_RHP, seen_nC, up_GL, sizes, scale)


def absorbed(q_RHN: Array, turned_RHP: Array, seen_nC: Array, up_GL: Array, sizes: LatentSizes, scale: float) -> Array:
    """Every head's queries meet the latents themselves, which are one key head for all."""
    up_HGL = up_GL.reshape(sizes.heads, -1, sizes.latent)
    q_HRL = q_RHN.transpose(1, 0, 2) @ up_HGL[:, : sizes.plain]
    q_RHC = np.concatenate([q_HRL.transpose(1, 0, 2), turned_RHP], axis=-1)
    seen_n1C = seen_nC[:, None]
    mixed_RHL = mix_values(q_RHC, seen_n1C, seen_n1C[..., : sizes.latent], scale, None)
    mixed_HRE = mixed_RHL.transpose(1, 0, 2) @ up_HGL[:, sizes.plain :].transpose(0, 2, 1)
    return mixed_HRE.transpose(1, 0, 2)


def expanded(q_RHN: Array, turned_RHP: Array, seen_nC: Array, up_GL: Array, sizes: LatentSizes, scale: float) -> Array:
    """Every head has keys and values of its own, some heads at a time."""
    heads, plain, turned, latent, value = sizes
    q_RHK = np.concatenate([q_RHN, turned_RHP], axis=-1)
    latents_nL = np.ascontiguousarray(seen_nC[:, :latent])
    up_HGL = up_GL.reshape(heads, -1, latent)
    mixed_RHE = np.empty((len(q_RHN), heads, value), q_RHN.dtype)
    at_once = max(1, MAX_MADE // (len(seen_nC) * (plain + turned + value)))
    for first in range(0, heads, at_once):
        own = slice(first, min(first + at_once, heads))
        made_nhG = (latents_nL @ up_HGL[own].reshape(-1, latent).T).reshape(len(seen_nC), own.stop - first, -1)
        turned_nhP = np.broadcast_to(seen_nC[:, None, latent:], (*made_nhG.shape[:2], turned))
        keys_nhK = np.concatenate([made_nhG[..., :plain], turned_nhP], axis=-1)
        mixed_RHE[:, own] = mix_values(q_RHK[:, own], keys_nhK, made_nhG[..., plain:], scale, None)
    return mixed_RHE
