"""Knows: what clients of Ollama's API ask, and what they are told.

Does not know: how an answer is made, and what framed it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from khola import __version__
from khola.errors import ContextOverflow, Forbidden
from khola.serve.backend import ChatJob, Job
from khola.serve.dialects.ollama import asked, library
from khola.serve.dialects.ollama.asked import Asked, ChatBody, EmbedBody, EmbeddingsBody, GenerateBody
from khola.serve.dialects.ollama.told import NANOSECONDS, Telling, error_body, error_events
from khola.serve.http.body import json_response, meant, read_json
from khola.serve.http.sse import Event, Events, event_response
from khola.serve.operation import Operation, caller
from khola.serve.service import Service

__all__ = ["PREFIXES", "error_body", "operations"]

PREFIXES = ("/api/",)
"""Paths whose errors have Ollama's shape."""

BODY, IGNORED = dict[str, Any], "x-khola-ignored"


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of /api/show and /api/pull."""

    model: str = ""
    name: str = ""
    """What `model` was called before."""
    stream: bool = True
    verbose: bool = False
    insecure: bool = False


def operations(service: Service) -> list[Operation]:
    """What this dialect offers."""

    async def answer(request: Request, wanted: Asked, key: Any) -> ASGIApp:
        wanted = msgspec.structs.replace(wanted, model=library.called(wanted.model))
        if wanted.unload and "admin" not in caller(request).scopes:
            raise Forbidden("only an administrator may unload a model", hint="leave keep_alive out", param="keep_alive")
        telling = Telling(wanted.model, key, clock=service.clock, new_id=service.number, logprobs=wanted.logprobs)
        headers = {IGNORED: ", ".join(wanted.ignored)} if wanted.ignored else {}
        events = _events(service, wanted, telling)
        if wanted.stream:
            return await event_response(request, service, events, errors=error_events, lines=True, headers=headers)
        async with aclosing(events):
            lines = [event async for event in events]
        return json_response(service, telling.whole() if wanted.job else lines[-1].data, headers=headers)

    async def chat(request: Request) -> ASGIApp:
        return await answer(request, asked.asked_chat(await read_json(request, service), tenant=caller(request).tenant), "message")

    async def generate(request: Request) -> ASGIApp:
        return await answer(request, asked.asked_generate(await read_json(request, service), tenant=caller(request).tenant), "response")

    async def embed(request: Request) -> ASGIApp:
        began = service.clock()
        model, texts, dimensions, ignored = asked.asked_embed(await read_json(request, service))
        vectors, tokens = await service.backend.embed(texts, library.called(model), caller(request).tenant) if texts else ([], 0)
        found = [unit(vector[:dimensions]) for vector in vectors]
        took = int((service.clock() - began) * NANOSECONDS)
        body = {"model": model, "embeddings": found, "total_duration": took, "load_duration": 0, "prompt_eval_count": tokens}
        return json_response(service, body, headers={IGNORED: ", ".join(ignored)} if ignored else {})

    async def embeddings(request: Request) -> ASGIApp:
        model, text, ignored = asked.asked_embeddings(await read_json(request, service))
        vectors, _ = await service.backend.embed([text], library.called(model), caller(request).tenant)
        return json_response(service, {"embedding": vectors[0]}, headers={IGNORED: ", ".join(ignored)} if ignored else {})

    async def pull(request: Request) -> ASGIApp:
        given = meant(await read_json(request, service), Named)
        lines = library.pull_lines(service, given.model or given.name)
        if given.stream:
            return await event_response(request, service, lines, errors=error_events, lines=True)
        async with aclosing(lines):
            return json_response(service, [line async for line in lines][-1].data)

    async def show(request: Request) -> ASGIApp:
        given = meant(await read_json(request, service), Named)
        return json_response(service, await library.shown(service, given.model or given.name))

    async def tags(request: Request) -> ASGIApp:
        return json_response(service, await library.tags(service))

    async def running(request: Request) -> ASGIApp:
        return json_response(service, await library.running(service))

    async def version(request: Request) -> ASGIApp:
        return json_response(service, {"version": __version__})

    works: dict[str, Any] = {"method": "POST", "scope": "infer", "answer": BODY, "work": True}
    tells: dict[str, Any] = {"scope": "infer", "answer": BODY}
    return [
        Operation(path="/api/chat", run=chat, summary="Answer a conversation, in Ollama's form", body=ChatBody, streams=True, **works),
        Operation(path="/api/generate", run=generate, summary="Answer a text, in Ollama's form", body=GenerateBody, streams=True, **works),
        Operation(path="/api/embed", run=embed, summary="Vectors of unit length for texts", body=EmbedBody, **works),
        Operation(path="/api/embeddings", run=embeddings, summary="A vector for a text", body=EmbeddingsBody, **works),
        Operation(method="GET", path="/api/tags", run=tags, summary="Models that are offered", **tells),
        Operation(method="GET", path="/api/ps", run=running, summary="Models that are loaded", **tells),
        Operation(method="POST", path="/api/show", run=show, summary="What is known of a model", body=Named, **tells),
        Operation(method="GET", path="/api/version", run=version, scope="open", summary="Version of khola", answer=BODY),
        Operation(
            method="POST", path="/api/pull", run=pull, scope="admin", summary="Bring a model to this disk", body=Named, answer=BODY,
            streams=True,
        ),
        *_refused(),
    ]  # fmt: skip


_REFUSED = {
    "/api/delete": "khola deletes no files for a client",
    "/api/copy": "a model has one name in khola",
    "/api/create": "khola makes no models over HTTP",
    "/api/push": "khola publishes no models",
}
_INSTEAD = {
    "/api/delete": "on the server's machine, remove the model's folder; `khola list` names it",
    "/api/copy": "ask for it by the name that /api/tags gives",
    "/api/create": "on the server's machine: `khola import` or `khola quantise`",
    "/api/push": "its files are plain files: copy them",
}


def _refused() -> list[Operation]:
    """What Ollama's clients may ask and khola does not do, each with the reason."""

    async def refuse(request: Request) -> ASGIApp:
        path = request.url.path
        raise Forbidden(_REFUSED[path], hint=_INSTEAD[path])

    said: dict[str, Any] = {"run": refuse, "scope": "infer", "summary": "Refused, with the reason"}
    return [Operation(method="DELETE" if path == "/api/delete" else "POST", path=path, **said) for path in _REFUSED]


