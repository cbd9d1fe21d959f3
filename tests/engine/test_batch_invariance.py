"""A request's numbers are its own: the same bits alone and among others, however its prompt is cut, whatever happened before.

Every trial runs a crowd of random requests in an engine of random limits: prompts in chunks beside those who decode, guesses, shared
beginnings, second turns, caches so small that somebody loses pages, one thread or two, every instruction set. Some of the crowd are then
asked again, each alone in an engine of its own, and every row of logits that counted is compared.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.engine import prefix, runner
from khola.engine.engine import Engine
from khola.engine.job import Job
from khola.engine.request import Failed, Finished, Request, Sampling
from khola.engine.runner import Part
from khola.loader.loaded import Loaded
from khola.native.lib import CACHE_FORMS, available_isas, choose_isa
from khola.ops.native_ops import CacheForm, NativeOps
from khola.ops.native_scores import NativeScores
from khola.ops.numpy_ops import NumpyOps
from khola.ops.scores import Changes, Row, Scores, row_of, whole
from khola.ops.vocabulary import PAGE_TOKENS, Interpreter, Step
from tests.engine.fakes import FakeRunner, fake_loaded, require_empty, run
from tests.engine.tiny import quantised_delta, quantised_experts, quantised_latents, quantised_lightning, quantised_llama
from tests.needs import needs_library
from tests.tolerances import CACHED

Rows = dict[int, tuple[bytes, NDArray[np.float32]]]
"""The best logits, and all of them, by the position of the token they come from."""
CONTEXT = 192
MODELS = {
    "llama": quantised_llama,
    "experts": quantised_experts,
    "latents": quantised_latents,
    "delta": quantised_delta,
    "lightning": quantised_lightning,
    "second token": partial(quantised_latents, further=True),
}
STATES = ("delta", "lightning")
HALVES = (0, pytest.param(50, marks=pytest.mark.soak))
"""Of a hundred trials."""
THREADS = (1, 1, 1, 1, 2)
"""Two wait for each other long where others want the processor too; plain C++, which is slow, is chosen less often as well."""


@dataclass
class Witness:
    """What a request was told: every row that the engine read, and the tokens that came of it."""

    read: list[tuple[Part, list[bytes], NDArray[np.float32]]] = field(default_factory=list)
    """Part, the best logits of each of its rows, and the rows."""
    rough: bool = False
    """Whether only the best logits are sure to be exact."""
    tokens: list[int] = field(default_factory=list)
    logprobs: tuple[float, ...] = ()

    def rows(self) -> Rows:
        """Rows that counted: those computed from the tokens that stand there in the end."""
        found: Rows = {}
        for part, bests, rows in self.read:
            for place, best, row in zip(part.wanted, bests, rows, strict=True):
                until = part.first + place + 1
                if list(part.ids[: place + 1]) == self.tokens[part.first : until]:
                    found.setdefault(until - 1, (best, row))
        return found


def best_of(row: NDArray[np.float32] | Row) -> bytes:
    """Bits of the ids and values of the three greatest logits; the order of equal ones is that of their ids."""
    if isinstance(row, np.ndarray):
        ids = np.lexsort((np.arange(len(row)), -row))[:3].astype(np.int32)
        return ids.tobytes() + row[ids].tobytes()
    found = row.best(3, len(row.whole()), Changes({}))
    return b"" if found is None else found[0].tobytes() + found[1].tobytes()


@contextmanager
def witnessed() -> Iterator[dict[Request, Witness]]:
    """Look over the shoulder of every job."""
    seen: dict[Request, Witness] = {}
    read = Job.read

    def reading(job: Job, part: Part, rows: NDArray[np.float32] | Scores, now: float) -> Any:
        here = seen.setdefault(job.request, Witness())
        here.read.append((part, [best_of(row_of(rows, at)) for at in range(len(rows))], whole(rows).copy()))
        here.rough |= isinstance(rows, NativeScores) and rows.rough
        here.tokens = job.sequence.tokens
        return read(job, part, rows, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "read", reading)
        yield seen


@cache
def model(interpreter: str, threads: int, kept: CacheForm, kind: str) -> Loaded:
    """A model whose weights are quantised in several ways."""
    made = MODELS[kind]
    if interpreter == "torch":
        from khola.ops.torch_ops import TorchOps

        return made(TorchOps())
    ops: Interpreter = NumpyOps() if interpreter == "numpy" else NativeOps(threads=threads, cache=kept)
    return made(ops)


def engine_of(interpreter: str, isa: str, threads: int, pages: int, kept: CacheForm, kind: str, **limits: int) -> Engine:
    """An engine with a cache of its own."""
    if isa:
        choose_isa(isa)
    try:
        return Engine(
            model(interpreter, threads, kept, kind),
            cache_tokens=pages * PAGE_TOKENS,
            context_tokens=min(CONTEXT, pages * PAGE_TOKENS),
            clock=iter(range(1 << 40)).__next__,
            draw_seed=lambda: 7,
            **limits,
        )
    finally:
        if isa:
            choose_isa("")


def some_request(rng: random.Random, before: Sequence[tuple[Request, list[int]]], speculates: bool) -> Request:
    """A prompt that may begin like another one, repeat itself or go on where an answer ended; any way to choose tokens."""
    letters = rng.choice([3, 250])
    prompt = [7] * rng.choice([0, 0, 31, 32, 64]) + [rng.randrange(letters) for _ in range(rng.choice([1, 2, 17, rng.randint(1, 70)]))]
    answers: tuple[range, ...] = ()
    if before and rng.random() < 0.4:
        turn, said = rng.choice(before)
        prompt = [*said, *prompt[-5:]][: CONTEXT - 80]
        answers = (*turn.answers, range(len(turn.prompt), len(said))) if rng.random() < 0.5 else ()
    elif rng.random() < 0.2:
        first = rng.randrange(len(prompt))
        answers = (range(first, rng.randint(first, len(prompt))),)
    scored = rng.random() < 0.1
    sampling = Sampling(
        temperature=rng.choice([0, 0, 0.8]),
        seed=rng.randrange(99),
        max_tokens=rng.choice([0, 3]) if scored else rng.choice([1, 6, 20, 70]),
        ignore_end=True,
        speculate=rng.choice([True, True, None, False]) if speculates else None,
    )
    return Request(prompt=tuple(prompt), sampling=sampling, answers=answers, prompt_logprobs=scored)


def again(request: Request) -> Request:
    """The same request, without guesses."""
    sampling = Sampling(**{**{name: getattr(request.sampling, name) for name in Sampling.__struct_fields__}, "speculate": False})
    return Request(prompt=request.prompt, sampling=sampling, answers=request.answers, prompt_logprobs=request.prompt_logprobs)


def crowd(engine: Engine, rng: random.Random, seen: dict[Request, Witness], rounds: int, speculates: bool) -> list[Request]:
    """Requests that come and go; gives those that were answered."""
    told: list[tuple[Request, list[int]]] = []
    for _ in range(rounds):
        coming = [some_request(rng, told, speculates) for _ in range(rng.choice([1, 2, 3, 5, 8, 31]))]
        going = set(coming)
        while going:
            for _ in range(min(len(coming), rng.choice([1, 4, 32]))):
                engine.submit(coming.pop())
            for event in engine.step():
                assert not isinstance(event, Failed), event
                if isinstance(event, Finished):
                    going.remove(event.request)
                    seen[event.request].logprobs = event.prompt_logprobs
                    told.append((event.request, list(seen[event.request].tokens)))
    require_empty(engine)
    return [request for request, _ in told]


def trial(
    seed: int, interpreter: str = "native", isas: Sequence[str] = ("",), kept: CacheForm = "bf16", kind: str = "llama"
) -> Counter[str]:
    """One crowd; gives what happened in it.

    Args:
        kept: how the cache of the native interpreter keeps numbers.
        kind: one of `MODELS`.
    Raises:
        AssertionError: somebody's numbers were not their own.
    """
    rng = random.Random(seed)
    (isa,), step_tokens = rng.choices(isas, [1 if isa == "scalar" else 10 for isa in isas]), rng.choice([16, 33, 64, 256])
    limits = {"step_tokens": step_tokens, "max_rows": rng.choice([1, 3, 8, min(32, step_tokens)])}
    engine = engine_of(interpreter, isa, rng.choice(THREADS), rng.choice([6, 7, 9, 80]), kept, kind, **limits)
    with witnessed() as seen:
        asked = crowd(engine, rng, seen, rng.randint(1, 2), kind not in STATES)
        for request in rng.sample(asked, min(2, len(asked))):
            alone = engine_of(interpreter, isa, rng.choice(THREADS), 8, kept, kind, step_tokens=rng.choice([8, 40, 256]), max_rows=1)
            once_more = again(request)
            for event in alone.stream(once_more):
                if isinstance(event, Finished):
                    seen[once_more].logprobs = event.prompt_logprobs
            require_equal(
                seen[request], seen[once_more], exact=interpreter == "native", case=f"trial {seed}, {isa}, {kept}, {kind}, {request}"
            )
    stats = engine.stats()
    return Counter(
        preempted=stats.preemptions,
        accepted=stats.accepted_tokens,
        cached=stats.cached_tokens,
        crowded=any(len(s.read) for s in seen.values()) and len(asked) > 16,
    )


def require_equal(found: Witness, wanted: Witness, *, exact: bool, case: str) -> None:
    """The same tokens, and the same logits for each; a guess may have asked for one row more."""
    rows, expected = found.rows(), wanted.rows()
    for position in sorted(expected):
        (best, row), (best_expected, row_expected) = rows[position], expected[position]
        if exact:
            assert best == best_expected, f"{case}: logits at {position}"
            assert found.rough or wanted.rough or row.tobytes() == row_expected.tobytes(), f"{case}: logits at {position}"
        else:
            np.testing.assert_allclose(row, row_expected, atol=CACHED, err_msg=f"{case}: logits at {position}")
    assert found.tokens == wanted.tokens, case
    np.testing.assert_allclose(found.logprobs, wanted.logprobs, rtol=0, atol=0 if exact else CACHED)


@needs_library
@pytest.mark.parametrize("kept", CACHE_FORMS)
@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.slow) for block in (1, 2))])
def test_numbers_are_the_same_bits_alone_and_in_a_crowd(block: int, kept: CacheForm) -> None:
    happened = sum((trial(seed, isas=available_isas(), kept=kept) for seed in range(block * 10, block * 10 + 10)), Counter())
    assert happened["accepted"] and happened["cached"], "nothing happened that could change a number"


@needs_library
@pytest.mark.parametrize("kind", ["experts", "latents"])
def test_a_token_does_not_know_who_else_chose_its_experts(kind: str) -> None:
    happened = sum((trial(seed, isas=available_isas(), kind=kind) for seed in range(500, 506)), Counter())
    assert happened["accepted"] and happened["cached"], "nothing happened that could change a number"


@needs_library
@pytest.mark.parametrize("kind", STATES)
def test_a_state_does_not_know_in_how_many_steps_it_came_about(kind: str) -> None:
    happened = sum((trial(seed, isas=available_isas(), kind=kind) for seed in range(700, 706)), Counter())
    assert happened["cached"] and happened["preempted"], "nothing happened that could change a number"


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("kind", STATES)
def test_states_in_a_hundred_trials(kind: str, half: int) -> None:
    happened = sum((trial(seed, isas=available_isas(), kind=kind) for seed in range(4000 + half, 4050 + half)), Counter())
    assert min(happened[what] for what in ("preempted", "cached", "crowded")) > 0, happened


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES)
def test_a_layer_that_guesses_in_a_hundred_trials(half: int) -> None:
    happened = sum((trial(seed, isas=available_isas(), kind="second token") for seed in range(5000 + half, 5050 + half)), Counter())
    assert min(happened[what] for what in ("preempted", "accepted", "cached", "crowded")) > 0, happened


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("block", [0, 1, *(pytest.param(block, marks=pytest.mark.soak) for block in range(2, 10))])
def test_a_thousand_trials(block: int) -> None:
    """Every second hundred with a cache of codes."""
    kept: CacheForm = "int8" if block % 2 else "bf16"
    happened = sum((trial(seed, isas=available_isas(), kept=kept) for seed in range(1000 + block * 100, 1100 + block * 100)), Counter())
    assert min(happened[what] for what in ("preempted", "accepted", "cached", "crowded")) > 0, happened


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_precise_numbers_of_every_kind_of_model(kind: str) -> None:
    happened = sum((trial(seed, isas=available_isas(), kept="float32", kind=kind) for seed in range(6000, 6020)), Counter())
    assert happened["preempted"] and happened["cached"] and (kind in STATES or happened["accepted"]), happened


@pytest.mark.parametrize("interpreter", ["numpy", "torch"])
def test_other_interpreters_give_the_same_tokens(interpreter: str) -> None:
    """Their matrix products belong to others, who promise no bits; near ties of random weights are rare."""
    for seed in range(4):
        trial(seed, interpreter)


@pytest.mark.parametrize("marked", [True, False])
def test_a_second_turn_finds_the_first_answer_where_the_prompt_says_that_it_is_one(marked: bool) -> None:
    """Pages that an answer filled, and the half one behind them, are those of the same tokens as an answer, never as a prompt."""
    ops = SimpleNamespace(name="fake", token_bytes=lambda spec: 32, tells_answers=True)
    engine = Engine(fake_loaded(ops=ops), cache_tokens=64 * PAGE_TOKENS, runner=FakeRunner(64), draw_seed=lambda: 7)
    first = Request(prompt=tuple(range(90)), sampling=Sampling(max_tokens=60, ignore_end=True))
    tokens = run(engine, first)[first][0]
    answers = (range(90, 150),) if marked else ()
    second = Request(prompt=(*first.prompt, *tokens, *b"and then?"), sampling=Sampling(max_tokens=5), answers=answers)
    end = run(engine, second)[second][2]
    assert isinstance(end, Finished)
    assert end.usage.cached_tokens == (149 if marked else 64)


@needs_library
@pytest.mark.slow
def test_a_real_model_says_the_same_alone_and_in_a_crowd(real_model: Callable[[str], Path]) -> None:
    """Twenty prompts together, each alone in an empty cache, and second turns that find their first one or do not."""
    from khola.api.model import Model, load

    def asked(rows: Sequence[Sequence[dict[str, str]]], model: Model) -> list[str]:
        streams = [model.stream(list(turns), sampling={"temperature": 0, "max_tokens": 24}) for turns in rows]
        with ThreadPoolExecutor(len(streams)) as threads:
            return [answer.text for answer in threads.map(lambda stream: stream.whole(), streams)]

    def turn(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    words = ("rivers", "bread", "the moon", "Dhaka", "prime numbers", "a lighthouse", "rust", "kites", "salt", "owls")
    first = [[turn("user", f"{start} {word}.")] for word in words for start in ("Tell me two facts about", "Write a haiku about")]
    with load(str(real_model("smollm2-135m-instruct")), interpreter="native", context=512) as loaded:
        with Model(loaded.loaded, cache_tokens=20 * 256, max_rows=32) as model:
            answers = asked(first, model)
            second = [[*row, turn("assistant", answer), turn("user", "Go on.")] for row, answer in zip(first, answers, strict=True)]
            went_on = asked(second, model)
            assert model.stats().cached_tokens > sum(map(len, second))
        for row, told in zip([*first, *second], [*answers, *went_on], strict=True):
            with Model(loaded.loaded, cache_tokens=512) as alone:
                assert asked([row], alone) == [told], row
    assert len(set(answers)) == len(answers)


def by_size(parts: Sequence[Part], cache: Any, kept_TD: Any = None) -> tuple[NDArray[np.int32], Step]:
    """Steps in which the number of rows decides how they are rounded."""
    ids_T, step = _pack(parts, cache, kept_TD)
    few, few_wanted = np.full(len(ids_T), len(ids_T) <= 16), np.full(len(step.rows_R), len(step.rows_R) <= 16)
    return ids_T, replace(step, answers_T=few, drawn_R=few_wanted)


_pack = runner.pack


@needs_library
@pytest.mark.parametrize(
    ("what", "wrong"),
    [((runner, "pack"), by_size), ((prefix, "ANSWER"), 0)],
    ids=["rounding by the size of a step", "pages found whatever rounding filled them"],
)
def test_a_trial_can_fail(what: tuple[Any, str], wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has power: it sees a rule that depends on the step, or on what happened before."""
    monkeypatch.setattr(*what, wrong)
    with pytest.raises(AssertionError, match="logits at"):
        for seed in range(60):
            trial(seed)
