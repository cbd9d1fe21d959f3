"""Knows: what clients of Anthropic's Messages API ask, and what they are told.

Does not know: how an answer is made, and what framed it.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from khola.serve.dialects.anthropic.asked import Asked, Body, asked
from khola.serve.dialects.anthropic.told import Telling, error_body, error_events
from khola.serve.http.body import json_response, read_json
from khola.serve.http.sse import Events, event_response
from khola.serve.operation import Operation, caller
from khola.serve.service import Service

__all__ = ["PREFIXES", "error_body", "operations"]

PREFIXES = ("/v1/messages",)
"""Paths whose errors have Anthropic's shape."""


def operations(service: Service) -> list[Operation]:
    """What this dialect offers."""

    async def messages(request: Request) -> ASGIApp:
        wanted = asked(await read_json(request, service), tenant=caller(request).tenant)
        telling = Telling(wanted.model, service.number, one_call=wanted.one_call, shows_thought=wanted.shows_thought)
        headers = ignored_header(wanted.ignored)
        if wanted.stream:
            return await event_response(request, service, _events(service, wanted, telling), errors=error_events, headers=headers)
        async with aclosing(await service.backend.start(wanted.job, wanted.model)) as pieces:
            async for piece in pieces:
                telling.take(piece)
        return json_response(service, telling.message(), headers=headers)

    async def count_tokens(request: Request) -> ASGIApp:
        wanted = asked(await read_json(request, service), tenant=caller(request).tenant, counting=True)
        _, ids = await service.backend.rendered(wanted.job, wanted.model)
        return json_response(service, {"input_tokens": len(ids)})

    answer = dict[str, Any]
    return [
        Operation(
            method="POST", path="/v1/messages", run=messages, scope="infer", summary="Answer a conversation, in Anthropic's form",
            body=Body, answer=answer, work=True, streams=True,
        ),
        Operation(
            method="POST", path="/v1/messages/count_tokens", run=count_tokens, scope="infer", summary="Count the tokens of a conversation",
            body=Body, answer=answer, work=True,
        ),
    ]  # fmt: skip


async def _events(service: Service, wanted: Asked, telling: Telling) -> Events:
    """An answer as events."""
    async with aclosing(await service.backend.start(wanted.job, wanted.model)) as pieces:
        for event in telling.start():
            yield event
        async for piece in pieces:
            for event in telling.take(piece):
                yield event


def ignored_header(names: tuple[str, ...]) -> dict[str, str]:
    """The header that tells which keys of a body were taken without effect."""
    return {"x-khola-ignored": ", ".join(names)} if names else {}
