"""Many clients at once that come, go, stall and break. P15, P18, P19 and P23 of the promises, as far as HTTP keeps them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from khola.serve.echo import Echo
from khola.serve.limits import Limits
from khola.serve.log import Log
from khola.serve.service import Service
from tests.serve.http.ask import service_of
from tests.serve.http.test_http_process import GET, post, served, talk

WORDS = 60
BODY = json.dumps({"prompt": "word " * WORDS, "stream": True}).encode()
LONG = json.dumps({"prompt": ("x" * 40_000 + " ") * 90, "stream": True}).encode()


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """Both ends of every connection are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def stream(port: int, script: str, dice: random.Random, stall_s: float = 1.0) -> str:
    """One client that behaves as its script says; what it saw."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    try:
        writer.write(post(LONG if script == "stall" else BODY))
        await writer.drain()
        if script == "early":
            return script
        if script == "half":
            writer.write_eof()
        if script in ("cut", "reset"):
            for _ in range(dice.randrange(1, 20)):
                await reader.readline()
            if script == "reset":
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            return script
        if script == "stall":
            await asyncio.sleep(stall_s)
            return script
        seen = b""
        while b"\r\n0\r\n\r\n" not in seen and (part := await reader.read(65536)):
            seen += part
        return (
            "whole" if b"data: [DONE]\n\n" in seen else "refused" if b" 429 " in seen[:20] else f"broken: {seen[:400]!r} … {seen[-200:]!r}"
        )
    except ConnectionError:
        return "reset"
    finally:
        writer.close()


def scripts(count: int, dice: random.Random) -> list[str]:
    """What each of so many clients does."""
    shares = {"cut": 0.4, "early": 0.1, "half": 0.1, "reset": 0.05, "stall": 0.1}
    found = [name for name, share in shares.items() for _ in range(int(count * share))]
    found += ["finish"] * (count - len(found))
    dice.shuffle(found)
    return found


def storm(count: int, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of clients; after each, nothing is held any more."""
    echo, dice = Echo(delay_s=0.001), random.Random(1)
    stall_s = 1.0 + count / 50  # what stalls is large, and one thread makes it for all of them
    service = service_of(backend=echo, limits=Limits(queue=2 * count, connections=4 * count, reader_s=0.5))

    async def client(port: int) -> None:
        await asyncio.gather(*(stream(port, "finish", dice) for _ in range(4)))
        await asyncio.sleep(0.2)
        files, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())  # noqa: PTH208  links that may be gone
        for _ in range(rounds):
            wanted = scripts(count, dice)
            seen = await asyncio.gather(*(stream(port, script, dice, stall_s) for script in wanted))
            assert seen.count("whole") >= wanted.count("finish"), "whoever reads to the end gets the end"
            assert {saw for saw, script in zip(seen, wanted, strict=True) if script == "finish"} <= {"whole", "refused", "reset"}
            end = time.monotonic() + 2.0
            while time.monotonic() < end and (echo.running or service.admission.running or len(asyncio.all_tasks()) > tasks):
                await asyncio.sleep(0.02)
            assert not echo.running
            assert service.admission.running == 0
            assert len(asyncio.all_tasks()) <= tasks
            await asyncio.sleep(0.1)
            assert len(os.listdir("/proc/self/fd")) <= files + 2  # noqa: PTH208  links that may be gone

    served(service, client, monkeypatch)


@pytest.mark.slow
def test_clients_that_leave_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """P15 at the number of a commit."""
    storm(100, 1, monkeypatch)


