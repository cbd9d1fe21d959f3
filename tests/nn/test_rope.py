"""Rotary frequencies against transformers' functions, against worked values, and wrong configurations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from khola.errors import BadConfig, UnknownKey
from khola.nn.rope import magnitude, rope_from_config, yarn_ramp
from tests.tolerances import FREQUENCIES


@dataclass
class Like:
    """A configuration with rotary positions and nothing else."""

    head_size: int = 64
    rope_theta: float | None = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    max_position_embeddings: int = 4096


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
QWEN_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
DEEPSEEK_YARN = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
    "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
KIMI_YARN = {**DEEPSEEK_YARN, "factor": 32, "beta_fast": 1}

SCALINGS: dict[str, tuple[dict[str, Any], float, int]] = {
    "default": ({"rope_type": "default"}, 1e4, 64),
    "default-5e5": ({"rope_type": "default"}, 5e5, 128),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 1e4, 64),
    "linear-half": ({"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5}, 1e4, 64),
    "llama3.1": (LLAMA3, 5e5, 128),
    "llama3.2": ({**LLAMA3, "factor": 32.0}, 5e5, 64),
    "yarn-qwen": (QWEN_YARN, 1e6, 128),
    "yarn-deepseek": (DEEPSEEK_YARN, 1e4, 64),
    "yarn-kimi": (KIMI_YARN, 5e4, 64),
    "yarn-unequal-mscale": ({**DEEPSEEK_YARN, "mscale": 0.707}, 1e4, 64),
    "yarn-one-mscale": ({**QWEN_YARN, "mscale": 2.0}, 1e4, 64),
    "yarn-given-factor": ({**QWEN_YARN, "attention_factor": 0.75}, 1e6, 128),
    "yarn-untruncated": ({**QWEN_YARN, "truncate": False}, 1e6, 128),
    "yarn-half": ({**QWEN_YARN, "partial_rotary_factor": 0.5}, 1e6, 128),
    "yarn-short": ({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 6}, 1e4, 32),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", SCALINGS)
def test_equal_to_transformers(name: str) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling, theta, size = SCALINGS[name]
    config = LlamaConfig(
        head_dim=size,
        hidden_size=size * 2,
        num_attention_heads=2,
        max_position_embeddings=1 << 17,
        rope_parameters={**scaling, "rope_theta": theta},
    )
    kind = config.rope_parameters["rope_type"]
    find = LlamaRotaryEmbedding.compute_default_rope_parameters if kind == "default" else ROPE_INIT_FUNCTIONS[kind]
    want, factor = find(config)
    rope = rope_from_config(Like(size, theta, dict(scaling), max_position_embeddings=1 << 17))
    assert rope.width == 2 * len(want)
    assert np.abs(np.array(rope.frequencies) / want.numpy() - 1).max() <= FREQUENCIES
    assert rope.factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("ramp", "low", "high"),
    [((128, 1e6, 32768, 32, 1), 23, 40), ((64, 1e4, 4096, 32, 1), 10, 23), ((64, 5e4, 4096, 1, 1), 19, 20)],
)
def test_published_ramps(ramp: tuple[int, float, int, float, float], low: int, high: int) -> None:
    """Qwen stretched 4 times, DeepSeek-V3, Kimi-K2."""
    assert yarn_ramp(*ramp) == (low, high)


def test_published_factors() -> None:
    assert rope_from_config(Like(128, 1e6, QWEN_YARN)).factor == pytest.approx(1.1386, abs=5e-5)
    assert rope_from_config(Like(64, 1e4, DEEPSEEK_YARN)).factor == 1.0
    undone = rope_from_config(Like(128, 1e6, {**QWEN_YARN, "attn_factor": 0.8782488562869419}))  # DeepSeek-R1-0528-Qwen3-8B
    assert undone.factor == pytest.approx(1.0, rel=1e-12)
    assert undone.frequencies == rope_from_config(Like(128, 1e6, QWEN_YARN)).frequencies
    assert magnitude(40) ** 2 == pytest.approx(1.8739, abs=5e-5)
    assert magnitude(32) ** 2 == pytest.approx(1.8133, abs=5e-5)
    assert magnitude(0.5) == 1.0


def test_llama3_bands() -> None:
    """Short waves stay, long ones turn 8 times slower, those between lie between."""
    plain, scaled = (np.array(rope_from_config(Like(128, 5e5, scaling)).frequencies) for scaling in (None, LLAMA3))
    waves = 2 * math.pi / plain
    ratio = plain / scaled
    assert np.allclose(ratio[waves < 8192 / 4], 1, rtol=1e-6)
    assert np.allclose(ratio[waves > 8192], 8, rtol=1e-6)
    between = ratio[(waves > 8192 / 4) & (waves < 8192)]
    assert len(between) and np.all((between > 1) & (between < 8)) and np.all(np.diff(between) > 0)


def test_divisors() -> None:
    """What GGUF ships as `rope_freqs.weight`."""
    divisors = [1.0, 2.0, 8.0, 8.0]
    plain = np.array(rope_from_config(Like(8, 5e5)).frequencies)
    scaled = np.array(rope_from_config(Like(8, 5e5, {"rope_type": "divisors", "divisors": divisors})).frequencies)
    assert np.allclose(scaled * divisors, plain, rtol=1e-6)


def test_all_spellings_mean_the_same() -> None:
    want = rope_from_config(Like(64, 5e5, LLAMA3))
    old = {"type" if key == "rope_type" else key: value for key, value in LLAMA3.items()}
    both = {**LLAMA3, "type": "llama3"}
    nested = {**LLAMA3, "rope_theta": 5e5}
    assert rope_from_config(Like(64, 5e5, old)) == want
    assert rope_from_config(Like(64, 5e5, both)) == want
    assert rope_from_config(Like(64, None, nested)) == want
    assert rope_from_config(Like(64, None, None, nested)) == want
    assert rope_from_config(Like(64, 5e5, None, nested)) == want
    assert rope_from_config(Like(64, 5e5, LLAMA3, dict(LLAMA3))) == want
    assert rope_from_config(Like(64, None)) == rope_from_config(Like(64, 10000.0, {}))
    assert rope_from_config(Like(64, 5e5, {**LLAMA3, "finetuned": True, "mscale": None})) == want


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (Like(rope_scaling={"type": "dynamic", "factor": 2.0}), "dynamic"),
        (Like(rope_scaling={"rope_type": "linear"}), "factor"),
        (Like(rope_scaling={"rope_type": "linear", "factor": 0}), "factor"),
        (Like(rope_scaling={"rope_type": "linear", "factor": float("nan")}), "factor"),
        (Like(rope_scaling={"rope_type": "linear", "factor": float("inf")}), "factor"),
        (Like(rope_scaling={"rope_type": "linear", "factor": "4"}), "factor"),
        (Like(rope_scaling={"rope_type": "linear", "factor": [4]}), "factor"),
        (Like(rope_scaling={"rope_type": "linear", "type": "yarn", "factor": 4}), "yarn"),
        (Like(rope_scaling={**LLAMA3, "high_freq_factor": 1.0}), "high_freq_factor"),
        (Like(rope_scaling={**LLAMA3, "original_max_position_embeddings": 0}), "original_max_position_embeddings"),
        (Like(rope_scaling={**QWEN_YARN, "beta_fast": 1, "beta_slow": 32}), "beta_fast"),
        (Like(rope_scaling={"rope_type": "default", "rope_theta": 5e5}), "rope_theta"),
        (Like(rope_scaling={**QWEN_YARN, "attention_factor": 1.0, "attn_factor": 1.0}), "attn_factor"),
        (Like(rope_scaling=QWEN_YARN, rope_parameters=LLAMA3), "contradict"),
        (Like(rope_scaling={"rope_type": "default", "partial_rotary_factor": 0.01}), "partial_rotary_factor"),
        (Like(head_size=6, rope_scaling={"rope_type": "default", "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (Like(rope_scaling={"rope_type": "divisors", "divisors": [1.0]}), "divisors"),
        (Like(rope_scaling={"rope_type": "divisors", "divisors": [0.0] * 32}), "divisors"),
    ],
)
def test_wrong_configurations_are_named(config: Like, told: str) -> None:
    with pytest.raises(BadConfig) as wrong:
        rope_from_config(config)
    assert told in str(wrong.value)


@pytest.mark.parametrize(
    "scaling", [{"rope_type": "default", "factor": 2.0}, {**LLAMA3, "mscale": 1.0}, {"rope_type": "linear", "stretch": 2.0}]
)
def test_parameters_that_nobody_reads_are_refused(scaling: dict[str, Any]) -> None:
    with pytest.raises(UnknownKey):
        rope_from_config(Like(rope_scaling=scaling))
