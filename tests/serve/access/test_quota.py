"""Limits by key: what is let through, what is told of the rest, and that one key's flood is no other's trouble."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from khola.errors import TooLarge, TooMany
from khola.serve.access.guard import Guard
from khola.serve.access.keys import Keys
from khola.serve.access.metered import Metered
from khola.serve.access.quota import Account, Accounts, Bucket, Quota
from khola.serve.app import App
from khola.serve.backend import TextJob
from khola.serve.engines.echo import Echo
from tests.serve.http.ask import Answer, ask, offered, service_of

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}


@dataclass
class Clock:
    """Time that passes when it is told to."""

    now: float = 1e9

    def __call__(self) -> float:
        return self.now


class Site:
    """A server with keys, and time that stands still."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.clock, self.keys, self.echo = Clock(), Keys(folder / "keys.json"), Echo(delay_s=more.pop("delay_s", 0.0))
        self.service = service_of(backend=self.echo, guard=Guard(auth="keys", keys=self.keys), clock=self.clock, **more)
        self.app = App(self.service, offered())

    def key(self, **limits: int) -> str:
        return self.keys.new(["infer"], quota=Quota(**limits) if limits else None)

    async def ask(self, key: str, path: str = "/v1/chat/completions", body: Any = None, **more: Any) -> Answer:
        given = {**CHAT, **more} if body is None else body
        return await ask(self.app, "POST", path, given, {"authorization": f"Bearer {key}"})

    def all(self, *asks: Any) -> list[Answer]:
        async def road() -> list[Answer]:
            return [await one for one in asks]

        return asyncio.run(road())


@pytest.fixture(name="site")
def a_site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_a_bucket_gives_what_it_holds_and_no_more(most: int) -> None:
    bucket = Bucket(most, 60, 0.0)
    assert bucket.wait_s(most, 0.0) == 0 and bucket.wait_s(most + 1, 0.0) > 0
    for _ in range(most):
        assert bucket.wait_s(1, 0.0) == 0
        bucket.take(1, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(60 / most) and bucket.level(0.0).left == 0
    assert bucket.wait_s(1, 60 / most * 0.99) > 0 and bucket.wait_s(1, 60 / most) == 0
    assert (bucket.level(1e6).left, bucket.level(1e6).full_s) == (most, 0)
    assert bucket.left(5.0) == most, "a clock that goes back changes nothing"


@pytest.mark.parametrize("seed", range(20))
def test_many_small_requests_get_no_more_through_than_the_limit(seed: int) -> None:
    rng, now, used, begun = random.Random(seed), 0.0, 0, 0.0
    account = Account(Quota(tokens_minute=100, requests_minute=50), 0.0)
    asked = 0
    for _ in range(1000):
        now += rng.choice([0, 0, 0.001, 0.3, 2])
        cost = rng.randint(1, 5)
        try:
            account.request(now)
            asked += 1
            account.reserve(cost, now)
        except TooMany as told:
            assert int(str(told.facts["retry_after"])) >= 1
            continue
        used += cost
    assert asked <= 50 + (now - begun) * 50 / 60 + 1e-3 and used <= 100 + (now - begun) * 100 / 60 + 1e-3
    assert asked > 45 and used > 50


def test_what_was_reserved_and_not_used_is_given_back() -> None:
    account = Account(Quota(tokens_minute=100, tokens_day=150), 0.0)
    account.reserve(100, 0.0)
    with pytest.raises(TooMany, match="100 tokens a minute; 0 are left, and this may cost 1"):
        account.reserve(1, 0.0)
    account.settle(100, 10, 0.0)
    account.reserve(90, 0.0)
    account.settle(90, 140, 0.0)  # an answer that said no bound of its own
    with pytest.raises(TooMany, match="0 are left"):
        account.reserve(1, 29.0)
    with pytest.raises(TooMany, match="a day"):
        account.reserve(60, 86.0)
    for much in (151, 101, 100 * 1000):
        with pytest.raises(TooLarge):
            account.reserve(much, 1e6)


def test_an_account_outlives_its_requests_and_not_its_limits() -> None:
    accounts, quota = Accounts(), Quota(requests_minute=1)
    first = accounts.open("a", quota, 0.0)
    assert first is not None and accounts.open("a", Quota(requests_minute=1), 5.0) is first and accounts.of("b") is None
    assert accounts.open("a", Quota(requests_minute=2), 0.0) is not first
    assert accounts.open("a", None, 0.0) is None and accounts.of("a") is None and accounts.open("", quota, 0.0) is None


@pytest.mark.parametrize(("path", "more"), [
    ("/v1/chat/completions", {}),
    ("/v1/chat/completions", {"stream": True}),
    ("/v1/messages", {"max_tokens": 9}),
    ("/api/chat", {"stream": False}),
    ("/v1/embeddings", {"body": {"model": "echo", "input": "a"}}),
    ("/v1/responses", {"body": {"model": "echo", "input": "a"}}),
])  # fmt: skip
def test_requests_a_minute(site: Site, path: str, more: dict[str, Any]) -> None:
    mine, other = site.key(requests_minute=4), site.key()
    answers = site.all(*(site.ask(mine, path, **more) for _ in range(5)), site.ask(other, path, **more))
    assert [answer.status for answer in answers] == [200] * 4 + [429, 200]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers[:5]] == ["3", "2", "1", "0", "0"]
    refused = answers[4]
    assert refused.headers["retry-after"] == "15" and refused.headers["x-should-retry"] == "true"
    assert (refused.headers["x-ratelimit-limit-requests"], refused.headers["x-ratelimit-reset-requests"]) == ("4", "1m0s")
    assert refused.headers["anthropic-ratelimit-requests-reset"] == "2001-09-09T01:47:40Z"
    told = refused.json()["error"]
    if path == "/v1/messages":
        assert (refused.json()["type"], told["type"]) == ("error", "rate_limit_error")
    elif path.startswith("/v1"):
        assert (told["code"], told["type"], told["param"]) == ("rate_limit_exceeded", "rate_limit_error", None)
    else:
        assert "4 times a minute" in told
    assert not any(name.startswith(("x-ratelimit", "anthropic-ratelimit")) for name in answers[5].headers)
    site.clock.now += 14.9
    assert site.all(site.ask(mine, path, **more))[0].status == 429
    site.clock.now += 0.1
    assert [one.status for one in site.all(*(site.ask(mine, path, **more) for _ in range(2)))] == [200, 429]


