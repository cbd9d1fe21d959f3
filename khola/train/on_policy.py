"""The student writes and the teacher reads: batches of the student's own answers, with the teacher's opinion of every chunk.

Answers are sampled by the engine from the very tensors that learn, so they are always those of the step's weights; what the engine found
each token's probability to be goes along, and the gap to what training computes is shown as a figure.

Source   on-policy distillation as reverse KL a token at a time, arXiv:2306.13649 section 3; credit by chunks, arXiv:2605.07711 section 3.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast, final

import numpy as np
import torch

from khola.data.packing import Batch, Sample, packed, plan
from khola.data.rows import sample_seed
from khola.engine.engine import Engine
from khola.engine.request import Failed, Finished, Piece, Request, Sampling
from khola.errors import AskedWrong, OurFault
from khola.loader.loaded import Loaded
from khola.ops.vocabulary import PAGE_TOKENS, Weight
from khola.ops.weights import tree_of
from khola.train.lessons import teacher_of
from khola.train.matching import NOWHERE, Matched, chunk_match
from khola.train.methods import Setup
from khola.train.model import Part, Trainee
from khola.train.opinion import Opinion, Question
from khola.train.teacher import Spoken, Teacher

ROWS = 32
"""Answers that are written at once."""


@dataclass(frozen=True, kw_only=True)
class Wrote:
    """An answer of the student."""

    ids: tuple[int, ...]
    """Without the token that ended it."""
    logprobs: tuple[float, ...]
    """Of each, as the sampler found them."""
    whole: bool
    """It ended by itself."""


@final
class OnPolicy:
    """Batches of the student's answers; satisfies `khola.train.methods.Source`.

    Args:
        samples: prompts, each with its question and one token of an answer, which is left out.
        setup: of the run.
        model: the student.
        teacher: who reads; by default the one of the configuration.
    Raises:
        AskedWrong: several processes train together, which this does not know how to feed.
    """

    def __init__(self, samples: Sequence[Sample], setup: Setup, model: Trainee, teacher: Teacher | None = None) -> None:
        if setup.world > 1:
            raise AskedWrong("on-policy distillation runs in one process", hint="start it without torchrun")
        self._samples, self._setup, self._model, self._config = samples, setup, model, setup.config
        if teacher is None:
            if setup.settings is None:
                raise OurFault("a teacher cannot be found without settings")
            stack = ExitStack()
            weakref.finalize(self, stack.close)
            teacher = teacher_of(setup.config, setup.settings, model.tokenizer, stack)
        self._teacher = teacher
        self._step = 0

    @property
    def num_steps(self) -> int:
        """Steps until every prompt was answered as often as `epochs` says."""
        return max(1, round(self._setup.epochs * len(self._samples) / int(self._config.prompts)))

    def next(self) -> list[Batch]:
        """What the student writes now to the next prompts; empty at the end."""
        if self._step >= self.num_steps:
            return []
        numbers = self._numbers()
        prompts = [self._samples[number] for number in numbers]
        wrote = write(self._model, prompts, self._sampling(numbers))
        said = [_spoken(sample, one, self._model) for sample, one in zip(prompts, wrote, strict=True)]
        opinions = self._read(prompts, said)
        made = [_sample(sample, one, answer, opinion) for sample, one, answer, opinion in zip(prompts, said, wrote, opinions, strict=True)]
        self._step += 1
        batches = [packed(made, group) for group in plan([len(one.ids) for one in made], self._setup.batch_tokens, self._setup.seed, 0)]
        return [replace(batch, samples=tuple(numbers[place] for place in batch.samples)) for batch in batches]

    def state(self) -> dict[str, Any]:
        """The step; prompts and seeds follow from it."""
        return {"step": self._step}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._step = int(state["step"])

    def _numbers(self) -> list[int]:
        """Prompts of this step: epoch after epoch in an order of its own."""
        found: list[int] = []
        size, first = len(self._samples), self._step * self._config.prompts
        for place in range(first, first + self._config.prompts):
            order = np.random.default_rng([self._setup.seed, place // size]).permutation(size)
            found.append(int(order[place % size]))
        return found

    def _sampling(self, numbers: Sequence[int]) -> list[Sampling]:
        """How each answer is drawn: a function of the seed, the step and the place in it."""
        config = self._config
        return [
            Sampling(
                temperature=config.answer_temperature,
                max_tokens=max(1, min(config.answer_tokens, self._setup.max_tokens - len(self._samples[number].ids))),
                seed=sample_seed(self._setup.seed, self._step, place),
                logprobs=0,
            )
            for place, number in enumerate(numbers)
        ]

    def _read(self, prompts: Sequence[Sample], said: Sequence[Spoken]) -> list[Opinion | None]:
        """The teacher's opinions; None of answers that say nothing."""
        asked: list[Question | None] = []
        for sample, one in zip(prompts, said, strict=True):
            question: Question = sample.extras["question"]
            asked.append(Question(messages=question.messages, prompt=question.prompt, text=one.text) if one.text else None)
        told = iter(self._teacher.answers([question for question in asked if question is not None]))
        return [None if question is None else next(told) for question in asked]


