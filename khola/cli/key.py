"""`khola key`: who may use this machine's server."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from khola.cli import options as o
from khola.errors import UnknownOption

if TYPE_CHECKING:
    from khola.cli.talk import Talk
    from khola.serve.access.keys import Keys
    from khola.serve.access.quota import Quota

KeyFile = Annotated[Path | None, typer.Option("--key-file", metavar="FILE", parser=Path, help="File of the keys; default: khola's own.")]


def new(
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="WHAT", help="What the key is for: infer, admin, train, vote; may be given often; default: infer."),
    ] = None,
    days: Annotated[float | None, typer.Option("--days", min=0, metavar="N", help="Days until it ends; default: never.")] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option("--requests-per-minute", min=1, metavar="N", help="Times that it may ask in a minute.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option("--tokens-per-minute", min=1, metavar="N", help="Tokens of prompts and answers that it may use in a minute."),
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option("--tokens-per-day", min=1, metavar="N", help="Tokens of prompts and answers that it may use in a day.")
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option("--at-once", min=1, metavar="N", help="Requests of it that may wait or run at once; default: the server's own limit."),
    ] = None,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="What it is for, to be read in the list.")] = "",
    key_file: KeyFile = None,
    json: o.Json = False,
    lang: o.Lang = None,
) -> None:
    """Make a key and print it: the only time that it is shown.

    Raises:
        UnknownOption: a scope that does not exist.
    """
    from khola.serve.access.keys import SCOPES
    from khola.serve.access.quota import Quota

    asked = scope or ["infer"]
    for name in asked:
        if name not in SCOPES:
            raise UnknownOption("--scope {name}: expected one of {known}", name=name, known=", ".join(SCOPES))
    talk = o.talk_of(json=json, lang=lang)
    quota = Quota(requests_minute=requests_per_minute, tokens_minute=tokens_per_minute, tokens_day=tokens_per_day, at_once=at_once)
    scopes = [name for name in SCOPES if name in asked]
    shown = _keys(key_file, talk.settings.home).new(scopes, days=days, note=note, quota=None if quota == Quota() else quota)
    if json:
        talk.data({"key": shown})
        return
    talk.line(shown)
    talk.say("this is the only time that the key is shown; khola keeps a hash of it")


def list_keys(key_file: KeyFile = None, json: o.Json = False, lang: o.Lang = None) -> None:
    """List the keys, without what opens anything."""
    from msgspec.structs import asdict

    from khola.cli.tables import print_table

    talk = o.talk_of(json=json, lang=lang)
    keys, now = _keys(key_file, talk.settings.home).all(), time.time()
    if json:
        told = ("id", "scopes", "created", "expires", "note")
        talk.data(
            [{**{name: getattr(key, name) for name in told}, "limits": {} if key.quota is None else asdict(key.quota)} for key in keys]
        )
        return
    if not keys:
        talk.say("there are no keys")
        return
    words = talk.words
    rows = [
        [
            key.id,
            ", ".join(key.scopes),
            _day(key.created),
            words("never") if key.expires is None else words("over") if key.expires <= now else _day(key.expires),
            _limits(key.quota, talk),
            key.note,
        ]
        for key in keys
    ]
    print_table(talk, [words("id"), words("for"), words("made"), words("ends"), words("limits"), words("note")], rows)


def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as the list has it.")],
    key_file: KeyFile = None,
    json: o.Json = False,
    lang: o.Lang = None,
) -> None:
    """Take a key away; a running server refuses it from its next request on.

    Raises:
        NotFound: no key has this id.
    """
    talk = o.talk_of(json=json, lang=lang)
    gone = _keys(key_file, talk.settings.home).revoke(key)
    if json:
        talk.data({"revoked": gone.id})
        return
    talk.say("the key {id} opens nothing any more", id=gone.id)


def _keys(path: Path | None, home: Path) -> Keys:
    from khola.serve.access.keys import FILE, Keys

    return Keys(path or home / FILE)


def _limits(quota: Quota | None, talk: Talk) -> str:
    words = talk.words
    if quota is None:
        return ""
    told = [
        quota.requests_minute and words("{count} a minute", count=quota.requests_minute),
        quota.tokens_minute and words("{count} tokens a minute", count=quota.tokens_minute),
        quota.tokens_day and words("{count} tokens a day", count=quota.tokens_day),
        quota.at_once and words("{count} at once", count=quota.at_once),
    ]
    return ", ".join(text for text in told if text)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().date().isoformat()
