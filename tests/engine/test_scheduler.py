"""Pages and policy under random schedules: nothing leaks, nothing is shared that may be written, everybody gets done."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from khola.engine import prefix
from khola.engine.pages import Pages, Tail
from khola.engine.scheduler import Limits, Scheduler, Sequence
from khola.engine.states import SNAPSHOTS, States
from khola.errors import Busy, NoMemory, OurFault, UnknownOption
from khola.ops.vocabulary import PAGE_TOKENS

TENANTS = ("a", "b")


def following(tokens: list[int]) -> int:
    """The token that a model without whims says next."""
    return hash((len(tokens), tokens[-1])) % 3


class World:
    """A scheduler, what its clients want, and a model that only remembers what was written where."""

    def __init__(self, pages: int, limits: Limits, states: bool = False) -> None:
        self.pages = Pages(pages)
        self.limits = limits
        self.states = States(limits.max_rows) if states else None
        self.scheduler = Scheduler(self.pages, limits, self.states)
        self.seen: dict[int, tuple[str, tuple[int, ...]]] = {}
        """Slot -> tenant and all tokens that its state has seen."""
        self.wanted: dict[Sequence, int] = {}
        self.tenant: dict[Sequence, str] = {}
        self.idle_steps: Counter[Sequence] = Counter()
        self.written: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = {}
        """Page and place -> tenant and all tokens up to there."""
        self.context = pages * PAGE_TOKENS
        self.rng = random.Random(pages)
        self.guessed_right = 0

    def submit(self, tokens: list[int], answer: int, tenant: str, every_row: bool = False) -> Sequence | None:
        sequence = Sequence(list(tokens), prefix.root(tenant), tenant, every_row)
        try:
            self.scheduler.require_room(tenant=tenant)
        except Busy:
            assert len(self.scheduler.waiting) >= self.limits.max_waiting
            return None
        self.scheduler.add(sequence)
        self.wanted[sequence] = min(len(tokens) + answer, self.context)
        self.tenant[sequence] = tenant
        return sequence

    def step(self) -> None:
        decoding = [s for s in self.scheduler.running if s.pending == 1]
        for sequence in decoding:
            self.guess(sequence)
        plan = self.scheduler.plan()
        self.check_plan(plan, [s for s in decoding if s in self.scheduler.running and s.pending == 1])
        for sequence, rows in plan.items():
            self.write(sequence, rows)
        for sequence, rows in plan.items():
            self.take_in(sequence, rows)

    def take_in(self, sequence: Sequence, rows: int) -> None:
        """What an engine does with a computed step: add tokens for as long as the guesses were right."""
        guesses = sequence.drafts[: max(0, rows - sequence.pending)]
        certain = rows - len(guesses)
        if certain < sequence.pending:
            self.scheduler.computed(sequence, rows)
            return
        room = self.wanted[sequence] - len(sequence.tokens)
        sequence.every_row = False
        made = 0
        for guess in [*guesses, None]:
            if made == room:
                break
            sequence.tokens.append(following(sequence.tokens))
            made += 1
            if sequence.tokens[-1] != guess:
                break
        self.guessed_right += max(0, made - 1)
        self.scheduler.computed(sequence, certain + max(0, made - 1))
        if made == room:
            self.drop(sequence)

    def guess(self, sequence: Sequence) -> None:
        """Some tokens that come, some that do not."""
        tokens = list(sequence.tokens)
        most = self.rng.choice([0, 1, 5, 15, 40])
        for _ in range(min(most, self.wanted[sequence] - len(tokens) - 1)):
            tokens.append(following(tokens) if self.rng.random() < 0.8 else self.rng.randrange(3))
        sequence.drafts = [] if sequence.every_row or self.states is not None else tokens[len(sequence.tokens) :]

    def write(self, sequence: Sequence, rows: int) -> None:
        """What a forward pass does: write the new rows, then read everything before them."""
        tokens = (*sequence.tokens, *sequence.drafts)
        for position in range(sequence.known, sequence.known + rows):
            page = sequence.pages[position // PAGE_TOKENS]
            assert self.pages.holders(page) == 1, "a shared page is written"
            self.written[page, position % PAGE_TOKENS] = self.tenant[sequence], tokens[: position + 1]
        for position in {*range(0, sequence.known + rows, 7), *range(max(0, sequence.known - 20), sequence.known + rows)}:
            held = self.written[sequence.pages[position // PAGE_TOKENS], position % PAGE_TOKENS]
            assert held == (self.tenant[sequence], tokens[: position + 1]), "a page holds what another tenant or prompt wrote"
        if self.states is not None:
            before = self.seen[sequence.held.now] if sequence.known else None
            assert before in (None, (self.tenant[sequence], tokens[: sequence.known])), "a state has seen another tenant or prompt"
            self.seen[sequence.held.next] = self.tenant[sequence], tokens[: sequence.known + rows]

    def drop(self, sequence: Sequence, spoiled: bool = False) -> None:
        (self.scheduler.spoil if spoiled else self.scheduler.drop)(sequence)
        del self.wanted[sequence], self.tenant[sequence]
        self.idle_steps.pop(sequence, None)

    def check_plan(self, plan: dict[Sequence, int], decoding: list[Sequence]) -> None:
        scheduler, limits = self.scheduler, self.limits
        assert bool(plan) == bool(self.wanted), "somebody waits, and nothing is computed"
        assert len(scheduler.running) <= limits.max_rows
        assert sum(plan.values()) <= limits.step_tokens
        assert not decoding or sum(plan.values()) <= max(limits.mixed_tokens, 8 * len(decoding))
        assert sum(rows for s, rows in plan.items() if s.every_row) <= limits.logit_rows + len(decoding)
        assert set(plan) <= set(scheduler.running)
        assert all(0 < rows <= s.pending + (len(s.drafts) if s in decoding else 0) for s, rows in plan.items())
        guesses = sum(max(0, rows - s.pending) for s, rows in plan.items())
        assert guesses <= limits.logit_rows
        assert not guesses or sum(plan[s] for s in decoding) <= limits.guess_rows
        assert all(s in plan for s in decoding), "a decoding sequence was left out"
        if scheduler.running:
            assert scheduler.running[0] in plan, "the oldest was left out"

    def check_books(self) -> None:
        scheduler, pages = self.scheduler, self.pages
        assert pages.free + pages.used == pages.total
        held = Counter(page for s in scheduler.running for page in s.pages)
        assert all(pages.holders(page) == held[page] for page in range(pages.total))
        assert pages.used == len(held)
        assert not any(s.pages or s.known for s in scheduler.waiting)
        for sequence in scheduler.running:
            assert len(sequence.pages) * PAGE_TOKENS >= len(sequence.tokens) - 1
            assert sequence.missing_pages >= 0, "a page for guesses was kept"
            assert not sequence.drafts
            assert all(held[page] == 1 for page in sequence.pages[-(-sequence.known // PAGE_TOKENS) :]), "an unwritten page is shared"
            unwritten = sequence.pages[sequence.known // PAGE_TOKENS :]
            assert not any(pages._digests[page] for page in unwritten), "a page was sealed before it was full"
            if sequence.known % PAGE_TOKENS:
                assert held[sequence.pages[sequence.known // PAGE_TOKENS]] == 1, "a page that is being written is shared"
        self.check_states()
        order = list(self.wanted)
        for tenant in TENANTS:
            ages = [order.index(s) for s in [*scheduler.running, *scheduler.waiting] if self.tenant[s] == tenant]
            assert ages == sorted(ages), "somebody overtook"

    def check_states(self) -> None:
        if self.states is None:
            return
        held = {s.held.now for s in self.scheduler.running if s.known}
        assert all((s.held.now >= 0) == (s.known > 0) for s in [*self.scheduler.running, *self.scheduler.waiting])
        planned = {s.held.next for s in self.scheduler.running if s.held.next >= 0}
        assert self.states.used == len(held | planned)
        kept = set(self.states._snapshots.values())
        assert self.states.kept == len(kept) <= SNAPSHOTS
        assert self.states.free + len(held | planned | kept) == self.states.total, "a slot was lost"

    def drain(self) -> int:
        """Steps until everybody is done; more than the bound fails."""
        bound = 4 * sum(self.wanted.values()) + 10
        for step in range(bound):
            if not self.wanted:
                assert self.pages.free == self.pages.total
                assert self.states is None or self.states.used == 0
                return step
            self.step()
            self.check_books()
        raise AssertionError(f"{len(self.wanted)} sequences are not done after {bound} steps")


def limits_from(rng: random.Random) -> Limits:
    rows = rng.choice([1, 2, 3, 5, 16])
    mixed = rng.randint(rows, rows + 60)
    return Limits(
        max_rows=rows,
        mixed_tokens=mixed,
        step_tokens=mixed + rng.randint(0, 80),
        logit_rows=rng.randint(1, 64),
        max_waiting=8,
        guess_rows=rng.choice([1, 16, 200]),
    )


def prompt_from(rng: random.Random, most: int) -> list[int]:
    """Few different tokens and few beginnings, so that prompts share pages."""
    start = [rng.randrange(2)] * rng.choice([0, 16, 32, 48, 64, 96])
    return (start + [rng.randrange(3) for _ in range(rng.randint(1, 40))])[: max(1, most - 1)]


def random_schedule(seed: int, states: bool = False) -> int:
    """Submit, step and drop at random, then drain; gives how many guesses were right."""
    rng = random.Random(seed)
    world = World(rng.choice([1, 2, 3, 4, 6, 10, 24]), limits_from(rng), states)
    for _ in range(rng.randint(3, 40)):
        what = rng.random()
        if what < 0.4:
            world.submit(prompt_from(rng, world.context), rng.randint(0, 70), rng.choice(TENANTS), rng.random() < 0.15)
        elif what < 0.85 or not world.wanted:
            world.step()
        else:
            world.drop(rng.choice(list(world.wanted)), spoiled=rng.random() < 0.3)
        world.check_books()
    world.drain()
    return world.guessed_right


@pytest.mark.parametrize("seed", range(150))
def test_random_schedules(seed: int) -> None:
    random_schedule(seed)


def test_schedules_take_guesses_in() -> None:
    assert sum(random_schedule(seed) for seed in range(20)) > 200


@pytest.mark.slow
@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.soak) for block in range(1, 10))])
def test_ten_thousand_random_schedules(block: int) -> None:
    for seed in range(1000 + block * 1000, 2000 + block * 1000):
        try:
            random_schedule(seed)
        except Exception as error:
            raise AssertionError(f"schedule {seed}") from error


class SchedulerMachine(RuleBasedStateMachine):
    """The same world, with schedules that hypothesis can make smaller when one fails."""

    @initialize(pages=st.integers(1, 8), seed=st.integers(0, 1000))
    def start(self, pages: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = World(pages, limits_from(self.rng))

    @rule(same=st.integers(0, 5), own=st.integers(1, 40), answer=st.integers(0, 70), tenant=st.sampled_from(TENANTS), every=st.booleans())
    def submit(self, same: int, own: int, answer: int, tenant: str, every: bool) -> None:
        prompt = [1] * (16 * same) + [self.rng.randrange(3) for _ in range(own)]
        self.world.submit(prompt[: self.world.context - 1], answer, tenant, every)

    @rule(count=st.integers(1, 20))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.world.step()

    @rule(pick=st.integers(0, 100), spoiled=st.booleans())
    def drop(self, pick: int, spoiled: bool) -> None:
        if self.world.wanted:
            self.world.drop(list(self.world.wanted)[pick % len(self.world.wanted)], spoiled)

    @invariant()
    def books(self) -> None:
        if hasattr(self, "world"):
            self.world.check_books()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_preempting_takes_from_the_youngest_and_keeps_the_order() -> None:
    world = World(5, Limits(max_rows=4))
    first, second = world.submit([1] * 62, 60, "a"), world.submit([2] * 62, 60, "b")
    for _ in range(4):
        world.step()
    assert world.scheduler.running == [first]
    assert list(world.scheduler.waiting) == [second]
    assert second is not None
    assert second.preempted == 1
    world.drain()


def test_prompts_are_cut_smaller_while_others_decode() -> None:
    world = World(64, Limits(step_tokens=256, mixed_tokens=100))
    world.submit([1], 50, "a")
    world.step()
    late = world.submit([2] * 500, 1, "a")
    plan = world.scheduler.plan()
    assert sorted(plan.values()) == [1, 99]
    assert late in plan


@pytest.mark.parametrize(("decoding", "tokens"), [(1, 128), (16, 128), (40, 320), (64, 512)])
def test_prompts_take_more_of_a_step_beside_many_answers(decoding: int, tokens: int) -> None:
    world = World(256, Limits(max_rows=65, step_tokens=512, mixed_tokens=128))
    for number in range(decoding):
        world.submit([number], 50, "a")
    world.step()
    late = world.submit([2] * 600, 1, "a")
    plan = world.scheduler.plan()
    assert late is not None
    assert (len(plan), sum(plan.values()), plan[late]) == (decoding + 1, tokens, tokens - decoding)


def test_nobody_overtakes_a_long_prompt_that_waits_for_pages() -> None:
    world = World(8, Limits())
    world.submit([1] * 100, 30, "a")
    world.step()
    long = world.submit([2] * 200, 1, "a")
    short = world.submit([0], 1, "a")
    world.step()
    assert list(world.scheduler.waiting) == [long, short]
    world.drain()


def test_what_can_never_run_and_what_finds_the_queue_full_is_refused() -> None:
    world = World(2, Limits(max_rows=1, max_waiting=1))
    with pytest.raises(NoMemory):
        world.scheduler.add(Sequence([1] * 65))
    world.scheduler.require_room()
    with pytest.raises(Busy):
        world.scheduler.require_room(announced=1)
    world.scheduler.add(Sequence([1]))
    with pytest.raises(Busy):
        world.scheduler.require_room()
    with pytest.raises(UnknownOption):
        Limits(max_rows=8, step_tokens=8, mixed_tokens=4)


def test_pages_come_back_least_recently_let_go_first_and_worthless_ones_before() -> None:
    pages = Pages(4)
    taken = [pages.take() for _ in range(4)]
    assert taken == [0, 1, 2, 3]
    assert pages.take() is None
    for page, digest in ((0, b"zero"), (2, b"two")):
        assert pages.seal(page, digest)
    for page in (2, 1, 0, 3):
        pages.release(page)
    assert (pages.free, pages.used, pages.kept) == (4, 0, 2)
    assert [pages.take() for _ in range(2)] == [3, 1]
    assert pages.find(b"two") == 2
    assert pages.take() == 2
    assert pages.find(b"two") is None
    assert pages.find(b"zero") == 0
    pages.share(0)
    assert (pages.holders(0), pages.free) == (1, 0)


def test_pages_refuse_what_would_break_their_books() -> None:
    pages = Pages(2)
    page = pages.take()
    assert page == 0
    with pytest.raises(OurFault):
        pages.share(0)
    with pytest.raises(OurFault):
        pages.release(1)
    with pytest.raises(OurFault):
        pages.seal(1, b"x")
    assert pages.seal(0, b"x")
    assert not pages.seal(0, b"y")
    other = pages.take()
    assert other == 1
    assert not pages.seal(1, b"x"), "one content is found at one place"
    pages.spoil(0)
    assert pages.find(b"x") is None
    with pytest.raises(OurFault):
        pages.share(0)


def test_half_full_pages_are_adopted_once_and_forgotten_when_taken() -> None:
    pages = Pages(3)
    for _ in range(3):
        pages.take()
    pages.release(0, Tail(b"p", (1, 2)))
    pages.release(1, Tail(b"p", (1, 3)))
    assert pages.find_tail(b"p") == (1, Tail(b"p", (1, 3)))
    with pytest.raises(OurFault):
        pages.adopt(0)
    pages.adopt(1)
    assert (pages.holders(1), pages.find_tail(b"p"), pages.free) == (1, None, 1)
    with pytest.raises(OurFault):
        pages.adopt(1)
    pages.release(1, Tail(b"p", (1, 3)))
    pages.release(2)
    assert [pages.take() for _ in range(3)] == [2, 0, 1]
    assert pages.find_tail(b"p") is None
    assert pages.kept == 0


def test_a_next_turn_goes_on_in_the_middle_of_a_page() -> None:
    world = World(8, Limits())
    first = world.submit([1] * 40, 10, "a")
    world.drain()
    assert first is not None
    turn = world.submit([*first.tokens[:45], 2, 2, 2], 1, "a")
    stranger = world.submit([*first.tokens[:45], 2, 2, 2], 1, "b")
    world.drain()
    assert turn is not None
    assert stranger is not None
    assert (turn.found, stranger.found) == (45, 0)


@pytest.mark.parametrize("pages", [1000, 40])
def test_a_tenant_that_floods_waits_behind_itself(pages: int) -> None:
    world = World(pages, Limits(max_rows=4, step_tokens=64, mixed_tokens=32, max_waiting=50))
    for number in range(50):
        world.submit([number % 3] * 200, 20, "a")
    for _ in range(12):
        world.step()
    other = world.submit([1] * 60, 5, "b")
    assert other is not None, "the queue is full of others, and this tenant has nobody there"
    while other not in world.scheduler.running:
        world.step()
    ahead = 50 - sum(tenant == "a" for tenant in world.tenant.values())
    steps = 0
    while other in world.wanted:
        world.step()
        steps += 1
    # One prompt of the other tenant may stand before it: 200 tokens, in steps of at least 29; then its own 60, and its answer.
    assert ahead <= 4 and steps <= 200 // 29 + 1 + 60 // 29 + 1 + 5
    assert sum(tenant == "a" for tenant in world.tenant.values()) >= 42
    world.drain()


def test_a_full_queue_refuses_who_waits_there_already() -> None:
    world = World(100, Limits(max_rows=1, max_waiting=3))
    for number in range(3):
        assert world.submit([number], 5, "a") is not None
    assert world.submit([7], 5, "a") is None
    assert world.submit([8], 5, "b") is not None and world.submit([9], 5, "b") is None
    with pytest.raises(Busy):
        world.scheduler.require_room()
    world.drain()


def test_digests_depend_on_every_token_before_and_on_the_tenant() -> None:
    def digests(tokens: list[int], salt: str = "") -> list[bytes]:
        found: list[bytes] = []
        prefix.extend(found, prefix.root(salt), tokens, len(tokens) // PAGE_TOKENS)
        return found

    tokens = list(range(96))
    changed = [99, *tokens[1:]]
    assert len({*digests(tokens), *digests(changed), *digests(tokens, "b"), *digests([-1, *tokens[1:]])}) == 12
    assert digests(tokens)[:2] == digests(tokens[:64])
    grown: list[bytes] = []
    for pages in (1, 1, 3):
        prefix.extend(grown, prefix.root(), tokens, pages)
    assert grown == digests(tokens)
