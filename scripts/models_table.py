"""Writes docs/models.md from the cards and from what the tests measured; a test asserts that the page is up to date.

`make models-page` measures the parity errors anew, records them in tests/models/parity.json, and writes the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from khola.api.fit import Plan, fit
from khola.cards.card import Card
from khola.cards.catalogue import cards, config_of, licence
from khola.cards.sizes import Sizes, sizes_of
from khola.models import ALIASES
from khola.native.probe import Machine
from khola.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
PARITY = ROOT / "tests" / "models" / "parity.json"
CONTEXT = 4096
FREE = 22_000_000_000
"""Bytes that a machine of 24 GB has left for a model."""

HEAD = """# Models

Every model that khola has a card for. `khola show NAME` prints the card, `khola fit NAME` says what the model takes on your machine.
This page is written by `scripts/models_table.py`; `make models-page` measures the parity errors first.

*Parity error* is the largest difference of a logit in float32 from {reference}, over tiny random models that take every branch
of the architecture (`tests/models`); "-" where nothing was measured. *In 24 GB* is the widest number format in which a model and a context
of {context:,} tokens fit into a machine of 24 GB, of which {free} GB are free.

"""

SUMMARY = "| Family | Sizes | Architecture | Licence | Parity error | In 24 GB |\n|---|---|---|---|---:|---|"

DETAILS = """
The models one by one. *Weights* are the numbers in the checkpoint, *active* those that one token reads. *Outputs* says whether the licence
lets answers train other models. Licences are summed up as data; the text behind the link is what counts.
"""

COLUMNS = (
    "| Name | Weights | Active | Architecture | Context | Chat format | Licence | Commercial | Outputs | In 24 GB |\n"
    "|---|---:|---:|---|---:|---|---|---|---|---|"
)

OUTPUTS = {"yes": "may train others", "no": "may not train others", "name-rule": "name rule"}

MACHINE = Machine(
    cpu="", architecture="x86_64", system="Linux", cores=2, instruction_sets=(), memory_bytes=24_000_000_000, available_bytes=FREE,
    disk_free_bytes=1 << 50, read_bytes_s=0,
)  # fmt: skip


def page() -> str:
    """The whole page: a summary by family and architecture, then a section for each family."""
    known = sorted(cards().values(), key=lambda card: (card.released[:7], _parameters(card), card.name))
    families = sorted({card.family for card in known})
    recorded = json.loads(PARITY.read_text(encoding="utf-8"))
    plans = {card.name: _plan(card) for card in known if card.weights != "none"}
    sections = [HEAD.format(reference=recorded["reference"], context=CONTEXT, free=FREE // 10**9) + SUMMARY]
    for family in families:
        members = [card for card in known if card.family == family and card.name in plans]
        for architecture in sorted({card.architecture for card in members}):
            of_kind = [card for card in members if card.architecture == architecture]
            measured = [found for kind, found in recorded["logits"].items() if ALIASES.get(kind, kind) == architecture]
            sections.append(_summary(family, of_kind, plans, [error for found in measured for error in found.values()]))
    sections.append(DETAILS)
    for family in families:
        members = [card for card in known if card.family == family]
        labs = ", ".join(dict.fromkeys(f"{card.lab} ({card.country})" for card in members))
        sections.append("\n".join([f"## {family}\n", f"{labs}.\n", COLUMNS, *(_row(card, plans.get(card.name)) for card in members), ""]))
    return "\n".join(sections)


def _summary(family: str, members: Sequence[Card], plans: dict[str, Plan], errors: Sequence[float]) -> str:
    """One line: a family's models of one architecture."""
    by_size = {card.parameters: card for card in sorted(members, key=_parameters, reverse=True)}
    sizes = list(reversed(by_size))
    fitting = [f"{size} {plans[by_size[size].name].best}" for size in sizes if plans[by_size[size].name].fits]
    cells = (
        family,
        ", ".join(sizes),
        f"`{members[0].architecture}`",
        ", ".join(sorted({key for card in members for key in (card.licence, *card.further_licences)})),
        f"{max(errors):.0e}" if errors else "-",
        ", ".join(fitting) or _why_not(plans[members[0].name]),
    )
    return f"| {' | '.join(cells)} |"


def _row(card: Card, plan: Plan | None) -> str:
    """One model; None is the plan of one whose weights were not published."""
    record = licence(card.licence)
    cells = (
        f"`{card.name}`",
        f"{_parameters(card):,}" if plan else "not published",
        f"{_sizes(card).active:,}" if card.active_parameters else "all" if plan else "-",
        f"`{card.architecture}`" if plan else "-",
        f"{card.context:,}",
        card.chat or "-",
        f"[{card.licence}]({record.url})",
        record.commercial,
        OUTPUTS[record.distil_outputs],
        "-" if plan is None else plan.best if plan.fits else _why_not(plan),
    )
    return f"| {' | '.join(cells)} |"


def _plan(card: Card) -> Plan:
    """What the model takes on a machine of 24 GB, natively."""
    settings = Settings(home=ROOT / "no-models", user_home=ROOT / "no-models")
    return fit(card.name, settings=settings, context=min(CONTEXT, card.context), machine=MACHINE, interpreter="native")


def _why_not(plan: Plan) -> str:
    return "too large" if plan.implemented else "not yet"


def _parameters(card: Card) -> int:
    return 0 if card.weights == "none" else _sizes(card).parameters


def _sizes(card: Card) -> Sizes:
    return sizes_of(config_of(card), card.name)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
