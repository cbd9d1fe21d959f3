"""Models in fewer bits, from file to file: what is written, what it computes, and what is left when something goes wrong."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from khola.api import quality
from khola.api.model import load
from khola.api.quality import compare
from khola.api.quantise import Quantised, quantise
from khola.data.judging import judging_texts
from khola.errors import AskedWrong, NoDisk, NonFinite, NotPulled, UnknownOption
from khola.fetch.disk import LocalDisk
from khola.fetch.library import Library
from khola.fetch.progress import Progress
from khola.loader.exported import as_folder
from khola.store.gguf import read_gguf
from khola.store.safetensors import read_checkpoint, write_safetensors
from tests.api.small_models import TEMPLATE, folder_model, settings_in
from tests.store.measure import Peak

TEXTS = {"english": "The weather then turned, and they thought that this was the end of it. " * 3}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint's folder in float32."""
    return folder_model(tmp_path / "source")


def made(source: Path, to: str, home: Path, **options: Any) -> Quantised:
    """A quantised model of the library in `home`."""
    return quantise(str(source), to=to, settings=settings_in(home), **options)


def greedy(path: Path, home: Path) -> str:
    """What a model says next."""
    with load(str(path), settings=settings_in(home), context=64) as model:
        return model.complete("the three", sampling={"temperature": 0, "max_tokens": 16, "ignore_end": True}).text


def left(home: Path) -> list[str]:
    """Everything in the library, hidden files too."""
    models = home / "khola" / "models"
    return sorted(path.relative_to(models).as_posix() for path in models.rglob("*")) if models.exists() else []


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_from_folder_to_gguf_and_on_to_folder(tmp_path: Path, model_type: str) -> None:
    source = folder_model(tmp_path / "source", model_type=model_type, tie_word_embeddings=False)
    gguf = made(source, "f32", tmp_path, output=None, new_name="whole-f32")
    assert gguf.path.is_dir(), "float32 stays in its container"
    for to, kind in (("q8_0", "Q8_0"), ("int8g64", "INT8G64")):
        new = made(source, to, tmp_path)
        report = compare(str(source), str(new.path), settings=settings_in(tmp_path), texts=TEXTS)
        assert report.kl < 1e-3 and report.top_1 > 0.92 and new.kinds[kind] == 16
    again = made(tmp_path / "khola" / "models" / "source-q8_0" / "source-q8_0.gguf", "int8g64", tmp_path, new_name="twice")
    report = compare(str(source), str(again.path), settings=settings_in(tmp_path), texts=TEXTS)
    assert report.kl < 3e-3, "names, rows and vocabulary came through both containers"


def test_experts_are_quantised_and_routers_are_not(tmp_path: Path) -> None:
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 128}
    source = folder_model(tmp_path / "source", model_type="qwen2_moe", **experts)
    for to in ("q8_0", "int8g64"):
        new = made(source, to, tmp_path)
        report = compare(str(source), str(new.path), settings=settings_in(tmp_path), texts=TEXTS)
        assert report.kl < 2e-3
        parts = as_folder(new.path)
        tensors = dict(parts.tensors)
        parts.close()
        assert tensors["model.layers.1.mlp.experts.5.down_proj.weight"].kind == to.upper()
        assert {tensors[f"model.layers.0.mlp.{name}.weight"].kind for name in ("gate", "shared_expert_gate")} == {"F32"}


def test_float32_through_both_containers_is_the_same_model(tmp_path: Path, source: Path) -> None:
    """Nothing is lost or moved: bytes of every tensor, greedy text, ends, template."""
    once = made(source, "q8_0", tmp_path, keep=(".=f32",))
    assert once.kinds == {"F32": 20}
    back = made(once.path, "int8g64", tmp_path, keep=(".=f32",), new_name="back")
    with read_checkpoint(source) as old, read_checkpoint(back.path) as new:
        assert {name: bytes(tensor.raw()) for name, tensor in old.tensors.items()} == {
            name: bytes(tensor.raw()) for name, tensor in new.tensors.items()
        }
        assert new.chat_template == TEMPLATE and new.generation_config["eos_token_id"] == [257, 258]
    assert greedy(source, tmp_path) == greedy(once.path, tmp_path) == greedy(back.path, tmp_path)
    with load(str(once.path), settings=settings_in(tmp_path), context=64) as model:
        assert model.loaded.stop_ids == {257, 258} and model.loaded.template == TEMPLATE


@pytest.mark.parametrize(
    ("to", "most"), [("q6_k", 0.012), ("q5_k_m", 0.036), ("q4_k_m", 0.13), ("q4_0", 0.19), ("int4g64_m", 0.3), ("int4g64", 0.3)]
)
def test_fewer_bits_cost_more_and_stay_below_their_gates(tmp_path: Path, to: str, most: float) -> None:
    """Gates are half as much again as was measured: 0.0077, 0.024, 0.088, 0.12, 0.20, 0.20."""
    source = folder_model(tmp_path / "source", hidden_size=256, num_attention_heads=8)
    new = made(source, to, tmp_path)
    report = compare(str(source), str(new.path), settings=settings_in(tmp_path), texts=TEXTS)
    assert 0 < report.kl < most
    assert report.after.bytes == new.bytes < report.before.bytes / 3
    assert report.after.bits_per_weight == pytest.approx(new.bits_per_weight)


