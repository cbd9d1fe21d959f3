"""What every dialect is given: the backend, the settings, the limits, and the clock."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from khola.serve.access.admission import Admission
from khola.serve.access.deadlines import Deadlines
from khola.serve.access.guard import Guard
from khola.serve.access.limits import Limits
from khola.serve.access.metered import Metered
from khola.serve.access.quota import Account, Accounts
from khola.serve.backend import Backend
from khola.serve.http.resume import Tapes
from khola.serve.kept.database import Lazy, T
from khola.serve.kept.offline import Offline
from khola.serve.log import Log
from khola.serve.metrics import Metrics
from khola.serve.operation import Caller, Operation
from khola.settings import Settings


@dataclass(kw_only=True)
class Service:
    """One server; nothing about a request is kept here but streams that asked for it."""

    backend: Backend
    settings: Settings
    limits: Limits = field(default_factory=Limits)
    guard: Guard = field(default_factory=Guard)
    log: Log = field(default_factory=Log)
    metrics: Metrics = field(default_factory=Metrics)
    operations: tuple[Operation, ...] = ()
    """Everything that its application offers."""
    raw_utf8: bool = False
    """Write other letters than ASCII as they are, instead of escaped, which no split of bytes can harm."""
    clock: Callable[[], float] = time.time
    """Seconds since 1970."""
    number: Callable[[], str] = lambda: secrets.token_hex(12)
    """Ends the ids of answers: 24 hexadecimal digits that nobody can guess."""
    tapes: Tapes = field(default_factory=Tapes)
    """Streams that outlive their connection."""

    stores: list[Lazy[Any]] = field(default_factory=list, init=False)
    """Everything that it keeps."""

    def __post_init__(self) -> None:
        self.accounts = Accounts()
        self.backend = Metered(self.backend, self.accounts, self.clock)
        self.deadlines = Deadlines(self.limits.deadline_s)
        self.admission = Admission(self.limits)
        self.offline = Offline(self)

    def store(self, file: str, make: Callable[[Path], T]) -> Lazy[T]:
        """What is kept in a file of this name below the home folder; closed with the server."""
        made = Lazy(self.settings.home / file, make)
        self.stores.append(made)
        return made

    async def close(self) -> None:
        """Stop the work that nobody waits for, and let the files go."""
        await self.offline.close()
        for store in self.stores:
            await store.close()

    def account(self, caller: Caller) -> Account | None:
        """Where what a caller uses is written down; None where it has no bounds."""
        return self.accounts.open(caller.tenant, caller.quota, self.clock())

    def stop(self, grace_s: float) -> None:
        """Take on nothing more, and let what runs end within so many seconds."""
        self.admission.closed = True
        self.deadlines.stop_by(asyncio.get_running_loop().time() + grace_s)
