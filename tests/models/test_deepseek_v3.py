"""DeepSeek-V3 and its relatives: the shared contract, and what real configurations look like."""

from __future__ import annotations

from typing import Any, ClassVar

from tests.models.contract import Contract
from tests.tolerances import NATIVE_LATENT, QUANTISED_LATENT

LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12,
    "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "norm_topk_prob": True, "num_nextn_predict_layers": 0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 64}


class TestDeepseekV3(Contract):
    """Groups of experts, YaRN in two places; queries that are not squeezed; a ramp of one pair."""

    QUANTISED: ClassVar[dict[str, float]] = QUANTISED_LATENT
    NATIVE: ClassVar[float] = NATIVE_LATENT
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "DeepSeek-V3": {
            **LATENT,
            "routed_scaling_factor": 2.5,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {**YARN, "rope_theta": 1e4, "factor": 40.0, "beta_fast": 32, "beta_slow": 1},
        },
        "Moonlight": {
            **LATENT,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 2,
            "routed_scaling_factor": 2.446,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
        },
        "Kimi-K2": {
            **LATENT,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.827,
            "rope_parameters": {**YARN, "rope_theta": 5e4, "factor": 32.0, "beta_fast": 1, "beta_slow": 1},
        },
    }

    @staticmethod
    def config_class() -> type[Any]:
        from transformers import DeepseekV3Config

        return DeepseekV3Config

    @staticmethod
    def model_class() -> type[Any]:
        from transformers import DeepseekV3ForCausalLM

        return DeepseekV3ForCausalLM
