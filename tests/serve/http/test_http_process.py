"""The server as a process and its sockets: signals, slow clients, who can reach it. P18, P19 and P23 of the promises."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from khola.errors import AskedWrong
from khola.serve.access.limits import Limits
from khola.serve.app import App
from khola.serve.engines.echo import Echo
from khola.serve.run import Stop, is_loopback, listen, serve
from khola.serve.service import Service
from tests.serve.http.ask import offered, service_of

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(body: bytes, extra: bytes = b"") -> bytes:
    """A request to the parrot."""
    head = b"POST /parrot HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    return head + str(len(body)).encode() + b"\r\n" + extra + b"\r\n" + body


def served(service: Service, client: Callable[[int], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a client against a server that listens on a free port; the server must end when it is told to."""
    monkeypatch.setattr("khola.serve.run.app", lambda service: App(service, offered()))
    sockets = listen("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]

    async def both() -> Any:
        stop: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        server = asyncio.ensure_future(serve(service, sockets, ready=stop.set_result))
        asked_to_stop = await stop
        try:
            return await client(port)
        finally:
            asked_to_stop()
            await asyncio.wait_for(server, 10.0)

    try:
        return asyncio.run(both())
    finally:
        for opened in sockets:
            opened.close()


async def talk(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back for some bytes, to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), 10.0)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def test_slow_and_broken_clients_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """P19 in small, and what cannot be HTTP: each connection ends at its limit, and a good client is answered meanwhile."""
    limits = Limits(header_s=0.15, body_grace_s=0.15, reader_s=0.15, connections=8)
    echo = Echo()

    async def client(port: int) -> dict[str, bytes]:
        slow = {
            "silence": talk(port),
            "slow headers": talk(port, *[GET[at : at + 1] for at in range(20)], pause_s=0.02),
            "slow body": talk(port, post(b"x" * 1000)[:-990], pause_s=0.0),
            "two lengths": talk(port, GET[:-2] + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            "length and chunks": talk(port, post(b"{}", b"Transfer-Encoding: chunked\r\n")),
            "no http": talk(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10),
        }
        waiting = [asyncio.ensure_future(one) for one in slow.values()]
        await asyncio.sleep(0.05)
        assert b" 200 OK" in (await talk(port, GET[:-2] + b"Connection: close\r\n\r\n"))
        return dict(zip(slow, await asyncio.gather(*waiting), strict=True))

    found = served(service_of(backend=echo, limits=limits), client, monkeypatch)
    assert found["silence"] == found["slow headers"] == b""
    assert found["slow body"].startswith(b"HTTP/1.1 408 ")
    assert found["two lengths"].startswith(b"HTTP/1.1 400 ")
    assert found["length and chunks"].startswith(b"HTTP/1.1 400 ")
    assert found["no http"].startswith(b"HTTP/1.1 400 ")


def test_slow_bodies_hold_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """P19: as many clients as there are places, who send next to nothing, leave all places to others."""
    limits = Limits(queue=2, body_grace_s=1.0)

    async def client(port: int) -> tuple[bytes, list[bytes]]:
        slow = [asyncio.ensure_future(talk(port, post(b"x" * 1000)[:-990])) for _ in range(3)]
        await asyncio.sleep(0.1)
        good = await talk(port, post(b'{"prompt":"hello"}', b"Connection: close\r\n"))
        return good, await asyncio.gather(*slow)

    good, slow = served(service_of(limits=limits), client, monkeypatch)
    assert good.startswith(b"HTTP/1.1 200 "), good
    assert [answer[:13] for answer in slow] == [b"HTTP/1.1 408 "] * 3


def test_a_reader_that_stalls_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    echo = Echo()

    async def client(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(post(json.dumps({"prompt": ("x" * 40_000 + " ") * 90, "stream": True}).encode()))
        while not echo.running:
            await asyncio.sleep(0.01)
        end = time.monotonic() + 5.0
        while echo.running and time.monotonic() < end:
            await asyncio.sleep(0.02)
        writer.close()

    served(service_of(backend=echo, limits=Limits(reader_s=0.2)), client, monkeypatch)
    assert not echo.running


def test_a_body_in_very_many_chunks_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """B12: chunks of one byte, and one that says it is larger than any number."""
    head = GET.replace(b"GET /health", b"POST /parrot")[:-2] + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = json.dumps({"prompt": "a" * 100_000}).encode()
    service = service_of()

    async def client(port: int) -> list[bytes]:
        many = head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n" + GET[:-2] + b"Connection: close\r\n\r\n"
        return [await talk(port, many), await talk(port, head + b"f" * 30 + b"\r\n{}")]

    many, large = served(service, client, monkeypatch)
    assert many.startswith(b"HTTP/1.1 200 ")
    assert b"a" * 100_000 in many
    assert large.startswith(b"HTTP/1.1 400 ") or large == b""


def test_there_are_no_more_connections_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    async def client(port: int) -> list[bytes]:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        await asyncio.sleep(0.02)
        refused = await talk(port, GET)
        for _, writer in idle:
            writer.close()
        await asyncio.sleep(0.02)
        return [refused, await talk(port, GET[:-2] + b"Connection: close\r\n\r\n")]

    refused, answered = served(service_of(limits=Limits(connections=4)), client, monkeypatch)
    assert refused == b""
    assert answered.startswith(b"HTTP/1.1 200 ")


def test_headers_may_come_in_parts_and_requests_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def client(port: int) -> bytes:
        return await talk(port, GET[:10], GET[10:], GET, GET[:-2] + b"Connection: close\r\n\r\n", pause_s=0.01)

    assert served(service_of(limits=Limits(header_s=0.5)), client, monkeypatch).count(b'{"status":"ok"}') == 3


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("127.8.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("box.lan", False),
    ],
)
def test_which_addresses_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_taken_port_is_told() -> None:
    (first, *others) = listen("127.0.0.1", 0)
    with first, pytest.raises(AskedWrong, match="cannot listen"):
        listen("127.0.0.1", first.getsockname()[1])
    for other in others:
        other.close()


@contextmanager
def process(home: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`khola serve --engine echo` on a free port, and what it says of itself."""
    environment = {**os.environ, "KHOLA_HOME": str(home), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "khola", "serve", "--engine", "echo", "--port", "0", "--json", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as started:
        assert started.stdout is not None
        try:
            yield started, json.loads(started.stdout.readline())
        finally:
            started.kill()


def read_to(line: socket.socket, end: bytes) -> bool:
    """Whether these bytes come before the connection ends."""
    line.settimeout(5.0)
    found = b""
    while end not in found and (part := line.recv(65536)):
        found += part
    return end in found


def listeners(pid: int) -> set[str]:
    """Addresses that a process listens on, as the kernel writes them."""
    sockets, found = set(), set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since the folder was read
            sockets.add(str(link.readlink()))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                found.add(words[1].rpartition(":")[0])
    return found


def test_a_process_serves_and_ends_well(tmp_path: Path) -> None:
    with process(tmp_path) as (started, told):
        host, port = told["address"].removeprefix("http://").split(":")
        assert told["auth"] == "local"
        with socket.create_connection((host, int(port))) as line:
            line.sendall(GET.replace(b"localhost", f"{host}:{port}".encode()))
            assert read_to(line, b'{"status":"ok"}')
        assert listeners(started.pid) <= {"0100007F", "00000000000000000000000001000000"}
        events = socket.create_connection((host, int(port)))
        events.sendall(f"GET /models/sse HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        assert read_to(events, b"data: {")
        started.send_signal(signal.SIGTERM)
        assert started.wait(5) == 0
        assert started.stderr is not None
        lines = [json.loads(line) for line in started.stderr.read().splitlines()]
        assert [line["event"] for line in lines if line["event"] != "request"] == ["ready", "drain", "stopped"]
        assert read_to(events, b"0\r\n\r\n"), "the stream was ended, not cut"
        events.close()


@pytest.mark.slow
def test_a_second_signal_ends_a_process_at_once(tmp_path: Path) -> None:
    with process(tmp_path) as (started, told):
        host, port = told["address"].removeprefix("http://").split(":")
        line = socket.create_connection((host, int(port)))
        key = told["page"].partition("key=")[2]
        head = f"POST /models/load HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        line.sendall(head.encode() + b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.2)
        started.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert started.poll() is None, "it waits for what it took on"
        started.send_signal(signal.SIGTERM)
        assert started.wait(2) == 0
        line.close()
