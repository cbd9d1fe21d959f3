"""ERNIE 4.5 with experts: the shared contract, and what real configurations look like."""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

import numpy as np
import pytest

from khola.cards.catalogue import card, config_of
from khola.errors import BadConfig, KholaError, UnexpectedTensor, UnknownKey
from khola.loader.assemble import assemble
from khola.models import architecture
from khola.nn.specs import parse_config
from khola.ops.numpy_ops import NumpyOps
from tests.models.contract import Contract, Tiny, far
from tests.models.stored import stored
from tests.tolerances import LOGITS, QUANTISED_EXPERTS

EXPERTS = {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 32, "pad_token_id": None}


class TestErnie45Moe(Contract):
    """A bias for the choice of experts, two shared experts in one, dense layers before, between and behind."""

    QUANTISED: ClassVar[dict[str, float]] = QUANTISED_EXPERTS
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "two shared experts, dense first": {**EXPERTS, "moe_num_shared_experts": 2, "moe_layer_start_index": 1},
        "none shared, every second layer, untied": {
            **EXPERTS, "moe_k": 2, "moe_num_shared_experts": 0, "moe_layer_start_index": 0, "moe_layer_interval": 2,
            "tie_word_embeddings": False,
        },
    }  # fmt: skip

    @staticmethod
    def config_class() -> type[Any]:
        from transformers import Ernie4_5_MoeConfig

        return Ernie4_5_MoeConfig

    @staticmethod
    def model_class() -> type[Any]:
        from transformers import Ernie4_5_MoeForCausalLM

        return Ernie4_5_MoeForCausalLM

    @staticmethod
    def on_disk(name: str) -> str:
        return name.replace(".gate.moe_statics.", ".moe_statics.")

    def test_without_its_correction_the_router_chooses_others(self, tiny: Tiny) -> None:
        arrays = {name: np.zeros_like(array) if "correction" in name else array for name, array in tiny.arrays.items()}
        ops = NumpyOps()
        assert far(tiny.logits(ops, weights=tiny.weights(ops, stored(arrays))), tiny.wanted[1]) > 100 * LOGITS

    def test_what_chooses_experts_stays_in_float32(self, tiny: Tiny) -> None:
        import torch

        from khola.ops.torch_ops import TorchOps

        mlp = tiny.weights(TorchOps(dtype="bfloat16")).model.layers[1].mlp
        assert mlp.experts.gate_proj.data.dtype == torch.bfloat16
        assert (mlp.gate.data.dtype, mlp.gate.bias.dtype, mlp.gate.bias.shape) == (torch.float32, torch.float32, (1, 8))


PUBLISHED: dict[str, Any] = {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "max_position_embeddings": 131072,
    "model_type": "ernie4_5_moe",
    "moe_capacity": [64, 64, 64],
    "moe_gate": "topk",
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_layer_end_index": 27,
    "moe_layer_interval": 1,
    "moe_layer_start_index": 1,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_use_aux_free": True,
    "num_attention_heads": 20,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_cache": False,
    "use_rmsnorm": True,
    "vocab_size": 103424,
}


def test_names_and_shapes_of_a_published_checkpoint() -> None:
    here = architecture("ernie4_5_moe")
    config = parse_config(here, PUBLISHED)
    shapes = here.tensors(config)
    assert shapes["model.layers.0.mlp.gate_proj.weight"] == (12288, 2560)
    assert shapes["model.layers.27.mlp.experts.63.down_proj.weight"] == (2560, 1536)
    assert shapes["model.layers.1.mlp.shared_experts.up_proj.weight"] == (3072, 2560)
    assert shapes["model.layers.1.mlp.gate.weight"] == (64, 2560)
    assert shapes["model.layers.1.mlp.moe_statics.e_score_correction_bias"] == (1, 64)
    assert len(shapes) == 2 + 28 * 6 + 3 + 27 * (2 + 64 * 3 + 3)
    assert sum(map(prod, shapes.values())) == 21_825_437_888
    assert here.cache(config).numbers_per_token() * 2 == 57_344
    assert len(here.pairs(config)) == 28 * 2
    assert here.tensors(parse_config(here, config_of(card("ernie-4.5-21b-a3b")))) == shapes


def test_where_experts_begin_and_end() -> None:
    here = architecture("ernie4_5_moe")

    def sparse(**changes: Any) -> list[int]:
        return [layer for layer, mixed in enumerate(parse_config(here, PUBLISHED | changes).sparse) if mixed]

    assert sparse() == sparse(moe_layer_end_index=-1) == sparse(moe_layer_end_index=None) == list(range(1, 28))
    assert sparse(moe_layer_start_index=3, moe_layer_end_index=9, moe_layer_interval=2) == [3, 5, 7, 9]


def test_layers_that_predict_a_second_token_are_left_in_the_file() -> None:
    tiny = Tiny.made(TestErnie45Moe, "two shared experts, dense first")
    names = ("mtp_block.0.self_attn.q_proj.weight", "mtp_emb_norm.0.weight", "mtp_hidden_norm.0.weight", "mtp_linear_proj.0.weight")
    more = stored(tiny.arrays | {f"model.{name}": np.zeros((2, 2), np.float32) for name in names})
    told: list[str] = []
    assemble(tiny.architecture, tiny.config, more, NumpyOps(), tell=lambda text, **facts: told.append(text.format(**facts)))
    assert told == ["model: 4 tensors of the layer that predicts a second token are left out"]
    with pytest.raises(UnexpectedTensor, match=r"mtpx"):
        assemble(tiny.architecture, tiny.config, stored(tiny.arrays | {"model.mtpx.0.weight": np.zeros((2, 2), np.float32)}), NumpyOps())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"moe_k": 65}, "moe_k is 65; there are 64 experts"),
        ({"moe_num_experts": None}, "moe_num_experts"),
        ({"moe_num_experts": [64, 64]}, "moe_num_experts"),
        ({"moe_layer_interval": 0}, "moe_layer_interval"),
        ({"moe_use_aux_free": False}, "moe_use_aux_free"),
        ({"moe_gate_act": "sigmoid"}, "moe_gate_act"),
        ({"moe_norm_min": 0.0}, "moe_norm_min"),
        ({"use_bias": True}, "use_bias"),
        ({"num_experts": 64}, "num_experts"),
    ],
)
def test_impossible_values_are_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(KholaError, match=told) as wrong:
        parse_config(architecture("ernie4_5_moe"), {**PUBLISHED, **change})
    assert isinstance(wrong.value, BadConfig | UnknownKey)
