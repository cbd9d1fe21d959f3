"""Who may ask: hosts, sites, keys. P25 and P31: every address is tried in every way, so a new one cannot be forgotten."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from khola.errors import BadManifest, NotFound
from khola.serve.access.guard import Guard
from khola.serve.access.keys import Failures, Keys
from khola.serve.access.limits import Limits
from khola.serve.app import App
from khola.serve.dialects import Dialect
from khola.serve.operation import Operation
from khola.serve.service import Service
from tests.serve.http.ask import LOCAL, ask, asked, offered, service_of

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", "post", "delete")
OWN = "http://127.0.0.1:11500"


class Counting:
    """A dialect whose operations are only counted."""

    def __init__(self, dialect: Dialect, runs: Counter[tuple[str, str]]) -> None:
        self._dialect = dialect
        self._runs = runs
        self.PREFIXES = dialect.PREFIXES
        self.error_body = dialect.error_body

    def operations(self, service: Service) -> list[Operation]:
        """Those of the dialect."""
        return [replace(operation, run=self._counted(operation)) for operation in self._dialect.operations(service)]

    def _counted(self, operation: Operation) -> Any:
        async def run(request: Request) -> ASGIApp:
            self._runs[operation.method, operation.path] += 1
            return Response()

        return run


def counting(guard: Guard) -> tuple[App, list[Operation], Counter[tuple[str, str]]]:
    """An application that runs nothing, its operations, and how often each would have run."""
    runs: Counter[tuple[str, str]] = Counter()
    service = service_of(guard=guard)
    app = App(service, [Counting(dialect, runs) for dialect in offered()])
    return app, list(service.operations), runs


def path_of(operation: Operation) -> str:
    """An address that this operation answers to."""
    return operation.path.replace(":path", "").replace("{", "").replace("}", "")


def body_of(operation: Operation) -> tuple[bytes | None, dict[str, str]]:
    """A body and its type."""
    return (None, {}) if operation.method in ("GET", "DELETE") else (b"{}", {"content-type": operation.types[0]})


@pytest.mark.parametrize(
    "host",
    [
        "evil.com", "localhost.evil.com", "127.0.0.1.nip.io", "", "127.0.0.1:1", "localhost:80", "127.0.0.1:11500@evil.com",
        "evil.com#127.0.0.1",
        "127.0.0.1:11500.", "127.0.0.2:11500", "0.0.0.0:11500", "[::]:11500", "127.1:11500", "2130706433:11500", "127.0.0.1 :11500",
        "[::1:11500",
        "localhost:011500", "localhost:11500/x", "localhost,evil.com", "127.0.0.1:11500:11500", "LOCALHOST.:11500", "localhost",
    ],
)  # fmt: skip
def test_hosts_that_the_server_is_not(host: str) -> None:
    (answer,) = asked(service_of(guard=Guard(port=11500)), ("GET", "/health", None, {"host": host}))
    assert (answer.status, answer.code()) == (421, "misdirected_request")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:11500", "localhost:11500", "LocalHost:11500", "[::1]:11500", "box.lan:11500", "box.lan", "ai.example:443"]
)
def test_hosts_that_the_server_is(host: str) -> None:
    guard = Guard(port=11500, hosts=("box.lan", "ai.example:443"))
    (answer,) = asked(service_of(guard=guard), ("GET", "/health", None, {"host": host}))
    assert answer.status == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/health", [("host", "localhost"), ("host", "localhost")], 400),
        ("/health", [("host", "localhost"), ("host", "evil.com")], 400),
        ("http://127.0.0.1/health", [], 400),
        ("*", [], 400),
        ("/" + "a" * 9000, [], 400),
        ("/health", [(f"x-{number}", "1") for number in range(64)], 413),
        ("/health", [("x-long", "a" * 17_000)], 413),
        ("/health", [("content-encoding", "gzip")], 400),
        ("/health", [("origin", OWN), ("origin", "http://evil.com")], 400),
    ],
)
def test_requests_of_a_wrong_shape(path: str, headers: list[tuple[str, str]], status: int) -> None:
    (answer,) = asked(service_of(), ("GET", path, None, headers))
    assert answer.status == status
    assert "error" in answer.json()


def hostile() -> list[dict[str, str]]:
    """Headers with which pages of other sites can make a browser ask, and some that only look like our own page."""
    origins = [
        "http://evil.com", "null", "https://127.0.0.1:11500.evil.com", "http://127.0.0.1:11501", "http://localhost:11500x", "file://",
        "http://127.0.0.1", "http://127.0.0.1:11500/", "HTTP://EVIL.COM", "http://evil.com:11500", "chrome-extension://abc", "",
    ]  # fmt: skip
    kinds = ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
    combinations = [{"origin": origin, "content-type": kind} for origin, kind in itertools.product(origins, kinds)]
    sites = [{"sec-fetch-site": site, "content-type": kind} for site, kind in itertools.product(["cross-site", "same-site"], kinds)]
    more: list[dict[str, str]] = [
        {"origin": OWN, "content-type": "application/json"},  # without what the page knows
        {"origin": OWN, "content-type": "application/json", "x-khola-csrf": "guessed"},
        {"sec-fetch-site": "same-origin", "content-type": "application/json"},
        {
            "origin": "http://evil.com",
            "sec-fetch-site": "same-origin",
            "x-http-method-override": "POST",
            "content-type": "application/json",
        },
        {"origin": "http://evil.com", "authorization": "Bearer sk-none", "content-type": "application/json"},
    ]
    return [*combinations, *sites, *more]


def test_a_page_of_another_site_changes_nothing() -> None:
    """P31: every address that writes, every way in which a page can ask."""
    tried = 0

    async def tries(guard: Guard, ways: list[dict[str, str]]) -> None:
        nonlocal tried
        app, operations, runs = counting(guard)
        writing = itertools.cycle(("POST", "PUT", "PATCH", "DELETE"))
        for operation, headers in itertools.product(operations, ways):
            method = next(writing) if operation.method in ("GET", "HEAD") else operation.method
            tried += 1
            answer = await ask(app, method, path_of(operation), b"{}", headers)
            assert 400 <= answer.status < 500, (operation.path, headers)
            assert "access-control-allow-origin" not in answer.headers
        assert not runs, runs
        # The same addresses do run for programs, so it is the page that was refused.
        programs = [operation for operation in operations if operation.method == "POST" and operation.scope == "infer"]
        for operation in programs:
            body, headers = body_of(operation)
            await ask(app, "POST", path_of(operation), body, headers)
            await ask(app, "POST", path_of(operation), body, {**headers, "origin": OWN, "x-khola-csrf": guard.csrf})
            assert runs["POST", operation.path] == 2

    asyncio.run(tries(Guard(), hostile()))
    asyncio.run(tries(Guard(auth="none"), hostile()[::5]))
    assert tried > 60 * 16


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "none"}, 200),
    ],
)
def test_a_link_on_another_site_may_lead_to_the_page(headers: dict[str, str], status: int) -> None:
    page, other = asked(service_of(), ("GET", "/parrots", None, headers), ("GET", "/parrot/x", None, headers))
    assert page.status == status
    assert other.status == (200 if headers["sec-fetch-site"] == "none" else 403)
    assert "default-src 'none'" in page.headers.get("content-security-policy", "") or status == 403


def test_only_named_sites_may_ask_across() -> None:
    guard = Guard(origins=("https://app.example",))
    ours, theirs = {"origin": "https://app.example", "sec-fetch-site": "cross-site"}, {"origin": "https://app.example.evil.com"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "Authorization, X-Stainless-OS, x-evil"}
    before, after, refused, no = asked(
        service_of(guard=guard),
        ("OPTIONS", "/parrot", None, {**ours, **asks}),
        ("POST", "/parrot", {"prompt": "a"}, ours),
        ("OPTIONS", "/parrot", None, {**theirs, **asks}),
        ("POST", "/parrot", {"prompt": "a"}, theirs),
    )
    assert before.status == 204
    assert before.headers["access-control-allow-origin"] == "https://app.example"
    assert before.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert "access-control-allow-credentials" not in before.headers
    assert (after.status, after.headers["vary"]) == (200, "Origin")
    assert refused.status == no.status == 403
    assert "access-control-allow-origin" not in refused.headers


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Keys of a server, in a file that is its own."""
    return Keys(tmp_path / "home" / "keys.json")


