"""How a chat format writes calls, so that a grammar can follow: what stands around name and arguments, and how a call opens."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Begins = Literal["section", "call", "name", "arguments"]


@dataclass(frozen=True, slots=True)
class Opening:
    """What in free text opens a call, so that all that follows belongs to it."""

    pattern: str
    """A regular expression. A group `name` holds the tool's, and `NAMES` stands for those that are offered."""
    behind: Begins
    """How far the call has come: behind the first mark of its section, behind its own first mark, its name, or all up to its arguments."""
    whole: bool = False
    """Only where the answer begins, and nothing comes after the call."""
    closes: bool = True
    """It is in a section: further calls and the end of that follow."""
    more: str = ""
    """What ends it then."""


NAMES = "NAMES"


def opens(mark: str, behind: Begins = "call") -> Opening:
    """A mark that opens a call, or a section of calls, anywhere."""
    return Opening(re.escape(mark), behind, closes=behind == "section")


@dataclass(frozen=True, slots=True)
class CallForm:
    """Marks and texts around a tool's name and its arguments."""

    before: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    key: str = ""
    """What a JSON object that holds both calls the arguments; empty where they stand by themselves, `between` apart."""
    section: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """What stands before and behind all calls of an answer."""
    gap: tuple[str, ...] | None = None
    """What stands between two calls; None where an answer has one."""
    counted: bool = False
    """`between` begins with a colon and the number of the first call, and later calls have later ones."""
    tags: tuple[str, str, str] | None = None
    """What stands before the name of an argument, behind it, and behind its value, where arguments are no JSON."""
    openings: tuple[Opening, ...] = ()


def expressions(form: CallForm, names: Sequence[str]) -> list[tuple[str, Opening]]:
    """The regular expressions of what opens a call of one of these tools."""
    letters = [json.dumps(name, ensure_ascii=False)[1:-1] if form.key else name for name in names]
    ways = "|".join(map(re.escape, sorted(letters, key=len, reverse=True)))
    return [(one.pattern.replace(NAMES, ways), one) for one in form.openings]
