"""A program that starts a run, kills it at random moments, and starts it again, until so many kills have been survived.

    python -m tests.train.killed PLACE KILLS SEED METHOD [SETTING...]

Runs are forked from this process, so that torch is imported once. A third of the kills comes from inside, at a random call of `fsync`.
Each finished run has a folder of its own; its name is printed with the number of kills that it took.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from khola.train.config import Run
from tests.train.runs import done, small_run


def forked(run: Run, place: Path, kill_at: int | None) -> int:
    """Start the run in a child; its process id."""
    child = os.fork()
    if child:
        return child
    if kill_at is not None:
        sync, calls = os.fsync, iter(range(1_000_000))

        def fsync(file: int) -> None:
            if next(calls) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(file)

        os.fsync = fsync
    code = 1
    try:
        done(run, place)
        code = 0
    finally:
        os._exit(code)


def survived(run: Run, place: Path, rng: random.Random, run_s: float) -> int:
    """Kill and start again until the run ends by itself; the number of kills."""
    kills = 0
    while True:
        inside = rng.random() < 0.3
        child = forked(run, place, rng.randrange(40) if inside else None)
        until = time.monotonic() + (60 if inside else rng.uniform(0, run_s))
        status = 0
        while time.monotonic() < until:
            waited, status = os.waitpid(child, os.WNOHANG)
            if waited:
                break
            time.sleep(0.005)
        else:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the run failed"
            return kills
        kills += 1


def main(place: Path, kills: int, seed: int, method: str, options: list[str]) -> None:
    """Runs until all of them together took so many kills."""
    torch.set_num_threads(1)
    rng, total, number = random.Random(seed), 0, 0
    begun = time.monotonic()
    straight = forked(small_run(place, out="straight", options=options, method=method), place, None)
    assert os.waitpid(straight, 0)[1] == 0, "the run failed"
    run_s = time.monotonic() - begun
    while total < kills:
        out = f"killed-{number}"
        taken = survived(small_run(place, out=out, options=options, method=method), place, rng, run_s)
        print(out, taken, flush=True)
        total, number = total + taken, number + 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
