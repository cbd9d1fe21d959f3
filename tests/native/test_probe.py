"""What the machine probe reads from the kernel's files, and what it measures here."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from pathlib import Path

import pytest

from khola.native.probe import free_disk, instruction_sets, probe, read_bandwidth, usable_cores, usable_memory

GIB = 1 << 30


def system(root: Path, files: dict[str, str]) -> Path:
    """A made-up /proc and /sys."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMORY = "MemTotal:       16777216 kB\nMemFree:          100 kB\nMemAvailable:    8388608 kB\nHugePages_Total:  0\n"


def test_memory_without_limits_is_that_of_the_machine(tmp_path: Path) -> None:
    root = system(tmp_path, {"proc/meminfo": MEMORY, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"})
    assert usable_memory(root) == (16 * GIB, 8 * GIB)


def test_version_2_groups_limit_memory_at_every_level(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        {
            "proc/meminfo": MEMORY,
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max",
            "sys/fs/cgroup/outer/inner/memory.current": str(GIB),
            "sys/fs/cgroup/outer/memory.max": str(4 * GIB),
            "sys/fs/cgroup/outer/memory.current": str(3 * GIB),
            "sys/fs/cgroup/outer/memory.stat": f"anon 5\ninactive_file {GIB // 2}\nactive_file 7\n",
        },
    )
    # Cached files can be dropped, so half a gibibyte of the three that are used counts as free.
    assert usable_memory(root) == (4 * GIB, 3 * GIB // 2)


def test_version_1_groups_limit_memory_and_cores(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        {
            "proc/meminfo": MEMORY,
            "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box\n0::/\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(2 * GIB),
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(GIB),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(5 * GIB),
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
        },
    )
    assert usable_memory(root) == (2 * GIB, GIB)
    assert usable_cores(root) == 1


@pytest.mark.parametrize(
    ("share", "cores"), [("max 100000", None), ("50000 100000", 1), ("100000 100000", 1), ("garbage", None), ("", None)]
)
def test_processor_share_of_version_2_groups(tmp_path: Path, share: str, cores: int | None) -> None:
    root = system(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": share})
    assert usable_cores(root) == (cores or usable_cores(tmp_path / "nothing"))


def test_cores_follow_affinity() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("line", "sets"),
    [
        ("flags\t\t: fpu sse4_2 avx2 fma nonsense amx_int8", ("sse4_2", "fma", "avx2", "amx_int8")),
        ("Features\t: fp asimd evtstrm asimddp", ("asimd", "asimddp")),
        ("model name : Some processor", ()),
    ],
)
def test_instruction_sets_of_both_kinds_of_processors(tmp_path: Path, line: str, sets: tuple[str, ...]) -> None:
    assert instruction_sets(system(tmp_path, {"proc/cpuinfo": f"processor\t: 0\n{line}\n\n"})) == sets


def test_gpus_without_their_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    root = system(
        tmp_path / "root",
        {
            "proc/meminfo": MEMORY,
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA Some\nIRQ:   1\n",
            "sys/class/drm/card0/device/mem_info_vram_total": "17163091968\n",
        },
    )
    gpus = probe(tmp_path, measure=False, root=root).gpus
    assert [(gpu.name, gpu.memory_bytes) for gpu in gpus] == [("NVIDIA Some", 0), ("AMD", 17163091968)]


@pytest.mark.parametrize("answer", ["Card A, 81559\nCard B, 24576", "No devices were found", "\xff"])
def test_gpus_by_their_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '%s' '{answer}'\n", encoding="latin-1")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    gpus = probe(tmp_path, measure=False, root=tmp_path if answer.isascii() and "," not in answer else Path("/")).gpus
    expected = [("Card A", 81559 << 20), ("Card B", 24576 << 20)] if "Card" in answer else []
    assert [(gpu.name, gpu.memory_bytes) for gpu in gpus] == expected


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") > 0


def test_probe_here_is_quick_plausible_and_plain_data() -> None:
    threads = threading.active_count()
    took = []
    for _ in range(3):
        began = time.process_time()
        machine = probe()
        took.append(time.process_time() - began)
    assert min(took) < 2, "seconds of processor time, three times: what else runs here counts little"
    assert threading.active_count() == threads
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert 0 < machine.available_bytes <= machine.memory_bytes
    assert 1e8 < machine.read_bytes_s < 1e13
    assert machine.cpu
    assert json.loads(json.dumps(dataclasses.asdict(machine)))["cores"] == machine.cores


def test_bandwidth_of_more_threads_than_cores_ends() -> None:
    assert read_bandwidth(5, 1 << 20) > 0
