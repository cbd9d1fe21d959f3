"""GGUF names and metadata as the lab's checkpoint has them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.errors import BadConfig, MissingTensor, UnexpectedTensor, UnknownKey, UnsupportedFormat, WrongShape
from khola.store.gguf import read_gguf, write_gguf
from khola.store.names import FAMILIES, as_in_checkpoint, checkpoint_name, checkpoint_tensors, config_from_gguf, gguf_name
from khola.store.stored import StoredTensor, in_memory, permuted_pairs, some_rows

METADATA: dict[str, Any] = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 512, "llama.embedding_length": 64,
    "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 5e5,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": 100, "llama.rope.dimension_count": 16,
}  # fmt: skip


def tensors(*names: str) -> dict[str, StoredTensor]:
    """An embedding of 100 rows, and others of no interest."""
    found = {name: in_memory(name, np.zeros((2, 64), np.float32)) for name in names}
    return {"token_embd.weight": in_memory("token_embd.weight", np.zeros((100, 64), np.float32)), **found}


def ending(module: str) -> str:
    """Of the tensor that a module of GGUF has."""
    return "bias" if module == "exp_probs_b" else "weight"


@pytest.mark.parametrize("architecture", list(FAMILIES))
def test_names_go_there_and_back(architecture: str) -> None:
    ours = ["token_embd.weight", "output_norm.weight", "output.weight"]
    modules = FAMILIES[architecture].block
    keys_and_values = {"attn_kv_a_mqa", "attn_kv_b", "attn_k_b", "attn_v_b"} if FAMILIES[architecture].latent else {"attn_k", "attn_v"}
    assert {"attn_norm", "attn_q", *keys_and_values, "attn_output", "ffn_norm", "ffn_up", "ffn_down"} <= set(modules)
    ours += [f"blk.{layer}.{module}.{ending(module)}" for layer in (0, 7, 125) for module in modules] + ["blk.3.attn_q.bias"]
    theirs = [checkpoint_name(architecture, name) for name in ours]
    assert len(set(theirs)) == len(ours)
    assert [gguf_name(architecture, name or "") for name in theirs] == ours
    assert "model.layers.125.mlp.down_proj.weight" in theirs
    assert "model.layers.3.self_attn.q_proj.bias" in theirs


@pytest.mark.parametrize(
    "name",
    [
        "rope_freqs.weight",
        "blk.0.attn_x.weight",
        "blk.00.attn_q.weight",
        "blk.-1.attn_q.weight",
        "blk.0.attn_q",
        "",
        "blk.123456.attn_q.weight",
    ],
)
def test_unknown_names_have_no_counterpart(name: str) -> None:
    assert checkpoint_name("llama", name) is None


def test_unknown_architectures_are_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="'mamba' is not known; known are llama, qwen2"):
        checkpoint_name("mamba", "output.weight")


def test_glm_has_gate_and_up_in_one_and_norms_after_branches() -> None:
    assert checkpoint_name("chatglm", "blk.2.ffn_up.weight") == "model.layers.2.mlp.gate_up_proj.weight"
    assert checkpoint_name("glm4", "blk.2.post_ffw_norm.weight") == "model.layers.2.post_mlp_layernorm.weight"
    assert gguf_name("glm4", "model.layers.2.post_self_attn_layernorm.weight") == "blk.2.post_attention_norm.weight"
    assert checkpoint_name("chatglm", "blk.2.ffn_gate.weight") is None


def test_norms_of_heads_have_names_where_the_family_has_them() -> None:
    assert checkpoint_name("qwen3", "blk.5.attn_q_norm.weight") == "model.layers.5.self_attn.q_norm.weight"
    assert gguf_name("qwen3", "model.layers.0.self_attn.k_norm.weight") == "blk.0.attn_k_norm.weight"
    assert checkpoint_name("qwen2", "blk.5.attn_q_norm.weight") is None


def test_metadata_become_a_configuration() -> None:
    assert config_from_gguf(METADATA, tensors()) == {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "intermediate_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 512, "vocab_size": 100,
        "tie_word_embeddings": True, "attention_bias": False,
    }  # fmt: skip
    few = {
        key: value
        for key, value in METADATA.items()
        if key.split(".", 1)[1] not in ("attention.head_count_kv", "rope.freq_base", "vocab_size")
    }
    found = config_from_gguf(few, tensors("output.weight", "blk.0.attn_q.bias"))
    assert (found["num_key_value_heads"], found["rope_theta"], found["vocab_size"]) == (4, 10_000.0, 100)
    assert not found["tie_word_embeddings"]
    assert found["attention_bias"]


def test_frequencies_are_stretched_as_the_file_says() -> None:
    def scaling(extra: dict[str, Any], found: dict[str, StoredTensor] | None = None) -> Any:
        return config_from_gguf(METADATA | {f"llama.rope.{key}": value for key, value in extra.items()}, found or tensors()).get(
            "rope_scaling"
        )

    assert scaling({"scaling.type": "none", "scaling.factor": 4.0}) is None
    assert scaling({"scaling.factor": 1.0}) is None
    assert scaling({"scale_linear": 2.0}) == {"rope_type": "linear", "factor": 2.0}
    assert scaling({"scaling.type": "linear", "scaling.factor": 8.0, "scaling.finetuned": True}) == {"rope_type": "linear", "factor": 8.0}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0, "beta_slow": 1.0}
    asked: dict[str, Any] = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 128}
    assert scaling(asked) == yarn
    assert scaling(asked | {"scaling.attn_factor": 0.5})["attention_factor"] == pytest.approx(0.5 * (0.1 * math.log(4) + 1))
    divisors = np.linspace(1, 8, 8).astype(np.float32)
    table = tensors() | {"rope_freqs.weight": in_memory("rope_freqs.weight", divisors)}
    assert scaling({}, table) == {"rope_type": "divisors", "divisors": divisors.tolist()}
    with pytest.raises(UnsupportedFormat, match=r"llama\.rope\.scaling\.type and the tensor rope_freqs"):
        scaling(asked, table)
    for wrong in (divisors[:7], divisors - 1, divisors * np.nan):
        with pytest.raises(BadConfig, match=r"rope_freqs\.weight"):
            scaling({}, tensors() | {"rope_freqs.weight": in_memory("rope_freqs.weight", wrong)})


ERNIE: dict[str, Any] = {
    **{key.replace("llama.", "ernie4_5-moe."): value for key, value in METADATA.items()}, "general.architecture": "ernie4_5-moe",
    "ernie4_5-moe.expert_count": 8, "ernie4_5-moe.expert_used_count": 3, "ernie4_5-moe.expert_feed_forward_length": 32,
    "ernie4_5-moe.expert_shared_count": 2, "ernie4_5-moe.leading_dense_block_count": 1, "ernie4_5-moe.interleave_moe_layer_step": 1,
    "ernie4_5-moe.expert_shared_feed_forward_length": 64,
}  # fmt: skip


def test_experts_have_the_keys_of_their_family() -> None:
    found = config_from_gguf(ERNIE, tensors())
    assert {key: value for key, value in found.items() if key.startswith("moe_")} == {
        "moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 32, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
        "moe_layer_interval": 1,
    }  # fmt: skip
    with pytest.raises(BadConfig, match=r"expert_shared_feed_forward_length is 96; expected 64"):
        config_from_gguf(ERNIE | {"ernie4_5-moe.expert_shared_feed_forward_length": 96}, tensors())
    with pytest.raises(UnknownKey, match="expert_weights_scale"):
        config_from_gguf(ERNIE | {"ernie4_5-moe.expert_weights_scale": 2.5}, tensors())
    none = {"ernie4_5-moe.expert_shared_count": 0, "ernie4_5-moe.leading_dense_block_count": 0}
    few = {key: value for key, value in (ERNIE | none).items() if not key.endswith("shared_feed_forward_length")}
    assert config_from_gguf(few, tensors())["moe_num_shared_experts"] == 0


def test_a_correction_has_a_name_of_its_own_and_a_row() -> None:
    name = "model.layers.3.mlp.moe_statics.e_score_correction_bias"
    assert checkpoint_name("ernie4_5-moe", "blk.3.exp_probs_b.bias") == name
    assert gguf_name("ernie4_5-moe", name) == "blk.3.exp_probs_b.bias"
    assert checkpoint_name("ernie4_5-moe", "blk.3.exp_probs_b.weight") is None
    assert gguf_name("ernie4_5-moe", "model.layers.3.self_attn.q_proj_bias") is None
    (one,) = as_in_checkpoint("ernie4_5-moe", in_memory("blk.3.exp_probs_b.bias", np.ones(8, np.float32)))
    assert (one.name, one.shape) == (name, (1, 8))


NUMERIC = [key for key, value in METADATA.items() if isinstance(value, (int, float))]
OPTIONAL = {"llama.attention.head_count_kv", "llama.rope.freq_base", "llama.vocab_size", "llama.rope.dimension_count"}
MORE = {
    "llama.attention.key_length": 16, "llama.attention.value_length": 16, "llama.rope.scaling.factor": 2.0, "llama.rope.scale_linear": 2.0,
    "llama.rope.scaling.attn_factor": 1.0, "llama.rope.scaling.original_context_length": 64, "llama.rope.scaling.yarn_beta_fast": 32.0,
    "llama.rope.scaling.yarn_beta_slow": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("value", [0, -1, 2**31, 2**63, float("nan"), float("inf"), -1.0, True, "4", [4], "missing"], ids=repr)
@pytest.mark.parametrize("key", [*NUMERIC, *MORE])
def test_impossible_values_are_refused_and_the_key_is_named(key: str, value: Any) -> None:
    metadata = METADATA | MORE | {key: value}
    if value == "missing":
        del metadata[key]
        if key in OPTIONAL or key in MORE:
            config_from_gguf(metadata, tensors())
            return
    with pytest.raises(BadConfig, match=key.replace(".", r"\.")):
        config_from_gguf(metadata, tensors())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llama.attention.head_count_kv": 3}, r"head_count_kv is 3; expected a divisor of 4"),
        ({"llama.attention.head_count": 3, "llama.attention.head_count_kv": 3}, "divisor of 64"),
        ({"llama.attention.key_length": 15, "llama.rope.dimension_count": 15}, "an even number"),
        ({"llama.rope.dimension_count": 8}, "expected the head size 16"),
        ({"llama.attention.value_length": 8}, "expected the head size 16"),
        ({"llama.vocab_size": 99}, r"vocab_size is 99; token_embd\.weight has 100 rows"),
        ({"llama.rope.scaling.type": "longrope"}, "expected one of none, linear, yarn"),
        ({"llama.rope.scaling.type": 7}, "expected one of none, linear, yarn"),
        ({"general.architecture": 7}, r"general\.architecture is 7"),
    ],
)
def test_values_that_contradict_each_other_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadConfig, match=words):
        config_from_gguf(METADATA | changes, tensors())


def test_what_this_family_cannot_do_is_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="mixture of experts"):
        config_from_gguf(METADATA | {"llama.expert_count": 8}, tensors())
    with pytest.raises(UnknownKey, match=r"llama\.attention\.sliding_window is not known"):
        config_from_gguf(METADATA | {"llama.attention.sliding_window": 4096}, tensors())
    with pytest.raises(MissingTensor, match=r"token_embd\.weight"):
        config_from_gguf(METADATA, {})
    assert config_from_gguf(METADATA | {"llama.expert_count": 0, "tokenizer.ggml.model": "gpt2"}, tensors())


def paired_rotation(x: NDArray[np.float32], angles: NDArray[np.float32]) -> NDArray[np.float32]:
    """Adjacent dimensions of a head turned together."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def half_split_rotation(x: NDArray[np.float32], angles: NDArray[np.float32]) -> NDArray[np.float32]:
    """Dimension i turned with dimension i + width / 2."""
    first, second = np.split(x, 2, -1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], -1)