def test_tokens_are_reserved_before_and_settled_after(site: Site) -> None:
    mine = site.key(tokens_minute=100)
    first, second, large, huge, third = site.all(
        site.ask(mine, max_tokens=90),
        site.ask(mine, max_tokens=91),
        site.ask(mine, max_tokens=100),
        site.ask(mine, max_tokens=100_000),
        site.ask(mine, max_tokens=50),
    )
    # Three words asked and three answered: 6 of 100; 91 and the prompt are more than the 94 that are left; 100 and a prompt never fit.
    assert (first.status, second.status, large.status, huge.status, third.status) == (200, 429, 413, 413, 200)
    assert (first.headers["x-ratelimit-remaining-tokens"], second.headers["x-ratelimit-remaining-tokens"]) == ("94", "94")
    assert "94 are left" in second.json()["error"]["message"] and second.headers["retry-after"] == "3"


def test_every_answer_of_a_request_costs(site: Site) -> None:
    eight, one = site.all(*(site.ask(site.key(tokens_minute=100), n=8, max_tokens=most) for most in (12, 3)))
    assert (eight.status, one.status) == (429, 200)
    assert one.headers["x-ratelimit-remaining-tokens"] == "52" and not site.echo.running


def test_embeddings_cost_their_tokens(site: Site) -> None:
    mine = site.key(tokens_day=20)
    body = {"model": "echo", "input": ["a b c d", "e f g h"]}
    answers = site.all(*(site.ask(mine, "/v1/embeddings", body) for _ in range(3)))
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert site.all(site.ask(mine, "/v1/embeddings", body))[0].status == 429
    assert answers[1].headers["x-ratelimit-remaining-tokens"] == "4" and answers[1].headers["x-ratelimit-limit-tokens"] == "20"


def test_a_stream_that_is_left_has_cost_what_it_said() -> None:
    async def road() -> float:
        accounts, clock = Accounts(), Clock()
        account = accounts.open("t", Quota(tokens_minute=1000), clock())
        metered = Metered(Echo(), accounts, clock)
        pieces = await metered.start(TextJob(prompt="a b c d e f g h", tenant="t", sampling={"max_tokens": 500}), "echo")
        assert account is not None and account.levels(clock())["tokens"].left == 1000 - 500 - 3
        for _ in range(5):
            await anext(pieces)
        await pieces.aclose()
        await pieces.aclose()
        with pytest.raises(Exception, match="no tokens"):
            await metered.start(TextJob(prompt="", tenant="t"), "echo")
        return account.levels(clock())["tokens"].left

    assert asyncio.run(road()) == 1000 - 3 - 5


def test_requests_at_once(tmp_path: Path) -> None:
    site = Site(tmp_path, delay_s=0.01)
    mine, other = site.key(at_once=2), site.key()

    async def road() -> tuple[list[Answer], list[Answer]]:
        both = await asyncio.gather(*(site.ask(mine) for _ in range(1000)), *(site.ask(other) for _ in range(16)))
        return both[:1000], both[1000:]

    flood, others = asyncio.run(road())
    assert sorted(answer.status for answer in flood) == [200] * 2 + [429] * 998
    assert {answer.status for answer in others} == {200}
    assert {answer.json()["error"]["code"] for answer in flood if answer.status == 429} == {"rate_limit_exceeded"}
    assert not site.echo.running and site.service.admission.running == 0


def test_a_page_and_programs_without_a_key_have_no_limits(tmp_path: Path) -> None:
    site = Site(tmp_path)
    answers = site.all(*(site.ask(site.service.guard.page_key) for _ in range(20)))
    assert {answer.status for answer in answers} == {200} and not any("ratelimit" in name for name in answers[0].headers)


def test_a_key_keeps_its_limits_on_the_disk(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    shown = keys.new(["infer"], quota=Quota(tokens_day=5, at_once=3))
    found = Keys(tmp_path / "keys.json").find(shown, 0.0)
    assert found is not None and found.quota == Quota(tokens_day=5, at_once=3)
    assert b"tokens_minute" not in (tmp_path / "keys.json").read_bytes()


def test_a_key_is_known_when_nobody_shows_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    mine = site.key(tokens_minute=40)
    guard = site.service.guard
    caller = guard.known(mine.split("_")[1], site.clock())
    assert caller is not None and caller.quota == Quota(tokens_minute=40) and guard.known("nobody", 0.0) is None
    site.keys.revoke(caller.name)
    assert guard.known(caller.name, site.clock()) is None
