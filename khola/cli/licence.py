"""`khola licence`: what licences ask, and whether a model may be made from others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from khola.cli import options as o
from khola.cli.talk import Talk
from khola.errors import AskedWrong, Forbidden, KholaError

if TYPE_CHECKING:
    from khola.lineage.licence import Verdict

USES = {"outputs": "teacher-text", "logits": "teacher-logits", "weights": "weights"}

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL…", autocompletion=o.model_names, show_default=False, help="Models, or keys of licences; none lists all licences."
    ),
]
Student = Annotated[
    str,
    typer.Option("--student", metavar="MODEL", help="Ask whether MODEL… may make a new model out of this one.", show_default=False),
]
Use = Annotated[
    Literal["outputs", "logits", "weights"],
    typer.Option("--use", help="What of MODEL… reaches the student: what they write, their probabilities, or their weights."),
]
Name = Annotated[str, typer.Option("--name", help="What the new model will be called; some licences ask for a word.", show_default=False)]
Declared = Annotated[
    list[str] | None,
    typer.Option("--licence", metavar="MODEL=KEY", help="The licence of a model that khola does not know; may be given several times."),
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="NAME=KEY", help="A data set and its licence, or own; may be given several times."),
]


def licence(
    models: Models = None,
    student: Student = "",
    use: Use = "outputs",
    name: Name = "",
    declared: Declared = None,
    data: Data = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
) -> None:
    """Print what licences ask; with --student or --name, whether a model may be made.

    Raises:
        LicenceForbids, UnknownLicence: it may not.
    """
    from khola.cards.catalogue import licences
    from khola.lineage.licence import Source, judge

    talk = o.talk_of(json=json, quiet=quiet, lang=lang)
    asked, said = models or [], pairs_of(declared or [], "--licence")
    if not asked:
        _print_licences(list(licences()), talk)
        return
    known = [key for key in licences() if key.lower() in {model.lower() for model in asked}]
    if known and len(known) == len(asked) and not (student or name):
        _print_licences(known, talk)
        return
    if not (student or name):
        for model in asked:
            _print_model(model, split_keys(said.get(model, "")), talk)
        return
    role: Any = USES[use]
    sources = [Source(model=model, role=role, licences=split_keys(said.get(model, ""))) for model in asked]
    sources += [Source(model=student, role="weights", licences=split_keys(said.get(student, "")))] if student else []
    verdict = judge(name, sources, talk.settings, pairs_of(data or [], "--data"))
    _print_verdict(verdict, talk)
    if not verdict.allowed:
        raise typer.Exit(Forbidden.exit_code)


def pairs_of(texts: list[str], option: str) -> dict[str, str]:
    """NAME=KEY options by name.

    Raises:
        AskedWrong: one has no "=".
    """
    for text in texts:
        if "=" not in text.strip("="):
            raise AskedWrong("{option} {text}: expected NAME=KEY", option=option, text=repr(text)[:200])
    return dict(text.rsplit("=", 1) for text in texts)


def split_keys(said: str) -> tuple[str, ...]:
    """The keys that were declared for a model; several are joined with "+"."""
    return tuple(said.split("+")) if said else ()


def _print_licences(keys: list[str], talk: Talk) -> None:
    import msgspec

    from khola.cards.catalogue import licence as licence_named
    from khola.cli.licence_words import licence_pairs
    from khola.cli.tables import print_pairs

    if talk.json:
        talk.data([{"key": key, **msgspec.to_builtins(licence_named(key))} for key in keys])
        return
    for key in keys:
        talk.line(key)
        print_pairs(talk, licence_pairs((key,), talk))


def _print_model(model: str, declared: tuple[str, ...], talk: Talk) -> None:
    """What one model's licences ask, its parents' among them."""
    from khola.lineage.licence import judge_card
    from khola.lineage.terms import terms_of

    _print_verdict(judge_card(terms_of(model, talk.settings, declared)), talk, made=True)


def _print_verdict(verdict: Verdict, talk: Talk, *, made: bool = False) -> None:
    """The verdict as labelled lines; of a model that was made already, whether that broke a licence."""
    from khola.cli.tables import print_pairs
    from khola.lineage.sentences import commercial_sentence, duty_sentences, reach_sentence

    if talk.json:
        talk.data(verdict_data(verdict))
        return
    words = talk.words
    sure = commercial_sentence(verdict, talk.language)
    if verdict.allowed:
        said = sure if made else words("allowed; {commercial}", commercial=sure)
    else:
        said = words("it breaks a licence") if made else words("not allowed")
    pairs = [(verdict.name or words("the new model"), said)]
    for refusal in verdict.refusals:
        pairs.append((words("because"), refusal.told(talk.language)))
        pairs.append((words("what to do"), refusal.hint(talk.language)))
    for claim in verdict.binding:
        clause = f" ({claim.clause})" if claim.clause else ""
        pairs.append((claim.key, f"{reach_sentence(claim, talk.language)}{clause}  {claim.licence.url}"))
        pairs.extend(("", f"- {sentence}") for sentence in duty_sentences(claim, talk.language))
    free = [claim for claim in verdict.claims if not claim.binds]
    pairs.extend((claim.key, words("{how}: asks nothing of it", how=reach_sentence(claim, talk.language))) for claim in free)
    print_pairs(talk, pairs)
    talk.aside("this is a machine's reading of the licences, not legal advice")


def verdict_data(verdict: Verdict) -> dict[str, Any]:
    """A verdict as `--json` prints it."""
    from khola.lineage.sentences import duty_sentences

    return {
        "name": verdict.name,
        "allowed": verdict.allowed,
        "commercial": verdict.commercial,
        "licences": list(verdict.licences),
        "name_prefixes": list(verdict.name_prefixes),
        "mau_limit": verdict.mau_limit,
        "use_policies": list(verdict.use_policies),
        "unread": list(verdict.unread),
        "refusals": [_refusal(refusal) for refusal in verdict.refusals],
        "claims": [
            {
                "licence": claim.key,
                "model": claim.model,
                "way": claim.way,
                "path": list(claim.path),
                "binds": claim.binds,
                "clause": claim.clause,
                "duties": list(duty_sentences(claim, "en")) if claim.binds else [],
            }
            for claim in verdict.claims
        ],
    }


def _refusal(error: KholaError) -> dict[str, Any]:
    return {"code": error.code, "message": error.told(), "hint": error.hint(), "facts": error.facts}