def test_a_model_beside_itself_has_no_divergence(tmp_path: Path, source: Path) -> None:
    report = compare(str(source), str(source), settings=settings_in(tmp_path), texts=TEXTS | {"bengali": "খোলা মডেল"})
    assert abs(report.kl) < 2e-6 and report.top_1 > 0.99
    assert report.before.perplexity == report.after.perplexity == pytest.approx(report.after.perplexity)
    assert [text.text for text in report.texts] == ["english", "bengali"] and report.tokens == sum(text.tokens for text in report.texts)


def test_a_planted_fault_shows_in_the_report(tmp_path: Path, source: Path) -> None:
    worse = folder_model(tmp_path / "worse")
    with read_checkpoint(source) as found:
        arrays = {name: tensor.float32() for name, tensor in found.tensors.items()}
    arrays["model.layers.1.mlp.down_proj.weight"] *= 1.5
    write_safetensors(worse / "model.safetensors", arrays)
    report = compare(str(source), str(worse), settings=settings_in(tmp_path), texts=TEXTS)
    assert report.kl > 0.003


def test_perplexity_is_that_of_scoring(tmp_path: Path, source: Path) -> None:
    report = compare(str(source), str(source), settings=settings_in(tmp_path), texts=TEXTS, interpreter="numpy")
    with load(str(source), settings=settings_in(tmp_path), context=512, interpreter="numpy") as model:
        assert report.before.perplexity == pytest.approx(model.score(TEXTS["english"]).perplexity, rel=1e-4)


def test_the_library_knows_parent_and_licences(tmp_path: Path, source: Path) -> None:
    first = made(source, "q8_0", tmp_path)
    assert first.entry is not None and first.entry.verified and not first.entry.missing
    (parent,) = first.entry.parents
    assert (parent.name, parent.how, parent.format) == ("source", "quantised", "f32")
    second = made(Path("source-q8_0"), "q4_0", tmp_path)
    assert second.name == "source-q4_0" and second.entry is not None
    (parent,) = second.entry.parents
    assert (parent.name, parent.format) == ("source-q8_0", "q8_0") and len(parent.sha256) == 64
    assert [entry.name for entry in Library(settings_in(tmp_path)).entries()] == ["source-q4_0", "source-q8_0"]
    with load("source-q4_0", settings=settings_in(tmp_path), context=64) as model:
        assert model.complete("th", sampling={"max_tokens": 2, "temperature": 0}).usage.answer_tokens


def test_metadata_says_what_it_became(tmp_path: Path, source: Path) -> None:
    new = made(source, "q4_0", tmp_path)
    with read_gguf(new.path) as file:
        assert file.metadata["general.file_type"] == 2 and file.metadata["general.quantization_version"] == 2
        assert file.value_types["general.file_type"] == "uint32" and file.metadata["general.name"] == "source-q4_0"
    small = made(source, "int4g64", tmp_path)
    with read_checkpoint(small.path) as found:
        assert {tensor.kind for tensor in found.tensors.values()} == {"INT4G64", "INT8G64", "F32"}
    assert (small.path / "LICENSE").read_text(encoding="utf-8") == "Do as you like."


def test_losing_twice_is_said(tmp_path: Path, source: Path) -> None:
    told: list[str] = []

    def say(text: str, **facts: Any) -> None:
        told.append(text.format(**facts))

    first = made(source, "q4_k_m", tmp_path, say=say)
    assert told == ["matrices whose rows are no whole q6_k blocks get q8_0: 2", "matrices whose rows are no whole q4_k blocks get q5_0: 11"]
    told.clear()
    made(first.path, "q4_0", tmp_path, say=say)
    assert "quantised already" in told[0] and "q5_0" in told[0]


def test_progress_goes_from_nothing_to_all(tmp_path: Path, source: Path) -> None:
    seen: list[Progress] = []
    new = made(source, "q4_0", tmp_path, progress=seen.append)
    assert {look.stage for look in seen} == {"quantise"}
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, new.bytes, new.bytes)


def test_a_file_beside_the_library(tmp_path: Path, source: Path) -> None:
    new = made(source, "q8_0", tmp_path, output=tmp_path / "out.gguf")
    assert new.entry is None and new.path == tmp_path / "out.gguf" and new.path.is_file()
    folder = made(source, "int8g64", tmp_path, output=tmp_path / "out")
    assert (folder.path / "model.safetensors").is_file() and not (folder.path / "khola.json").exists()
    assert left(tmp_path) == [] and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_cannot_be_meant_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UnknownOption, match="q4_9"):
        made(source, "q4_9", tmp_path)
    with pytest.raises(UnknownOption, match="finds no matrix"):
        made(source, "q4_0", tmp_path, keep=("nothing_here=f16",))
    with pytest.raises(AskedWrong, match=r"end in \.gguf"):
        made(source, "q4_0", tmp_path, output=tmp_path / "out")
    with pytest.raises(NotPulled):
        made(Path("smollm2-135m-instruct"), "q4_0", tmp_path)
    made(source, "q4_0", tmp_path)
    with pytest.raises(AskedWrong, match="here already") as error:
        made(source, "q4_0", tmp_path)
    assert "--name" in error.value.hint()


