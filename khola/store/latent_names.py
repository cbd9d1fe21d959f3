"""GGUF keys of models that attend to latents, "deepseek2", as keys of config.json.

Source   llama.cpp `src/models/deepseek2.cpp` and its pull requests 12801 (keys and values made apart) and 17945 (YaRN).
"""

from __future__ import annotations

from typing import Any, Protocol

from khola.errors import BadConfig, UnsupportedFormat

SIGMOID = 2
"""`expert_gating_func`."""
GROUPED_EXPERTS = {256: (8, 4)}
"""Groups, and how many a token may choose from, by the number of experts: files older than the keys leave them out, and all published
models of this form and size have these."""


class Keys(Protocol):
    """Metadata below the architecture's prefix; see `khola.store.names`."""

    def __contains__(self, key: str) -> bool: ...

    def facts(self, key: str, found: object = None) -> dict[str, str]:
        """For messages."""

    def whole(self, key: str, low: int, high: int, *, default: int | None = None) -> int:
        """A whole number in a range."""

    def number(self, key: str, low: float, high: float, *, default: float | None = None) -> float:
        """A number in a range."""

    def truth(self, key: str) -> bool:
        """A truth value."""


def latent_attention_keys(keys: Keys) -> dict[str, Any]:
    """Sizes of the attention.

    Newer files describe what is computed, one key head that is as wide as what is kept, and give the sizes of heads under other keys.

    Raises:
        BadConfig: a size is missing or contradicts another.
    """
    latent, turned = keys.whole("attention.kv_lora_rank", 1, 1 << 20), keys.whole("rope.dimension_count", 2, 4096)
    size, value = (keys.whole(f"attention.{what}_length", 1, 1 << 20) for what in ("key", "value"))
    heads = keys.whole("attention.head_count", 1, 4096)
    key_heads = keys.whole("attention.head_count_kv", 1, 4096, default=heads)
    if "attention.key_length_mla" in keys:
        expected = {
            "attention.key_length": (size, latent + turned),
            "attention.value_length": (value, latent),
            "attention.head_count_kv": (key_heads, 1),
        }
        size, value = (keys.whole(f"attention.{what}_length_mla", 1, 1 << 20) for what in ("key", "value"))
    else:
        expected = {"attention.head_count_kv": (key_heads, heads)}
    for key, (found, wanted) in expected.items():
        if found != wanted:
            raise BadConfig("{file}: {key} is {found}; expected {expected}", **keys.facts(key, found), expected=wanted)
    if size <= turned:
        raise BadConfig("{file}: {key} is {found}; expected less than {whole}", **keys.facts("rope.dimension_count", turned), whole=size)
    found_keys: dict[str, Any] = {
        "kv_lora_rank": latent,
        "qk_nope_head_dim": size - turned,
        "qk_rope_head_dim": turned,
        "v_head_dim": value,
    }
    if "attention.q_lora_rank" in keys:
        found_keys["q_lora_rank"] = keys.whole("attention.q_lora_rank", 1, 1 << 20)
    return found_keys


def chosen_by_sigmoid(keys: Keys) -> dict[str, Any]:
    """Sizes of the mixtures, and how experts are chosen.

    Raises:
        UnsupportedFormat: their scores are no sigmoids: the model is an older one of the same name.
        BadConfig: a key is missing or out of its range.
    """
    kind = keys.whole("expert_gating_func", 0, 1 << 16, default=1)
    if kind != SIGMOID:
        raise UnsupportedFormat(
            "{file}: {key} is {found}; khola knows sigmoids, {expected}", **keys.facts("expert_gating_func", kind), expected=SIGMOID
        )
    experts = keys.whole("expert_count", 1, 1 << 16)
    groups, kept = GROUPED_EXPERTS.get(experts, (1, 1))
    return {
        "first_k_dense_replace": keys.whole("leading_dense_block_count", 0, 4096, default=0),
        "n_routed_experts": experts,
        "num_experts_per_tok": keys.whole("expert_used_count", 1, 1 << 16),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length", 1, 1 << 22),
        "n_shared_experts": keys.whole("expert_shared_count", 0, 1 << 10, default=0),
        "n_group": keys.whole("expert_group_count", 1, 1 << 16, default=groups),
        "topk_group": keys.whole("expert_group_used_count", 1, 1 << 16, default=kept),
        "norm_topk_prob": keys.truth("expert_weights_norm"),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1e-6, 1e6, default=1.0),
    }


def stretched_scores(keys: Keys) -> dict[str, float]:
    """What YaRN multiplies scores with: files hold a tenth of the usual key, in float32."""
    share = round(10 * keys.number("rope.scaling.yarn_log_multiplier", 0.0, 1e2, default=0.0), 6)
    return {"mscale": share, "mscale_all_dim": share} if share else {}