def write(model: Trainee, prompts: Sequence[Sample], sampling: Sequence[Sampling]) -> list[Wrote]:
    """Answers of a model that learns, as it is now.

    Args:
        model: whose tensors are read where they lie.
        prompts: each with one token of an answer, which is left out, and the "end" of answers, -1 where nothing ends them.
        sampling: of each; with a seed the answer is always the same.
    Raises:
        KholaError: an answer failed.
    """
    requests = [
        Request(prompt=tuple(sample.ids[:-1].tolist()), sampling=how, stop_ids=frozenset({sample.extras["end"]} - {NOWHERE}))
        for sample, how in zip(prompts, sampling, strict=True)
    ]
    most = max(len(request.prompt) + (request.sampling.max_tokens or 0) for request in requests)
    pages = -(-most // PAGE_TOKENS) + 1
    # A new engine every time: what the old one's cache holds was computed with other weights.
    rows = min(ROWS, len(requests))
    with torch.no_grad():
        engine = Engine(_loaded(model), cache_tokens=rows * pages * PAGE_TOKENS, context_tokens=pages * PAGE_TOKENS, max_rows=rows)
        try:
            with ExitStack() as streams:
                running = [streams.enter_context(engine.stream(request)) for request in requests]
                return [_wrote(list(events)) for events in running]
        finally:
            engine.close()


def _wrote(events: Sequence[Piece | Finished | Failed]) -> Wrote:
    """All of an answer."""
    end = events[-1]
    if isinstance(end, Failed):
        raise end.error
    tokens = [token for event in events if isinstance(event, Piece) for token in event.tokens]
    logprobs = tuple(float("nan") if token.logprob is None else token.logprob for token in tokens)
    return Wrote(ids=tuple(token.id for token in tokens), logprobs=logprobs, whole=cast(Finished, end).reason == "stop")


def _weights(model: Trainee) -> Iterator[Weight]:
    """All weights by their names in the checkpoint."""
    yield from model.whole.weights()
    for layer, block in enumerate(model.whole.blocks):
        for weight in cast(Part, block).weights():
            yield Weight(f"{model.architecture.LAYERS}.{layer}.{weight.name}", weight.data, weight.bias)


def _loaded(model: Trainee) -> Loaded:
    """The model as an engine reads it, over the same tensors."""
    return Loaded(
        name=model.name,
        card=None,
        architecture=model.architecture,
        config=model.config,
        weights=tree_of(_weights(model)),
        ops=model.ops,
        cache=model.architecture.cache(model.config),
        tokenizer=model.tokenizer,
        context_tokens=model.config.max_position_embeddings,
        vocab_tokens=model.config.vocab_size,
    )


def _spoken(prompt: Sample, wrote: Wrote, model: Trainee) -> Spoken:
    """What the student wrote, by its own tokens; its text ends where its bytes are no letters any more."""
    pieces = [model.tokenizer.token_bytes(token) for token in wrote.ids]
    before, raw = prompt.ids[:-1].tolist(), b"".join(pieces)
    ids = [*before, *wrote.ids, *([prompt.extras["end"]] if wrote.whole else [])]
    lengths = (*(len(piece) for piece in pieces), *([1] if wrote.whole else []))
    return Spoken(ids_T=np.array(ids, np.int32), first=len(before), closed=wrote.whole, text=_letters(raw), lengths=lengths)


def _letters(raw: bytes) -> str:
    """The text that some bytes begin with."""
    try:
        return raw.decode()
    except UnicodeDecodeError as problem:
        return raw[: problem.start].decode()


def _sample(prompt: Sample, said: Spoken, wrote: Wrote, opinion: Opinion | None) -> Sample:
    """An answer as a sequence, with credit where the teacher read the same text; elsewhere nothing is praised or blamed."""
    size, end = len(said.lengths), len(said.text.encode())
    # The byte behind the text stands for its end; tokens that go on behind it must not be taken for that.
    read = size if int(said.ends[-1]) <= end + said.closed else int(np.searchsorted(said.ends, end, side="right"))
    if opinion is not None and opinion.text == said.text:
        matched: Matched = chunk_match(replace(said, lengths=said.lengths[:read]), opinion)
        matched["chunk_r"] = np.pad(matched["chunk_r"], (0, size - read), constant_values=NOWHERE)
    else:
        none = np.zeros(0, np.float32)
        matched = {"chunk_r": np.full(size, NOWHERE), "teacher_C": none, "mass_C": none, "behind_C": np.zeros(0, np.int64)}
    sampled_r = np.array([*wrote.logprobs, *([np.nan] if said.closed else [])], np.float32)
    learned = np.arange(len(said.ids_T)) >= said.first
    return Sample(ids=said.ids_T, learned=learned, where=prompt.where, extras={**matched, "sampled_r": sampled_r})
