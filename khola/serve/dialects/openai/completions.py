"""`POST /v1/completions`: texts that go on, with the log-probabilities of the prompt where they are asked for.

Source   OpenAI's API reference, "Create completion (legacy)"; lm-evaluation-harness sends echo, logprobs and max_tokens 1 and reads
         `token_logprobs` between the context and the one new token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from khola.errors import AskedWrong
from khola.serve.access.limits import Limits
from khola.serve.backend import Cost, Piece, TextJob
from khola.serve.dialects.openai.answers import usage
from khola.serve.dialects.openai.chat import Head
from khola.serve.dialects.openai.chat_body import FormatBody, form_of
from khola.serve.dialects.openai.fields import Choices, Count, SamplingFields, at_most, kept, seeded
from khola.serve.dialects.openai.logprobs import TextLogprobs
from khola.serve.http.body import meant

KIND = "text_completion"
DEFAULT_TOKENS = 16
"""OpenAI's own."""
NEUTRAL: dict[str, Sequence[Any]] = {"suffix": ("",)}
"""Text behind the gap: no model here is asked to fill one."""

Prompt = str | tuple[int, ...]


class CompletionBody(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """What may be asked of a completion."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    prompt: str | list[str | int | list[int]]
    """A text or token ids, or a list of either."""
    max_tokens: Count | None = None
    echo: bool | None = None
    logprobs: Count | None = None
    best_of: Choices | None = None
    response_format: FormatBody | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Completions, understood."""

    model: str
    jobs: tuple[TextJob, ...]
    """`tries` for each prompt, next to each other."""
    prompts: tuple[Prompt, ...]
    n: int
    """Answers to each prompt."""
    tries: int
    """Answers to each prompt out of which the best are given."""
    echo: bool
    logprobs: int | None
    stream: bool
    usage: bool
    schema_name: str
    ignored: tuple[str, ...]


def asked(body: Mapping[str, Any], limits: Limits, tenant: str = "") -> Asked:
    """Understand a body.

    Raises:
        UnknownOption: a field that khola does not know or follow.
        BadSchema: the schema of the answer cannot be followed.
        AskedWrong: a value cannot be meant. The fact `param` of all of them names the field.
    """
    fields, ignored = kept(body, neutral=NEUTRAL)
    given = meant(fields, CompletionBody)
    prompts = prompts_of(given.prompt, "prompt", limits)
    n = given.n or 1
    tries = given.best_of or n
    if tries < n or (tries > n and given.stream):
        raise AskedWrong("{param} is below n, or above n in a stream", hint="leave it out", param="best_of")
    at_most("best_of", tries, limits.answers)
    at_most("logprobs", given.logprobs or 0, limits.logprobs)
    form, schema_name = form_of(given.response_format, given.grammar)
    job = TextJob(
        prompt="",
        sampling=_sampling(given, limits, chosen=tries > n),
        form=form,
        prompt_logprobs=given.logprobs if given.echo else None,
        tenant=tenant,
    )
    jobs = tuple(
        msgspec.structs.replace(job, prompt=prompt, sampling=seeded(job.sampling, index)) for prompt in prompts for index in range(tries)
    )
    return Asked(
        model=given.model,
        jobs=jobs,
        prompts=prompts,
        n=n,
        tries=tries,
        echo=bool(given.echo),
        logprobs=given.logprobs,
        stream=bool(given.stream),
        usage=bool(given.stream_options and given.stream_options.include_usage),
        schema_name=schema_name,
        ignored=tuple(ignored),
    )


def _sampling(given: CompletionBody, limits: Limits, *, chosen: bool) -> dict[str, Any]:
    most = DEFAULT_TOKENS if given.max_tokens is None else given.max_tokens
    found = {**given.sampling(limits), "max_tokens": most}
    if given.logprobs is not None or chosen:
        found["logprobs"] = given.logprobs or 0
    if given.echo and given.logprobs is not None and most == 1:
        # Who scores a prompt this way takes the last token off; were an end-of-text token not told, that would be one of the prompt.
        found["ignore_end"] = True
    return found


def prompts_of(given: str | Sequence[str | int | list[int]], param: str, limits: Limits) -> tuple[Prompt, ...]:
    """Texts or token ids from any of the four forms in which they may stand.

    Raises:
        AskedWrong: there is none, or texts and ids are mixed.
    """
    if isinstance(given, str):
        return (given,)
    if given and all(isinstance(one, int) for one in given):
        return (_ids([one for one in given if isinstance(one, int)], param),)
    at_most(param, len(given), limits.batch)
    found = tuple(one if isinstance(one, str) else _ids(one, param) for one in given if not isinstance(one, int))
    if not found or len(found) < len(given) or len({type(one) for one in found}) > 1:
        raise AskedWrong("{param}: expected a text, texts, token ids, or lists of token ids", param=param)
    return found


def _ids(given: Sequence[int], param: str) -> tuple[int, ...]:
    """Token ids; whether the vocabulary has them is for the engine to say."""
    if not given or not all(0 <= one < 2**31 for one in given):
        raise AskedWrong("{param} has a number that is no token id, or no number at all", param=param)
    return tuple(given)


class Choice:
    """One completion as it grows.

    Args:
        index: of the answer.
        asked: the request.
        prompt: its text, told first where the prompt is echoed.
    """

    def __init__(self, index: int, asked: Asked, prompt: str = "") -> None:
        self._index = index
        self._most = asked.logprobs
        self._before = prompt if asked.echo else ""
        self._logprobs = TextLogprobs()
        self.cost: Cost | None = None

    def push(self, piece: Piece) -> dict[str, Any]:
        """The choice of the chunk that tells of a piece."""
        text, self._before = self._before + piece.text, ""
        told = None if self._most is None else self._logprobs.push((*piece.prompt, *piece.tokens), self._most)
        self.cost = piece.cost or self.cost
        return {"text": text, "index": self._index, "logprobs": told, "finish_reason": piece.finish_reason}

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The choice of a body that is not streamed."""
        told = [self.push(piece) for piece in pieces]
        lists = [one["logprobs"] for one in told if one["logprobs"] is not None]
        logprobs = {name: [value for one in lists for value in one[name]] for name in lists[0]} if lists else None
        return {**told[-1], "text": "".join(one["text"] for one in told), "logprobs": logprobs}


def body(head: Head, asked: Asked, prompts: Sequence[str], answers: Sequence[Sequence[Piece]]) -> dict[str, Any]:
    """The whole answer: for every prompt the best of its tries, best first where there are more than are given.

    Args:
        prompts: texts of the prompts, where they are echoed.
        answers: the pieces of every job.
    """
    choices = []
    for at, prompt in enumerate(prompts):
        tries = list(answers[at * asked.tries : (at + 1) * asked.tries])
        best = sorted(tries, key=_likelihood, reverse=True)[: asked.n] if asked.tries > asked.n else tries
        choices += [Choice(at * asked.n + place, asked, prompt).whole(pieces) for place, pieces in enumerate(best)]
    costs = [pieces[-1].cost for pieces in answers if pieces[-1].cost is not None]
    return {**head.around(KIND, choices), "usage": usage(costs, len(prompts))}


def _likelihood(pieces: Sequence[Piece]) -> float:
    """Mean log-probability of an answer's tokens; an empty one is as likely as can be."""
    logprobs = [token.logprob or 0.0 for piece in pieces for token in piece.tokens]
    return sum(logprobs) / max(1, len(logprobs))


def chunk(head: Head, choice: dict[str, Any], *, tells_usage: bool) -> dict[str, Any]:
    """A chunk of a stream."""
    return {**head.around(KIND, [choice]), **({"usage": None} if tells_usage else {})}


def usage_chunk(head: Head, choices: Sequence[Choice], prompts: int) -> dict[str, Any]:
    """The last chunk of a stream that tells what it cost."""
    costs = [choice.cost for choice in choices if choice.cost is not None]
    return {**head.around(KIND, []), "usage": usage(costs, prompts)}
