"""A layer that guesses further tokens changes none: crowds of requests whose guesses all come from it, against each alone without."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.engine.engine import Engine
from khola.engine.job import Job
from khola.engine.request import Finished, Request, Sampling
from khola.engine.runner import ModelRunner
from khola.engine.speculate import Runs
from khola.loader.loaded import Loaded
from khola.nn import decoder, second_token
from khola.ops.native_ops import NativeOps
from khola.ops.numpy_ops import NumpyOps
from khola.ops.vocabulary import PAGE_TOKENS, whole_sequences
from tests.engine.fakes import require_empty, run
from tests.engine.tiny import quantised_latents
from tests.needs import needs_library
from tests.tolerances import CACHED

INTERPRETERS = ["numpy", pytest.param("native", marks=needs_library)]
CONTEXT = 128


@pytest.fixture(autouse=True)
def nothing_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """All guesses come from the layer."""
    monkeypatch.setattr(Runs, "following", lambda self, most: ([], 0))


@cache
def model(interpreter: str) -> Loaded:
    return quantised_latents(NumpyOps() if interpreter == "numpy" else NativeOps(threads=1), further=True)


def engine_of(interpreter: str, pages: int = 64, **options: Any) -> Engine:
    limits = {"cache_tokens": pages * PAGE_TOKENS, "context_tokens": CONTEXT, **options}
    return Engine(model(interpreter), clock=iter(range(1 << 40)).__next__, draw_seed=lambda: 7, **limits)


def ask(prompt: Sequence[int], speculate: bool | None = True, **sampling: Any) -> Request:
    asked = {"temperature": 0, "max_tokens": 30, "ignore_end": True, **sampling}
    return Request(prompt=tuple(prompt), sampling=Sampling(**asked, speculate=speculate))


def crowd(interpreter: str, seed: int) -> tuple[int, int, int]:
    """Requests that begin alike, that go on where others ended, in chunks, in caches too small for all; one is cancelled.

    Gives how many tokens were guessed right, how many sequences lost their pages and how many tokens were found in the cache.
    """
    rng = random.Random(seed)
    engine = engine_of(interpreter, 5 if seed % 2 else 40, step_tokens=rng.choice([16, 33, 256]), max_rows=rng.choice([3, 4, 8]))
    told: dict[Request, list[int]] = {}
    for _ in range(3):
        asked = [
            ask(
                [
                    *rng.choice([[], [7] * 40, *([*r.prompt, *t] for r, t in told.items())])[:70],
                    *rng.choices(range(250), k=rng.randint(1, 30)),
                ],
                rng.choice([True, True, None, False]),
                temperature=rng.choice([0, 0, 0.3]),
                seed=rng.randrange(99),
                max_tokens=rng.choice([1, 40, 60]),
            )
            for _ in range(rng.randint(2, 5))
        ]
        for request in asked:
            engine.submit(request)
        leaves, ended, steps = rng.choice([None, *asked]), set[Request](), 0
        said: dict[Request, list[int]] = {request: [] for request in asked}
        while len(ended) < len(asked):
            steps += 1
            if steps == 4 and leaves is not None:
                engine.cancel(leaves)
            for event in engine.step():
                if isinstance(event, Finished):
                    ended.add(event.request)
                else:
                    said[event.request] += [token.id for token in event.tokens]
        require_empty(engine)
        told |= said
        for request, tokens in said.items():
            plain = Request(prompt=request.prompt, sampling=Sampling(**{**fields_of(request.sampling), "speculate": False}))
            expected = run(engine_of(interpreter, step_tokens=256, max_rows=1), plain)[plain][0]
            assert tokens == (expected[: len(tokens)] if request is leaves else expected), f"case {seed}"
    stats = engine.stats()
    return stats.accepted_tokens, stats.preemptions, stats.cached_tokens


def fields_of(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in Sampling.__struct_fields__}


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_no_token_changes(interpreter: str) -> None:
    happened = np.sum([crowd(interpreter, seed) for seed in (9,)], axis=0)
    assert happened.min() > 0, f"nothing happened that could change a token: {happened}"


@pytest.mark.slow
@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_no_token_changes_in_sixty_crowds(interpreter: str) -> None:
    for seed in range(100, 160):
        crowd(interpreter, seed)


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_steps_are_fewer(interpreter: str) -> None:
    """And none of it where nobody asks: guesses are what the request says."""
    steps, answers = {}, []
    for speculate in (False, True):
        engine = engine_of(interpreter)
        request = ask(range(50), speculate, max_tokens=60)
        answers.append(run(engine, request)[request][0])
        stats = engine.stats()
        steps[speculate] = stats.steps
        assert bool(stats.drafted_tokens) == speculate
    assert answers[0] == answers[1]
    assert steps[True] < 0.8 * steps[False]


def expected_of(loaded: Loaded, tokens: Sequence[int]) -> NDArray[np.float32]:
    """What the layer says behind some tokens, from these tokens alone and without a cache."""
    ids, rows = np.array(tokens), len(tokens) - 1
    kept_TD = np.zeros((rows, loaded.config.hidden_size), np.float32)
    step = replace(whole_sequences([rows], [rows - 1]), kept_TD=kept_TD)
    decoder.logits(ids[:-1], loaded.architecture, loaded.weights, loaded.config, step, loaded.ops, keep=True)
    row: NDArray[np.float32] = second_token.logits(ids[1:], loaded.architecture, loaded.weights, loaded.config, step, loaded.ops)[0]
    return row


def watch(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How far what the layer says in an engine is off, guess by guess."""
    errors: list[float] = []
    expect = Job.expect

    def watched(job: Job, rows: Any) -> None:
        if len(rows):
            wanted = expected_of(model("numpy"), job.sequence.tokens)
            errors.append(float(np.abs(rows[0] - wanted).max()))
        expect(job, rows)

    monkeypatch.setattr(Job, "expect", watched)
    return errors


