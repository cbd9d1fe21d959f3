"""Every answer ends: at its own deadline, or at that of a server which is asked to stop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from khola.errors import Busy, Late


class Deadlines:
    """The deadlines of all answers that run.

    Args:
        each_s: seconds that an answer may take.
    """

    def __init__(self, each_s: float) -> None:
        self._each_s = each_s
        self._running: set[asyncio.Timeout] = set()
        self._latest = math.inf
        self.stopping = False
        """The server ends: what is not answered in time says so."""

    @asynccontextmanager
    async def until(self, when: float) -> AsyncIterator[None]:
        """Run the block to its end, or to a moment of the event loop's clock.

        Raises:
            Late: the moment came first.
            Busy: the server stopped first.
        """
        ours = asyncio.timeout_at(min(when, self._latest))
        try:
            async with ours:
                self._running.add(ours)
                yield
        except TimeoutError:
            if not ours.expired():
                raise
            if self.stopping:
                raise Busy("the server stopped before the answer was complete", hint="ask again when it is back") from None
            raise Late("the answer took longer than {seconds} s", seconds=self._each_s) from None
        finally:
            self._running.discard(ours)

    def stop_by(self, when: float) -> None:
        """Let no running answer, and none that begins later, go on after this moment."""
        self.stopping, self._latest = True, when
        for running in self._running:
            own = running.when()
            if own is None or own > when:
                running.reschedule(when)
