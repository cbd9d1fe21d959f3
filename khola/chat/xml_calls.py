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

from khola.chat.message import Control, Part, Tool, ToolCall
from khola.chat.tool_calls import END, START, CallGrammar, as_json

_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*)", re.DOTALL)
_KEY = re.compile(r"<parameter=([^>\n]+)>\n?")
_CLOSE = "</parameter>"
_NEXT = re.compile(r"\s*(?=<parameter=|\Z)")
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
    """Calls of these tools between `<tool_call>` marks; no grammar requires them."""
    return CallGrammar(START, END, partial(_read, {tool.name: tool for tool in tools}), _holds_end)


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
    properties = (tools[name].parameters if name in tools else {}).get("properties")
    kinds = properties if isinstance(properties, Mapping) else {}
    return (ToolCall(name=name, arguments={key: _value(text, kinds.get(key)) for key, text in texts.items()}),)


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


def _value(text: str, schema: Any) -> Any:
    """A value of the kind that its schema asks for; the text itself where it is a text, or no such kind."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    kinds = {kind} if isinstance(kind, str) else set(kind) if isinstance(kind, list) else set()
    if not kinds or ("string" in kinds and text.strip().lower() not in _WORDS):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _WORDS.get(text.strip().lower(), text)
    return found if _is(found, kinds) else text


def _is(value: Any, kinds: set[str]) -> bool:
    """Whether a value is of one of these kinds of JSON Schema."""
    own = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null"}[type(value)]
    return own in kinds or (own == "integer" and "number" in kinds)
