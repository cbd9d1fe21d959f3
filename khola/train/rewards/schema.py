"""JSON: whether an answer, or the block of JSON in it, is what a schema says.

Source   JSON Schema 2020-12, https://json-schema.org/draft/2020-12; the keywords are those that khola holds answers to.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import regex

from khola.engine.json_schema import checked_schema, read_schema
from khola.errors import BadRow, BadSchema
from khola.train.rewards.reward import Reward, Row

LONGEST, DEPTH, PATTERN_S = 1 << 20, 64, 0.2
_BLOCK = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_FORMS = {
    "date": r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])",
    "time": r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)",
    "duration": r"P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)",
    "email": r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)*",
    "hostname": r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*",
    "ipv4": r"((25[0-5]|2[0-4]\d|1?\d?\d)(\.(?!$)|$)){4}",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:[^\s]*",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}
_KINDS: dict[str, Callable[[Any], bool]] = {
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: (type(value) is int) or (type(value) is float and value.is_integer()),
    "null": lambda value: value is None,
    "number": lambda value: type(value) in (int, float),
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
}


@dataclass(frozen=True, kw_only=True)
class Schema:
    """How answers in JSON are judged."""

    schema: Mapping[str, Any] | None = None
    """The schema; without one every row has its own."""
    key: str = "schema"
    """Key of a row with its schema."""
    bare: bool = False
    """Whether the answer must be JSON and nothing else; else the last fenced block of JSON is taken where there is one."""
    valid: float = 1.0
    """Worth of an answer that follows the schema."""
    json: float = 0.0
    """Worth of JSON that does not."""
    other: float = 0.0
    """Worth of what is no JSON."""


def schema(config: Schema) -> Reward:
    """A reward for answers in JSON.

    Raises:
        BadSchema: the schema is wrong, or says something that khola does not follow.
    """
    fixed = None if config.schema is None else checked_schema(read_schema(config.schema))

    def reward(prompt: str, answer: str, row: Row) -> float:
        asked = fixed if fixed is not None else _of_row(row, config.key)
        text = answer.strip()
        if not config.bare and (blocks := _BLOCK.findall(text)):
            text = blocks[-1]
        try:
            value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once) if len(text) <= LONGEST else _no_constant("")
        except (ValueError, RecursionError):
            return config.other
        return config.valid if follows(value, asked, asked) else config.json

    return reward


def _of_row(row: Row, key: str) -> dict[str, Any]:
    found = row.get(key)
    if not isinstance(found, dict | str):
        raise BadRow("a reward reads a schema under {key} of a row, which has none", key=key)
    try:
        return checked_schema(read_schema(found))
    except BadSchema as error:
        raise BadRow("the schema under {key} of a row is wrong: {why}", key=key, why=str(error)) from error


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand in it once each."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def follows(value: Any, asked: Any, root: Mapping[str, Any], depth: int = 0) -> bool:
    """Whether a value is what a schema says.

    Args:
        value: any JSON.
        asked: a schema that `checked_schema` passed, or a part of it.
        root: the whole schema, in which `$ref` looks.
        depth: how deep this is; beyond 64 nothing follows.
    """
    if isinstance(asked, bool):
        return asked
    if depth > DEPTH:
        return False

    def inner(one: Any, part: Any) -> bool:
        return follows(one, part, root, depth + 1)

    return (
        _is_one_of(value, asked)
        and ("$ref" not in asked or inner(value, _place(root, asked["$ref"])))
        and all(inner(value, part) for part in asked.get("allOf", ()))
        and ("anyOf" not in asked or any(inner(value, part) for part in asked["anyOf"]))
        and ("oneOf" not in asked or sum(inner(value, part) for part in asked["oneOf"]) == 1)
        and (type(value) not in (int, float) or _number(value, asked))
        and (not isinstance(value, str) or _string(value, asked))
        and (not isinstance(value, list) or _array(value, asked, inner))
        and (not isinstance(value, dict) or _object(value, asked, inner))
    )


def _is_one_of(value: Any, asked: Mapping[str, Any]) -> bool:
    kinds = asked.get("type")
    named = [kinds] if isinstance(kinds, str) else kinds
    if named is not None and not any(_KINDS[kind](value) for kind in named):
        return False
    if "const" in asked and not alike(value, asked["const"]):
        return False
    return "enum" not in asked or any(alike(value, one) for one in asked["enum"])


def alike(one: Any, two: Any) -> bool:
    """Equality of JSON: 1 and 1.0 are the same, 1 and true are not."""
    if isinstance(one, bool) or isinstance(two, bool) or one is None or two is None:
        return one is two
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(alike, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(alike(value, two[key]) for key, value in one.items())
    return bool(one == two)


def _place(root: Mapping[str, Any], reference: str) -> Any:
    """The part of a schema that a reference names; what it does not find allows nothing."""
    found: Any = root
    for step in reference.lstrip("#").strip("/").split("/") if reference.lstrip("#").strip("/") else ():
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            return False
    return found


def _number(value: float, asked: Mapping[str, Any]) -> bool:
    if "multipleOf" in asked:
        ratio = value / asked["multipleOf"]
        if not math.isfinite(ratio) or abs(ratio - round(ratio)) > 1e-9 * max(1.0, abs(ratio)):
            return False
    return bool(
        asked.get("minimum", -math.inf) <= value <= asked.get("maximum", math.inf)
        and value > asked.get("exclusiveMinimum", -math.inf)
        and value < asked.get("exclusiveMaximum", math.inf)
    )


def _string(value: str, asked: Mapping[str, Any]) -> bool:
    return (
        asked.get("minLength", 0) <= len(value) <= asked.get("maxLength", math.inf)
        and ("pattern" not in asked or _matches(asked["pattern"], value))
        and ("format" not in asked or _has_form(asked["format"], value))
    )


def _matches(pattern: str, value: str) -> bool:
    """A pattern anywhere in a text; one that takes too long does not match."""
    try:
        return regex.search(pattern, value, timeout=PATTERN_S) is not None
    except (regex.error, TimeoutError):
        return False


def _has_form(form: str, value: str) -> bool:
    if form == "date-time":
        day, _, rest = value.upper().partition("T")
        return _has_form("date", day) and _has_form("time", rest)
    if form == "ipv6":
        import ipaddress

        try:
            return bool(ipaddress.IPv6Address(value))
        except ValueError:
            return False
    return re.fullmatch(_FORMS[form], value) is not None


def _array(value: list[Any], asked: Mapping[str, Any], inner: Callable[[Any, Any], bool]) -> bool:
    first = asked.get("prefixItems", [])
    return (
        asked.get("minItems", 0) <= len(value) <= asked.get("maxItems", math.inf)
        and all(inner(one, part) for one, part in zip(value, first, strict=False))
        and all(inner(one, asked.get("items", True)) for one in value[len(first) :])
    )


def _object(value: dict[str, Any], asked: Mapping[str, Any], inner: Callable[[Any, Any], bool]) -> bool:
    named, patterns = asked.get("properties", {}), asked.get("patternProperties", {})
    if not asked.get("minProperties", 0) <= len(value) <= asked.get("maxProperties", math.inf):
        return False
    if not all(name in value for name in asked.get("required", ())):
        return False
    for name, one in value.items():
        parts = [part for pattern, part in patterns.items() if _matches(pattern, name)]
        if name in named:
            parts.append(named[name])
        if not all(inner(one, part) for part in parts or [asked.get("additionalProperties", True)]):
            return False
    return True
