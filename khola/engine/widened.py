"""Calls that are held as far as they can be: the part of a schema that cannot be compiled lets more through, and the rest stays.

Every step lets at least as much through as the one before, so no call that the schema allows is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from khola.engine.grammar import Grammar
from khola.engine.tagged import WHOLE, wider_schema

_PLAIN = {"type": "object"}
_PART = re.compile(r"(?:args|value)(\d+)(?:_(\d+))?")


def widened(grammar: Grammar, failures: Sequence[Mapping[str, Any]], share: float) -> Grammar | None:
    """A grammar of calls in which what failed lets more through; None where a part failed that may not.

    Args:
        grammar: of calls.
        failures: parts that failed, and the steps to the place in their schemas, as `grammar_worker` tells them; it may not know.
        share: of the tools, the largest first, that are given up when nothing is told, 0 to 1.
    """
    told = json.loads(grammar.source)
    if not all([_widen(told, one) for one in failures] or [_give_up(told, share)]):
        return None
    return replace(grammar, source=json.dumps(told, ensure_ascii=False))


def _widen(told: dict[str, Any], failure: Mapping[str, Any]) -> bool:
    """Widen one part of a schema, if it may be."""
    part = _PART.fullmatch(failure["part"])
    name = list(told["schemas"])[int(part[1])] if part else ""
    if part is None or name not in told["loose"]:
        return False
    schema = told["schemas"][name]
    if part[2] is not None:
        told["open"].setdefault(name, []).append(int(part[2]))
        return True
    around, found = None, schema
    for step in failure["steps"]:
        around, found = found, found[step]
    wider = wider_schema(found)
    if wider is None and schema == _PLAIN:
        return False
    if wider is None:
        told["schemas"][name] = _PLAIN
    elif around is None:
        told["schemas"][name] = wider
    else:
        around[failure["steps"][-1]] = wider
    return True


def _give_up(told: dict[str, Any], share: float) -> bool:
    """Let any arguments through for the largest of the tools."""
    left = [name for name in told["loose"] if told["schemas"][name] != _PLAIN and WHOLE not in told["open"].get(name, [])]
    left.sort(key=lambda name: len(json.dumps(told["schemas"][name])), reverse=True)
    for name in left[: ceil(len(left) * share)]:
        if told["form"]["tags"]:
            told["open"].setdefault(name, []).append(WHOLE)
        else:
            told["schemas"][name] = _PLAIN
    return bool(left)
