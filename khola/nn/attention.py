"""Grouped-query attention with rotary positions: one part for every decoder that caches plain keys and values.

Shapes   T packed rows, D hidden, H query heads, K key heads, E head size.
Source   arXiv:2305.13245 section 2.2; norms on queries and keys before they are rotated, arXiv:2505.09388 section 2; a gate behind
         attention, arXiv:2505.06708 section 3.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from khola.nn.pairs import Grouped, Moved, Pairs
from khola.ops.vocabulary import LayerCache, Ops, Rope, Step, Value


class Attention(msgspec.Struct, frozen=True, kw_only=True):
    """What one attention layer is, besides its weights."""

    hidden: int
    heads: int
    key_heads: int
    head_size: int
    rope: Rope
    window: int | None = None
    """A token sees this many positions, its own included; None for all."""
    norm_eps: float | None = None
    """Epsilon of the norms on each head of q and k; None where there are none."""
    biases: str = ""
    """Which of the four projections have a bias: letters of "qkvo"."""
    plus_one: bool = False
    """Whether these norms multiply by 1 + weight."""
    gated: bool = False
    """Whether q_proj gives a gate behind the query of each head, whose sigmoid multiplies what attention gives."""
    adjacent: bool = False
    """Whether rotary pairs lie side by side in the checkpoint; loading moves the rows, so that computing knows half-split pairs only."""

    @property
    def scale(self) -> float:
        """Multiplies the scores."""
        return 1 / math.sqrt(self.head_size)

    @property
    def cache(self) -> LayerCache:
        """What the layer keeps of every token."""
        return LayerCache(self.key_heads, self.head_size, self.head_size)


def attention(x_TD: Value, w: Any, step: Step, layer: int, a: Attention, ops: Ops) -> Value:
    """Project, rotate, mix the values of earlier tokens, project back: [T, D] to [T, D].

    Args:
        x_TD: normed hidden states.
        w: a subtree with q_proj, k_proj, v_proj and o_proj, and with q_norm and k_norm where `a.norm_eps` is given; rows of q_proj that
            give gates stand behind those that give queries.
        step: positions, segments and cache of this step.
        layer: index of the cache plane.
        a: sizes, rotation and window.
        ops: the interpreter.
    """
    q_TD, k_TD, v_TD = (ops.linear(x_TD, p) for p in (w.q_proj, w.k_proj, w.v_proj))
    gate_TD = None
    if a.gated:
        q_TD, gate_TD = ops.split(q_TD, (a.heads * a.head_size,) * 2)
    q_THE, k_TKE, v_TKE = (ops.heads(x, a.head_size) for x in (q_TD, k_TD, v_TD))
    if a.norm_eps is not None:
        q_THE, k_TKE = (ops.rms_norm(x, p, a.norm_eps, a.plus_one) for x, p in ((q_THE, w.q_norm), (k_TKE, w.k_norm)))
    q_THE, k_TKE = ops.rotate(q_THE, step, a.rope), ops.rotate(k_TKE, step, a.rope)
    mixed_TD = ops.flat(ops.attend(q_THE, k_TKE, v_TKE, step, layer, a.scale, a.window))
    return ops.linear(mixed_TD if gate_TD is None else ops.sigmoid(gate_TD) * mixed_TD, w.o_proj)


def moved_rows(prefix: str, a: Attention) -> dict[str, Moved]:
    """Tensors of an attention layer whose rows are moved when they are loaded; `prefix` ends with a dot."""
    found: dict[str, Moved] = {}
    if a.gated:
        found[f"{prefix}q_proj.weight"] = Grouped((a.head_size, a.head_size))
        if "q" in a.biases:
            found[f"{prefix}q_proj.bias"] = Grouped((a.head_size, a.head_size))
    if not a.adjacent:
        return found
    for letter in "qk":
        found[f"{prefix}{letter}_proj.weight"] = Pairs(a.head_size, a.rope.width)
        if letter in a.biases:
            found[f"{prefix}{letter}_proj.bias"] = Pairs(a.head_size, a.rope.width)
        if a.norm_eps is not None:
            found[f"{prefix}{letter}_norm.weight"] = Pairs(a.head_size, a.rope.width)
    return found


def attention_tensors(prefix: str, a: Attention) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an attention layer's tensors; `prefix` ends with a dot."""
    wide, narrow = a.heads * a.head_size, a.key_heads * a.head_size
    shapes = {"q": (wide * (2 if a.gated else 1), a.hidden), "k": (narrow, a.hidden), "v": (narrow, a.hidden), "o": (a.hidden, wide)}
    found: dict[str, tuple[int, ...]] = {f"{prefix}{letter}_proj.weight": shape for letter, shape in shapes.items()}
    found |= {f"{prefix}{letter}_proj.bias": (shapes[letter][0],) for letter in a.biases}
    if a.norm_eps is not None:
        found |= {f"{prefix}{letter}_norm.weight": (a.head_size,) for letter in "qk"}
    return found
