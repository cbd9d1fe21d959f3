"""Arguments in tags, whose values are bare text: rules in Lark's notation under which the text can be read as what a schema asks for.

A text ends at the first closing tag; what is no text is JSON. How values are read back: `khola.chat.xml_calls`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from khola.chat.xml_calls import kinds_of, referred
from khola.errors import BadSchema

_AROUND = frozenset(("type", "properties", "required", "additionalProperties", "$defs", "definitions"))
_TEXT = frozenset(("type", "minLength", "maxLength"))
_DEEPEST = 64
_LONGEST = 65_536


def check_tagged(schemas: Mapping[str, dict[str, Any]]) -> None:
    """Refuse what cannot be said of bare text.

    Args:
        schemas: checked ones of arguments, by the name of their tool.
    Raises:
        BadSchema: a name or a keyword stands in the way; the path begins with the tool's name.
    """
    for name, schema in schemas.items():
        Tagged(("<", ">", "</>"), schema, name, 0).rules()


class Tagged:
    """The rules of one tool's arguments.

    Args:
        tags: what stands before the name of an argument, behind it, and behind its value.
        schema: a checked one.
        path: the tool's name, for messages.
        number: of the tool, which sets its rules apart.
    """

    def __init__(self, tags: tuple[str, str, str], schema: dict[str, Any], path: str, number: int) -> None:
        self._before, self._behind, self._close = tags
        self._root, self._path, self._number = schema, path, number
        self._shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        self._values: list[dict[str, Any]] = []
        self._texts: list[str] = []

    def rules(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Rules, the first of which is `args` and the number; and schemas that they name `value`, the number, `_` and their place.

        Raises:
            BadSchema: an argument cannot be held to its schema in tags.
        """
        root, path = self._root, self._path
        if odd := sorted(root.keys() - _AROUND):
            raise _refused(f"{path}.{odd[0]}")
        given, required = root.get("properties", {}), root.get("required", [])
        missing = [key for key in required if given.get(key, root.get("additionalProperties", True)) is False]
        odd = [key for key in (path, *given, *required) if not key or {">", "\n"} & set(key)]
        if missing or odd:
            raise _refused(f"{path}.required" if missing else f"{path}.properties.{odd[0]!r}")
        parts = []
        for key in dict.fromkeys((*given, *required)):
            schema = given.get(key, {})
            if schema is False:
                continue
            value = " | ".join(self._value(schema, f"{path}.properties.{key}", 0))
            whole = f'{json.dumps(f"{self._before}{key}{self._behind}", ensure_ascii=False)} ({value}) "\\n"'
            parts.append(whole if key in required else f"({whole})?")
        lines = [f"args{self._number}: {' '.join(parts)}" if parts else f'args{self._number}: ""', *self._texts]
        return lines, self._values

    def _value(self, schema: Any, path: str, depth: int) -> list[str]:
        """Ways to write a value, its closing tag included."""
        if depth > _DEEPEST:
            raise _refused(path)
        if schema is True or schema == {}:
            return [self._text("(?s:.*)")]
        assert isinstance(schema, dict)
        end = json.dumps(f"\n{self._close}", ensure_ascii=False)
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            told = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
            return [f"{json.dumps(one, ensure_ascii=False) + ' ' if one else ''}{end}" for one in told]
        kinds = kinds_of(schema, self._root)
        if kinds and "string" not in kinds:
            return [f"{self._json(schema)} {end}"]
        several = schema.get("anyOf") or schema.get("oneOf")
        if several is not None and len(schema) == 1:
            return [way for place, one in enumerate(several) for way in self._value(one, f"{path}[{place}]", depth + 1)]
        if schema.keys() == {"$ref"}:
            return self._value(referred(schema["$ref"], self._root) or {}, path, depth + 1)
        if schema.keys() == {"allOf"} and len(schema["allOf"]) == 1:
            return self._value(schema["allOf"][0], path, depth + 1)
        if not kinds or (odd := sorted(schema.keys() - _TEXT) if kinds == {"string"} else []):
            raise _refused(f"{path}.{(odd if kinds else sorted(schema))[0]}")
        ways = [self._bounded(schema, path)]
        if others := sorted(kinds - {"string"}):
            ways.append(f"{self._json({**schema, 'type': others})} {end}")
        return ways

    def _bounded(self, schema: dict[str, Any], path: str) -> str:
        """A text of so many letters. Those that must come are neither newlines nor begin a tag, so that none of them ends it."""
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if least > _LONGEST or (most or 0) > _LONGEST or (most is not None and most < least):
            raise _refused(f"{path}.minLength" if least else f"{path}.maxLength")
        first = f"[^<\\n]{{{least}}}" if least else ""
        return self._text(first + ("(?s:.*)" if most is None else f"(?s:.{{0,{most - least}}})"))

    def _text(self, pattern: str) -> str:
        """The name of a rule for a text up to its closing tag."""
        name = f"text{self._number}_{len(self._texts)}"
        self._texts.append(f"{name}[lazy]: /{pattern}\\n?{self._close.replace('/', chr(92) + '/')}/")
        return name

    def _json(self, schema: dict[str, Any]) -> str:
        """A value in JSON, by the name of its schema."""
        name = f"value{self._number}_{len(self._values)}"
        self._values.append({"name": name, "schema": {**schema, **self._shared}})
        return f"@{name}"


def _refused(path: str) -> BadSchema:
    return BadSchema(
        "{path}: arguments that are written in tags cannot be held to this", hint="leave it out, and check the call afterwards", path=path
    )
