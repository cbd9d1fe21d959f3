"""Qwen3.5, the text part, dense and with experts: the shared contract, and what its configurations look like."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from khola.errors import BadConfig, KholaError, UnknownKey
from khola.models import architecture
from khola.nn.specs import parse_config
from tests.models.states import EXPERTS, SMALL, DeltaContract

AXES = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
DENSE = {**SMALL, "head_dim": 32, "rope_parameters": AXES}


class TestQwen35(DeltaContract):
    """Dense, tied and not."""

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "dense": DENSE,
        "tied, biases": {**DENSE, "tie_word_embeddings": True, "attention_bias": True},
    }

    @staticmethod
    def config_class() -> type[Any]:
        from transformers import Qwen3_5TextConfig

        return Qwen3_5TextConfig

    @staticmethod
    def model_class() -> type[Any]:
        from transformers import Qwen3_5ForCausalLM

        return Qwen3_5ForCausalLM


class TestQwen35Moe(DeltaContract):
    """With experts in every layer."""

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {"experts": {**DENSE, **EXPERTS}}

    @staticmethod
    def config_class() -> type[Any]:
        from transformers import Qwen3_5MoeTextConfig

        return Qwen3_5MoeTextConfig

    @staticmethod
    def model_class() -> type[Any]:
        from transformers import Qwen3_5MoeForCausalLM

        return Qwen3_5MoeForCausalLM


# What the lab's library means by a configuration without any key.
MOE_DEFAULTS: dict[str, Any] = {
    "model_type": "qwen3_5_moe_text", "vocab_size": 248320, "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "num_experts_per_tok": 8, "num_experts": 256, "attn_output_gate": True,
    "mamba_ssm_dtype": "float32", "mtp_num_hidden_layers": 1, "max_position_embeddings": 262144,
    "rope_parameters": {**AXES, "mrope_section": [11, 11, 10]},
}  # fmt: skip


def test_names_and_shapes_with_experts() -> None:
    here = architecture("qwen3_5_moe_text")
    config = parse_config(here, MOE_DEFAULTS)
    shapes = here.tensors(config)
    assert shapes["model.layers.0.linear_attn.in_proj_qkv.weight"] == (8192, 2048)
    assert shapes["model.layers.38.linear_attn.in_proj_a.weight"] == (32, 2048)
    assert shapes["model.layers.39.self_attn.q_proj.weight"] == (8192, 2048)
    assert config.rope.width == 64
    assert len(here.cache(config).states) == 30
    assert parse_config(here, {**MOE_DEFAULTS, "output_gate_type": "swish"}).mixers == config.mixers  # as files of Qwen3.6 say it


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_experts": None}, "lacks intermediate_size"),
        ({"shared_expert_intermediate_size": None}, "lacks shared_expert_intermediate_size"),
        ({"attn_output_gate": False}, "attn_output_gate"),
        ({"mamba_ssm_dtype": "bfloat16"}, "mamba_ssm_dtype"),
        ({"output_gate_type": "sigmoid"}, "output_gate_type"),
        ({"rope_parameters": {**AXES, "mrope_section": [11, 11, 10], "beta_fast": 32.0}}, "beta_fast"),
    ],
)
def test_impossible_values_are_named(change: dict[str, Any], told: str) -> None:
    whole = {key: value for key, value in {**MOE_DEFAULTS, **change}.items() if value is not None}
    with pytest.raises(KholaError, match=told) as wrong:
        parse_config(architecture("qwen3_5"), whole)
    assert isinstance(wrong.value, BadConfig | UnknownKey)
