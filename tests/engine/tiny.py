"""A llama of random weights, small enough to be run a thousand times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from khola.loader.assemble import assemble
from khola.loader.loaded import Loaded
from khola.models import architecture
from khola.nn import second_token
from khola.ops.numpy_ops import NumpyOps
from khola.ops.weights import tree_of
from khola.store.quantise import quantise
from tests.engine.fakes import VOCAB, ByteTokenizer
from tests.native.rig import Raw

CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

LOUD = 150
"""Embeddings so large that what follows depends on the newest token more than on those before."""


@dataclass
class Array:
    """A tensor that lies in memory."""

    name: str
    values: NDArray[np.float32]
    kind: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def float32(self) -> NDArray[np.float32]:
        return self.values

    def raw(self) -> memoryview:
        return memoryview(self.values).cast("B")


def quantised_llama(ops: Any, seed: int = 0) -> Loaded:
    """A model in several number formats, wide enough that the native interpreter keeps them packed."""
    return quantised(ops, "llama", {**CONFIG, "hidden_size": 64, "intermediate_size": 96}, seed)


def quantised_experts(ops: Any, seed: int = 0) -> Loaded:
    """The same with experts beside a shared one in the first layer, and none in the second."""
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
    config = {**CONFIG, "hidden_size": 64, "intermediate_size": 96, **experts, "mlp_only_layers": [1]}
    return quantised(ops, "qwen2_moe", config, seed)


def quantised_latents(ops: Any, seed: int = 0, further: bool = False) -> Loaded:
    """A model that keeps latents, with experts in its second layer; `further` puts a layer behind it that guesses well."""
    attention = {"q_lora_rank": 32, "kv_lora_rank": 64, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 32}
    experts = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
    others = {"n_shared_experts": 1, "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
    config = {**CONFIG, "num_key_value_heads": 4, "hidden_size": 64, "intermediate_size": 96, **attention, **experts, **others}
    return quantised(ops, "deepseek_v3", config | {"num_nextn_predict_layers": int(further)}, seed)


def quantised_delta(ops: Any, seed: int = 0) -> Loaded:
    """States of a delta rule in the first layer, attention in the second."""
    states = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
    config = {**CONFIG, "hidden_size": 64, "intermediate_size": 96, **states, "head_dim": 16, "full_attention_interval": 2}
    return quantised(ops, "qwen3_5", config, seed)


def quantised_lightning(ops: Any, seed: int = 0) -> Loaded:
    """Lightning attention in the first layer, attention in the second, and experts."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "attn_type_list": [0, 1], "rotary_dim": 8}
    return quantised(ops, "minimax", {**CONFIG, "hidden_size": 64, "intermediate_size": 32, **experts}, seed)


def quantised(ops: Any, kind: str, raw: dict[str, Any], seed: int) -> Loaded:
    """A model of an architecture."""
    here = architecture(kind)
    config = msgspec.convert(raw, here.Config)
    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    further = bool(config.further_layers)
    for name, shape in (second_token.tensors(here, config) if further else here.tensors(config)).items():
        values = (rng.normal(0, 0.2, shape) if len(shape) > 1 else rng.uniform(0.8, 1.2, shape)).astype(np.float32)
        values *= LOUD if further and "embed" in name else 1
        if name.endswith("eh_proj.weight"):
            # Mostly the embedding of the token, which is also most of what the decoder's own last layer leaves of it.
            values += 0.2 * LOUD * np.eye(*shape, dtype=np.float32)
        if len(shape) != 2 or shape[1] % 32 or name.endswith((".mlp.gate.weight", "moe.gate.weight")):
            tensors[name] = Array(name, values)
            continue
        blocks = "Q4_1" if "mlp" in name else "Q8_0" if "embed" in name else "Q4_0"
        tensors[name] = Raw(blocks, shape, quantise(blocks, values))
        tensors[name].name = name
    weights = list(assemble(here, config, tensors, ops, further=further).leaves())
    if not further:
        return loaded_around(ops, here, config, weights)
    return loaded_around(ops, here, config, weights, cache=here.cache(second_token.with_layer(config)), second_token=True)


def tiny_llama(seed: int = 0, ops: Any = None, scale: float = 0.35, num_hidden_layers: int = 2, **changes: Any) -> Loaded:
    """A model whose answers differ from prompt to prompt."""
    llama = architecture("llama")
    config = msgspec.convert({**CONFIG, "num_hidden_layers": num_hidden_layers}, llama.Config)
    rng = np.random.default_rng(seed)
    ops = ops or NumpyOps()
    weights = []
    for name, shape in llama.tensors(config).items():
        values = rng.normal(0, scale, shape) if len(shape) > 1 else rng.uniform(0.8, 1.2, shape)
        weights.append(ops.take(Array(name, values.astype(np.float32))))
    return loaded_around(ops, llama, config, weights, **changes)


def loaded_around(ops: Any, llama: Any, config: Any, weights: list[Any], **changes: Any) -> Loaded:
    """A loaded model of these weights, with a token a byte."""
    facts: dict[str, Any] = {
        "name": "tiny",
        "card": None,
        "architecture": llama,
        "config": config,
        "weights": tree_of(weights),
        "ops": ops,
        "cache": llama.cache(config),
        "tokenizer": ByteTokenizer(),
        "context_tokens": 1024,
        "vocab_tokens": VOCAB,
    }
    return Loaded(**{**facts, **changes})
