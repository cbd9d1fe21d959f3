"""The seccomp filter: which calls of the kernel a program may make, as the classic BPF that the kernel takes.

What is not named here is refused, calls of kernels to come too. Reading, memory, time, threads and pipes are left; processes, programs,
sockets to others, signals, limits, and every change of a file are not. Some calls are allowed only with certain arguments.

Source   seccomp(2); numbers: Linux arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterable
from typing import NamedTuple

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, EACCES, ENOTTY, ENOSYS = 1, 13, 25, 38
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_X32 = 0x40000000
_THREAD = 0x00010000
_NAMESPACES = 0x7E020080
# O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND and the bit of O_TMPFILE: the same on both machines.
_CHANGING = 0o3 | 0o100 | 0o1000 | 0o2000 | 0o20000000
# TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_TERMINAL = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; F_SETOWN would send signals.
_DESCRIPTORS = (0, 1, 2, 3, 1030)
_UNIX = 1


class Machine(NamedTuple):
    """A processor's numbers of calls."""

    audit: int
    """The kernel's name of this processor."""
    free: tuple[int, ...]
    """Calls that are allowed with any arguments."""
    named: dict[str, int]
    """Calls that are allowed with some arguments only."""
    seccomp: int
    """The call that asks about filters."""


MACHINES = {
    "x86_64": Machine(
        0xC000003E,
        (
            0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,  # read write close *stat poll lseek mmap mprotect munmap brk sig*
            17, 19, 20, 21, 22, 23, 24, 25, 28, 32, 33, 35, 39,  # pread readv writev access pipe select yield mremap madvise dup* sleep
            45, 60, 63, 79, 96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 111, 131,  # recvfrom exit uname cwd time usage ids sigaltstack
            186, 201, 202, 204, 217, 219, 228, 229, 230, 231, 232, 233,  # gettid time futex affinity dents restart clocks exit_group epoll
            262, 269, 270, 271, 273, 281, 290, 291, 292, 293,  # fstatat faccessat pselect ppoll robust_list epoll eventfd2 dup3 pipe2
            309, 318, 324, 332, 334, 436, 439,  # getcpu getrandom membarrier statx rseq close_range faccessat2
        ),
        {"ioctl": 16, "fcntl": 72, "clone": 56, "clone3": 435, "prlimit64": 302, "open": 2, "openat": 257, "socketpair": 53, "sendto": 44},
        317,
    ),
    "aarch64": Machine(
        0xC00000B7,
        (
            63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 67, 65, 66, 73, 72, 124, 216, 233, 23, 24, 101, 172,
            207, 93, 160, 17, 169, 163, 165, 179, 153, 174, 175, 176, 177, 173, 132,
            178, 98, 123, 61, 128, 113, 114, 115, 94, 79, 48, 99, 20, 21, 22, 19, 59, 168, 278, 283, 291, 293, 436, 439,
        ),
        {"ioctl": 29, "fcntl": 25, "clone": 220, "clone3": 435, "prlimit64": 261, "openat": 56, "socketpair": 199, "sendto": 206},
        277,
    ),
}  # fmt: skip


def machine() -> Machine | None:
    """The numbers of this processor, or None when they are not known."""
    return MACHINES.get(platform.machine())


def filter_of(numbers: Machine, *, opening: bool) -> bytes:
    """The filter as an array of `struct sock_filter`.

    Args:
        numbers: the processor's calls.
        opening: whether files may be opened for reading; what may be read is then up to Landlock or a mount namespace.
    """
    steps = [_load(4), _jump(_EQUAL, numbers.audit, 1, 0), _back(_KILL), _load(0), _jump(_AT_LEAST, _X32, 0, 1), _back(_KILL)]
    for number in numbers.free:
        steps += [_jump(_EQUAL, number, 0, 1), _back(_ALLOW)]
    for name, number in numbers.named.items():
        block = _block(name, opening=opening)
        steps += [_jump(_EQUAL, number, 0, len(block)), *block]
    return b"".join([*steps, _refuse(EPERM)])


def _block(name: str, *, opening: bool) -> list[bytes]:
    """What decides about one call by its arguments; it always ends in a return."""
    if name == "clone3":  # its arguments lie in memory, where a filter cannot look; libraries then fall back to clone
        return [_refuse(ENOSYS)]
    if name == "clone":
        return [_load(_low(0)), _jump(_ANY_BIT, _NAMESPACES, 2, 0), _jump(_ANY_BIT, _THREAD, 0, 1), _back(_ALLOW), _refuse(EPERM)]
    if name == "prlimit64":  # asking for one's own limits, never setting any
        return _zero(_low(0), _low(2), _low(2) + 4)
    if name == "sendto":  # to the other end, never to an address
        return _zero(_low(4), _low(4) + 4)
    if name == "socketpair":
        return _one_of(0, (_UNIX,), EPERM)
    if name == "ioctl":
        return _one_of(1, _TERMINAL, ENOTTY)
    if name == "fcntl":
        return _one_of(1, _DESCRIPTORS, EPERM)
    if not opening:
        return [_refuse(EACCES)]
    return [_load(_low(1 if name == "open" else 2)), _jump(_ANY_BIT, _CHANGING, 1, 0), _back(_ALLOW), _refuse(EACCES)]


def _zero(*places: int) -> list[bytes]:
    """Allow when all these words are zero."""
    steps = [step for place in places for step in (_load(place), _jump(_EQUAL, 0, 1, 0), _refuse(EPERM))]
    return [*steps, _back(_ALLOW)]


def _one_of(argument: int, values: Iterable[int], error: int) -> list[bytes]:
    """Allow when an argument has one of these values."""
    steps = [step for value in values for step in (_jump(_EQUAL, value, 0, 1), _back(_ALLOW))]
    return [_load(_low(argument)), *steps, _refuse(error)]


def _low(argument: int) -> int:
    """Place of the lower half of an argument in `struct seccomp_data`, on little-endian machines."""
    return 16 + 8 * argument


def _load(place: int) -> bytes:
    return _step(_LOAD, 0, 0, place)


def _jump(how: int, value: int, yes: int, no: int) -> bytes:
    return _step(how, yes, no, value)


def _back(action: int) -> bytes:
    return _step(_RETURN, 0, 0, action)


def _refuse(error: int) -> bytes:
    return _back(_ERRNO | error)


def _step(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)
