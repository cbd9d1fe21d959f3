"""What a training step computes natively, through ctypes. See `csrc/kh_train.h` for what each field means."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

from khola.errors import NoMemory, OurFault
from khola.native.lib import library

TYPES = {"bfloat16": 0, "float32": 1}
STORE, ADD_TO, LOG_SUM, SOFTMAX_MINUS = range(4)
"""`kh_finish`: what becomes of a product's sums."""
LANES = 16
"""Columns of `most` and `sum`."""
_NO_MEMORY = -1


class KhSide(ctypes.Structure):
    """`kh_side`: a matrix of a product."""

    _fields_ = (("data", c_void_p), ("row", c_int64), ("deep", c_int64), ("type", c_int32))


class KhProduct(ctypes.Structure):
    """`kh_product`: left times the transposed right, and what becomes of it."""

    _fields_ = (
        ("m", c_int32),
        ("n", c_int32),
        ("k", c_int32),
        ("finish", c_int32),
        ("left", KhSide),
        ("right", KhSide),
        ("out", c_void_p),
        ("stride", c_int64),
        ("out_type", c_int32),
        ("first_column", c_int32),
        ("bias", c_void_p),
        ("targets", c_void_p),
        ("most", c_void_p),
        ("sum", c_void_p),
        ("at_target", c_void_p),
        ("log_sum", c_void_p),
        ("factor", c_void_p),
    )


class KhAttention(ctypes.Structure):
    """`kh_attention`: causal attention of whole sequences."""

    _fields_ = (
        ("num_sequences", c_int32),
        ("heads", c_int32),
        ("key_heads", c_int32),
        ("key_size", c_int32),
        ("value_size", c_int32),
        ("window", c_int32),
        ("scale", c_float),
        ("starts", c_void_p),
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("out", c_void_p),
        ("log_sums", c_void_p),
        ("out_gradient", c_void_p),
        ("q_gradient", c_void_p),
        ("k_gradient", c_void_p),
        ("v_gradient", c_void_p),
    )


class KhRows(ctypes.Structure):
    """`kh_rows`: an operation on rows."""

    _fields_ = (
        ("rows", c_int32),
        ("columns", c_int32),
        ("x", c_void_p),
        ("y", c_void_p),
        ("z", c_void_p),
        ("out", c_void_p),
        ("out2", c_void_p),
        ("weight", c_void_p),
        ("factors", c_void_p),
        ("weight_gradient", c_void_p),
        ("epsilon", c_float),
        ("offset", c_float),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("heads", c_int32),
        ("half", c_int32),
        ("direction", c_float),
    )


CALLS: dict[str, type[ctypes.Structure]] = {
    "product": KhProduct,
    "attend": KhAttention,
    "attend_back": KhAttention,
    "norm": KhRows,
    "norm_back": KhRows,
    "gate": KhRows,
    "gate_back": KhRows,
    "rotate": KhRows,
}
"""`kh_train_…`, and what each takes."""


def keep_memory() -> bool:
    """Keep what this process frees for what it asks for next, until it ends; False where the C library has no such switch.

    A training step frees and asks for gigabytes, and otherwise every page of them is given back and cleared again. Call it once, before
    training.

    Source: mallopt(3), glibc: M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(-4, 0) and mallopt(-1, 2**31 - 1))


@cache
def _functions() -> dict[str, Any]:
    lib = library()
    lib.kh_team_new.restype, lib.kh_team_new.argtypes = c_void_p, (c_int32,)
    lib.kh_team_free.restype, lib.kh_team_free.argtypes = None, (c_void_p,)
    found = {}
    for name, taken in CALLS.items():
        found[name] = function = getattr(lib, f"kh_train_{name}")
        function.restype, function.argtypes = c_int32, (c_void_p, POINTER(taken))
    return found


class Team:
    """Threads that compute one call at a time; a forked child gets threads of its own.

    Args:
        threads: how many, the caller among them; at least 1. No result depends on it.
    Raises:
        NoKernel: there is no native library.
    """

    _team: int | None = None
    _pid = 0

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._functions = _functions()
        self._lock = threading.Lock()

    def __call__(self, name: str, taken: ctypes.Structure) -> None:
        """Compute one of `CALLS`.

        Raises:
            NoMemory: what it works in does not fit.
            OurFault: a shape or number that it does not take.
        """
        with self._lock:
            if self._pid != os.getpid():
                self._team, self._pid = library().kh_team_new(self.threads), os.getpid()
                if not self._team:
                    raise NoMemory("there are no {threads} threads to be had", threads=self.threads)
            error = self._functions[name](self._team, ctypes.byref(taken))
        if error == _NO_MEMORY:
            raise NoMemory("there is no memory for one operation of training", hint="train on fewer or shorter rows at a time")
        if error:
            raise OurFault("{name} gave error {error}", name=f"kh_train_{name}", error=error)

    def __del__(self) -> None:
        if self._team and self._pid == os.getpid():
            library().kh_team_free(self._team)
