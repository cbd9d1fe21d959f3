"""A run that was stopped at any moment goes on to the same bits (P1, P4, P6)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.runs import FULL, HALF, LORA, done, last, same_runs, small_run

ROOT = Path(__file__).resolve().parents[2]
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "full": ("sft", FULL),
    "lora": ("sft", LORA),
    "bfloat16": ("sft", HALF),
    "muon": ("sft", ("optimiser.name=muon",)),
    "dpo": ("dpo", FULL),
    "dpo lora": ("dpo", LORA),
    "grpo": ("grpo", ("grpo.reuse=3",)),
    "k15": ("k15", ("k15.partial=true", "k15.longest=14", "k15.choose=failing")),
}
"""Method and settings."""
SLOW = {"lora", "bfloat16", "muon", "dpo lora", "k15"}
KILLED: dict[str, tuple[str, tuple[str, ...]]] = {
    "sft full": ("sft", FULL),
    "sft lora": ("sft", LORA),
    "dpo": ("dpo", FULL),
    "grpo": ("grpo", ("grpo.reuse=2",)),
    "distil": ("distil", FULL),
}
"""Method and settings of every kind of run that is killed; a method adds its own."""


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in KINDS])
def test_ten_steps_and_ten_more_are_twenty(tmp_path: Path, kind: str) -> None:
    method, settings = KINDS[kind]
    options = ["epochs=5", "steps=20", "save.every=5", "save.keep=9", *settings]
    straight = small_run(tmp_path, out="straight", options=options, method=method)
    assert done(straight, tmp_path) is not None
    stopped = small_run(tmp_path, out="stopped", options=options, method=method)
    assert done(stopped, tmp_path, until=13) is None
    assert last(stopped).step == 10
    told: list[str] = []
    assert done(stopped, tmp_path, told=told) is not None
    assert "going on behind step 10 of 20" in told
    same_runs(last(straight), last(stopped))
    models = [(tmp_path / out / "model" / "model.safetensors").read_bytes() for out in ("straight", "stopped")]
    assert models[0] == models[1]


def test_the_seed_decides(tmp_path: Path) -> None:
    runs = [small_run(tmp_path, out=f"seed-{seed}", options=["steps=2", f"seed={seed}"]) for seed in (0, 1)]
    for run in runs:
        done(run, tmp_path)
    with pytest.raises(AssertionError):
        same_runs(last(runs[0]), last(runs[1]))


def _killed(place: Path, kills: int, seed: int, kind: str) -> None:
    method, options = KILLED[kind]
    options = ("epochs=3", "steps=12", "save.every=3", *options)
    words = [sys.executable, "-m", "tests.train.killed", str(place), str(kills), str(seed), method, *options]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    straight = last(small_run(place, out="straight", options=options, method=method))
    counts = dict(line.split() for line in ended.stdout.splitlines())
    assert sum(map(int, counts.values())) >= kills
    for out in counts:
        same_runs(straight, last(small_run(place, out=out, options=options, method=method)))
        assert not list((place / out / "checkpoints").glob("*.tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLED)
def test_killed_at_random_moments(tmp_path: Path, kind: str) -> None:
    """Fifty kills, shared by all kinds of runs: each finished run equals the one that nobody killed."""
    _killed(tmp_path, -(-50 // len(KILLED)), 1, kind)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KILLED)
def test_killed_two_hundred_times(tmp_path: Path, kind: str) -> None:
    _killed(tmp_path, 200, 2, kind)
