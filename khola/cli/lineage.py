"""`khola lineage`: who a model was made from, as a tree; its record checked, or written as other tools read it."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from khola.cli import options as o
from khola.cli.talk import Talk
from khola.errors import UnknownModel

if TYPE_CHECKING:
    from khola.lineage.record import Record
    from khola.lineage.tree import Kin

HOW = {
    "fine-tuned": "fine-tuned",
    "initialised": "initialised",
    "distilled": "distilled",
    "quantised": "quantised",
    "merged": "merged",
    "adapted": "adapted",
    "pruned": "pruned",
    "same weights": "same weights",
    "weights": "weights",
    "merge-term": "term of a merge",
    "tokenizer": "tokenizer",
    "teacher-logits": "teacher, by its probabilities",
    "teacher-text": "teacher, by its texts",
}

Verify = Annotated[bool, typer.Option("--verify", help="Hash every file, and check the chain of records and every parent on this disk.")]
Export = Annotated[
    Literal["spdx", "cyclonedx", "card", "front-matter"] | None,
    typer.Option("--export", help="Print the record as SPDX 3 or CycloneDX 1.7 JSON, as a model card or as its front matter."),
]


def lineage(
    model: o.ModelName,
    verify: Verify = False,
    export: Export = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
) -> None:
    """Print a model's descent.

    Raises:
        UnknownModel: there is neither a record nor a card.
        BadLineage, HashMismatch, MissingFile: the record, or a file, is not as it should be.
    """
    from khola.cards.catalogue import cards
    from khola.lineage.tree import tree_of_card, tree_of_record

    talk = o.talk_of(json=json, quiet=quiet, lang=lang)
    path = _path_of(model, talk)
    if verify:
        _verify(model, path, talk)
        return
    record = _record(path)
    if export is not None:
        _export(model, record, export, talk)
    elif record is not None:
        _print(list(tree_of_record(record)), talk)
    elif model.lower() in cards():
        _print(list(tree_of_card(cards()[model.lower()])), talk)
    else:
        raise _no_record(model)


def _path_of(model: str, talk: Talk) -> Path | None:
    """Its files; None where only a card tells of it."""
    from khola.cards.catalogue import cards
    from khola.errors import NotPulled
    from khola.loader.find import find

    try:
        return find(model, talk.settings).path
    except (NotPulled, UnknownModel):
        if model.lower() in cards():
            return None
        raise


def _record(path: Path | None) -> Record | None:
    from khola.lineage.record import record_beside

    return record_beside(path) if path is not None else None


def _no_record(model: str) -> UnknownModel:
    return UnknownModel(
        "{model}: there is no record of who it was made from", hint="`khola licence {model}` says what is known of it", model=model
    )


def _verify(model: str, path: Path | None, talk: Talk) -> None:
    """Say what is wrong, each; the first of it ends the command."""
    from khola.lineage.compose import verify

    if path is None or _has_none(path):
        raise _no_record(model)
    problems = list(verify(path, talk.settings, talk.say))
    for problem in problems[1:]:
        talk.error(problem)
    if problems:
        raise problems[0]
    if talk.json:
        talk.data({"model": model, "verified": True})
    else:
        talk.line(talk.words("{model}: every file and every record above it is as it was written", model=model))


def _has_none(path: Path) -> bool:
    from khola.lineage.record import NAME, record_path

    return not record_path(path).exists() and not (path.is_file() and (path.parent / NAME).exists())


def _export(model: str, record: Record | None, form: str, talk: Talk) -> None:
    from khola.lineage.bills import cyclonedx, spdx
    from khola.lineage.model_card import front_matter, model_card

    if record is None:
        raise _no_record(model)
    if form == "card":
        talk.line(model_card(record).rstrip())
        return
    built = {"spdx": spdx, "cyclonedx": cyclonedx, "front-matter": front_matter}[form](record)
    talk.line(json_module.dumps(built, ensure_ascii=False, indent=None if talk.json else 1))


def _print(kin: list[Kin], talk: Talk) -> None:
    from khola.lineage.tree import drawn

    if talk.json:
        talk.data([asdict(one) for one in kin])
        return
    for branches, one in drawn(kin):
        facts = [how_words(one.how, talk)] if one.how else []
        facts += [f"{one.coefficient:g}"] if one.coefficient is not None else []
        facts += [" ".join(filter(None, (one.lab, one.released[:4]))), " + ".join(one.licences)]
        facts += [f"SHA-256 {one.record[:12]}"] if one.record else []
        facts += [talk.words("see above")] if one.again else []
        talk.line(f"{branches}{one.name}: {', '.join(filter(None, facts))}")


def how_words(how: Any, talk: Talk) -> str:
    """How a child was made from its parent, in the user's language."""
    return talk.words(HOW[how])
