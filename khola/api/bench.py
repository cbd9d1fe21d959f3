"""How fast a loaded model is here: prefill, decoding, several streams, and the log-probabilities by which its quality is judged.

Everything goes through the engine with its usual settings, so sampling, text and bookkeeping are part of every time. Prompts are random
tokens, all different, so that no page of the cache is found again. Nothing is guessed ahead: the answers to random prompts repeat
themselves, which would flatter a guess.

Shapes   R scored rows, V vocabulary.
Source   The figures are those of llama-bench and llama-batched-bench; the scored half of each window is that of llama-perplexity.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from khola.engine.engine import Engine
from khola.engine.request import Event, Failed, Finished, Request, Sampling
from khola.engine.runner import ModelRunner, Part, in_turn
from khola.errors import AskedWrong
from khola.loader.loaded import Loaded
from khola.nn.experts import Mixture
from khola.ops.vocabulary import PAGE_TOKENS, Weight
from khola.tokens.tokenizer import Tokenizer

Clock = Callable[[], float]

FEW_TOKENS = 8
"""A speed of decoding is told when at least so many tokens were made before the time was over."""
FEW_STEPS = 4
"""The same for steps of several streams."""
SCORED_AT_ONCE = 4 * PAGE_TOKENS
"""Tokens of one step when a text is scored; their log-probabilities take 80 MB with a vocabulary of 150,000."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is measured; each figure is named after its group and its number, for instance "prefill_512"."""

    prefill: tuple[int, ...] = (128, 512, 2048)
    """Lengths of prompts, in tokens."""
    decode: tuple[int, ...] = (0, 2048)
    """Tokens that stand before the ones whose making is timed; 0 means one."""
    decode_tokens: int = 128
    streams: tuple[int, ...] = (1, 4, 16, 32)
    """Requests at once."""
    stream_prompt_tokens: int = 32
    stream_tokens: int = 64
    """Tokens that each of them makes."""
    budget_s: float = 60.0
    """Time of one figure; what takes longer is left out, and said to be."""

    @property
    def context_tokens(self) -> int:
        """Tokens of the longest request."""
        stream = self.stream_prompt_tokens + self.stream_tokens
        return max([stream, *self.prefill, *(max(depth, 1) + self.decode_tokens for depth in self.decode)]) + 2

    @property
    def cache_tokens(self) -> int:
        """Tokens that the cache must hold, in whole pages; one page more a stream, so that none waits for a page that is kept free."""
        stream = (-(-(self.stream_prompt_tokens + self.stream_tokens) // PAGE_TOKENS) + 1) * PAGE_TOKENS
        return max(self.context_tokens + PAGE_TOKENS, stream * max(self.streams, default=1))


FULL = Work()
QUICK = Work(decode_tokens=32, stream_tokens=32, budget_s=20.0)


@dataclass(frozen=True)
class Reading:
    """One figure, measured once."""

    name: str
    value: float | None
    """Tokens a second; None when it was not measured."""
    reason: str = ""
    """Why not: "context" (the model's is shorter), "too_long" (its time was over)."""


def bench_engine(loaded: Loaded, work: Work, clock: Clock = time.monotonic) -> Engine:
    """An engine with the usual settings and room for all that is measured.

    Raises:
        NoMemory: the cache does not fit.
    """
    context = min(loaded.context_tokens, work.context_tokens)
    rows = max(16, *work.streams) if work.streams else 16
    return Engine(loaded, cache_tokens=work.cache_tokens, context_tokens=context, max_rows=rows, clock=clock)


def measure_prefill(engine: Engine, work: Work, rng: np.random.Generator, clock: Clock = time.monotonic) -> Iterator[Reading]:
    """Tokens of a prompt a second, from its submission to the first token of the answer; each length runs once before it is timed."""
    speed = 0.0
    for tokens in work.prefill:
        name = f"prefill_{tokens}"
        if tokens + 1 > engine.context_tokens:
            yield Reading(name, None, "context")
            continue
        took = None
        if not speed or tokens / speed < work.budget_s:
            took = _timed_prompt(engine, _random_ids(engine, tokens, rng), clock, work.budget_s)
        if took is not None and took < work.budget_s / 2:
            took = _timed_prompt(engine, _random_ids(engine, tokens, rng), clock, work.budget_s) or took
        if took is None:
            yield Reading(name, None, "too_long")
            continue
        speed = tokens / took
        yield Reading(name, speed)


def measure_decode(engine: Engine, work: Work, rng: np.random.Generator, clock: Clock = time.monotonic) -> Iterator[Reading]:
    """Tokens a second of one greedy answer, from its first token to its last, after prompts of several lengths."""
    _run(engine, [_request(_random_ids(engine, 1, rng), 4)], clock, work.budget_s)
    for depth in work.decode:
        name, prompt = f"decode_{depth}", max(1, depth)
        if prompt + work.decode_tokens + 1 > engine.context_tokens:
            yield Reading(name, None, "context")
            continue
        (end,) = _run(engine, [_request(_random_ids(engine, prompt, rng), work.decode_tokens + 1)], clock, work.budget_s)
        made = end.usage.answer_tokens - 1
        if made < min(FEW_TOKENS, work.decode_tokens) or end.usage.decode_s <= 0:
            yield Reading(name, None, "too_long")
        else:
            yield Reading(name, made / end.usage.decode_s)


def measure_streams(engine: Engine, work: Work, rng: np.random.Generator, clock: Clock = time.monotonic) -> Iterator[Reading]:
    """Tokens a second that several greedy answers make together, while all of them are being made."""
    _run(engine, [_request(_random_ids(engine, 1, rng), 4)], clock, work.budget_s)
    for streams in work.streams:
        name = f"streams_{streams}"
        if work.stream_prompt_tokens + work.stream_tokens > engine.context_tokens:
            yield Reading(name, None, "context")
            continue
        prompts = [_random_ids(engine, work.stream_prompt_tokens, rng) for _ in range(streams)]
        speed = _speed_together(engine, [_request(prompt, work.stream_tokens) for prompt in prompts], clock, work.budget_s)
        yield Reading(name, speed, "" if speed else "too_long")


def read_bytes(loaded: Loaded) -> int:
    """Bytes of weights that one token reads: of experts those that are chosen, and of an embedding table that is not the head too, which
    gives one row, nothing."""
    tied = not any(weight.name == "lm_head" for weight in loaded.weights.leaves())
    read = (weight for weight in loaded.weights.leaves() if tied or not weight.name.endswith("embed_tokens"))
    return sum(int(loaded.ops.weight_bytes(weight) * _chosen_share(loaded, weight)) for weight in read)


def operations_per_token(loaded: Loaded) -> int:
    """Multiplications and additions of the matrices that one token of a prompt passes, without the head."""
    inner = [weight for weight in loaded.weights.leaves() if not weight.name.endswith(("embed_tokens", "lm_head"))]
    shapes = [(weight, weight.data.shape) for weight in inner if len(weight.data.shape) > 1]
    return int(sum(2 * math.prod(shape) * _chosen_share(loaded, weight) for weight, shape in shapes))


def _chosen_share(loaded: Loaded, weight: Weight) -> float:
    """Share of a weight that one token passes: less than 1 for the experts of a layer."""
    mixture: Mixture | None = getattr(loaded.config, "mixture", None)
    return mixture.routing.chosen / mixture.experts if mixture is not None and ".experts." in f"{weight.name}." else 1.0


def windows_of(tokenizer: Tokenizer, text: str, window: int) -> list[list[int]]:
    """A text in windows of equal length, without the rest; a model that begins texts with a token of its own finds it in each.

    Raises:
        AskedWrong: the text is shorter than one window.
    """
    ids = tokenizer.encode(text)
    begin = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    ids = [*begin, *ids]
    windows = [[*begin, *ids[at + len(begin) : at + window]] for at in range(0, len(ids) - window + 1, window)]
    if not windows:
        raise AskedWrong("the text has {found} tokens; expected {expected} at least", found=len(ids), expected=window)
    return windows


def scored_targets(windows: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that are scored, [R]: of every window those after the first in its second half."""
    return [token for ids in windows for token in ids[len(ids) // 2 + 1 :]]


def window_logprobs(loaded: Loaded, windows: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
    """Log-probabilities of every token at the scored places, a few pages at a time, [r, V] each and R rows in all."""
    pages = -(-max(map(len, windows)) // PAGE_TOKENS)
    runner = ModelRunner(loaded, pages, num_states=2)
    for ids in windows:
        half = len(ids) // 2
        for at in range(0, len(ids) - 1, SCORED_AT_ONCE):
            part = ids[at : min(at + SCORED_AT_ONCE, len(ids) - 1)]
            wanted = range(min(max(half - at, 0), len(part)), len(part))
            (rows_rV,) = runner.logits([Part(part, at, range(pages), wanted, states=in_turn(at // SCORED_AT_ONCE))])
            if wanted:
                yield log_softmax(rows_rV[:, : loaded.vocab_tokens])


def log_softmax(logits_rV: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural logarithms of the probabilities, [r, V]; the sum is taken in float64."""
    shifted_rV = logits_rV - logits_rV.max(axis=1, keepdims=True)
    sums_r = np.exp(shifted_rV).sum(axis=1, keepdims=True, dtype=np.float64)
    logprobs_rV: NDArray[np.float32] = shifted_rV - np.log(sums_r).astype(np.float32)
    return logprobs_rV


def _random_ids(engine: Engine, tokens: int, rng: np.random.Generator) -> tuple[int, ...]:
    size = min(engine.loaded.tokenizer.size, engine.loaded.vocab_tokens)
    return tuple(int(token) for token in rng.integers(0, size, tokens))


def _request(prompt: tuple[int, ...], tokens: int) -> Request:
    return Request(prompt=prompt, sampling=Sampling(temperature=0.0, max_tokens=tokens, ignore_end=True, speculate=False))


def _timed_prompt(engine: Engine, prompt: tuple[int, ...], clock: Clock, budget_s: float) -> float | None:
    """Seconds from a prompt to the first token; None when the time was over before."""
    began = clock()
    (end,) = _run(engine, [_request(prompt, 1)], clock, budget_s)
    return clock() - began if end.reason == "length" else None


def _run(engine: Engine, requests: Sequence[Request], clock: Clock, budget_s: float) -> list[Finished]:
    """Step until all requests have ended; those that the time did not suffice for are cancelled.

    Raises:
        KholaError: one of them failed.
    """
    deadline = clock() + budget_s
    for request in requests:
        engine.submit(request)
    ends: dict[int, Finished] = {}
    late = False
    while len(ends) < len(requests):
        _take(engine.step(), ends)
        if clock() > deadline and not late:
            late = True
            for request in requests:
                engine.cancel(request)
    return [ends[request.number] for request in requests]


def _speed_together(engine: Engine, requests: Sequence[Request], clock: Clock, budget_s: float) -> float | None:
    """Tokens a second between the step that reads the last prompt and the first end of an answer; None when there was no time for that."""
    before, deadline = engine.stats(), clock() + budget_s
    wanted = sum(len(request.prompt) for request in requests)
    for request in requests:
        engine.submit(request)
    ends: dict[int, Finished] = {}
    began, made, steps, speed = 0.0, 0, 0, None
    while not ends and clock() < deadline:
        _take(engine.step(), ends)
        now, stats = clock(), engine.stats()
        if steps:
            steps += 1
            if steps > FEW_STEPS or ends:
                speed = (stats.answer_tokens - made) / (now - began)
        elif stats.computed_tokens - before.computed_tokens >= wanted + _decoded(stats.answer_tokens - before.answer_tokens, requests):
            began, made, steps = now, stats.answer_tokens, 1
    for request in requests:
        engine.cancel(request)
    while len(ends) < len(requests):
        _take(engine.step(), ends)
    return speed


def _decoded(answer_tokens: int, requests: Sequence[Request]) -> int:
    """Rows that were computed for answers once all prompts are read: every token but the last of each answer."""
    return answer_tokens - len(requests)


def _take(events: Sequence[Event], ends: dict[int, Finished]) -> None:
    """Note the requests that have ended.

    Raises:
        KholaError: one of them failed.
    """
    for event in events:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            ends[event.request.number] = event
