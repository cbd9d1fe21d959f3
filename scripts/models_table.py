"""Writes docs/models.md from the cards; a test asserts that the page is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from khola.cards.card import Card
from khola.cards.catalogue import cards, config_of, licence
from khola.cards.formats import file_bytes
from khola.cards.sizes import sizes_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"

HEAD = """# Models

Every model that khola has a card for. `khola show NAME` prints the card, `khola fit NAME` says what the model takes on your machine.
This page is written by `scripts/models_table.py`.

*Weights* are the numbers in the checkpoint. *4-bit file* is the estimated length of a q4_k_m file, in GB. *Outputs* says whether the
licence lets answers train other models. Licences are summed up as data; the text behind the link is what counts.
"""

COLUMNS = "| Name | Weights | 4-bit file | Context | Chat format | Licence | Commercial | Outputs |\n|---|---:|---:|---:|---|---|---|---|"

OUTPUTS = {"yes": "may train others", "no": "may not train others", "name-rule": "name rule"}


def page() -> str:
    """The whole page, a section for each family."""
    known = list(cards().values())
    families = dict.fromkeys(card.family for card in sorted(known, key=lambda card: (card.released, card.name)))
    sections = [HEAD]
    for family in sorted(families):
        members = sorted((card for card in known if card.family == family), key=lambda card: (card.released[:7], _weights(card), card.name))
        labs = ", ".join(dict.fromkeys(f"{card.lab} ({card.country})" for card in members))
        sections.append("\n".join([f"## {family}\n", f"{labs}.\n", COLUMNS, *map(_row, members), ""]))
    return "\n".join(sections)


def _row(card: Card) -> str:
    record = licence(card.licence)
    size = file_bytes(sizes_of(config_of(card), card.name), "q4_k_m") / 1e9 if card.weights != "none" else 0
    cells = (
        f"`{card.name}`",
        f"{_weights(card):,}" if size else "not published",
        "-" if not size else f"{size:.2f}" if size < 9.995 else f"{size:.1f}",
        f"{card.context:,}",
        card.chat or "-",
        f"[{card.licence}]({record.url})",
        record.commercial,
        OUTPUTS[record.distil_outputs],
    )
    return f"| {' | '.join(cells)} |"


def _weights(card: Card) -> int:
    return sizes_of(config_of(card), card.name).parameters if card.weights != "none" else 0


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
