"""Figures of a benchmark: their names and units, and what repeated readings of one say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from khola.api.bench import Reading, Work

GROUPS = ("prefill", "decode", "streams", "start", "quality")
"""Figures that one process measures one after another."""

ONCE = ("quality",)
"""Groups whose figures do not swing with the machine's load: one round is enough."""

UNITS = {
    "prefill": "tokens/s", "decode": "tokens/s", "streams": "tokens/s", "start_s": "s", "memory_bytes": "bytes", "perplexity": "",
    "kl": "nats/token", "same_token": "share", "bytes_per_token": "bytes", "operations_per_token": "",
}  # fmt: skip
LESS_IS_BETTER = ("start_s", "memory_bytes", "perplexity", "kl")


def unit_of(name: str) -> str:
    """Unit of a figure."""
    return UNITS.get(name) or UNITS.get(name.partition("_")[0], "")


def names_of(group: str, work: Work) -> tuple[str, ...]:
    """Names of the figures of a group."""
    if group == "start":
        return ("start_s", "memory_bytes")
    if group == "quality":
        return ("perplexity", "kl", "same_token")
    sizes: Sequence[int] = {"prefill": work.prefill, "decode": work.decode, "streams": work.streams}[group]
    return tuple(f"{group}_{size}" for size in sizes)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What several readings say together."""

    unit: str
    median: float | None
    """None when there is no reading."""
    low: float | None
    high: float | None
    values: tuple[float, ...] = ()
    """Every reading, in the order of the rounds."""
    reason: str = ""
    """Why there is none: "context", "too_long", "unsupported", "failed"."""
    detail: str = field(default="", compare=False)
    """What a failed program said."""


def figure(name: str, readings: Iterable[Reading], detail: str = "") -> Figure:
    """Median and spread of the readings of one figure; the reason of the last missing one when all are missing."""
    found = list(readings)
    values = tuple(reading.value for reading in found if reading.value is not None)
    unit = unit_of(name)
    if not values:
        reason = found[-1].reason if found else "unsupported"
        return Figure(unit=unit, median=None, low=None, high=None, reason=reason, detail=detail if reason == "failed" else "")
    return Figure(unit=unit, median=median(values), low=min(values), high=max(values), values=values)


def ratio(name: str, ours: Figure, theirs: Figure) -> float | None:
    """How many times better the first is: above 1 is better, for times and bytes too; None when one is missing.

    Rounds are compared pairwise, because the machine's speed changes from round to round; without pairs, the medians are.
    """
    pairs = list(zip(ours.values, theirs.values, strict=False)) if len(ours.values) == len(theirs.values) else []
    if not pairs and ours.median is not None and theirs.median is not None:
        pairs = [(ours.median, theirs.median)]
    quotients = [(b / a if name in LESS_IS_BETTER else a / b) for a, b in pairs if a > 0 and b > 0]
    return median(quotients) if quotients else None
