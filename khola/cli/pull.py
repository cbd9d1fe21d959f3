"""`khola pull`: bring a model to this disk; the only command that opens the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from khola.cli.options import Json, Lang, ModelName, Off, Quiet, Yes, talk_of
from khola.cli.talk import Talk

if TYPE_CHECKING:
    from khola.api.library import Offer
    from khola.fetch.library import Entry

INTERRUPTED = 130

File = Annotated[str, typer.Option("--file", help="Take this file of several.", show_default=False)]
Format = Annotated[str, typer.Option("--format", help="Take the file of this number format, for instance q4_0.", show_default=False)]
IfMissing = Annotated[bool, typer.Option("--if-missing", help="Do nothing when the files are here in their right size.")]
Repair = Annotated[bool, typer.Option("--repair", help="Check every file that is here, and fetch damaged ones again.")]
Name = Annotated[str, typer.Option("--name", help="What to call it here; default: its own name.", show_default=False)]


def pull(
    model: ModelName,
    file: File = "",
    number_format: Format = "",
    name: Name = "",
    if_missing: IfMissing = False,
    repair: Repair = False,
    json: Json = False,
    quiet: Quiet = False,
    yes: Yes = False,
    offline: Off = False,
    lang: Lang = None,
) -> None:
    """Bring a model to this disk; what is here and right is not fetched again."""
    talk = talk_of(json=json, quiet=quiet, lang=lang, offline=offline)
    entry = bring(model, talk, yes=yes, name=name, file=file, number_format=number_format, if_missing=if_missing, repair=repair)
    show_entry(entry, talk)


def bring(model: str, talk: Talk, *, yes: bool = False, **options: Any) -> Entry:
    """Fetch a model with everything said around it: what comes, under which licence, how far it is.

    Args:
        yes: do not ask.
        options: further ones of `khola.api.library.pull`, which also says what is raised.
    """
    from khola.api import library
    from khola.cli.bars import Bar

    try:
        with Bar(talk) as bar:
            return library.pull(
                model,
                settings=talk.settings,
                progress=bar.draw,
                say=bar.say,
                approve=lambda offer: _approved(offer, talk, yes),
                **options,
            )
    except KeyboardInterrupt:
        talk.say("stopped; what was fetched is kept, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None


def show_entry(entry: Entry, talk: Talk) -> None:
    """Print where a model lies and what to do with it."""
    if talk.json:
        talk.data(entry_data(entry))
        return
    for file in entry.weights:
        talk.line(str(file.path))
    if not entry.weights:
        talk.line(str(entry.folder))
    talk.say("try it: khola chat {name}", name=entry.name)


def entry_data(entry: Entry) -> dict[str, Any]:
    """A model on this disk, as plain data."""
    files = [{"path": str(file.path), "bytes": file.bytes, "sha256": file.sha256, "format": file.format} for file in entry.files]
    return {
        "name": entry.name,
        "folder": str(entry.folder),
        "bytes": entry.bytes,
        "verified": entry.verified,
        "missing": list(entry.missing),
        "source": entry.source,
        "revision": entry.revision,
        "card": entry.card,
        "pulled": entry.pulled,
        "linked": entry.linked,
        "files": files,
    }


def _approved(offer: Offer, talk: Talk, yes: bool) -> bool:
    """Say what would come and under which licence; ask where somebody can answer."""
    _tell(offer, talk)
    if yes or not offer.fetch_bytes or not talk.interactive:
        return True
    return typer.confirm(talk.words("fetch it?"), default=True, err=True)


def _tell(offer: Offer, talk: Talk) -> None:
    from khola.cli.tables import size
    from khola.fetch.listing import reason_text
    from khola.lineage.sentences import licence_sentences

    order = offer.order
    formats = ", ".join(sorted({file.format for file in order.files if file.format})) or "-"
    talk.say(
        "{name}  {formats}  {size}; to fetch: {fetch}, free: {free} in {folder}",
        name=order.name,
        formats=formats,
        size=size(order.bytes) if order.bytes else "?",
        fetch=size(offer.fetch_bytes) if order.bytes else "?",
        free=size(offer.free_bytes),
        folder=offer.folder,
    )
    for left_out in order.left_out:
        if left_out.reason in ("pickle", "archive"):
            talk.say("left out: {path}: {reason}", path=left_out.path, reason=reason_text(left_out.reason, talk.language))
    if offer.licence is None:
        talk.say("licence: khola has no card for this source; read what its publisher says")
        return
    first, *others = licence_sentences(offer.licence, talk.language)
    talk.say("licence: {licence}: {commercial}; {url}", licence=offer.licence.name, commercial=first, url=offer.licence.url)
    if offer.licence.commercial != "yes":
        for sentence in others:
            talk.say("- {sentence}", sentence=sentence)
