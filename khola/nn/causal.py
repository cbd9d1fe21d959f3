"""What decoders of Llama's form have in common: the keys of their configurations, and everything around their blocks.

An architecture file takes what it shares from here by name and writes what is its own: the rest of its keys, its block, and the tensors
of the part behind attention.

Shapes   T packed tokens, R rows whose logits are wanted, D hidden, V vocabulary.
Source   LLaMA, arXiv:2302.13971 section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

from khola.nn.attention import Attention, attention_tensors, moved_rows
from khola.nn.pairs import Moved
from khola.nn.rope import Theta, rope_from_config
from khola.nn.specs import Epsilon, Heads, HeadSize, Layers, Positions, Strict, Vocabulary, Width, check_heads
from khola.ops.vocabulary import CacheSpec, Ops, Rope, Value

LAYERS = "model.layers"
NORMS = ("input_layernorm", "post_attention_layernorm")
"""Of a layer, over the hidden width."""
Shapes = dict[str, tuple[int, ...]]


class DecoderConfig(Strict, frozen=True):
    """Keys of config.json that all of them have; an architecture gives other defaults by naming a key again."""

    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    head_dim: HeadSize | None = None
    max_position_embeddings: Positions = 32768
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Theta | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool = False

    @cached_property
    def key_heads(self) -> int:
        """Key and value heads; as many as query heads where the file does not say."""
        return self.num_key_value_heads or self.num_attention_heads

    @cached_property
    def head_size(self) -> int:
        """Dimensions of a head; they share the hidden width where nothing else is said."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @cached_property
    def rope(self) -> Rope:
        """Rotary positions."""
        return rope_from_config(self)


class CausalConfig(DecoderConfig, frozen=True):
    """The same keys of a decoder whose layers all attend to plain keys and values."""

    def __post_init__(self) -> None:
        check_heads(self.hidden_size, self.num_attention_heads, self.key_heads, self.head_dim)
        _ = self.attentions

    def attention(self, **own: Any) -> Attention:
        """One layer's attention; `own` is what the architecture adds to the sizes."""
        heads, key_heads, size = self.num_attention_heads, self.key_heads, self.head_size
        return Attention(hidden=self.hidden_size, heads=heads, key_heads=key_heads, head_size=size, rope=self.rope, **own)

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """The attention of each layer."""
        return (self.attention(),) * self.num_hidden_layers


def embed(ids_T: Value, w: Any, c: DecoderConfig, ops: Ops) -> Value:
    """Token ids to hidden states, [T, D]."""
    return ops.embed(ids_T, w.model.embed_tokens)


def norm(x_RD: Value, w: Any, c: DecoderConfig, ops: Ops) -> Value:
    """The final norm."""
    return ops.rms_norm(x_RD, w.model.norm, c.rms_norm_eps)


def head(x_RD: Value, w: Any, c: DecoderConfig, ops: Ops) -> Value:
    """Logits, [R, V]; a tied model multiplies by its embedding table."""
    return ops.linear(x_RD, w.model.embed_tokens if c.tie_word_embeddings else w.lm_head)


def cache(c: CausalConfig) -> CacheSpec:
    """Keys and values of every layer."""
    return CacheSpec(tuple(attention.cache for attention in c.attentions))


def pairs(c: CausalConfig) -> dict[str, Moved]:
    """Tensors whose rows are moved when they are loaded."""
    found: dict[str, Moved] = {}
    for layer, attention in enumerate(c.attentions):
        found |= moved_rows(f"{LAYERS}.{layer}.self_attn.", attention)
    return found


def decoder_tensors(
    c: CausalConfig,
    inner: Callable[[str, int], Shapes],
    norms: Sequence[str] = NORMS,
    mixer: Callable[[str, int], Shapes] | None = None,
) -> Shapes:
    """Name and shape of every tensor of the checkpoint.

    Args:
        c: the configuration.
        inner: tensors of the part behind attention, by their prefix, which ends with a dot, and the layer.
        norms: names of a layer's norms over the hidden width.
        mixer: tensors of the part that mixes tokens, by the layer's prefix and the layer; attention everywhere by default.
    """

    def layer_tensors(here: str, layer: int) -> Shapes:
        found: Shapes = {f"{here}{name}.weight": (c.hidden_size,) for name in norms}
        found |= mixer(here, layer) if mixer else attention_tensors(f"{here}self_attn.", c.attentions[layer])
        return found | inner(f"{here}mlp.", layer)

    return whole_tensors(c, layer_tensors)


def whole_tensors(c: DecoderConfig, layer_tensors: Callable[[str, int], Shapes]) -> Shapes:
    """Name and shape of every tensor of the checkpoint, from those of one layer by their prefix, which ends with a dot, and its number."""
    found: Shapes = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}
    for layer in range(c.num_hidden_layers):
        found |= layer_tensors(f"{LAYERS}.{layer}.", layer)
    found["model.norm.weight"] = (c.hidden_size,)
    if not c.tie_word_embeddings:
        found["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    return found
