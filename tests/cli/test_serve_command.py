"""`khola serve` and `khola key` by their words; the server itself is tested in `tests/serve`."""

from __future__ import annotations

import json

import pytest

from tests.cli.command import Command


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines"),
        (["--host", "192.0.2.1", "--no-auth"], "cannot listen"),
        (["--no-auth", "--key-file", "k"], "contradict"),
        (["--key-file", "k"], "there is no key in k"),
        (["--cors-origin", "*"], "expected one like"),
        (["--cors-origin", "https://a.example/x"], "expected one like"),
        (["--engine", "echo", "--port", "70000"], "--port"),
    ],
)
def test_what_may_not_be_started(khola_says: Command, words: list[str], text: str) -> None:
    done = khola_says("serve", *words)
    assert done.code in (2, 5)
    assert text in done.err


def test_keys_are_made_listed_and_revoked(khola_says: Command) -> None:
    assert "no keys" in khola_says("key", "list").err
    shown = khola_says("key", "new", "--scope", "admin", "--scope", "infer", "--days", "2", "--note", "phone").out.strip()
    (listed,) = json.loads(khola_says("key", "list", "--json").out)
    assert (listed["id"], listed["scopes"], listed["note"]) == (shown[3:11], ["infer", "admin"], "phone")
    assert shown[12:] not in khola_says("key", "list").out
    assert khola_says("key", "revoke", listed["id"]).code == 0
    assert khola_says("key", "revoke", listed["id"]).code == 2
    assert "expected one of" in khola_says("key", "new", "--scope", "all").err


def test_limits_of_a_key_are_kept_and_listed(khola_says: Command) -> None:
    khola_says("key", "new", "--requests-per-minute", "60", "--tokens-per-minute", "20000", "--tokens-per-day", "90000", "--at-once", "4")
    khola_says("key", "new")
    one, two = sorted(json.loads(khola_says("key", "list", "--json").out), key=lambda key: not key["limits"])
    assert one["limits"] == {"requests_minute": 60, "tokens_minute": 20_000, "tokens_day": 90_000, "at_once": 4} and two["limits"] == {}
    told = " ".join(khola_says("key", "list").out.split())
    assert "60" in told and "20000" in told
    assert khola_says("key", "new", "--at-once", "0").code == 2
