"""DeepSeek-V3 and its relatives: the shared contract, and what real configurations look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from khola.cards.catalogue import card, config_of
from khola.errors import BadConfig, KholaError, UnknownKey
from khola.loader.assemble import assemble
from khola.models import architecture
from khola.nn.specs import ignored_keys, parse_config
from khola.ops.numpy_ops import NumpyOps
from khola.store.safetensors import read_checkpoint
from tests.models.contract import Contract, Tiny
from tests.models.stored import Plain
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


HERE = architecture("deepseek_v3")
PUBLISHED = {name: config_of(card(name)) for name in ("deepseek-v3", "moonlight-16b-a3b", "kimi-k2-instruct")}


@pytest.mark.parametrize(
    ("name", "tensors", "some"),
    [
        (
            "deepseek-v3",
            3 + 61 * (2 + 7) + 3 * 3 + 58 * (2 + 3 * 257),
            {
                "model.layers.0.self_attn.q_a_proj.weight": (1536, 7168),
                "model.layers.60.self_attn.q_b_proj.weight": (24576, 1536),
                "model.layers.60.self_attn.kv_a_proj_with_mqa.weight": (576, 7168),
                "model.layers.60.self_attn.kv_a_layernorm.weight": (512,),
                "model.layers.60.self_attn.kv_b_proj.weight": (32768, 512),
                "model.layers.60.self_attn.o_proj.weight": (7168, 16384),
                "model.layers.2.mlp.down_proj.weight": (7168, 18432),
                "model.layers.3.mlp.gate.weight": (256, 7168),
                "model.layers.3.mlp.gate.e_score_correction_bias": (256,),
                "model.layers.60.mlp.experts.255.up_proj.weight": (2048, 7168),
                "model.layers.60.mlp.shared_experts.gate_proj.weight": (2048, 7168),
            },
        ),
        (
            "moonlight-16b-a3b",
            3 + 27 * (2 + 5) + 3 + 26 * (2 + 3 * 65),
            {
                "model.layers.26.self_attn.q_proj.weight": (3072, 2048),
                "model.layers.26.self_attn.kv_b_proj.weight": (4096, 512),
                "model.layers.0.mlp.gate_proj.weight": (11264, 2048),
                "model.layers.26.mlp.experts.63.down_proj.weight": (2048, 1408),
                "model.layers.26.mlp.shared_experts.down_proj.weight": (2048, 2816),
            },
        ),
        (
            "kimi-k2-instruct",
            3 + 61 * (2 + 7) + 3 + 60 * (2 + 3 * 385),
            {
                "model.layers.60.self_attn.q_b_proj.weight": (12288, 1536),
                "model.layers.60.self_attn.kv_b_proj.weight": (16384, 512),
                "model.layers.1.mlp.gate.e_score_correction_bias": (384,),
                "lm_head.weight": (163840, 7168),
            },
        ),
    ],
)
def test_names_and_shapes_of_published_checkpoints(name: str, tensors: int, some: dict[str, tuple[int, ...]]) -> None:
    shapes = HERE.tensors(parse_config(HERE, PUBLISHED[name]))
    assert len(shapes) == tensors
    assert {tensor: shapes.get(tensor) for tensor in some} == some
    assert all(tensor.rpartition(".")[2] in ("weight", "e_score_correction_bias") for tensor in shapes)


def test_what_stretching_does_to_scores() -> None:
    """YaRN leaves cosines as they are and multiplies scores instead; a ramp may be one pair wide."""
    v3, moonlight, kimi = (parse_config(HERE, config) for config in PUBLISHED.values())
    scales = [c.attention.scale * 192**0.5 for c in (v3, moonlight, kimi)]
    assert scales == pytest.approx([1.8739, 1.0, 1.8133], abs=1e-4)
    assert {c.rope.factor for c in (v3, moonlight, kimi)} == {1.0}
    for c, factor, first, last in ((v3, 40, 10, 23), (kimi, 32, 19, 20)):
        plain = c.rope_theta ** -(np.arange(32) / 32)
        ratios = plain / np.array(c.rope.frequencies)
        np.testing.assert_allclose(ratios[: first + 1], 1, rtol=1e-6)
        np.testing.assert_allclose(ratios[last:], factor, rtol=1e-6)
        assert (np.diff(ratios[first : last + 1]) > 0).all()


def test_the_keys_of_the_labs_own_files_are_read() -> None:
    """config.json of DeepSeek-V3 and of Kimi-K2 with everything that the labs wrote into it."""
    more = {
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "aux_loss_alpha": 0.001,
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
        "hidden_act": "silu", "initializer_range": 0.02, "moe_layer_freq": 1, "num_key_value_heads": 128, "pretraining_tp": 1,
        "seq_aux": True, "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": True,
    }  # fmt: skip
    v3 = {**PUBLISHED["deepseek-v3"], **more, "rope_theta": 10000}
    assert parse_config(HERE, v3) == parse_config(HERE, {**PUBLISHED["deepseek-v3"], "num_key_value_heads": 128})
    assert {"aux_loss_alpha", "seq_aux", "ep_size"} <= ignored_keys(HERE, v3).keys()
    kimi = {**PUBLISHED["kimi-k2-instruct"], **more, "model_type": "kimi_k2", "num_key_value_heads": 64}
    assert architecture("kimi_k2") is HERE
    assert parse_config(HERE, kimi).mixture.experts == 384


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_experts_per_tok": 1000}, "num_experts_per_tok is 1000"),
        ({"topk_group": 9}, "topk_group is 9"),
        ({"topk_group": 1, "num_experts_per_tok": 33}, "num_experts_per_tok is 32; expected 33"),
        ({"n_group": 7}, "n_routed_experts"),
        ({"num_key_value_heads": 8}, "num_key_value_heads is 8; expected 128"),
        ({"head_dim": 192}, "head_dim is 192; expected 64"),
        ({"qk_head_dim": 128}, "qk_head_dim is 128; expected 192"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim"),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax'; expected 'sigmoid'"),
        ({"topk_method": "greedy"}, "topk_method"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
        ({"kv_lora_rank": None}, "kv_lora_rank"),
        ({"index_topk": 2048}, "index_topk"),
    ],
)
def test_impossible_values_are_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(KholaError, match=told) as wrong:
        parse_config(HERE, {**PUBLISHED["deepseek-v3"], **change})
    assert isinstance(wrong.value, BadConfig | UnknownKey)


@pytest.mark.parity
def test_blocks_of_8_bit_floats_are_what_they_mean(tmp_path: Path) -> None:
    """A checkpoint as the lab publishes it: blocks smaller than their rectangle, and a layer behind the last one, which is left aside."""
    import json

    import torch
    from safetensors.torch import save_file

    tiny, block = Tiny.made(TestDeepseekV3, "DeepSeek-V3"), 16
    config = {**tiny.raw, "num_nextn_predict_layers": 1}
    files: dict[str, Any] = {}
    meant: dict[str, Any] = {}
    for name, array in tiny.arrays.items():
        tensor = torch.tensor(array)
        kept = tensor.dim() == 1 or "mlp.gate." in name or "embed" in name or "lm_head" in name
        if kept:
            files[name] = tensor if name.endswith("_bias") else tensor.bfloat16()
            meant[name] = files[name].float()
            continue
        places = [torch.arange(size) // block for size in tensor.shape]
        scales = torch.rand(tuple(int(place[-1]) + 1 for place in places)) + 0.5
        spread = scales[places[0]][:, places[1]]
        files[name], files[f"{name}_scale_inv"] = (tensor / spread).to(torch.float8_e4m3fn), scales
        meant[name] = files[name].float() * spread
    files["model.layers.3.eh_proj.weight"] = torch.zeros(64, 128).to(torch.float8_e4m3fn)
    files["model.layers.3.eh_proj.weight_scale_inv"] = torch.ones(4, 8)
    files["model.layers.3.shared_head.norm.weight"] = torch.ones(64)
    save_file(files, tmp_path / "model.safetensors")
    method = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [block, block], "activation_scheme": "dynamic"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    ops, parsed = NumpyOps(), parse_config(HERE, config)
    with read_checkpoint(tmp_path) as checkpoint:
        found = tiny.logits(ops, weights=assemble(HERE, parsed, checkpoint.tensors, ops), config=parsed)
    wanted = tiny.logits(ops, weights=tiny.weights(ops, {name: Plain(name, values.numpy()) for name, values in meant.items()}))
    np.testing.assert_array_equal(found, wanted)
