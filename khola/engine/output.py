"""From tokens to text: whole graphemes, stop strings, and the reason why an answer ends.

A stop string may begin in one token and end in another. Text that may turn out to begin one is held back, and nothing else. The stop string
that is complete first ends the answer, so the text does not depend on how it was cut into tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from khola.engine.request import FinishReason, TokenInfo


class TextStream(Protocol):
    """Decodes ids one after another; see `khola.tokens`."""

    def push(self, token: int) -> str:
        """Text that became whole with this token; may be empty."""

    def finish(self) -> str:
        """What is left."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one token adds to an answer."""

    text: str = ""
    tokens: tuple[TokenInfo, ...] = ()
    reason: FinishReason | None = None
    """Why the answer ends here; None when it goes on."""


class StopFinder:
    """Lets text through up to the first stop string.

    Args:
        stops: strings that end a text and are not part of it; none is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._initials = frozenset(stop[0] for stop in stops)
        self.held = ""
        self.found = ""
        """The stop string that ended the text; empty while none has."""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is certain to belong to the answer, and whether a stop string has ended it."""
        if not self._stops:
            return text, False
        self.held += text
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := self.held.find(stop)) >= 0]
        _, cut, self.found = min(ends) if ends else (0, self._unsure(), "")
        safe, self.held = self.held[:cut], "" if ends else self.held[cut:]
        return safe, bool(ends)

    def finish(self) -> str:
        """What was held back, now that no stop string can follow."""
        rest, self.held = self.held, ""
        return rest

    def _unsure(self) -> int:
        """Where the longest ending that begins a stop string starts."""
        for at in range(max(0, len(self.held) - self._longest + 1), len(self.held)):
            if self.held[at] in self._initials and any(stop.startswith(self.held[at:]) for stop in self._stops):
                return at
        return len(self.held)


class Output:
    """The answer of one request as it grows.

    Args:
        stream: decodes this answer and no other.
        stops: strings that end the answer.
        stop_ids: tokens that end the answer.
        max_tokens: after so many tokens the answer ends, whatever it says.
    """

    def __init__(self, stream: TextStream, stops: Sequence[str], stop_ids: frozenset[int], max_tokens: int) -> None:
        self._stream = stream
        self._finder = StopFinder(stops)
        self._stop_ids = stop_ids
        self._left = max_tokens
        self._decoded = 0
        self._said = 0
        self._tokens: deque[tuple[int, TokenInfo]] = deque()

    @property
    def left(self) -> int:
        """Tokens that the answer may still have."""
        return self._left

    @property
    def stopped_by(self) -> str:
        """The stop string that ended the answer; empty where it ended otherwise, or goes on."""
        return self._finder.found

    def push(self, token: TokenInfo, *, last: bool = False) -> Said:
        """Take in the next token; behind the last one nothing can follow."""
        self._left -= 1
        if token.id in self._stop_ids:
            return self._end("stop")
        self._tokens.append((self._decoded, token))
        said, stopped = self._say(self._stream.push(token.id))
        if stopped:
            return Said(said, self._covered(), "stop")
        if self._left > 0 and not last:
            return Said(said, self._covered())
        rest = self._end("stop" if last else "length")
        return Said(said + rest.text, rest.tokens, rest.reason)

    def _end(self, reason: FinishReason) -> Said:
        """Let out what was held back; even now it may complete a stop string."""
        text, stopped = self._say(self._stream.finish())
        if stopped:
            return Said(text, self._covered(), "stop")
        text += self._finder.finish()
        tokens = tuple(token for _, token in self._tokens)
        self._tokens.clear()
        return Said(text, tokens, reason)

    def _say(self, text: str) -> tuple[str, bool]:
        """Pass decoded text through the stop strings and count both sides."""
        self._decoded += len(text)
        said, stopped = self._finder.push(text)
        self._said += len(said)
        return said, stopped

    def _covered(self) -> tuple[TokenInfo, ...]:
        """Tokens of which some text is out now."""
        covered = []
        while self._tokens and self._tokens[0][0] < self._said:
            covered.append(self._tokens.popleft()[1])
        return tuple(covered)
