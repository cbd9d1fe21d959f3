"""What this machine has: processor, memory, disk, read bandwidth, GPUs. Nothing is changed, and no library beyond numpy is loaded.

Limits of containers count: a share of the cores or of the memory is all that a process can use.

Source   Linux: proc(5), the kernel's `admin-guide/cgroup-v1` and `cgroup-v2`; macOS: sysctl(3), vm_stat(1); Windows: GlobalMemoryStatusEx.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSTRUCTION_SETS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""Flags of /proc/cpuinfo that kernels may care about, oldest first."""

UNLIMITED = 1 << 60
"""Version 1 control groups write a number near 2^63 where there is no limit."""

PROBE_BYTES = 128 << 20
"""Memory that the bandwidth measurement reads, in all threads together."""

READING_S = 0.12
"""How long it reads."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One graphics processor that could compute."""

    name: str
    memory_bytes: int
    """0 where the driver does not say."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one process can use here."""

    cpu: str
    architecture: str
    """"x86_64", "aarch64", "arm64"."""
    system: str
    cores: int
    """Cores that this process may use; at least 1."""
    instruction_sets: tuple[str, ...]
    """Those of `INSTRUCTION_SETS` that the processor has; empty where the system does not say."""
    memory_bytes: int
    """Physical memory, or the container's limit."""
    available_bytes: int
    """Of it, what can be taken without swapping; caches of files count as free."""
    disk_free_bytes: int
    """Where models are kept."""
    read_bytes_s: float
    """Measured bandwidth of reading memory with all cores; 0 when it was not measured."""
    gpus: tuple[Gpu, ...] = ()


