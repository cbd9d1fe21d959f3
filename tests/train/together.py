"""Runs for torchrun, one after another: `torchrun --nproc-per-node 2 tests/train/together.py PLACE`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.train.runs import LORA, done, small_run

COMMON = ("steps=6", "save.every=3", "save.keep=9")
RUNS = {
    f"{parallel}-{kind}": (*COMMON, "packing.accumulate=1", f"parallel={parallel}", *options)
    for parallel in ("ddp", "fsdp")
    for kind, options in (("full", ()), ("lora", LORA[:1]))
}


def half_again(place: Path, out: str) -> None:
    """A finished run once more, from its middle."""
    copy = place / f"{out}-again"
    if dist.get_rank() == 0:
        shutil.copytree(place / out, copy)
        shutil.rmtree(copy / "checkpoints" / "step-000006")
    dist.barrier()
    assert done(small_run(place, out=copy.name, options=RUNS[out]), place) is not None


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    here = Path(sys.argv[1])
    for name, given in RUNS.items():
        assert done(small_run(here, out=name, options=given), here) is not None
    for name in ("ddp-full", "fsdp-full"):
        half_again(here, name)
    dist.barrier()
    sys.stdout.flush()
    # All is written. torch's own threads now and then abort a process that takes gloo down at its end.
    os._exit(0)
