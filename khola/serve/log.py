"""The server's log: a line of JSON for every request and every event, and in none of them what was asked or answered.

Of an exception only its kind and the places of its traceback are written: its text may be a piece of a prompt.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO


class Log:
    """Writes lines; everything that is not ASCII is escaped, so nothing in them can forge another line or move a terminal.

    Args:
        out: where to; None drops them.
        clock: seconds since 1970.
    """

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.time) -> None:
        self._out = out
        self._clock = clock

    def line(self, event: str, **facts: str | int | float | None) -> None:
        """Write one line; facts that are None are left out."""
        if self._out is None:
            return
        now = self._clock()
        told = {"time": round(now, 3), "event": event, **{name: fact for name, fact in facts.items() if fact is not None}}
        self._out.write(json.dumps(told, separators=(",", ":")) + "\n")
        self._out.flush()

    def failure(self, event: str, wrong: BaseException, **facts: str | int | float | None) -> None:
        """Write one line about an exception: its kind and where it came from."""
        self.line(event, error=type(wrong).__name__, at=" < ".join(places(wrong)), **facts)


def places(wrong: BaseException, most: int = 12) -> list[str]:
    """File, line and function of each frame of a traceback, the innermost first."""
    frames = traceback.extract_tb(wrong.__traceback__)
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)][:most]


def opened(path: Path) -> TextIO:
    """A file for lines, which only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=True)
    return path.open("a", encoding="ascii")
