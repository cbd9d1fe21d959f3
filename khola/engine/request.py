"""What is asked of the engine, and what it answers.

A `Request` goes in; `Piece`s and one `Finished` or `Failed` come out, in order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from khola.engine.grammar import Grammar
from khola.engine.openings import Openings
from khola.errors import KholaError

_numbers = itertools.count(1)

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen; ranges are checked by `msgspec.convert`.

    Order: logit bias, penalties, grammar, temperature, top-k, top-p, min-p. Temperature 0 takes the most likely token.
    """

    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Keep the most likely tokens until their probabilities add up to this."""
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=100)] = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt and answer. arXiv:1909.05858 section 4.1."""
    presence_penalty: Annotated[float, msgspec.Meta(ge=-100, le=100)] = 0.0
    """Subtracted once from logits of tokens in the answer."""
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-100, le=100)] = 0.0
    """Subtracted for every occurrence in the answer."""
    seed: int | None = None
    """Random numbers are a function of (seed, position); None draws a seed."""
    logit_bias: dict[int, float] = {}
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Tokens of the answer at most; None means up to the end of the context, 0 only reads the prompt (scores, warming the cache)."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it."""
    ignore_end: bool = False
    """Go on after an end-of-turn token (benchmarks)."""
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None
    """Alternatives to report with every token; None reports no log-probabilities."""
    speculate: bool | None = None
    """Guess tokens and check many in one step: never, always, or (None) when that is quicker. The tokens are the same. Guesses come from
    earlier text, and from a layer that was made for it where the model was loaded with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """How an answer may think before it answers, in the marks of its chat format."""

    start: str
    end: str
    opened: bool = False
    """The prompt ends inside a thought."""
    may_open: bool = False
    """The answer may begin with the start mark, if that is one token."""
    most_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """After so many tokens within the thought its end mark is written for the model; None lets it think on."""


@dataclass(eq=False, kw_only=True)
class Request:
    """One prompt that wants tokens."""

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    """Ids that end the answer."""
    shown_ids: frozenset[int] = frozenset()
    """Special tokens that are part of the text all the same: marks by which calls are found in it."""
    answers: tuple[range, ...] = ()
    """Places of the prompt that hold earlier answers. The native interpreter computes them as it computed them when it gave them, so that
    their pages can be found again without changing a bit."""
    prompt_logprobs: bool = False
    """Report the log-probability of every prompt token (scoring)."""
    prompt_top: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    """With these, so many of the likeliest tokens at each place."""
    embedding: bool = False
    """Report the mean hidden state of the prompt, and make no tokens."""
    tenant: str = ""
    """Requests of different tenants never share pages of the cache."""
    grammar: Grammar | None = None
    """What form the answer has, behind its thought."""
    openings: Openings | None = None
    """What opens a call that is then held to its tool; the answer is free otherwise, or has its grammar."""
    thought: Thought | None = None
    """Where the thought ends; needed with a grammar, or to bound the thought."""
    number: int = field(default_factory=lambda: next(_numbers))


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """One chosen token, or one of the prompt."""

    id: int
    logprob: float | None = None
    """Natural logarithm of its probability before temperature and filters; None unless asked for, and for the first of a prompt."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely ids and their log-probabilities."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of an answer: whole graphemes only, and nothing that may turn out to begin a stop string.

    A token comes with the first of its text; tokens that end the answer, or lie wholly inside a stop string, do not come at all.
    """

    request: Request
    text: str
    tokens: tuple[TokenInfo, ...]
    prompt: tuple[TokenInfo, ...] = ()
    """The prompt's tokens, in a piece of their own before all others, where their log-probabilities were asked for."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request cost."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were found in the cache."""
    answer_tokens: int
    wait_s: float
    """From submission to the first step."""
    prefill_s: float
    """From the first step to the first token."""
    decode_s: float
    """From the first token to the last."""
    drafted_tokens: int = 0
    """Tokens that were guessed from earlier text and checked."""
    accepted_tokens: int = 0
    """Answer tokens that were guessed right and needed no step of their own."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer."""

    request: Request
    reason: FinishReason
    usage: Usage
    prompt_logprobs: tuple[float, ...] = ()
    """Log-probability of prompt tokens 1, 2, … given those before, if asked for: the numbers of `Piece.prompt`."""
    embedding: NDArray[np.float32] | None = field(default=None, compare=False)
    """Mean of the normed hidden states of the prompt, [D], if asked for."""
    complete: bool | None = None
    """Whether the answer satisfies its grammar; False when it was cut short, None without a grammar."""
    stopped_by: str = ""
    """The stop string that ended it; empty where it ended otherwise."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request that could not be answered."""

    request: Request
    error: KholaError


Event = Piece | Finished | Failed