def test_moved_rows_give_the_same_scores_with_half_split_rotation() -> None:
    rng = np.random.default_rng(2)
    hidden, heads, width = 12, 3, 8
    q, k = (rng.standard_normal((heads * width, hidden)).astype(np.float32) for _ in range(2))
    x, y = (rng.standard_normal(hidden).astype(np.float32) for _ in range(2))
    angles = rng.random(width // 2, np.float32)
    expected = (
        paired_rotation((q @ x).reshape(heads, width), 5 * angles) * paired_rotation((k @ y).reshape(heads, width), 2 * angles)
    ).sum(-1)
    q, k = (permuted_pairs(in_memory("w", weight), heads).float32() for weight in (q, k))
    found = (
        half_split_rotation((q @ x).reshape(heads, width), 5 * angles) * half_split_rotation((k @ y).reshape(heads, width), 2 * angles)
    ).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_rows_move_without_loss_in_every_format(kind: str) -> None:
    values = np.random.default_rng(4).standard_normal((4 * 16, 64)).astype(np.float32)
    stored = in_memory("w", values, kind)
    order = [head * 16 + 2 * (row % 8) + row // 8 for head in range(4) for row in range(16)]
    moved = permuted_pairs(stored, 4)
    np.testing.assert_array_equal(moved.float32(), stored.float32()[order])
    row_bytes = stored.nbytes // 64
    assert bytes(moved.raw()) == b"".join(bytes(stored.raw())[row * row_bytes : (row + 1) * row_bytes] for row in order)
    assert (moved.kind, moved.shape, moved.nbytes) == (stored.kind, stored.shape, stored.nbytes)


def test_scaled_floats_are_moved_with_their_scales_applied() -> None:
    codes = np.random.default_rng(4).integers(0, 120, (256, 256), np.uint8)
    scales = in_memory("w_scale_inv", np.array([[1, 2], [3, 4]], np.float32))
    stored = StoredTensor("w", (256, 256), "F8_E4M3", codes.size, lambda: memoryview(codes.tobytes()), scales)
    moved = permuted_pairs(stored, 1)
    order = [2 * (row % 128) + row // 128 for row in range(256)]
    np.testing.assert_array_equal(moved.float32(), stored.float32()[order])
    assert len(moved.raw()) == moved.nbytes == 4 * 256 * 256


def test_biases_move_too_and_wrong_heads_are_refused() -> None:
    bias = in_memory("b", np.arange(8, dtype=np.float32))
    assert permuted_pairs(bias, 2).float32().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    with pytest.raises(WrongShape, match="tensor b has 8 rows; expected 3 heads"):
        permuted_pairs(bias, 3)


def made_file(path: Path, architecture: str, extra: tuple[str, ...] = ()) -> None:
    """A file of one block whose q and k rows count upwards."""
    metadata = {key.replace("llama", architecture): value for key, value in METADATA.items()} | {"general.architecture": architecture}
    rows = {"blk.0.attn_q.weight": 64, "blk.0.attn_k.weight": 32, "blk.0.attn_v.weight": 32, "token_embd.weight": 100}
    values = {name: np.repeat(np.arange(size, dtype=np.float32)[:, None], 64, 1) for name, size in rows.items()}
    values |= {name: np.zeros(64, np.float32) for name in extra}
    write_gguf(path, metadata, values)


def test_queries_move_by_query_heads_and_keys_by_key_heads(tmp_path: Path) -> None:
    made_file(tmp_path / "llama.gguf", "llama")
    order = [2 * (row % 8) + row // 8 for row in range(16)]
    with read_gguf(tmp_path / "llama.gguf") as file:
        found = {name: stored.float32()[:, 0].tolist() for name, stored in checkpoint_tensors(file).items()}
    assert found["model.layers.0.self_attn.q_proj.weight"] == [head * 16 + row for head in range(4) for row in order]
    assert found["model.layers.0.self_attn.k_proj.weight"] == [head * 16 + row for head in range(2) for row in order]
    assert found["model.layers.0.self_attn.v_proj.weight"] == list(range(32))


def test_queries_keys_and_values_that_lie_in_one_tensor_are_taken_apart(tmp_path: Path) -> None:
    metadata = {key.replace("llama", "chatglm"): value for key, value in METADATA.items()}
    metadata |= {"general.architecture": "chatglm", "chatglm.rope.dimension_count": 8}
    rows = np.repeat(np.arange(128, dtype=np.float32)[:, None], 64, 1)
    tensors = {"token_embd.weight": rows[:100], "blk.0.attn_qkv.weight": rows, "blk.0.attn_qkv.bias": rows[:, 0]}
    write_gguf(tmp_path / "glm.gguf", metadata, tensors)
    with read_gguf(tmp_path / "glm.gguf") as file:
        found = checkpoint_tensors(file)
        config = config_from_gguf(file.metadata, file.tensors)
        for letter, first, last in (("q", 0, 64), ("k", 64, 96), ("v", 96, 128)):
            weight, bias = (found[f"model.layers.0.self_attn.{letter}_proj.{ending}"] for ending in ("weight", "bias"))
            assert weight.shape == (last - first, 64) and weight.float32()[:, 0].tolist() == list(range(first, last))
            assert len(weight.raw()) == weight.nbytes
            assert bias.float32().tolist() == list(range(first, last))
    assert (config["model_type"], config["partial_rotary_factor"], config["attention_bias"]) == ("glm", 0.5, True)
    with pytest.raises(BadConfig, match=r"rope\.dimension_count is 17; expected the head size 16"):
        config_from_gguf(metadata | {"chatglm.rope.dimension_count": 17}, {"token_embd.weight": in_memory("t", rows[:100])})
    with pytest.raises(WrongShape, match="tensor b has 8 rows; expected at least 9"):
        some_rows(in_memory("b", np.arange(8, dtype=np.float32)), "c", 0, 9)


def test_qwen2_is_half_split_already_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    made_file(tmp_path / "qwen.gguf", "qwen2", ("rope_freqs.weight",))
    with read_gguf(tmp_path / "qwen.gguf") as file:
        found = checkpoint_tensors(file)
        assert found["model.layers.0.self_attn.q_proj.weight"].float32()[:, 0].tolist() == list(range(64))
        assert len(found) == 4
    made_file(tmp_path / "other.gguf", "qwen2", ("blk.0.ssm_a",))
    with read_gguf(tmp_path / "other.gguf") as file, pytest.raises(UnexpectedTensor, match=r"other\.gguf: tensor blk\.0\.ssm_a"):
        checkpoint_tensors(file)
