"""Where a call begins in an answer that is free otherwise.

A model that may call tools says what it likes until it opens a call in the words of its chat format; from there on a grammar holds it.

```
text ── opening ──> the rest of the call, under a grammar ──> text again, or the end
```

Text alone decides, as it does for those who read the answer, however it is cut into tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from khola.chat.call_form import CallForm, Opening, expressions
from khola.engine.grammar import Grammar

_BEGINNING = 4096
"""Bytes of an answer in which what begins it may turn out to be a call."""


@dataclass(frozen=True)
class Openings:
    """What opens a call, and what holds then."""

    form: CallForm
    names: tuple[str, ...]
    """Of the tools."""
    grammar: Grammar
    """Whole calls."""
    many: bool = True
    """Text and further calls may follow a call, where the format has room for them."""

    beside: bool = False
    """The grammar holds from the beginning, for calls and text."""

    @cached_property
    def patterns(self) -> tuple[tuple[re.Pattern[bytes], Opening], ...]:
        """Expressions for the bytes of an answer."""
        # Where the text has a form of its own, a mark may stand in it; only what begins as a call is one.
        found = [(pattern, one) for pattern, one in expressions(self.form, self.names) if one.whole or not self.beside]
        return tuple((re.compile(pattern.encode()), one) for pattern, one in found)

    def goes_on(self, opening: Opening) -> bool:
        """Whether anything may come behind the call of an opening."""
        return self.many and not opening.whole

    def rest(self, opening: Opening, name: str) -> Grammar:
        """What follows an opening."""
        opened = {"behind": opening.behind, "name": name, "closes": opening.closes, "more": opening.more}
        return replace(self.grammar, source=json.dumps({**json.loads(self.grammar.source), "opened": opened}, ensure_ascii=False))


@dataclass(frozen=True, slots=True)
class Found:
    """An opening in the text of an answer."""

    opening: Opening
    name: str
    """The tool's, where the opening says it."""
    rest: bytes
    """What was written behind it already."""


class Watch:
    """Looks for openings in one answer.

    Args:
        openings: of the request.
    """

    def __init__(self, openings: Openings) -> None:
        self._openings = openings
        self._whole = [(pattern, one) for pattern, one in openings.patterns if one.whole]
        self._anywhere = [(pattern, one) for pattern, one in openings.patterns if not one.whole]
        self._reach = max((len(pattern.pattern) for pattern, _ in self._anywhere), default=0)
        self.behind_thought = False
        """Newlines that begin the answer set it off from a thought, and are no part of it."""
        self._text = b""
        self._first = bool(self._whole)

    def look(self, more: bytes) -> Found | None:
        """The opening that the next bytes would complete."""
        text = self._text + more
        if self._first and self.behind_thought:
            text = text.lstrip(b"\n")
        found = self._find(self._anywhere, text)
        if found is None and self._first:
            found = next(((match, one) for pattern, one in self._whole if (match := pattern.match(text))), None)
        if found is None:
            return None
        match, opening = found
        name = match["name"] if "name" in match.re.groupindex else b""
        return Found(opening, self._name(name), text[match.end() :])

    def push(self, more: bytes) -> None:
        """Take the next bytes, which complete nothing."""
        self._text += more
        self._first = self._first and len(self._text) < _BEGINNING
        if not self._first:
            self._text = self._text[-self._reach :] if self._reach else b""

    def restart(self) -> None:
        """A call has ended, and text follows it."""
        self._text, self._first = b"", False

    def _find(self, among: Sequence[tuple[re.Pattern[bytes], Opening]], text: bytes) -> tuple[re.Match[bytes], Opening] | None:
        """The first opening in a text."""
        matches = [(match, one) for pattern, one in among if (match := pattern.search(text))]
        return min(matches, key=lambda found: found[0].start(), default=None)

    def _name(self, spelled: bytes) -> str:
        return str(json.loads(b'"' + spelled + b'"')) if self._openings.form.key else spelled.decode()
