"""Tools written into prompts, and calls read out of answers.

Most labs put calls between marks, which differ in what stands there (`CallGrammar`): a JSON object (Hermes, Qwen), a name and JSON
(DeepSeek, Kimi), a line of code (MiniMax), or tags (`xml_calls.py`). Others make a bare JSON object the whole answer (Llama 3.1 and later),
or a Python list of calls (Llama 3.2). What looks like a call and cannot be read as one stays text: nothing that the model wrote is lost.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from khola.chat.call_form import NAMES, CallForm, Opening, opens
from khola.chat.message import Control, Part, Tool, ToolCall
from khola.chat.thinking import held_back

START, END = "<tool_call>", "</tool_call>"
RESULT, RESULT_END = "<tool_response>", "</tool_response>"
_HERMES_HEAD = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_PYTHON_TAG = "<|python_tag|>"
_JSON_CALL = ('{"name":', '{"type":', '{"function":', '{"parameters":', '{"arguments":')
"""How a bare JSON call begins, once its spaces are taken out."""
_PYTHON_CALL = re.compile(r"\[\s*([A-Za-z_][\w.]*\s*(\(.*)?)?", re.DOTALL)
_JSON_NAME = r'"\s*:\s*"(?P<name>' + NAMES + ')"'
_JSON_OPENINGS = (
    Opening(r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"(?:name|function)' + _JSON_NAME, "name", whole=True),
    Opening(r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"function"\s*:\s*\{\s*"name' + _JSON_NAME, "name", whole=True, more="}"),
)
_LONGEST_PYTHON = 65_536
"""Characters; the Python parser needs many times the memory of its text."""


def tool_json(tool: Tool, indent: int | None = None) -> str:
    """A tool as the labs' templates print it: OpenAI's form, letters unescaped."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return as_json({"type": "function", "function": function}, indent)


def as_json(value: Any, indent: int | None = None) -> str:
    """A value as the labs' templates print it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def hermes_tools(tools: Sequence[Tool]) -> tuple[Part, ...]:
    """The end of a system turn that offers tools, in the words of Qwen2.5's template."""
    start, end = Control(START, plain=True), Control(END, plain=True)
    listed = "".join("\n" + tool_json(tool) for tool in tools)
    ask = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    example = '\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    return (_HERMES_HEAD + listed + ask, start, end, " XML tags:\n", start, example, end)


def hermes_call(call: ToolCall) -> tuple[Part, ...]:
    """A call in the history, in the words of Qwen2.5's template."""
    body = f'\n{{"name": "{call.name}", "arguments": {as_json(call.arguments)}}}\n'
    return ("\n", Control(START, plain=True), body, Control(END, plain=True))


