"""The native library through ctypes: its structures, its functions, and where it lies. See `csrc/kh.h` for what each field means."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint16, c_void_p
from functools import cache
from pathlib import Path

from khola.errors import NoKernel, OurFault
from khola.native.build import library_name

ABI = 10
"""`KH_ABI` of the header that the structures below repeat."""


ISAS = ("amx", "avx512", "avxvnni", "avx2", "dotprod", "neon", "scalar")
"""Instruction sets that kernels are written for, the best one first."""
NEEDS = {
    "amx": ("avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    "avx512": ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    "avxvnni": ("avx2", "fma", "f16c", "avx_vnni"),
    "avx2": ("avx2", "fma", "f16c"),
    "dotprod": ("asimd", "asimddp"),
    "neon": ("asimd",),
}
"""Flags of the processor that each of them needs, as `khola.native.probe` names them, but for those that come with others."""

CACHE_FORMS = {"bf16": 0, "int8": 1, "float32": 2}
"""`kh_cache_form`: how a cache keeps numbers; float32 is that of precise programs."""


class KhWeight(ctypes.Structure):
    """`kh_weight`: a packed matrix."""

    _fields_ = (
        ("n", c_int32),
        ("k", c_int32),
        ("n_pad", c_int32),
        ("k_pad", c_int32),
        ("bits", c_uint8),
        ("group", c_uint8),
        ("zero", c_uint8),
        ("has_min", c_uint8),
        ("split", c_uint8),
        ("tile_bytes", c_int32),
        ("data", c_void_p),
        ("bias", c_void_p),
    )


class KhOp(ctypes.Structure):
    """`kh_op`: one operation of a program."""

    _fields_ = (
        ("op", c_uint16),
        ("flags", c_uint16),
        ("in0", c_int32),
        ("in1", c_int32),
        ("in2", c_int32),
        ("out", c_int32),
        ("w0", c_int32),
        ("w1", c_int32),
        ("arg", c_int32 * 4),
        ("f", c_float * 2),
    )


class KhVector(ctypes.Structure):
    """`kh_vector`: weights of a norm."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("n", c_int32))


class KhRope(ctypes.Structure):
    """`kh_rope`: rotary frequencies."""

    _fields_ = (("frequencies", c_void_p), ("half", c_int32), ("factor", c_float))


class KhLayerCache(ctypes.Structure):
    """`kh_layer_cache`: what a layer keeps of every token."""

    _fields_ = (("heads", c_int32), ("key_size", c_int32), ("value_size", c_int32))


class KhStateCache(ctypes.Structure):
    """`kh_state_cache`: what a layer keeps of a sequence."""

    _fields_ = (("heads", c_int32), ("key_size", c_int32), ("value_size", c_int32), ("width", c_int32), ("taps", c_int32))


class KhProgram(ctypes.Structure):
    """`kh_program`: operations, slots, weights."""

    _fields_ = (
        ("num_ops", c_int32),
        ("num_slots", c_int32),
        ("num_weights", c_int32),
        ("num_vectors", c_int32),
        ("num_ropes", c_int32),
        ("num_layers", c_int32),
        ("ops", POINTER(KhOp)),
        ("slot_width", c_void_p),
        ("slot_rows", c_void_p),
        ("weights", POINTER(KhWeight)),
        ("vectors", POINTER(KhVector)),
        ("ropes", POINTER(KhRope)),
        ("layers", POINTER(KhLayerCache)),
        ("max_rows", c_int32),
        ("max_wanted", c_int32),
        ("max_context", c_int32),
        ("precise", c_int32),
    )


class KhBatch(ctypes.Structure):
    """`kh_batch`: one step."""

    _fields_ = (
        ("num_rows", c_int32),
        ("num_sequences", c_int32),
        ("num_wanted", c_int32),
        ("ids", c_void_p),
        ("positions", c_void_p),
        ("starts", c_void_p),
        ("lengths", c_void_p),
        ("wanted", c_void_p),
        ("answers", c_void_p),
        ("drawn", c_void_p),
        ("pages", c_void_p),
        ("page_stride", c_int32),
        ("logits", c_void_p),
        ("block_max", c_void_p),
        ("margins", c_void_p),
        ("inputs", c_void_p),
        ("best", c_void_p),
        ("states", c_void_p),
        ("kept", c_void_p),
    )


