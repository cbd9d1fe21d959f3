"""Peers: how they are found, what is said of those that are not here, and what is read of what they print."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_race import logit_file, logprobs
from tiny_checkpoint import write_checkpoint

from khola.api.bench import Reading, Work
from khola.errors import NotInstalled
from khola.evals.bench.figures import GROUPS, names_of
from khola.evals.bench.quality import WINDOW
from khola.evals.bench.race import Task
from khola.evals.bench.run import Asked, bench
from khola.evals.peers import llama_cpp, python_peer
from khola.evals.peers.known import PEERS
from khola.evals.peers.ours import Khola
from khola.evals.peers.python_peer import OPENVINO, TRANSFORMERS, VLLM, Library
from khola.settings import Settings

WORK = Work(prefill=(16, 64), decode=(0, 32), decode_tokens=8, streams=(1, 4), stream_prompt_tokens=8, stream_tokens=12, budget_s=20.0)
VOCAB = 300


def task(group: str, scratch: Path, **changes: object) -> Task:
    """A first turn."""
    return Task(group=group, work=WORK, threads=1, first=True, seed=0, scratch=scratch, **changes)  # type: ignore[arg-type]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """llama.cpp's programs as scripts that print what the real ones print."""
    folder = tmp_path / "bin"
    folder.mkdir()
    rows = [{"n_prompt": size, "n_gen": 0, "n_depth": 0, "avg_ts": 1000.0 + size} for size in WORK.prefill]
    decoded = [{"n_prompt": 0, "n_gen": 8, "n_depth": depth, "avg_ts": 50.0 - depth} for depth in WORK.decode]
    together = [{"pl": number, "speed_tg": 40.0 * number, "speed_pp": 1.0} for number in WORK.streams]
    logit_file(tmp_path / "logits", logprobs(127, VOCAB), WINDOW, 1)
    scripts = {
        "llama-bench": f"rows = {decoded!r} if '-d' in sys.argv else {rows!r}\nprint('loading')\nfor row in rows: print(json.dumps(row))",
        "llama-batched-bench": f"print('{{broken'); [print(json.dumps(row)) for row in {together!r}]",
        "llama-completion": "print(' Paris', flush=True); import time; time.sleep(0.1)",
        "llama-perplexity": f"import shutil; shutil.copy({str(tmp_path / 'logits')!r}, sys.argv[sys.argv.index('--save-all-logits') + 1])",
    }
    for name, code in scripts.items():
        (folder / name).write_text(f"#!{sys.executable}\nimport json, sys\n{code}\n")
        (folder / name).chmod(0o755)
    (folder / "VERSION").write_text("llama.cpp 1\nflags: none\n")
    return folder


