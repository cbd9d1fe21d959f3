"""Latent attention: keys and values of all heads are made from one short vector a token, which is all that the cache keeps of it.

Shapes   T packed rows, D hidden, H query heads, L latent, N and P parts of a head without and with rotary position, E value size.
Source   arXiv:2405.04434 section 2.1; arXiv:2412.19437 section 2.1.1.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from khola.nn.pairs import Pairs
from khola.ops.vocabulary import LayerCache, Ops, Rope, Step, Value


class LatentAttention(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer of latent attention is, besides its weights."""

    hidden: int
    heads: int
    query_rank: int | None
    """Width that queries are squeezed into first; None where they are not."""
    latent: int
    plain: int
    """Of a head's query and key, the dimensions without position."""
    turned: int
    """And those that are rotated; their key is the same for all heads."""
    value: int
    rope: Rope
    score_factor: float = 1.0
    """Multiplies the scores besides; see `khola.nn.rope.score_factor`."""
    norm_eps: float = 1e-6
    """Epsilon of the norms on what is squeezed, which labs' code fixes whatever the configuration says."""
    biases: bool = False
    """Whether q_a_proj, kv_a_proj_with_mqa and o_proj have a bias."""
    adjacent: bool = True
    """Whether rotary pairs lie side by side in the checkpoint; loading moves the rows, so that computing knows half-split pairs only."""

    @property
    def scale(self) -> float:
        """Multiplies the scores."""
        return self.score_factor / math.sqrt(self.plain + self.turned)

    @property
    def cache(self) -> LayerCache:
        """What the layer keeps of every token: its latent and its rotated key."""
        return LayerCache(1, self.latent + self.turned, 0)

    def tensors(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the layer's tensors; `prefix` ends with a dot."""
        queries, squeezed = self.heads * (self.plain + self.turned), self.latent + self.turned
        found: dict[str, tuple[int, ...]] = {}
        if self.query_rank is None:
            found["q_proj.weight"] = (queries, self.hidden)
        else:
            found["q_a_proj.weight"] = (self.query_rank, self.hidden)
            found["q_a_layernorm.weight"] = (self.query_rank,)
            found["q_b_proj.weight"] = (queries, self.query_rank)
        found["kv_a_proj_with_mqa.weight"] = (squeezed, self.hidden)
        found["kv_a_layernorm.weight"] = (self.latent,)
        found["kv_b_proj.weight"] = (self.heads * (self.plain + self.value), self.latent)
        found["o_proj.weight"] = (self.hidden, self.heads * self.value)
        if self.biases:
            found |= {"kv_a_proj_with_mqa.bias": (squeezed,), "o_proj.bias": (self.hidden,)}
            found |= {} if self.query_rank is None else {"q_a_proj.bias": (self.query_rank,)}
        return {f"{prefix}{name}": shape for name, shape in found.items()}

    def pairs(self, prefix: str) -> dict[str, Pairs]:
        """Tensors of the layer whose rotary pairs lie side by side; `prefix` ends with a dot."""
        if not self.adjacent:
            return {}
        query = "q_proj" if self.query_rank is None else "q_b_proj"
        squeezed = Pairs(self.latent + self.turned, self.turned, self.latent)
        found = {f"{prefix}{query}.weight": Pairs(self.plain + self.turned, self.turned, self.plain)}
        found[f"{prefix}kv_a_proj_with_mqa.weight"] = squeezed
        return found | ({f"{prefix}kv_a_proj_with_mqa.bias": squeezed} if self.biases else {})


def latent_attention(x_TD: Value, w: Any, step: Step, layer: int, a: LatentAttention, ops: Ops) -> Value:
    """Squeeze, rotate, mix the values of earlier tokens, project back: [T, D] to [T, D].

    Args:
        x_TD: normed hidden states.
        w: a subtree with the modules that `a.tensors` lists.
        step: positions, segments and cache of this step.
        layer: index of the cache plane.
        a: sizes and rotation.
        ops: the interpreter.
    """
    if a.query_rank is None:
        q_TQ = ops.linear(x_TD, w.q_proj)
    else:
        q_TQ = ops.linear(ops.rms_norm(ops.linear(x_TD, w.q_a_proj), w.q_a_layernorm, a.norm_eps), w.q_b_proj)
    q_THN, turned_THP = ops.split(ops.heads(q_TQ, a.plain + a.turned), (a.plain, a.turned))
    latent_TL, key_TP = ops.split(ops.linear(x_TD, w.kv_a_proj_with_mqa), (a.latent, a.turned))
    latent_TL = ops.rms_norm(latent_TL, w.kv_a_layernorm, a.norm_eps)
    key_TP = ops.flat(ops.rotate(ops.heads(key_TP, a.turned), step, a.rope))
    turned_THP = ops.rotate(turned_THP, step, a.rope)
    return ops.linear(ops.flat(ops.attend_latent(q_THN, turned_THP, latent_TL, key_TP, w.kv_b_proj, step, layer, a.scale)), w.o_proj)
