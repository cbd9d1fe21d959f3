"""The addresses of chats, completions, embeddings, models and tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from khola.errors import AskedWrong, BadSchema, UnknownModel
from khola.serve.dialects.openai import chat, chat_body, completions, embeddings, models
from khola.serve.dialects.openai.answers import merged, running, whole
from khola.serve.dialects.openai.errors import error_events
from khola.serve.http.body import json_response, read_json
from khola.serve.http.sse import Event, event_response
from khola.serve.operation import Operation, caller
from khola.serve.service import Service

DONE = Event("[DONE]")


class Routes:
    """What the addresses do.

    Args:
        service: the server.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._backend = service.backend

    def operations(self) -> list[Operation]:
        """All of them."""
        posts: list[tuple[str, Any, str, Any, bool]] = [
            ("/v1/chat/completions", self.answer_chat, "The answer to a conversation", chat_body.ChatBody, True),
            ("/v1/completions", self.answer_completions, "How a text goes on", completions.CompletionBody, True),
            ("/v1/embeddings", self.answer_embeddings, "A vector for every text", embeddings.EmbeddingBody, True),
            ("/tokenize", self.answer_tokenize, "The tokens of a text", models.TokenizeBody, False),
            ("/detokenize", self.answer_detokenize, "What tokens spell", models.DetokenizeBody, False),
        ]
        gets: list[tuple[str, Any, str]] = [
            ("/v1/models", self.answer_models, "The models that this server offers"),
            ("/tokenizer_info", self.answer_tokenizer_info, "How texts of a model begin and end"),
            ("/v1/models/{model:path}", self.answer_model, "One of them"),
        ]
        made = [
            Operation(
                method="POST", path=path, run=run, scope="infer", summary=summary, body=body, answer=dict, work=work,
                streams="completions" in path,
            )
            for path, run, summary, body, work in posts
        ]  # fmt: skip
        return made + [
            Operation(method="GET", path=path, run=run, scope="infer", summary=summary, answer=dict) for path, run, summary in gets
        ]

    async def answer_chat(self, request: Request) -> ASGIApp:
        """`POST /v1/chat/completions`."""
        asked = chat_body.asked(await read_json(request, self._service), self._service.limits, caller(request).tenant)
        head = self._head("chatcmpl-", asked.model)
        choices = [
            chat.Choice(index, logprobs=asked.logprobs, one_call=asked.one_call, call_id=lambda: f"call_{self._service.number()}")
            for index in range(len(asked.jobs))
        ]
        if asked.stream:
            events = self._chat_events(asked, head, choices)
            return headed(await event_response(request, self._service, events, errors=error_events), asked.ignored)
        with named_schema(asked.schema_name):
            answers = await whole(self._backend, asked.jobs, asked.model)
        return json_response(self._service, chat.body(head, choices, answers), headers=told(asked.ignored))

    async def _chat_events(self, asked: chat_body.Asked, head: chat.Head, choices: Sequence[chat.Choice]) -> AsyncGenerator[Event, None]:
        with named_schema(asked.schema_name):
            async with running(self._backend, asked.jobs, asked.model) as answers, aclosing(merged(answers)) as pieces:
                for choice in choices:
                    yield Event(chat.chunk(head, [choice.first()], tells_usage=asked.usage))
                async for index, piece in pieces:
                    for said in choices[index].push(piece):
                        yield Event(chat.chunk(head, [said], tells_usage=asked.usage))
        if asked.usage:
            yield Event(chat.usage_chunk(head, choices))
        yield DONE

    async def answer_completions(self, request: Request) -> ASGIApp:
        """`POST /v1/completions`."""
        asked = completions.asked(await read_json(request, self._service), self._service.limits, caller(request).tenant)
        head = self._head("cmpl-", asked.model)
        if asked.stream:
            events = self._completion_events(asked, head)
            return headed(await event_response(request, self._service, events, errors=error_events), asked.ignored)
        with named_schema(asked.schema_name):
            prompts = await self._echoes(asked)
            answers = await whole(self._backend, asked.jobs, asked.model)
        return json_response(self._service, completions.body(head, asked, prompts, answers), headers=told(asked.ignored))

    async def _completion_events(self, asked: completions.Asked, head: chat.Head) -> AsyncGenerator[Event, None]:
        with named_schema(asked.schema_name):
            prompts = await self._echoes(asked)
            choices = [completions.Choice(index, asked, prompts[index // asked.n]) for index in range(len(asked.jobs))]
            async with running(self._backend, asked.jobs, asked.model) as answers, aclosing(merged(answers)) as pieces:
                async for index, piece in pieces:
                    yield Event(completions.chunk(head, choices[index].push(piece), tells_usage=asked.usage))
        if asked.usage:
            yield Event(completions.usage_chunk(head, choices, len(prompts)))
        yield DONE

    async def _echoes(self, asked: completions.Asked) -> list[str]:
        """Texts of the prompts, where they are told again."""
        if not asked.echo:
            return [""] * len(asked.prompts)
        return [one if isinstance(one, str) else await self._backend.text(one, asked.model) for one in asked.prompts]

    async def answer_embeddings(self, request: Request) -> ASGIApp:
        """`POST /v1/embeddings`."""
        given, texts, ignored = embeddings.asked(await read_json(request, self._service), self._service.limits)
        vectors, tokens = await self._backend.embed(texts, given.model, caller(request).tenant)
        return json_response(self._service, embeddings.body(given, vectors, tokens), headers=told(ignored))

    async def answer_models(self, request: Request) -> ASGIApp:
        """`GET /v1/models`."""
        return json_response(self._service, models.model_list(await self._backend.models()))

    async def answer_model(self, request: Request) -> ASGIApp:
        """`GET /v1/models/{model}`; the name may have slashes and colons."""
        name = request.path_params["model"]
        for state in await self._backend.models():
            if state.name == name:
                return json_response(self._service, models.model_object(state))
        raise UnknownModel("this server does not offer the model {model}", hint="GET /v1/models lists those it has", model=name[:200])

    async def answer_tokenize(self, request: Request) -> ASGIApp:
        """`POST /tokenize`."""
        given = models.tokenize_asked(await read_json(request, self._service))
        ids = await self._backend.tokens(given.text(), await self._named(given.model), special=given.special())
        return json_response(self._service, models.tokenized(ids))

    async def answer_detokenize(self, request: Request) -> ASGIApp:
        """`POST /detokenize`."""
        given = models.detokenize_asked(await read_json(request, self._service))
        return json_response(self._service, models.detokenized(await self._backend.text(given.tokens, await self._named(given.model))))

    async def answer_tokenizer_info(self, request: Request) -> ASGIApp:
        """`GET /tokenizer_info`, with `?model=` where there are several; loads it, for its files alone say what is asked."""
        state = await self._backend.load(await self._named(request.query_params.get("model")))
        return json_response(self._service, models.tokenizer_info(state))

    async def _named(self, model: str | None) -> str:
        return model or await only_model(self._service)

    def _head(self, prefix: str, model: str) -> chat.Head:
        return chat.Head(id=prefix + self._service.number(), created=int(self._service.clock()), model=model)


async def only_model(service: Service) -> str:
    """The model that is meant where none is named: the only one.

    Raises:
        AskedWrong: there are several, or none.
    """
    offered = await service.backend.models()
    if len(offered) != 1:
        raise AskedWrong("{param} is missing, and this server offers {found} models", param="model", found=len(offered))
    return offered[0].name


def told(ignored: Sequence[str]) -> dict[str, str]:
    """A header that names the fields which had no effect."""
    return {"x-khola-ignored": ", ".join(ignored)} if ignored else {}


def headed(answer: ASGIApp, ignored: Sequence[str]) -> ASGIApp:
    """A stream with the header that names the fields which had no effect."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.encode(), value.encode()) for name, value in told(ignored).items()]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await answer(scope, receive, named)

    return run


@contextmanager
def named_schema(name: str, param: str = "response_format") -> Iterator[None]:
    """Names the form of the answer in the error of a schema that the engine cannot follow; others, and those of tools, pass as they are."""
    try:
        yield
    except BadSchema as error:
        raise chat_body.invalid_schema(error, name, param) if name and "param" not in error.facts else error from None
