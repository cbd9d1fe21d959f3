"""A checked configuration as the keys of GGUF metadata: the way back of `khola.store.names.config_from_gguf`.

Source   GGUF specification, section "Standardized key-value pairs"; llama.cpp `src/llama-model.cpp` for what the keys mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from khola.errors import UnsupportedFormat
from khola.nn.experts import Mixture
from khola.nn.rope import DEFAULT_THETA, magnitude
from khola.ops.vocabulary import Rope
from khola.store.names import FAMILIES, Family

SHARED_WIDTH = "expert_shared_feed_forward_length"


def gguf_config(family: str, config: Any) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """Keys below the family's prefix, and the divisors of the rotary frequencies where they are a table.

    Args:
        family: `general.architecture`.
        config: of an architecture of this family.
    Raises:
        UnsupportedFormat: GGUF has no key for something that changes what the model computes.
    """
    if FAMILIES[family].latent:
        raise UnsupportedFormat(
            "{file}: khola writes no GGUF files of the architecture {architecture}", file="config.json", architecture=family
        )
    if any(getattr(config, "windows", ())):
        raise UnsupportedFormat("{file}: {key} has no form in GGUF for this architecture", file="config.json", key="sliding_window")
    parameters = config.rope_scaling or config.rope_parameters or {}
    theta = float(config.rope_theta or parameters.get("rope_theta") or DEFAULT_THETA)
    keys: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.key_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": theta,
        "rope.dimension_count": config.rope.width,
        "vocab_size": config.vocab_size,
    }
    if config.head_size * config.num_attention_heads != config.hidden_size:
        keys |= {"attention.key_length": config.head_size, "attention.value_length": config.head_size}
    if config.rope.width != config.head_size and not FAMILIES[family].partial:
        raise UnsupportedFormat("{file}: {key} has no form in GGUF for this architecture", file="config.json", key="partial_rotary_factor")
    mixture: Mixture | None = getattr(config, "mixture", None)
    if mixture is not None:
        keys |= _experts(mixture, config, FAMILIES[family])
    scaling, divisors = _scaling(parameters, config, theta)
    return {f"{family}.{key}": value for key, value in (keys | scaling).items()}, divisors


def _experts(mixture: Mixture, config: Any, family: Family) -> dict[str, Any]:
    """Sizes of a mixture of experts; how experts are chosen is part of the family."""
    keys = {
        "expert_count": mixture.experts,
        "expert_used_count": mixture.routing.chosen,
        "expert_feed_forward_length": mixture.inner,
    }
    keys |= {ours: getattr(config, theirs) for ours, theirs in family.expert_keys.items() if ours not in keys and ours != SHARED_WIDTH}
    first, every = keys.get("leading_dense_block_count", 0), keys.get("interleave_moe_layer_step", 1)
    if any(sparse != (layer >= first and (layer + 1) % every == 0) for layer, sparse in enumerate(config.sparse)):
        raise UnsupportedFormat(
            "{file}: {key} has no form in GGUF for this architecture",
            file="config.json",
            key="moe_layer_end_index" if first or every > 1 else "mlp_only_layers",
        )
    if mixture.routing.normalised != (family.experts or {}).get("norm_topk_prob", True):
        raise UnsupportedFormat("{file}: {key} has no form in GGUF for this architecture", file="config.json", key="norm_topk_prob")
    return keys | ({SHARED_WIDTH: mixture.shared_inner} if mixture.shared else {})


def _scaling(parameters: Any, config: Any, theta: float) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """How rotary frequencies are stretched."""
    rope: Rope = config.rope
    if (parameters.get("rope_type") or parameters.get("type")) == "yarn":
        return _yarn(parameters, config, rope), None
    plain = theta ** -(np.arange(0, rope.width, 2) / rope.width)
    divisors = plain / np.asarray(rope.frequencies)
    if np.allclose(divisors, 1, rtol=1e-6):
        return {}, None
    if np.allclose(divisors, divisors[0], rtol=1e-6):
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(parameters.get("factor") or divisors[0])}, None
    return {}, divisors.astype(np.float32)


def _yarn(parameters: Any, config: Any, rope: Rope) -> dict[str, Any]:
    """YaRN's keys; the factor on cosines and sines is told as a share of the usual one."""
    if parameters.get("truncate", True) is not True:
        raise UnsupportedFormat("{file}: {key} has no form in GGUF for this architecture", file="config.json", key="rope_scaling.truncate")
    original = int(parameters.get("original_max_position_embeddings") or config.max_position_embeddings)
    factor = float(parameters.get("factor") or config.max_position_embeddings / original)
    keys: dict[str, Any] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original,
    }
    if not np.isclose(rope.factor, magnitude(factor), rtol=1e-6):
        keys["rope.scaling.attn_factor"] = rope.factor / magnitude(factor)
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if parameters.get(ours) is not None:
            keys[f"rope.scaling.{theirs}"] = float(parameters[ours])
    return keys
