"""JSON Schemas before they become grammars: bounded, and every keyword either followed or refused by its path.

llguidance ignores keywords that it does not know, and reads options of its own out of a schema; neither reaches it from here.

Source   JSON Schema 2020-12, https://json-schema.org/draft/2020-12; llguidance `docs/json_schema.md` for what it follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from khola.errors import BadJson, BadSchema
from khola.store.strict_json import load_json

SCHEMA_BYTES = 256 << 10
SCHEMA_DEPTH = 64

FOLLOWED = frozenset((
    "type", "enum", "const", "$ref", "$defs", "definitions", "anyOf", "oneOf", "allOf",
    "properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties",
    "items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "format",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
))  # fmt: skip
ABOUT = frozenset((
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id",
))  # fmt: skip
"""Keywords that say something about values and hold them to nothing; they are left out of the grammar."""
FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
DIALECTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
)
OTHER_DIALECTS = (
    "http://json-schema.org/schema",
    "http://json-schema.org/draft-04/schema",
    "https://json-schema.org/draft-04/schema",
    "https://json-schema.org/draft-06/schema",
    "https://json-schema.org/draft-07/schema",
)
"""Older ones and other spellings, read for calls that are held as far as they can be."""
TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

_COUNTS = frozenset(("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength"))
_NUMBERS = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))
_LISTS = frozenset(("anyOf", "oneOf", "allOf", "prefixItems"))
_MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions"))
_ONE = frozenset(("items", "additionalProperties"))


def read_schema(schema: Mapping[str, Any] | str) -> dict[str, Any]:
    """A schema as plain JSON, bounded.

    Raises:
        BadSchema: it is too large or too deep, or no JSON object.
    """
    try:
        source = schema.encode() if isinstance(schema, str) else msgspec.json.encode(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadSchema("the schema is no JSON: {why}", why=str(error)) from None
    try:
        found = load_json(source, file="schema", max_bytes=SCHEMA_BYTES, max_depth=SCHEMA_DEPTH)
    except BadJson as error:
        raise BadSchema("the schema cannot be read: {why}", why=str(error)) from error
    if not isinstance(found, dict):
        raise BadSchema("the schema is {found}; expected an object", found=type(found).__name__)
    return found


def checked_schema(schema: dict[str, Any], path: str = "$", *, loose: bool = False) -> dict[str, Any]:
    """The schema with nothing left in it but what the answer is held to.

    Args:
        schema: bounded JSON.
        path: what its outermost object is called.
        loose: leave out what cannot be followed; what is left lets at least as much through. Mistakes are refused all the same.
    Raises:
        BadSchema: a keyword is unknown or cannot be followed, or its value is of the wrong type; the message has its path.
    """
    found = _checked(schema, path, loose)
    assert isinstance(found, dict)
    dialect = schema.get("$schema", DIALECTS[0])
    if not isinstance(dialect, str) or dialect.rstrip("#") not in DIALECTS:
        if loose and isinstance(dialect, str):
            return found if dialect.rstrip("#") in OTHER_DIALECTS else {"type": "object"}
        raise BadSchema("{path}.$schema is {found}; khola reads JSON Schema 2020-12", path=path, found=str(dialect)[:200])
    return found


def _checked(schema: Any, path: str, loose: bool) -> dict[str, Any] | bool:
    """One schema, and all within it."""
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise BadSchema("{path} is {found}; expected a schema", path=path, found=type(schema).__name__)
    return {key: kept for key, value in schema.items() for kept in _keyword(key, value, f"{path}.{key}", loose)}


def _keyword(key: str, value: Any, path: str, loose: bool) -> Iterator[Any]:
    """The value of a keyword if the answer is held to it."""
    if key in ABOUT or (key == "uniqueItems" and value is False) or (loose and _is_beyond(key, value)):
        return
    if key not in FOLLOWED:
        raise BadSchema(
            "{path}: khola cannot hold an answer to this keyword", hint="leave it out, and check the answer afterwards", path=path
        )
    if key in _MAPS:
        if not isinstance(value, dict):
            raise _wrong(path, value, "an object of schemas")
        yield {name: _checked(inner, f"{path}.{name}", loose) for name, inner in value.items()}
    elif key in _LISTS:
        if not isinstance(value, list) or not value:
            raise _wrong(path, value, "a list of at least one schema")
        yield [_checked(inner, f"{path}[{index}]", loose) for index, inner in enumerate(value)]
    elif key in _ONE:
        if isinstance(value, list):
            raise BadSchema("{path} is a list, as older drafts had it", hint="call it prefixItems", path=path)
        yield _checked(value, path, loose)
    else:
        _check_value(key, value, path)
        yield value


def _is_beyond(key: str, value: Any) -> bool:
    """Whether a keyword means something that no answer is held to: unknown ones, names of other formats and places, older drafts' forms."""
    if key in ("format", "$ref"):
        return isinstance(value, str) and (value not in FORMATS if key == "format" else not value.startswith("#"))
    older = (key == "items" and isinstance(value, list)) or (key in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(value, bool))
    return older or key not in FOLLOWED


def _check_value(key: str, value: Any, path: str) -> None:
    """A keyword whose value is no schema."""
    if key in _COUNTS and (type(value) is not int or value < 0):
        raise _wrong(path, value, "a whole number, 0 or more")
    if key in _NUMBERS and (type(value) not in (int, float) or (key == "multipleOf" and value <= 0)):
        raise _wrong(path, value, "a number above 0" if key == "multipleOf" else "a number")
    if key == "type":
        listed = value if isinstance(value, list) else [value]
        if not listed or not all(isinstance(kind, str) and kind in TYPES for kind in listed):
            raise _wrong(path, value, ", ".join(TYPES))
    elif key in ("required", "enum"):
        if not isinstance(value, list) or (key == "required" and not all(isinstance(name, str) for name in value)):
            raise _wrong(path, value, "a list of names" if key == "required" else "a list of values")
    elif key == "format":
        if value not in FORMATS:
            raise _wrong(path, value, ", ".join(FORMATS))
    elif key == "pattern" and not isinstance(value, str):
        raise _wrong(path, value, "a regular expression")
    elif key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
        raise _wrong(path, value, 'a place in this schema, such as "#/$defs/name"')


def _wrong(path: str, found: Any, expected: str) -> BadSchema:
    """A keyword with a value that it cannot have."""
    shown = msgspec.json.encode(found).decode("utf-8", "replace")[:80]
    return BadSchema("{path} is {found}; expected {expected}", path=path, found=shown, expected=expected)