def test_no_address_is_open_without_a_key(keys: Keys) -> None:
    """P25: every address, every method, every kind of key."""
    infer, admin, vote, old = keys.new(["infer"]), keys.new(["admin"]), keys.new(["vote"]), keys.new(["infer", "admin"], days=-1)
    wrong = infer[:-1] + ("A" if infer[-1] != "A" else "B")
    shown: dict[str, tuple[dict[str, str], set[str]]] = {
        "none": ({}, set()),
        "infer": ({"authorization": f"Bearer {infer}"}, {"infer"}),
        "admin": ({"x-api-key": admin}, {"admin"}),
        "vote": ({"authorization": f"bearer {vote}"}, {"vote"}),
        "expired": ({"authorization": f"Bearer {old}"}, set()),
        "wrong": ({"authorization": f"Bearer {wrong}"}, set()),
        "not ours": ({"authorization": "Bearer sk-1234"}, set()),
        "basic": ({"authorization": f"Basic {infer}"}, set()),
        "elsewhere": ({"x-key": infer, "cookie": f"key={infer}"}, set()),
    }

    async def tries() -> int:
        app, operations, runs = counting(Guard(auth="keys", keys=keys))
        count = 0
        addresses = [*{operation.path: operation for operation in operations}.values()]
        for (name, (headers, scopes)), operation, method in itertools.product(shown.items(), addresses, METHODS):
            methods = {other.method: other for other in operations if other.path == operation.path}
            asked_for = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
            body = body_of(asked_for)[1] if asked_for else {}
            runs.clear()
            answer = await ask(app, method, path_of(operation), b"{}" if body else None, {**headers, **body}, client=(name + method, 1))
            allowed = asked_for is not None and asked_for.scope in {"open", *scopes}
            bad = name in ("expired", "wrong", "not ours", "basic")
            assert bool(runs) == (allowed and not bad), (name, method, operation.path, answer.status)
            if not runs:
                key_is_fine = bool(scopes)
                assert answer.status == (405 if asked_for is None else 403) if key_is_fine else answer.status in (401, 429)
            count += 1
        return count

    assert asyncio.run(tries()) > 500


