"""Jobs become requests, and events of the engine become pieces on the wire: what an engine process does besides threads and sockets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from khola.api.form import Form
from khola.api.model import Model
from khola.api.stream import Prepared, Reader
from khola.chat.encode import prompt_ids
from khola.engine.request import Event, Failed, Finished, Request, TokenInfo
from khola.errors import UnknownOption
from khola.serve.backend import ChatJob, Cost, TextJob, Token
from khola.serve.engines import wire
from khola.tokens.tokenizer import Tokenizer


class Answer:
    """An answer while it is made.

    Args:
        number: of its pieces.
        prepared: its request and parser.
        tokenizer: of the model.
    """

    def __init__(self, number: int, prepared: Prepared, tokenizer: Tokenizer) -> None:
        self.number = number
        self._reader = Reader(prepared, tokenizer.token_bytes)
        self._tells_tokens = prepared.request.sampling.logprobs is not None
        self._spelling = Spelling(tokenizer, prepared.request.shown_ids)
        self._prompt_spelling = Spelling(tokenizer)

    def said(self, event: Event) -> wire.Said | None:
        """What an event says to the reader of the answer; None when that is nothing.

        Raises:
            KholaError: the request failed.
        """
        delta = self._reader.read(event)
        if delta is None:
            return None
        tokens = self._spelling.tokens(delta.tokens) if self._tells_tokens and delta.tokens else ()
        calls, usage = delta.tool_calls, delta.usage
        if not (tokens or calls or delta.prompt or usage):
            return wire.Said(self.number, delta.text, delta.thinking) if delta.text or delta.thinking else None
        cost = None
        if usage is not None:
            cost = Cost(
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                answer_tokens=usage.answer_tokens,
                thinking_tokens=delta.thinking_tokens,
                wait_s=usage.wait_s,
                prefill_s=usage.prefill_s,
                decode_s=usage.decode_s,
            )
        reason = delta.finish_reason
        rest = wire.Rest(
            tokens=tokens,
            calls=wire.calls_as_json(calls),
            prompt=self._prompt_spelling.tokens(delta.prompt),
            finish_reason=None if reason is None else "cancelled" if reason == "error" else reason,
            cost=cost,
            complete=delta.complete,
            stopped_by=delta.stopped_by,
        )
        return wire.Said(self.number, delta.text, delta.thinking, rest)


class Spelling:
    """Tokens of one text by the bytes that they add to it.

    Args:
        shown: special ids that are part of it all the same.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Collection[int] = ()) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._silent = tokenizer.special_ids.difference(shown)
        self._strips = tokenizer.strips_space

    def tokens(self, given: Sequence[TokenInfo]) -> tuple[Token, ...]:
        """The next tokens of the text."""
        return tuple(self._token(info) for info in given)

    def _token(self, info: TokenInfo) -> Token:
        top = tuple((index, self._spelled(index), logprob) for index, logprob in info.top)
        spells = self._spelled(info.id)
        self._strips = self._strips and info.id in self._silent
        return Token(id=info.id, spells=spells, logprob=info.logprob, top=top)

    def _spelled(self, index: int) -> bytes:
        if index in self._silent:
            return b""
        spelled = self._token_bytes(index)
        return spelled.removeprefix(b" ") if self._strips else spelled


class Embeddings:
    """Vectors of several texts while they are made."""

    def __init__(self, number: int, requests: Sequence[Request]) -> None:
        self.number = number
        self._requests = requests
        self._rows: dict[Request, bytes] = {}

    def take(self, event: Event) -> wire.Vectors | None:
        """All vectors, once the last one is there.

        Raises:
            KholaError: a request failed.
        """
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished) and event.embedding is not None:
            self._rows[event.request] = event.embedding.astype("<f4").tobytes()
        if len(self._rows) < len(self._requests):
            return None
        rows = tuple(self._rows[request] for request in self._requests)
        return wire.Vectors(self.number, rows, sum(len(request.prompt) for request in self._requests))


class FormAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`khola.api.form.Form` as strangers may ask for it: nothing in it is a path."""

    schema: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool = False


def form_of(given: Mapping[str, Any]) -> Form:
    """A form without paths.

    Raises:
        UnknownOption: it is none.
    """
    try:
        form = msgspec.convert(given, FormAsked)
    except msgspec.ValidationError as error:
        raise UnknownOption("the form cannot be meant: {detail}", detail=str(error)) from None
    if isinstance(form.schema, str) and not form.schema.lstrip().startswith("{"):
        raise UnknownOption("a schema is a JSON object; expected text that begins with a brace")
    fields: Form = msgspec.to_builtins(form)
    return fields


def prepared_chat(model: Model, job: ChatJob) -> Prepared:
    """The request of a conversation; errors as in `Model.prepared`."""
    return model.prepared(
        job.messages,
        sampling=job.sampling,
        tools=job.tools,
        thinking=job.thinking,
        continue_last=job.continue_last,
        thinking_tokens=job.thinking_tokens,
        tool_choice=job.tool_choice,
        one_call=job.one_call,
        tenant=job.tenant,
        **form_of(job.form),
    )


def prepared_text(model: Model, job: TextJob) -> Prepared:
    """The request of a text; errors as in `Model.prepared_text`."""
    return model.prepared_text(
        job.prompt, sampling=job.sampling, prompt_logprobs=job.prompt_logprobs, tenant=job.tenant, **form_of(job.form)
    )


def rendered(model: Model, job: ChatJob) -> tuple[str, list[int]]:
    """The prompt of a conversation as text and ids."""
    prompt, _ = model.rendered(job.messages, tools=job.tools, thinking=job.thinking, continue_last=job.continue_last)
    return prompt.text(), prompt_ids(prompt, model.loaded.tokenizer)


def joined(first: wire.Said, more: wire.Said) -> wire.Said:
    """Two pieces of one answer as one."""
    rest, further = first.rest, more.rest
    if rest is not None and further is not None:
        calls = wire.calls_as_json(wire.calls_of(rest.calls) + wire.calls_of(further.calls))
        further = msgspec.structs.replace(further, tokens=rest.tokens + further.tokens, calls=calls, prompt=rest.prompt + further.prompt)
    return wire.Said(first.number, first.text + more.text, first.thinking + more.thinking, further or rest)
