"""One TCP connection: how many there may be, and how long a request may take to say what it wants.

uvicorn reads HTTP; it waits for ever for the headers of a connection's first request, so this stands before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from khola.serve.access.limits import Limits

PART = 16 << 10
"""Bytes that are read at once: so many chunks of one byte are taken apart in some milliseconds, and then others have their turn."""


def connections(limits: Limits) -> Callable[..., asyncio.BufferedProtocol]:
    """What makes a connection for uvicorn, with one count for all of them."""
    return partial(Connection, limits, set())


class Connection(asyncio.BufferedProtocol):
    """Hands everything on to uvicorn's protocol, and hangs up on whoever is too slow.

    Args:
        limits: of the server.
        others: all connections that are open.
        uvicorns: arguments of uvicorn's protocol.
    """

    def __init__(self, limits: Limits, others: set[Connection], **uvicorns: Any) -> None:
        self._limits = limits
        self._others = others
        self._http = H11Protocol(**uvicorns)
        self._timer: asyncio.TimerHandle | None = None
        self._part = bytearray(PART)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or hang up where there are too many."""
        assert isinstance(transport, asyncio.Transport)
        self._others.add(self)
        self._http.connection_made(transport)
        if len(self._others) > self._limits.connections:
            transport.abort()
            return
        self._wait_for_headers()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where the next bytes go."""
        return self._part

    def buffer_updated(self, nbytes: int) -> None:
        """Hand bytes on; where they are not whole headers yet, time runs on."""
        self._http.data_received(bytes(self._part[:nbytes]))
        if self._http.cycle is not None and not self._http.cycle.response_complete:
            self._stop_waiting()
        elif self._timer is None:
            self._wait_for_headers()

    def eof_received(self) -> None:
        """The client sends nothing more; it may still read."""
        self._http.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._stop_waiting()
        self._others.discard(self)
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._http.resume_writing()

    def _wait_for_headers(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._limits.header_s, self._http.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
