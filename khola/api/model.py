"""A model that answers: conversations and texts in, answers out.

```
messages -> chat format -> prompt -> ids -> engine -> text -> parser of the format -> text, thoughts, tool calls
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from khola.api.answer import Answer, Score
from khola.api.asked import sampling_of, tools_of
from khola.api.form import Asking, Completing, Form, grammar_of, held, thought_of
from khola.api.stream import DeltaStream, PlainText, Prepared, Reader
from khola.cards.card import Card
from khola.chat.conversation import conversation
from khola.chat.encode import answer_runs, prompt_ids
from khola.chat.formats import format_named
from khola.chat.message import Asked, Message, Prompt, Tool
from khola.chat.parsing import Parser, template_parser
from khola.chat.template import TemplateWorker, render_template
from khola.engine.admission import DEFAULT_CONTEXT_TOKENS
from khola.engine.engine import Engine
from khola.engine.request import Failed, Finished, Request, Sampling
from khola.engine.scheduler import Limits
from khola.engine.states import rows_within, slots_for
from khola.engine.stats import Stats
from khola.errors import AskedWrong, EmptyPrompt, NoTemplate, OurFault
from khola.loader import load_model
from khola.loader.loaded import Loaded
from khola.native.probe import usable_memory
from khola.ops.vocabulary import PAGE_TOKENS
from khola.settings import Settings, from_environment

SHARE_OF_MEMORY = 0.9
"""Of the memory that is free once the weights are there, what the cache may take; more would make the machine swap."""

Messages = str | Sequence[Message | Mapping[str, Any]]
"""A text, which is one user turn; or turns, each a `Message` or a mapping with the keys of OpenAI's chat messages."""


def load(
    name: str,
    *,
    settings: Settings | None = None,
    interpreter: str = "auto",
    context: int | None = None,
    cache_tokens: int | None = None,
    cache: str = "auto",
    rows: int | None = None,
    stream: bool = False,
    second_token: bool = False,
    precise: bool = False,
    trust_template: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    tell: Callable[..., None] | None = None,
) -> Model:
    """A model, ready to answer.

    Args:
        name: a card's name, the name of a model on this disk, or a path.
        settings: where things lie; those of the environment by default.
        interpreter: "auto", "native", "numpy" or "torch"; see `khola.loader.load_model`.
        context: tokens of prompt and answer together; by default as many as the model was trained for, the cache holds and fit into memory.
        cache_tokens: tokens that the cache holds, earlier turns and other requests included; by default `context`, or what
            `default_cache_tokens` says.
        cache: how the cache keeps numbers: "int8" takes half the memory of "bf16"; see `khola.loader.load_model`.
        rows: answers that are computed at once, at most; by default 16, and fewer where so many states do not fit into memory.
        stream: weights that do not fit into memory are read from the disk as they are needed; native only.
        second_token: also guess with the layer that DeepSeek-V3 and R1 have for it; see `Sampling.speculate`.
        precise: the native interpreter rounds nothing to 8 or 16 bits, as numpy and torch do not: slower, with twice the cache of "bf16".
        trust_template: run the chat template that came with the files, in a bounded process, where khola knows no format of its own.
        device, dtype, tell: see `khola.loader.load_model`.
    Raises:
        UnknownModel, NotPulled: the name leads to no files here.
        UnknownOption: the interpreter, its cache in such numbers, its precise arithmetic, or a layer that guesses is not to be had.
        BadFiles: the files are damaged, or not those of an architecture that khola knows.
        NoMemory: weights or cache do not fit.
        NoDisk: weights have to stream, and there is no room for them in packed form.
        ContextOverflow: the context is longer than what the model was trained for or the cache holds.
    """
    settings = settings or from_environment()
    loaded = load_model(
        name,
        settings=settings,
        interpreter=interpreter,
        device=device,
        dtype=dtype,
        cache=cache,
        stream=stream,
        second_token=second_token,
        precise=precise,
        tell=tell,
    )
    available_bytes = int(usable_memory()[1] * SHARE_OF_MEMORY)
    return Model(
        loaded, context=context, cache_tokens=cache_tokens, max_rows=rows, trust_template=trust_template, available_bytes=available_bytes
    )


