"""Who computes how many tokens in the next step: the whole policy, without clocks, threads or arrays.

1. Sequences that decode come first, one row each, oldest first. One that needs a page takes it from the youngest when none is free.
2. What is left of the step's budget goes to prompts, oldest first, in chunks. The budget is smaller while a few others decode, so that
   their tokens keep coming. Guesses at coming tokens fill up small steps, and never take a page from anybody.
3. The oldest waiting sequence is admitted when all its pages are free and one more for everybody who runs. Nobody overtakes it, but
   those of tenants that run fewer: whoever floods the queue waits behind himself.

A sequence that lost its pages waits in front and computes again what the cache forgot. All who run are older than all who wait, and the
oldest always finds room, so everybody gets done: at most so many steps after it came as it and those who were there before it would take
one after the other, each token of an answer a step and prompts in chunks of `mixed_tokens - max_rows + 1` tokens. (Of several tenants,
each for itself: a tenant has no more before it than its own, and in every round one of each other tenant.)
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter

from khola.engine import prefix
from khola.engine.pages import Pages, Tail
from khola.engine.states import Held, States
from khola.errors import Busy, NoMemory, UnknownOption
from khola.ops.vocabulary import PAGE_TOKENS

PROMPT_TOKENS = 7
"""Tokens of prompts that a step may compute for every answer it goes on with, where many decode."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much may happen at once.

    Raises:
        UnknownOption: the numbers contradict each other.
    """

    max_rows: int = 16
    """Sequences that run at once."""
    step_tokens: int = 256
    """Tokens that one step computes."""
    mixed_tokens: int = 128
    """Tokens that one step computes while somebody decodes, or more where many do: less, so that the step is short."""
    logit_rows: int = 128
    """Rows of a step that may ask for logits besides those that decode (scoring): bounds the memory of [rows, vocabulary]."""
    guess_rows: int = 32
    """Rows of a step that decode and check guesses, together: as many as the native kernels multiply in one reading of the weights."""
    max_waiting: int = 256
    """Sequences that may wait."""

    def beside(self, decoding: int) -> int:
        """Tokens that a step computes while so many decode, theirs included.

        A step of many answers is long whatever comes with it, and for prompts the weights are unpacked once a step, however few these
        are: prompts may make it some three times as long, so that the steps between go on without them.
        """
        return min(self.step_tokens, max(self.mixed_tokens, (1 + PROMPT_TOKENS) * decoding)) if decoding else self.step_tokens

    def __post_init__(self) -> None:
        """Check that every step can make progress."""
        if not 1 <= self.max_rows <= min(self.step_tokens, self.mixed_tokens) or self.logit_rows < 1 or self.max_waiting < 1:
            raise UnknownOption(
                "limits of the engine contradict each other: {rows} sequences, {tokens} tokens a step ({mixed} while decoding)",
                hint="a step must have at least as many tokens as sequences",
                rows=self.max_rows,
                tokens=self.step_tokens,
                mixed=self.mixed_tokens,
            )


@dataclass(eq=False)
class Sequence:
    """The tokens of one request, and the pages that hold their keys and values."""

    tokens: list[int]
    """Prompt and answer so far."""
    root: bytes = b""
    """Where its chain of digests starts; see `khola.engine.prefix`."""
    tenant: str = ""
    """Whose turn it is: tenants share rows and steps fairly."""
    every_row: bool = False
    """Every prompt token must be computed and seen (scores, embeddings), so nothing is taken from the cache."""
    known: int = 0
    """Tokens whose keys and values are in its pages."""
    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    found: int = 0
    """Prompt tokens found in the cache the first time round."""
    preempted: int = 0
    """How often it lost its pages."""
    prompt_answers: bytes | None = None
    """1 for every prompt token that belongs to an earlier answer, 0 for the others; what comes behind them is an answer. None where nothing
    tells answers from prompts."""
    drafts: list[int] = field(default_factory=list)
    """Guesses at what comes after its tokens, for the next step. Their keys and values lie behind `known`: nobody reads or shares them."""
    held: Held = field(default_factory=Held)
    """Slots of its state, where the model keeps one."""
    further: bool = False
    """A layer guesses its tokens, and keeps something in its pages: of every token once the next one is known."""
    private: bool = False
    """Pages that it fills from now on are found by nobody."""
    boundary: int = 0
    """Tokens behind which its state is worth a snapshot: the last full page of what it was admitted with."""

    @property
    def pending(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.tokens) - self.known

    def answers(self, first: int, last: int) -> bytes:
        """1 for every token of an answer, 0 for the others, at the positions from `first` to before `last`, guesses included."""
        if self.prompt_answers is None:
            return bytes(last - first)
        return self.prompt_answers[first:last].ljust(last - first, b"\1")

    def name_pages(self, pages: int) -> None:
        """Have digests of the first so many pages, which are full."""
        if pages > len(self.digests):
            answers = b"" if self.prompt_answers is None else self.answers(0, pages * PAGE_TOKENS)
            prefix.extend(self.digests, self.root, self.tokens, pages, answers)

    def named(self, first: int, last: int) -> tuple[int, ...]:
        """The tokens at these positions, by what their keys and values depend on."""
        return prefix.named(self.tokens[first:last], self.answers(first, last))

    @property
    def missing_pages(self) -> int:
        """Pages that it lacks to hold all its tokens."""
        return -(-len(self.tokens) // PAGE_TOKENS) - len(self.pages)


class Scheduler:
    """Waiting and running sequences, both oldest first, and the pages between them.

    Args:
        pages: of the cache.
        limits: on sequences and tokens.
        states: slots for states of sequences; None where the model keeps none.
    """

    def __init__(self, pages: Pages, limits: Limits, states: States | None = None) -> None:
        self.pages = pages
        self.states = states
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    def require_room(self, announced: int = 0, tenant: str = "") -> None:
        """Refuse another sequence while the queue is full; who was let in once is never refused, though it lose its pages and wait again.

        Args:
            tenant: whose it is; one of whom nobody waits is let in though others fill the queue.
            announced: sequences that were let in and will be added soon.
        Raises:
            Busy: too many are waiting already.
        """
        waiting = len(self.waiting) + announced
        if waiting >= self.limits.max_waiting and (announced or not tenant or any(s.tenant == tenant for s in self.waiting)):
            raise Busy("{waiting} requests are waiting, and no more may", hint="try again in a moment", waiting=waiting)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn.

        Raises:
            NoMemory: it could not run even if it were alone.
        """
        if sequence.missing_pages > self.pages.total:
            raise NoMemory(
                "{tokens} tokens need {needed} pages of cache, and there are {total}",
                tokens=len(sequence.tokens),
                needed=sequence.missing_pages,
                total=self.pages.total,
            )
        self.waiting.append(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Take a sequence out, in whatever phase it is, and free its pages."""
        self._leave(sequence)
        self._free(sequence)

    def spoil(self, sequence: Sequence) -> None:
        """Take a sequence out whose numbers went wrong: what it wrote will not be found by others."""
        for page in sequence.pages:
            self.pages.spoil(page)
        if self.states is not None:
            for digest in sequence.digests:
                self.states.forget(digest)
        self._leave(sequence)
        self._free(sequence, spoiled=True)

    def go_plain(self, sequence: Sequence, spoiled: bool = False) -> None:
        """Let a sequence go on without the layer that guesses. Nobody finds its further pages; if `spoiled`, nor those before."""
        sequence.further, sequence.private = False, True
        for page in sequence.pages if spoiled else ():
            self.pages.spoil(page)

    def plan(self) -> dict[Sequence, int]:
        """How many tokens each sequence computes in the next step; admits and preempts on the way."""
        plan = {s: 1 for s in self._decoding() if self._grow(s)}
        decoding = list(plan)
        budget = self.limits.beside(len(plan)) - len(plan)
        seen = self.limits.logit_rows
        for sequence in self._prefilling(plan):
            self._reuse(sequence)
            rows = min(self._chunk(sequence), budget, seen if sequence.every_row else budget)
            if rows:
                plan[sequence] = rows
                budget -= rows
                seen -= rows if sequence.every_row else 0
            if not budget:
                break
        budget = min(budget, seen, self.limits.guess_rows - len(decoding))
        for sequence in (s for s in decoding if s.drafts and budget > 0):
            guesses = self._room(sequence, min(len(sequence.drafts), budget))
            plan[sequence] += guesses
            budget -= guesses
        if self.states is not None:
            for sequence in plan:
                self.states.begin(sequence.held)
        return plan

    def computed(self, sequence: Sequence, rows: int) -> None:
        """Note that a step has computed the next tokens of a sequence; its full pages can be found from now on.

        Args:
            sequence: it has the tokens that came of the step already.
            rows: without guesses that turned out wrong.
        """
        before = sequence.known // PAGE_TOKENS
        sequence.known += rows
        after = sequence.known // PAGE_TOKENS
        sequence.name_pages(after)
        for page, digest in islice(zip(sequence.pages, sequence.digests, strict=False), before, before if sequence.private else after):
            self.pages.seal(page, digest)
        self._keep_state(sequence)
        sequence.drafts = []
        while sequence.missing_pages < 0:
            self.pages.release(sequence.pages.pop())

    def _keep_state(self, sequence: Sequence) -> None:
        """Take over the state that a step has written, with a snapshot where a prompt's last full page ends, or one of an answer."""
        if self.states is None:
            return
        self.states.advance(sequence.held)
        full, rest = divmod(sequence.known, PAGE_TOKENS)
        if not rest and sequence.known >= sequence.boundary:
            self.states.keep(sequence.held, sequence.digests[full - 1], in_answer=sequence.known > sequence.boundary)

    def _chunk(self, sequence: Sequence) -> int:
        """Tokens that a step may compute of a prompt: up to where its state shall be kept."""
        before = sequence.boundary - sequence.known
        return before if self.states is not None and before > 0 else sequence.pending

    def _leave(self, sequence: Sequence) -> None:
        """Neither run nor wait."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _decoding(self) -> Iterator[Sequence]:
        """Those who run and lack one token, oldest first; some may be preempted on the way."""
        for sequence in list(self.running):
            if sequence.pending == 1 and sequence.pages:
                yield sequence

    def _prefilling(self, plan: dict[Sequence, int]) -> Iterator[Sequence]:
        """Those who run and lack more, the oldest of every tenant first, then those who can be admitted; a tenant's first is in at once."""
        while self._admit_next(first=True):
            pass
        turns: Counter[str] = Counter()
        order: list[tuple[int, Sequence]] = []
        for sequence in self.running:
            order.append((turns[sequence.tenant], sequence))
            turns[sequence.tenant] += 1
        yield from [sequence for _, sequence in sorted(order, key=itemgetter(0)) if sequence not in plan]
        while self._admit_next():
            yield self.running[-1]

    def _admit_next(self, *, first: bool = False) -> bool:
        """Admit the one whose turn it is: who lost its pages, else the oldest of the tenant that runs the fewest; with `first`, if none."""
        if not self.waiting or len(self.running) >= self.limits.max_rows:
            return False
        runs = Counter(sequence.tenant for sequence in self.running)
        chosen = self.waiting[0] if self.waiting[0].preempted else min(self.waiting, key=lambda sequence: runs[sequence.tenant])
        if (first and runs[chosen.tenant]) or not self._admit(chosen):
            return False
        self.waiting.remove(chosen)
        self.running.append(chosen)
        return True

    def _grow(self, sequence: Sequence) -> bool:
        """Make room for one more token, at the cost of the youngest; False when the sequence itself had to go."""
        while sequence.missing_pages > 0:
            page = self.pages.take()
            if page is not None:
                sequence.pages.append(page)
                continue
            youngest = self.running.pop()
            self._free(youngest)
            youngest.preempted += 1
            self.preemptions += 1
            self.waiting.appendleft(youngest)
            if youngest is sequence:
                return False
        return True

    def _room(self, sequence: Sequence, guesses: int) -> int:
        """How many of these guesses find room, in pages that are free."""
        room = len(sequence.pages) * PAGE_TOKENS - len(sequence.tokens)
        while guesses > room and (page := self.pages.take()) is not None:
            sequence.pages.append(page)
            room += PAGE_TOKENS
        return min(guesses, room)

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence all the pages it needs, known content first; False, and nothing taken, when too few are free."""
        known = self._known_pages(sequence)
        fresh = sequence.missing_pages - len(known)
        if self.pages.free - sum(not self.pages.holders(p) for p in known) - fresh < len(self.running):
            return False
        for page in known:
            self.pages.share(page)
        sequence.pages = known
        sequence.boundary = (len(sequence.tokens) - 1) // PAGE_TOKENS * PAGE_TOKENS
        self._advance(sequence, len(known) * PAGE_TOKENS)
        self._adopt_tail(sequence)
        while sequence.missing_pages:
            empty = self.pages.take()
            assert empty is not None, "free pages were counted before"
            sequence.pages.append(empty)
        return True

    def _adopt_tail(self, sequence: Sequence) -> None:
        """Go on in a page that somebody who began alike left half full, as far as the tokens agree; no snapshot says where that is."""
        full = len(sequence.pages)
        found = (
            None
            if sequence.every_row or self.states is not None
            else self.pages.find_tail(sequence.digests[full - 1] if full else sequence.root)
        )
        if found is None:
            return
        page, tail = found
        mine = sequence.named(full * PAGE_TOKENS, len(sequence.tokens) - 1)
        alike = next((n for n, (a, b) in enumerate(zip(mine, tail.tokens, strict=False)) if a != b), min(len(mine), len(tail.tokens)))
        if alike:
            self.pages.adopt(page)
            sequence.pages.append(page)
            self._advance(sequence, alike)

    def _known_pages(self, sequence: Sequence) -> list[int]:
        """Pages that hold the start of a sequence already; its last token is always computed, because its logits are wanted.

        Where the model keeps states, the pages end where a snapshot was taken: the rest is computed again. Where a layer guesses, what it
        keeps of a page's last token depends on the next one, which only a further page makes sure of: the last page is computed again.
        """
        if sequence.every_row:
            return []
        full = (len(sequence.tokens) - 1) // PAGE_TOKENS
        sequence.name_pages(full)
        pages: list[int] = []
        for digest in islice(sequence.digests, full):
            page = self.pages.find(digest)
            if page is None:
                break
            pages.append(page)
        while self.states is not None and pages and not self.states.knows(sequence.digests[len(pages) - 1]):
            pages.pop()
        return pages[:-1] if sequence.further else pages

    def _reuse(self, sequence: Sequence) -> None:
        """Swap own pages that are still to be computed for pages that others have computed since it was admitted."""
        first = sequence.known // PAGE_TOKENS
        if sequence.known % PAGE_TOKENS:
            return
        known = self._known_pages(sequence)[first:]
        for index, page in enumerate(known, first):
            self.pages.share(page)
            self.pages.release(sequence.pages[index])
            sequence.pages[index] = page
        self._advance(sequence, len(known) * PAGE_TOKENS)

    def _advance(self, sequence: Sequence, tokens: int) -> None:
        """Count tokens that were found and not computed, and take over the state behind them."""
        sequence.known += tokens
        if tokens and self.states is not None:
            self.states.adopt(sequence.held, sequence.digests[sequence.known // PAGE_TOKENS - 1])
        sequence.found += 0 if sequence.preempted else tokens

    def _free(self, sequence: Sequence, spoiled: bool = False) -> None:
        """Let go of all pages, the last first, so that the start of a prompt stays findable longest."""
        full, rest = divmod(sequence.known, PAGE_TOKENS)
        tail = None
        if self.states is not None:
            self.states.leave(sequence.held)
        elif rest and not spoiled and not sequence.further and not sequence.private:
            parent = sequence.digests[full - 1] if full else sequence.root
            tail = Tail(parent, sequence.named(full * PAGE_TOKENS, sequence.known))
        for index, page in reversed(list(enumerate(sequence.pages))):
            self.pages.release(page, tail if index == full else None)
        sequence.pages = []
        sequence.known = 0
        sequence.drafts = []
