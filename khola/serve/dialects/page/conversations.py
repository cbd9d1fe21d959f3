"""Conversations: lists, messages, branches, export, and the messages that a model is asked with."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from khola.errors import UnknownOption
from khola.serve.characters import cast
from khola.serve.characters.card import Character
from khola.serve.http.body import json_response, meant, read_json
from khola.serve.kept.database import Lazy
from khola.serve.kept.export import as_json, as_markdown
from khola.serve.kept.history import Change, Conversation, Draft, History
from khola.serve.kept.history import Kept as Message
from khola.serve.operation import Operation, caller
from khola.serve.service import Service

PATH = "/page/conversations"
FILE = {"content-disposition": "attachment"}
"""What is not shown as a page of its own, whatever stands in it."""


class Begin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A conversation to be begun."""

    title: str = ""
    model: str = ""
    character: str = ""
    """Id of a character."""
    greeting: int = 0
    """Which of the character's greetings it begins with."""


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which branch wants an answer, and of which model."""

    leaf: str
    model: str


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask the model with."""

    messages: list[dict[str, str]]
    """Turns as `/v1/chat/completions` takes them."""
    summarised: int
    """Messages for which a summary stands."""


class Whole(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation with all its messages."""

    conversation: Conversation
    messages: list[Message]


class Removed(msgspec.Struct, frozen=True):
    """It is gone."""

    removed: bool = True


def operations(service: Service, kept: Lazy[History]) -> list[Operation]:
    """The addresses of conversations; each sees its caller's own alone."""

    async def listed(request: Request) -> ASGIApp:
        search = request.query_params.get("search", "")[:200]
        return json_response(service, await kept.ask(History.conversations, caller(request).name, search))

    async def begin(request: Request) -> ASGIApp:
        asked = meant(await read_json(request, service), Begin)
        return json_response(service, await kept.ask(_begin, caller(request).name, asked))

    async def one(request: Request) -> ASGIApp:
        return json_response(service, await kept.ask(_whole, caller(request).name, request.path_params["id"]))

    async def change(request: Request) -> ASGIApp:
        asked = meant(await read_json(request, service), Change)
        return json_response(service, await kept.ask(History.change, caller(request).name, request.path_params["id"], asked))

    async def remove(request: Request) -> ASGIApp:
        await kept.ask(History.forget, caller(request).name, request.path_params["id"])
        return json_response(service, Removed())

    async def write(request: Request) -> ASGIApp:
        draft = meant(await read_json(request, service), Draft)
        return json_response(service, await kept.ask(History.write, caller(request).name, request.path_params["id"], draft))

    async def complete(request: Request) -> ASGIApp:
        draft, where = meant(await read_json(request, service), Draft), request.path_params
        return json_response(service, await kept.ask(History.complete, caller(request).name, where["id"], where["message"], draft))

    async def prompt(request: Request) -> ASGIApp:
        asked, key = meant(await read_json(request, service), Question), request.path_params["id"]
        asks = caller(request)
        who = await kept.ask(_character_of, asks.name, key)
        messages, covered = await cast.prompt(
            kept, service.backend, asks.name, key, asked.leaf, model=asked.model, who=who, tenant=asks.tenant
        )
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return json_response(service, Prompt(messages=turns, summarised=covered))

    async def export(request: Request) -> ASGIApp:
        owner, key, form = caller(request).name, request.path_params["id"], request.query_params.get("form", "json")
        whole = await kept.ask(_whole, owner, key)
        if form == "json":
            return Response(as_json(whole.conversation, whole.messages), media_type="application/json", headers=FILE)
        if form == "markdown":
            return Response(as_markdown(whole.conversation, whole.messages), media_type="text/markdown; charset=utf-8", headers=FILE)
        raise UnknownOption(
            "there is no form {form!r}", hint="expected {expected}", form=form[:40], expected="json, markdown", param="form"
        )

    def at(method: Any, path: str, run: Any, summary: str, **more: Any) -> Operation:
        return Operation(method=method, path=PATH + path, run=run, scope="infer", summary=summary, **more)

    return [
        at("GET", "", listed, "Conversations of the caller", answer=list[Conversation]),
        at("POST", "", begin, "Begin a conversation", body=Begin, answer=Conversation),
        at("GET", "/{id}", one, "A conversation with its messages", answer=Whole),
        at("PATCH", "/{id}", change, "Change a conversation", body=Change, answer=Conversation),
        at("DELETE", "/{id}", remove, "Delete a conversation", answer=Removed),
        at("POST", "/{id}/messages", write, "Append a message", body=Draft, answer=Message),
        at("PUT", "/{id}/messages/{message}", complete, "Keep what an answer has become", body=Draft, answer=Message),
        at("POST", "/{id}/prompt", prompt, "What to ask a model with", body=Question, answer=Prompt, work=True),
        at("GET", "/{id}/export", export, "A conversation as a file"),
    ]


def _begin(history: History, owner: str, asked: Begin) -> Conversation:
    """A conversation; one with a character begins with its greeting."""
    if not asked.character:
        return history.begin(owner, title=asked.title, model=asked.model)
    who = _read(history, owner, asked.character)
    made = history.begin(owner, title=asked.title or who.name, model=asked.model, character=asked.character)
    greetings = [text for text in (who.text("first_mes"), *who.texts("alternate_greetings")) if text.strip()]
    if greetings:
        scene = cast.Scene(who=who, persona=history.persona(owner))
        chosen = greetings[asked.greeting % len(greetings)]
        history.write(owner, made.id, Draft(role="assistant", content=scene.filled(chosen), facts={"greeting": True}))
    return history.conversation(owner, made.id)


def _whole(history: History, owner: str, key: str) -> Whole:
    return Whole(conversation=history.conversation(owner, key), messages=history.messages(owner, key))


def _character_of(history: History, owner: str, key: str) -> Character | None:
    """Who a conversation is with; nobody, once the character was deleted."""
    name = history.conversation(owner, key).character
    known = {row["id"] for row in history.characters(owner)} if name else ()
    return _read(history, owner, name) if name in known else None


def _read(history: History, owner: str, key: str) -> Character:
    return Character(data=msgspec.json.decode(history.character(owner, key)["card"]))