@pytest.mark.soak
def test_clients_that_leave_leave_nothing_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """P15 at its nightly number; resident memory grows by less than 2 % after the first rounds."""
    storm(1000, 2, monkeypatch)
    before = resident()
    storm(1000, 8, monkeypatch)
    assert resident() < before * 1.02 + (1 << 20)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def overload(seconds: float, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], list[float]]:
    """Ten times what is taken on; how long each refusal took in the server, and each answer, both in order."""
    lines = io.StringIO()
    limits = Limits(queue=16, connections=2000, deadline_s=30.0)
    service = service_of(backend=Echo(delay_s=0.002), limits=limits, log=Log(lines))

    async def client(port: int) -> None:
        end, dice = time.monotonic() + seconds, random.Random(2)
        counts: dict[str, int] = {}

        async def one() -> None:
            while time.monotonic() < end:
                saw = await stream(port, "finish", dice)
                counts[saw] = counts.get(saw, 0) + 1
                if saw == "refused":
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(one() for _ in range(160)))
        assert set(counts) == {"whole", "refused"}, counts

    served(service, client, monkeypatch)
    answers = [json.loads(line) for line in lines.getvalue().splitlines()]
    by_status = [sorted(answer["seconds"] for answer in answers if answer.get("status") == status) for status in (429, 200)]
    return by_status[0], by_status[1]


@pytest.mark.slow
def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """P18 for a moment: who is refused waits for less than who is answered, however busy the machine is."""
    refused, whole = overload(2.0, monkeypatch)
    assert refused[len(refused) // 2] < whole[0]


@pytest.mark.soak
def test_too_much_is_refused_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """P18 at its nightly number, on a machine that does nothing else."""
    before = resident()
    refused, whole = overload(600.0, monkeypatch)
    assert refused[int(len(refused) * 0.99)] < 0.1
    assert whole[-1] < 30.0
    assert resident() < 2 * before


@pytest.mark.soak
def test_slow_clients_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """P19 at its nightly number: 500 slow connections of three kinds are dropped at their limits, and others are answered meanwhile."""
    service = service_of(limits=Limits(header_s=2.0, body_grace_s=2.0, reader_s=2.0, connections=2000))

    async def slow(port: int, kind: int) -> None:
        if kind == 0:
            await talk(port, *[GET[at : at + 1] for at in range(30)], pause_s=0.1)
        elif kind == 1:
            await talk(port, post(b"x" * 5000)[:-4900], *[b"x"] * 30, pause_s=0.1)
        else:
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(post(LONG))
            await asyncio.sleep(5.0)
            writer.close()

    async def client(port: int) -> list[float]:
        crowd = asyncio.gather(*(slow(port, number % 3 if number < 60 else number % 2) for number in range(500)))
        times = []
        while not crowd.done():
            begun = time.monotonic()
            assert b" 200 OK" in await talk(port, GET[:-2] + b"Connection: close\r\n\r\n")
            times.append(time.monotonic() - begun)
            await asyncio.sleep(0.01)
        await crowd
        return times

    times = sorted(served(service, client, monkeypatch))
    assert times[len(times) // 2] < 0.05
    assert service.admission.running == 0


def drain(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a server at a random moment: every stream that was taken on ends, with its end or with an error."""
    dice = random.Random(seed)
    service: Service = service_of(
        backend=Echo(delay_s=dice.choice([0.0, 0.001, 0.01])), limits=Limits(drain_s=dice.choice([0.1, 0.5, 2.0]))
    )
    seen: list[asyncio.Task[bytes]] = []

    async def client(port: int) -> None:
        seen.extend(asyncio.ensure_future(talk(port, post(BODY, b"Connection: close\r\n"))) for _ in range(20))
        await asyncio.sleep(dice.uniform(0.0, 0.1))

    served(service, client, monkeypatch)
    for task in seen:
        assert task.done()
        answer = task.result()
        if answer.startswith(b"HTTP/1.1 200"):
            assert b"data: [DONE]\n\n" in answer or b'"code":"busy"' in answer, answer[-200:]
            assert answer.endswith(b"0\r\n\r\n"), "the end of the stream was sent"
        else:
            assert answer == b"" or answer.startswith(b"HTTP/1.1 503"), answer[:200]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_what_was_taken_on_is_ended(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """P23 at a few moments."""
    drain(seed, monkeypatch)


@pytest.mark.soak
def test_what_was_taken_on_is_ended_at_every_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """P23 at its nightly number."""
    for seed in range(100):
        drain(seed, monkeypatch)