async def _events(service: Service, wanted: Asked, telling: Telling) -> Events:
    """The lines of an answer; a request without a prompt only loads or unloads the model."""
    if wanted.job is None:
        if not wanted.unload:
            await service.backend.load(wanted.model)
            yield Event(telling.nothing("load"))
            return
    else:
        job = await within(service, wanted.job, wanted.model, wanted.window)
        async with aclosing(await service.backend.start(job, wanted.model)) as pieces:
            async for piece in pieces:
                for line in telling.take(piece):
                    yield line
    if wanted.unload:
        await service.backend.unload(wanted.model)
        if wanted.job is None:
            yield Event(telling.nothing("unload"))


async def within(service: Service, job: Job, model: str, window: int | None) -> Job:
    """A job whose prompt and answer fit into a window that the client asks for.

    Raises:
        ContextOverflow: the model's own is smaller, or the prompt fills the window.
    """
    if window is None:
        return job
    if isinstance(job, ChatJob):
        _, ids = await service.backend.rendered(job, model)
    else:
        ids = await service.backend.tokens(job.prompt, model) if isinstance(job.prompt, str) else list(job.prompt)
    context = next((state.context_tokens for state in await service.backend.models() if state.name == model), 0)
    if 0 < context < window:
        raise ContextOverflow(
            "num_ctx is {found}; this model's maximum context length is {limit} here",
            hint="leave it out, or start the server with a longer --context", param="options.num_ctx", found=window, limit=context,
        )  # fmt: skip
    if len(ids) >= window:
        raise ContextOverflow(
            "the prompt has {n_prompt_tokens} tokens; num_ctx, the maximum context length that was asked for, is {n_ctx}",
            hint="nothing is cut off in silence: send less, or ask for more",
            param="options.num_ctx",
            n_prompt_tokens=len(ids),
            n_ctx=window,
        )
    room = window - len(ids)
    most = job.sampling.get("max_tokens")
    return msgspec.structs.replace(job, sampling={**job.sampling, "max_tokens": room if most is None else min(most, room)})


def unit(vector: Iterable[float]) -> list[float]:
    """A vector of the same direction and length 1; one of zeros stays."""
    found = list(vector)
    length = math.sqrt(math.fsum(number * number for number in found))
    return [number / length for number in found] if length else found