class KhRow(ctypes.Structure):
    """`kh_row`: logits of one row, and how they are changed."""

    _fields_ = (
        ("logits", c_void_p),
        ("block_max", c_void_p),
        ("margins", c_void_p),
        ("input", c_void_p),
        ("num_tokens", c_int32),
        ("num_changed", c_int32),
        ("changed", c_void_p),
        ("bias", c_void_p),
        ("penalty", c_void_p),
        ("minus", c_void_p),
    )


_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "kh_abi": (c_int32, ()),
    "kh_isa": (c_char_p, ()),
    "kh_choose": (c_int32, (c_char_p,)),
    "kh_has": (c_int32, (c_char_p,)),
    "kh_form": (c_int32, (c_char_p, c_int32, c_int32, POINTER(KhWeight))),
    "kh_widen": (c_int32, (POINTER(KhWeight), POINTER(KhWeight))),
    "kh_split": (c_int32, (POINTER(KhWeight),)),
    "kh_packed_bytes": (c_size_t, (POINTER(KhWeight),)),
    "kh_pack": (c_int32, (c_char_p, c_void_p, c_size_t, c_int32, c_void_p, POINTER(KhWeight), c_void_p)),
    "kh_unpack": (c_int32, (POINTER(KhWeight), c_void_p)),
    "kh_cache_new": (c_void_p, (POINTER(KhLayerCache), c_int32, c_int32, c_int32)),
    "kh_cache_free": (None, (c_void_p,)),
    "kh_cache_bytes": (c_size_t, (POINTER(KhLayerCache), c_int32, c_int32, c_int32)),
    "kh_cache_keep_states": (c_int32, (c_void_p, POINTER(KhStateCache), c_int32, c_int32)),
    "kh_state_bytes": (c_size_t, (POINTER(KhStateCache), c_int32)),
    "kh_model_new": (c_void_p, (POINTER(KhProgram), c_int32)),
    "kh_model_free": (None, (c_void_p,)),
    "kh_multiply": (c_int32, (c_int32, c_int64, POINTER(c_char_p), POINTER(c_int64))),
    "kh_stream": (None, (c_void_p, c_int32)),
    "kh_step": (c_int32, (c_void_p, c_void_p, POINTER(KhBatch))),
    "kh_best": (c_int32, (c_void_p, POINTER(KhRow), c_int32, c_float, c_void_p, c_void_p)),
    "kh_profile": (c_int32, (c_void_p, c_void_p, c_int32)),
    "kh_slot": (c_void_p, (c_void_p, c_int32, POINTER(c_int32))),
    "kh_poison": (None, (c_void_p,)),
}


def library_path() -> Path | None:
    """The built library beside this file, or None where none was built."""
    path = Path(__file__).parent / library_name()
    return path if path.is_file() else None


@cache
def library() -> ctypes.CDLL:
    """The library, loaded once.

    Raises:
        NoKernel: none was built here, or this system cannot load it.
        OurFault: it was built from other sources than this package.
    """
    path = library_path()
    if path is None:
        raise NoKernel(
            "no native library was built here", hint="install a C++ compiler and install khola again; numpy runs the models until then"
        )
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as wrong:
        raise NoKernel("{path} cannot be loaded: {reason}", path=path.name, reason=str(wrong)) from wrong
    if loaded.kh_abi() != ABI:
        raise OurFault(
            "{path} speaks version {found}, this package version {expected}", path=path.name, found=loaded.kh_abi(), expected=ABI
        )
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def choose_isa(wanted: str = "") -> str:
    """Choose the instruction set: the best one here, or the wanted one; gives its name.

    Raises:
        NoKernel: this processor or this build does not have it.
    """
    lib = library()
    if lib.kh_choose(wanted.encode()) < 0:
        raise NoKernel("the instruction set {isa} is not available here", isa=wanted)
    name: bytes = lib.kh_isa()
    return name.decode()


def just_missed(used: str, flags: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """The nearest better instruction set of which the processor has some part, and the flags that it lacks.

    Without any flag that is lacking, the library was built without it, or the system does not save its registers. None: there is no
    such set.

    Args:
        used: the one that was chosen.
        flags: of the processor, as `khola.native.probe` names them.
    """
    for isa in reversed(ISAS[: ISAS.index(used)]):
        own = set(NEEDS[isa]) - set(NEEDS.get(used, ()))
        if own & set(flags):
            return isa, tuple(flag for flag in NEEDS[isa] if flag not in flags)
    return None


def available_isas() -> tuple[str, ...]:
    """Instruction sets that this build and this processor both have, the best one first; what was chosen stays chosen.

    Raises:
        NoKernel: there is no library.
    """
    return tuple(name for name in ISAS if library().kh_has(name.encode()))
