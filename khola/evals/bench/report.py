"""What a benchmark found, as data: the same keys in every version that has the same `schema`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from khola.evals.bench.figures import Figure, ratio

SCHEMA = 2


SILENT = ("bytes_per_token", "operations_per_token")
"""Figures that others are worked out from, and that no table shows."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One contestant."""

    name: str
    version: str
    model: str
    """What it ran: a name or a path."""
    model_bytes: int
    """Size of these files; 0 when it is not known."""
    figures: Mapping[str, Figure]


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A peer that was asked for and is not here."""

    name: str
    message: str
    next_step: str
    """What to do to have it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is needed to read the figures, and to make them again."""

    command: Sequence[str]
    khola: str
    commit: str
    """Of the source tree that ran; empty for an installed package."""
    when: str
    """Start, ISO 8601 in UTC."""
    took_s: float
    python: str
    machine: Mapping[str, Any]
    threads: int
    rounds: int
    work: Mapping[str, Any]
    reference: str
    """Model in float32 whose distribution the others are compared with; empty when quality was not measured."""
    bandwidth: Mapping[str, Figure]
    """Bytes a second that are read from memory, by the number of threads."""
    rates: Mapping[str, float] | None
    """Operations a second of the processor's units; None when no native library is here to time them."""
    load: Sequence[float]
    """Load average before every round: what else ran."""
    stolen_share: float
    entries: Sequence[Entry]
    missing: Sequence[Missing] = field(default_factory=tuple)

    def data(self) -> dict[str, Any]:
        """Everything as plain data, with what follows from it: efficiencies, and ratios of the first entry to each other one."""
        built = asdict(self)
        for entry, plain in zip(self.entries, built["entries"], strict=True):
            plain["bandwidth_efficiency"] = self.bandwidth_efficiency(entry)
            plain["multiply_efficiency"] = self.multiply_efficiency(entry)
        first, *others = self.entries
        built["ratios"] = {other.name: ratios(first, other) for other in others}
        return {"schema": SCHEMA, **built}

    def bandwidth_efficiency(self, entry: Entry) -> float | None:
        """Bytes that decoding at depth 0 reads a second, by those that all threads can read: 1 is the wall; caches may lie beyond it."""
        speed, read = entry.figures.get("decode_0"), entry.figures.get("bytes_per_token")
        wall = self.bandwidth.get(str(self.threads))
        if speed is None or read is None or wall is None or speed.median is None or read.median is None or not wall.median:
            return None
        return speed.median * read.median / wall.median

    def multiply_efficiency(self, entry: Entry) -> float | None:
        """Operations a second on the longest prompt, by those of the fastest unit of bfloat16 or float32: 1 is the wall."""
        wall = max((rate for unit, rate in (self.rates or {}).items() if not unit.endswith("_int8")), default=0.0)
        longest = max((name for name in entry.figures if name.startswith("prefill_")), key=lambda name: int(name[8:]), default="")
        speed, work = entry.figures.get(longest), self.entries[0].figures.get("operations_per_token")
        if speed is None or work is None or speed.median is None or work.median is None or not wall:
            return None
        return speed.median * work.median / wall


def ratios(ours: Entry, theirs: Entry) -> dict[str, float]:
    """How many times better the first is, figure by figure; above 1 is better, for times and bytes too."""
    found = {name: ratio(name, mine, theirs.figures[name]) for name, mine in ours.figures.items() if name in theirs.figures}
    return {name: value for name, value in found.items() if value is not None and name not in (*SILENT, "same_token")}
