"""GLM-4 of 2024 and of April 2025: the shared contract, and what real configurations look like."""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

import numpy as np
import pytest

from khola.errors import BadConfig
from khola.models import architecture
from khola.nn.pairs import Pairs
from khola.nn.specs import parse_config
from khola.ops.native_ops import NativeOps
from khola.ops.numpy_ops import NumpyOps
from khola.ops.rows import Rows
from tests.models.contract import Contract, Tiny
from tests.models.stored import Plain, Quantised

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.5}
ROPES = {
    "half of each head": {"head_dim": 16, "pad_token_id": None},
    "whole heads, no biases, tied": {
        "pad_token_id": None,
        "head_dim": 32,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 1.0},
    },
    "yarn": {"rope_parameters": YARN, "head_dim": 16, "pad_token_id": None},
}
"""Of both architectures."""


class TestGlm(Contract):
    """Adjacent pairs in a part of each head, biases on q, k and v, gate and up in one matrix."""

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = ROPES

    @staticmethod
    def config_class() -> type[Any]:
        from transformers import GlmConfig

        return GlmConfig

    @staticmethod
    def model_class() -> type[Any]:
        from transformers import GlmForCausalLM

        return GlmForCausalLM


class TestGlm4(Contract):
    """The same, with norms on both sides of each branch."""

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = ROPES

    @staticmethod
    def config_class() -> type[Any]:
        from transformers import Glm4Config

        return Glm4Config

    @staticmethod
    def model_class() -> type[Any]:
        from transformers import Glm4ForCausalLM

        return Glm4ForCausalLM


GLM_4_9B_CHAT: dict[str, Any] = {
    "architectures": ["GlmForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 13696,
    "max_position_embeddings": 131072,
    "model_type": "glm",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1.5625e-07,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.0",
    "use_cache": True,
    "vocab_size": 151552,
}


def test_a_published_configuration_is_read() -> None:
    here = architecture("glm")
    config = parse_config(here, GLM_4_9B_CHAT)
    assert sum(map(prod, here.tensors(config).values())) == 9_399_951_360
    assert config.rope.width == 64
    assert here.cache(config).numbers_per_token() * 2 == 40_960
    pairs = here.pairs(config)
    assert pairs["model.layers.39.self_attn.k_proj.bias"] == Pairs(128, 64)
    assert len(pairs) == 40 * 4


def test_half_of_a_head_is_rotated_unless_the_file_says_otherwise() -> None:
    raw = {key: value for key, value in GLM_4_9B_CHAT.items() if key != "partial_rotary_factor"}
    assert parse_config(architecture("glm"), raw).rope.width == 64
    assert parse_config(architecture("glm"), raw | {"partial_rotary_factor": 0.25}).rope.width == 32
    with pytest.raises(BadConfig, match="partial_rotary_factor"):
        parse_config(architecture("glm"), raw | {"partial_rotary_factor": 0.01})


def test_rows_of_a_head_move_to_where_every_interpreter_wants_them() -> None:
    assert Pairs(8, 4).order(16).tolist() == [0, 2, 1, 3, 4, 5, 6, 7, 8, 10, 9, 11, 12, 13, 14, 15]
    assert Pairs(4, 4).order(4).tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
def test_moved_rows_are_the_same_in_every_format(kind: str) -> None:
    values = np.random.default_rng(3).standard_normal((16, 64)).astype(np.float32)
    whole = Plain("w", values) if kind == "F32" else Quantised("w", values, kind)
    order = Pairs(8, 8).order(16)
    moved = Rows("w", whole, order)
    np.testing.assert_array_equal(moved.float32(), whole.float32()[order])
    row = len(whole.raw()) // 16
    assert bytes(moved.raw()) == b"".join(bytes(whole.raw()[row * at : row * (at + 1)]) for at in order)
    assert (moved.shape, moved.kind) == (whole.shape, kind)
    bias = Rows("b", Plain("b", values[:, 0]), order)
    np.testing.assert_array_equal(np.frombuffer(bias.raw(), np.float32), values[order, 0])


def test_gate_and_up_are_one_instruction_natively() -> None:
    """The halves of their matrix alternate in strips, as if they were two."""
    tiny = Tiny.made(TestGlm, "half of each head")
    ops = NativeOps(threads=1)
    weights, here = tiny.weights(ops), tiny.architecture

    def forward(ids: Any, step: Any, ops: Any) -> Any:
        return here.block(here.embed(ids, weights, tiny.config, ops), weights.model.layers[0], 0, step, tiny.config, ops)

    recording = ops.recorded(forward)
    gated = [one for one in recording.instructions if one.facts.get("gated")]
    assert [[weight.name for weight in one.facts["weights"]] for one in gated] == [
        ["model.layers.0.mlp.gate_up_proj[0:96]", "model.layers.0.mlp.gate_up_proj[96:192]"]
    ]
    assert not any(one.op in ("slice", "silu_mul") for one in recording.instructions)
    ops.settle([forward])
    exact = NumpyOps().take(Plain("w", tiny.arrays["model.layers.0.mlp.gate_up_proj.weight"])).data
    packed = next(matrix for name, matrix in ops.weights.matrices.items() if "gate_up" in name).unpacked()
    strips = packed.reshape(-1, 2, 16, 64)
    np.testing.assert_allclose(strips[:, 0].reshape(96, 64), exact[:96], atol=0.02)
    np.testing.assert_allclose(strips[:, 1].reshape(96, 64), exact[96:], atol=0.02)
