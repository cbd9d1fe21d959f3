"""The catalogue: every card with its licence, what a model would take here, pulls with their progress, loading and unloading."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from khola.cards import catalogue
from khola.cards.card import Licence, Parent
from khola.errors import KholaError, NotFound
from khola.lineage.licence import Verdict
from khola.serve.backend import ModelState
from khola.serve.http.body import json_response, meant, read_json
from khola.serve.http.refusal import error_body
from khola.serve.http.sse import Event, Events, event_response
from khola.serve.operation import Operation
from khola.serve.pulls import Pull, Pulls, fetcher
from khola.serve.service import Service

LOOK_S = 0.25
"""Between two looks at running pulls."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows of a card; fields as in `khola.cards.card.Card`."""

    name: str
    title: str
    family: str
    lab: str
    country: str
    released: str
    parameters: str
    active_parameters: str
    context: int
    languages: tuple[str, ...]
    thinking: str
    licences: tuple[str, ...]
    parents: tuple[Parent, ...]
    inherited: tuple[str, ...]
    """Licences of its ancestors that ask something of it, beside its own."""
    forbidden_by: tuple[str, ...]
    """Ancestors whose licence does not let it be made from them."""
    name_wanted: str
    """What its name would have to begin with, and does not; empty otherwise."""
    weights: str
    chat: bool
    about: str
    runs: bool
    """khola has its architecture."""
    file_bytes: int
    """Of the file that a pull would bring; 0 where no card says."""


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be shown without asking a model."""

    cards: tuple[Entry, ...]
    licences: dict[str, Licence]
    models: list[ModelState]
    here: list[str]
    """Names of the models on this disk."""
    free_bytes: int
    """Memory that could be taken now."""


class Named(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model."""

    model: str


def operations(service: Service) -> list[Operation]:
    """The addresses of models."""
    pulls = Pulls(fetcher(service.settings))

    async def shown(request: Request) -> ASGIApp:
        models = await service.backend.models()
        return json_response(service, await asyncio.to_thread(_catalogue, service, models))

    async def fits(request: Request) -> ASGIApp:
        return json_response(service, await asyncio.to_thread(_plan, service, request.path_params["model"]))

    async def running(request: Request) -> ASGIApp:
        return json_response(service, pulls.all())

    async def pull(request: Request) -> ASGIApp:
        return json_response(service, pulls.start(meant(await read_json(request, service), Named).model))

    async def cancel(request: Request) -> ASGIApp:
        return json_response(service, pulls.cancel(request.path_params["model"]))

    async def told(request: Request) -> ASGIApp:
        return await event_response(request, service, _looks(pulls), errors=_failed)

    async def load(request: Request) -> ASGIApp:
        return json_response(service, await service.backend.load(meant(await read_json(request, service), Named).model))

    async def unload(request: Request) -> ASGIApp:
        return json_response(service, await service.backend.unload(meant(await read_json(request, service), Named).model))

    def at(method: Any, path: str, run: Any, scope: Any, summary: str, **more: Any) -> Operation:
        return Operation(method=method, path="/page" + path, run=run, scope=scope, summary=summary, **more)

    return [
        at("GET", "/catalogue", shown, "infer", "Cards, licences and models", answer=Catalogue),
        at("GET", "/catalogue/{model}/fit", fits, "infer", "What a model would take on this machine"),
        at("GET", "/pulls", running, "infer", "Models on their way to this disk", answer=list[Pull]),
        at("POST", "/pulls", pull, "admin", "Fetch a model", body=Named, answer=Pull),
        at("DELETE", "/pulls/{model}", cancel, "admin", "Stop fetching a model", answer=Pull),
        at("GET", "/pulls/events", told, "infer", "How far the pulls are", streams=True),
        at("POST", "/models/load", load, "admin", "Load a model", body=Named, answer=ModelState),
        at("POST", "/models/unload", unload, "admin", "Unload a model", body=Named, answer=ModelState),
    ]


async def _looks(pulls: Pulls) -> Events:
    """Every change of every pull, until all have ended."""
    seen: dict[str, int] = {}
    while True:
        now = pulls.all()
        for pull in now:
            if seen.get(pull.model) != pull.version:
                seen[pull.model] = pull.version
                yield Event(pull, name="pull")
        if all(pull.state != "running" for pull in now):
            yield Event({}, name="end")
            return
        await asyncio.sleep(LOOK_S)


def _failed(error: KholaError, request_id: str) -> list[Event]:
    return [Event(error_body(error, request_id), name="error")]


def _facts(verdict: Verdict, kind: str, fact: str, but: str = "") -> tuple[str, ...]:
    """One fact of every refusal of a kind, which another of its facts shows; without one value."""
    return tuple(refusal.facts[fact] for refusal in verdict.refusals if kind in refusal.facts and refusal.facts[fact] != but)


@cache
def _entries() -> tuple[Entry, ...]:
    from khola.api.header import implemented
    from khola.lineage.licence import judge_card
    from khola.lineage.terms import of_card

    verdicts = {card.name: judge_card(of_card(card)) for card in catalogue.cards().values()}
    return tuple(
        Entry(
            name=card.name,
            title=card.title,
            family=card.family,
            lab=card.lab,
            country=card.country,
            released=card.released,
            parameters=card.parameters,
            active_parameters=card.active_parameters,
            context=card.context,
            languages=card.languages,
            thinking=card.thinking,
            licences=(card.licence, *card.further_licences),
            parents=card.parents,
            inherited=tuple(key for key in verdicts[card.name].licences if key not in (card.licence, *card.further_licences)),
            forbidden_by=_facts(verdicts[card.name], "path", "model", card.name),
            name_wanted="".join(_facts(verdicts[card.name], "prefix", "prefix")[:1]),
            weights=card.weights,
            chat=bool(card.chat),
            about=card.about,
            runs=implemented(card.architecture),
            file_bytes=card.files[0].bytes if card.files else 0,
        )
        for card in catalogue.cards().values()
    )


def _catalogue(service: Service, models: list[ModelState]) -> Catalogue:
    from khola.api.library import listed
    from khola.native.probe import probe

    entries = _entries()
    keys = {key for entry in entries for key in entry.licences}
    return Catalogue(
        cards=entries,
        licences={key: catalogue.licence(key) for key in sorted(keys)},
        models=models,
        here=[entry.name for entry in listed(service.settings)],
        free_bytes=probe(service.settings.models, measure=False).available_bytes,
    )


def _plan(service: Service, model: str) -> dict[str, Any]:
    from khola.api.fit import fit

    if model not in catalogue.cards():  # a name of the catalogue, never a path
        raise NotFound("there is no {key!r} here", key=model[:80])
    plan = fit(model, settings=service.settings)
    names = ("name", "implemented", "parameters", "active_parameters", "trained_context", "context", "best", "relatives", "choices")
    built = {name: value for name, value in asdict(plan).items() if name in names}
    return built | {"free_bytes": plan.machine.available_bytes, "disk_free_bytes": plan.machine.disk_free_bytes, "fits": plan.fits}
