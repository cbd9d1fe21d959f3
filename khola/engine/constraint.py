"""What may come next in one answer: first thoughts, free but bounded in number; then the grammar, or text in which calls may open.

```
may open ── start mark ──> thought ── end mark, or the budget is spent ──> answer under its grammar
    └───────────────── anything that the grammar allows ─────────────────────┘

answer without a grammar: text ── opening of a call ──> the rest of the call under its grammar ──> text again, or the end
```

A grammar that began with the first token would keep a model from ending its thought, and its answer would land there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from khola.engine.matcher import WORD, Grammars, Logits, Matcher, Vocabulary, only
from khola.engine.openings import Found, Watch
from khola.engine.request import Request, Thought

_GAP = "\n\n"
"""What stands between a thought and the answer in the templates of the labs."""


class Calls:
    """Calls that may open in one answer.

    Args:
        watch: looks for openings.
        goes_on: whether anything may come behind the call of an opening.
        matcher: makes what the rest of a call follows.
        hidden: tokens that are no part of the text.
    """

    def __init__(self, watch: Watch, goes_on: Callable[[Found], bool], matcher: Callable[[Found], Matcher], hidden: frozenset[int]) -> None:
        self.watch = watch
        self.goes_on = goes_on
        self.matcher = matcher
        self.hidden = hidden


class Constraint:
    """Follows one answer and says which tokens may come next.

    Args:
        thought: how the answer may think; None when it does not.
        first: the grammar for an answer without a thought; None without a grammar.
        later: the grammar for an answer behind a thought.
        vocabulary: of the model.
        stop_ids: tokens that end a turn; inside a thought they may not come when a grammar waits behind it.
        calls: that may open where there is no grammar.
    """

    def __init__(
        self,
        thought: Thought | None,
        first: Matcher | None,
        later: Matcher | None,
        vocabulary: Vocabulary,
        stop_ids: Iterable[int],
        calls: Calls | None = None,
    ) -> None:
        self._thought = thought
        self._matcher, self._later = first, later
        self._has_form = first is not None
        self._vocabulary = vocabulary
        self._stop_ids = np.array(sorted(stop_ids), np.intp)
        self._calls = calls
        self._call: Found | None = None
        self._phase: Literal["start", "thought", "answer"] = "answer"
        self._start_id: int | None = None
        self._start = self._end = b""
        self._tail = b""
        self._spent = 0
        self._over = False
        self._queue: deque[int] = deque()
        if thought is not None:
            self._start, self._end = thought.start.encode(), thought.end.encode()
            self._start_id = vocabulary.id_of(thought.start) if thought.may_open else None
            if thought.opened:
                self._enter()
            elif self._start_id is not None or (calls is not None and thought.may_open):
                self._phase = "start"

    @property
    def free(self) -> bool:
        """Any token may come next."""
        return self._matcher is None and not self._queue

    @property
    def ended(self) -> bool:
        """Nothing can follow: the grammar is at its end, or the model said so where it may."""
        return self._over or (self._phase == "answer" and not self._queue and self._matcher is not None and self._matcher.ended)

    @property
    def complete(self) -> bool | None:
        """Whether what stands there satisfies the grammar; None without one, unless a call was cut short."""
        if self._matcher is None:
            return True if self._has_form else None
        return self._phase == "answer" and not self._queue and self._matcher.accepting

    def applied(self, logits_V: Logits) -> Logits:
        """Logits in which tokens that may not come are -∞: a copy, or the same array when all may.

        Raises:
            BadGrammar: none may.
        """
        if self._queue:
            return _alone(logits_V, self._queue[0])
        if self._matcher is None:
            return logits_V
        if self._phase == "thought":
            return _without(logits_V, self._stop_ids)
        bits_W = self._matcher.allowed()
        if self._phase == "start" and self._start_id is not None:
            bits_W[self._start_id // WORD] |= np.uint32(1 << self._start_id % WORD)
        return only(logits_V, bits_W)

    def fits(self, token: int) -> bool:
        """False for a token that begins what its grammar has not seen, and begins it wrongly; choose another one then.

        It ends a thought or opens a call, and goes on with letters that may not stand there.
        """
        if self._queue or (self._matcher is None and self._calls is None):
            return True
        if self._phase == "thought":
            _, mark, rest = (self._tail + self._vocabulary.token_bytes(token)).partition(self._end)
            if self._matcher is not None:
                return not mark or not rest.strip(b"\n")
            return not mark or self._opens_well(rest)
        return self._calls is None or self._call is not None or self._opens_well(self._bytes(token))

    def push(self, token: int) -> None:
        """Take the chosen token.

        Raises:
            BadGrammar: the grammar does not allow it, or became too large on the way.
        """
        if self._queue:
            self._queue.popleft()
        elif self._phase == "thought":
            self._think(token)
        elif self._phase == "start" and token == self._start_id:
            self._enter()
        elif self._matcher is None:
            self._say(self._bytes(token))
        else:
            self._phase = "answer"
            self._over = bool((self._stop_ids == token).any())
            if not self._over:
                self._matcher.push(token)
                if self._call is None and self._calls is not None:
                    self._watch(self._bytes(token))
            self._leave_call()

    def forced(self) -> list[int]:
        """The tokens that must come next; empty where there is a choice."""
        if self._queue:
            return list(self._queue)
        return self._matcher.forced() if self._phase == "answer" and self._matcher is not None else []

    def _enter(self) -> None:
        """Begin a thought."""
        self._phase = "thought"
        self._matcher = self._later
        if self._thought is not None and self._thought.most_tokens == 0:
            self._close()

    def _think(self, token: int) -> None:
        """One more token of the thought, which may be its last."""
        self._spent += 1
        before, mark, rest = (self._tail + self._vocabulary.token_bytes(token)).partition(self._end)
        if mark:
            self._phase = "answer"
            if self._matcher is not None and not rest:
                self._queue.extend(self._vocabulary.encode(_GAP, first=False))
            if self._calls is not None:
                self._calls.watch.behind_thought = True
            self._say(rest)
            return
        self._tail = before[-(len(self._end) - 1) :]
        if self._thought is not None and self._thought.most_tokens is not None and self._spent >= self._thought.most_tokens:
            self._close()

    def _close(self) -> None:
        """Write the end mark, whatever the model would say."""
        assert self._thought is not None
        encode = self._vocabulary.encode
        mark = self._vocabulary.id_of(self._thought.end)
        marks = encode(self._thought.end, first=False) if mark is None else [mark]
        self._queue.extend([*encode("\n", first=False), *marks, *encode(_GAP, first=False)])
        self._phase = "answer"

    def _say(self, text: bytes) -> None:
        """Text where calls may open: what begins like the start mark of a thought is held back until that is certain."""
        if self._calls is None or self._matcher is not None:
            return
        if self._phase == "start":
            self._tail += text
            seen = self._tail.lstrip()
            if seen.startswith(self._start):
                self._tail = seen[len(self._start) :]
                self._enter()
                return
            if self._start.startswith(seen):
                return
            self._phase, text = "answer", self._tail
        self._watch(text)

    def _watch(self, text: bytes) -> None:
        """Text in which a call may open."""
        assert self._calls is not None
        found = self._calls.watch.look(text)
        if found is None:
            self._calls.watch.push(text)
            return
        self._call, self._matcher = found, self._calls.matcher(found)
        self._matcher.write(found.rest)
        self._leave_call()

    def _opens_well(self, text: bytes) -> bool:
        """Whether text opens no call, or one whose next letters may stand there."""
        assert self._calls is not None
        found = self._calls.watch.look(self._tail + text if self._phase == "start" else text)
        return found is None or not found.rest or self._calls.matcher(found).takes(found.rest)

    def _leave_call(self) -> None:
        """Where a call has ended: text may follow, or nothing."""
        if self._call is None or self._calls is None or self._matcher is None or not self._matcher.ended:
            return
        self._over = self._over or not self._calls.goes_on(self._call)
        self._call = self._matcher = None
        self._calls.watch.restart()

    def _bytes(self, token: int) -> bytes:
        """What a token adds to the text."""
        return b"" if self._calls is None or token in self._calls.hidden else self._vocabulary.token_bytes(token)


def constraint_of(request: Request, grammars: Grammars, vocabulary: Vocabulary) -> Constraint | None:
    """What holds for the answer to a request; None when everything is free.

    Raises:
        BadGrammar, BadSchema: the grammar cannot be compiled.
    """
    thought, grammar = request.thought, request.grammar
    if grammar is None and request.openings is None and (thought is None or thought.most_tokens is None):
        return None
    first = later = None
    if grammar is not None:
        opened, tried = thought is not None and thought.opened, grammar.kind == "calls"
        grammar = grammars.usable(grammar) if tried else grammar
        first = grammars.matcher(grammar, begins_text=not opened, is_part=tried)
        later = grammars.matcher(grammar, begins_text=False, is_part=tried) if thought is not None else None
    calls = calls_of(request, grammars, vocabulary)
    return Constraint(thought, first, later, vocabulary, request.stop_ids | vocabulary.end_ids, calls)


def calls_of(request: Request, grammars: Grammars, vocabulary: Vocabulary) -> Calls | None:
    """The calls that may open in the answer to a request.

    Raises:
        BadGrammar, BadSchema: they cannot be held to their schemas.
    """
    openings = request.openings
    if openings is None:
        return None
    openings = replace(openings, grammar=grammars.usable(openings.grammar))
    rests = [] if openings.beside else [openings.rest(one, "") for one in openings.form.openings if one.behind in ("section", "call")]
    for grammar in rests or [openings.grammar]:
        grammars.matcher(grammar, begins_text=False, is_part=True)

    def matcher(found: Found) -> Matcher:
        return grammars.matcher(openings.rest(found.opening, found.name), begins_text=False, is_part=True)

    hidden = frozenset(vocabulary.control_ids) - request.shown_ids
    return Calls(Watch(openings), lambda found: openings.goes_on(found.opening), matcher, hidden)


def _alone(logits_V: Logits, token: int) -> Logits:
    """Logits that leave one token."""
    kept_V = np.full(len(logits_V), -np.inf, np.float32)
    kept_V[token] = logits_V[token]
    return kept_V


def _without(logits_V: Logits, ids: NDArray[np.intp]) -> Logits:
    """Logits that leave all tokens but these."""
    kept_V = logits_V.copy()
    kept_V[ids[ids < len(kept_V)]] = -np.inf
    return kept_V
