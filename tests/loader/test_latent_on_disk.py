"""Latent attention on disk: in a folder, in the older GGUF form with one matrix for keys and values, and in the newer one with two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.errors import KholaError, UnsupportedFormat
from khola.loader import load_model
from khola.loader.exported import as_folder, as_gguf
from khola.nn.decoder import logits
from khola.ops.native_ops import NativeOps
from khola.ops.vocabulary import Step, whole_sequences
from khola.store.gguf import read_gguf, write_gguf
from khola.store.names import config_from_gguf
from khola.store.safetensors import read_checkpoint
from khola.store.stored import StoredTensor, in_memory
from tests.api.small_models import folder_model, settings_in
from tests.needs import needs_library

pytestmark = pytest.mark.parity
HEADS, PLAIN, TURNED, LATENT, VALUE = 4, 32, 8, 64, 32
CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3", "num_key_value_heads": HEADS, "q_lora_rank": 32, "kv_lora_rank": LATENT, "qk_nope_head_dim": PLAIN,
    "qk_rope_head_dim": TURNED, "v_head_dim": VALUE, "first_k_dense_replace": 1, "moe_intermediate_size": 32, "n_routed_experts": 8,
    "n_shared_experts": 2, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "tie_word_embeddings": False,
    "rope_scaling": {
        "type": "yarn", "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip
METADATA: dict[str, Any] = {
    "block_count": 2, "context_length": 1024, "embedding_length": 64, "feed_forward_length": 256, "attention.head_count": HEADS,
    "rope.freq_base": 10000.0, "attention.layer_norm_rms_epsilon": 1e-5, "expert_used_count": 3, "leading_dense_block_count": 1,
    "attention.q_lora_rank": 32, "attention.kv_lora_rank": LATENT, "expert_feed_forward_length": 32, "expert_count": 8,
    "expert_shared_count": 2, "expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_gating_func": 2, "expert_group_count": 4,
    "expert_group_used_count": 2, "rope.dimension_count": TURNED, "rope.scaling.type": "yarn", "rope.scaling.factor": 40.0,
    "rope.scaling.original_context_length": 64, "rope.scaling.yarn_log_multiplier": 0.1,
}  # fmt: skip
OLDER = {"attention.head_count_kv": HEADS, "attention.key_length": PLAIN + TURNED, "attention.value_length": VALUE}
NEWER = {
    "attention.head_count_kv": 1, "attention.key_length": LATENT + TURNED, "attention.value_length": LATENT,
    "attention.key_length_mla": PLAIN + TURNED, "attention.value_length_mla": VALUE,
}  # fmt: skip


def metadata(form: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Of a file in one of the forms."""
    return {"general.architecture": "deepseek2", **{f"deepseek2.{key}": value for key, value in (METADATA | form | changes).items()}}


def gguf_tensors(folder: Path, newer: bool, kind: str = "F32") -> list[StoredTensor]:
    """Tensors of a folder as the lab's converter names and cuts them."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, 2)
    together: dict[str, list[NDArray[np.float32]]] = {}
    with read_checkpoint(folder) as checkpoint:
        for name, stored in checkpoint.tensors.items():
            values = stored.float32()
            parts = name.split(".")
            if "experts" in parts:
                number = parts.index("experts") + 1
                del parts[number]
            if name.endswith("e_score_correction_bias"):
                parts[-1:] = ["e_score_correction", "bias"]
            if newer and "kv_b_proj" in name:
                by_head = values.reshape(HEADS, PLAIN + VALUE, LATENT)
                cut = {"k_b_proj": by_head[:, :PLAIN].swapaxes(1, 2), "v_b_proj": by_head[:, PLAIN:]}
                for module, own in cut.items():
                    together[names.get_name(name.replace("kv_b_proj", module), (".weight",)) or ""] = [np.ascontiguousarray(own)]
                continue
            ours = names.get_name(".".join(parts), (".weight", ".bias"))
            assert ours, name
            together.setdefault(ours, []).append(values)
    stacked = {name: np.stack(arrays) if "_exps" in name else arrays[0] for name, arrays in together.items()}
    return [in_memory(name, array, kind if array.ndim > 1 and array.shape[-1] % 32 == 0 else "F32") for name, array in stacked.items()]


def tokenizer_keys(folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Vocabulary of a folder's model in GGUF's form."""
    parts = as_gguf(folder_model(tmp_path / "llama"), "model")
    parts.close()
    return {key: value for key, value in parts.metadata.items() if key.startswith("tokenizer.")}


@pytest.mark.parametrize("newer", [False, True])
def test_a_file_and_a_folder_are_one_model(newer: bool, tmp_path: Path) -> None:
    folder, file = folder_model(tmp_path / "model", **CONFIG), tmp_path / "model.gguf"
    write_gguf(file, metadata(NEWER if newer else OLDER) | tokenizer_keys(folder, tmp_path), gguf_tensors(folder, newer))
    with read_gguf(file) as written:
        assert ("blk.0.attn_k_b.weight" in written.tensors) is newer and "blk.1.exp_probs_b.bias" in written.tensors
    one, other = (load_model(str(path), settings=settings_in(tmp_path), interpreter="numpy") for path in (folder, file))
    assert one.config.attention == other.config.attention and one.config.mixture == other.config.mixture
    for left, right in zip(one.weights.leaves(), other.weights.leaves(), strict=True):
        assert left.name == right.name and np.array_equal(left.data, right.data), left.name
        assert left.bias is None or np.array_equal(left.bias, right.bias)


