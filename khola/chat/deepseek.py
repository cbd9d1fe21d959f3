"""DeepSeek's turns of 2025: `<｜User｜>` and `<｜Assistant｜>` without newlines, in two generations; R1-Distill's are older.

V3-0324 and R1-0528 write `<｜Assistant｜>` behind every user's turn, and calls as a name and fenced JSON. V3.1 writes it before the answer,
with the mark that ends a thought, empty where none was asked for, and calls as a name and JSON. No template has a place for tools; they
stand in the system turn, in the words of the model's card (V3.1's own; V2.5's, to which that of V3-0324 points).

Source: the chat templates in the lab's files (deepseek-ai/DeepSeek-V3-0324, DeepSeek-R1-0528, DeepSeek-V3.1); for tools the cards of
DeepSeek-V2.5 and DeepSeek-V3.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from khola.chat.call_form import CallForm, opens
from khola.chat.message import Asked, Control, Message, Part, Prompt, Tool, ToolCall
from khola.chat.parsing import AnswerParser
from khola.chat.thinking import END, START, ThinkingSplitter, open_turn, without_thoughts
from khola.chat.tool_calls import CallGrammar, MarkedCalls, as_json, inside_string, named_call
from khola.chat.turns import check_thinking, check_turns, joined
from khola.errors import AskedWrong

STOPS = ("<｜end▁of▁sentence｜>",)
BOS, EOS = Control("<｜begin▁of▁sentence｜>"), Control("<｜end▁of▁sentence｜>")
USER, ASSISTANT = Control("<｜User｜>"), Control("<｜Assistant｜>")
_THINK, _THOUGHT = Control(START, plain=True), Control(END, plain=True)


def mark(name: str) -> Control:
    """A mark of tool calls; distilled vocabularies have none of them, so they are text there."""
    return Control(f"<｜tool▁{name}｜>", plain=True)


_CALLS, _CALLS_END, _CALL, _CALL_END = mark("calls▁begin"), mark("calls▁end"), mark("call▁begin"), mark("call▁end")
_SEP, _OUTPUT, _OUTPUT_END = mark("sep"), mark("output▁begin"), mark("output▁end")
_FENCED = re.compile(r"function" + _SEP.token + r"(\S[^\n]*)\n```(?:json)?\n(.*)\n```\s*", re.DOTALL)


def _fenced(body: str) -> tuple[ToolCall, ...]:
    found = _FENCED.fullmatch(body)
    return named_call(found[1].strip(), found[2]) if found else ()


def _bare(body: str) -> tuple[ToolCall, ...]:
    name, _, arguments = body.partition(_SEP.token)
    return named_call(name.strip(), arguments)


def _holds_end(body: str) -> bool:
    return inside_string(body[body.find("{") :])


def _grammar(fenced: bool) -> CallGrammar:
    """Calls of one generation."""
    before = (_CALL.token, *(("function", _SEP.token) if fenced else ()))
    between, close = (("\n```json\n",), ("\n```",)) if fenced else ((_SEP.token,), ())
    form = CallForm(
        before,
        between,
        (*close, _CALL_END.token),
        section=((_CALLS.token,), (_CALLS_END.token,)),
        gap=("\n",) if fenced else (),
        openings=(opens(_CALLS.token, "section"), opens(_CALL.token)),
    )
    return CallGrammar(_CALL.token, _CALL_END.token, _fenced if fenced else _bare, _holds_end, (_CALLS.token, _CALLS_END.token), form)


def _call(call: ToolCall, fenced: bool) -> tuple[Part, ...]:
    """A call in the history."""
    if fenced:
        return (_CALL, "function", _SEP, f"{call.name}\n```json\n{as_json(call.arguments)}\n```", _CALL_END)
    return (_CALL, call.name, _SEP, as_json(call.arguments), _CALL_END)


def _tools_of_v2_5(tools: Sequence[Tool]) -> list[Part]:
    """The end of a system turn that offers tools, in the words of V2.5's card."""
    listed = []
    for tool in tools:
        function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        listed.append(f"- `{tool.name}`:\n```json\n{as_json(function, 4)}\n```")
    return ["\n\n## Tools\n\n### Function\n\nYou have the following functions available:\n\n" + "\n".join(listed)]


def _tools_of_v3_1(tools: Sequence[Tool]) -> list[Part]:
    """The same, in the words of V3.1's card."""
    listed = "".join(f"### {t.name}\nDescription: {t.description}\n\nParameters: {as_json(t.parameters)}\n\n" for t in tools)
    return [
        f"\n\n## Tools\nYou have access to the following tools:\n\n{listed}IMPORTANT: ALWAYS adhere to this exact format for tool use:\n",
        *(_CALLS, _CALL, "tool_call_name", _SEP, "tool_call_arguments", _CALL_END, "{additional_tool_calls}", _CALLS_END),
        "\n\nWhere:\n- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
        "- For multiple tool calls, chain them directly without separators or spaces",
    ]


