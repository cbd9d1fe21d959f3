"""A web server on this machine that can misbehave in every way a real one does, and writes down what it was asked."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """One address and how it answers."""

    data: bytes = b""
    etag: str = '"v1"'
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    length: int | None = None
    """Content-Length to claim instead of the true one; negative sends none."""
    cuts: list[int] = field(default_factory=list)
    """Body bytes after which the connection breaks, one for each of the next requests."""
    failures: list[int] = field(default_factory=list)
    """Statuses of the next requests."""
    block_s: float = 0.0
    """Pause after each block of 256 KiB."""
    gate: threading.Event | None = None
    """Waited for after the first block."""


class Server:
    """Addresses, and a record of all requests."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.other_url = f"http://localhost:{port}"
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent: dict[str, int] = {}
        self.lock = threading.Lock()

    def asked(self, path: str) -> list[dict[str, str]]:
        """Headers of every request for a path."""
        return [headers for where, headers in self.requests if where == path]


@contextmanager
def serving() -> Iterator[Server]:
    """A running server."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.daemon_threads = True
    http.known = Server(http.server_address[1])  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield http.known  # type: ignore[attr-defined]
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer as the address was told to."""
        known: Server = self.server.known  # type: ignore[attr-defined]
        with known.lock:
            known.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            served = known.files.get(self.path, Served(status=404))
            status = served.failures.pop(0) if served.failures else served.status
            cut = served.cuts.pop(0) if served.cuts else None
        start = self._start(served)
        if status == 200 and start is not None:
            status = 206 if start < len(served.data) else 416
        body = served.data[start or 0 :] if status in (200, 206) else b""
        self.send_response(status)
        if served.etag:
            self.send_header("ETag", served.etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(served.data) - 1}/{len(served.data)}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(served.data)}")
        for name, value in served.headers.items():
            self.send_header(name, value)
        claimed = len(body) if served.length is None else served.length
        if claimed >= 0:
            self.send_header("Content-Length", str(claimed))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self._send(known, body if cut is None else body[:cut], served)

    def _start(self, served: Served) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        fits = self.headers.get("If-Range", served.etag) == served.etag
        return int(match.group(1)) if match and fits and served.ranges else None

    def _send(self, known: Server, body: bytes, served: Served) -> None:
        size = 256 << 10
        for place in range(0, len(body), size):
            block = body[place : place + size]
            # Counted before it goes out: whoever has all of it may look at once.
            with known.lock:
                known.sent[self.path] = known.sent.get(self.path, 0) + len(block)
            try:
                self.wfile.write(block)
            except OSError:
                with known.lock:
                    known.sent[self.path] -= len(block)
                return
            if served.block_s:
                time.sleep(served.block_s)
            if served.gate is not None:
                served.gate.wait(60)
