"""How far a long copy or download is: bytes, speed over a moving window, seconds left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, final

Stage = Literal["fetch", "check", "join", "copy", "quantise", "merge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One look at a transfer."""

    file: str
    stage: Stage
    done: int
    """Bytes that are here."""
    total: int
    """Bytes in all; 0 while nobody has said."""
    speed: float
    """Bytes a second over the last seconds."""
    left_s: float | None
    """Seconds until the end at this speed; None when it cannot be known."""


@final
@dataclass(kw_only=True)
class Meter:
    """Counts bytes and tells of them, at most ten times a second."""

    file: str
    stage: Stage = "fetch"
    total: int = 0
    done: int = 0
    tell: Callable[[Progress], None] | None = None
    clock: Callable[[], float] = time.monotonic
    window_s: float = 8.0
    every_s: float = 0.1
    _seen: deque[tuple[float, int]] = field(default_factory=deque)
    _told: float = float("-inf")

    def start(self, stage: Stage, done: int, total: int) -> None:
        """Begin a stage at `done` bytes; the speed starts anew."""
        self.stage, self.done, self.total = stage, done, total
        self._seen.clear()
        self._seen.append((self.clock(), done))
        self._tell(force=True)

    def add(self, num_bytes: int) -> None:
        """Count bytes that arrived."""
        self.done += num_bytes
        now = self.clock()
        if not self._seen or now - self._seen[-1][0] >= self.every_s:
            self._seen.append((now, self.done))
            while len(self._seen) > 2 and now - self._seen[0][0] > self.window_s:
                self._seen.popleft()
        self._tell()

    def end(self) -> None:
        """Tell the last state, however recently another was told."""
        self._tell(force=True)

    def look(self) -> Progress:
        """The state now."""
        now = self.clock()
        began, before = self._seen[0] if self._seen else (now, self.done)
        speed = (self.done - before) / (now - began) if now > began else 0.0
        left_s = (self.total - self.done) / speed if speed > 0 and self.total >= self.done else None
        return Progress(file=self.file, stage=self.stage, done=self.done, total=self.total, speed=speed, left_s=left_s)

    def _tell(self, force: bool = False) -> None:
        if self.tell is not None and (force or self.clock() - self._told >= self.every_s):
            self._told = self.clock()
            self.tell(self.look())


def unheard(text: str, **facts: Any) -> None:
    """Takes sentences that nobody wants to hear."""


def size_text(num_bytes: int) -> str:
    """A number of bytes for people, in decimal units: "98.4 MB"."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    size, units = float(num_bytes), ("kB", "MB", "GB", "TB")
    for unit in units:
        size /= 1000
        if size < 999.95 or unit == units[-1]:
            return f"{size:.1f} {unit}"
    raise AssertionError
