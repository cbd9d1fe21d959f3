"""Sizes worked out from a configuration: parameters, what one token reads, what the cache keeps of it. No file is needed.

Shapes   V vocabulary, D hidden, H query heads, K key heads, E head size, F width of the feed-forward network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from khola.errors import BadConfig


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Counts of numbers, not of bytes."""

    embedding: int
    """Parameters of the table of embeddings; one token reads one row."""
    head: int
    """Parameters of the head where it is a matrix of its own; 0 where it is the embedding."""
    matrices: int
    """Parameters of all other matrices."""
    vectors: int
    """Parameters of norms and biases."""
    active_matrices: int
    """Of the matrices, what one token reads; less than all with experts."""
    cache_per_token: int
    """Numbers the cache keeps of one token in all layers."""
    hidden: int
    state: int = 0
    """Numbers kept of one sequence, however long it is."""
    widest: int
    """Width of the widest activation inside a layer."""
    vocabulary: int
    layers: int
    coded_cache: bool = True
    """Whether the native cache can keep it in codes of 8 bits."""

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.embedding + self.head + self.matrices + self.vectors

    @property
    def head_read(self) -> int:
        """Parameters of the head that one token reads: its own or, where it is tied, the embedding's."""
        return self.head or self.embedding

    @property
    def active(self) -> int:
        """Weights that one token reads."""
        return self.active_matrices + self.head_read + self.vectors


def sizes_of(config: Mapping[str, Any], name: str = "config") -> Sizes:
    """Sizes of a model from the keys of its config.json.

    Args:
        name: the card or file it comes from, for messages.
    Raises:
        BadConfig: the architecture is not one whose sizes are known, or a key is missing or not a positive number.
    """
    kind = config.get("model_type", "")
    read = _Reader(config, name)
    if kind in ("llama", "qwen2", "qwen3", "ernie4_5"):
        return _dense(read, bias=kind == "qwen2", head_norms=kind == "qwen3")
    if kind in ("glm", "glm4"):
        return _dense(read, bias=bool(config.get("attention_bias", True)), norms=4 if kind == "glm4" else 2)
    if kind in ("qwen2_moe", "qwen3_moe"):
        return _with_experts(read, _dense(read, bias=kind == "qwen2_moe", head_norms=kind == "qwen3_moe"), _qwen_mixture(read))
    if kind == "ernie4_5_moe":
        return _with_experts(read, _dense(read), _ernie_mixture(read))
    if kind in ("minimax", "minimax_text_01"):
        return _lightning(read)
    if kind in ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe_text"):
        return _delta(read)
    if kind == "deepseek_v3":
        return _latent_with_experts(read)
    raise BadConfig("{name}: sizes of the architecture {kind!r} are not known", name=name, kind=kind)


