"""Qwen1.5, Qwen2, Qwen2.5, QwQ-32B and R1-Distill-Qwen: a Llama decoder with biases on q, k and v.

Source   Qwen2 technical report, arXiv:2407.10671 section 2.2.
Files    safetensors Qwen2ForCausalLM; GGUF "qwen2".
Shapes   T packed tokens, R rows whose logits are wanted, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from khola.nn.attention import Attention, attention
from khola.nn.causal import LAYERS, Shapes, cache, decoder_tensors, embed, head, norm, pairs
from khola.nn.gated_ffn import gated_ffn, gated_ffn_tensors
from khola.nn.specs import BOOKKEEPING
from khola.nn.windows import WindowedConfig
from khola.ops.vocabulary import Ops, Step, Value

__all__ = ["IGNORED", "LAYERS", "Config", "block", "cache", "embed", "head", "norm", "pairs", "tensors"]


class Config(WindowedConfig, frozen=True):
    """Keys of config.json. A window in the file counts only where `use_sliding_window` says so, and then for the upper layers."""

    use_mrope: Literal[False] = False

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """The attention of each layer."""
        return tuple(self.attention(biases="qkv", window=window) for window in self.windows)


def block(x_TD: Value, w: Any, layer: int, step: Step, c: Config, ops: Ops) -> Value:
    """Attention, then the gated part; each is normed before and added to its input."""
    x_TD = x_TD + attention(ops.rms_norm(x_TD, w.input_layernorm, c.rms_norm_eps), w.self_attn, step, layer, c.attentions[layer], ops)
    return x_TD + gated_ffn(ops.rms_norm(x_TD, w.post_attention_layernorm, c.rms_norm_eps), w.mlp, ops)


def tensors(c: Config) -> Shapes:
    """Name and shape of every tensor of the checkpoint."""
    return decoder_tensors(c, lambda prefix, layer: gated_ffn_tensors(prefix, c.hidden_size, c.intermediate_size))


IGNORED: Mapping[str, str] = {
    **BOOKKEEPING,
    "attention_bias": "Qwen2 always has biases on q, k and v and none on o",
    "dual_chunk_attention_config": "Qwen2.5-1M's way beyond 262144 tokens, where its cards end; transformers does not read it either",
}