def probe(folder: Path | None = None, *, measure: bool = True, root: Path = Path("/")) -> Machine:
    """Look at this machine; takes about 0.3 s, or 0.02 s without the measurement.

    Args:
        folder: where models are kept, by default the home folder; it need not exist yet.
        measure: whether to measure the bandwidth.
        root: where /proc and /sys lie.
    """
    cores = usable_cores(root)
    memory, available = usable_memory(root)
    return Machine(
        cpu=_cpu_name(root),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}".strip(),
        cores=cores,
        instruction_sets=instruction_sets(root),
        memory_bytes=memory,
        available_bytes=available,
        disk_free_bytes=free_disk(folder or Path.home()),
        read_bytes_s=read_bandwidth(cores, min(PROBE_BYTES, available // 8)) if measure else 0.0,
        gpus=tuple(_gpus(root)),
    )


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: its affinity, cut by the share of processor time of its control groups."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for group in _groups(root, "cpu"):
        quota, _, period = _line(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _line(group / "cpu.cfs_quota_us"), _line(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def usable_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of memory in all and bytes still available, within the limits of this process's control groups."""
    memory, available = _physical_memory(root)
    for group in _groups(root, "memory"):
        limit = _line(group / "memory.max") or _line(group / "memory.limit_in_bytes")
        used = _line(group / "memory.current") or _line(group / "memory.usage_in_bytes")
        if not limit.isdecimal() or not used.isdecimal() or int(limit) >= UNLIMITED:
            continue
        counts = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line)
        files = int(counts.get("inactive_file") or counts.get("total_inactive_file") or 0)
        memory = min(memory, int(limit))
        available = min(available, max(0, int(limit) - int(used) + files))
    return memory, available


def instruction_sets(root: Path = Path("/")) -> tuple[str, ...]:
    """Those of `INSTRUCTION_SETS` that the processor has; on Apple processors what all of them have."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            flags = set(value.split())
            return tuple(name for name in INSTRUCTION_SETS if name in flags)
    return ("asimd", "asimddp") if sys.platform == "darwin" and platform.machine() == "arm64" else ()


def free_disk(folder: Path) -> int:
    """Free bytes where a folder lies or will lie."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def read_bandwidth(threads: int, size: int = PROBE_BYTES) -> float:
    """Bytes a second that `threads` threads read together, each going over its share of `size` bytes for `READING_S`.

    A reduction is read-only and leaves the interpreter's lock, so that numpy alone reaches what decoding can reach.
    """
    import numpy as np

    together = threading.Barrier(threads)
    rates: list[float] = []

    def read() -> None:
        part = np.empty(max(1, size // 8 // threads), np.uint64)
        part.fill(1)
        together.wait()
        began, passes = time.perf_counter(), 0
        while passes == 0 or time.perf_counter() - began < READING_S:
            part.max()
            passes += 1
        rates.append(passes * part.nbytes / (time.perf_counter() - began))

    readers = [threading.Thread(target=read, daemon=True) for _ in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return sum(rates)


def disk_bandwidth(path: Path, pieces: int = 8, size: int = 8 << 20) -> float:
    """Bytes a second that are read from a file, some pieces of it, which the system is asked to forget before; at least 1.

    Where it cannot be asked, what memory holds of the file makes it look faster.
    """
    with path.open("rb", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size
        places = [piece * max(0, length - size) // pieces for piece in range(pieces)]
        if sys.platform == "linux":
            for place in places:
                os.posix_fadvise(file.fileno(), place, size, os.POSIX_FADV_DONTNEED)
        began, got = time.perf_counter(), 0
        for place in places:
            file.seek(place)
            got += len(file.read(size))
        return max(1.0, got / (time.perf_counter() - began))


def _cpu_name(root: Path) -> str:
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "model", "hardware") and not value.strip().isdecimal():
            return value.strip()
    if sys.platform == "darwin":
        return _answer("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return platform.processor() or platform.machine()


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups that may limit one resource, in both versions, from the process up to the root."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            base = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        folder = base / path.lstrip("/")
        while True:
            yield folder
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent


def _physical_memory(root: Path) -> tuple[int, int]:
    """Bytes of memory in all and bytes still available, without regard to control groups."""
    counts = {}
    for line in _text(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        if value.strip().removesuffix("kB").strip().isdecimal():
            counts[key] = int(value.split()[0]) * 1024
    if "MemTotal" in counts:
        return counts["MemTotal"], counts.get("MemAvailable", counts.get("MemFree", 0))
    if sys.platform == "win32":
        return _windows_memory(ctypes.windll.kernel32)
    return _unix_memory()


def _unix_memory() -> tuple[int, int]:
    """Bytes of memory in all and available, where there is no /proc: macOS and others."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory, _macos_available() or memory // 2


def _macos_available() -> int:
    """Bytes of free, inactive and speculative pages as `vm_stat` counts them; 0 where it does not answer."""
    lines = _answer("/usr/bin/vm_stat").splitlines()
    wanted = ("Pages free", "Pages inactive", "Pages speculative")
    pages = [line.partition(":")[2].strip(" .") for line in lines if line.startswith(wanted)]
    return sum(int(count) for count in pages if count.isdecimal()) * os.sysconf("SC_PAGE_SIZE")


def _windows_memory(kernel: Any) -> tuple[int, int]:
    """Bytes of memory in all and available, as the library `kernel32` says."""

    class Status(ctypes.Structure):
        _fields_ = (
            [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)]
            + [(name, ctypes.c_ulonglong) for name in ("total", "available", "t1", "t2", "t3", "t4", "t5")]
        )  # fmt: skip

    status = Status(length=ctypes.sizeof(Status))
    kernel.GlobalMemoryStatusEx(ctypes.byref(status))
    return status.total, status.available


def _gpus(root: Path) -> Iterator[Gpu]:
    """NVIDIA processors by their tool, else by the driver's own files; AMD ones by theirs."""
    tool = shutil.which("nvidia-smi")
    answer = _answer(tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits") if tool else ""
    rows = [line.rpartition(",") for line in answer.splitlines()]
    found = [Gpu(name=name.strip(), memory_bytes=int(mib) << 20) for name, _, mib in rows if mib.strip().isdecimal()]
    yield from found
    if not found:
        for entry in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
            names = [line.partition(":")[2].strip() for line in _text(entry).splitlines() if line.startswith("Model")]
            yield Gpu(name=names[0] if names else "NVIDIA", memory_bytes=0)
    for entry in sorted(root.glob("sys/class/drm/card*/device/mem_info_vram_total")):
        yield Gpu(name="AMD", memory_bytes=int(_line(entry) or 0))


def _answer(*command: str) -> str:
    """What a program prints, or nothing where it is missing, fails or takes longer than 3 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3, check=True)  # noqa: S603  (fixed programs)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout.strip()


def _text(path: Path) -> str:
    """A file of the kernel's, or nothing where it is missing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _line(path: Path) -> str:
    return _text(path).strip()
