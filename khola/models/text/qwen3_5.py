"""Qwen3.5 and Qwen3.6, the text part, dense and with experts.

The decoder of Qwen3-Next, its projections apart, its rotary pairs dealt to three axes.

Source   transformers `models/qwen3_5` and `models/qwen3_5_moe`, contributed by the lab; Gated Delta Networks, arXiv:2412.06464.
Files    safetensors Qwen3_5ForConditionalGeneration and Qwen3_5MoeForConditionalGeneration, of which the text part is read.
Shapes   T packed tokens, R rows whose logits are wanted, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from khola.nn.causal import LAYERS, Shapes, embed, head
from khola.nn.delta import gated_delta
from khola.nn.experts import SPARSE_IGNORED
from khola.nn.hybrid import HybridConfig, cache, hybrid_block, hybrid_rows, hybrid_tensors, norm
from khola.nn.pairs import Moved
from khola.ops.vocabulary import Ops, Step, Value

__all__ = ["IGNORED", "LAYERS", "Config", "block", "cache", "embed", "head", "norm", "pairs", "tensors"]


class Config(HybridConfig, frozen=True, kw_only=True):
    """Keys of config.json; a file without `num_experts` is of a dense model.

    `output_gate_type` came with Qwen3.6 and names the gate that delta layers had before.
    """

    attn_output_gate: Literal[True] = True
    mamba_ssm_dtype: Literal["float32"] = "float32"
    output_gate_type: Literal["swish", "silu"] = "swish"


def block(x_TD: Value, w: Any, layer: int, step: Step, c: Config, ops: Ops) -> Value:
    """A mixing part, then experts or one gated part; each is normed before and added to its input."""
    return hybrid_block(x_TD, w, layer, step, c, ops, _delta)


def _delta(x_TD: Value, w: Any, step: Step, layer: int, c: HybridConfig, ops: Ops) -> Value:
    """A delta layer from its four projections."""
    qkv_TC, z_TD, b_TH, a_TH = (ops.linear(x_TD, p) for p in (w.in_proj_qkv, w.in_proj_z, w.in_proj_b, w.in_proj_a))
    return gated_delta(qkv_TC, z_TD, b_TH, a_TH, w, step, layer, c.delta, ops)


def pairs(c: Config) -> dict[str, Moved]:
    """Tensors whose rows are moved when they are loaded."""
    return hybrid_rows(c, lambda prefix: {})


def tensors(c: Config) -> Shapes:
    """Name and shape of every tensor of the text part."""
    d = c.delta
    widths = {"qkv": d.columns, "z": d.values, "b": d.heads, "a": d.heads}
    return hybrid_tensors(c, lambda prefix: {f"{prefix}in_proj_{name}.weight": (width, d.hidden) for name, width in widths.items()})


IGNORED: Mapping[str, str] = {
    **SPARSE_IGNORED,
    "mtp_num_hidden_layers": "of layers that guess a second token, which nothing here asks",
    "mtp_use_dedicated_embeddings": "of layers that guess a second token, which nothing here asks",
}
