"""What the kernel can take away from a process for ever: privileges, files, calls. By ctypes, with no dependency.

Source   landlock(7), seccomp(2), prctl(2), capabilities(7); include/uapi/linux/landlock.h up to version 6.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from khola.evals.sandbox.filters import machine

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_DEATH_SIGNAL, _DUMPABLE, _SECCOMP, _BOUNDING, _NO_NEW, _AMBIENT = 1, 4, 22, 24, 38, 47
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
# Rights over files that each version of Landlock knows.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP, _SCOPES = 0b11, 0b11
_TCP_SINCE, _SCOPES_SINCE = 4, 6
_CAPABILITIES = 0x20080522
_KILL = 9


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _done(result: int, what: str) -> int:
    """The result of a call; what is not taken away is an error, never silence."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def landlock_version() -> int:
    """Version of Landlock that the running kernel has switched on; 0 without it."""
    if not sys.platform.startswith("linux") or machine() is None:
        return 0
    return max(0, int(_library().syscall(_CREATE, None, ctypes.c_size_t(0), 1)))


def has_seccomp() -> bool:
    """Whether the kernel takes filters on this processor."""
    numbers = machine()
    if not sys.platform.startswith("linux") or numbers is None:
        return False
    refusing = ctypes.c_uint32(0x00050000)
    return int(_library().syscall(numbers.seccomp, 2, 0, ctypes.byref(refusing))) == 0


def readable() -> Iterator[str]:
    """Files and folders that an interpreter reads: the standard library without what is installed beside it, and shared libraries."""
    library = Path(os.__file__).resolve().parent
    left_out = {"site-packages", "dist-packages", "sitecustomize.py", "test", "idlelib", "ensurepip", "lib2to3"}
    yield from (str(entry) for entry in sorted(library.iterdir()) if entry.name not in left_out and entry.exists())
    for folder in ("/lib", "/usr/lib", "/lib64", "/usr/lib64"):
        yield from (str(path) for path in sorted(Path(folder).glob("*-linux-gnu")))
        yield from (str(path) for path in sorted(Path(folder).glob("lib*.so*")) if path.exists())
        yield from (str(path) for path in sorted(Path(folder).glob("ld-linux*")))
    yield from (str(path) for path in sorted(Path(sys.base_prefix, "lib").glob("lib*.so*")))


def landlock_rules(paths: Iterable[str]) -> int:
    """A descriptor of rules that allow reading these paths and nothing else: no writing, no TCP, no signals to others.

    Raises:
        OSError: the kernel has no Landlock.
    """
    library = _library()
    version = landlock_version()
    fields = [(1 << _RIGHTS[min(max(version, 1), 5)]) - 1]
    if version >= _TCP_SINCE:
        fields.append(_TCP)
    if version >= _SCOPES_SINCE:
        fields.append(_SCOPES)
    asked = struct.pack(f"<{len(fields)}Q", *fields)
    rules = _done(library.syscall(_CREATE, asked, ctypes.c_size_t(len(asked)), 0), "landlock_create_ruleset")
    for path in paths:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            folder = stat.S_ISDIR(os.fstat(place).st_mode)
            rule = struct.pack("<Qi", _READ_FILE | (_READ_FOLDER if folder else 0), place)
            _done(library.syscall(_ADD, rules, 1, rule, 0), "landlock_add_rule")
        finally:
            os.close(place)
    return rules


def die_with_parent() -> None:
    """End when the parent ends, and give nothing to debuggers or core files."""
    _control(_DEATH_SIGNAL, _KILL)
    _control(_DUMPABLE, 0)


def give_up_privileges() -> None:
    """No program run from here gains rights, and root keeps none of its own."""
    library = _library()
    _control(_NO_NEW, 1)
    for capability in range(64):
        if library.prctl(_BOUNDING, ctypes.c_ulong(capability), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) < 0:
            break  # the last one that this kernel knows, or one that nobody here may drop
    library.prctl(_AMBIENT, ctypes.c_ulong(4), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
    _done(library.capset(struct.pack("<Ii", _CAPABILITIES, 0), bytes(24)), "capset")


def restrict(rules: int) -> None:
    """Put this process below the rules of Landlock."""
    _done(_library().syscall(_RESTRICT, rules, 0), "landlock_restrict_self")


def install(program: bytes) -> None:
    """Put this process below a seccomp filter."""
    held = ctypes.create_string_buffer(program, len(program))
    told = struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(held))
    _done(_library().prctl(_SECCOMP, ctypes.c_ulong(2), told, ctypes.c_ulong(0), ctypes.c_ulong(0)), "seccomp")


def _control(what: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _done(_library().prctl(what, ctypes.c_ulong(value), zero, zero, zero), f"prctl {what}")
