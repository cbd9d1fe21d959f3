"""The models of this server, told in Ollama's form, and a pull told line by line."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from khola.errors import Cancelled, Forbidden, KholaError, OurFault, UnknownModel
from khola.serve.backend import ModelState
from khola.serve.dialects.ollama.told import moment
from khola.serve.http.sse import Event
from khola.serve.service import Service

if TYPE_CHECKING:
    from khola.cards.card import Card
    from khola.fetch.library import Entry
    from khola.fetch.progress import Progress
    from khola.settings import Settings

WAITING = 256
"""Lines of a pull that may wait for a reader; a look at a transfer is out of date when the next one comes, so more are dropped."""


def called(name: str) -> str:
    """khola's name of a model: Ollama's clients put the tag of the newest behind a name without one."""
    return name.removesuffix(":latest")


async def state_of(service: Service, name: str) -> ModelState:
    """A model that this server offers.

    Raises:
        UnknownModel: there is none of this name.
    """
    for state in await service.backend.models():
        if state.name == called(name):
            return state
    raise UnknownModel("no model is called {name!r}", hint="/api/tags lists what is offered", name=name[:200], param="model")


async def tags(service: Service) -> dict[str, Any]:
    """All models that are offered."""
    states = await service.backend.models()
    found = await asyncio.to_thread(_entries, service)
    return {"models": [_model(state, found.get(state.name)) for state in states]}


async def running(service: Service) -> dict[str, Any]:
    """The models that are loaded. `expires_at` is left out: when a model is unloaded depends on who asks for what until then."""
    states = [state for state in await service.backend.models() if state.state == "loaded"]
    found = await asyncio.to_thread(_entries, service)
    return {
        "models": [
            {**_model(state, found.get(state.name)), "size": state.memory_bytes, "size_vram": 0, "context_length": state.context_tokens}
            for state in states
        ]
    }


async def shown(service: Service, name: str) -> dict[str, Any]:
    """What is known of a model."""
    state = await state_of(service, name)
    entry = (await asyncio.to_thread(_entries, service)).get(state.name)
    card = _card(state)
    architecture = card.architecture if card else "khola"
    info: dict[str, Any] = {"general.architecture": architecture, "general.basename": state.name}
    if context := state.context_tokens or (card.context if card else 0):
        info[f"{architecture}.context_length"] = context
    body = {"details": _details(card, entry), "model_info": info, "capabilities": _abilities(card), "modified_at": moment(state.created)}
    if card:
        from khola.cards.catalogue import licence

        record = licence(card.licence)
        body["license"] = f"{record.name}\n{record.url}"
        body["parameters"] = "\n".join(f"{name} {value}" for name, value in card.sampling.items())
    return body


def _model(state: ModelState, entry: Entry | None) -> dict[str, Any]:
    weights = entry.weights if entry else ()
    digest = weights[0].sha256 if weights else ""
    head = {"name": state.name, "model": state.name, "modified_at": moment(state.created)}
    return {**head, "size": state.file_bytes, "digest": digest, "details": _details(_card(state), entry)}


def _details(card: Card | None, entry: Entry | None) -> dict[str, Any]:
    """Ollama's summary of a model; what no card tells is empty."""
    formats = [file.format for file in entry.weights] if entry else []
    kind = formats[0] if formats else ""
    family = card.architecture if card else ""
    return {
        "parent_model": card.parents[0].name if card and card.parents else "",
        "format": "" if not kind else "safetensors" if kind == "safetensors" else "gguf",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": card.parameters if card else "",
        "quantization_level": "" if kind == "safetensors" else kind.upper(),
    }


def _abilities(card: Card | None) -> list[str]:
    """What a model can do, by its card."""
    found = ["completion"]
    if card and card.chat and _calls_tools(card):
        found.append("tools")
    if card and card.thinking != "never":
        found.append("thinking")
    return found


def _calls_tools(card: Card) -> bool:
    """Whether its chat format has a place for tools: a format without one refuses to write them."""
    from khola.chat.formats import format_named
    from khola.chat.message import Asked, Message, Tool

    try:
        format_named(card.chat).render(Asked([Message(role="user", content="?")], tools=[Tool(name="tool")]))
    except KholaError:
        return False
    return True


def _card(state: ModelState) -> Card | None:
    from khola.cards.catalogue import cards

    return cards().get(state.card or state.name)


def _entries(service: Service) -> dict[str, Entry]:
    """What lies on this disk, by name."""
    from khola.api.library import listed

    return {entry.name: entry for entry in listed(service.settings)}


def check_source(name: str, settings: Settings) -> None:
    """Take from a client the name of a model, or its place on a hub.

    A path would tell whether there is such a file, an address whether somebody answers there: neither is looked at for a client.

    Raises:
        AskedWrong: this is no source.
        UnknownModel: no card and no model on this disk is called so.
        Forbidden: it is an address.
    """
    from khola.cards.catalogue import card
    from khola.fetch.library import Library
    from khola.fetch.sources import PathSource, UrlSource, parse_source

    source = parse_source(name)
    if isinstance(source, UrlSource):
        raise Forbidden("khola asks no address for a client", hint="on the server's machine: `khola pull {source}`", source=name[:200])
    if isinstance(source, PathSource) and Library(settings).find(name.lower()) is None:
        card(name)


async def pull_lines(service: Service, name: str) -> AsyncGenerator[Event, None]:
    """Bring a model to this disk, and tell how far it is; a reader that leaves ends the pull, and the next one goes on from there.

    Raises:
        KholaError: of `khola.api.library.pull` and `check_source`.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[dict[str, Any] | KholaError | None] = asyncio.Queue()
    left = threading.Event()

    def put(line: dict[str, Any] | KholaError | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(lines.put_nowait, line)

    def heard(progress: Progress) -> None:
        if left.is_set():
            raise Cancelled("the pull was ended by whoever asked for it")
        if lines.qsize() < WAITING:
            words = {"fetch": f"pulling {progress.file}", "check": "verifying sha256 digest"}
            status = words.get(progress.stage, f"{progress.stage} {progress.file}")
            put({"status": status, "digest": progress.file, "total": progress.total, "completed": progress.done})

    def work() -> None:
        from khola.api.library import pull

        try:
            check_source(called(name), service.settings)
            pull(called(name), settings=service.settings, progress=heard)
            put({"status": "success"})
            put(None)
        except KholaError as error:
            put(error)
        except Exception as wrong:
            put(OurFault("{kind}: {what}", kind=type(wrong).__name__, what=str(wrong)))

    worker = threading.Thread(target=work, name=f"pull {name[:40]}", daemon=True)
    worker.start()
    try:
        while (line := await lines.get()) is not None:
            if isinstance(line, KholaError):
                raise line
            yield Event(line)
    finally:
        left.set()
