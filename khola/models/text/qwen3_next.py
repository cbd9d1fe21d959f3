"""Qwen3-Next-80B-A3B: three layers of gated delta attention to one of gated softmax attention, and many small experts.

What a delta layer begins with lies in two matrices, grouped by key head; their rows are moved when they are loaded.

Source   https://qwen.ai/blog?id=qwen3-next; Gated Delta Networks, arXiv:2412.06464; transformers `models/qwen3_next`.
Files    safetensors Qwen3NextForCausalLM.
Shapes   T packed tokens, R rows whose logits are wanted, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from khola.nn.causal import LAYERS, Shapes, embed, head
from khola.nn.delta import gated_delta
from khola.nn.experts import SPARSE_IGNORED, Experts
from khola.nn.hybrid import HybridConfig, cache, hybrid_block, hybrid_rows, hybrid_tensors, norm
from khola.nn.pairs import Grouped, Moved
from khola.nn.specs import Width
from khola.ops.vocabulary import Ops, Step, Value

__all__ = ["IGNORED", "LAYERS", "Config", "block", "cache", "embed", "head", "norm", "pairs", "tensors"]


class Config(HybridConfig, frozen=True, kw_only=True):
    """Keys of config.json; `intermediate_size` belongs to the layers that have no experts."""

    num_experts: Experts
    num_experts_per_tok: Experts
    moe_intermediate_size: Width
    shared_expert_intermediate_size: Width
    use_sliding_window: Literal[False] = False


def block(x_TD: Value, w: Any, layer: int, step: Step, c: Config, ops: Ops) -> Value:
    """A mixing part, then experts or one gated part; each is normed before and added to its input."""
    return hybrid_block(x_TD, w, layer, step, c, ops, _delta)


def _delta(x_TD: Value, w: Any, step: Step, layer: int, c: HybridConfig, ops: Ops) -> Value:
    """A delta layer from its two projections."""
    d = c.delta
    qkv_TC, z_TD = ops.split(ops.linear(x_TD, w.in_proj_qkvz), (d.columns, d.values))
    b_TH, a_TH = ops.split(ops.linear(x_TD, w.in_proj_ba), (d.heads, d.heads))
    return gated_delta(qkv_TC, z_TD, b_TH, a_TH, w, step, layer, d, ops)


def pairs(c: Config) -> dict[str, Moved]:
    """Tensors whose rows are moved when they are loaded: each key head has its q, k, v and z, its b and a, one after another."""
    d = c.delta
    group = d.heads // d.key_heads
    values = group * d.value_size
    return hybrid_rows(
        c,
        lambda prefix: {
            f"{prefix}in_proj_qkvz.weight": Grouped((d.key_size, d.key_size, values, values)),
            f"{prefix}in_proj_ba.weight": Grouped((group, group)),
        },
    )


def tensors(c: Config) -> Shapes:
    """Name and shape of every tensor of the checkpoint."""
    d = c.delta
    return hybrid_tensors(
        c,
        lambda prefix: {
            f"{prefix}in_proj_qkvz.weight": (d.columns + d.values, d.hidden),
            f"{prefix}in_proj_ba.weight": (2 * d.heads, d.hidden),
        },
    )


IGNORED: Mapping[str, str] = SPARSE_IGNORED
