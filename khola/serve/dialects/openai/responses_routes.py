"""The addresses of responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from khola.errors import AskedWrong, Busy, KholaError, OurFault, TooMany, UnknownOption
from khola.serve.backend import ChatJob, Piece
from khola.serve.dialects.openai.answers import merged, running
from khola.serve.dialects.openai.responses import Response
from khola.serve.dialects.openai.responses_body import Asked, Items, ResponseBody, asked, job_of, page_of, with_ids
from khola.serve.dialects.openai.responses_store import UNDONE, ResponseStore
from khola.serve.dialects.openai.routes import headed, named_schema, only_model, told
from khola.serve.http import refusal
from khola.serve.http.body import json_response, read_json
from khola.serve.http.sse import Event, event_response
from khola.serve.operation import Handler, Method, Operation, caller, request_id
from khola.serve.service import Service

FILE = "responses.sqlite"
PATH = "/v1/responses/{number}"


class ResponsesRoutes:
    """What the addresses do.

    Args:
        service: the server.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._backend = service.backend
        self._store = ResponseStore(service.settings.home / FILE, service.clock)
        service.stores.append(self._store.database)
        self._behind: dict[str, tuple[str, asyncio.Task[None]]] = {}
        """Responses that are made in the background, by their ids, with their owners."""

    def operations(self) -> list[Operation]:
        """All of them."""
        made: list[tuple[Method, str, Handler, str, Any, bool]] = [
            ("POST", "/v1/responses", self.create, "A response to turns, kept on the server", ResponseBody, True),
            ("POST", "/v1/responses/input_tokens", self.input_tokens, "How many tokens a response would read", ResponseBody, False),
            ("GET", PATH, self.get, "A response that is kept", None, False),
            ("GET", f"{PATH}/input_items", self.items, "What a response was asked with", None, False),
            ("DELETE", PATH, self.delete, "Forget a response", None, False),
            ("POST", f"{PATH}/cancel", self.cancel, "Stop a response that is made in the background", None, False),
        ]
        return [
            Operation(method=method, path=path, run=run, scope="infer", summary=summary, body=body, answer=dict, work=works, streams=works)
            for method, path, run, summary, body, works in made
        ]

    async def create(self, request: Request) -> ASGIApp:
        """`POST /v1/responses`."""
        found, job, model = await self._asked(request)
        response = Response(found, model, int(self._service.clock()), self._service.number)
        if found.body.background:
            return json_response(self._service, await self._start_behind(request, found, job, model, response), headers=told(found.ignored))
        if found.body.stream:
            events = self._events(request, found, job, model, response)
            return headed(await event_response(request, self._service, events, errors=response.failed), found.ignored)
        async with aclosing(self._pieces(found, job, model)) as pieces:
            async for piece in pieces:
                response.push(piece)
        await self._keep(caller(request).name, found, response)
        return json_response(self._service, response.body(), headers=told(found.ignored))

    async def input_tokens(self, request: Request) -> ASGIApp:
        """`POST /v1/responses/input_tokens`."""
        _, job, model = await self._asked(request)
        _, ids = await self._backend.rendered(job, model)
        return json_response(self._service, {"object": "response.input_tokens", "input_tokens": len(ids)})

    async def get(self, request: Request) -> ASGIApp:
        """`GET /v1/responses/{id}`."""
        if request.query_params.get("stream", "false") not in ("false", "0", ""):
            raise UnknownOption("{param} is not supported here", hint="leave it out", param="stream")
        body = await self._store.get(caller(request).name, request.path_params["number"])
        return json_response(self._service, self._now(body))

    async def items(self, request: Request) -> ASGIApp:
        """`GET /v1/responses/{id}/input_items`."""
        items = await self._store.items(caller(request).name, request.path_params["number"])
        return json_response(self._service, page_of(items, request.query_params))

    async def delete(self, request: Request) -> ASGIApp:
        """`DELETE /v1/responses/{id}`; one that is being made is stopped."""
        owner, number = caller(request).name, request.path_params["number"]
        await self._stop(owner, number)
        await self._store.delete(owner, number)
        return json_response(self._service, {"id": number, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> ASGIApp:
        """`POST /v1/responses/{id}/cancel`; one that has ended stays as it is."""
        owner, number = caller(request).name, request.path_params["number"]
        await self._stop(owner, number)
        body = await self._store.get(owner, number)
        if not body["background"]:
            raise AskedWrong("only a response that is made in the background can be cancelled", param="response_id")
        return json_response(self._service, self._now(body))

    async def _asked(self, request: Request) -> tuple[Asked, ChatJob, str]:
        """What was asked, with all that stands before it."""
        found = asked(await read_json(request, self._service), self._service.limits)
        who, limits = caller(request), self._service.limits
        before: Items = await self._store.before(who.name, found.body.previous_response_id, limits.messages)
        job = job_of(found, before, limits, who.tenant)
        return found, job, found.body.model or await only_model(self._service)

    async def _events(self, request: Request, found: Asked, job: ChatJob, model: str, response: Response) -> AsyncGenerator[Event, None]:
        async with aclosing(self._pieces(found, job, model)) as pieces:
            first = await anext(pieces)
            for event in response.begin():
                yield event
            for event in await self._pushed(request, found, response, first):
                yield event
            async for piece in pieces:
                for event in await self._pushed(request, found, response, piece):
                    yield event

    async def _pushed(self, request: Request, found: Asked, response: Response, piece: Piece) -> list[Event]:
        """What tells of a piece; with the last one the response is kept before anybody hears that it is whole."""
        events = response.push(piece)
        if piece.finish_reason is not None:
            await self._keep(caller(request).name, found, response)
        return events

    async def _pieces(self, found: Asked, job: ChatJob, model: str) -> AsyncGenerator[Piece, None]:
        """The answer."""
        with named_schema(found.schema_name, "text.format"):
            async with running(self._backend, [job], model) as answers, aclosing(merged(answers)) as pieces:
                async for _, piece in pieces:
                    yield piece

    async def _keep(self, owner: str, found: Asked, response: Response) -> None:
        if found.body.store is not False:
            await self._store.put(owner, response.body(), with_ids(found.items, self._service.number))

    async def _start_behind(self, request: Request, found: Asked, job: ChatJob, model: str, response: Response) -> dict[str, object]:
        """Begin a response that is asked for later, and give what it is now."""
        owner, number = caller(request).name, request_id(request)
        mine = sum(one == owner for one, _ in self._behind.values())
        if mine >= self._service.admission.most(caller(request)):
            raise TooMany("{found} responses are being made in the background; at most {limit} may", found=mine, limit=mine)
        await self._keep(owner, found, response)

        until = asyncio.get_running_loop().time() + self._service.limits.deadline_s

        async def make() -> None:
            try:
                await self._make(found, job, model, response, number, until)
                await self._keep(owner, found, response)
            finally:
                self._behind.pop(response.id, None)

        self._behind[response.id] = owner, asyncio.create_task(make())
        body = response.body()
        await asyncio.sleep(0)  # a task that is cancelled before its first step never writes down that it was
        return body

    async def _make(self, found: Asked, job: ChatJob, model: str, response: Response, number: str, until: float) -> None:
        """Make a response that nobody waits for; whatever happens is written into it."""
        try:
            async with self._service.deadlines.until(until), aclosing(self._pieces(found, job, model)) as pieces:
                async for piece in pieces:
                    response.push(piece)
        except KholaError as error:
            response.fail(error, number)
        except asyncio.CancelledError:
            response.cancel()
        except Exception as wrong:
            self._service.log.failure("response failed", wrong, id=number)
            response.fail(OurFault("{kind}: {what}", kind=type(wrong).__name__, what=str(wrong)), number)

    def _now(self, body: dict[str, Any]) -> dict[str, Any]:
        """A response that is kept; one that was being made when the server ended has failed."""
        if body["status"] not in UNDONE or body["id"] in self._behind:
            return body
        lost = Busy("the server stopped before the answer was complete")
        return {**body, "status": "failed", "error": {"code": "server_error", "message": refusal.message_of(lost)}}

    async def _stop(self, owner: str, number: str) -> None:
        """Stop a response that is made in the background, and wait until that is written down."""
        whose, task = self._behind.get(number, ("", None))
        if task is not None and whose == owner:
            task.cancel()
            await asyncio.wait({task})
