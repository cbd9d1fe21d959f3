"""The machine while it is measured: what it is, how fast it reads memory and multiplies, and how much of it others took."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from khola.errors import NoKernel
from khola.evals.bench.figures import Figure, figure
from khola.native import rates
from khola.native.probe import Machine, probe, read_bandwidth


@dataclass(kw_only=True)
class Watch:
    """Looks at the machine before every round, so that its figures swing as those of the contestants do."""

    threads: int
    root: Path = Path("/")
    reads: dict[int, list[float]] = field(default_factory=dict)
    """Bytes a second that one thread and all threads read, by the number of threads."""
    busy: list[float] = field(default_factory=list)
    """Load averages of the last minute, where the system tells them."""
    began: tuple[int, int] = (0, 0)

    def look(self) -> None:
        """Measure once; takes about a quarter of a second."""
        if not self.busy:
            self.began = processor_times(self.root)
        self.busy.append(os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0)
        for threads in sorted({1, self.threads}):
            self.reads.setdefault(threads, []).append(read_bandwidth(threads))

    def bandwidth(self) -> dict[str, Figure]:
        """Median and spread of each bandwidth, by the number of threads."""
        return {str(threads): _figure(values) for threads, values in sorted(self.reads.items())}

    def stolen_share(self) -> float:
        """Share of processor time since the first look that a hypervisor gave to other machines, 0 to 1."""
        stolen, total = processor_times(self.root)
        return (stolen - self.began[0]) / (total - self.began[1]) if total > self.began[1] else 0.0


def facts_of(machine: Machine) -> dict[str, Any]:
    """What is said of the machine in a report."""
    return {
        "cpu": machine.cpu,
        "architecture": machine.architecture,
        "system": machine.system,
        "cores": machine.cores,
        "instruction_sets": list(machine.instruction_sets),
        "memory_bytes": machine.memory_bytes,
    }


def described() -> Machine:
    """This machine, without a measurement."""
    return probe(measure=False)


def multiply_rates(threads: int) -> dict[str, float] | None:
    """Operations a second of each unit that the native library can time ("amx_int8", "avx512_bf16", …); None without it."""
    try:
        return rates.multiply_rates(threads)
    except NoKernel:
        return None


def processor_times(root: Path = Path("/")) -> tuple[int, int]:
    """Stolen and all ticks of all processors since the system started; zeros where /proc does not say. Source: proc(5)."""
    try:
        ticks = [int(count) for count in (root / "proc/stat").read_text(encoding="ascii").partition("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else (0, 0)


def _figure(values: list[float]) -> Figure:
    from khola.api.bench import Reading

    found = figure("bandwidth", [Reading("bandwidth", value) for value in values])
    return Figure(unit="bytes/s", median=found.median, low=found.low, high=found.high, values=found.values)