@needs_library
def test_two_matrices_in_blocks_are_packed_as_they_lie(tmp_path: Path) -> None:
    """Natively, from a quantised file of the newer form: nothing is dequantised, and the logits are those of numpy."""
    folder, file = folder_model(tmp_path / "model", **CONFIG), tmp_path / "model.gguf"
    write_gguf(file, metadata(NEWER) | tokenizer_keys(folder, tmp_path), gguf_tensors(folder, True, "Q8_0"))
    exact, native = (load_model(str(file), settings=settings_in(tmp_path), interpreter=name) for name in ("numpy", "native"))
    assert isinstance(native.ops, NativeOps)
    matrices = native.ops.weights.matrices
    assert {matrices[f"model.layers.1.self_attn.kv_b_proj.{part}"].form.bits for part in ("keys", "values")} == {8}
    ids = np.arange(40, dtype=np.int32)
    wanted = logits(ids, exact.architecture, exact.weights, exact.config, whole_sequences([40]), exact.ops)
    program = native.ops.compile(
        lambda ids, step, ops: logits(ids, native.architecture, native.weights, native.config, step, ops), native.cache, 64, 64
    )
    rows = np.arange(40, dtype=np.int32)
    cache = native.ops.new_cache(native.cache, 2)
    step = Step(rows, np.array([0, 40], np.int32), np.array([40], np.int32), rows, np.array([[1, 0]], np.int32), cache)
    assert np.square(program(ids, step) - wanted).sum() / np.square(wanted).sum() < 1e-2


def test_a_file_of_the_newer_form_becomes_a_folder(tmp_path: Path) -> None:
    folder = folder_model(tmp_path / "model", **CONFIG)
    write_gguf(tmp_path / "model.gguf", metadata(NEWER) | tokenizer_keys(folder, tmp_path), gguf_tensors(folder, True))
    back = as_folder(tmp_path / "model.gguf")
    with read_checkpoint(folder) as given:
        found = {name: stored.float32() for name, stored in back.tensors}
        assert found.keys() == given.tensors.keys()
        assert all(np.array_equal(values, given.tensors[name].float32()) for name, values in found.items())
    back.close()
    with pytest.raises(UnsupportedFormat, match="writes no GGUF files"):
        as_gguf(folder, "model")


@pytest.mark.parametrize(
    ("form", "changes", "told"),
    [
        (OLDER, {"attention.head_count_kv": 2}, "head_count_kv is 2; expected 4"),
        (NEWER, {"attention.head_count_kv": 4}, "head_count_kv is 4; expected 1"),
        (NEWER, {"attention.key_length": 40}, "key_length is 40; expected 72"),
        (NEWER, {"attention.value_length": 16}, "value_length is 16; expected 64"),
        (OLDER, {"rope.dimension_count": 40}, "dimension_count is 40; expected less than 40"),
        (OLDER, {"expert_gating_func": 1}, "khola knows sigmoids"),
        (OLDER, {"expert_weights_norm": 1}, "expected true or false"),
        (OLDER, {"nextn_predict_layers": 1}, "nextn_predict_layers is not known"),
    ],
)
def test_what_files_cannot_mean_is_told(form: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(KholaError, match=told):
        config_from_gguf(metadata(form, **changes), {"token_embd.weight": in_memory("t", np.zeros((9, 64), np.float32))})


def test_what_older_files_leave_out() -> None:
    """The groups of DeepSeek-V3's 256 experts, which came into files later; of other models there are none."""
    table = {"token_embd.weight": in_memory("t", np.zeros((9, 64), np.float32))}
    for experts, groups in ((256, (8, 4)), (64, (1, 1))):
        keys = metadata(OLDER, expert_count=experts)
        for key in ("expert_group_count", "expert_group_used_count", "rope.scaling.yarn_log_multiplier"):
            del keys[f"deepseek2.{key}"]
        config = config_from_gguf(keys, table)
        assert (config["n_group"], config["topk_group"]) == groups
        assert "mscale_all_dim" not in config["rope_scaling"]
    assert config_from_gguf(metadata(NEWER), table)["rope_scaling"]["mscale_all_dim"] == 1.0


def test_a_part_without_the_other_is_no_matrix(tmp_path: Path) -> None:
    folder = folder_model(tmp_path / "model", **CONFIG)
    tensors = [tensor for tensor in gguf_tensors(folder, True) if tensor.name != "blk.1.attn_v_b.weight"]
    write_gguf(tmp_path / "model.gguf", metadata(NEWER) | tokenizer_keys(folder, tmp_path), tensors)
    with pytest.raises(KholaError, match=r"model.layers.1.self_attn.kv_b_proj.weight is missing"):
        load_model(str(tmp_path / "model.gguf"), settings=settings_in(tmp_path), interpreter="numpy")
