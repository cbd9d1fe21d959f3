"""The server as a process: its sockets, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import uvicorn

from khola.errors import AskedWrong
from khola.serve.app import app
from khola.serve.http.connection import connections
from khola.serve.log import Log, places
from khola.serve.service import Service

BACKLOG = 2048


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host by this name."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on exactly this address; on both loopback addresses, where the host is one of them.

    Args:
        port: 0 takes a free one.
    Raises:
        AskedWrong: the address is not this machine's, or the port is taken.
    """
    name = host.strip("[]")
    found: list[socket.socket] = []
    try:
        for family, address in _addresses(name):
            opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sends without delay only where this is told
            found.append(opened)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                opened.bind((address, port or (found[0].getsockname()[1] if len(found) > 1 else 0)))
            except OSError:
                if len(found) == 1:
                    raise
                found.pop().close()  # a machine without the second loopback address serves the first
                continue
            opened.listen(BACKLOG)
            opened.setblocking(False)
    except OSError as wrong:
        for opened in found:
            opened.close()
        raise AskedWrong(
            "cannot listen on {host}, port {port}: {why}",
            hint="another server may be there; --port takes another one, --port 0 a free one",
            host=host,
            port=port,
            why=wrong.strerror or str(wrong),
        ) from wrong
    return found


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    if host in ("localhost", "127.0.0.1"):
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(family, str(address[0])) for family, _, _, _, address in infos[:1]]


class _Server(uvicorn.Server):
    """uvicorn without its signals: it would end the process by them instead of with exit code 0."""

    def capture_signals(self) -> Any:
        """Leave the signals alone."""
        return nullcontext()


Stop = Callable[[], None]


async def serve(service: Service, sockets: Sequence[socket.socket], *, ready: Callable[[Stop], None]) -> None:
    """Answer until SIGTERM or SIGINT, then end what runs; a second signal ends it at once.

    Args:
        sockets: to listen on.
        ready: called once requests are answered, with what a signal would call.
    """
    limits = service.limits
    config = uvicorn.Config(
        app(service),
        http=cast(Any, connections(limits)),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=int(limits.drain_s) + 5,
        h11_max_incomplete_event_size=limits.header_bytes + limits.line_bytes,
    )
    server = _Server(config)
    running = asyncio.ensure_future(server.serve(list(sockets)))
    stalls = asyncio.ensure_future(service.metrics.watch())

    def stop() -> None:
        if service.deadlines.stopping:
            service.log.line("stop at once")
            running.cancel()
            return
        service.log.line("drain", running=service.admission.running)
        service.stop(limits.drain_s)
        server.should_exit = True

    with _signals(stop), gathered(service.log):
        begun = asyncio.ensure_future(_begun(server))
        await asyncio.wait({running, begun}, return_when=asyncio.FIRST_COMPLETED)
        if begun.done():
            service.log.line("ready")
            service.offline.go_on()
            ready(stop)
        await asyncio.wait({running})
        begun.cancel()
        stalls.cancel()
        cut = set(server.server_state.tasks)
        for task in cut:
            task.cancel()
        if cut:
            await asyncio.wait(cut)
        await service.tapes.close()
        await service.close()
        await service.backend.close(0.0 if running.cancelled() else limits.drain_s)
    service.log.line("stopped", cut=len(cut))
    if not running.cancelled():
        running.result()


async def _begun(server: uvicorn.Server) -> None:
    while not server.started:
        await asyncio.sleep(0.01)


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """Let both signals that ask a program to end call a function."""
    loop = asyncio.get_running_loop()
    asked = (signal.SIGTERM, signal.SIGINT)
    for number in asked:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in asked:
            loop.remove_signal_handler(number)


class _Lines(logging.Handler):
    """What libraries say, as lines of the log: who and how grave, and of an exception where it came from; never their words."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        wrong = record.exc_info[1] if record.exc_info else None
        kind, at = (type(wrong).__name__, " < ".join(places(wrong))) if wrong is not None else (None, None)
        self._log.line("library", name=record.name, level=record.levelname, place=f"{record.filename}:{record.lineno}", error=kind, at=at)


@contextmanager
def gathered(log: Log) -> Iterator[None]:
    """Have the libraries that serve write into the server's log."""
    lines, names = _Lines(log), ("uvicorn.error", "asyncio")
    for name in names:
        logging.getLogger(name).addHandler(lines)
        logging.getLogger(name).propagate = False
    try:
        yield
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(lines)
            logging.getLogger(name).propagate = True
