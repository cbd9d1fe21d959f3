"""MiniMax-Text-01: `<beginning_of_sentence>`, role and name, a newline, text, `<end_of_sentence>`, a newline.

Tools stand behind all turns, where the lab's template has them. A call is a line of code in a fence, behind a mark; results come back
as the JSON of the function that they are from. A call in the history is text of the assistant's, for the template has no other place.
Source: the chat template and the examples in the lab's files (MiniMaxAI/MiniMax-Text-01, MiniMaxAI/MiniMax-VL-01, function call guide).
"""

from __future__ import annotations

import re

from khola.chat.call_form import NAMES, CallForm, Opening, opens
from khola.chat.message import Asked, Control, Part, Prompt, ToolCall
from khola.chat.parsing import AnswerParser
from khola.chat.tool_calls import CallGrammar, MarkedCalls, as_json, inside_string, named_call, tool_json
from khola.chat.turns import check_thinking, check_turns, imaged, joined

NAME = "minimax"
STOPS = ("<end_of_sentence>",)
_BEGIN, _END, _CALL = Control("<beginning_of_sentence>"), Control("<end_of_sentence>"), Control("<function_call>", plain=True)
_IMAGE = Control("<image>", plain=True)
_FENCE = "```typescript"
_HEADS = {"system": "system ai_setting=assistant", "user": "user name=user", "assistant": "ai name=assistant"}
_LINE = re.compile(r"\s*functions\.([^\s(]+)\((.*)\)\s*;?\s*", re.DOTALL)
OPENING: tuple[Part, ...] = (_BEGIN, f"{_HEADS['assistant']}\n")


def render(asked: Asked) -> Prompt:
    """See `Format.render`."""
    check_turns(asked, images=("system", "user", "assistant"))
    check_thinking(NAME, asked.thinking)
    parts: list[Part] = []
    called: list[str] = []
    for message in asked.messages:
        if message.role == "tool":
            name = message.name or (called.pop(0) if called else "")
            parts += _turn("system function_response=functions", f'{{"name": "{name}", "response": {message.content}}}')
            continue
        called += [call.name for call in message.tool_calls]
        calls = [
            part for call in message.tool_calls for part in (_CALL, f"{_FENCE}\nfunctions.{call.name}({as_json(call.arguments)})\n```")
        ]
        parts += _turn(_HEADS[message.role], *imaged(message.content, (_IMAGE,)), *calls)
    if asked.continue_last:
        return Prompt(parts=joined(parts[:-2]), opening=OPENING)
    for tool in asked.tools:
        parts += _turn("system function_setting=functions", tool_json(tool))
    return Prompt(parts=joined([*parts, *OPENING]), opening=OPENING, tool_names=tuple(tool.name for tool in asked.tools))


def parser(prompt: Prompt) -> AnswerParser:
    """See `Format.parser`. The mark of a call is not always part of the text, the fence is."""
    return AnswerParser(calls=MarkedCalls(_GRAMMAR) if prompt.tool_names else None)


def _turn(head: str, *body: Part) -> list[Part]:
    """One turn."""
    return [_BEGIN, f"{head}\n", *body, _END, "\n"]


def _read(body: str) -> tuple[ToolCall, ...]:
    """The calls of a fence, a line each."""
    calls: list[ToolCall] = []
    for line in re.split(r"\n(?=\s*functions\.)", body.strip()):
        found = _LINE.fullmatch(line)
        one = named_call(found[1], found[2] or "{}") if found else ()
        if not one:
            return ()
        calls += one
    return tuple(calls)


def _holds_end(body: str) -> bool:
    return inside_string(body[body.find("{") :])


_FORM = CallForm(
    ("functions.",),
    ("(",),
    (")",),
    section=((_CALL.token, f"{_FENCE}\n"), ("\n```",)),
    gap=("\n",),
    openings=(opens(_CALL.token, "section"), Opening(rf"{_FENCE}\nfunctions\.(?P<name>{NAMES})\(", "arguments")),
)
_GRAMMAR = CallGrammar(_FENCE, "```", _read, _holds_end, (_CALL.token,), _FORM)
