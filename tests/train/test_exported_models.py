"""Exports: adapters by their papers' formulas, the round trip and its refusals, and what other programs read of the files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from khola.errors import AskedWrong, BadFiles, KholaError, UnexpectedTensor, UnsupportedFormat, WrongShape
from khola.fetch.library import Library
from khola.lineage.compose import verify
from khola.lineage.record import record_beside
from khola.settings import Settings
from khola.store.gguf import read_gguf
from khola.store.safetensors import read_checkpoint, write_safetensors
from khola.store.stored import StoredTensor
from khola.train.adapters import read_adapters
from khola.train.export import export
from khola.train.gate import TOKENS, gate
from tests.api.small_models import folder_model, settings_in


@dataclass(frozen=True)
class Stage:
    """A home with one model in it."""

    settings: Settings
    source: Path


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A small llama as a folder."""
    return Stage(settings_in(tmp_path), folder_model(tmp_path / "source"))


def weights(path: Path) -> dict[str, Any]:
    """All tensors of a checkpoint's folder."""
    with read_checkpoint(path) as checkpoint:
        return {name: stored.float32() for name, stored in checkpoint.tensors.items()}


def test_both_containers_go_on_as_the_source(stage: Stage, tmp_path: Path) -> None:
    """The source, the folder and the GGUF file: one prompt, the same 32 greedy tokens, the same log-probabilities."""
    gguf = export(str(stage.source), into="gguf", settings=stage.settings, output=tmp_path / "out.gguf")
    folder = export(str(gguf.made.path), into="safetensors", settings=stage.settings, output=tmp_path / "out", to="f32")
    assert gguf.gate is not None and folder.gate is not None
    assert gguf.gate.lossless and folder.gate.lossless and gguf.gate.same == folder.gate.same == TOKENS
    assert gguf.gate.tokens == folder.gate.tokens and max(gguf.gate.difference, folder.gate.difference) < 1e-5
    first, second = weights(stage.source), weights(folder.made.path)
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    config = json.loads((folder.made.path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["torch_dtype"] == "float32"
    record = record_beside(folder.made.path)
    assert record is not None and record.metrics[0].value == 1.0 and record.ancestors[0].name == "out"
    assert not list(verify(gguf.made.path, stage.settings, lambda *_, **__: None))


def test_fewer_bits_are_measured_and_not_refused(stage: Stage) -> None:
    done = export(str(stage.source), into="gguf", to="q4_0", settings=stage.settings)
    assert done.gate is not None and not done.gate.lossless and 0 < done.gate.difference < 20
    entry = Library(stage.settings).find("source-q4_0")
    assert entry is not None and {"source-q4_0.gguf", "lineage.json", "README.md"} <= {file.path.name for file in entry.files}


def test_a_file_that_goes_on_otherwise_gets_no_place(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that mixes up rows is caught before its file is called done."""
    monkeypatch.setattr("khola.loader.exported.adjacent_pairs", lambda stored, heads: stored)
    with pytest.raises(BadFiles, match="goes on otherwise than its source"):
        export(str(stage.source), into="gguf", settings=stage.settings, output=tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out.gguf*")) and Library(stage.settings).entries() == []
    done = export(str(stage.source), into="gguf", settings=stage.settings, output=tmp_path / "out.gguf", gated=False)
    assert done.gate is None and done.made.path.is_file()


def test_a_format_of_the_other_container(stage: Stage) -> None:
    for into, to in (("safetensors", "q8_0"), ("gguf", "int4g64")):
        with pytest.raises(AskedWrong, match="is no format of"):
            export(str(stage.source), into=into, to=to, settings=stage.settings)


def test_shards_are_written_and_read(stage: Stage, tmp_path: Path) -> None:
    done = export(str(stage.source), into="safetensors", settings=stage.settings, output=tmp_path / "out", shard_bytes=200_000)
    assert done.gate is not None and done.gate.same == TOKENS and len(list(done.made.path.glob("*.safetensors"))) > 1


PLACES = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.1.mlp.down_proj": (64, 256)}


def adapters(folder: Path, *, dora: bool = False, stabilised: bool = False, **changes: Any) -> dict[str, Any]:
    """A folder of adapters as PEFT names them; gives its tensors."""
    rng = np.random.default_rng(9)
    tensors: dict[str, Any] = {}
    for module, (outputs, inputs) in PLACES.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = rng.normal(0, 0.2, (4, inputs)).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = rng.normal(0, 0.2, (outputs, 4)).astype(np.float32)
        if dora:
            tensors[f"base_model.model.{module}.lora_magnitude_vector"] = rng.uniform(0.5, 2, outputs).astype(np.float32)
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": dora, "use_rslora": stabilised, "bias": "none", **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tensors


@pytest.mark.parametrize(("dora", "stabilised"), [(False, True), (True, False)])
def test_adapters_are_merged_by_the_papers_formulas(stage: Stage, tmp_path: Path, dora: bool, stabilised: bool) -> None:
    tensors = adapters(tmp_path / "adapter", dora=dora, stabilised=stabilised)
    done = export(
        str(stage.source), into="safetensors", to="f32", adapter=tmp_path / "adapter", settings=stage.settings, name="tuned"
    )  # fmt: skip
    before, after = weights(stage.source), weights(done.made.path)
    for name, value in before.items():
        module = name.removesuffix(".weight")
        if module not in PLACES:
            np.testing.assert_array_equal(after[name], value)
            continue
        a, b = (tensors[f"base_model.model.{module}.lora_{letter}.weight"].astype(np.float64) for letter in "AB")
        expected = value.astype(np.float64) + 8 / (4**0.5 if stabilised else 4) * b @ a
        if dora:
            magnitude = tensors[f"base_model.model.{module}.lora_magnitude_vector"].astype(np.float64)
            expected *= magnitude[:, None] / np.sqrt((expected**2).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)
    record = record_beside(done.made.path)
    assert record is not None and record.ancestors[0].recipe["rank"] == 4 and record.ancestors[0].how == "fine-tuned"
    assert [parent.name for parent in record.ancestors[0].parents] == ["source"]
    assert sorted(path.name for path in stage.settings.models.iterdir() if not path.name.endswith(".lock")) == ["tuned"]


def test_adapters_reach_gguf_files_too(stage: Stage, tmp_path: Path) -> None:
    adapters(tmp_path / "adapter")
    done = export(
        str(stage.source), into="gguf", to="f32", adapter=tmp_path / "adapter", settings=stage.settings, output=tmp_path / "t.gguf"
    )
    assert done.gate is not None and done.gate.lossless and done.gate.same == TOKENS
    assert gate(stage.source, done.made.path, settings=stage.settings, lossless=False).difference > 1e-3


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"peft_type": "IA3"}, UnsupportedFormat),
        ({"bias": "all"}, UnsupportedFormat),
        ({"rank_pattern": {"q_proj": 8}}, UnsupportedFormat),
        ({"modules_to_save": ["lm_head"]}, UnsupportedFormat),
        ({"fan_in_fan_out": True}, UnsupportedFormat),
        ({"r": 8}, WrongShape),
        ({"use_dora": True}, WrongShape),
        ({"r": "4"}, BadFiles),
    ],
    ids=lambda value: str(value)[:24],
)
def test_adapters_of_other_kinds(tmp_path: Path, change: dict[str, Any], error: type[KholaError]) -> None:
    adapters(tmp_path / "adapter", **{key: value for key, value in change.items() if key != "use_dora"})
    if "use_dora" in change:
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(path.read_text().replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(error):
        read_adapters(tmp_path / "adapter")


def test_adapters_of_another_model(stage: Stage, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    tensors = adapters(folder)
    write_safetensors(folder / "adapter_model.safetensors", {name.replace("layers.1", "layers.9"): t for name, t in tensors.items()})
    with pytest.raises(UnexpectedTensor, match=r"layers\.9"):
        export(str(stage.source), into="gguf", adapter=folder, settings=stage.settings, name="x")
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = np.zeros((4, 32), np.float32)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(WrongShape, match="q_proj"):
        export(str(stage.source), into="gguf", adapter=folder, settings=stage.settings, name="x")
    with pytest.raises(AskedWrong, match="needs a name"):
        adapters(folder)
        export(str(stage.source), into="gguf", adapter=folder, settings=stage.settings)
    assert Library(stage.settings).entries() == []


@pytest.mark.parity
@pytest.mark.slow
def test_transformers_reads_the_folder(stage: Stage, tmp_path: Path) -> None:
    """The same greedy tokens and log-probabilities from transformers, of a folder that came out of a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = export(str(stage.source), into="gguf", settings=stage.settings, output=tmp_path / "out.gguf", gated=False)
    done = export(str(gguf.made.path), into="safetensors", to="f32", settings=stage.settings, output=tmp_path / "out")
    assert done.gate is not None
    model = AutoModelForCausalLM.from_pretrained(done.made.path)
    tokenizer = AutoTokenizer.from_pretrained(done.made.path)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        for token in done.gate.tokens:
            best = model(ids).logits[0, -1].argmax().item()
            assert best == token
            ids = torch.cat([ids, torch.tensor([[best]])], dim=1)


@pytest.mark.parity
@pytest.mark.parametrize("to", ["f32", "bf16", "q8_0", "q4_0"])
def test_the_gguf_package_reads_the_file(stage: Stage, tmp_path: Path, to: str) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    done = export(str(stage.source), into="gguf", to=to, settings=stage.settings, output=tmp_path / "out.gguf", gated=False)
    reader = GGUFReader(done.made.path)
    assert {field: reader.get_field(field).contents() for field in ("general.architecture", "llama.block_count")} == {
        "general.architecture": "llama",
        "llama.block_count": 2,
    }
    with read_gguf(done.made.path) as file:
        ours: dict[str, StoredTensor] = file.tensors
        assert [tensor.name for tensor in reader.tensors] == list(ours)
        for tensor in reader.tensors:
            theirs = dequantize(tensor.data, tensor.tensor_type).reshape(ours[tensor.name].shape)
            np.testing.assert_allclose(ours[tensor.name].float32(), theirs, rtol=1e-6, atol=1e-7)
    if to == "f32":
        source = weights(stage.source)
        table = {tensor.name: tensor.data for tensor in reader.tensors}
        np.testing.assert_array_equal(table["blk.1.ffn_down.weight"], source["model.layers.1.mlp.down_proj.weight"])
