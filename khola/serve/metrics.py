"""Counters and levels in the text format that Prometheus reads.

A writer of our own: the format is a page long, and the usual library keeps its counters in a global registry. Labels are routes as they
are written in the code, methods, statuses, error codes and names of offered models: nothing that a client can make up.

Source   https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4)
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
STALLS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
KIND = "text/plain; version=0.0.4; charset=utf-8"
LEVELS = frozenset(
    ("running", "waiting", "pages", "pages_used", "pages_kept", "states_used", "states_kept", "cache_bytes", "memory_bytes", "load_s")
)
"""Figures of an engine that go up and down; the others only grow."""

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """How many values lay below each bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: Labels) -> Iterable[str]:
        """As Prometheus reads it."""
        below = 0
        for bound, count in zip((*self._bounds, None), self._counts, strict=True):
            below += count
            yield _line(f"{name}_bucket", (*labels, ("le", "+Inf" if bound is None else f"{bound:g}")), below)
        yield _line(f"{name}_sum", labels, self._sum)
        yield _line(f"{name}_count", labels, below)


class Metrics:
    """What the server has seen."""

    def __init__(self) -> None:
        self._requests: Counter[Labels] = Counter()
        self._seconds: defaultdict[Labels, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self._errors: Counter[Labels] = Counter()
        self._stalls = Histogram(STALLS)
        self.longest_stall_s = 0.0
        """Since the server began."""
        self.sent_bytes = 0

    def answered(self, route: str, method: str, status: int, seconds: float, sent_bytes: int) -> None:
        """Count a request that has ended.

        Args:
            route: the path as its operation writes it; empty for an address that is not there.
            status: 0 when the client left before an answer began.
        """
        self._requests[(("route", route), ("method", method), ("status", str(status)))] += 1
        self._seconds[(("route", route),)].add(seconds)
        self.sent_bytes += sent_bytes

    def refused(self, code: str) -> None:
        """Count an error by its code."""
        self._errors[(("code", code),)] += 1

    async def watch(self, every_s: float = 0.05) -> None:
        """Measure for ever how late the event loop comes back to a task that sleeps: how long something else held it."""
        loop = asyncio.get_running_loop()
        while True:
            wanted = loop.time() + every_s
            await asyncio.sleep(every_s)
            self.stalled(loop.time() - wanted)

    def stalled(self, seconds: float) -> None:
        """Count one lateness of the event loop."""
        self._stalls.add(max(0.0, seconds))
        self.longest_stall_s = max(self.longest_stall_s, seconds)

    def text(self, levels: Mapping[str, float], engines: Mapping[str, Mapping[str, float]]) -> str:
        """Everything, as Prometheus reads it.

        Args:
            levels: of the server now, by name.
            engines: figures of each loaded model, as `khola.serve.backend.Backend.figures` tells them.
        """
        lines = ["# TYPE khola_requests_total counter"]
        lines += [_line("khola_requests_total", labels, count) for labels, count in sorted(self._requests.items())]
        lines.append("# TYPE khola_request_seconds histogram")
        for labels, histogram in sorted(self._seconds.items()):
            lines += histogram.lines("khola_request_seconds", labels)
        lines.append("# TYPE khola_errors_total counter")
        lines += [_line("khola_errors_total", labels, count) for labels, count in sorted(self._errors.items())]
        lines += ["# TYPE khola_sent_bytes_total counter", _line("khola_sent_bytes_total", (), self.sent_bytes)]
        lines += ["# TYPE khola_loop_stall_seconds histogram", *self._stalls.lines("khola_loop_stall_seconds", ())]
        for name, level in {**levels, "loop_stall_longest_seconds": self.longest_stall_s}.items():
            lines += [f"# TYPE khola_{name} gauge", _line(f"khola_{name}", (), level)]
        for name in sorted({name for figures in engines.values() for name in figures}):
            metric = f"khola_engine_{name}" if name in LEVELS else f"khola_engine_{name}_total"
            lines.append(f"# TYPE {metric} {'gauge' if name in LEVELS else 'counter'}")
            lines += [_line(metric, (("model", model),), figures[name]) for model, figures in engines.items() if name in figures]
        return "\n".join(lines) + "\n"


def _line(name: str, labels: Labels, value: float) -> str:
    told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"{name}{{{told}}} {value:.10g}" if told else f"{name} {value:.10g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
