"""How much is taken on at once; what is more is refused at once, so that what was taken on is answered in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from khola.errors import Busy, TooMany
from khola.serve.access.limits import Limits
from khola.serve.operation import Caller


class Admission:
    """Counts requests that make a model work, from the last byte of each to the last of its answer."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: Counter[str] = Counter()
        self.running = 0
        """Of all callers."""
        self.closed = False
        """Take on nothing more: the server is about to stop."""

    def most(self, caller: Caller) -> int:
        """How many requests of a caller may wait or run."""
        return (caller.quota.at_once if caller.quota is not None else None) or self._limits.in_flight

    def check(self, caller: Caller) -> None:
        """Refuse at once what would find no place.

        Raises:
            TooMany: the caller, or all together, have as many as there may be.
            Busy: the server is about to stop.
        """
        if self.closed:
            raise Busy("the server is stopping", retry_after=10)
        if self.running >= self._limits.queue:
            raise TooMany("{count} requests wait or run; more are not taken on", count=self.running, retry_after=2)
        if self._of[caller.name] >= self.most(caller) and caller.tenant:
            raise TooMany("{count} of your requests wait or run; more are not taken on", count=self._of[caller.name], retry_after=1)

    @contextmanager
    def place(self, caller: Caller) -> Iterator[None]:
        """A place for one request; errors as in `check`."""
        self.check(caller)
        self.running += 1
        self._of[caller.name] += 1
        try:
            yield
        finally:
            self.running -= 1
            self._of[caller.name] -= 1
            if not self._of[caller.name]:
                del self._of[caller.name]