@dataclass(frozen=True)
class _Reader:
    """Positive whole numbers out of a configuration."""

    config: Mapping[str, Any]
    name: str

    def __call__(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 40:
            raise BadConfig("{name}: {key} is {value!r}; expected a positive whole number", name=self.name, key=key, value=value)
        return value

    def or_none(self, key: str) -> int:
        """The same, or 0 where the key is missing, null or 0."""
        return self(key) if self.config.get(key) else 0

    @property
    def tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", False))


def _dense(read: _Reader, bias: bool = False, head_norms: bool = False, norms: int = 2) -> Sizes:
    """Grouped-query attention and one gated network a layer.

    Args:
        bias: q, k and v have one.
        head_norms: heads of q and k are normed.
        norms: of a layer, besides those.
    """
    hidden, layers, width, vocabulary = read("hidden_size"), read("num_hidden_layers"), read("intermediate_size"), read("vocab_size")
    heads = read("num_attention_heads")
    key_heads = read("num_key_value_heads", heads)
    size = read("head_dim", hidden // heads)
    matrices = layers * (2 * hidden * (heads + key_heads) * size + 3 * hidden * width)
    vectors = norms * hidden + (heads + 2 * key_heads) * size * bias + 2 * size * head_norms
    return Sizes(
        embedding=vocabulary * hidden,
        head=0 if read.tied else vocabulary * hidden,
        matrices=matrices,
        vectors=layers * vectors + hidden,
        active_matrices=matrices,
        cache_per_token=layers * 2 * key_heads * size,
        hidden=hidden,
        widest=max(2 * width, (heads + 2 * key_heads) * size),
        vocabulary=vocabulary,
        layers=layers,
    )


@dataclass(frozen=True)
class _Mixture:
    """Experts in the place of gated networks."""

    layers: int
    """That have them."""
    experts: int
    chosen: int
    inner: int
    shared: int
    """Width of the network that takes every token; 0 where there is none."""
    gated: bool = False
    """A row of its own multiplies that network's result."""
    corrected: bool = False
    """The router has a bias for the choice."""


def _qwen_mixture(read: _Reader) -> _Mixture:
    """In every layer."""
    shared = read.or_none("shared_expert_intermediate_size")
    layers, experts, chosen = read("num_hidden_layers"), read("num_experts"), read("num_experts_per_tok")
    return _Mixture(layers, experts, chosen, read("moe_intermediate_size"), shared=shared, gated=bool(shared))


def _ernie_mixture(read: _Reader) -> _Mixture:
    """From one layer on to the last, each of them."""
    inner, layers = read("moe_intermediate_size"), read("num_hidden_layers") - read.or_none("moe_layer_start_index")
    shared = read.or_none("moe_num_shared_experts") * inner
    return _Mixture(layers, read("moe_num_experts"), read("moe_k"), inner, shared=shared, corrected=True)


def _with_experts(read: _Reader, dense: Sizes, mixture: _Mixture) -> Sizes:
    """The same decoder with a mixture of experts in the place of some gated networks."""
    hidden, layers, one = dense.hidden, mixture.layers, 3 * dense.hidden * mixture.inner
    own = hidden * mixture.experts + 3 * hidden * mixture.shared + hidden * mixture.gated
    every_token = dense.matrices + layers * (own - 3 * hidden * read("intermediate_size"))
    return replace(
        dense,
        matrices=every_token + layers * mixture.experts * one,
        vectors=dense.vectors + layers * mixture.experts * mixture.corrected,
        active_matrices=every_token + layers * mixture.chosen * one,
        widest=max(dense.widest, 2 * mixture.shared, 2 * mixture.chosen * mixture.inner),
    )


def _lightning(read: _Reader) -> Sizes:
    """Softmax attention in some layers, lightning attention in the others, experts in all; arXiv:2501.08313 section 2."""
    dense, heads, size = _dense(read), read("num_attention_heads"), read("head_dim", 128)
    hidden, layers, experts, key_heads = dense.hidden, dense.layers, read("num_local_experts"), read("num_key_value_heads")
    full = _softmax_layers(read, "attn_type_list" if "attn_type_list" in read.config else "layer_types")
    softmax, lightning = 2 * hidden * (heads + key_heads) * size, 5 * hidden * heads * size
    every_token = full * softmax + (layers - full) * lightning + layers * hidden * experts
    one = 3 * hidden * read("intermediate_size")
    return replace(
        dense,
        matrices=every_token + layers * experts * one,
        active_matrices=every_token + layers * read("num_experts_per_tok") * one,
        vectors=dense.vectors + (layers - full) * heads * size,
        cache_per_token=full * 2 * key_heads * size,
        state=(layers - full) * heads * size * size,
        widest=max(3 * heads * size, 2 * read("num_experts_per_tok") * read("intermediate_size")),
    )


def _delta(read: _Reader) -> Sizes:
    """Gated softmax attention in every so many layers, gated delta attention in the others; arXiv:2412.06464 section 3.4."""
    width = read("intermediate_size", 1)
    dense = _dense(_Reader({"head_dim": 256, **read.config, "intermediate_size": width}, read.name), head_norms=True)
    hidden, layers, size = dense.hidden, dense.layers, read("head_dim", 256)
    heads, key_heads = read("num_attention_heads"), read("num_key_value_heads")
    full = _softmax_layers(read, "layer_types") if read.config.get("layer_types") else layers // read("full_attention_interval", 4)
    keys = read("linear_num_key_heads", 16) * read("linear_key_head_dim", 128)
    value_heads, value_size = read("linear_num_value_heads", 32), read("linear_value_head_dim", 128)
    values, taps = value_heads * value_size, read("linear_conv_kernel_dim", 4)
    columns = 2 * keys + values
    delta = hidden * (columns + values + 2 * value_heads) + columns * taps + values * hidden
    mixing = full * hidden * (3 * heads + 2 * key_heads) * size + (layers - full) * delta
    hybrid = replace(
        dense,
        matrices=mixing + layers * 3 * hidden * width,
        active_matrices=mixing + layers * 3 * hidden * width,
        vectors=layers * 2 * hidden + full * 2 * size + (layers - full) * (2 * value_heads + value_size) + hidden,
        cache_per_token=full * 2 * key_heads * size,
        state=(layers - full) * (value_heads * read("linear_key_head_dim", 128) * value_size + columns * (taps - 1)),
        widest=max(2 * width, columns + values, (2 * heads + 2 * key_heads) * size),
    )
    if "num_experts" not in read.config:
        return hybrid
    return _with_experts(_Reader({**read.config, "intermediate_size": width}, read.name), hybrid, _qwen_mixture(read))


def _softmax_layers(read: _Reader, key: str) -> int:
    """Layers that keep tokens, by a key with an entry for each layer."""
    found = read.config.get(key)
    if not isinstance(found, list) or len(found) != read("num_hidden_layers"):
        raise BadConfig("{name}: {key} is {value!r}; expected an entry for each layer", name=read.name, key=key, value=found)
    return found.count(1) + found.count("full_attention")


def _latent_with_experts(read: _Reader) -> Sizes:
    """Latent attention and experts, arXiv:2412.19437 section 2.1; the layer that predicts a second token is not counted.

    Queries are squeezed first, or not: then there is no such rank.
    """
    hidden, layers, heads, vocabulary = read("hidden_size"), read("num_hidden_layers"), read("num_attention_heads"), read("vocab_size")
    query, latent = read("q_lora_rank") if read.config.get("q_lora_rank") is not None else 0, read("kv_lora_rank")
    plain, turned, value = read("qk_nope_head_dim"), read("qk_rope_head_dim"), read("v_head_dim")
    attention = (
        hidden * query
        + (query or hidden) * heads * (plain + turned)
        + hidden * (latent + turned)
        + latent * heads * (plain + value)
        + heads * value * hidden
    )
    dense_layers, experts = read("first_k_dense_replace"), read("n_routed_experts")
    expert = 3 * hidden * read("moe_intermediate_size")
    every_layer = layers * attention + dense_layers * 3 * hidden * read("intermediate_size")
    routed_layers = layers - dense_layers
    shared = read("n_shared_experts")
    return Sizes(
        embedding=vocabulary * hidden,
        head=0 if read.tied else vocabulary * hidden,
        matrices=every_layer + routed_layers * ((experts + shared) * expert + experts * hidden),
        vectors=layers * (2 * hidden + query + latent) + routed_layers * experts + hidden,
        active_matrices=every_layer + routed_layers * ((read("num_experts_per_tok") + shared) * expert + experts * hidden),
        cache_per_token=layers * (latent + turned),
        hidden=hidden,
        widest=max(2 * read("intermediate_size"), heads * (latent + turned)),
        vocabulary=vocabulary,
        layers=layers,
        coded_cache=False,
    )
