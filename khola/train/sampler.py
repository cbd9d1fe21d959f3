"""Answers of a model that learns, from the engine that would serve it: its weights are handed over in memory before every round.

The engine is the native one where this machine has it; then tokens cost what they cost in `khola serve`, and a log-probability is that of
the same weights in other arithmetic. How far the two are apart is measured at every step (`gap`), and with `precise` nothing but the order
of sums is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from khola.engine.engine import Engine
from khola.engine.request import Failed, Finished, Request, Sampling, TokenInfo
from khola.loader.assemble import assemble
from khola.loader.interpreter import interpreter_named
from khola.loader.loaded import Loaded
from khola.nn import decoder
from khola.ops.vocabulary import PAGE_TOKENS, Forward
from khola.settings import Settings
from khola.train.model import Trainee


@dataclass(frozen=True, slots=True)
class Wanted:
    """One answer to be sampled."""

    prompt: tuple[int, ...]
    """Everything before it: the prompt, and what was answered in an earlier round."""
    seed: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What was sampled."""

    ids: tuple[int, ...]
    """With the token that ended it."""
    log_probs: tuple[float, ...]
    """Of each, before temperature and filters, as the engine computed them."""
    ended: bool
    """Whether it ended by itself, and not for want of room."""


class Sampler:
    """The engine over weights that change.

    Args:
        model: that learns.
        settings: threads, instruction set.
        stop_ids: tokens that end an answer.
        precise: sample in the arithmetic of float32; slower.
        rows: answers at once.
    """

    def __init__(self, model: Trainee, settings: Settings, stop_ids: frozenset[int], *, precise: bool = False, rows: int = 32) -> None:
        self._model, self._settings, self._stops, self._precise, self._rows = model, settings, stop_ids, precise, rows

    def answers(self, wanted: Sequence[Wanted], temperature: float) -> list[Answer]:
        """Sample all of them with the weights of now; the same seeds and weights give the same answers.

        Raises:
            KholaError: the engine failed.
        """
        if not wanted:
            return []
        longest = max(len(one.prompt) + one.max_tokens for one in wanted)
        pages = -(-longest // PAGE_TOKENS) + 1
        room = self._rows * pages * PAGE_TOKENS
        engine = Engine(self._loaded(), cache_tokens=room, context_tokens=longest, max_rows=self._rows, max_waiting=len(wanted))
        try:
            return _answered(engine, [self._request(one, temperature) for one in wanted], self._stops)
        finally:
            engine.close()

    def _request(self, one: Wanted, temperature: float) -> Request:
        # The token that ends an answer is learned too, so it must be told of: it is text like any other, and whoever reads it stops.
        sampling = Sampling(temperature=temperature, seed=one.seed, max_tokens=one.max_tokens, logprobs=0, speculate=False)
        return Request(prompt=one.prompt, sampling=sampling, shown_ids=self._stops)

    def _loaded(self) -> Loaded:
        """The weights of now in an interpreter of their own."""
        model = self._model
        ops = interpreter_named("auto", self._settings, precise=self._precise)
        tensors = {tensor.name: tensor for tensor in model.exported("F32" if self._precise else "BF16")}
        weights = assemble(model.architecture, model.config, tensors, ops, file=model.name)
        passes: list[Forward] = [lambda ids_T, step, ops: decoder.logits(ids_T, model.architecture, weights, model.config, step, ops)]
        ops.settle(passes)
        return Loaded(
            name=model.name,
            card=None,
            architecture=model.architecture,
            config=model.config,
            weights=weights,
            ops=ops,
            cache=model.architecture.cache(model.config),
            tokenizer=model.tokenizer,
            context_tokens=model.config.max_position_embeddings,
            vocab_tokens=model.config.vocab_size,
            stop_ids=self._stops,
        )


def _answered(engine: Engine, requests: Sequence[Request], stops: frozenset[int]) -> list[Answer]:
    """All answers, in the order of the requests."""
    told: dict[Request, list[TokenInfo]] = {request: [] for request in requests}
    open_ = set(requests)
    for request in requests:
        engine.submit(request)
    while open_:
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                open_.discard(event.request)
            elif event.request in open_:
                told[event.request] += event.tokens
                if any(token.id in stops for token in event.tokens):
                    open_.discard(event.request)
                    engine.cancel(event.request)
    return [_cut(told[request], stops) for request in requests]


def _cut(tokens: Sequence[TokenInfo], stops: frozenset[int]) -> Answer:
    """The tokens up to the one that ends the answer."""
    ended = next((place for place, token in enumerate(tokens) if token.id in stops), None)
    kept = tokens if ended is None else tokens[: ended + 1]
    return Answer(tuple(token.id for token in kept), tuple(token.logprob or 0.0 for token in kept), ended is not None)
