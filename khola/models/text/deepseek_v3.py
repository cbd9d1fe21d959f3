"""DeepSeek-V3 and R1, and of the same form Moonlight and Kimi-K2: latent attention, and mixtures of many small experts.

Source   arXiv:2412.19437 section 2 (DeepSeek-V3); arXiv:2502.16982 section 3.2 (Moonlight); arXiv:2507.20534 section 2 (Kimi K2).
Files    safetensors DeepseekV3ForCausalLM, of which many are in 8-bit floats with a scale for each 128 x 128; GGUF "deepseek2".
Shapes   T packed tokens, R rows whose logits are wanted, D hidden, V vocabulary.

The layers behind the last one, which predict a second token, are no part of this forward pass: `khola.nn.second_token` asks the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from msgspec import Meta

from khola.errors import BadConfig
from khola.nn.causal import LAYERS, DecoderConfig, Shapes, embed, head, norm, whole_tensors
from khola.nn.experts import Experts, Mixture, check_chosen, mixture, mixture_tensors
from khola.nn.gated_ffn import gated_ffn, gated_ffn_tensors
from khola.nn.latent_attention import LatentAttention, latent_attention
from khola.nn.pairs import Pairs
from khola.nn.rope import rope_from_config, score_factor
from khola.nn.specs import BOOKKEEPING, FILE, HeadSize, Width
from khola.ops.vocabulary import CacheSpec, Ops, Rope, Routing, Step, Value

__all__ = ["IGNORED", "LAYERS", "Config", "block", "cache", "embed", "head", "norm", "pairs", "tensors"]

NORMS = ("input_layernorm", "post_attention_layernorm")


class Config(DecoderConfig, frozen=True, kw_only=True):
    """Keys of config.json. `head_dim` and `qk_head_dim`, which some files repeat, must agree with the sizes that count."""

    kv_lora_rank: Width
    q_lora_rank: Width | None = None
    qk_nope_head_dim: Annotated[int, Meta(ge=1, le=4096)]
    qk_rope_head_dim: HeadSize
    v_head_dim: Annotated[int, Meta(ge=1, le=4096)]
    qk_head_dim: int | None = None
    attention_bias: bool = False
    rope_interleave: bool = True
    first_k_dense_replace: Annotated[int, Meta(ge=0, le=4096)] = 0
    moe_layer_freq: Literal[1] = 1
    moe_intermediate_size: Width
    n_routed_experts: Experts
    n_shared_experts: Annotated[int, Meta(ge=0, le=1 << 10)] | None = None
    num_experts_per_tok: Experts
    n_group: Experts = 1
    topk_group: Experts = 1
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    scoring_func: Literal["sigmoid"] = "sigmoid"
    norm_topk_prob: bool
    routed_scaling_factor: Annotated[float, Meta(gt=0, le=1e6)]
    num_nextn_predict_layers: Annotated[int, Meta(ge=0, le=64)] = 0

    def __post_init__(self) -> None:
        check_chosen(self.n_routed_experts, self.num_experts_per_tok, "num_experts_per_tok")
        check_chosen(self.n_group, self.topk_group, "topk_group")
        kept = self.topk_group * (self.n_routed_experts // self.n_group)
        same: tuple[tuple[str, Any, Any], ...] = (
            ("num_key_value_heads", self.key_heads, self.num_attention_heads),
            ("head_dim", self.head_dim or self.qk_rope_head_dim, self.qk_rope_head_dim),
            (
                "qk_head_dim",
                self.qk_head_dim or self.qk_nope_head_dim + self.qk_rope_head_dim,
                self.qk_nope_head_dim + self.qk_rope_head_dim,
            ),
            ("n_routed_experts", self.n_routed_experts % self.n_group, 0),
            ("num_experts_per_tok", min(self.num_experts_per_tok, kept), self.num_experts_per_tok),
        )
        for key, found, expected in same:
            if found != expected:
                raise BadConfig("{file}: {key} is {found}; expected {expected}", file=FILE, key=key, found=found, expected=expected)
        _ = self.attention

    @cached_property
    def head_size(self) -> int:
        """Dimensions of a head that may be rotated."""
        return self.qk_rope_head_dim

    @cached_property
    def rope(self) -> Rope:
        """Rotary positions."""
        return rope_from_config(self)

    @cached_property
    def attention(self) -> LatentAttention:
        """The attention of every layer."""
        return LatentAttention(
            hidden=self.hidden_size,
            heads=self.num_attention_heads,
            query_rank=self.q_lora_rank,
            latent=self.kv_lora_rank,
            plain=self.qk_nope_head_dim,
            turned=self.qk_rope_head_dim,
            value=self.v_head_dim,
            rope=self.rope,
            score_factor=score_factor(self),
            biases=self.attention_bias,
            adjacent=self.rope_interleave,
        )

    @cached_property
    def mixture(self) -> Mixture:
        """The mixture of every layer that has one."""
        return Mixture(
            hidden=self.hidden_size,
            experts=self.n_routed_experts,
            inner=self.moe_intermediate_size,
            routing=Routing(
                chosen=self.num_experts_per_tok,
                score="sigmoid",
                groups=self.n_group,
                kept_groups=self.topk_group,
                normalised=self.norm_topk_prob,
                scale=self.routed_scaling_factor,
            ),
            shared="shared_experts" if self.n_shared_experts else "",
            shared_inner=self.moe_intermediate_size * (self.n_shared_experts or 0),
            correction="gate.e_score_correction_bias",
        )

    @property
    def spare(self) -> tuple[str, ...]:
        """The layers that predict a second token."""
        return tuple(f"{LAYERS}.{self.num_hidden_layers + extra}." for extra in range(self.num_nextn_predict_layers))

    @property
    def further_layers(self) -> int:
        """The same, counted."""
        return self.num_nextn_predict_layers


def block(x_TD: Value, w: Any, layer: int, step: Step, c: Config, ops: Ops) -> Value:
    """Latent attention, then experts, or in the first layers one gated part; each is normed before and added to its input."""
    x_TD = x_TD + latent_attention(ops.rms_norm(x_TD, w.input_layernorm, c.rms_norm_eps), w.self_attn, step, layer, c.attention, ops)
    h_TD = ops.rms_norm(x_TD, w.post_attention_layernorm, c.rms_norm_eps)
    return x_TD + (gated_ffn(h_TD, w.mlp, ops) if layer < c.first_k_dense_replace else mixture(h_TD, w.mlp, c.mixture, ops))


def cache(c: Config) -> CacheSpec:
    """Latents and rotated keys of every layer."""
    return CacheSpec((c.attention.cache,) * c.num_hidden_layers)


def pairs(c: Config) -> dict[str, Pairs]:
    """Tensors whose rotary pairs lie side by side."""
    return {name: one for layer in range(c.num_hidden_layers) for name, one in c.attention.pairs(f"{LAYERS}.{layer}.self_attn.").items()}


def tensors(c: Config) -> Shapes:
    """Name and shape of every tensor of the checkpoint that the forward pass reads."""

    def layer_tensors(here: str, layer: int) -> Shapes:
        found: Shapes = {f"{here}{name}.weight": (c.hidden_size,) for name in NORMS}
        found |= c.attention.tensors(f"{here}self_attn.")
        if layer < c.first_k_dense_replace:
            return found | gated_ffn_tensors(f"{here}mlp.", c.hidden_size, c.intermediate_size)
        return found | mixture_tensors(f"{here}mlp.", c.mixture)

    return whole_tensors(c, layer_tensors)


IGNORED: Mapping[str, str] = {
    **BOOKKEEPING,
    "aux_loss_alpha": "training only",
    "seq_aux": "training only",
    "ep_size": "how many devices share the experts",
    "output_router_logits": "what the lab's library returns",
}