@pytest.fixture
def peer(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> llama_cpp.LlamaCpp:
    """llama.cpp made of these scripts."""
    monkeypatch.setattr(llama_cpp, "bytes_per_token", lambda path: 123)
    return llama_cpp.contestant(tmp_path / "model.gguf", str(programs))


def test_llama_cpp_prints_what_is_read(peer: llama_cpp.LlamaCpp, tmp_path: Path) -> None:
    assert peer.version == "llama.cpp 1"
    assert peer.run(task("prefill", tmp_path)).readings == [Reading("prefill_16", 1016.0), Reading("prefill_64", 1064.0)]
    decoded = peer.run(task("decode", tmp_path)).readings
    assert decoded == [Reading("decode_0", 50.0), Reading("decode_32", 18.0), Reading("bytes_per_token", 123.0)]
    assert peer.run(task("streams", tmp_path)).readings == [Reading("streams_1", 40.0), Reading("streams_4", 160.0)]
    start = {reading.name: reading.value for reading in peer.run(task("start", tmp_path)).readings}
    assert 0 < (start["start_s"] or 0) < 20


def test_llama_cpp_is_judged_by_its_logits(peer: llama_cpp.LlamaCpp, tmp_path: Path) -> None:
    np.save(tmp_path / "reference.npy", logprobs(127, VOCAB))
    text = tmp_path / "text"
    text.write_text("x")
    windows = (tuple(range(WINDOW)),)  # the ids that the script's file names
    given = task("quality", tmp_path, windows=windows, text=text, reference=tmp_path / "reference.npy")
    found = {reading.name: reading.value for reading in peer.run(given).readings}
    assert found["kl"] == pytest.approx(0, abs=1e-3) and found["same_token"] == 1 and (found["perplexity"] or 0) > 1
    other = task("quality", tmp_path, windows=((0, *range(2, WINDOW + 1)),), text=text)
    assert peer.run(other).detail == "it cut the text into other tokens"


def test_a_program_that_fails_is_told(peer: llama_cpp.LlamaCpp, programs: Path, tmp_path: Path) -> None:
    (programs / "llama-bench").write_text(f"#!{sys.executable}\nimport sys; sys.exit('no such file')\n")
    turn = peer.run(task("prefill", tmp_path))
    assert turn.readings == [] and turn.detail == "exit code 1: no such file"


def test_missing_peers_say_what_to_do(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    with pytest.raises(NotInstalled, match="llama-bench") as found:
        llama_cpp.contestant(model, str(tmp_path))
    assert "build_llama_cpp.sh" in found.value.hint()
    with pytest.raises(NotInstalled, match="GGUF"):
        llama_cpp.contestant(tmp_path, str(tmp_path))
    nowhere = Library(name="nowhere", distributions=("no-such-distribution",), worker="x.py")
    with pytest.raises(NotInstalled) as found:
        python_peer.contestant(nowhere, model, "")
    assert "pip install no-such-distribution" in found.value.hint()
    with pytest.raises(NotInstalled):
        python_peer.contestant(nowhere, model, "/no/such/python")


@pytest.mark.parametrize("library", [TRANSFORMERS, VLLM, OPENVINO], ids=lambda library: library.name)
def test_workers_know_no_khola_and_compile(library: Library) -> None:
    code = (python_peer.WORKERS / library.worker).read_text(encoding="utf-8")
    compile(code, library.worker, "exec")
    assert "import khola" not in code and "from khola" not in code
    for group in set(GROUPS) - set(library.unsupported):
        assert f'"{group}"' in code, f"{library.worker} does nothing for {group}"


def test_a_python_peer_runs_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_peer, "WORKERS", tmp_path)
    worker = """
import json, os, sys
orders = json.loads(sys.argv[1])
assert orders["work"]["context_tokens"] > 0 and os.environ["THREADS"] == "0-0"
print("warming up")
for size in orders["work"]["prefill"]:
    print(json.dumps({"name": f"prefill_{size}", "value": 2.0 * size}))
"""
    (tmp_path / "worker.py").write_text(worker)
    library = Library(name="made", distributions=("numpy",), worker="worker.py", variables=("THREADS=0-{last}",), unsupported=("quality",))
    found = python_peer.contestant(library, tmp_path, "")
    assert found.version == np.__version__
    assert found.run(task("prefill", tmp_path)).readings == [Reading("prefill_16", 32.0), Reading("prefill_64", 128.0)]
    assert {reading.reason for reading in found.run(task("quality", tmp_path)).readings} == {"unsupported"}


def settings(home: Path) -> Settings:
    """One thread."""
    return Settings(home=home, user_home=home, threads=1, offline=True)


@pytest.mark.slow
def test_khola_measures_itself_from_start_to_quality(tmp_path: Path) -> None:
    model = str(write_checkpoint(tmp_path / "tiny"))
    told: list[str] = []
    asked = Asked(model=model, interpreter="numpy", against=("vllm",), rounds=1, work=WORK, places={"vllm": "/no/such/python"})
    found = bench(asked, settings(tmp_path), tell=lambda group, *_: told.append(group))
    (ours,) = found.entries
    assert told == ["prefill", "decode", "streams", "start", "reference", "quality"]
    assert set(ours.figures) == {name for group in GROUPS for name in names_of(group, WORK)} | {"bytes_per_token", "operations_per_token"}
    assert {name: figure.reason + figure.detail for name, figure in ours.figures.items() if figure.median is None} == {}
    # The reference is the model itself: nothing may lie between them.
    assert ours.figures["kl"].median == 0 and ours.figures["same_token"].median == 1
    assert found.missing[0].name == "vllm" and found.threads == 1 and found.bandwidth["1"].median
    json.dumps(found.data())


@pytest.mark.slow
def test_another_reference_lies_apart(tmp_path: Path) -> None:
    asked = Asked(
        model=str(write_checkpoint(tmp_path / "one")),
        interpreter="numpy",
        reference=str(write_checkpoint(tmp_path / "other", seed=1)),
        groups=("quality",),
        work=WORK,
    )
    (ours,) = bench(asked, settings(tmp_path)).entries
    assert (ours.figures["kl"].median or 0) > 0.01


def test_precise_numbers_are_named_and_asked_for(tmp_path: Path) -> None:
    ours = Khola(model="m", interpreter="native", start_context=64, precise=True)
    assert ours.version.endswith("(native, precise)")
    assert "--precise" in ours._start_command(task("start", tmp_path))


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    (folder / "model.safetensors").write_bytes(b"\\x00" * 64)
    turn = Khola(model=str(folder), interpreter="numpy", start_context=64).run(task("prefill", tmp_path))
    assert turn.readings == [] and "exit code 1" in turn.detail


@pytest.mark.slow
@pytest.mark.parity
def test_transformers_predicts_the_same(tmp_path: Path) -> None:
    model = str(write_checkpoint(tmp_path / "tiny"))
    asked = Asked(model=model, interpreter="numpy", against=("transformers",), rounds=1, groups=("decode", "quality"), work=WORK)
    found = bench(asked, settings(tmp_path), peers=PEERS)
    ours, theirs = found.entries
    assert theirs.figures["decode_0"].median, theirs.figures["decode_0"].detail
    # bfloat16 beside float32 on the same weights.
    assert 0 <= (theirs.figures["kl"].median or 0) < 0.01 and theirs.figures["kl"].median is not None
    assert (theirs.figures["same_token"].median or 0) > 0.9
    assert theirs.figures["bytes_per_token"].median == (ours.figures["bytes_per_token"].median or 0) / 2
