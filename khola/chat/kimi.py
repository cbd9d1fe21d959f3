"""Moonshot's turns: a mark of the role, its name, `<|im_middle|>`, text, `<|im_end|>`.

Calls stand in a section of their own; each has an id, `functions.NAME:INDEX`, which counts the calls of the whole conversation, and with
which its result begins. The ids of a caller are not written: the model was trained on these.

Source: the chat templates in the lab's files (moonshotai/Moonlight-16B-A3B-Instruct, moonshotai/Kimi-K2-Instruct) and the lab's
`docs/tool_call_guidance.md`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from khola.chat.call_form import CallForm, opens
from khola.chat.message import Asked, Control, Message, Part, Prompt, ToolCall
from khola.chat.parsing import AnswerParser
from khola.chat.tool_calls import CallGrammar, MarkedCalls, as_json, inside_string, named_call, tool_json
from khola.chat.turns import check_no_tools, check_thinking, check_turns, joined

STOPS = ("<|im_end|>", "[EOS]")
_MIDDLE, _END = Control("<|im_middle|>"), Control("<|im_end|>")
_MARKS = {"user": Control("<|im_user|>"), "assistant": Control("<|im_assistant|>")}
_SYSTEM = Control("<|im_system|>")
_CALLS, _CALLS_END = Control("<|tool_calls_section_begin|>"), Control("<|tool_calls_section_end|>")
_CALL, _ARGUMENTS, _CALL_END = Control("<|tool_call_begin|>"), Control("<|tool_call_argument_begin|>"), Control("<|tool_call_end|>")
_ID = re.compile(r"\s*(?:functions\.)?([^\s:]+)(?::\d+)?\s*")


def _read(body: str) -> tuple[ToolCall, ...]:
    """One call; some models leave out parts of the id."""
    told, _, arguments = body.partition(_ARGUMENTS.token)
    found = _ID.fullmatch(told)
    return named_call(found[1], arguments, told.strip()) if found else ()


def _holds_end(body: str) -> bool:
    return inside_string(body[body.find("{") :])


@dataclass(frozen=True, kw_only=True)
class Kimi:
    """One model's turns."""

    name: str
    system: str
    """Said where no system turn comes first."""
    behind: str = ""
    """What the template prints behind that."""
    tools: bool = False
    """Whether the model calls tools."""

    def render(self, asked: Asked) -> Prompt:
        """See `Format.render`."""
        check_turns(asked)
        check_thinking(self.name, asked.thinking)
        if not self.tools:
            check_no_tools(self.name, asked.messages, asked.tools)
        offered = f"[{', '.join(map(tool_json, asked.tools))}]"
        parts: list[Part] = [_SYSTEM, "tool_declare", _MIDDLE, offered, _END] if asked.tools else []
        if asked.messages[0].role != "system":
            parts += [_SYSTEM, "system", _MIDDLE, self.system, _END, self.behind]
        told, unanswered = 0, list[str]()
        for message in asked.messages:
            parts += self._begin(message)
            ids = [f"functions.{call.name}:{told + place}" for place, call in enumerate(message.tool_calls)]
            told, unanswered = told + len(ids), unanswered + ids
            if message.role == "tool":
                answered = unanswered.pop(0) if unanswered else f"functions.{message.name or 'unknown'}:{told}"
                parts.append(f"## Return of {answered}\n")
            parts += [message.content, *_calls(ids, message.tool_calls), _END]
        opening = (*self._begin(Message(role="assistant")),)
        whole = parts[:-1] if asked.continue_last else [*parts, *opening]
        return Prompt(parts=joined(whole), opening=opening, tool_names=tuple(tool.name for tool in asked.tools))

    def parser(self, prompt: Prompt) -> AnswerParser:
        """See `Format.parser`."""
        if not prompt.tool_names:
            return AnswerParser()
        told = sum(part == _CALL for part in prompt.parts)
        form = CallForm(
            (_CALL.token, "functions."),
            (f":{told}", _ARGUMENTS.token),
            (_CALL_END.token,),
            section=((_CALLS.token,), (_CALLS_END.token,)),
            gap=(),
            counted=True,
            openings=(opens(_CALLS.token, "section"), opens(_CALL.token)),
        )
        grammar = CallGrammar(_CALL.token, _CALL_END.token, _read, _holds_end, (_CALLS.token, _CALLS_END.token), form)
        return AnswerParser(calls=MarkedCalls(grammar))

    def _begin(self, message: Message) -> tuple[Part, ...]:
        """The head of a turn; a speaker with a name has it in the place of the role's."""
        named = message.name if self.tools else ""
        return (_MARKS.get(message.role, _SYSTEM), named or message.role, _MIDDLE)


def _calls(ids: Sequence[str], calls: Sequence[ToolCall]) -> list[Part]:
    """The section of calls at the end of a turn."""
    parts: list[Part] = []
    for told, call in zip(ids, calls, strict=True):
        parts += [_CALL, told, _ARGUMENTS, as_json(call.arguments), _CALL_END]
    return [_CALLS, *parts, _CALLS_END] if parts else []
