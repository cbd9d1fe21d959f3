"""MiniMax-Text-01 and the text part of MiniMax-VL-01: seven layers of lightning attention to one of softmax attention, and experts.

The residual that is carried on is the normed one: h = norm(x), x = alpha h + beta f(h). Softmax layers rotate the first half of each head.

Source   MiniMax-01, arXiv:2501.08313 section 2; DeepNorm, arXiv:2203.00555 section 4; transformers `models/minimax`, which turns all.
Files    safetensors MiniMaxText01ForCausalLM, and MiniMaxForCausalLM of the -hf repository; no GGUF.
Shapes   T packed tokens, R rows whose logits are wanted, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from msgspec import Meta

from khola.errors import BadConfig
from khola.nn.attention import Attention, attention, attention_tensors, moved_rows
from khola.nn.causal import LAYERS, CausalConfig, Shapes, decoder_tensors, embed, head, norm
from khola.nn.experts import Experts, Mixture, check_chosen, mixture, mixture_tensors
from khola.nn.lightning import Lightning, decays, lightning, lightning_rows, lightning_tensors
from khola.nn.pairs import Moved
from khola.nn.rope import rope_from_config
from khola.nn.specs import BOOKKEEPING, FILE, Epsilon, Positions
from khola.ops.vocabulary import CacheSpec, Ops, Rope, Routing, Step, Value

__all__ = ["IGNORED", "LAYERS", "Config", "block", "cache", "embed", "head", "norm", "pairs", "tensors"]

THETA = 1_000_000.0
"""What a file without `rope_theta` means."""
Residual = Annotated[float, Meta(gt=0, le=1e3)]


class Config(CausalConfig, frozen=True, kw_only=True):
    """Keys of config.json, as the lab writes them and as its -hf repository does; `intermediate_size` is the width of an expert."""

    num_local_experts: Experts
    num_experts_per_tok: Experts
    max_position_embeddings: Positions = 131072
    rms_norm_eps: Epsilon = 1e-5
    rotary_dim: Annotated[int, Meta(ge=2, le=4096)] | None = None
    attn_type_list: list[Literal[0, 1]] | None = None
    """1 is softmax attention."""
    layer_types: list[Literal["linear_attention", "full_attention"]] | None = None
    postnorm: Literal[True] = True
    shared_intermediate_size: Literal[0] = 0
    sliding_window: None = None
    layernorm_full_attention_alpha: Residual | None = None
    layernorm_full_attention_beta: Residual | None = None
    layernorm_linear_attention_alpha: Residual | None = None
    layernorm_linear_attention_beta: Residual | None = None
    layernorm_mlp_alpha: Residual | None = None
    layernorm_mlp_beta: Residual | None = None
    full_attn_alpha_factor: Residual | None = None
    full_attn_beta_factor: Residual | None = None
    linear_attn_alpha_factor: Residual | None = None
    linear_attn_beta_factor: Residual | None = None
    mlp_alpha_factor: Residual | None = None
    mlp_beta_factor: Residual | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_chosen(self.num_local_experts, self.num_experts_per_tok, "num_experts_per_tok")
        _ = self.mixers, self.residuals

    @cached_property
    def rope(self) -> Rope:
        """Rotary positions of the softmax layers."""
        return rope_from_config(self, (self.rotary_dim or self.head_size) / self.head_size, THETA)

    @cached_property
    def mixers(self) -> tuple[Attention | Lightning, ...]:
        """What mixes the tokens of each layer."""
        if self.attn_type_list is None and self.layer_types is None:
            raise BadConfig("{file}: the configuration lacks {key}", file=FILE, key="attn_type_list")
        full = [kind == 1 for kind in self.attn_type_list or ()] or [kind == "full_attention" for kind in self.layer_types or ()]
        if len(full) != self.num_hidden_layers:
            raise BadConfig(
                "{file}: layer_types has {found} entries; expected {expected}, one for each layer",
                file=FILE,
                key="attn_type_list" if self.attn_type_list else "layer_types",
                found=len(full),
                expected=self.num_hidden_layers,
            )
        heads, size, layers = self.num_attention_heads, self.head_size, self.num_hidden_layers
        return tuple(
            self.attentions[layer]
            if softmax
            else Lightning(hidden=self.hidden_size, heads=heads, head_size=size, decay=decays(heads, layer, layers))
            for layer, softmax in enumerate(full)
        )

    @cached_property
    def residuals(self) -> dict[str, tuple[float, float]]:
        """Alpha and beta behind softmax attention ("full"), lightning attention ("linear") and experts ("mlp")."""
        return {
            kind: (self._factor(lab.format("alpha"), hf.format("alpha")), self._factor(lab.format("beta"), hf.format("beta")))
            for kind, lab, hf in (
                ("full", "layernorm_full_attention_{}", "full_attn_{}_factor"),
                ("linear", "layernorm_linear_attention_{}", "linear_attn_{}_factor"),
                ("mlp", "layernorm_mlp_{}", "mlp_{}_factor"),
            )
        }

    def _factor(self, lab: str, hf: str) -> float:
        """A factor that files give under one of two names; 1 under neither."""
        found, other = getattr(self, lab), getattr(self, hf)
        if found is not None and other is not None and found != other:
            raise BadConfig("{file}: {key} is {found}; expected {expected}", file=FILE, key=hf, found=other, expected=found)
        return float(next((factor for factor in (found, other) if factor is not None), 1.0))

    @cached_property
    def mixture(self) -> Mixture:
        """The mixture of every layer."""
        return Mixture(
            hidden=self.hidden_size,
            experts=self.num_local_experts,
            inner=self.intermediate_size,
            routing=Routing(chosen=self.num_experts_per_tok),
            names=("w1", "w3", "w2"),
        )


def block(x_TD: Value, w: Any, layer: int, step: Step, c: Config, ops: Ops) -> Value:
    """A mixing part, then experts; what they add to is the normed input."""
    mixer, eps = c.mixers[layer], c.rms_norm_eps
    h_TD = ops.rms_norm(x_TD, w.input_layernorm, eps)
    if isinstance(mixer, Attention):
        x_TD = _join(h_TD, attention(h_TD, w.self_attn, step, layer, mixer, ops), c.residuals["full"])
    else:
        x_TD = _join(h_TD, lightning(h_TD, w.self_attn, step, layer, mixer, ops), c.residuals["linear"])
    h_TD = ops.rms_norm(x_TD, w.post_attention_layernorm, eps)
    return _join(h_TD, mixture(h_TD, w.block_sparse_moe, c.mixture, ops), c.residuals["mlp"])


def _join(h_TD: Value, branch_TD: Value, factors: tuple[float, float]) -> Value:
    """alpha h + beta f(h)."""
    alpha, beta = factors
    return h_TD * alpha + (branch_TD if beta == 1 else branch_TD * beta)


def cache(c: Config) -> CacheSpec:
    """Keys and values of the softmax layers, states of the others."""
    return CacheSpec(tuple(mixer.cache for mixer in c.mixers))


def pairs(c: Config) -> dict[str, Moved]:
    """Tensors whose rows are moved when they are loaded."""
    found: dict[str, Moved] = {}
    for layer, mixer in enumerate(c.mixers):
        prefix = f"{LAYERS}.{layer}.self_attn."
        found |= moved_rows(prefix, mixer) if isinstance(mixer, Attention) else lightning_rows(prefix, mixer)
    return found


def tensors(c: Config) -> Shapes:
    """Name and shape of every tensor of the checkpoint."""

    def mixer(prefix: str, layer: int) -> Shapes:
        here = c.mixers[layer]
        own = f"{prefix}self_attn."
        found = attention_tensors(own, here) if isinstance(here, Attention) else lightning_tensors(own, here)
        return found | mixture_tensors(f"{prefix}block_sparse_moe.", c.mixture)

    return decoder_tensors(c, lambda prefix, layer: {}, mixer=mixer)


IGNORED: Mapping[str, str] = {
    **BOOKKEEPING,
    "block_size": "how the lab's library cuts the sums of lightning attention; the result is the same",
    "shared_moe_mode": "for a shared part, which shared_intermediate_size says is not there",
    "output_router_logits": "what the lab's library returns",
    "router_aux_loss_coef": "training only",
    "router_jitter_noise": "training only",
}