def test_a_key_in_the_address_is_no_key(keys: Keys) -> None:
    shown = keys.new(["infer"])
    guard = Guard(auth="keys", keys=keys)
    (answer,) = asked(service_of(guard=guard), ("GET", f"/models?key={shown}&api_key={shown}"))
    assert answer.status == 401


def test_two_different_keys_are_refused(keys: Keys) -> None:
    one, two = keys.new(["infer"]), keys.new(["infer"])
    service = service_of(guard=Guard(auth="keys", keys=keys))
    both, same = asked(
        service,
        ("GET", "/models", None, {"authorization": f"Bearer {one}", "x-api-key": two}),
        ("GET", "/models", None, {"authorization": f"Bearer {one}", "x-api-key": one}),
    )
    assert (both.status, same.status) == (400, 200)


def test_programs_of_this_machine_change_nothing_without_a_key() -> None:
    service = service_of()
    key = {"authorization": f"Bearer {service.guard.page_key}"}
    load = ("POST", "/models/load", {"model": "x"})
    free, wrong, right, other = asked(
        service, load, (*load, {"authorization": "Bearer kh_abcdefgh_wrong"}), (*load, key), (*load, {"authorization": "Bearer ollama"})
    )
    assert [free.status, wrong.status, right.status, other.status] == [401, 401, 200, 401]
    (answer,) = asked(service, ("POST", "/parrot", {"prompt": "hi"}, {"authorization": "Bearer sk-none"}))
    assert answer.json() == {"text": "hi", "tenant": ""}, "clients send words where no key is needed"


