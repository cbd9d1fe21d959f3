"""ERNIE 4.5, 21B and 300B: the dense decoder, most of whose feed-forward parts are mixtures whose router has a bias for the choice.

Source   ERNIE 4.5 technical report, https://yiyan.baidu.com/blog/publication/ERNIE_Technical_Report.pdf section 2.1; transformers
         `models/ernie4_5_moe`.
Files    safetensors Ernie4_5_MoeForCausalLM (the repositories whose names end in -PT); GGUF "ernie4_5-moe".
Shapes   T packed tokens, R rows whose logits are wanted, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from msgspec import Meta

from khola.nn.attention import Attention, attention
from khola.nn.causal import LAYERS, CausalConfig, Shapes, cache, decoder_tensors, embed, head, norm, pairs
from khola.nn.experts import Experts, Mixture, check_chosen, sparse_ffn, sparse_ffn_tensors
from khola.nn.rope import rope_from_config
from khola.nn.specs import BOOKKEEPING, Epsilon, Positions, Width
from khola.ops.vocabulary import Ops, Rope, Routing, Step, Value

__all__ = ["IGNORED", "LAYERS", "Config", "block", "cache", "embed", "head", "norm", "pairs", "tensors"]

THETA = 500_000.0
"""What a file without `rope_theta` means."""

Index = Annotated[int, Meta(ge=0, le=4096)]


class Config(CausalConfig, frozen=True, kw_only=True):
    """Keys of config.json; `intermediate_size` belongs to the layers that have no experts."""

    max_position_embeddings: Positions = 131072
    rms_norm_eps: Epsilon = 1e-5
    tie_word_embeddings: bool = True
    use_bias: Literal[False] = False
    moe_num_experts: Experts
    moe_k: Experts
    moe_intermediate_size: Width
    moe_num_shared_experts: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    moe_layer_start_index: Index = 1
    moe_layer_end_index: Annotated[int, Meta(ge=-1, le=4096)] | None = -1
    moe_layer_interval: Annotated[int, Meta(ge=1, le=4096)] = 1
    moe_norm_min: Epsilon = 1e-12
    moe_use_aux_free: Literal[True] = True
    moe_gate: Literal["topk", "topk_fused"] = "topk"
    moe_gate_act: Literal["softmax"] | None = None
    use_rmsnorm: Literal[True] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_chosen(self.moe_num_experts, self.moe_k, "moe_k")

    @cached_property
    def rope(self) -> Rope:
        """Rotary positions."""
        return rope_from_config(self, theta=THETA)

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """The attention of each layer."""
        return (self.attention(adjacent=True),) * self.num_hidden_layers

    @cached_property
    def mixture(self) -> Mixture:
        """The mixture of every layer that has one; its shared experts are one wide part."""
        return Mixture(
            hidden=self.hidden_size,
            experts=self.moe_num_experts,
            inner=self.moe_intermediate_size,
            routing=Routing(chosen=self.moe_k, floor=self.moe_norm_min),
            correction="moe_statics.e_score_correction_bias",
            correction_shape="[1, X]",
            shared="shared_experts" if self.moe_num_shared_experts else "",
            shared_inner=self.moe_num_shared_experts * self.moe_intermediate_size,
        )

    @cached_property
    def sparse(self) -> tuple[bool, ...]:
        """Which layers are mixtures: every n-th between the first and the last that may be, which is -1 or null for the last of all."""
        last = self.num_hidden_layers - 1 if self.moe_layer_end_index in (None, -1) else self.moe_layer_end_index
        chosen = range(self.moe_layer_start_index, last + 1)
        return tuple((layer + 1) % self.moe_layer_interval == 0 and layer in chosen for layer in range(self.num_hidden_layers))


def block(x_TD: Value, w: Any, layer: int, step: Step, c: Config, ops: Ops) -> Value:
    """Attention, then experts or one gated part; each is normed before and added to its input."""
    x_TD = x_TD + attention(ops.rms_norm(x_TD, w.input_layernorm, c.rms_norm_eps), w.self_attn, step, layer, c.attentions[layer], ops)
    return x_TD + sparse_ffn(ops.rms_norm(x_TD, w.post_attention_layernorm, c.rms_norm_eps), w.mlp, layer, c, ops)


def tensors(c: Config) -> Shapes:
    """Name and shape of every tensor of the checkpoint that a forward pass reads."""
    return decoder_tensors(c, lambda prefix, layer: sparse_ffn_tensors(prefix, layer, c))


IGNORED: Mapping[str, str] = {
    **BOOKKEEPING,
    "moe_capacity": "how many tokens an expert took in training; none is turned away here",
    "num_nextn_predict_layers": "counts the layers that predict a second token, which a forward pass does not read",
    "output_router_logits": "what the lab's library returns",
    "router_aux_loss_coef": "training only",
}
