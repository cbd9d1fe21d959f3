"""Qwen3-Next: the shared contract, and what the published configuration looks like."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from khola.errors import BadConfig, KholaError, UnknownKey
from khola.models import architecture
from khola.nn.specs import parse_config
from tests.models.states import EXPERTS, SMALL, DeltaContract

SPARSE = {**SMALL, **EXPERTS, "head_dim": 16}


class TestQwen3Next(DeltaContract):
    """Both kinds of layers, in the usual order and in another, dense layers between, one value head to a key head."""

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "three to one, in small": SPARSE,
        "other order, biases, shares as they are": {
            **SPARSE, "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"], "attention_bias": True,
            "mlp_only_layers": [2], "norm_topk_prob": False, "linear_num_value_heads": 2, "linear_conv_kernel_dim": 3,
            "partial_rotary_factor": 0.5,
        },
    }  # fmt: skip

    @staticmethod
    def config_class() -> type[Any]:
        from transformers import Qwen3NextConfig

        return Qwen3NextConfig

    @staticmethod
    def model_class() -> type[Any]:
        from transformers import Qwen3NextForCausalLM

        return Qwen3NextForCausalLM


PUBLISHED: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "decoder_sparse_step": 1, "eos_token_id": 151645, "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5120, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_value_head_dim": 128, "max_position_embeddings": 262144,
    "mlp_only_layers": [], "model_type": "qwen3_next", "moe_intermediate_size": 512, "norm_topk_prob": True, "num_attention_heads": 16,
    "num_experts": 512, "num_experts_per_tok": 10, "num_hidden_layers": 48, "num_key_value_heads": 2, "output_router_logits": False,
    "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000000, "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


def test_the_published_configuration_is_read() -> None:
    here = architecture("qwen3_next")
    config = parse_config(here, PUBLISHED)
    shapes = here.tensors(config)
    assert shapes["model.layers.0.linear_attn.in_proj_qkvz.weight"] == (12288, 2048)
    assert shapes["model.layers.46.linear_attn.conv1d.weight"] == (8192, 1, 4)
    assert shapes["model.layers.47.self_attn.q_proj.weight"] == (8192, 2048)
    assert shapes["model.layers.0.mlp.shared_expert_gate.weight"] == (1, 2048)
    assert config.rope.width == 64
    spec = here.cache(config)
    assert spec.numbers_per_token() * 2 == 24_576
    assert len(spec.states) == 36
    assert spec.numbers_per_state() == 36 * (32 * 128 * 128 + 8192 * 3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer_types": ["full_attention"]}, "has 1 entries; expected 48"),
        ({"layer_types": ["sliding_attention"] * 48}, "layer_types"),
        ({"linear_num_value_heads": 24}, "linear_num_value_heads is 24; expected a multiple of linear_num_key_heads, 16"),
        ({"num_experts": None}, "lacks num_experts"),
        ({"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size"),
        ({"num_experts_per_tok": 600}, "num_experts_per_tok is 600"),
        ({"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"attn_output_gate": False}, "attn_output_gate"),
    ],
)
def test_impossible_values_are_named(change: dict[str, Any], told: str) -> None:
    whole = {key: value for key, value in {**PUBLISHED, **change}.items() if value is not None or key not in change}
    with pytest.raises(KholaError, match=told) as wrong:
        parse_config(architecture("qwen3_next"), whole)
    assert isinstance(wrong.value, BadConfig | UnknownKey)
