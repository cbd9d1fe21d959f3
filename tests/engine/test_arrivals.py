"""A thousand requests that arrive at random on a simulated clock: none waits longer than the bound, no page is lost, every text is right.

The bound  The oldest request that has not ended advances in every step: by an answer token, or by at least
           `mixed_tokens - max_rows + 1` tokens of its prompt; it never loses its pages, and nobody overtakes. So a request ends at most
           as many steps after it arrived as it and all who were there before it would take one after the other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.engine.engine import Engine
from khola.engine.request import Event, Failed, Finished, Piece, Request, Sampling
from khola.engine.runner import Part
from tests.engine.fakes import END, FakeRunner, fake_engine, require_empty

STEP_S, ROW_S = 0.010, 0.0005
"""What a step and each of its rows take on the simulated machine."""


@dataclass
class Clock:
    """Seconds that pass only when something is computed or awaited."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(FakeRunner):
    """Takes simulated time for what it computes."""

    def __init__(self, num_pages: int, clock: Clock) -> None:
        super().__init__(num_pages)
        self.clock = clock

    def logits(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        self.clock.now += STEP_S + ROW_S * sum(len(part.ids) for part in parts)
        return super().logits(parts)


@dataclass
class Guest:
    """A request on its way, and the most steps that it may take."""

    request: Request
    arrived_step: int
    bound: int
    ids: list[int] = field(default_factory=list)
    cancel_at: float | None = None


class Hall:
    """An engine, those who arrive, and what they were promised."""

    def __init__(self, seed: int, pages: int, rate: float, states: bool = False, **options: int) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.states = states
        self.engine = fake_engine(pages, runner=Timed(pages, self.clock), clock=self.clock, states=states, max_waiting=2000, **options)
        self.rate = rate
        self.guests: dict[Request, Guest] = {}
        self.steps = 0
        self.closest = 0.0
        self.ended: dict[str, int] = {}

    def steps_alone(self, request: Request) -> int:
        limits = self.engine.limits
        chunk = limits.mixed_tokens - limits.max_rows + 1
        # An answer that lost its pages is computed again like a prompt, in chunks too.
        longest = len(request.prompt) + (request.sampling.max_tokens or 0)
        # Where states are kept, a prompt is cut once more, behind its last full page.
        return -(-longest // chunk) + (request.sampling.max_tokens or 0) + 1 + self.states

    def arrive(self) -> None:
        system = [self.rng.randrange(2)] * self.rng.choice([0, 0, 32, 64, 100])
        prompt = system + [self.rng.randrange(256) for _ in range(self.rng.choice([1, 5, 20, 60, 200]))]
        sampling = Sampling(temperature=0, max_tokens=self.rng.choice([1, 4, 16, 60]), ignore_end=self.rng.random() < 0.5)
        request = Request(prompt=tuple(prompt), sampling=sampling, stop_ids=frozenset({END}))
        self.engine.submit(request)
        bound = self.steps_alone(request) + sum(self.steps_alone(guest.request) for guest in self.guests.values())
        leaves = self.clock.now + self.rng.expovariate(2) if self.rng.random() < 0.1 else None
        self.guests[request] = Guest(request, self.steps, bound, cancel_at=leaves)

    def step(self) -> None:
        for guest in list(self.guests.values()):
            if guest.cancel_at is not None and guest.cancel_at <= self.clock.now:
                self.engine.cancel(guest.request)
        self.steps += 1
        for event in self.engine.step():
            self.take_in(event)
        late = [guest for guest in self.guests.values() if self.steps - guest.arrived_step > guest.bound]
        assert not late, f"{len(late)} requests waited longer than they were promised"

    def take_in(self, event: Event) -> None:
        guest = self.guests[event.request]
        if isinstance(event, Piece):
            guest.ids += [token.id for token in event.tokens]
            return
        assert not isinstance(event, Failed), event.error
        del self.guests[event.request]
        self.closest = max(self.closest, (self.steps - guest.arrived_step) / guest.bound)
        self.ended[event.reason] = self.ended.get(event.reason, 0) + 1
        if self.rng.random() < 0.05:
            self.require_text(event, guest)

    def require_text(self, event: Finished, guest: Guest) -> None:
        alone = fake_engine(16, step_tokens=4096, max_rows=1)
        alone.submit(twin := Request(prompt=guest.request.prompt, sampling=guest.request.sampling, stop_ids=guest.request.stop_ids))
        ids: list[int] = []
        while alone.stats().running or alone.stats().waiting:
            ids += [token.id for made in alone.step() if isinstance(made, Piece) and made.request is twin for token in made.tokens]
        assert guest.ids == (ids if event.reason != "cancelled" else ids[: len(guest.ids)])

    def run(self, arrivals: int) -> Engine:
        next_s = 0.0
        while arrivals or self.guests:
            while arrivals and next_s <= self.clock.now:
                self.arrive()
                arrivals -= 1
                next_s += self.rng.expovariate(self.rate)
            if not self.guests:
                self.clock.now = next_s
            else:
                self.step()
        return self.engine


LOADS = {
    "quiet": (64, 2.0, {}),
    "crowded": (64, 12.0, {}),
    "few pages": (12, 30.0, {}),
    "narrow steps": (24, 20.0, {"step_tokens": 16, "max_rows": 16}),
    "one at a time": (16, 6.0, {"max_rows": 1, "step_tokens": 64}),
    "states": (24, 20.0, {"states": True}),
}


def visit(load: str, seed: int, arrivals: int) -> Hall:
    pages, rate, options = LOADS[load]
    hall = Hall(seed, pages, rate, **options)
    engine = hall.run(arrivals)
    require_empty(engine)
    stats = engine.stats()
    assert sum(hall.ended.values()) == arrivals
    assert stats.preemptions > 0 or load != "few pages", "the cache is meant to be too small for all"
    states = engine._scheduler.states
    assert states is None or states.free + states.kept == states.total, "a slot was lost"
    return hall


@pytest.mark.parametrize("load", LOADS)
def test_arrivals_are_served_within_the_bound(load: str) -> None:
    visit(load, seed=1, arrivals=150)


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS)
def test_a_thousand_arrivals(load: str) -> None:
    hall = visit(load, seed=2, arrivals=1000)
    assert {"length", "stop", "cancelled"} <= set(hall.ended)


def test_a_starved_request_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound has power: where the youngest goes first, somebody waits too long."""
    from khola.engine.scheduler import Scheduler

    def youngest_first(self: Scheduler, sequence: object) -> None:
        self.waiting.appendleft(sequence)  # type: ignore[arg-type]

    monkeypatch.setattr(Scheduler, "add", youngest_first)
    with pytest.raises(AssertionError, match="waited longer"):
        visit("one at a time", seed=1, arrivals=300)
