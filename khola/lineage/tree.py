"""A model's descent as lines of a tree: each ancestor below its child, once; a second time it is only named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from khola.cards.card import Card
from khola.cards.catalogue import cards
from khola.lineage.record import Record


@dataclass(frozen=True, kw_only=True)
class Kin:
    """One line of a tree."""

    name: str
    depth: int
    """0 is the model itself."""
    how: str = ""
    """A word of `khola.cards.card.How`, or a role of `khola.lineage.record.Role`; empty for the model itself."""
    coefficient: float | None = None
    lab: str = ""
    released: str = ""
    licences: tuple[str, ...] = ()
    record: str = ""
    """SHA-256 of its record; empty where a card or nothing tells of it."""
    again: bool = False
    """Its own ancestors stand further up."""


def tree_of_card(card: Card) -> Iterator[Kin]:
    """A card and everything that cards tell of its parents."""
    yield from _carded(card, 0, "", set())


def tree_of_record(record: Record) -> Iterator[Kin]:
    """A record and everything that records and cards tell of its parents."""
    yield from _recorded(record, record, 0, "", None, set())


def drawn(kin: list[Kin]) -> list[tuple[str, Kin]]:
    """Each line with its branches: "├─ ", "└─ ", "│  "."""
    lines: list[tuple[str, Kin]] = []
    for place, one in enumerate(kin):
        branches = ""
        for depth in range(1, one.depth + 1):
            following = next((other.depth for other in kin[place + 1 :] if other.depth <= depth), 0)
            last = following < depth
            branches += ("└─ " if last else "├─ ") if depth == one.depth else "   " if last else "│  "
        lines.append((branches, one))
    return lines


def _carded(card: Card, depth: int, how: str, seen: set[str], coefficient: float | None = None) -> Iterator[Kin]:
    again = card.name in seen and bool(card.parents)
    seen.add(card.name)
    yield Kin(
        name=card.name, depth=depth, how=how, coefficient=coefficient, lab=card.lab, released=card.released,
        licences=(card.licence, *card.further_licences), again=again,
    )  # fmt: skip
    if not again:
        for parent in card.parents:
            yield from _carded(cards()[parent.name], depth + 1, parent.how, seen)


def _recorded(record: Record, chain: Record, depth: int, how: str, coefficient: float | None, seen: set[str]) -> Iterator[Kin]:
    again = record.sha256 in seen and bool(record.parents)
    seen.add(record.sha256)
    yield Kin(
        name=record.name, depth=depth, how=how, coefficient=coefficient, released=record.created[:10], licences=record.licences,
        record=record.sha256, again=again,
    )  # fmt: skip
    for parent in () if again else record.parents:
        above = chain.ancestor(parent.record) if parent.record else None
        if above is not None:
            yield from _recorded(above, chain, depth + 1, parent.role, parent.coefficient, seen)
        elif parent.card in cards():
            yield from _carded(cards()[parent.card], depth + 1, parent.role, seen, parent.coefficient)
        else:
            kin = Kin(name=parent.name, depth=depth + 1, how=parent.role, coefficient=parent.coefficient, licences=parent.licences)
            yield kin
