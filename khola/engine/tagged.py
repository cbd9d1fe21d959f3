"""Arguments in tags, whose values are bare text: rules in Lark's notation under which the text can be read as what a schema asks for.

A text ends at the first closing tag; what is no text is JSON. How values are read back: `khola.chat.xml_calls`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from khola.chat.xml_calls import kinds_of, referred
from khola.errors import BadSchema

_AROUND = frozenset(("type", "properties", "required", "additionalProperties", "$defs", "definitions"))
_TEXT = frozenset(("type", "minLength", "maxLength"))
_DEEPEST = 64
_LONGEST = 65_536
WHOLE = -1
"""Stands for all arguments of a tool, where places of schemas are told."""


def check_tagged(schemas: Mapping[str, dict[str, Any]], loose: Collection[str] = ()) -> None:
    """Refuse what cannot be said of bare text.

    Args:
        schemas: checked ones of arguments, by the name of their tool.
        loose: names of tools whose arguments are held as far as they can be; only their names can stand in the way.
    Raises:
        BadSchema: a name or a keyword stands in the way; the path begins with the tool's name.
    """
    for name, schema in schemas.items():
        Tagged(("<", ">", "</>"), schema, name, 0, () if name in loose else None).rules()


def wider_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The next wider schema than one that cannot be compiled: alternatives may overlap, then the pattern goes, then all but the type.

    None where it is that already.
    """
    if "oneOf" in schema and "anyOf" not in schema:
        return {"anyOf" if key == "oneOf" else key: value for key, value in schema.items()}
    if "pattern" in schema:
        return {key: value for key, value in schema.items() if key != "pattern"}
    plain = {"type": schema["type"]} if "type" in schema else {}
    return None if plain == schema else plain


class Tagged:
    """The rules of one tool's arguments.

    Args:
        tags: what stands before the name of an argument, behind it, and behind its value.
        schema: a checked one.
        path: the tool's name, for messages.
        number: of the tool, which sets its rules apart.
        opened: places of schemas that let more through, once for every time they are told; None refuses what cannot be held.
    """

    def __init__(
        self, tags: tuple[str, str, str], schema: dict[str, Any], path: str, number: int, opened: Collection[int] | None = None
    ) -> None:
        self._open = opened
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
        if {">", "\n"} & set(path):
            raise _refused(path)
        if odd := sorted(root.keys() - _AROUND):
            self._give_up(f"{path}.{odd[0]}")
            if "properties" not in root:
                return self._anything()
        if WHOLE in (self._open or ()):
            return self._anything()
        given, required = root.get("properties", {}), root.get("required", [])
        missing = [key for key in required if given.get(key, root.get("additionalProperties", True)) is False]
        odd = [key for key in (*given, *required) if not key or {">", "\n"} & set(key)]
        if missing or odd:
            self._give_up(f"{path}.required" if missing else f"{path}.properties.{odd[0]!r}")
            return self._anything()
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

    def _anything(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Rules for any arguments."""
        text = self._text("(?s:.*)")
        before, behind = (json.dumps(tag, ensure_ascii=False) for tag in (self._before, self._behind))
        return [f'args{self._number}: ({before} /[^>\\n]+/ {behind} {text} "\\n")*', *self._texts], []

    def _give_up(self, path: str) -> None:
        """Refuse what cannot be held, unless it may let more through."""
        if self._open is None:
            raise _refused(path)

    def _value(self, schema: Any, path: str, depth: int) -> list[str]:
        """Ways to write a value, its closing tag included."""
        if depth > _DEEPEST:
            self._give_up(path)
        if schema is True or schema == {} or depth > _DEEPEST:
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
            self._give_up(f"{path}.{(odd if kinds else sorted(schema))[0]}")
            kinds, schema = kinds or frozenset(("string",)), {key: schema[key] for key in sorted(_TEXT & schema.keys()) if kinds}
        ways = [self._bounded(schema, path)]
        if others := sorted(kinds - {"string"}):
            ways.append(f"{self._json({**schema, 'type': others})} {end}")
        return ways

    def _bounded(self, schema: dict[str, Any], path: str) -> str:
        """A text of so many letters. Those that must come are neither newlines nor begin a tag, so that none of them ends it."""
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if least > _LONGEST or (most or 0) > _LONGEST or (most is not None and most < least):
            self._give_up(f"{path}.minLength" if least else f"{path}.maxLength")
            least, most = 0, None
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
        for place in self._open or ():
            if place == len(self._values):
                schema = wider_schema(schema) or {}
        self._values.append({"name": name, "schema": {**schema, **self._shared}})
        return f"@{name}"


def _refused(path: str) -> BadSchema:
    return BadSchema(
        "{path}: arguments that are written in tags cannot be held to this", hint="leave it out, and check the call afterwards", path=path
    )
