"""The engine: requests in, events out, one step at a time.

Threads  Any thread may submit, cancel and stream. One thread at a time steps; others that stream wait for it and find their events made.
         Requests and cancellations that come during a step take effect when it ends.
Faults   A request that fails ends with one `Failed` event and leaves no page behind. When a whole step fails, its requests are tried one by
         one, so that only the one that cannot be computed is lost: a forward pass writes the same numbers however often it is repeated.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from khola.engine import prefix
from khola.engine.admission import accept, require_context, require_memory
from khola.engine.constraint import constraint_of
from khola.engine.job import Job
from khola.engine.matcher import Grammars
from khola.engine.output import Output
from khola.engine.pages import Pages
from khola.engine.request import Event, Request
from khola.engine.runner import ModelRunner, Part, Runner
from khola.engine.sampler import Chooser
from khola.engine.scheduler import Limits, Scheduler, Sequence
from khola.engine.speculate import Pace, pays, shares
from khola.engine.states import States, slots_for
from khola.engine.stats import Stats
from khola.engine.stream import EventStream
from khola.errors import AskedWrong, Cancelled, KholaError, NoMemory, OurFault
from khola.ops.scores import Scores
from khola.ops.vocabulary import PAGE_TOKENS

if TYPE_CHECKING:
    from khola.loader.loaded import Loaded

SEED_BITS = 63
STEP_TOKENS = 256
"""Tokens of a step: the more, the less often weights are made ready for them, and the longer a new request or a cancelled one waits."""
SMALL_BYTES = 1_000_000_000
"""Weights up to which twice as many take no more than some tenths of a second; a prompt is read 7 to 12 % faster."""
COUNTS = ("steps", "prompt_tokens", "cached_tokens", "answer_tokens", "computed_tokens", "drafted_tokens", "accepted_tokens")
Numbers = NDArray[np.float32] | Scores
Computed = list[tuple[Job, Part, Numbers | KholaError]]


class Engine:
    """Runs requests of one model.

    Args:
        loaded: the model.
        cache_tokens: tokens whose keys and values fit into the cache, all requests together; rounded up to whole pages.
        context_tokens: prompt and answer of one request together; the smaller of the trained context and the cache by default.
        max_rows: requests that run at once.
        step_tokens: tokens that one step computes; by default 512 with weights of up to a gigabyte, else 256.
        max_waiting: requests that may wait.
        available_bytes: memory that the cache may take; None when it is not known.
        clock: seconds, never going back.
        draw_seed: seeds of requests that name none.
        runner: computes logits; the loaded model by default.
    Raises:
        NoMemory: the cache does not fit.
        ContextOverflow: the context is longer than the trained one or the cache.
        UnknownOption: the limits contradict each other.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        cache_tokens: int,
        context_tokens: int | None = None,
        max_rows: int = 16,
        step_tokens: int | None = None,
        max_waiting: int = 256,
        available_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw_seed: Callable[[], int] = lambda: secrets.randbits(SEED_BITS),
        runner: Runner | None = None,
    ) -> None:
        if step_tokens is None:
            step_tokens = 2 * STEP_TOKENS if loaded.weight_bytes <= SMALL_BYTES else STEP_TOKENS
        mixed = min(step_tokens, max(min(step_tokens, STEP_TOKENS) // 2, max_rows))
        self.limits = Limits(max_rows=max_rows, step_tokens=step_tokens, mixed_tokens=mixed, max_waiting=max_waiting)
        self.loaded = loaded
        self.num_pages = max(1, -(-cache_tokens // PAGE_TOKENS))
        wanted = min(loaded.context_tokens, cache_tokens) if context_tokens is None else context_tokens
        self.context_tokens = require_context(wanted, loaded.context_tokens, self.num_pages * PAGE_TOKENS)
        slots = slots_for(max_rows) if loaded.cache.states else 0
        states_bytes = slots * loaded.ops.state_bytes(loaded.cache) if slots else 0
        self.cache_bytes = require_memory(self.num_pages, available_bytes, loaded.ops.token_bytes(loaded.cache), states_bytes)
        sizes = {"max_rows": step_tokens, "max_context": self.context_tokens, "num_states": slots}
        self._runner: Runner | None = ModelRunner(loaded, self.num_pages, **sizes) if runner is None else runner
        self._grammars = Grammars(loaded.tokenizer, loaded.stop_ids)
        self._num_tokens = min(loaded.tokenizer.size, loaded.vocab_tokens)
        self._clock = clock
        self._draw_seed = draw_seed
        self._turn = threading.Condition(threading.RLock())
        self._busy = False
        self._inbox: deque[tuple[Request, Job | None]] = deque()
        self._new = 0
        self._jobs: dict[Request, Job] = {}
        self._by_sequence: dict[Sequence, Job] = {}
        self._events: list[Event] = []
        self._counts = dict.fromkeys(COUNTS, 0)
        self._pace, self._layer_pace = Pace(), Pace()
        self._step_s = 0.0
        self._pages, self._scheduler = self._new_books()

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn; its events come out of `step`.

        Raises:
            EmptyPrompt: there is no token to start from.
            ContextOverflow: the prompt leaves no room for an answer.
            UnknownOption: a sampling value lies outside its range.
            Busy: too many requests are waiting.
            BadGrammar, BadSchema: its grammar cannot be compiled.
            AskedWrong: the engine is closed, the request is on its way already, it names an id that does not exist, or it asks for guesses
                that this model cannot take back.
        """
        self._submit(request, None)

    def cancel(self, request: Request) -> None:
        """End a request in whatever phase it is and free its pages, at once or when the running step ends. No harm if it has ended."""
        with self._turn:
            self._inbox.append((request, None))
            self._settle()
            self._turn.notify_all()

    def step(self) -> list[Event]:
        """Compute one step, or nothing when there is nothing to do; gives what happened to requests that were submitted, not streamed."""
        with self._turn:
            while self._busy:
                self._turn.wait()
            self._busy = True
        self._take_turn()
        with self._turn:
            events, self._events = self._events, []
        return events

    def stream(self, request: Request) -> EventStream:
        """Submit a request and give its events as they come, stepping whenever nobody else does; closing the stream cancels the request.

        Raises:
            KholaError: what `submit` raises, before the first event.
        """
        outbox: deque[Event] = deque()
        self._submit(request, outbox)
        return EventStream(outbox, lambda: self._pump(outbox), lambda: self.cancel(request))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Sleep until there is something to compute or to tell, or the engine is closed; False when the time is over first."""
        with self._turn:
            return self._turn.wait_for(lambda: bool(self._jobs or self._events or self._runner is None), timeout_s)

    @property
    def closed(self) -> bool:
        """It takes no more requests."""
        return self._runner is None

    def stats(self) -> Stats:
        """What the engine has done and holds now."""
        with self._turn:
            states = self._scheduler.states
            return Stats(
                running=len(self._scheduler.running),
                waiting=len(self._scheduler.waiting) + self._new,
                pages=self.num_pages,
                pages_used=self._pages.used,
                pages_kept=self._pages.kept,
                states_used=0 if states is None else states.used,
                states_kept=0 if states is None else states.kept,
                cache_bytes=self.cache_bytes,
                preemptions=self._scheduler.preemptions,
                **self._counts,
                step_s=self._step_s,
            )

    def close(self) -> None:
        """End all requests and give the cache back. A closed engine takes no more requests; closing it again does nothing."""
        with self._turn:
            while self._busy:
                self._turn.wait()
            self._runner = None
            self._start_anew(Cancelled("the engine was closed"))
            self._turn.notify_all()

    def _new_books(self) -> tuple[Pages, Scheduler]:
        """Of an engine that holds nothing."""
        pages = Pages(self.num_pages)
        return pages, Scheduler(pages, self.limits, States(self.limits.max_rows) if self.loaded.cache.states else None)

    def _submit(self, request: Request, outbox: deque[Event] | None) -> None:
        """Check a request and put it into the inbox."""
        accept(request, self.context_tokens, self.loaded.context_tokens, self._num_tokens)
        if request.sampling.speculate and self.loaded.cache.states:
            raise AskedWrong(
                "this model keeps a state of the text, from which a wrong guess could not be taken back; it does not speculate",
                hint="leave speculate out: the answer is the same",
            )
        job = self._job(request, outbox)
        with self._turn:
            if self._runner is None:
                raise AskedWrong("the model is closed", hint="load it again")
            if request in self._jobs:
                raise AskedWrong("request {number} is on its way already", number=request.number)
            self._scheduler.require_room(self._new, request.tenant)
            self._jobs[request] = job
            self._new += 1
            self._inbox.append((request, job))
            self._settle()
            self._turn.notify_all()

    def _job(self, request: Request, outbox: deque[Event] | None) -> Job:
        """Everything that a request needs on its way."""
        sampling = request.sampling
        room = self.context_tokens - len(request.prompt)
        output = Output(
            self.loaded.tokenizer.stream(shown=request.shown_ids),
            sampling.stop,
            frozenset() if sampling.ignore_end else request.stop_ids,
            room if sampling.max_tokens is None else min(room, sampling.max_tokens),
        )
        seed = self._draw_seed() if sampling.seed is None else sampling.seed
        further = self.loaded.second_token and sampling.speculate is not False and not request.embedding and sampling.max_tokens != 0
        root, every_row = prefix.root(request.tenant, further), request.embedding or request.prompt_logprobs
        sequence = Sequence(list(request.prompt), root, request.tenant, every_row)
        sequence.further = further
        if self.loaded.ops.tells_answers:
            sequence.prompt_answers = _marked(request)
        chooser = Chooser(sampling, seed, request.prompt, self._num_tokens)
        constraint = constraint_of(request, self._grammars, self.loaded.tokenizer)
        return Job(request, sequence, chooser, output, self._clock(), outbox, constraint)

    def _settle(self) -> None:
        """Take the inbox in now, unless a step is running: that does it when it ends. The caller holds the lock."""
        if not self._busy:
            self._busy = True
            try:
                self._read_inbox()
            finally:
                self._busy = False

    def _read_inbox(self) -> None:
        """Give new requests to the scheduler and take cancelled ones from it. The busy thread calls this, holding the lock."""
        with self._bookkeeping():
            while self._inbox:
                request, new = self._inbox.popleft()
                job = self._jobs.get(request)
                if new is not None:
                    self._new -= 1
                    self._by_sequence[new.sequence] = new
                    self._scheduler.add(new.sequence)
                elif job is not None:
                    self._scheduler.drop(job.sequence)
                    self._end(job, [job.finish("cancelled", self._clock())])

    def _pump(self, outbox: deque[Event]) -> None:
        """Make one step, or wait while another thread makes one."""
        with self._turn:
            if outbox:
                return
            if self._busy:
                self._turn.wait()
                return
            self._busy = True
        self._take_turn()

    def _take_turn(self) -> None:
        """One step by the thread that has just become the busy one."""
        began = self._clock()
        try:
            with self._turn:
                self._read_inbox()
                parts = self._plan(began)
            if parts:
                decodes = all(job.decodes for job, _ in parts)
                computed = self._compute(parts)
                with self._bookkeeping():
                    for job, part, rows in computed:
                        self._read(job, part, rows)
                layer_s = self._look_further(computed, decodes)
                seconds = self._clock() - began
                if decodes:
                    self._pace.note(sum(len(part.ids) for _, part in parts), seconds - layer_s)
                self._counts["steps"] += 1
                self._step_s += seconds
        finally:
            with self._turn:
                try:
                    self._read_inbox()
                finally:
                    self._busy = False
                    self._turn.notify_all()

    def _plan(self, now: float) -> list[tuple[Job, Part]]:
        """What the next step computes."""
        plan: dict[Sequence, int] = {}
        with self._bookkeeping():
            self._guess()
            plan = self._scheduler.plan()
        return [(job, job.part(rows, now)) for sequence, rows in plan.items() if (job := self._by_sequence.get(sequence))]

    def _guess(self) -> None:
        """Let those who decode guess what comes next, as far as that pays; not where a wrong guess would spoil a state."""
        if self._scheduler.states is not None:
            return
        jobs = [job for sequence in self._scheduler.running if (job := self._by_sequence[sequence]).decodes]
        drafts = [job.draft() for job in jobs]
        free = [(job, draft) for job, draft in zip(jobs, drafts, strict=True) if job.sequence.further and draft and not draft.forced]
        if free and not pays([draft for _, draft in free], len(jobs), self._pace, self._layer_pace):
            for job, _ in free:
                self._scheduler.go_plain(job.sequence)
        if any(drafts):
            for job, draft, count in zip(jobs, drafts, shares(drafts, self._pace, self.limits.guess_rows), strict=True):
                job.sequence.drafts = draft.tokens[:count] if draft else []

    def _compute(self, parts: list[tuple[Job, Part]]) -> Computed:
        """Logits, or hidden states for embeddings, or the error that came instead. Changes nothing but the contents of pages."""
        runner = self._runner
        if runner is None:
            raise OurFault("a closed engine has something to compute")
        tokens = [member for member in parts if not member[0].request.embedding]
        embeddings = [member for member in parts if member[0].request.embedding]
        return _isolated(runner.scores, tokens) + _isolated(runner.hidden, embeddings)

    def _look_further(self, computed: Computed, decodes: bool) -> float:
        """Let the layer that guesses read what was computed; whoever it fails for goes on without it. Gives the seconds that it took."""
        members = [
            (job, job.further(part)) for job, part, _ in computed if job.sequence.further and self._by_sequence.get(job.sequence) is job
        ]
        runner = self._runner
        if not members or runner is None:
            return 0.0
        began, without = self._clock(), {job for job, _ in members}
        try:
            for job, _, rows in _isolated(runner.further, members):
                if not isinstance(rows, KholaError):
                    job.expect(rows)
                    without.remove(job)
        finally:
            for job in without:
                self._scheduler.go_plain(job.sequence, spoiled=True)
        seconds = self._clock() - began
        if decodes:
            self._layer_pace.note(len(members), seconds)
        return seconds

    def _read(self, job: Job, part: Part, rows: Numbers | KholaError) -> None:
        """Take in what was computed for one request; its error ends it alone."""
        had = job.answer_tokens
        try:
            if isinstance(rows, KholaError):
                raise rows
            events = job.read(part, rows, self._clock())
        except Exception as error:
            self._scheduler.spoil(job.sequence)
            self._end(job, [job.fail(typed(error))])
            return
        made = job.answer_tokens - had
        accepted = max(0, made - 1)
        # The layer that guesses does not read the last rows of a request: pages that end with them are nobody's.
        job.sequence.private |= job.ended and job.sequence.further
        self._scheduler.computed(job.sequence, len(part.ids) - part.drafts + accepted)
        self._counts["computed_tokens"] += len(part.ids)
        self._counts["answer_tokens"] += made
        self._counts["drafted_tokens"] += part.drafts
        self._counts["accepted_tokens"] += accepted
        if job.ended:
            self._scheduler.drop(job.sequence)
            self._end(job, events)
        else:
            self._tell(job, events)

    def _end(self, job: Job, events: list[Event]) -> None:
        """Forget a request that the scheduler has let go of."""
        self._jobs.pop(job.request, None)
        self._by_sequence.pop(job.sequence, None)
        self._counts["prompt_tokens"] += len(job.request.prompt)
        self._counts["cached_tokens"] += job.sequence.found
        self._tell(job, events)

    def _tell(self, job: Job, events: list[Event]) -> None:
        """Put events where their reader looks."""
        (self._events if job.outbox is None else job.outbox).extend(events)

    @contextmanager
    def _bookkeeping(self) -> Iterator[None]:
        """Guard changes of the books: when one breaks off half way, all requests end and the books start anew.

        An interrupt (Ctrl-C) goes on to the caller; an error has been told to everybody by then.
        """
        try:
            yield
        except BaseException as error:
            self._start_anew(typed(error) if isinstance(error, Exception) else Cancelled("the program was interrupted"))
            if not isinstance(error, Exception):
                raise

    def _start_anew(self, error: KholaError) -> None:
        """End everything and forget what the pages hold."""
        jobs = list(self._jobs.values())
        self._jobs.clear()
        self._by_sequence.clear()
        self._inbox.clear()
        self._new = 0
        self._pages, self._scheduler = self._new_books()
        for job in jobs:
            self._tell(job, [job.fail(error)])


def _marked(request: Request) -> bytes:
    """1 for every prompt token that belongs to an earlier answer, 0 for the others."""
    marks = bytearray(len(request.prompt))
    for run in request.answers:
        here = range(max(0, run.start), min(run.stop, len(marks)))
        marks[here.start : here.stop] = b"\1" * len(here)
    return bytes(marks)


def _isolated(call: Callable[[list[Part]], Iterable[Numbers]], members: list[tuple[Job, Part]]) -> Computed:
    """Compute parts together; when that fails, one by one, so that each bears its own error only."""
    if not members:
        return []
    try:
        return [(job, part, rows) for (job, part), rows in zip(members, call([part for _, part in members]), strict=True)]
    except Exception as error:
        job, part = members[0]
        if len(members) == 1 and part.drafts:
            # Guesses must not cost an answer what it could have had without them: memory, above all.
            return _isolated(call, [(job, part.certain())])
        if len(members) == 1:
            return [(*members[0], typed(error))]
        return [computed for member in members for computed in _isolated(call, [member])]


def typed(error: Exception) -> KholaError:
    """An error as one of khola's own, with what caused it."""
    if isinstance(error, KholaError):
        return error
    told: KholaError
    if isinstance(error, MemoryError):
        told = NoMemory("memory ran out while a step was computed", hint="ask for a shorter context, or run fewer requests at once")
    else:
        told = OurFault(
            "a step failed with {kind}: {detail}",
            hint="this is a fault of khola: please report it",
            kind=type(error).__name__,
            detail=str(error),
        )
    told.__cause__ = error
    return told
