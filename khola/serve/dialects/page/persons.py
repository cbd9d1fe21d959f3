"""Characters and the persona that they speak to."""

from __future__ import annotations

from importlib.resources import files
from sqlite3 import Row
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from khola.errors import NotFound, UnknownOption
from khola.serve.characters.card import LARGEST_PICTURE, SIGNATURE, Character, Version, character, read_png, write_json, write_png
from khola.serve.characters.card import read_json as read_card
from khola.serve.dialects.page.conversations import FILE, Removed
from khola.serve.http.body import json_response, meant, read_bytes, read_json
from khola.serve.kept.database import Lazy
from khola.serve.kept.history import History, Persona
from khola.serve.operation import Operation, caller
from khola.serve.service import Service

PATH = "/page/characters"
VERSIONS: dict[str, Version] = {"v1": "v1", "v2": "v2", "v3": "v3"}


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A character as the page shows it."""

    id: str
    data: dict[str, Any]
    """The card's data object, unknown fields included."""
    pictured: bool
    updated: float
    unread: int
    """Entries of its lore that khola does not tell: their keys are regular expressions."""


class Written(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A character as the page's form writes it."""

    data: dict[str, Any]


def operations(service: Service, kept: Lazy[History]) -> list[Operation]:
    """The addresses of characters; each sees its caller's own alone."""

    async def listed(request: Request) -> ASGIApp:
        return json_response(service, [_shown(row) for row in await kept.ask(_all, caller(request).name)])

    async def take(request: Request) -> ASGIApp:
        raw = await read_bytes(request, LARGEST_PICTURE)
        return json_response(service, await kept.ask(_take, caller(request).name, raw))

    async def one(request: Request) -> ASGIApp:
        return json_response(service, _shown(await kept.ask(History.character, caller(request).name, request.path_params["id"])))

    async def write(request: Request) -> ASGIApp:
        who = character(meant(await read_json(request, service), Written).data)
        return json_response(service, await kept.ask(_write, caller(request).name, request.path_params["id"], who))

    async def remove(request: Request) -> ASGIApp:
        await kept.ask(History.forget_character, caller(request).name, request.path_params["id"])
        return json_response(service, Removed())

    async def portrait(request: Request) -> ASGIApp:
        row = await kept.ask(History.character, caller(request).name, request.path_params["id"])
        if row["portrait"] is None:
            raise NotFound("there is no {key!r} here", key="portrait")
        return Response(row["portrait"], media_type="image/png", headers=FILE)

    async def export(request: Request) -> ASGIApp:
        row = await kept.ask(History.character, caller(request).name, request.path_params["id"])
        return _export(row, request.query_params.get("form", "png"))

    async def persona(request: Request) -> ASGIApp:
        return json_response(service, await kept.ask(History.persona, caller(request).name))

    async def set_persona(request: Request) -> ASGIApp:
        asked = meant(await read_json(request, service), Persona)
        return json_response(service, await kept.ask(History.set_persona, caller(request).name, asked))

    def at(method: Any, path: str, run: Any, summary: str, **more: Any) -> Operation:
        return Operation(method=method, path=path, run=run, scope="infer", summary=summary, **more)

    return [
        at("GET", PATH, listed, "Characters of the caller", answer=list[Shown]),
        at("POST", PATH, take, "Import a character card", types=("application/json", "image/png"), answer=Shown),
        at("GET", PATH + "/{id}", one, "A character", answer=Shown),
        at("PUT", PATH + "/{id}", write, "Change a character", body=Written, answer=Shown),
        at("DELETE", PATH + "/{id}", remove, "Delete a character", answer=Removed),
        at("GET", PATH + "/{id}/portrait", portrait, "The picture of a character"),
        at("GET", PATH + "/{id}/export", export, "A character as a card: png, v1, v2 or v3"),
        at("GET", "/page/persona", persona, "Whom characters speak to", answer=Persona),
        at("PUT", "/page/persona", set_persona, "Say whom characters speak to", body=Persona, answer=Persona),
    ]


def samples() -> list[Character]:
    """The characters that khola brings."""
    folder = files("khola.serve.characters").joinpath("cards")
    return [
        read_card(entry.read_bytes()) for entry in sorted(folder.iterdir(), key=lambda entry: entry.name) if entry.name.endswith(".json")
    ]


def _all(history: History, owner: str) -> list[Row]:
    """Characters of an owner; one who never had any gets those that khola brings."""
    if history.meets(owner):
        for who in samples():
            _keep(history, owner, "", who, None)
    return history.characters(owner)


def _take(history: History, owner: str, raw: bytes) -> Shown:
    who, picture = read_png(raw) if raw.startswith(SIGNATURE) else (read_card(raw), None)
    return _shown(history.character(owner, _keep(history, owner, "", who, picture)))


def _write(history: History, owner: str, key: str, who: Character) -> Shown:
    return _shown(history.character(owner, _keep(history, owner, key, who, None)))


def _keep(history: History, owner: str, key: str, who: Character, picture: bytes | None) -> str:
    return history.keep_character(owner, key, who.name, msgspec.json.encode(who.data).decode(), picture)


def _shown(row: Row) -> Shown:
    who = Character(data=msgspec.json.decode(row["card"]))
    unread = sum(bool(entry.use_regex) for entry in who.book.entries)
    return Shown(id=row["id"], data=who.data, pictured=bool(row["pictured"]), updated=row["updated"], unread=unread)


def _export(row: Row, form: str) -> Response:
    who = Character(data=msgspec.json.decode(row["card"]))
    if form == "png":
        return Response(write_png(who, row["portrait"]), media_type="image/png", headers=FILE)
    if version := VERSIONS.get(form):
        return Response(write_json(who, version), media_type="application/json", headers=FILE)
    raise UnknownOption("there is no form {form!r}", hint="expected {expected}", form=form[:40], expected="png, v1, v2, v3", param="form")
