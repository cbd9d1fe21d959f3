"""The history as handlers ask it: whose rows, opened when it is first needed, and never on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Lock
from typing import Concatenate, ParamSpec, TypeVar, final

from starlette.requests import Request

from khola.serve.history import History
from khola.serve.operation import caller
from khola.serve.service import Service

P = ParamSpec("P")
T = TypeVar("T")


OWN = "local"
"""Owner of what is kept for the user of this machine."""


@final
class Kept:
    """The file below a server's home folder."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._history: History | None = None
        self._lock = Lock()

    def owner(self, request: Request) -> str:
        """Whose rows a request sees. The key that a server makes for its own page is another one after every start, so it is the user."""
        name = caller(request).name
        return OWN if name == self._service.guard.page_key.split("_")[1] else name

    def history(self) -> History:
        """The opened file.

        Raises:
            BadFiles: it is damaged, or a newer khola wrote it.
        """
        with self._lock:
            if self._history is None:
                self._history = History(self._service.settings.home / "page.sqlite3", self._service.clock)
            return self._history

    async def ask(self, method: Callable[Concatenate[History, P], T], *args: P.args, **more: P.kwargs) -> T:
        """What a method of `History` answers, computed in a thread."""
        return await asyncio.to_thread(lambda: method(self.history(), *args, **more))