@pytest.fixture
def poisoned_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in what was never written."""
    new_cache = NumpyOps.new_cache

    def poisoned(self: NumpyOps, *sizes: Any) -> Any:
        cache = new_cache(self, *sizes)
        for plane in cache.keys:
            plane[:] = np.nan
        return cache

    monkeypatch.setattr(NumpyOps, "new_cache", poisoned)


@pytest.mark.usefixtures("poisoned_cache")
def test_what_the_layer_keeps_has_no_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found pages, lost pages, wrong guesses, chunks: every guess is the one of an empty cache."""
    errors = watch(monkeypatch)
    crowd("numpy", 3)
    assert len(errors) > 50
    assert np.max(errors) <= CACHED


@pytest.mark.usefixtures("poisoned_cache")
def test_the_last_page_of_a_request_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer never read its last token: not even where others have filled the pages behind it."""
    engine = engine_of("numpy")
    first = ask(range(PAGE_TOKENS * 2 - 4), max_tokens=5)
    whole = [*first.prompt, *run(engine, first)[first][0][:4]]
    errors = watch(monkeypatch)
    for more in (PAGE_TOKENS + 1, PAGE_TOKENS + 2):
        request = ask([*whole, *range(more)], max_tokens=3)
        end = run(engine, request)[request][2]
    assert isinstance(end, Finished)
    assert end.usage.cached_tokens == 2 * PAGE_TOKENS
    assert np.max(errors) <= CACHED


def test_the_last_found_page_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of its last token was made with another next token."""
    prompt = list(range(PAGE_TOKENS * 2))
    for further in (True, False):
        engine = engine_of("numpy")
        first, second = (ask([*prompt, *more], further) for more in ([1, 2, 3], [4, 5, 6]))
        run(engine, first)
        errors = watch(monkeypatch) if further else []
        end = run(engine, second)[second][2]
        monkeypatch.undo()
        assert isinstance(end, Finished)
        assert end.usage.cached_tokens == PAGE_TOKENS * (1 if further else 2)
        assert np.max([0, *errors]) <= CACHED


def test_those_who_guess_share_no_pages_with_those_who_do_not() -> None:
    """Nobody wrote the layer's plane for these."""
    engine = engine_of("numpy")
    for speculate, found in ((False, 0), (True, 0), (False, 99), (None, 64)):
        request = ask(range(100), speculate)
        end = run(engine, request)[request][2]
        assert isinstance(end, Finished)
        assert end.usage.cached_tokens == found


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_answer_survives_the_layer(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the layer fails or is interrupted, the answer goes on without it, and nobody finds what it left half done."""
    plain = ask(range(70), False, max_tokens=40)
    expected = run(engine_of("numpy"), plain)[plain][0]
    further, calls = ModelRunner.further, iter(range(1000))

    def failing(self: ModelRunner, parts: Any) -> Any:
        if next(calls) == 4:
            raise error
        return further(self, parts)

    def patient(self: Engine) -> list[Any]:
        try:
            return step(self)
        except KeyboardInterrupt:
            return []

    step = Engine.step
    monkeypatch.setattr(Engine, "step", patient)
    monkeypatch.setattr(ModelRunner, "further", failing)
    engine = engine_of("numpy")
    request = ask(range(70), max_tokens=40)
    tokens, _, end = run(engine, request)[request]
    assert isinstance(end, Finished)
    assert tokens == expected
    assert 0 < end.usage.drafted_tokens < 5
    assert engine.stats().pages_kept == 0
    require_empty(engine)


@pytest.mark.parametrize(("layer_s", "pays"), [(0.01, True), (2.0, False)])
def test_a_layer_that_does_not_pay_is_left_out(layer_s: float, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a request leaves the choice, and where it does not."""
    now = [0.0]

    def slow(name: str, seconds: float) -> None:
        run_pass = getattr(ModelRunner, name)

        def taking(self: ModelRunner, parts: Any) -> Any:
            now[0] += seconds
            return run_pass(self, parts)

        monkeypatch.setattr(ModelRunner, name, taking)

    slow("scores", 1.0)
    slow("further", layer_s)
    engine = Engine(model("numpy"), cache_tokens=2048, clock=lambda: now[0], draw_seed=lambda: 7)
    drafted = []
    answers = []
    for speculate in (None, True):
        before = engine.stats().drafted_tokens
        request = ask(range(40), speculate, max_tokens=80)
        answers.append(run(engine, request)[request][0])
        drafted.append(engine.stats().drafted_tokens - before)
    assert answers[0] == answers[1]
    assert drafted[1] > 30
    assert drafted[0] > 20 if pays else drafted[0] < 5
    require_empty(engine)