def test_tenants_of_keys_differ_and_do_not_tell_the_key(keys: Keys) -> None:
    one, two = keys.new(["infer"]), keys.new(["infer"])
    service = service_of(guard=Guard(auth="keys", keys=keys))
    heard = asked(service, *(("POST", "/parrot", {"prompt": "hi"}, {"x-api-key": key}) for key in (one, two, one)))
    first, second, again = (answer.json()["tenant"] for answer in heard)
    assert first == again != second
    assert one[3:11] not in first


def test_guessing_is_slowed_down(keys: Keys) -> None:
    right = keys.new(["infer"])
    now = 1000.0
    service = service_of(guard=Guard(auth="keys", keys=keys, limits=Limits(failures=3)), clock=lambda: now)
    wrong = [("GET", "/models", None, {"x-api-key": f"kh_abcdefgh_{number:043}"}) for number in range(5)]
    assert [answer.status for answer in asked(service, *wrong)] == [401, 401, 401, 429, 429]
    (blocked,) = asked(service, ("GET", "/models", None, {"x-api-key": right}))
    assert (blocked.status, int(blocked.headers["retry-after"])) == (429, 61)
    (elsewhere,) = asked(service, ("GET", "/models", None, {"x-api-key": right}), client=("10.0.0.1", 1))
    assert elsewhere.status == 200
    now += 61
    (later,) = asked(service, ("GET", "/models", None, {"x-api-key": right}))
    assert later.status == 200


def test_addresses_of_guesses_are_not_kept_for_ever() -> None:
    failures = Failures(1)
    for number in range(10_000):
        failures.note(str(number), 0.0)
    assert failures.wait_s("0", 1.0) == 0
    assert failures.wait_s("9999", 1.0) == 59


def test_keys_of_a_file(keys: Keys, tmp_path: Path) -> None:
    shown = keys.new(["infer", "admin"], days=1, note="phone")
    other = Keys(tmp_path / "home" / "keys.json")
    (kept,) = other.all()
    assert (kept.scopes, kept.note, kept.id) == (("infer", "admin"), "phone", shown[3:11])
    text = (tmp_path / "home" / "keys.json").read_text()
    assert shown not in text
    assert shown[12:] not in text
    assert (tmp_path / "home" / "keys.json").stat().st_mode & 0o777 == 0o600
    now = time.time()
    assert other.find(shown, now) == kept
    assert other.find(shown, now + 86_401) is None
    assert other.find(shown + " ", now) is None
    keys.revoke(kept.id)
    assert other.find(shown, now) is None, "what another process takes away is away"
    with pytest.raises(NotFound, match="no key"):
        keys.revoke(kept.id)


def test_a_damaged_key_file_opens_nothing(keys: Keys, tmp_path: Path) -> None:
    keys.new(["infer"])
    for text in ('[{"id": "x"}]', "no json", '[{"id":"abcdefgh","hash":"00","scopes":["infer"],"created":1}]'):
        (tmp_path / "home" / "keys.json").write_text(text)
        with pytest.raises(BadManifest, match="no list of keys"):
            keys.all()


def test_words_in_headers_are_words(keys: Keys) -> None:
    """B9: what looks like a database's language, in every header that decides."""
    keys.new(["infer"])
    service = service_of(guard=Guard(auth="keys", keys=keys))
    words = ["' OR 1=1 --", '"; DROP TABLE keys; --', "kh_' UNION SELECT *_", "%27%20OR%201=1", "admin'/*", "\\x00", "1;SELECT pg_sleep(9)"]
    names = ["authorization", "x-api-key", "origin", "content-type", "x-request-id"]
    requests = [("GET", "/models", None, {name: word}) for name, word in itertools.product(names, words)]
    for number, answer in enumerate(asked(service, *requests, client=LOCAL)):
        assert answer.status in (401, 403, 429), requests[number]
