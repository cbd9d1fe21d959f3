"""MiniMax-Text-01: the shared contract where transformers rotates whole heads, and our own float64 oracle where half of a head turns."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.errors import BadConfig, KholaError, UnknownKey
from khola.models import architecture
from khola.nn.lightning import decays, slopes
from khola.nn.specs import parse_config
from khola.ops.numpy_ops import NumpyOps
from tests.models.contract import Contract, Tiny, far
from tests.tolerances import LOGITS, QUANTISED_EXPERTS

ALPHA = 3.5565588200778455
KINDS = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
HYBRID = {
    "num_hidden_layers": 4, "layer_types": KINDS, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32,
    "block_size": 8,
}  # fmt: skip
FACTORS = {f"{kind}_alpha_factor": ALPHA for kind in ("full_attn", "linear_attn", "mlp")}


class TestMiniMax(Contract):
    """Both kinds of layers, residuals of several sizes, more heads than the hidden width holds."""

    QUANTISED: ClassVar[dict[str, float]] = QUANTISED_EXPERTS
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "seven to one, in small": {**HYBRID, **FACTORS},
        "wide heads, a part behind": {
            **HYBRID, **FACTORS, "head_dim": 32, "linear_attn_beta_factor": 0.5, "num_attention_heads": 8, "layer_types": KINDS[::-1],
        },
    }  # fmt: skip

    @staticmethod
    def config_class() -> type[Any]:
        from transformers import MiniMaxConfig

        return MiniMaxConfig

    @staticmethod
    def model_class() -> type[Any]:
        from transformers import MiniMaxForCausalLM

        return MiniMaxForCausalLM

    @staticmethod
    def on_disk(name: str) -> str:
        for ours, theirs in ((".mlp.", ".block_sparse_moe."), ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
            name = name.replace(ours, theirs)
        return name


def oracle(arrays: dict[str, Any], ids: NDArray[Any], rotated: int) -> NDArray[np.float64]:
    """Logits in float64, token by token, from the formulas of arXiv:2501.08313 section 2: written without any part of khola.

    Args:
        rotated: dimensions of each head of a softmax layer that turn.
    """
    w = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    heads, key_heads, size, eps = 4, 2, 16, 1e-5

    def normed(x: Any, name: str, eps: float = eps) -> Any:
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * w[name]

    def silu(x: Any) -> Any:
        return x / (1 + np.exp(-x))

    def turned(x: Any) -> Any:
        half = rotated // 2
        angles = np.arange(len(x))[:, None] * 1e6 ** (-np.arange(half) / half)
        pairs = (x[..., :half] + 1j * x[..., half:rotated]) * np.exp(1j * angles)[:, None]
        return np.concatenate([pairs.real, pairs.imag, x[..., rotated:]], -1)

    def lightning(h: Any, p: str, layer: int) -> Any:
        qkv = silu(h @ w[f"{p}qkv_proj.weight"].T).reshape(len(h), heads, 3, size)
        out = np.zeros((len(h), heads, size))
        for head in range(heads):
            state, fade = np.zeros((size, size)), math.exp(-(2 ** (-8 * (head + 1) / heads)) * (1 - layer / 3 + 1e-5))
            for t, (q, k, v) in enumerate(qkv[:, head]):
                state = fade * state + np.outer(k, v)
                out[t, head] = q @ state
        read = normed(out.reshape(len(h), -1), f"{p}norm.weight", 1e-6)
        return (read / (1 + np.exp(-h @ w[f"{p}output_gate.weight"].T))) @ w[f"{p}out_proj.weight"].T

    def softmax_attention(h: Any, p: str) -> Any:
        q, k, v = (
            (h @ w[f"{p}{name}_proj.weight"].T).reshape(len(h), n, size) for name, n in (("q", heads), ("k", key_heads), ("v", key_heads))
        )
        q, k = turned(q), turned(k)
        out = np.zeros(q.shape)
        for t in range(len(h)):
            for head in range(heads):
                scores = np.exp(k[: t + 1, head // 2] @ q[t, head] / math.sqrt(size))
                out[t, head] = scores / scores.sum() @ v[: t + 1, head // 2]
        return out.reshape(len(h), -1) @ w[f"{p}o_proj.weight"].T

    def experts(h: Any, p: str) -> Any:
        out, logits = np.zeros(h.shape), h @ w[f"{p}gate.weight"].T
        for t, row in enumerate(logits):
            chosen = np.argsort(row)[-2:]
            shares = np.exp(row[chosen]) / np.exp(row[chosen]).sum()
            for expert, share in zip(chosen, shares, strict=True):
                gate, down, up = (w[f"{p}experts.{expert}.{name}.weight"] for name in ("w1", "w2", "w3"))
                out[t] += share * (down @ (silu(gate @ h[t]) * (up @ h[t])))
        return out

    x = w["model.embed_tokens.weight"][ids]
    for layer, kind in enumerate(KINDS):
        p = f"model.layers.{layer}."
        h = normed(x, f"{p}input_layernorm.weight")
        attended = softmax_attention(h, f"{p}self_attn.") if kind == "full_attention" else lightning(h, f"{p}self_attn.", layer)
        x = ALPHA * h + attended
        h = normed(x, f"{p}post_attention_layernorm.weight")
        x = ALPHA * h + experts(h, f"{p}block_sparse_moe.")
    return normed(x, "model.norm.weight") @ w["lm_head.weight"].T


@pytest.mark.parity
def test_half_a_head_turns_as_the_paper_says_and_not_as_transformers_does() -> None:
    """transformers 5.23 has no key for it and always turns whole heads (its issue 48241 tells the same of the model that followed)."""
    tiny = Tiny.made(TestMiniMax, "seven to one, in small")
    theirs = tiny.wanted[1]
    ours = {rotated: parse_config(tiny.architecture, {**tiny.raw, "rotary_dim": rotated}) for rotated in (8, 16)}
    exact = {rotated: oracle(tiny.arrays, tiny.ids, rotated) for rotated in (8, 16)}
    for rotated in (8, 16):
        assert far(tiny.logits(NumpyOps(), config=ours[rotated]), exact[rotated]) <= LOGITS
        assert far(tiny.logits(NumpyOps(dtype="float64"), config=ours[rotated]), exact[rotated]) <= 1e-6
    assert far(theirs, exact[16]) <= LOGITS
    assert far(theirs, exact[8]) > 1000 * LOGITS
    assert len(ours[8].rope.frequencies) == 4


PUBLISHED: dict[str, Any] = {
    "architectures": ["MiniMaxText01ForCausalLM"], "attention_dropout": 0.0, "attn_type_list": [*[0] * 7, 1] * 10,
    "bos_token_id": None, "eos_token_id": None, "head_dim": 128, "hidden_act": "silu", "hidden_size": 6144, "initializer_range": 0.02,
    "intermediate_size": 9216, "layernorm_full_attention_alpha": ALPHA, "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_alpha": ALPHA, "layernorm_linear_attention_beta": 1.0, "layernorm_mlp_alpha": ALPHA,
    "layernorm_mlp_beta": 1.0, "max_position_embeddings": 10240000, "model_type": "minimax_text_01", "num_attention_heads": 64,
    "num_experts_per_tok": 2, "num_hidden_layers": 80, "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False,
    "postnorm": True, "rms_norm_eps": 1e-05, "rope_theta": 10000000, "rotary_dim": 64, "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0, "shared_intermediate_size": 0, "shared_moe_mode": "sigmoid", "sliding_window": None,
    "tie_word_embeddings": False, "use_cache": True, "vocab_size": 200064,
}  # fmt: skip


def test_the_published_configuration_is_read() -> None:
    here = architecture("minimax_text_01")
    config = parse_config(here, PUBLISHED)
    shapes = here.tensors(config)
    assert shapes["model.layers.0.self_attn.qkv_proj.weight"] == (24576, 6144)
    assert shapes["model.layers.7.self_attn.k_proj.weight"] == (1024, 6144)
    assert shapes["model.layers.79.block_sparse_moe.experts.31.w2.weight"] == (6144, 9216)
    assert config.residuals == dict.fromkeys(("full", "linear", "mlp"), (ALPHA, 1.0))
    assert config.rope.width == 64
    spec = here.cache(config)
    assert spec.numbers_per_token() * 2 == 40_960
    assert spec.numbers_per_state() * 4 == 293_601_280
    assert len(spec.states) == 70 and 79 not in spec.states


def test_how_heads_fade() -> None:
    assert slopes(8) == [2.0**-n for n in range(1, 9)]
    assert slopes(12)[8:] == [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    assert decays(8, 0, 80)[0] == math.exp(-0.5 * (1 + 1e-5))
    assert 1 - decays(64, 79, 80)[-1] == pytest.approx(2**-8 * 1e-5, rel=1e-3)
    assert decays(2, 0, 1) == decays(2, 0, 80)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"attn_type_list": None}, "lacks attn_type_list"),
        ({"attn_type_list": [0, 1]}, "has 2 entries; expected 80"),
        ({"attn_type_list": [2] * 80}, "attn_type_list"),
        ({"postnorm": False}, "postnorm"),
        ({"shared_intermediate_size": 1024}, "shared_intermediate_size"),
        ({"mlp_alpha_factor": 1.0}, "mlp_alpha_factor is 1.0; expected 3.55"),
        ({"num_experts_per_tok": 33}, "num_experts_per_tok is 33"),
        ({"rotary_dim": 63}, "partial_rotary_factor"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"n_group": 2}, "n_group"),
    ],
)
def test_impossible_values_are_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(KholaError, match=told) as wrong:
        parse_config(architecture("minimax"), {**PUBLISHED, **change})
    assert isinstance(wrong.value, BadConfig | UnknownKey)