def test_damaged_weights_leave_nothing(tmp_path: Path, source: Path) -> None:
    with read_checkpoint(source) as found:
        arrays = {name: tensor.float32() for name, tensor in found.tensors.items()}
    arrays["model.layers.1.mlp.up_proj.weight"][3, 3] = np.nan
    write_safetensors(source / "model.safetensors", arrays)
    for to in ("q4_0", "int4g64"):
        with pytest.raises(NonFinite, match=r"up_proj|ffn_up"):
            made(source, to, tmp_path)
    assert left(tmp_path) == []


class Full:
    """A disk with little room."""

    def __init__(self) -> None:
        self._disk = LocalDisk()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def free_bytes(self, folder: Path) -> int:
        return 20 << 20


def test_a_small_disk_is_refused_before_the_first_byte(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("khola.api.quantise.write_parts", lambda *_: pytest.fail("written"))
    with pytest.raises(NoDisk, match=r"are needed, 21\.0 MB are free"):
        made(source, "q4_0", tmp_path, disk=Full())
    assert left(tmp_path) == []


@pytest.mark.parametrize("to", ["q4_0", "int4g64"])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, source: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("khola.store.atomic.os.fsync", full)
    with pytest.raises(NoDisk):
        made(source, to, tmp_path)
    assert left(tmp_path) == []


SLOW = """
import sys, time
from pathlib import Path
from khola.api.quantise import quantise
from khola.loader import written as module
from khola.settings import Settings
real = module.write_gguf
def slow(path, metadata, tensors):
    real(path, metadata, tensors)
    print("written", flush=True)
    time.sleep(60)
module.write_gguf = slow
home = Path(sys.argv[2])
quantise(sys.argv[1], to="q4_0", settings=Settings(home=home / "khola", user_home=home, offline=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_leaves_no_model(tmp_path: Path, source: Path, kill: signal.Signals) -> None:
    """Interrupted, it cleans up itself; killed for good, its draft is no model and goes with the next try."""
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *(path for path in sys.path if path)])}
    said = [sys.executable, "-c", SLOW, str(source), str(tmp_path)]
    with subprocess.Popen(said, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, text=True) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == "written"
        process.send_signal(kill)
        process.wait(20)
    settings = settings_in(tmp_path)
    assert Library(settings).entries() == [] and Library(settings).find("source-q4_0") is None
    assert left(tmp_path) == [] or kill == signal.SIGKILL
    made(source, "q4_0", tmp_path)
    files = ("README.md", "khola.json", "lineage.json", "source-q4_0.gguf")
    assert left(tmp_path) == ["source-q4_0", *(f"source-q4_0/{name}" for name in files)]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["q8_0", "int4g64"])
def test_memory_holds_one_tensor_at_a_time(tmp_path: Path, to: str) -> None:
    """Three matrices of 67 MB, and room for one of them, its result and the pieces at work."""
    source = folder_model(tmp_path / "source", hidden_size=256, intermediate_size=65_536, num_hidden_layers=1)
    assert (source / "model.safetensors").stat().st_size > 201_000_000
    made(folder_model(tmp_path / "first"), to, tmp_path)
    peak = Peak()
    made(source, to, tmp_path)
    assert peak.grown() < 145_000_000


def test_texts_are_there_in_three_languages() -> None:
    texts = judging_texts()
    assert list(texts) == ["english", "code", "bengali"]
    assert all(len(text) > 1000 for text in texts.values())
    compile(texts["code"], "code", "exec")
    assert sum("\u0980" <= letter <= "\u09ff" for letter in texts["bengali"]) > 700


def test_long_texts_are_cut_where_it_is_said(tmp_path: Path, source: Path) -> None:
    report = compare(str(source), str(source), settings=settings_in(tmp_path), texts={"long": "abc " * 400})
    assert report.tokens == quality.TOKENS_OF_EACH - 1


@pytest.mark.slow
def test_the_real_model_in_eight_bits_says_the_same(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    path = real_model("smollm2-135m-instruct")
    new = quantise(str(path), to="q8_0", settings=settings_in(tmp_path))
    assert new.bits_per_weight == pytest.approx(8.5, abs=0.02)
    ids = []
    for model_path in (path, new.path):
        with load(str(model_path), settings=settings_in(tmp_path), context=128) as model:
            answer = model.chat("What is the capital of France?", sampling={"temperature": 0, "max_tokens": 16, "logprobs": 0})
            ids.append([token.id for token in answer.tokens])
    assert ids[0] == ids[1] and len(ids[0]) > 4
    report = compare(str(path), str(new.path), settings=settings_in(tmp_path), texts={"english": judging_texts()["english"][:900]})
    assert report.kl < 0.003 and report.top_1 > 0.95
