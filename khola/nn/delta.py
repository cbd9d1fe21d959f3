"""Gated delta attention: a short convolution, a state that forgets and corrects itself, and a gated norm on what is read of it.

Shapes   T packed rows, D hidden, K key heads, H value heads, E size of a key, F size of a value, C columns of the convolution.
Source   Gated Delta Networks, arXiv:2412.06464 sections 3.1 and 3.4; transformers `models/qwen3_next` for the order of the norms.
"""

from __future__ import annotations

from typing import Any

import msgspec

from khola.ops.vocabulary import Ops, StateCache, Step, Value


class GatedDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What one such layer is, besides its weights."""

    hidden: int
    key_heads: int
    heads: int
    """Value heads; consecutive ones share a key head."""
    key_size: int
    value_size: int
    taps: int
    """Rows that the convolution sees."""
    norm_eps: float

    @property
    def keys(self) -> int:
        """Width of all queries, and of all keys."""
        return self.key_heads * self.key_size

    @property
    def values(self) -> int:
        """Width of all values."""
        return self.heads * self.value_size

    @property
    def columns(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.keys + self.values

    @property
    def cache(self) -> StateCache:
        """What the layer keeps of a sequence."""
        return StateCache(self.heads, self.key_size, self.value_size, self.columns, self.taps)


def gated_delta(qkv_TC: Value, z_TD: Value, b_TH: Value, a_TH: Value, w: Any, step: Step, layer: int, d: GatedDelta, ops: Ops) -> Value:
    """Convolve, correct the state and read it, norm, gate, project back, [T, D].

    Args:
        qkv_TC: queries of all heads, then keys, then values.
        z_TD: opens the gate on what is read.
        b_TH: opens the gate on what is written.
        a_TH: how fast the state is forgotten.
        w: a subtree with conv1d, A_log, dt_bias, norm and out_proj.
        step: segments and state slots of this step.
        layer: index of the state.
        d: sizes.
        ops: the interpreter.
    """
    q_TD, k_TD, v_TD = ops.split(ops.causal_conv(qkv_TC, w.conv1d, step, layer), (d.keys, d.keys, d.values))
    q_TKE, k_TKE, v_THF = ops.heads(q_TD, d.key_size), ops.heads(k_TD, d.key_size), ops.heads(v_TD, d.value_size)
    log_decay_TH = ops.log_decay(a_TH, w.A_log, w.dt_bias)
    read_THF = ops.delta_scan(q_TKE, k_TKE, v_THF, log_decay_TH, ops.sigmoid(b_TH), step, layer)
    return ops.linear(ops.silu_mul(z_TD, ops.flat(ops.rms_norm(read_THF, w.norm, d.norm_eps))), w.out_proj)


def gated_delta_tensors(prefix: str, d: GatedDelta) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's tensors, but of the projections that it begins with; `prefix` ends with a dot."""
    return {
        f"{prefix}conv1d.weight": (d.columns, 1, d.taps),
        f"{prefix}A_log": (d.heads,),
        f"{prefix}dt_bias": (d.heads,),
        f"{prefix}norm.weight": (d.value_size,),
        f"{prefix}out_proj.weight": (d.hidden, d.values),
    }
