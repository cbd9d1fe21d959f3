"""Text out of tokens: stop strings at every cut, nothing leaked, nothing held longer than needed."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from khola.engine.output import Output, Said, StopFinder
from khola.engine.request import TokenInfo
from tests.engine.fakes import END, Bytes

LETTERS = st.text("abc", max_size=20)
STOPS = st.lists(st.sampled_from(["b", "abc", "aab", "bca", "cc", "ab", "caba", "aaaa", "a"]), min_size=1, max_size=4)


def letter_by_letter(text: str, stops: list[str]) -> tuple[str, bool]:
    """The stop string that is complete first ends the text, the longest one when two are."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], True
    return text, False


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@settings(max_examples=300)
@given(text=LETTERS, stops=STOPS, places=st.lists(st.integers(0, 20), max_size=6))
@example(text="abc", stops=["abc", "b"], places=[])
def test_stops_do_not_depend_on_cuts(text: str, stops: list[str], places: list[int]) -> None:
    expected, stopped = letter_by_letter(text, stops)
    finder = StopFinder(stops)
    said, done = "", False
    for piece in cut(text, places):
        if not done:
            new, done = finder.push(piece)
            said += new
            assert expected.startswith(said), "part of a stop string leaked"
    if not done:
        said += finder.finish()
    assert (said, done) == (expected, stopped)
    assert bool(finder.found) == stopped and text.startswith(expected + finder.found)


@given(text=LETTERS, stops=STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    finder = StopFinder(stops)
    said = ""
    for letter in text:
        new, done = finder.push(letter)
        if done:
            return
        said += new
        assert not finder.held or any(stop.startswith(finder.held) for stop in stops)


def output(stops: tuple[str, ...] = (), max_tokens: int = 1000) -> Output:
    return Output(Bytes(), stops, frozenset({END}), max_tokens)


def feed(out: Output, data: bytes, end: bool = False) -> list[Said]:
    said = []
    for token in [*data, END] if end else data:
        said.append(out.push(TokenInfo(token)))
        if said[-1].reason:
            break
    return said


def joined(said: list[Said]) -> tuple[str, bytes, str | None]:
    return "".join(s.text for s in said), bytes(t.id for s in said for t in s.tokens), said[-1].reason


@pytest.mark.parametrize("text", ["answer\nUser: and", "একটি উত্তর\nUser: এবং", "回答\nUser: x", "👩‍👩‍👧\nUser:"])
def test_a_stop_string_ends_the_text_and_its_tokens_do_not_come(text: str) -> None:
    before = text[: text.index("\nUser:")]
    said = feed(output(("\nUser:",)), text.encode())
    assert joined(said) == (before, before.encode(), "stop")
    assert all(before.startswith("".join(s.text for s in said[:n])) for n in range(len(said)))


def test_an_end_token_lets_out_what_was_held_back() -> None:
    assert joined(feed(output(("\nUser:",)), b"yes\nUser", end=True)) == ("yes\nUser", b"yes\nUser", "stop")


def test_the_last_token_lets_out_what_was_held_back() -> None:
    said = feed(output(("\nUser:",), max_tokens=5), b"yes\nUser")
    assert joined(said) == ("yes\nU", b"yes\nU", "length")


def test_a_stop_string_that_is_complete_in_the_last_token_wins_over_the_length() -> None:
    assert joined(feed(output(("\n",), max_tokens=4), b"yes\nno")) == ("yes", b"yes", "stop")


def test_characters_are_never_cut() -> None:
    for said in feed(output(), "বাংলা 中文 👍".encode()):
        assert "\ufffd" not in said.text


def test_a_character_that_is_never_completed_comes_as_a_replacement_at_the_end() -> None:
    assert joined(feed(output(), b"a\xe0\xa6", end=True))[0] == "a\ufffd"


def test_a_stop_string_may_be_completed_by_the_very_last_text() -> None:
    assert joined(feed(output(("\ufffd",)), b"a\xe0\xa6", end=True)) == ("a", b"a", "stop")


@given(data=st.binary(max_size=40), stops=st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3))
def test_every_token_comes_once_and_in_order_unless_a_stop_string_swallows_it(data: bytes, stops: list[str]) -> None:
    text, ids, reason = joined(feed(output(tuple(stops)), data, end=True))
    assert data.startswith(ids)
    whole = data.decode(errors="replace")
    assert reason == "stop"
    if not any(stop in whole for stop in stops):
        assert (text, ids) == (whole, data)