class Model:
    """A loaded model behind an engine of its own. Threads may share it; a context manager.

    Args:
        loaded: the model.
        context: tokens of prompt and answer together.
        cache_tokens: tokens that the cache holds.
        max_rows: answers that are computed at once, at most.
        trust_template: whether a template that came with the files may run.
        available_bytes: memory that the cache may take; None when it is not known.
        today: tells the date that formats with a date line write.
        engine_options: further arguments of `Engine`.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        context: int | None = None,
        cache_tokens: int | None = None,
        max_rows: int | None = None,
        trust_template: bool = False,
        available_bytes: int | None = None,
        today: Callable[[], date] = date.today,
        **engine_options: Any,
    ) -> None:
        state_bytes = loaded.ops.state_bytes(loaded.cache) if loaded.cache.states else 0
        rows = rows_within(available_bytes, state_bytes, max_rows or Limits.max_rows)
        if cache_tokens is None:
            states_bytes = slots_for(rows) * state_bytes
            token_bytes = loaded.ops.token_bytes(loaded.cache)
            cache_tokens = default_cache_tokens(token_bytes, loaded.context_tokens, available_bytes, states_bytes, rows, context)
        self.loaded = loaded
        self.engine = Engine(
            loaded, cache_tokens=cache_tokens, context_tokens=context, available_bytes=available_bytes, max_rows=rows, **engine_options
        )
        self._trust_template = trust_template
        self._today = today
        self._template_worker = TemplateWorker()

    @property
    def name(self) -> str:
        """As it was loaded."""
        return self.loaded.name

    @property
    def card(self) -> Card | None:
        """What is published about it; None for files that no card describes."""
        return self.loaded.card

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer together."""
        return self.engine.context_tokens

    def chat(self, messages: Messages, **asked: Unpack[Asking]) -> Answer:
        """The answer to a conversation; arguments and errors as in `prepared`."""
        return self.stream(messages, **asked).whole()

    def stream(self, messages: Messages, **asked: Unpack[Asking]) -> DeltaStream:
        """The answer to a conversation, piece by piece; arguments and errors as in `prepared`.

        Turns that the cache still holds are not computed again.
        """
        return self._answer(self.prepared(messages, **asked))

    def prepared(
        self,
        messages: Messages,
        *,
        sampling: Sampling | Mapping[str, Any] | None = None,
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        thinking: bool | None = None,
        continue_last: bool = False,
        thinking_tokens: int | None = None,
        tool_choice: str | None = None,
        one_call: bool = False,
        tenant: str = "",
        **form: Unpack[Form],
    ) -> Prepared:
        """The request that a conversation becomes, for callers that step the engine themselves.

        Args:
            messages: a text (one user turn) or turns.
            sampling: a mapping lies over what the lab recommends; a `Sampling` stands as it is.
            tools: functions that the model may call.
            thinking: whether it thinks before it answers; None is what the lab does.
            continue_last: the last turn is an assistant's, and the answer goes on where it ends.
            thinking_tokens: a thought of so many tokens is ended; None lets the model think on.
            tool_choice: "auto" lets the model decide, "required" or the name of a tool make it call. The arguments have their schema.
            one_call: an answer in which the model decides to call has one call at most; one that is required is one in any case.
            tenant: on whose behalf; the cache is shared only within it.
            form: what the answer must look like behind its thought, unless it is a call; see `Form`.
        Raises:
            BadGrammar, BadSchema: the form, or the schema of a tool, cannot be used.
            NoTemplate: there is no chat format that khola may run.
            ContextOverflow: the conversation leaves no room for an answer.
            UnknownOption: a sampling option that does not exist, or a value out of its range.
            AskedWrong: the conversation cannot be meant.
        """
        how = sampling_of(self.loaded.sampling, sampling)
        offered, grammar = tools_of(tools), grammar_of(form)
        prompt, parser = self.rendered(messages, tools=offered, thinking=thinking, continue_last=continue_last)
        if grammar is not None and offered:
            parser.alone(tuple(tool.name for tool in offered))
        grammar, openings = held(offered, parser, tool_choice, grammar, one_call=one_call)
        thought = thought_of(prompt, parser, thinking=thinking, goes_on=continue_last, most_tokens=thinking_tokens, model=self.loaded.name)
        ids = prompt_ids(prompt, self.loaded.tokenizer)
        answers = answer_runs(prompt, ids, self.loaded.tokenizer, self.loaded.stop_ids)
        shown = frozenset(found for mark in parser.marks if (found := self.loaded.tokenizer.id_of(mark)) is not None)
        request = Request(
            prompt=tuple(ids),
            sampling=how,
            stop_ids=self.loaded.stop_ids,
            shown_ids=shown - self.loaded.stop_ids,
            answers=answers,
            grammar=grammar,
            openings=openings,
            thought=thought,
            tenant=tenant,
        )
        return Prepared(request=request, parser=parser)

    def complete(self, text: str | Sequence[int], **asked: Unpack[Completing]) -> Answer:
        """How a text goes on; arguments and errors as in `prepared_text`."""
        return self.stream_complete(text, **asked).whole()

    def complete_all(self, texts: Iterable[str | Sequence[int]], **asked: Unpack[Completing]) -> list[Answer]:
        """How texts go on, computed side by side; arguments and errors as in `prepared_text`. One error ends all of them."""
        with ExitStack() as streams:
            running = [streams.enter_context(self.stream_complete(text, **asked)) for text in texts]
            return [stream.whole() for stream in running]

    def stream_complete(self, text: str | Sequence[int], **asked: Unpack[Completing]) -> DeltaStream:
        """How a text goes on, piece by piece, without any chat format; arguments and errors as in `prepared_text`."""
        return self._answer(self.prepared_text(text, **asked))

    def prepared_text(
        self,
        text: str | Sequence[int],
        *,
        sampling: Sampling | Mapping[str, Any] | None = None,
        control: bool = False,
        prompt_logprobs: int | None = None,
        tenant: str = "",
        **form: Unpack[Form],
    ) -> Prepared:
        """The request that a text becomes, for callers that step the engine themselves.

        Args:
            text: what stands before; ids are taken as they are.
            sampling: as in `prepared`.
            control: read control tokens that the text spells, for prompts in a format of one's own. Never with text of strangers.
            prompt_logprobs: also tell the log-probability of every token of the prompt, and so many of the likeliest at each place.
            tenant: as in `prepared`.
            form: what the continuation must look like; see `Form`.
        Raises:
            BadGrammar, BadSchema: the form cannot be used.
            EmptyPrompt: there is no token to start from.
            ContextOverflow: the text leaves no room for more.
            UnknownOption: a sampling option that does not exist, or a value out of its range.
        """
        request = Request(
            prompt=tuple(self.ids(text, control=control) if isinstance(text, str) else text),
            sampling=sampling_of(self.loaded.sampling, sampling),
            stop_ids=self.loaded.stop_ids,
            prompt_logprobs=prompt_logprobs is not None,
            prompt_top=prompt_logprobs or 0,
            grammar=grammar_of(form),
            tenant=tenant,
        )
        return Prepared(request=request, parser=PlainText())

    def embed(self, texts: str | Sequence[str | Sequence[int]], tenant: str = "") -> NDArray[np.float32]:
        """One vector a text, [n, D]: the mean of the normed hidden states of its tokens.

        Args:
            texts: one or several, or ids of them; none may be empty or longer than the context.
            tenant: as in `prepared`.
        Raises:
            EmptyPrompt: there is no text, or one is empty.
            ContextOverflow: a text is longer than the context.
        """
        given = [texts] if isinstance(texts, str) else list(texts)
        if not given:
            raise EmptyPrompt("there is no text to embed", hint="give at least one")
        requests = [self.prepared_embedding(text, tenant) for text in given]
        rows = []
        at_once = self.engine.limits.max_rows
        for first in range(0, len(requests), at_once):
            rows += self._ends(requests[first : first + at_once])
        return np.stack([end.embedding for end in rows if end.embedding is not None])

    def prepared_embedding(self, text: str | Sequence[int], tenant: str = "") -> Request:
        """The request for one vector, for callers that step the engine themselves; arguments and errors as in `embed`."""
        ids = self._text_ids(text) if isinstance(text, str) else text
        return Request(prompt=tuple(ids), embedding=True, tenant=tenant)

    def score(self, text: str) -> Score:
        """The log-probability of every token of a text, given those before; the first one is given, not scored.

        Models that begin texts with a token of their own score all of the text; others, all but its first token.

        Raises:
            EmptyPrompt: the text is empty.
            ContextOverflow: the text is longer than the context.
            AskedWrong: it is a single token with nothing before it.
        """
        ids = tuple(self._text_ids(text))
        if len(ids) < 2:
            raise AskedWrong(
                "the text is one token long, and nothing stands before it to score it by", hint="give a longer text", tokens=len(ids)
            )
        (end,) = self._ends([Request(prompt=ids, sampling=Sampling(max_tokens=0), prompt_logprobs=True)])
        return Score(tokens=ids, logprobs=end.prompt_logprobs)

    def stats(self) -> Stats:
        """What the engine has done and holds now."""
        return self.engine.stats()

    def close(self) -> None:
        """Give the cache back; answers that are still being made end with an error."""
        self.engine.close()
        self._template_worker.close()

    def __enter__(self) -> Model:
        """The model itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()

    def rendered(
        self, asked: Messages, *, tools: Sequence[Tool] = (), thinking: bool | None = None, continue_last: bool = False
    ) -> tuple[Prompt, Parser]:
        """A conversation in the model's format, and what reads the answer; arguments and errors as in `prepared`."""
        loaded, messages = self.loaded, conversation(asked)
        if loaded.chat_format:
            known = format_named(loaded.chat_format)
            prompt = known.render(Asked(messages, tools=tools, thinking=thinking, today=self._today(), continue_last=continue_last))
            return prompt, known.parser(prompt)
        if not loaded.template:
            raise NoTemplate(
                "{model} has no chat format: it was made to continue texts, or its format is lost",
                hint='it can still continue a text: khola complete {model} "Once upon a time"',
                model=loaded.name,
            )
        tokenizer = loaded.tokenizer
        prompt = render_template(
            loaded.template,
            messages,
            trusted=self._trust_template,
            control_tokens=[tokenizer.token(index) for index in tokenizer.control_ids],
            bos_token="" if tokenizer.bos_id is None else tokenizer.token(tokenizer.bos_id),
            eos_token=tokenizer.token(min(tokenizer.end_ids)) if tokenizer.end_ids else "",
            tools=tools,
            thinking=thinking,
            today=self._today(),
            continue_last=continue_last,
            worker=self._template_worker,
        )
        return prompt, template_parser(prompt)

    def _answer(self, prepared: Prepared) -> DeltaStream:
        """Submit a request."""
        reader = Reader(prepared, self.loaded.tokenizer.token_bytes)
        return DeltaStream(self.engine.stream(prepared.request), reader, is_json=prepared.is_json)

    def ids(self, text: str, *, control: bool = False) -> list[int]:
        """Ids of a plain text, with the token in front that the model wants there."""
        tokenizer = self.loaded.tokenizer
        ids = tokenizer.encode(text, control=control)
        bos = tokenizer.bos_id
        return [bos, *ids] if tokenizer.adds_bos and bos is not None and ids[:1] != [bos] else ids

    def _text_ids(self, text: str) -> list[int]:
        """Ids of a text that must say something.

        Raises:
            EmptyPrompt: it does not.
        """
        if not text:
            raise EmptyPrompt("the text is empty", hint="give at least one character")
        return self.ids(text)

    def _ends(self, requests: Sequence[Request]) -> list[Finished]:
        """Run requests side by side to their last events.

        Raises:
            KholaError: one of them failed; the others are cancelled.
        """
        ends: list[Finished] = []
        with ExitStack() as streams:
            for events in [streams.enter_context(self.engine.stream(request)) for request in requests]:
                *_, end = events
                if isinstance(end, Failed):
                    raise end.error
                if not isinstance(end, Finished):
                    raise OurFault("a request ended without its last event")
                ends.append(end)
        return ends