class CallReader(Protocol):
    """Takes tool calls out of a stream of text."""

    @property
    def form(self) -> CallForm | None:
        """How a call that is read here is written; None where no grammar can require one."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Spellings of what may stand around calls and within them."""

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What became certain with the next piece: text, calls."""

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """What was held back when the stream ended: text, calls."""


@dataclass(frozen=True)
class CallGrammar:
    """How a lab writes calls between marks."""

    start: str
    end: str
    read: Callable[[str], tuple[ToolCall, ...]]
    """The calls of a body; none where it is something else."""
    holds_end: Callable[[str], bool]
    """Whether an end mark behind this much of a body is part of an argument."""
    around: tuple[str, ...] = ()
    """Marks of what calls or texts stand in; they say nothing themselves."""
    form: CallForm | None = None


class MarkedCalls:
    """Calls between marks, anywhere in the answer.

    Newlines around a call belong to it. A call whose end mark is missing when the answer ends counts if its body is whole.

    Args:
        grammar: the lab's marks.
        offered: whether there are tools; without any, nothing is a call, and only the marks around texts are taken out.
    """

    def __init__(self, grammar: CallGrammar | None = None, *, offered: bool = True) -> None:
        self._grammar = grammar or HERMES
        self.form = self._grammar.form if offered else None
        self._marks = (*((self._grammar.start,) if offered else ()), *self._grammar.around)
        form = self.form
        inner = (*form.before, *form.between, *form.after, *form.section[0], *form.section[1]) if form else ()
        self.marks = (*self._marks, *((self._grammar.end, *inner) if offered else ()))
        self._held = ""
        self._in_call = False
        self._looked = 0
        """Characters of a call's body in which no end mark begins."""
        self._after_call = False

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What became certain with the next piece: text, calls."""
        self._held += text
        answer = ""
        calls: list[ToolCall] = []
        while True:
            if self._in_call:
                found = self._body()
                if found is None:
                    return answer, tuple(calls)
                more, spelled = found
                answer += spelled
                calls += more
            else:
                text, marked = self._text()
                answer += text
                if not marked:
                    return answer, tuple(calls)

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """What was held back when the stream ended: text, calls."""
        rest, self._held = self._held, ""
        if not self._in_call:
            return rest if not self._after_call else rest.lstrip("\n"), ()
        calls = self._grammar.read(rest)
        return ("", calls) if calls else (self._grammar.start + rest, ())

    def _text(self) -> tuple[str, bool]:
        """Plain text up to the first mark, or up to what may begin one with the newlines before; whether there was a mark."""
        if self._after_call:
            self._held = self._held.lstrip("\n")
            self._after_call = not self._held
        place, mark = min(((at, mark) for mark in self._marks if (at := self._held.find(mark)) >= 0), default=(-1, ""))
        if mark:
            text = self._held[:place].rstrip("\n")
            self._held, self._in_call, self._looked = self._held[place + len(mark) :], mark == self._grammar.start, 0
            self._after_call = not self._in_call
            return text, True
        sure = self._held[: len(self._held) - max((held_back(self._held, mark) for mark in self._marks), default=0)].rstrip("\n")
        self._held = self._held[len(sure) :]
        return sure, False

    def _body(self) -> tuple[tuple[ToolCall, ...], str] | None:
        """Calls that have ended, or the text that they turned out to be; None while they go on."""
        start, end = self._grammar.start, self._grammar.end
        place = self._held.find(end, self._looked)
        while place >= 0:
            body = self._held[:place]
            calls = self._grammar.read(body)
            if calls or not self._grammar.holds_end(body):
                self._held, self._in_call, self._after_call = self._held[place + len(end) :], False, bool(calls)
                return calls, "" if calls else start + body + end
            place = self._held.find(end, place + 1)
        self._looked = max(0, len(self._held) - len(end) + 1)
        return None


class WholeAnswerCalls:
    """Calls that are the whole answer, as Llama 3.1 and 3.2 write them.

    Args:
        names: the tools that were offered; an object that names none of them is an answer in JSON, not a call.
        python: also read `[name(key=value), …]`.
    """

    form = CallForm(key="parameters", openings=(*_JSON_OPENINGS, Opening(r"\s*" + re.escape(_PYTHON_TAG), "call", whole=True)))
    marks = (_PYTHON_TAG,)

    def __init__(self, names: Sequence[str], *, python: bool = False) -> None:
        self._names = frozenset(names)
        self._python = python
        self._held = ""
        self._is_text = False

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What became certain with the next piece: text, calls."""
        self._held += text
        if not self._is_text and self._may_be_call():
            return "", ()
        self._is_text = True
        answer, self._held = self._held, ""
        return answer, ()

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """What was held back when the stream ended: text, calls."""
        rest, self._held = self._held, ""
        body = rest.strip().removeprefix(_PYTHON_TAG).strip()
        calls = _json_calls(body) or (_python_calls(body) if self._python else ())
        known = bool(calls) and all(call.name in self._names for call in calls)
        return ("", calls) if known else (rest, ())

    def _may_be_call(self) -> bool:
        """Whether what came so far can still become a call; looks at its first characters only."""
        seen = self._held[:4096].lstrip()
        if _PYTHON_TAG.startswith(seen) or seen.startswith(_PYTHON_TAG):
            return True
        if self._python and _PYTHON_CALL.fullmatch(seen):
            return True
        tight = "".join(seen.split())
        return any(start.startswith(tight) or tight.startswith(start) for start in _JSON_CALL)


def read_call(text: str) -> tuple[ToolCall, ...]:
    """One JSON call; none if the text is something else."""
    try:
        call = _call_of(json.loads(text))
    except (ValueError, RecursionError):
        return ()
    return (call,) if call else ()


def named_call(name: str, arguments: str, call_id: str = "") -> tuple[ToolCall, ...]:
    """One call whose arguments are JSON of their own; none if they are something else."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return ()
    return (ToolCall(name=name, arguments=found, id=call_id),) if name and isinstance(found, dict) else ()


def _call_of(found: Any) -> ToolCall | None:
    """A call from its JSON object, in any of the spellings that models use."""
    if isinstance(found, dict) and isinstance(found.get("function"), dict):
        found = found["function"]
    if not isinstance(found, dict):
        return None
    name, arguments = found.get("name", found.get("function")), found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name=name, arguments=arguments)


def _json_calls(text: str) -> tuple[ToolCall, ...]:
    """Bare JSON calls, several set apart by semicolons; empty if anything else stands there."""
    calls: list[ToolCall] = []
    read, at = json.JSONDecoder(), 0
    while at < len(text):
        try:
            found, at = read.raw_decode(text, at)
            call = _call_of(found)
        except (ValueError, RecursionError):
            return ()
        if call is None:
            return ()
        calls.append(call)
        while at < len(text) and text[at] in "; \n\r\t":
            at += 1
    return tuple(calls)


def _python_calls(text: str) -> tuple[ToolCall, ...]:
    """Calls written as a Python list, read without running anything; empty if anything else stands there."""
    if len(text) > _LONGEST_PYTHON:
        return ()
    try:
        tree = ast.parse(text, mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else []
        return tuple(_python_call(call) for call in calls)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return ()


def _python_call(call: ast.expr) -> ToolCall:
    """One call with literal keyword arguments.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("not a call with named arguments")
    arguments = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("arguments without a name")
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    return ToolCall(name=ast.unparse(call.func), arguments=json.loads(json.dumps(arguments)))


def inside_string(text: str) -> bool:
    """Whether JSON text ends within a string, so that a mark after it belongs to that string."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except RecursionError:
        return False
    return False


_HERMES_FORM = CallForm(before=(START, "\n"), after=("\n", END), key="arguments", gap=("\n",), openings=(opens(START),))
HERMES = CallGrammar(START, END, read_call, inside_string, form=_HERMES_FORM)
"""A JSON object between `<tool_call>` marks."""
