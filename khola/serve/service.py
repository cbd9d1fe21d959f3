"""What every dialect is given: the backend, the settings, the limits, and the clock."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from khola.serve.backend import Backend
from khola.serve.limits import Limits
from khola.settings import Settings


@dataclass(kw_only=True)
class Service:
    """One server; nothing about a request is kept here."""

    backend: Backend
    settings: Settings
    limits: Limits = field(default_factory=Limits)
    raw_utf8: bool = False
    """Write other letters than ASCII as they are, instead of escaped, which no split of bytes can harm."""
    clock: Callable[[], float] = time.time
    """Seconds since 1970."""
    number: Callable[[], str] = lambda: secrets.token_hex(12)
    """Ends the ids of answers: 24 hexadecimal digits that nobody can guess."""
