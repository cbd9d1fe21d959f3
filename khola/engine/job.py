"""One request on its way through the engine: its sequence, its choices, its text and its times.

Shapes   r rows of a part, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from khola.engine.constraint import Constraint
from khola.engine.output import Output
from khola.engine.request import Event, Failed, Finished, FinishReason, Piece, Request, TokenInfo, Usage
from khola.engine.runner import Kept, Part
from khola.engine.sampler import Chooser, require_finite, told
from khola.engine.scheduler import Sequence
from khola.engine.speculate import Draft, Speculator
from khola.errors import KholaError
from khola.ops.scores import Row, Scores, row_of, whole


class Job:
    """What the engine keeps of one request until its last event.

    Args:
        request: checked.
        sequence: its tokens and pages.
        chooser: makes its tokens.
        output: makes its text.
        now: seconds on the engine's clock.
        outbox: where its events go instead of into the result of `Engine.step`.
        constraint: which tokens may come; None lets all.
    """

    def __init__(
        self,
        request: Request,
        sequence: Sequence,
        chooser: Chooser,
        output: Output,
        now: float,
        outbox: deque[Event] | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self.request = request
        self.sequence = sequence
        self.outbox = outbox
        self.ended = False
        self._expected: int | None = None
        self._chooser = chooser
        self._output = output
        self._speculator = Speculator(sequence.tokens, request.sampling.speculate)
        self._constraint = constraint
        self._prompt = [TokenInfo(request.prompt[0])]
        self._pooled_D: NDArray[np.float64] | None = None
        self._pooled = 0
        self._submitted = now
        self._started: float | None = None
        self._first: float | None = None
        self._last: float | None = None

    @property
    def reads_only(self) -> bool:
        """Whether the request ends with its prompt."""
        return self.request.embedding or self.request.sampling.max_tokens == 0

    @property
    def answer_tokens(self) -> int:
        """Tokens made so far, the one that ended the answer included."""
        return len(self.sequence.tokens) - len(self.request.prompt)

    @property
    def decodes(self) -> bool:
        """Whether one more row makes a token."""
        sequence = self.sequence
        return sequence.pending == 1 and bool(sequence.pages) and not sequence.every_row and not self.reads_only

    @property
    def _free(self) -> bool:
        """Whether any token may come next."""
        return self._constraint is None or self._constraint.free

    def draft(self) -> Draft | None:
        """A guess at what comes after the newest token, never beyond the longest answer; None without one."""
        most = self._output.left - 1
        forced = [] if self._constraint is None else self._constraint.forced()
        return self._speculator.given(forced, most) if forced else self._speculator.draft(most, self._expected)

    def part(self, rows: int, now: float) -> Part:
        """The next tokens to compute."""
        self._started = now if self._started is None else self._started
        sequence = self.sequence
        ids = sequence.tokens[sequence.known : sequence.known + rows]
        drafts = rows - len(ids)
        last = sequence.known + len(ids) == len(sequence.tokens)
        wanted = range(rows) if sequence.every_row else range(len(ids) - 1 if last else rows, rows)
        draws = 1 + drafts if last and not self.reads_only else 0
        answers = sequence.answers(sequence.known, sequence.known + rows)
        best = self._chooser.num_best if self._free and not sequence.every_row else 0
        states = (sequence.held.now, sequence.held.next) if sequence.held.next >= 0 else None
        kept = Kept() if sequence.further else None
        return Part(ids + sequence.drafts[:drafts], sequence.known, sequence.pages, wanted, drafts, answers, draws, best, states, kept)

    def further(self, part: Part) -> Part:
        """What a layer that guesses computes of a part that was taken in: its right rows, each with the token behind it."""
        sequence = self.sequence
        ids = sequence.tokens[part.first + 1 : sequence.known + 1]
        wanted = range(len(ids) - 1 if self.decodes else len(ids), len(ids))
        answers = sequence.answers(part.first + 1, sequence.known + 1)
        return Part(ids, part.first, sequence.pages, wanted, 0, answers, len(wanted), 1, None, part.kept)

    def expect(self, rows: NDArray[np.float32] | Scores) -> None:
        """Take in the logits of the token after the next one, if there are any: what is likeliest is the next guess."""
        self._expected = self._chooser.expected(row_of(rows, 0)) if len(rows) else None

    def read(self, part: Part, rows: NDArray[np.float32] | Scores, now: float) -> list[Event]:
        """Take in the numbers of a computed part: scores, hidden states, and the next token once the whole sequence is known.

        Args:
            part: what was computed.
            rows: logits [r, V], or hidden states [r, D] for an embedding.
            now: seconds on the engine's clock.
        Raises:
            NonFinite: a number is NaN or infinite.
        """
        self._expected = None
        if self.request.embedding:
            self._pool(part, whole(rows))
        elif self.sequence.every_row:
            self._score(part, whole(rows))
        if part.length - part.drafts < len(self.sequence.tokens):
            return []
        told = self.sequence.every_row and self.request.prompt_logprobs
        self.sequence.every_row = False
        events: list[Event] = [Piece(self.request, "", (), tuple(self._prompt))] if told else []
        if self.reads_only:
            return [*events, self.finish("stop" if self.request.embedding else "length", now)]
        guesses = part.ids[len(part.ids) - part.drafts :]
        return events + self._answer(rows[len(rows) - 1 - part.drafts :], guesses, now, best_only=part.best > 0)

    def finish(self, reason: FinishReason, now: float) -> Finished:
        """The last event of a request that was answered or cancelled."""
        self.ended = True
        mean_D = None if self._pooled_D is None else (self._pooled_D / max(1, self._pooled)).astype(np.float32)
        complete = None if self._constraint is None else self._constraint.complete
        scores = tuple(token.logprob for token in self._prompt[1:] if token.logprob is not None)
        return Finished(self.request, reason, self._usage(now), scores, mean_D, complete, self._output.stopped_by)

    def fail(self, error: KholaError) -> Failed:
        """The last event of a request that could not be answered."""
        self.ended = True
        return Failed(self.request, error)

    def _answer(self, rows: NDArray[np.float32] | Scores, guesses: Iterable[int], now: float, *, best_only: bool) -> list[Event]:
        """Choose the next token, and go on for as long as the rows that follow were computed from the tokens that were chosen."""
        speculator, drafted, right = self._speculator, len(rows) - 1, 0
        speculator.drafted += drafted
        events = self._next(row_of(rows, 0), now)
        for at, guess in enumerate(guesses, 1):
            if self.sequence.tokens[-1] != guess:
                break
            right += 1
            # Numbers behind a guess that are not finite are left to the next step, which fails after what was good has been told.
            # So is a row of which only the best logits are exact, once a call holds that chooses among all of them.
            row = row_of(rows, at)
            if self.ended or (best_only and not self._free) or not self._chooser.can_choose(row):
                break
            speculator.accepted += 1
            events += self._next(row, now)
        speculator.learn(drafted, right)
        return events

    def _next(self, logits_V: NDArray[np.float32] | Row, now: float) -> list[Event]:
        """Choose one token and say what it adds."""
        token = self._chooser.choose(logits_V, len(self.sequence.tokens), self._constraint)
        if self._constraint is not None:
            self._constraint.push(token.id)
        self.sequence.tokens.append(token.id)
        self._first = now if self._first is None else self._first
        self._last = now
        said = self._output.push(token, last=self._constraint is not None and self._constraint.ended)
        events: list[Event] = []
        if said.text or said.tokens:
            events.append(Piece(self.request, said.text, said.tokens))
        if said.reason:
            events.append(self.finish(said.reason, now))
        return events

    def _score(self, part: Part, rows_rV: NDArray[np.float32]) -> None:
        """Note log-probabilities of prompt tokens; rows seen before (the sequence lost its pages meanwhile) are passed over."""
        prompt = self.request.prompt
        for position in range(max(part.first, len(self._prompt) - 1), min(part.length, len(prompt) - 1)):
            logits_V = rows_rV[position - part.first][: self._chooser.num_tokens]
            require_finite(logits_V, position + 1)
            self._prompt.append(told(prompt[position + 1], logits_V, self.request.prompt_top))

    def _pool(self, part: Part, rows_rD: NDArray[np.float32]) -> None:
        """Add up hidden states that were not seen before."""
        new_rD = rows_rD[max(0, self._pooled - part.first) :]
        if not len(new_rD):
            return
        require_finite(new_rD, part.first)
        total_D = new_rD.sum(axis=0, dtype=np.float64)
        self._pooled_D = total_D if self._pooled_D is None else self._pooled_D + total_D
        self._pooled += len(new_rD)

    def _usage(self, now: float) -> Usage:
        """What the request cost, as far as it came."""
        started = now if self._started is None else self._started
        first = now if self._first is None else self._first
        return Usage(
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.sequence.found,
            answer_tokens=self.answer_tokens,
            wait_s=started - self._submitted,
            prefill_s=first - started,
            decode_s=0.0 if self._last is None else self._last - first,
            drafted_tokens=self._speculator.drafted,
            accepted_tokens=self._speculator.accepted,
        )
