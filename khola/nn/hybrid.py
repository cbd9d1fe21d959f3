"""What Qwen's hybrid decoders have in common: three layers of gated delta attention to one of gated softmax attention, norms by 1 + weight.

Shapes   T packed tokens, R rows whose logits are wanted, D hidden, V vocabulary.
Source   transformers `models/qwen3_next` and `models/qwen3_5`, contributed by the lab.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from khola.errors import BadConfig
from khola.nn.attention import Attention, attention, attention_tensors, moved_rows
from khola.nn.causal import LAYERS, CausalConfig, Shapes, decoder_tensors
from khola.nn.delta import GatedDelta, gated_delta_tensors
from khola.nn.experts import Experts, Mixture, check_chosen, sparse_ffn, sparse_ffn_tensors, sparse_layers
from khola.nn.pairs import Moved
from khola.nn.rope import Share, rope_from_config
from khola.nn.specs import FILE, Heads, HeadSize, Width
from khola.ops.vocabulary import CacheSpec, Ops, Rope, Routing, Step, Value

AXES = ("mrope_section", "mrope_interleaved")
"""How rotary pairs are dealt to the axes of pictures; a token of a text has the same position on all of them."""


class HybridConfig(CausalConfig, frozen=True, kw_only=True):
    """Keys of config.json; those of experts are there or not, all together."""

    intermediate_size: Width = 1
    """Of the layers without experts; files without such layers leave it out."""
    head_dim: HeadSize | None = 256
    partial_rotary_factor: Share = 0.25
    attention_bias: bool = False
    linear_conv_kernel_dim: Annotated[int, Meta(ge=2, le=64)] = 4
    linear_key_head_dim: Annotated[int, Meta(ge=1, le=4096)] = 128
    linear_value_head_dim: Annotated[int, Meta(ge=1, le=4096)] = 128
    linear_num_key_heads: Heads = 16
    linear_num_value_heads: Heads = 32
    full_attention_interval: Annotated[int, Meta(ge=1, le=4096)] = 4
    layer_types: list[Literal["linear_attention", "full_attention"]] | None = None
    num_experts: Experts | None = None
    num_experts_per_tok: Experts | None = None
    moe_intermediate_size: Width | None = None
    shared_expert_intermediate_size: Width | None = None
    norm_topk_prob: bool = True
    decoder_sparse_step: Annotated[int, Meta(ge=1, le=4096)] = 1
    mlp_only_layers: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise BadConfig(
                "{file}: {key} is {found}; expected a multiple of linear_num_key_heads, {heads}",
                file=FILE,
                key="linear_num_value_heads",
                found=self.linear_num_value_heads,
                heads=self.linear_num_key_heads,
            )
        if self.intermediate_size == 1 and not all(self.sparse):
            raise BadConfig("{file}: the configuration lacks {key}", file=FILE, key="intermediate_size")
        _ = self.mixers, self.mixture

    @cached_property
    def rope(self) -> Rope:
        """Rotary positions of a text."""
        parameters = {key: value for key, value in (self.rope_parameters or {}).items() if key not in AXES}
        if len(parameters) < len(self.rope_parameters or {}):
            return msgspec.structs.replace(self, rope_parameters=parameters).rope
        return rope_from_config(self, self.partial_rotary_factor)

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """The softmax attention that each layer has, or would have."""
        biases = "qkvo" if self.attention_bias else ""
        own = self.attention(norm_eps=self.rms_norm_eps, plus_one=True, gated=True, biases=biases)
        return (own,) * self.num_hidden_layers

    @cached_property
    def delta(self) -> GatedDelta:
        """The other kind of layer."""
        return GatedDelta(
            hidden=self.hidden_size,
            key_heads=self.linear_num_key_heads,
            heads=self.linear_num_value_heads,
            key_size=self.linear_key_head_dim,
            value_size=self.linear_value_head_dim,
            taps=self.linear_conv_kernel_dim,
            norm_eps=self.rms_norm_eps,
        )

    @cached_property
    def mixers(self) -> tuple[Attention | GatedDelta, ...]:
        """What mixes the tokens of each layer."""
        layers = self.num_hidden_layers
        every = ["linear_attention" if (layer + 1) % self.full_attention_interval else "full_attention" for layer in range(layers)]
        kinds = self.layer_types if self.layer_types is not None else every
        if len(kinds) != layers:
            raise BadConfig(
                "{file}: layer_types has {found} entries; expected {expected}, one for each layer",
                file=FILE,
                key="layer_types",
                found=len(kinds),
                expected=layers,
            )
        return tuple(self.attentions[layer] if kind == "full_attention" else self.delta for layer, kind in enumerate(kinds))

    @cached_property
    def mixture(self) -> Mixture | None:
        """The mixture of every layer that has one."""
        if self.num_experts is None:
            return None
        for key in ("num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size"):
            if getattr(self, key) is None:
                raise BadConfig("{file}: the configuration lacks {key}", file=FILE, key=key)
        chosen, inner, shared = self.num_experts_per_tok or 0, self.moe_intermediate_size or 0, self.shared_expert_intermediate_size or 0
        check_chosen(self.num_experts, chosen, "num_experts_per_tok")
        return Mixture(
            hidden=self.hidden_size,
            experts=self.num_experts,
            inner=inner,
            routing=Routing(chosen=chosen, normalised=self.norm_topk_prob),
            shared="shared_expert",
            shared_inner=shared,
            shared_gate="shared_expert_gate",
        )

    @cached_property
    def sparse(self) -> tuple[bool, ...]:
        """Which layers are mixtures."""
        if self.num_experts is None:
            return (False,) * self.num_hidden_layers
        return sparse_layers(self.num_hidden_layers, self.decoder_sparse_step, self.mlp_only_layers)


Delta = Callable[[Value, Any, Step, int, HybridConfig, Ops], Value]
"""A layer of gated delta attention, [T, D] to [T, D]: input, subtree, step, layer, configuration, interpreter."""


def hybrid_block(x_TD: Value, w: Any, layer: int, step: Step, c: HybridConfig, ops: Ops, delta: Delta) -> Value:
    """A mixing part, then experts or one gated part; each is normed before and added to its input."""
    mixer = c.mixers[layer]
    h_TD = ops.rms_norm(x_TD, w.input_layernorm, c.rms_norm_eps, plus_one=True)
    if isinstance(mixer, Attention):
        x_TD = x_TD + attention(h_TD, w.self_attn, step, layer, mixer, ops)
    else:
        x_TD = x_TD + delta(h_TD, w.linear_attn, step, layer, c, ops)
    return x_TD + sparse_ffn(ops.rms_norm(x_TD, w.post_attention_layernorm, c.rms_norm_eps, plus_one=True), w.mlp, layer, c, ops)


def norm(x_RD: Value, w: Any, c: HybridConfig, ops: Ops) -> Value:
    """The final norm, by 1 + weight."""
    return ops.rms_norm(x_RD, w.model.norm, c.rms_norm_eps, plus_one=True)


def cache(c: HybridConfig) -> CacheSpec:
    """Keys and values of the softmax layers, states of the others."""
    return CacheSpec(tuple(mixer.cache for mixer in c.mixers))


def hybrid_rows(c: HybridConfig, delta: Callable[[str], dict[str, Moved]]) -> dict[str, Moved]:
    """Tensors whose rows are moved when they are loaded; `delta` names those of a delta layer by its prefix."""
    found: dict[str, Moved] = {}
    for layer, mixer in enumerate(c.mixers):
        here = f"{LAYERS}.{layer}."
        found |= moved_rows(f"{here}self_attn.", mixer) if isinstance(mixer, Attention) else delta(f"{here}linear_attn.")
    return found


def hybrid_tensors(c: HybridConfig, projections: Callable[[str], Shapes]) -> Shapes:
    """Name and shape of every tensor of the checkpoint; `projections` names those that a delta layer begins with, by its prefix."""

    def mixer(prefix: str, layer: int) -> Shapes:
        here = c.mixers[layer]
        if isinstance(here, Attention):
            return attention_tensors(f"{prefix}self_attn.", here)
        own = f"{prefix}linear_attn."
        return projections(own) | gated_delta_tensors(own, here)

    return decoder_tensors(c, lambda prefix, layer: sparse_ffn_tensors(prefix, layer, c), mixer=mixer)
