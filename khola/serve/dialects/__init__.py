"""Knows: what the clients of others say and expect to hear, one module a dialect.

Does not know: sockets, keys and limits; models other than by a `Backend`.

A dialect is a module or package here with `PREFIXES`, `operations(service)` and `error_body(error, request_id)`; see `Dialect`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Protocol, cast

from khola.errors import KholaError
from khola.serve.operation import Operation
from khola.serve.service import Service


class Dialect(Protocol):
    """What the module of a dialect has."""

    PREFIXES: tuple[str, ...]
    """Paths below which errors have its shape; the longest prefix of all dialects wins."""

    @staticmethod
    def operations(service: Service) -> list[Operation]:
        """Everything it offers."""

    @staticmethod
    def error_body(error: KholaError, request_id: str) -> dict[str, Any]:
        """An error as its clients read it."""


def dialects() -> Iterator[Dialect]:
    """Every dialect, by the files of this folder."""
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
        yield cast(Dialect, import_module(f"{__name__}.{module.name}"))
