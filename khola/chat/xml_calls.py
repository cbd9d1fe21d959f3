"""Calls in tags, as Qwen3-Coder and models from Qwen3.5 on write them.

A call is `<function=NAME>`, then `<parameter=KEY>`, a line for its value, `</parameter>`.

Values are bare text: what they are is told by the schema of the tool alone, so that "2" is a number where a number was asked for.

Source: the chat templates in the lab's files (Qwen/Qwen3-Coder-30B-A3B-Instruct, Qwen/Qwen3.5-4B, Qwen/Qwen3.6-27B).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from khola.chat.call_form import CallForm, opens
from khola.chat.message import Control, Part, Tool, ToolCall
from khola.chat.tool_calls import END, START, CallGrammar, as_json

_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*)", re.DOTALL)
_KEY = re.compile(r"<parameter=([^>\n]+)>\n?")
_CLOSE = "</parameter>"
_NEXT = re.compile(r"\s*(?=<parameter=|\Z)")
_FORM = CallForm(
    before=(START, "\n<function="),
    between=(">\n",),
    after=("</function>\n", END),
    gap=("\n",),
    tags=("<parameter=", ">\n", _CLOSE),
    openings=(opens(START),),
)
_DEEPEST = 64
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def xml_call(call: ToolCall, *, json_words: bool = False) -> tuple[Part, ...]:
    """A call in the history, its marks included.

    Args:
        json_words: write whatever is no text as JSON.
    """
    written = f"\n<function={call.name}>\n"
    for key, value in call.arguments.items():
        text = as_json(value) if json_words and not isinstance(value, str) else as_text(value)
        written += f"<parameter={key}>\n{text}\n</parameter>\n"
    return (Control(START, plain=True), f"{written}</function>\n", Control(END, plain=True))


def as_text(value: Any) -> str:
    """A value as most of the lab's templates print it: JSON for what has parts, the words of Python for the rest."""
    return as_json(value) if isinstance(value, Mapping | list | tuple) else str(value)


def xml_calls(tools: Sequence[Tool]) -> CallGrammar:
    """Calls of these tools between `<tool_call>` marks."""
    return CallGrammar(START, END, partial(_read, {tool.name: tool for tool in tools}), _holds_end, form=_FORM)


def _holds_end(body: str) -> bool:
    return "<function=" in body and not body.rstrip().endswith("</function>")


def _read(tools: Mapping[str, Tool], body: str) -> tuple[ToolCall, ...]:
    """The call of a body."""
    found = _FUNCTION.fullmatch(body.strip().removesuffix("</function>"))
    if found is None:
        return ()
    name, texts = found[1].strip(), _texts(found[2].strip())
    if texts is None:
        return ()
    root = tools[name].parameters if name in tools else {}
    properties = root.get("properties")
    known = properties if isinstance(properties, Mapping) else {}
    return (ToolCall(name=name, arguments={key: _value(text, known.get(key), root) for key, text in texts.items()}),)


def _texts(inner: str) -> dict[str, str] | None:
    """The values of parameters as they stand, without the newlines around them; None where something else stands there.

    A value may have the closing tag in it: its own is the one behind which the next parameter begins, or nothing more comes.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(inner):
        head = _KEY.match(inner, at)
        end = inner.find(_CLOSE, head.end()) if head else -1
        while end >= 0 and not _NEXT.match(inner, end + len(_CLOSE)):
            end = inner.find(_CLOSE, end + 1)
        behind = _NEXT.match(inner, end + len(_CLOSE))
        if head is None or end < 0 or behind is None:
            return None
        found[head[1]] = inner[head.end() : end].removesuffix("\n")
        at = behind.end()
    return found


def kinds_of(schema: Any, root: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    """The kinds of values that a schema lets through, as far as that is plain to see; none where anything may come.

    Args:
        schema: of an argument.
        root: what its references lead through.
    """
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return frozenset()
    kind = schema.get("type")
    if isinstance(kind, str | list):
        return frozenset([kind] if isinstance(kind, str) else kind)
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return frozenset(_kind(value) for value in values)
    if "$ref" in schema:
        return kinds_of(referred(schema["$ref"], root), root, depth + 1)
    for several in ("anyOf", "oneOf"):
        if isinstance(schema.get(several), list):
            ways = [kinds_of(one, root, depth + 1) for one in schema[several]]
            return frozenset[str]().union(*ways) if all(ways) else frozenset()
    if isinstance(schema.get("allOf"), list):
        return next((found for one in schema["allOf"] if (found := kinds_of(one, root, depth + 1))), frozenset())
    parts = {"properties": "object", "additionalProperties": "object", "items": "array", "prefixItems": "array"}
    return frozenset(kind for key, kind in parts.items() if key in schema)


def referred(reference: Any, root: Mapping[str, Any]) -> Any:
    """What a reference within a schema leads to; None where it leads nowhere."""
    found: Any = root
    for part in str(reference).removeprefix("#").strip("/").split("/") if str(reference).startswith("#/") else ():
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _listed(schema: Any, root: Mapping[str, Any], depth: int = 0) -> list[Any]:
    """The values that a schema lists one by one."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return []
    if "const" in schema:
        return [schema["const"]]
    if isinstance(schema.get("enum"), list):
        return list(schema["enum"])
    inner = [referred(schema["$ref"], root)] if "$ref" in schema else schema.get("anyOf", schema.get("oneOf"))
    return [value for one in inner for value in _listed(one, root, depth + 1)] if isinstance(inner, list) else []


def _value(text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """A value that is listed, or of one of the kinds that are asked for; the text itself where it is a text, or no such kind."""
    for value in _listed(schema, root):
        if text == (value if isinstance(value, str) else as_json(value)):
            return value
    kinds = kinds_of(schema, root)
    if not kinds or ("string" in kinds and text.strip().lower() not in _WORDS):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _WORDS.get(text.strip().lower(), text)
    return found if _is(found, kinds) else text


def _kind(value: Any) -> str:
    """What JSON Schema calls the kind of a value."""
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    return kinds[type(value)]


def _is(value: Any, kinds: frozenset[str]) -> bool:
    """Whether a value is of one of these kinds of JSON Schema."""
    own = _kind(value)
    return own in kinds or (own == "integer" and "number" in kinds)
