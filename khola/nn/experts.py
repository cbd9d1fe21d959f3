"""A mixture of experts: a router sends each token through a few of many gated feed-forward parts, and some parts take every token.

Shapes   T packed rows, D hidden, X experts, F inner width of an expert.
Source   arXiv:2401.06066 section 3 (many small experts, shared experts); `khola.ops.vocabulary.Routing` for how they are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from khola.errors import BadConfig
from khola.nn.causal import CausalConfig, Shapes
from khola.nn.gated_ffn import gated_ffn, gated_ffn_tensors
from khola.nn.specs import BOOKKEEPING, FILE, Width
from khola.ops.vocabulary import Ops, Routing, Value

Experts = Annotated[int, Meta(ge=1, le=1 << 16)]


class Mixture(msgspec.Struct, frozen=True, kw_only=True):
    """What a mixture is, besides its weights."""

    hidden: int
    experts: int
    inner: int
    """Inner width of an expert."""
    routing: Routing
    correction: str = ""
    """Name of the router's bias, which only helps to choose; empty where there is none."""
    correction_shape: Literal["[X]", "[1, X]"] = "[X]"
    """How it lies in the checkpoint."""
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    """Of an expert's matrices: gate, up and down."""
    shared: str = ""
    """Name of the part that takes every token; empty where there is none."""
    shared_inner: int = 0
    """Its inner width."""
    shared_gate: str = ""
    """Name of the row whose product with a token, through a sigmoid, multiplies the shared part; empty where nothing does."""


def mixture(x_TD: Value, w: Any, m: Mixture, ops: Ops) -> Value:
    """[T, D] to [T, D].

    Args:
        x_TD: normed hidden states.
        w: a subtree with the router `gate`, its correction as its bias, the `experts` and what `m` names.
        m: sizes, names and the way of choosing.
        ops: the interpreter.
    """
    y_TD = ops.experts(x_TD, ops.route(x_TD, w.gate, m.routing), *(w.experts.below(name) for name in m.names))
    if not m.shared:
        return y_TD
    shared_TD = gated_ffn(x_TD, w.below(m.shared), ops)
    return y_TD + (ops.sigmoid(ops.linear(x_TD, w.below(m.shared_gate))) * shared_TD if m.shared_gate else shared_TD)


def mixture_tensors(prefix: str, m: Mixture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the mixture's tensors, each expert's own; `prefix` ends with a dot."""
    found: dict[str, tuple[int, ...]] = {f"{prefix}gate.weight": (m.experts, m.hidden)}
    if m.correction:
        found[f"{prefix}{m.correction}"] = (m.experts,) if m.correction_shape == "[X]" else (1, m.experts)
    for expert in range(m.experts):
        gate, up, down = (f"{prefix}experts.{expert}.{name}.weight" for name in m.names)
        found |= {gate: (m.inner, m.hidden), up: (m.inner, m.hidden), down: (m.hidden, m.inner)}
    if m.shared:
        found |= gated_ffn_tensors(f"{prefix}{m.shared}.", m.hidden, m.shared_inner)
    if m.shared_gate:
        found[f"{prefix}{m.shared_gate}.weight"] = (1, m.hidden)
    return found


def check_chosen(experts: int, chosen: int, key: str) -> None:
    """No more experts are chosen than there are.

    Args:
        experts: all of them.
        chosen: of one token.
        key: of the configuration, which says how many are chosen.
    Raises:
        BadConfig: there are fewer.
    """
    if chosen > experts:
        raise BadConfig("{file}: {key} is {chosen}; there are {experts} experts", file=FILE, key=key, chosen=chosen, experts=experts)


def one_of(key: str, found: int | None, other_key: str, other: int | None) -> int:
    """A number that files give under one of two names.

    Raises:
        BadConfig: under neither, or another number under each.
    """
    if found is not None and other is not None and found != other:
        raise BadConfig("{file}: {key} is {found}; expected {expected}", file=FILE, key=other_key, found=other, expected=found)
    number = other if found is None else found
    if number is None:
        raise BadConfig("{file}: the configuration lacks {key}", file=FILE, key=key)
    return number


def sparse_layers(layers: int, every: int, dense: list[int] | None) -> tuple[bool, ...]:
    """Which layers are mixtures: every n-th, except some that are named (`decoder_sparse_step` and `mlp_only_layers`)."""
    return tuple((layer + 1) % every == 0 and layer not in (dense or ()) for layer in range(layers))


class SparseConfig(CausalConfig, frozen=True, kw_only=True):
    """Keys of decoders some of whose layers are mixtures, as Qwen writes them."""

    num_experts_per_tok: Experts
    moe_intermediate_size: Width
    num_experts: Experts | None = None
    num_local_experts: Experts | None = None
    norm_topk_prob: bool = False
    decoder_sparse_step: Annotated[int, Meta(ge=1, le=4096)] = 1
    mlp_only_layers: list[int] | None = None
    use_sliding_window: Literal[False] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_chosen(self.mixture.experts, self.num_experts_per_tok, "num_experts_per_tok")

    def experts(self, **shared: Any) -> Mixture:
        """One layer's mixture; `shared` says which part takes every token. Files have one of two names for the number of experts."""
        return Mixture(
            hidden=self.hidden_size,
            experts=one_of("num_experts", self.num_experts, "num_local_experts", self.num_local_experts),
            inner=self.moe_intermediate_size,
            routing=Routing(chosen=self.num_experts_per_tok, normalised=self.norm_topk_prob),
            **shared,
        )

    @cached_property
    def mixture(self) -> Mixture:
        """The mixture of every layer that has one."""
        return self.experts()

    @cached_property
    def sparse(self) -> tuple[bool, ...]:
        """Which layers are mixtures."""
        return sparse_layers(self.num_hidden_layers, self.decoder_sparse_step, self.mlp_only_layers)


class Sparse(Protocol):
    """A configuration some of whose layers are mixtures."""

    @property
    def hidden_size(self) -> int:
        """Of the model."""

    @property
    def intermediate_size(self) -> int:
        """Inner width of the layers without a mixture."""

    @property
    def mixture(self) -> Mixture | None:
        """Of every layer that has one."""

    @property
    def sparse(self) -> tuple[bool, ...]:
        """Which layers have one."""


def sparse_ffn(x_TD: Value, w: Any, layer: int, c: Sparse, ops: Ops) -> Value:
    """A layer's mixture, or its one gated part, [T, D]."""
    return mixture(x_TD, w, c.mixture, ops) if c.mixture is not None and c.sparse[layer] else gated_ffn(x_TD, w, ops)


def sparse_ffn_tensors(prefix: str, layer: int, c: Sparse) -> Shapes:
    """Names and shapes of a layer's mixture, or of its one gated part."""
    if c.mixture is not None and c.sparse[layer]:
        return mixture_tensors(prefix, c.mixture)
    return gated_ffn_tensors(prefix, c.hidden_size, c.intermediate_size)


SPARSE_IGNORED: Mapping[str, str] = {
    **BOOKKEEPING,
    "output_router_logits": "what the lab's library returns",
    "router_aux_loss_coef": "training only",
    "sliding_window": "counts only where use_sliding_window says so, and that is refused",
    "max_window_layers": "counts only where use_sliding_window says so, and that is refused",
}
