"""Mixtures of experts on disk: a tensor for each expert in folders, one for all of a layer in GGUF, and the same model from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from khola.errors import MissingTensor, NoKernel, UnsupportedFormat, WrongShape
from khola.loader import load_model
from khola.loader.exported import as_folder, as_gguf
from khola.loader.gguf_config import gguf_config
from khola.models import architecture
from khola.nn.specs import parse_config
from khola.ops.native_ops import NativeOps
from khola.ops.stack import Stack
from khola.store.gguf import read_gguf, write_gguf
from khola.store.safetensors import read_checkpoint, write_safetensors
from khola.store.stored import in_memory, parts_of, stacked
from tests.api.small_models import CONFIG, folder_model, settings_in
from tests.needs import needs_library

EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 96, "norm_topk_prob": False},
    "qwen3_moe": {**EXPERTS, "norm_topk_prob": True, "head_dim": 32},
    "ernie4_5_moe": {
        "moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
    },
}  # fmt: skip
GGUF_NAMES = {
    "qwen2_moe": {"ffn_gate_inp", "ffn_gate_exps", "ffn_down_exps", "ffn_gate_inp_shexp", "ffn_up_shexp", "attn_q"},
    "qwen3_moe": {"ffn_gate_inp", "ffn_gate_exps", "ffn_down_exps", "attn_q_norm", "attn_k_norm"},
    "ernie4_5_moe": {"ffn_gate_inp", "ffn_gate_exps", "ffn_down_exps", "ffn_gate_shexp"},
}
PREFIXES = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "ernie4_5_moe": "ernie4_5-moe"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_and_a_folder_are_one_model(family: str, tmp_path: Path) -> None:
    folder, file = folder_model(tmp_path / "model", model_type=family, **FAMILIES[family]), tmp_path / "model.gguf"
    parts = as_gguf(folder, "model")
    write_gguf(file, parts.metadata, [stored for _, stored in parts.tensors])
    parts.close()
    with read_gguf(file) as written:
        assert {f"blk.1.{module}.weight" for module in GGUF_NAMES[family]} <= set(written.tensors)
        assert written.tensors["blk.1.ffn_gate_exps.weight"].shape == (6, 32, 64)
        assert written.metadata["general.architecture"] == PREFIXES[family]
        assert written.metadata[f"{PREFIXES[family]}.expert_used_count"] == 2
        if family == "qwen2_moe":
            assert written.tensors["blk.0.ffn_gate_inp_shexp.weight"].shape == (64,)
        if family == "ernie4_5_moe":
            assert written.tensors["blk.1.exp_probs_b.bias"].shape == (6,)
            assert "blk.0.ffn_gate.weight" in written.tensors
            told = {key.partition(".")[2]: value for key, value in written.metadata.items() if key.startswith("ernie4_5-moe.")}
            assert (told["leading_dense_block_count"], told["expert_shared_count"], told["interleave_moe_layer_step"]) == (1, 2, 1)
            assert told["expert_shared_feed_forward_length"] == 64
    one, other = (load_model(str(path), settings=settings_in(tmp_path), interpreter="numpy") for path in (folder, file))
    assert one.config.mixture == other.config.mixture and one.config.attentions[0].head_size == other.config.attentions[0].head_size
    assert one.weights.model.layers[1].mlp.experts.gate_proj.data.shape == (6, 32, 64)
    for left, right in zip(one.weights.leaves(), other.weights.leaves(), strict=True):
        assert left.name == right.name and np.array_equal(left.data, right.data), left.name
        assert left.bias is None if right.bias is None else np.array_equal(left.bias, right.bias), left.name


def test_a_gguf_file_becomes_a_folder_of_single_experts(tmp_path: Path) -> None:
    folder = folder_model(tmp_path / "model", model_type="qwen3_moe", **FAMILIES["qwen3_moe"])
    parts = as_gguf(folder, "model")
    write_gguf(tmp_path / "model.gguf", parts.metadata, [stored for _, stored in parts.tensors])
    parts.close()
    back = as_folder(tmp_path / "model.gguf")
    with read_checkpoint(folder) as given:
        assert {name: stored.float32().tolist() for name, stored in back.tensors} == {
            name: stored.float32().tolist() for name, stored in given.tensors.items()
        }
    assert {key: back.config[key] for key in EXPERTS} == EXPERTS
    back.close()


def test_experts_are_views_of_the_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 1, (3, 4, 32)).astype(np.float32)
    for kind in ("F32", "Q8_0"):
        whole = in_memory("blk.0.ffn_up_exps.weight", values, kind)
        parts = parts_of(whole)
        assert [part.shape for part in parts] == [(4, 32)] * 3
        assert [part.nbytes for part in parts] == [whole.nbytes // 3] * 3
        assert all(part.raw().obj is whole.raw().obj for part in parts), "an expert was copied"
        assert np.array_equal(np.stack([part.float32() for part in parts]), whole.float32())
        again = stacked(whole.name, parts)
        assert again.shape == whole.shape and bytes(again.raw()) == bytes(whole.raw())
        stack = Stack("x", parts)
        assert stack.shape == whole.shape and stack.kind == kind and bytes(stack.raw()) == bytes(whole.raw())
        assert np.array_equal(stack.float32(), whole.float32())
    with pytest.raises(WrongShape):
        stacked("x", [in_memory("a", values, "F32"), in_memory("b", values, "Q8_0")])


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = folder_model(tmp_path / "model", model_type="qwen3_moe", **FAMILIES["qwen3_moe"])
    lost = "model.layers.1.mlp.experts.4.up_proj.weight"
    with read_checkpoint(folder) as given:
        kept = {name: stored.float32() for name, stored in given.tensors.items() if name != lost}
    write_safetensors(folder / "model.safetensors", kept, {"format": "pt"})
    with pytest.raises(MissingTensor, match=r"layers\.1\.mlp\.experts\.4\.up_proj"):
        load_model(str(folder), settings=settings_in(tmp_path), interpreter="numpy")


def test_what_gguf_cannot_say_of_experts_is_refused() -> None:
    for changes, key in (({"mlp_only_layers": [0]}, "mlp_only_layers"), ({"norm_topk_prob": False}, "norm_topk_prob")):
        config = parse_config(architecture("qwen3_moe"), CONFIG | FAMILIES["qwen3_moe"] | changes)
        with pytest.raises(UnsupportedFormat, match=key):
            gguf_config("qwen3moe", config)
    config = parse_config(architecture("ernie4_5_moe"), CONFIG | FAMILIES["ernie4_5_moe"] | {"moe_layer_end_index": 0})
    with pytest.raises(UnsupportedFormat, match="moe_layer_end_index"):
        gguf_config("ernie4_5-moe", config)


def test_auto_runs_on_numpy_and_says_so_where_experts_fill_no_strips(tmp_path: Path) -> None:
    narrow = {**FAMILIES["qwen2_moe"], "moe_intermediate_size": 40}
    folder = folder_model(tmp_path / "model", model_type="qwen2_moe", **narrow)
    told: list[str] = []
    loaded = load_model(str(folder), settings=settings_in(tmp_path), tell=lambda text, **facts: told.append(text.format(**facts)))
    assert loaded.ops.name == "numpy"
    assert any("experts of width 40" in line for line in told)
    with pytest.raises(NoKernel):
        load_model(str(folder), settings=settings_in(tmp_path), interpreter="native")


@needs_library
def test_packed_experts_are_kept_for_the_next_start(tmp_path: Path) -> None:
    """Packed from single experts and from a stack alike, and mapped the second time."""
    folder, file = folder_model(tmp_path / "model", model_type="qwen3_moe", **FAMILIES["qwen3_moe"]), tmp_path / "model.gguf"
    parts = as_gguf(folder, "model")
    write_gguf(file, parts.metadata, [stored for _, stored in parts.tensors])
    parts.close()
    packed = []
    for path in (folder, folder, file):
        loaded = load_model(str(path), settings=settings_in(tmp_path), interpreter="native")
        assert isinstance(loaded.ops, NativeOps)
        packed.append({name: matrix.unpacked() for name, matrix in loaded.ops.weights.matrices.items()})
    name = "model.layers.0.mlp.experts.gate_proj~model.layers.0.mlp.experts.up_proj"
    assert packed[0][name].shape == (6 * 2 * 32, 64)
    for other in packed[1:]:
        assert packed[0].keys() == other.keys() and all(np.array_equal(packed[0][key], other[key]) for key in other)
