"""The catalogue: every card by name, every licence by key, every file of known content by its SHA-256.

A card is read when it is asked for, not before; reading is strict, so a misspelt key in a card is an error and not a lost fact.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar, final

import msgspec

from khola.cards.card import Card, CardFile, Licence
from khola.errors import BadConfig, UnknownModel, UnknownOption

LICENCES = "licences.toml"
CONFIG_DEPTH = 8
"""Longest chain of `config_of`; a longer one goes in a circle."""
LIKELY = 0.7
"""How much of a name must agree with another one for that to be offered."""

Read = TypeVar("Read", Card, Licence)


@final
class Catalogue(Mapping[str, Card]):
    """All cards that khola ships, in the order of their names; a card is read on first use and kept."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._read: dict[str, Card] = {}

    def __getitem__(self, name: str) -> Card:
        if name not in self._read:
            self._read[name] = parse_card(self._texts[name], f"{name}.toml")
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def mentioning(self, text: str) -> Iterator[Card]:
        """Cards whose source has this text somewhere; only those are read."""
        return (self[name] for name, source in self._texts.items() if text in source)


@cache
def cards() -> Mapping[str, Card]:
    """Every shipped card by its name; iterating over names reads no card."""
    return _catalogue()


def card(name: str) -> Card:
    """The card of this name; capital letters do not matter.

    Raises:
        UnknownModel: no card has this name; the hint names the nearest ones.
    """
    known = cards()
    if name.lower() in known:
        return known[name.lower()]
    nearest = nearest_names(name)
    if nearest:
        raise UnknownModel("no model is called {name!r}", hint="did you mean {nearest}?", name=name[:200], nearest=", ".join(nearest))
    raise UnknownModel("no model is called {name!r}", hint="`khola show` lists every model that khola knows", name=name[:200])


def nearest_names(name: str, count: int = 3) -> tuple[str, ...]:
    """Names of the catalogue that a user may have meant, the likeliest first."""
    asked = re.sub("[:_ ]", "-", name.lower().rpartition("/")[2])[:64]
    scores = {known: _likeness(asked, known) for known in cards()}
    likely = sorted((known for known in scores if scores[known] >= LIKELY), key=lambda known: (-scores[known], len(known), known))
    return tuple(likely[:count])


def _likeness(asked: str, known: str) -> float:
    """0 to 1: how much of what was typed agrees with a name, or with the name's beginning."""
    if len(asked) >= 3 and asked in known:
        return 1.0
    return max(_ratio(known, asked), 0.95 * _ratio(known[: len(asked)], asked))


def _ratio(known: str, asked: str) -> float:
    """The ratio of difflib; 0 where a bound that costs a tenth of it says that it stays below `LIKELY`."""
    matcher = difflib.SequenceMatcher(None, known, asked)
    return matcher.ratio() if matcher.real_quick_ratio() >= LIKELY and matcher.quick_ratio() >= LIKELY else 0.0


def config_of(card: Card) -> dict[str, Any]:
    """The configuration of a card, as config.json would have it: that of the card it starts from, and its own keys over it.

    Raises:
        BadConfig: the chain of `config_of` names an unknown card or goes in a circle.
    """
    known, chain = cards(), [card]
    while chain[-1].config_of:
        if chain[-1].config_of not in known or len(chain) > CONFIG_DEPTH:
            text = "card {card}: config_of leads to {base!r}, which is no card or goes in a circle"
            raise BadConfig(text, card=card.name, base=chain[-1].config_of)
        chain.append(known[chain[-1].config_of])
    whole: dict[str, Any] = {}
    for entry in reversed(chain):
        whole |= entry.config
    return whole


def licence(key: str) -> Licence:
    """The licence that cards name by this key.

    Raises:
        UnknownOption: there is no such licence; the hint names the known ones.
    """
    known = licences()
    if key not in known:
        raise UnknownOption("no licence is called {key!r}", hint="known licences: {known}", key=key, known=", ".join(known))
    return known[key]


@cache
def licences() -> Mapping[str, Licence]:
    """Every licence by its key."""
    table = _toml(files(__package__).joinpath(LICENCES).read_text(encoding="utf-8"), LICENCES)
    return {key: _convert(entry, Licence, f"{LICENCES}: {key}") for key, entry in table.items()}


def by_sha256(digest: str) -> tuple[Card, CardFile] | None:
    """The card and its file of this content, wherever the file came from; None for unknown content.

    Args:
        digest: SHA-256 in hexadecimal digits.
    """
    digest = digest.lower()
    if len(digest) != 64:
        return None
    for found in _catalogue().mentioning(digest):
        for file in found.files:
            if file.sha256 == digest:
                return found, file
    return None


def parse_card(text: str, file: str) -> Card:
    """A card from its TOML text.

    Args:
        file: its file name, for messages; the card's `name` must be the same without the ending.
    Raises:
        BadConfig: not TOML, an unknown or missing key, a value of another type, or another name than the file's.
    """
    found = _convert(_toml(text, file), Card, file)
    if f"{found.name}.toml" != file:
        raise BadConfig("{file}: name is {name!r}; expected the file's own name", file=file, name=found.name)
    return found


@cache
def _catalogue() -> Catalogue:
    entries = [entry for entry in files(__package__).iterdir() if entry.name.endswith(".toml") and entry.name != LICENCES]
    entries.sort(key=lambda entry: entry.name)
    return Catalogue({entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8") for entry in entries})


def _toml(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise BadConfig("{file}: not valid TOML: {problem}", file=file, problem=str(problem)) from problem


def _convert(value: Any, kind: type[Read], file: str) -> Read:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as problem:
        raise BadConfig("{file}: {problem}", file=file, problem=str(problem)) from problem
