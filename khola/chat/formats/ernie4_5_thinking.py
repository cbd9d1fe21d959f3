"""ERNIE-4.5-21B-A3B-Thinking: ChatML with blank lines, settings and tools in the system turn, answers between `<response>` marks.

Every answer begins inside a thought. Thoughts are left out of the history; calls and results are Hermes'.
Source: the template of this model in the lab's training library (PaddlePaddle/PaddleFormers, `datasets/template`); the whole text of the
one in the lab's files (baidu/ERNIE-4.5-21B-A3B-Thinking) was not at hand.
"""

from __future__ import annotations

from dataclasses import replace

from khola.chat.chatml import IM_END, IM_START
from khola.chat.message import Asked, Control, Part, Prompt
from khola.chat.parsing import AnswerParser
from khola.chat.thinking import OPENING, ThinkingSplitter, open_turn, without_thoughts
from khola.chat.tool_calls import HERMES, RESULT, RESULT_END, MarkedCalls, hermes_call, tool_json
from khola.chat.turns import check_thinking, check_turns, joined

NAME = "ernie4_5_thinking"
STOPS = ("<|im_end|>", "</s>")
_RESPONSE, _RESPONSE_END = Control("<response>", plain=True), Control("</response>", plain=True)
_RESULT, _RESULT_END = Control(RESULT, plain=True), Control(RESULT_END, plain=True)
_GRAMMAR = replace(HERMES, around=(_RESPONSE.token, _RESPONSE_END.token))


def render(asked: Asked) -> Prompt:
    """See `Format.render`."""
    check_turns(asked)
    check_thinking(NAME, asked.thinking, "always")
    system = "\n\n".join(message.content for message in asked.messages if message.role == "system")
    setting = f"<system_setting>\n{system}\n</system_setting>\n\n" if system else ""
    listed = f"\n\n<tool_list>\n[{', '.join(map(tool_json, asked.tools))}]\n</tool_list>" if asked.tools else ""
    parts: list[Part] = _turn("system", f"{setting}<global_setting>\nthink_mode=True\n</global_setting>{listed}")
    opened = True
    for index, message in enumerate(asked.messages):
        if message.role == "user":
            parts += _turn("user", message.content)
        elif message.role == "tool":
            parts += _turn("user", _RESULT, f"\n{message.content}\n", _RESULT_END)
        elif asked.continue_last and index == len(asked.messages) - 1:
            opened = bool(message.thinking and not message.content)
            parts += [IM_START, "assistant\n", *open_turn(message)]
        elif message.role == "assistant":
            content = without_thoughts(message.content).lstrip("\n")
            said: list[Part] = [] if message.tool_calls and not content else [_RESPONSE, f"\n{content}\n", _RESPONSE_END, "\n"]
            calls = [part for call in message.tool_calls for part in (*hermes_call(call), "\n")]
            parts += _turn("assistant", *said, *calls)
    whole = parts if asked.continue_last else [*parts, IM_START, "assistant\n", *OPENING]
    return Prompt(parts=joined(whole), thinking_open=opened, tool_names=tuple(tool.name for tool in asked.tools))


def parser(prompt: Prompt) -> AnswerParser:
    """See `Format.parser`."""
    return AnswerParser(
        thinking=ThinkingSplitter(opened=prompt.thinking_open), calls=MarkedCalls(_GRAMMAR, offered=bool(prompt.tool_names))
    )


def _turn(role: str, *body: Part) -> list[Part]:
    """One turn."""
    return [IM_START, f"{role}\n", *body, IM_END, "\n\n"]