def default_cache_tokens(
    token_bytes: int,
    trained_tokens: int,
    available_bytes: int | None,
    states_bytes: int = 0,
    rows: int = Limits.max_rows,
    context: int | None = None,
) -> int:
    """Tokens of the cache when nobody asked for a number: the context, if that was asked for; else the trained one, 8,192, or what fits
    into memory, whichever is least.

    Where more answers than usual are computed at once, as much more, as long as all of it stays below a quarter of the memory.

    Args:
        token_bytes: memory of a token.
        trained_tokens: the trained context.
        available_bytes: memory for tokens and states; None when it is not known.
        states_bytes: memory of states.
        rows: answers that are computed at once.
        context: tokens of prompt and answer together; None when nobody asked for a number.
    """
    one = context or min(trained_tokens, DEFAULT_CONTEXT_TOKENS)
    wanted = one * max(1, rows // Limits.max_rows)
    if available_bytes is None:
        return wanted
    ample = available_bytes // 4 // token_bytes // PAGE_TOKENS * PAGE_TOKENS
    fitting = (available_bytes - states_bytes) // token_bytes // PAGE_TOKENS * PAGE_TOKENS
    tokens = max(one, min(wanted, ample))
    return tokens if context else min(tokens, max(fitting, PAGE_TOKENS))
