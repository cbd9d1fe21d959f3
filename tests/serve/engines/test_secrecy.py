"""What one key's cache tells another: whether somebody has sent a prompt, guessed from the time that an answer to it takes. P26.

Source   the attack: "I Know What You Asked", PromptPeek, NDSS 2025, sections 3 and 4, with whole prompts as guesses.
"""

from __future__ import annotations

import asyncio
import random
import string
import time
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

import pytest

from khola.serve.access.guard import Guard
from khola.serve.access.keys import Keys
from khola.serve.app import app
from khola.serve.service import Service
from tests.areas import area
from tests.needs import needs_library
from tests.serve.engines.rig import CONTEXT, engines_of, settings_of
from tests.serve.http.ask import ask

pytestmark = needs_library

PROMPT, LAYERS = CONTEXT - 2, 24
"""So many tokens through so many layers take longer than other programs on this machine keep an answer waiting."""
MOST, LEAST = 0.55, 0.9
"""Areas under the curve: at most, between two keys; at least, of one key against itself, which shows that the attack works."""


@dataclass
class Seen:
    """What an attacker saw: times of prompts that had been sent, and of those that had not."""

    times: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    cached: dict[bool, list[int]] = field(default_factory=lambda: {True: [], False: []})
    """Tokens that the answer says were in the cache."""


def test_the_area_is_that_of_pairs() -> None:
    rng = random.Random(1)
    first, second = [rng.random() for _ in range(40)], [rng.random() + 0.2 for _ in range(30)]
    assert area(first, second) == pytest.approx(sum(a < b for a in first for b in second) / 1200)
    assert area([1.0, 2.0], [3.0]) == 1.0


async def attacked(service: Service, victim: str, stranger: str, trials: int) -> tuple[Seen, Seen]:
    """Guess so many times each whether the victim has sent a prompt, as a coin says; what the stranger saw, and the victim's own key."""
    served, rng = app(service), random.Random(26)
    across, within = Seen(), Seen()

    def secret() -> str:
        return "".join(rng.choices(string.ascii_uppercase, k=PROMPT))

    async def first_token(key: str, prompt: str) -> tuple[float, int]:
        """Seconds to the first token of an answer, which is its only one, and the tokens that it says were cached."""
        body = {"model": "one", "prompt": prompt, "max_tokens": 1, "temperature": 0}
        began = time.perf_counter()
        answer = await ask(served, "POST", "/v1/completions", body, {"authorization": f"Bearer {key}"})
        took = time.perf_counter() - began
        assert answer.status == 200, answer.body
        return took, answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    for number in range(2 * trials):
        key, seen = [(stranger, across), (victim, within)][number % 2]
        guess, sent = secret(), rng.random() < 0.5
        await first_token(victim, guess if sent else secret())
        took, cached = await first_token(key, guess)
        seen.times[sent].append(took)
        seen.cached[sent].append(cached)
    return across, within


def attack(folder: Path, trials: int) -> tuple[float, float]:
    """The areas between two keys and of one against itself."""

    async def served() -> tuple[Seen, Seen]:
        keys = Keys(folder / "keys.json")
        victim, stranger = keys.new(["infer"]), keys.new(["infer"])
        async with engines_of(folder, layers=LAYERS, options={"cache_tokens": 4096}) as engines:
            service = Service(backend=engines, settings=settings_of(folder), guard=Guard(auth="keys", keys=keys))
            await attacked(service, victim, stranger, 5)
            return await attacked(service, victim, stranger, trials)

    across, within = asyncio.run(served())
    assert not any(across.cached[True] + across.cached[False] + within.cached[False]), "who sent nothing finds nothing"
    assert min(within.cached[True]) > PROMPT // 2
    return tuple(area(seen.times[True], seen.times[False]) for seen in (across, within))


@pytest.mark.slow
def test_p26_a_key_learns_nothing_of_another(tmp_path: Path) -> None:
    """So few trials scatter: what lies within four standard deviations of a coin is a coin."""
    trials = 100
    across, within = attack(tmp_path, trials)
    assert abs(across - 0.5) <= 4 * sqrt((trials + 1) / (3 * trials**2)), (across, within)
    assert within >= LEAST, (across, within)


@pytest.mark.soak
def test_p26_a_key_learns_nothing_of_another_in_many_trials(tmp_path: Path) -> None:
    across, within = attack(tmp_path, 2000)
    print(f"area between keys {across:.3f}, of one key {within:.3f}")
    assert 1 - MOST <= across <= MOST, (across, within)
    assert within >= LEAST, (across, within)
