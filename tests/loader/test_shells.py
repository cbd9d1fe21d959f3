"""Checkpoints that see as well as read: the same text model as without eyes, and nothing left out unsaid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from khola.api.header import read_header
from khola.errors import BadConfig, UnexpectedTensor
from khola.loader import load_model
from khola.loader.assemble import EXPERT
from khola.store.safetensors import read_checkpoint, write_safetensors
from tests.api.small_models import folder_model, settings_in

STATES = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
HYBRID = {**STATES, "head_dim": 16, "full_attention_interval": 2}
LIGHTNING = {"num_local_experts": 4, "num_experts_per_tok": 2, "attn_type_list": [0, 1], "tie_word_embeddings": False}
CASES: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    "qwen3_5": ("qwen3_5_text", "model.", "model.language_model.", "model.visual.blocks.0.norm1.weight", HYBRID),
    "qwen3_5_moe": ("qwen3_5_moe_text", "model.", "model.language_model.", "model.visual.blocks.0.norm1.weight", HYBRID | EXPERTS),
    "minimax_vl_01": ("minimax_text_01", "", "language_model.", "vision_tower.embeddings.weight", LIGHTNING),
}


def wrapped(folder: Path, kind: str) -> tuple[Path, Path]:
    """A text model, and the same inside of a model that sees, with all experts of a layer in one tensor."""
    text, instead, inside, eye, changes = CASES[kind]
    plain, shell = (folder_model(folder / name, model_type=text, **changes) for name in ("plain", "shell"))
    with_shell: dict[str, Any] = {eye: np.ones(3, np.float32), "mtp.fc.weight": np.ones((2, 2), np.float32)}
    stacks: dict[str, list[Any]] = {}
    checkpoint = read_checkpoint(plain)
    for name, stored in checkpoint.tensors.items():
        values, outer = stored.float32(), name.replace(instead, inside, 1) if name.startswith(instead) else name
        expert = EXPERT.fullmatch(outer)
        if expert and kind == "qwen3_5_moe":
            stacks.setdefault(f"{expert[1]}.{expert[3].removesuffix('.weight')}", []).append(values)
        else:
            with_shell[outer] = values
    checkpoint.close()
    for name in [name for name in stacks if name.endswith("gate_proj")]:
        path = name.removesuffix("gate_proj")
        with_shell[f"{path}gate_up_proj"] = np.concatenate([np.stack(stacks[name]), np.stack(stacks[f"{path}up_proj"])], axis=1)
        with_shell[f"{path}down_proj"] = np.stack(stacks[f"{path}down_proj"])
    write_safetensors(shell / "model.safetensors", with_shell, {"format": "pt"})
    config = json.loads((shell / "config.json").read_text(encoding="utf-8"))
    tied = config.pop("tie_word_embeddings")
    outer_config = {
        "model_type": kind,
        "text_config": config,
        "vision_config": {"depth": 1},
        "tie_word_embeddings": tied,
        "image_token_id": 9,
    }
    (shell / "config.json").write_text(json.dumps(outer_config), encoding="utf-8")
    return plain, shell


@pytest.mark.parametrize("kind", CASES)
def test_the_text_part_is_the_text_model(kind: str, tmp_path: Path) -> None:
    told: list[str] = []
    models = [
        load_model(
            str(path), settings=settings_in(tmp_path), interpreter="numpy", tell=lambda text, **facts: told.append(text.format(**facts))
        )
        for path in wrapped(tmp_path, kind)
    ]
    assert models[0].config == models[1].config
    for left, right in zip(*(sorted(model.weights.leaves(), key=lambda weight: weight.name) for model in models), strict=True):
        assert left.name == right.name and np.array_equal(left.data, right.data), left.name
    plain, shell = (read_header(tmp_path / name) for name in ("plain", "shell"))
    assert plain.config == shell.config and set(plain.shapes) | {"mtp.fc.weight"} == set(shell.shapes)
    assert any("only the text part is read; 1 tensors" in line for line in told)
    assert any("1 tensors of layers that guess further tokens are left out" in line for line in told)


def test_a_shell_without_a_text_part_is_refused(tmp_path: Path) -> None:
    _, shell = wrapped(tmp_path, "qwen3_5")
    (shell / "config.json").write_text(json.dumps({"model_type": "qwen3_5", "vision_config": {}}), encoding="utf-8")
    with pytest.raises(BadConfig, match="lacks text_config"):
        load_model(str(shell), settings=settings_in(tmp_path), interpreter="numpy")


def test_eyes_elsewhere_are_unexpected(tmp_path: Path) -> None:
    """Only what a shell is known to hold is left out."""
    plain, _ = wrapped(tmp_path, "minimax_vl_01")
    checkpoint = read_checkpoint(plain)
    tensors = {name: stored.float32() for name, stored in checkpoint.tensors.items()} | {"vision_tower.x": np.ones(1, np.float32)}
    checkpoint.close()
    write_safetensors(plain / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(UnexpectedTensor, match=r"vision_tower\.x"):
        load_model(str(plain), settings=settings_in(tmp_path), interpreter="numpy")
