"""The process in which khola measures itself: `python -m khola.evals.bench.worker TASK`, a JSON object; readings go to standard output.

A new process for every turn is what the peers get too, and no turn inherits the caches or the memory of another.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from khola.api.bench import (
    Reading,
    Work,
    bench_engine,
    measure_decode,
    measure_prefill,
    measure_streams,
    operations_per_token,
    read_bytes,
    scored_targets,
    window_logprobs,
)
from khola.loader import load_model
from khola.loader.loaded import Loaded
from khola.settings import from_environment

MEASURES = {"prefill": measure_prefill, "decode": measure_decode, "streams": measure_streams}


class Orders(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the process is told to do."""

    group: str
    model: str
    interpreter: str
    cache: str = "auto"
    precise: bool = False
    threads: int
    seed: int
    work: Work
    windows: tuple[tuple[int, ...], ...] = ()
    logprobs: str = ""
    """File to write log-probabilities to, for the group "quality"."""


def command(orders: Orders) -> list[str]:
    """The command that runs these orders."""
    told: dict[str, Any] = {**msgspec.structs.asdict(orders), "work": asdict(orders.work)}
    return [sys.executable, "-m", "khola.evals.bench.worker", json.dumps(told)]


def main(arguments: Sequence[str]) -> None:
    """Run orders and print every reading as it is made."""
    orders = msgspec.json.decode(arguments[0], type=Orders)
    settings = replace(from_environment(), threads=orders.threads)
    loaded = load_model(
        orders.model,
        settings=settings,
        interpreter=orders.interpreter,
        cache=orders.cache,
        precise=orders.precise,
        tell=lambda *_, **__: None,
    )
    for reading in _readings(loaded, orders):
        print(json.dumps(asdict(reading)), flush=True)


def _readings(loaded: Loaded, orders: Orders) -> Iterator[Reading]:
    if orders.group == "quality":
        write_logprobs(loaded, orders.windows, Path(orders.logprobs))
        return
    engine = bench_engine(loaded, orders.work)
    if orders.group == "prefill":
        yield Reading("operations_per_token", float(operations_per_token(loaded)))
    if orders.group == "decode":
        yield Reading("bytes_per_token", float(read_bytes(loaded)))
    yield from MEASURES[orders.group](engine, orders.work, np.random.default_rng(orders.seed))


def write_logprobs(loaded: Loaded, windows: Sequence[Sequence[int]], path: Path) -> None:
    """Write log-probabilities at the scored places as .npy, [R, V]."""
    shape = (len(scored_targets(windows)), loaded.vocab_tokens)
    table_RV = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    at = 0
    for rows_rV in window_logprobs(loaded, windows):
        table_RV[at : at + len(rows_rV)] = rows_rV
        at += len(rows_rV)
    table_RV.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
