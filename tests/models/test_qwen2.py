"""Qwen2: the shared contract, and what real configurations look like."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from khola.errors import BadConfig, UnsupportedFormat
from khola.models import architecture, architectures
from khola.nn.specs import parse_config
from tests.models.contract import Contract

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}


class TestQwen2(Contract):
    """Biases on q, k and v, ties, YaRN, windows in the upper layers."""

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "grouped, tied": {"tie_word_embeddings": True},
        "every head its own keys": {"num_key_value_heads": 4},
        "yarn, window above": {"rope_parameters": YARN, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "window in one layer": {
            "use_sliding_window": True,
            "sliding_window": 33,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        "window not in use": {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 0},
    }

    @staticmethod
    def config_class() -> type[Any]:
        from transformers import Qwen2Config

        return Qwen2Config

    @staticmethod
    def model_class() -> type[Any]:
        from transformers import Qwen2ForCausalLM

        return Qwen2ForCausalLM


QWEN_2_5_0_5B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_a_published_configuration_is_read() -> None:
    here = architecture("qwen2")
    config = parse_config(here, QWEN_2_5_0_5B)
    shapes = here.tensors(config)
    assert sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in shapes.values()) == pytest.approx(0.494e9, rel=2e-3)
    assert shapes["model.layers.3.self_attn.k_proj.bias"] == (128,)
    assert "model.layers.3.self_attn.o_proj.bias" not in shapes
    assert all(layer.window is None for layer in config.attentions)


def test_yarn_as_the_lab_documents_it() -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    config = parse_config(architecture("qwen2"), {**QWEN_2_5_0_5B, "rope_scaling": scaling})
    assert config.rope.factor == pytest.approx(1.1386, abs=5e-5)


def test_keys_of_the_long_models_are_read() -> None:
    chunks = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
    long = {"dual_chunk_attention_config": chunks, "max_position_embeddings": 1010000, "rope_theta": 1e7}
    assert parse_config(architecture("qwen2"), {**QWEN_2_5_0_5B, **long}).rope_theta == 1e7


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 24}, "window"),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 23}, "sliding_window is missing"),
        ({"max_window_layers": -1}, "max_window_layers"),
        ({"layer_types": ["linear_attention"] * 24}, "layer_types"),
        ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window"),
        ({"use_mrope": True}, "use_mrope"),
        ({"max_window_layers": "all"}, "max_window_layers"),
    ],
)
def test_impossible_values_are_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(BadConfig, match=told):
        parse_config(architecture("qwen2"), {**QWEN_2_5_0_5B, **change})


def test_architectures_are_found_by_name() -> None:
    assert {"llama", "qwen2"} <= set(architectures())
    with pytest.raises(UnsupportedFormat) as wrong:
        architecture("qwen22")
    assert "qwen2" in wrong.value.hint()
    for name in ("", "..text.llama", "llama.Config", "os", "x" * 10_000):
        with pytest.raises(UnsupportedFormat):
            architecture(name)
