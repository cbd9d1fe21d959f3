"""Two processes train what one would, and go on to the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from khola.store.safetensors import read_safetensors
from tests.train.runs import LORA, done, last, same_runs, small_run
from tests.train.together import COMMON, RUNS

ROOT = Path(__file__).resolve().parents[2]
SAME = 1e-5
"""Relative difference of losses that another order of sums may make, in float32."""


@pytest.mark.slow
def test_two_processes_train_what_one_would(tmp_path: Path) -> None:
    """Equal batches: two processes with one micro-batch each, against one with two."""
    alone = {kind: small_run(tmp_path, out=f"alone-{kind}", options=[*COMMON, *more]) for kind, more in (("full", ()), ("lora", LORA[:1]))}
    for run in alone.values():
        assert done(run, tmp_path) is not None
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.train.together", str(tmp_path)]
    ended = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    for name, options in RUNS.items():
        one, pair = last(alone[name.split("-")[1]]), last(small_run(tmp_path, out=name, options=options))
        losses = [[step["loss"] for step in run.state["history"]] for run in (one, pair)]
        assert losses[1] == pytest.approx(losses[0], rel=SAME), name
        weights = [one.tensors["weights"], pair.tensors["weights"]]
        assert weights[0].keys() == weights[1].keys()
        for key, values in weights[0].items():
            torch.testing.assert_close(weights[1][key], values, rtol=1e-3, atol=2e-5)
        with read_safetensors(tmp_path / name / "model" / "model.safetensors") as file:
            assert len(file.tensors) > 10
    for name in ("ddp-full", "fsdp-full"):
        runs = [last(small_run(tmp_path, out=out, options=RUNS[name])) for out in (name, f"{name}-again")]
        same_runs(*runs)
