"""Models that keep a state: no slot is lost, nobody goes on from another's state, and prefixes are found where a snapshot was taken."""

from __future__ import annotations

import random

import numpy as np
import pytest

from khola.api.bench import log_softmax, window_logprobs
from khola.engine.request import Finished, Request, Sampling
from khola.engine.scheduler import Limits, Sequence
from khola.engine.states import SNAPSHOTS, Held, States, rows_within
from khola.errors import AskedWrong, NoMemory, OurFault
from khola.nn import decoder
from khola.ops.numpy_ops import NumpyOps
from khola.ops.vocabulary import PAGE_TOKENS, whole_sequences
from tests.engine.fakes import FakeRunner, fake_engine, require_empty, run
from tests.engine.test_scheduler import World, random_schedule
from tests.engine.tiny import quantised_delta


@pytest.mark.parametrize("seed", range(60))
def test_random_schedules(seed: int) -> None:
    random_schedule(seed, states=True)


def served(world: World, tokens: list[int], answer: int, tenant: str = "a") -> Sequence:
    found = world.submit(tokens, answer, tenant)
    world.drain()
    assert found is not None
    return found


def test_a_second_turn_goes_on_from_the_snapshots_of_the_first() -> None:
    """Behind the last full page of the answer; behind that of the prompt, where the answer is told otherwise; never another tenant's."""
    world = World(64, Limits(), states=True)
    first = served(world, [1] * 75, 60)
    assert served(world, [*first.tokens[:130], 2, 2], 1).found == 128
    assert served(world, [*first.tokens[:75], 0, 0, 0, 0], 1).found == 64
    assert served(world, [*first.tokens[:130], 2, 2], 1, "b").found == 0


def test_without_a_snapshot_pages_are_computed_again() -> None:
    """Two prompts share two pages, but no turn ended behind them."""
    world = World(64, Limits(), states=True)
    served(world, [1] * 64 + [0] * 40, 1)
    assert served(world, [1] * 64 + [2] * 40, 1).found == 0
    assert served(world, [1] * 64 + [0] * 40, 1).found == 96


def test_the_least_recently_used_snapshot_goes() -> None:
    states, held = States(max_rows=1), Held()
    for turn in range(SNAPSHOTS + 1):
        states.begin(held)
        states.advance(held)
        states.keep(held, bytes([turn]), in_answer=False)
        if turn == 3:
            states.adopt(held, b"\0")
            assert held.now == states._snapshots[b"\0"]
    assert [states.knows(bytes([turn])) for turn in range(3)] == [True, False, True]
    states.leave(held)
    assert (states.used, states.kept, states.free) == (0, SNAPSHOTS, 2)


def test_texts_are_those_of_a_model_without_states() -> None:
    """Requests that share beginnings and lose pages; a runner that refuses to read a state of other tokens."""
    rng = random.Random(3)
    asked = [
        (tuple([7] * rng.choice([0, 32, 64]) + [rng.randrange(250) for _ in range(rng.randint(1, 60))]), rng.choice([1, 20, 50]))
        for _ in range(24)
    ]
    told = []
    for states in (False, True):
        engine = fake_engine(9, states=states, step_tokens=48, max_rows=5)
        requests = [Request(prompt=prompt, sampling=Sampling(temperature=0, max_tokens=most)) for prompt, most in asked]
        ends = run(engine, *requests)
        told.append([ends[request][0] for request in requests])
        require_empty(engine)
        assert engine.stats().preemptions
    assert told[0] == told[1]


def test_a_step_that_fails_is_made_again_from_the_same_state() -> None:
    runner = FakeRunner(16)
    engine = fake_engine(16, runner=runner, states=True)
    requests = [Request(prompt=(start, 2, 3), sampling=Sampling(temperature=0, max_tokens=6)) for start in (1, 9)]
    runner.faults = [None, None, OurFault("a fault"), None, None]
    assert all(isinstance(end, Finished) for *_, end in run(engine, *requests).values())
    assert not runner.faults
    require_empty(engine)


def test_a_snapshot_of_a_spoilt_request_is_never_found() -> None:
    world = World(16, Limits(), states=True)
    spoilt = world.submit([1] * 70, 40, "a")
    assert spoilt is not None
    for _ in range(3):
        world.step()
    assert world.states is not None and world.states.kept == 1
    world.drop(spoilt, spoiled=True)
    assert world.states.kept == 0
    assert served(world, [1] * 70, 1).found == 0


def test_guesses_are_refused_where_they_are_asked_for() -> None:
    engine = fake_engine(8, states=True)
    with pytest.raises(AskedWrong, match="does not speculate"):
        engine.submit(Request(prompt=(1, 2), sampling=Sampling(speculate=True)))
    request = Request(prompt=(1, 2) * 40, sampling=Sampling(temperature=0, max_tokens=40, ignore_end=True))
    (_, _, end) = run(engine, request)[request]
    assert isinstance(end, Finished)
    assert end.usage.drafted_tokens == 0


def test_a_text_is_scored_in_chunks_from_state_to_state() -> None:
    loaded = quantised_delta(NumpyOps())
    ids = [int(token) for token in np.random.default_rng(2).integers(0, 250, 400)]
    (rows_RV,) = [np.concatenate(list(window_logprobs(loaded, [ids])))]
    weights = (loaded.architecture, loaded.weights, loaded.config, whole_sequences([len(ids)]), loaded.ops)
    wanted_RV = log_softmax(decoder.logits(np.array(ids), *weights))[len(ids) // 2 : -1]
    np.testing.assert_allclose(rows_RV, wanted_RV, atol=1e-4)


def test_memory_of_states_is_counted() -> None:
    pages, states = 4 * 8 * PAGE_TOKENS * 4, 64 * States(max_rows=2).total
    assert fake_engine(4, states=True, max_rows=2, available_bytes=pages + states).stats().cache_bytes == pages + states
    with pytest.raises(NoMemory):
        fake_engine(4, states=True, max_rows=2, available_bytes=pages + states - 1)


def test_states_leave_half_of_the_memory_to_pages() -> None:
    assert rows_within(None, 1000, 16) == rows_within(10**9, 0, 16) == rows_within(10**9, 1000, 16) == 16
    assert rows_within(100_000, 1000, 16) == 16
    assert rows_within(40_000, 1000, 16) == 6
    assert rows_within(5_000, 1000, 16) == 1
