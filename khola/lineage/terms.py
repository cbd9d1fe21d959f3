"""What is known of a model's licences and of its parents': from its record, its card, the library, or what the user says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from khola.cards.card import Card
from khola.cards.catalogue import by_sha256, cards, nearest_names
from khola.cards.catalogue import licence as licence_named
from khola.errors import AskedWrong, NotPulled, UnknownLicence, UnknownModel
from khola.fetch.disk import sha256_of
from khola.fetch.library import Library
from khola.lineage.record import TAUGHT, Record, record_beside
from khola.loader.find import Located, find
from khola.settings import Settings

Way = Literal["weights", "outputs"]
"""Whether a part of a model, or only what it wrote, reaches another one."""
OWN = "own"
"""What a user says of data that nobody else has a right to."""
MAX_DEPTH = 64


@dataclass(frozen=True, kw_only=True)
class Terms:
    """One model with its descent."""

    name: str
    lab: str = ""
    """Empty where a user made it."""
    licences: tuple[str, ...] = ()
    """Under which it was published, keys of licences.toml; those of its parents are theirs."""
    parents: tuple[tuple[Terms, Way], ...] = ()
    data: tuple[tuple[str, str], ...] = ()
    """Data sets and their licences."""
    card: str = ""
    record: Record | None = None
    path: Path | None = None
    """Its GGUF file or folder; None where it is not on this disk."""


def terms_of(model: str, settings: Settings, declared: tuple[str, ...] = ()) -> Terms:
    """The descent of a model.

    Args:
        model: a path, a name in the library, a card's name, or what an address calls it.
        declared: licences that the user names for a model of which khola knows none.
    Raises:
        UnknownLicence: nothing says under which licence it stands.
        AskedWrong: licences are declared for a model that khola knows better.
        BadLineage: its record is damaged or was changed.
    """
    for key in declared:
        licence_named(key)
    located = _located(model, settings)
    found = _found(model, located, settings)
    if found is None:
        if declared:
            return Terms(name=located.name if located else model, licences=declared, path=located.path if located else None)
        raise _unknown(model, model)
    bare = next(unlicensed(found), None)
    if bare is not None:
        if not declared:
            raise _unknown(bare.name, model)
        return replace(found, licences=declared)
    if declared and set(declared) != set(found.licences):
        raise AskedWrong(
            "{model}: khola knows its licences: {known}; not {declared}",
            hint="leave its --licence out",
            model=model,
            known=", ".join(found.licences) or "-",
            declared=", ".join(declared),
        )
    return found


def whatever_is_known(model: str, settings: Settings) -> Terms:
    """The descent of a model on this disk, as far as anything tells of it; nothing is asked of its licence.

    Raises:
        UnknownModel, NotPulled: it is not on this disk.
    """
    located = find(model, settings)
    return _found(model, located, settings) or Terms(name=located.name, path=located.path)


def unlicensed(terms: Terms) -> Iterator[Terms]:
    """Ancestors of which nothing is known but their names; what a user made from nothing is the user's own."""
    if not (terms.licences or terms.parents or terms.record):
        yield terms
    for parent, _ in terms.parents:
        yield from unlicensed(parent)


def _unknown(bare: str, asked: str) -> UnknownLicence:
    """Nothing is known of one model, itself or above the one that was asked for."""
    text = "{model}: nothing says under which licence it stands, so nothing may be made from it"
    nearest = nearest_names(bare)
    if nearest:
        hint = "did you mean {nearest}? otherwise read its licence and name it: --licence {asked}=KEY; `khola licence` lists the keys"
        return UnknownLicence(text, hint=hint, model=bare, asked=asked, nearest=", ".join(nearest))
    plain = "read its licence and name it: --licence {asked}=KEY; `khola licence` lists the keys"
    return UnknownLicence(text, hint=plain, model=bare, asked=asked)


def _located(model: str, settings: Settings) -> Located | None:
    """Its files, if they are on this disk."""
    try:
        return find(model, settings)
    except (NotPulled, UnknownModel):
        return None


def _found(model: str, located: Located | None, settings: Settings) -> Terms | None:
    if located is None:
        return of_card(cards()[model.lower()]) if model.lower() in cards() else None
    record = record_beside(located.path)
    if record is not None:
        return of_record(record, located.path)
    known = by_sha256(sha256_of(located.path)) if located.card is None and located.path.is_file() else None
    card = located.card or (known[0] if known else None)
    if card is not None:
        return of_card(card, path=located.path)
    entry = Library(settings).find(located.name)
    if entry is None or not entry.licences or not located.path.is_relative_to(entry.folder):
        return None
    return Terms(name=located.name, licences=entry.licences, path=located.path)


def of_card(card: Card, path: Path | None = None, depth: int = 0) -> Terms:
    """The descent that a card and the cards above it tell."""
    parents: tuple[tuple[Terms, Way], ...] = ()
    if depth < MAX_DEPTH:
        parents = tuple(
            (of_card(cards()[parent.name], depth=depth + 1), "outputs" if parent.how == "distilled" else "weights")
            for parent in card.parents
        )
    return Terms(name=card.name, lab=card.lab, licences=(card.licence, *card.further_licences), parents=parents, card=card.name, path=path)


def of_record(record: Record, path: Path | None = None) -> Terms:
    """The descent that a record, whose chain of hashes has been checked, and the records and cards above it tell."""
    return _told(record, record, {}, path)


def _told(record: Record, chain: Record, built: dict[str, Terms], path: Path | None = None) -> Terms:
    """One record of a chain; `built` holds what was built of it, so that an ancestor of several children is built once."""
    parents: list[tuple[Terms, Way]] = []
    for parent in record.parents:
        above = chain.ancestor(parent.record) if parent.record else None
        if above is not None:
            terms = built.get(above.sha256) or _told(above, chain, built)
        elif parent.card in cards():
            terms = of_card(cards()[parent.card])
        else:
            terms = Terms(name=parent.name, lab=parent.lab, licences=parent.licences)
        parents.append((terms, "outputs" if parent.role in TAUGHT else "weights"))
    data = tuple((one.name, one.licence) for one in record.data)
    built[record.sha256] = Terms(name=record.name, parents=tuple(parents), data=data, record=record, path=path)
    return built[record.sha256]
