"""Whatever is sent, the server answers as its description says, quickly, and opens nothing. P17, P27 and P30 of the promises."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import khola
from khola.serve.access.guard import Guard
from khola.serve.app import App
from khola.serve.http import body
from khola.serve.openapi import ERRORS, document
from khola.serve.service import Service
from khola.store.strict_json import load_json
from tests.serve.http import made
from tests.serve.http.ask import Answer, ask, asked, offered, service_of

LEAKS = re.compile(rb"0x[0-9a-f]{6,}|/(?:home|root)/|/usr/lib|Traceback|\.py\b|site-packages|msgspec|starlette|Error\(")
STALL_S = 0.1
"""Longest that one request may hold the event loop, in seconds of this thread's processor time."""

MACHINE = ("/sys/fs/cgroup", "/sys/devices", "/proc/self/cgroup", "/proc/self/status", "/proc/meminfo", "/proc/cpuinfo", "/proc/stat")

_watched: list[list[tuple[str, str]]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what is opened or connected to while a test watches; hooks cannot be taken away again."""
    if (
        _watched
        and arguments[:1] != (":memory:",)
        and event
        in (
            "open",
            "sqlite3.connect",
            "socket.connect",
            "socket.getaddrinfo",
            "socket.bind",
            "subprocess.Popen",
            "os.listdir",
            "exec",
        )
    ):
        # Code is named by its file: a module of khola's that is imported at its first use is nothing that a request brought.
        _watched[-1].append((event, str(getattr(arguments[0], "co_filename", arguments[0]))[:200]))


sys.addaudithook(_audit)


@contextmanager
def watched(home: Path) -> Iterator[list[tuple[str, str]]]:
    """What is opened, connected to, started or run in the block; the list is whole when the block has ended.

    Args:
        home: folder in which files may be opened, as they may in khola itself and where the kernel describes the machine.
    """
    found: list[tuple[str, str]] = []
    package = Path(khola.__file__).parent
    _watched.append([])
    try:
        yield found
    finally:
        found += [
            (event, name) for event, name in _watched.pop() if not any(Path(name).is_relative_to(own) for own in (home, package, *MACHINE))
        ]


def check(request: made.Made, answer: Answer) -> None:
    """The answer is one that the description has, and tells nothing of the inside."""
    where = f"{request.method} {request.path[:80]!r} {request.body!r:.200} {request.headers}: {answer.status} {answer.body[:300]!r}"
    allowed = {200, 405, *ERRORS} if request.operation is None else {int(status) for status in request.operation["responses"]}
    assert answer.status in allowed, where
    assert answer.status != 500, where
    assert not LEAKS.search(answer.body), where
    if answer.status >= 400 and request.method != "HEAD":
        assert "error" in json.loads(answer.body), where
    elif answer.headers.get("content-type") == "application/json":
        json.loads(answer.body)


async def fuzz(service: Service, app: App, requests: list[made.Made]) -> tuple[Counter[int], float]:
    """Send requests; how many had each status, and the longest that one held the loop."""
    statuses: Counter[int] = Counter()
    longest = 0.0
    for request in requests:
        if request.path.startswith("/models/sse"):
            continue  # it has no end of its own
        begun = time.thread_time()
        answer = await ask(app, request.method, request.path, request.body, request.headers)
        longest = max(longest, time.thread_time() - begun)
        check(request, answer)
        statuses[answer.status] += 1
    assert service.admission.running == 0
    assert (await ask(app, "GET", "/health")).status == 200
    return statuses, longest


async def warmed(service: Service, app: App, described: dict[str, Any]) -> None:
    """Have everything imported that is imported at its first use: dataclasses are compiled then, and certificates read."""
    for name in ("a", "hf:org/name", "ms:org/name", "pypi:name==1/a.gguf"):
        assert (await ask(app, "POST", "/api/pull", {"model": name})).status in (403, 404)
    await fuzz(service, app, list(made.requests(described, 500, seed=0)))


def surprises(count: int, seed: int) -> None:
    """P17, and P27: no request makes the server open a file that is not its own, or a connection."""
    service = service_of(guard=Guard(auth="none"))
    app = App(service, offered())
    described = document([operation for operation in service.operations if not operation.path.startswith("/page/")])
    asyncio.run(warmed(service, app, described))
    requests = list(made.requests(described, count, seed))
    gc.collect()
    gc.freeze()  # looking for garbage among what thousands of other tests left would take longer than any request
    try:
        with watched(service.settings.home) as opened:
            statuses, longest = asyncio.run(fuzz(service, app, requests))
    finally:
        gc.unfreeze()
    assert longest < STALL_S
    assert not opened, opened[:10]
    assert statuses[200] > count / 10, "too few requests were right to say anything about the others"
    assert {400, 404, 405, 413, 415, 421} <= set(statuses), statuses


def test_no_request_surprises_the_server() -> None:
    surprises(1000, seed=1)


@pytest.mark.slow
def test_many_requests_do_not_surprise_the_server() -> None:
    """P17 at the number of a commit."""
    surprises(5000, seed=2)


def test_no_request_surprises_the_page() -> None:
    """P17 for what keeps files, and looks at the disk."""
    service = service_of(guard=Guard(auth="none"))
    app = App(service, offered())
    kept = [
        operation for operation in service.operations if operation.path.startswith(("/page/conv", "/page/char", "/page/pers", "/page/st"))
    ]
    statuses, _ = asyncio.run(fuzz(service, app, list(made.requests(document(kept), 300, seed=3))))
    assert statuses[200] > 20 and {400, 404} <= set(statuses), statuses


@pytest.mark.soak
def test_no_request_surprises_the_server_for_long() -> None:
    """P17 at its nightly number."""
    for seed in range(3, 43):
        surprises(5000, seed)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "prompt", "bad_request"),
        ({"prompt": 1}, "prompt", "bad_request"),
        ({"prompt": "a", "prompts": "b"}, "prompts", "unknown_option"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "bad_request"),
        ({"prompt": "a", "max_tokens": -(2**31)}, "max_tokens", "bad_request"),
        ({"prompt": "a", "max_tokens": 2**63}, "max_tokens", "bad_request"),
        ({"prompt": "a", "max_tokens": "8"}, "max_tokens", "bad_request"),
        ({"prompt": "a", "max_tokens": 8.5}, "max_tokens", "bad_request"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "bad_request"),
        ({"prompt": "a", "temperature": 2.1}, "temperature", "bad_request"),
        ({"prompt": "a", "stop": ["a", 1]}, "stop[1]", "bad_request"),
        ({"prompt": "a", "stop": ["a" * 257]}, "stop[0]", "bad_request"),
        ({"prompt": "a", "stream": 1}, "stream", "bad_request"),
    ],
)
def test_wrong_fields_are_named(body: dict[str, Any], param: str, code: str) -> None:
    """B1 and B3: every number has its interval, nothing is coerced, no field is ignored."""
    (answer,) = asked(service_of(), ("POST", "/parrot", body))
    error = answer.json()["error"]
    assert (answer.status, error["param"], error["code"]) == (400, param, code)
    assert param in error["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt":"a","temperature":NaN}',
        b'{"prompt":"a","temperature":1e999}',
        b'{"prompt":"a","prompt":"b"}',
        b"[" * 10_000,
        b'{"prompt":"a","deep":' + b'{"a":' * 64 + b"1" + b"}" * 64 + b"}",
        b'{"prompt":"\\ud800"}',
        b'{"prompt":"\xff"}',
        b"[]",
        b"null",
        b"",
        b'{"prompt":"a","deep":{"a":[' + b"1," * 100_001 + b"1]}}",
    ],
)
def test_json_is_read_strictly(raw: bytes) -> None:
    """B4."""
    (answer,) = asked(service_of(), ("POST", "/parrot", raw, {"content-type": "application/json"}))
    assert (answer.status, answer.code()) == (400, "bad_request")


def test_limits_of_a_body() -> None:
    """The largest body that is read, one byte more, and a thousand times as much by its header alone."""
    limit = 4 << 20
    fits = json.dumps({"prompt": "", "max_tokens": 1}).encode()
    fits = fits.replace(b'""', b'"' + b"a" * (limit - len(fits)) + b'"')
    json_type = {"content-type": "application/json"}
    told = {**json_type, "content-length": str(1000 * limit)}
    right, more, by_header = asked(
        service_of(), ("POST", "/parrot", fits, json_type), ("POST", "/parrot", fits + b" ", json_type), ("POST", "/parrot", b"{}", told)
    )
    assert (right.status, more.status, by_header.status) == (200, 413, 413)


def test_long_bodies_are_parsed_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """P17: four megabytes of escapes take half of what a request may hold the loop for."""
    beside: list[bool] = []

    def noted(*given: Any, **options: Any) -> Any:
        beside.append(threading.current_thread() is not threading.main_thread())
        return load_json(*given, **options)

    monkeypatch.setattr(body, "load_json", noted)
    lengths = (100, body.AT_ONCE_BYTES - 20, body.AT_ONCE_BYTES, 4_000_000)
    answers = asked(service_of(), *(("POST", "/parrot", {"prompt": "a" * length}) for length in lengths))
    assert [answer.status for answer in answers] == [200] * 4
    assert beside == [False, False, True, True]
    (wrong,) = asked(service_of(), ("POST", "/parrot", b"[" * body.AT_ONCE_BYTES * 2, {"content-type": "application/json"}))
    assert (wrong.status, wrong.code()) == (400, "bad_request")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_bodies_of_other_types_are_not_read(kind: str) -> None:
    (answer,) = asked(service_of(), ("POST", "/parrot", b'{"prompt":"a"}', {"content-type": kind}))
    assert (answer.status, answer.code()) == (415, "unsupported_media_type")


def names() -> list[str]:
    """400 names that would lead out of a folder, if one were made of them."""
    heads = [
        "",
        "/",
        "//",
        "\\",
        "\\\\host\\",
        "C:\\",
        "C:",
        "file://",
        "./",
        "~/",
        "\x00/",
        "hf:",
        "models/",
        "/proc/self/",
        "//?/C:/",
        "%2f",
    ]
    middles = ["../", "..\\", "..%2f", "%2e%2e/", "....//", "..;/", "..\u2215", "a/../../", "..%c0%af"]
    tails = ["etc/passwd", "environ", "keys.json"]
    return [head + middle * 3 + tail for head, middle, tail in itertools.product(heads, middles, tails)][:400]


def test_no_name_opens_a_file() -> None:
    """P30: as a model, as a part of an address, as a header."""
    service = service_of(guard=Guard(auth="none"))
    app = App(service, offered())

    async def tries() -> Counter[int]:
        statuses: Counter[int] = Counter()
        for name in names():
            word = name.encode("ascii", "ignore").decode().replace("\x00", "")
            for request in (
                ("POST", "/models/load", {"model": name}),
                ("POST", "/models/unload", {"model": name}),
                ("POST", "/parrot", {"prompt": "a", "model": name}),
                ("POST", "/api/pull", {"model": name}),
                ("GET", f"/parrot/{name}"),
                ("GET", f"/{name}"),
                ("GET", "/models", None, {"x-conversation-id": word, "if-match": word}),
            ):
                statuses[(await ask(app, *request)).status] += 1
        return statuses

    with watched(service.settings.home) as opened:
        statuses = asyncio.run(tries())
    assert len(names()) == 400
    assert not opened, opened[:10]
    assert statuses[500] == 0


def test_the_watch_sees() -> None:
    """The two tests above would see a file that is opened."""
    with watched(Path("nowhere")) as opened, open(__file__, "rb"):  # noqa: PTH123  the plainest way to open one
        pass
    assert [event for event, _ in opened] == ["open"], opened


def test_the_description_describes_everything() -> None:
    service = service_of()
    (answer,) = asked(service, ("GET", "/openapi.json"))
    told = answer.json()
    references = set(re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', answer.body.decode()))
    assert references <= set(told["components"]["schemas"])
    assert {operation.path.replace(":path", "") for operation in service.operations} == set(told["paths"])
    say = told["paths"]["/parrot"]["post"]
    assert say["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Said"}
    assert told["components"]["schemas"]["Said"]["additionalProperties"] is False
    assert {"200", *map(str, ERRORS)} == set(say["responses"])
