"""The history as handlers ask it: opened when it is first needed, and never on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Concatenate, ParamSpec, TypeVar, final

from khola.serve.history import History

P = ParamSpec("P")
T = TypeVar("T")


@final
class Kept:
    """The file below a home folder."""

    def __init__(self, home: Path, clock: Callable[[], float]) -> None:
        self._path = home / "page.sqlite3"
        self._clock = clock
        self._history: History | None = None
        self._lock = Lock()

    def history(self) -> History:
        """The opened file.

        Raises:
            BadFiles: it is damaged, or a newer khola wrote it.
        """
        with self._lock:
            if self._history is None:
                self._history = History(self._path, self._clock)
            return self._history

    async def ask(self, method: Callable[Concatenate[History, P], T], *args: P.args, **more: P.kwargs) -> T:
        """What a method of `History` answers, computed in a thread."""
        return await asyncio.to_thread(lambda: method(self.history(), *args, **more))