@dataclass(frozen=True, kw_only=True)
class DeepSeek:
    """One model's turns."""

    name: str
    thinks: Literal["never", "always", "optional"]
    """Always: the answer begins with a thought by itself, without being told."""

    def render(self, asked: Asked) -> Prompt:
        """See `Format.render`."""
        check_turns(asked)
        check_thinking(self.name, asked.thinking, self.thinks)
        if self.thinks == "optional" and asked.thinking and asked.tools:
            raise AskedWrong("{name}: this model calls tools only when it does not think", hint="switch thinking off", name=self.name)
        system = "\n\n".join(message.content for message in asked.messages if message.role == "system")
        turns = self._switched if self.thinks == "optional" else self._early
        parts, opened = turns(asked.messages, bool(asked.thinking), asked.continue_last)
        offered = (_tools_of_v3_1(asked.tools) if self.thinks == "optional" else _tools_of_v2_5(asked.tools)) if asked.tools else []
        return Prompt(
            parts=joined([BOS, system, *offered, *parts]), thinking_open=opened, tool_names=tuple(tool.name for tool in asked.tools)
        )

    def parser(self, prompt: Prompt) -> AnswerParser:
        """See `Format.parser`."""
        thinking = None if self.thinks == "never" else ThinkingSplitter(opened=prompt.thinking_open)
        calls = MarkedCalls(_grammar(fenced=self.thinks != "optional")) if prompt.tool_names else None
        return AnswerParser(thinking=thinking, calls=calls)

    def _early(self, messages: Sequence[Message], _: bool, continue_last: bool) -> tuple[list[Part], bool]:
        """Turns of V3-0324 and R1-0528, and whether they end inside a thought."""
        parts: list[Part] = []
        answers = asked = False  # results were the last turn, a user's was
        first = True  # of the results behind a call
        for index, message in enumerate(messages):
            if message.role == "user":
                parts += [USER, message.content, ASSISTANT]
                answers, asked = False, True
            elif message.role == "tool":
                parts += [mark("outputs▁begin") if first else "\n", _OUTPUT, message.content, _OUTPUT_END]
                answers, asked, first = True, False, False
            elif message.role == "assistant":
                content = without_thoughts(message.content) if self.thinks == "always" else message.content
                closing = [mark("outputs▁end")] if answers else []
                answers = asked = False
                if continue_last and index == len(messages) - 1:
                    goes_on = self.thinks == "always"
                    told = open_turn(message) if goes_on else (message.content,)
                    return [*parts, *closing, *told], goes_on and bool(message.thinking and not message.content)
                if message.tool_calls:
                    first = True
                    parts += [*closing, content, _CALLS]
                    for place, call in enumerate(message.tool_calls):
                        parts += ["\n" if place else "", *_call(call, True)]
                    parts += [_CALLS_END, EOS]
                else:
                    parts += [*closing, content, EOS]
        if answers:
            return [*parts, mark("outputs▁end")], False
        return [*parts, *(() if asked else (ASSISTANT,))], False

    def _switched(self, messages: Sequence[Message], thinking: bool, continue_last: bool) -> tuple[list[Part], bool]:
        """Turns of V3.1, and whether they end inside a thought; behind results the model just goes on."""
        parts: list[Part] = []
        answers = asked = False
        for index, message in enumerate(messages):
            if message.role == "user":
                parts += [USER, message.content]
                answers, asked = False, True
            elif message.role == "tool":
                parts += [_OUTPUT, message.content, _OUTPUT_END]
                answers, asked = True, False
            elif message.role == "assistant":
                begin: list[Part] = [ASSISTANT] if asked else []
                if continue_last and index == len(messages) - 1:
                    inside = bool(asked and message.thinking and not message.content)
                    thought = (_THINK, message.thinking) if asked and message.thinking else ()
                    end = () if inside or not asked else (_THOUGHT,)
                    return [*parts, *begin, *thought, *end, message.content], inside
                calls = [part for call in message.tool_calls for part in _call(call, False)]
                keeps = calls or answers or END not in message.content
                content = message.content if keeps else message.content.split(END, 1)[1]
                parts += [*begin, *([_THOUGHT] if asked else []), content, *([_CALLS, *calls, _CALLS_END] if calls else []), EOS]
                answers = asked = False
        return [*parts, *([ASSISTANT, _THINK if thinking else _THOUGHT] if asked else [])], asked and thinking
