"""How fast this processor multiplies when it waits for nothing: the wall that products of matrices are measured against."""

from __future__ import annotations

import ctypes
import threading
import time

from khola.native.lib import library

LONG_S = 0.04
"""How long each measurement multiplies."""
ROUNDS = 2000
"""Of the first try."""


def multiply_rates(threads: int) -> dict[str, float]:
    """Operations a second of each unit, additions counted too, all threads together: "amx_bf16", "avx512_int8", ….

    Args:
        threads: that multiply at once.
    Raises:
        NoKernel: there is no native library here.
    """
    library()
    found: dict[str, float] = {}
    for unit in range(32):
        name, _, seconds = _multiplied(unit, ROUNDS)
        if not name:
            break
        _, _, seconds = _multiplied(unit, ROUNDS)
        found[name] = _together(unit, int(ROUNDS * LONG_S / max(seconds, 1e-6)) + 1, threads)
    return found


def _together(unit: int, rounds: int, threads: int) -> float:
    """Operations a second of several threads, which the library lets run at once."""
    begin, rates = threading.Barrier(threads), [0.0] * threads

    def run(thread: int) -> None:
        begin.wait()
        _, operations, seconds = _multiplied(unit, rounds)
        rates[thread] = operations / seconds

    workers = [threading.Thread(target=run, args=(thread,), daemon=True) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(rates)


def _multiplied(unit: int, rounds: int) -> tuple[str, int, float]:
    """Name of a unit, operations that were done, and seconds; an empty name where there is no such unit."""
    name, operations = ctypes.c_char_p(), ctypes.c_int64()
    began = time.perf_counter()
    code = library().kh_multiply(unit, rounds, ctypes.byref(name), ctypes.byref(operations))
    seconds = time.perf_counter() - began
    return ("", 0, seconds) if code < 0 or name.value is None else (name.value.decode(), operations.value, seconds)
