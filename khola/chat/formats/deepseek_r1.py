"""DeepSeek-R1-Distill (Qwen and Llama): `<｜User｜>` and `<｜Assistant｜>` without newlines; answers begin inside a thought.

There is no default system turn, and the lab advises against any; a given one stands bare before the first turn. Thoughts are left out of
the history. Calls and results in a history are written as the lab's template does it, its slips included (one call is never closed,
results of a second round begin with a newline); tools cannot be offered, for the template has no place for them.
Source: the chat template in the lab's files (deepseek-ai/DeepSeek-R1-Distill-Qwen-32B).
"""

from __future__ import annotations

from collections.abc import Sequence

from khola.chat.deepseek import ASSISTANT, BOS, EOS, STOPS, USER, mark
from khola.chat.message import Asked, Message, Part, Prompt
from khola.chat.parsing import AnswerParser
from khola.chat.thinking import OPENING, ThinkingSplitter, open_turn, without_thoughts
from khola.chat.tool_calls import as_json
from khola.chat.turns import check_bare_calls, check_thinking, check_turns, joined
from khola.errors import AskedWrong

NAME = "deepseek_r1"

__all__ = ["NAME", "STOPS", "parser", "render"]


def render(asked: Asked) -> Prompt:
    """See `Format.render`."""
    check_turns(asked)
    check_thinking(NAME, asked.thinking, "always")
    if asked.tools:
        raise AskedWrong("{name}: this model was not trained to call tools", hint="choose a model that calls tools", name=NAME)
    systems = [message.content for message in asked.messages if message.role == "system"]
    parts: list[Part] = [BOS, systems[-1] if systems else "", *_turns(asked.messages[:-1] if asked.continue_last else asked.messages)]
    answers_tools = asked.messages[-1].role == "tool"
    if answers_tools:
        parts.append(mark("outputs▁end"))
    last = asked.messages[-1]
    if asked.continue_last:
        parts += [ASSISTANT, *open_turn(last)]
    elif not answers_tools:
        parts += [ASSISTANT, *OPENING]
    opened = bool(last.thinking and not last.content) if asked.continue_last else not answers_tools
    return Prompt(parts=joined(parts), thinking_open=opened)


def parser(prompt: Prompt) -> AnswerParser:
    """See `Format.parser`."""
    return AnswerParser(thinking=ThinkingSplitter(opened=prompt.thinking_open))


def _turns(messages: Sequence[Message]) -> list[Part]:
    """All turns but the system's."""
    parts: list[Part] = []
    called = answered = after_tools = False
    for message in messages:
        if message.role == "user":
            parts += [USER, message.content]
            after_tools = False
        elif message.role == "tool":
            begin: list[Part] = ["\n"] if answered else [mark("outputs▁begin")]
            parts += [*begin, mark("output▁begin"), message.content, mark("output▁end")]
            answered = after_tools = True
        elif message.role == "assistant" and message.tool_calls:
            check_bare_calls(NAME, message)
            for call in message.tool_calls:
                body = f"{call.name}\n```json\n{as_json(call.arguments)}\n```"
                first: list[Part] = ["\n"] if called else [ASSISTANT, mark("calls▁begin")]
                parts += [*first, mark("call▁begin"), "function", mark("sep"), body, mark("call▁end")]
                parts += [mark("calls▁end"), EOS] if called else []
                called = True
            after_tools = False
        elif message.role == "assistant":
            if after_tools:
                parts += [mark("outputs▁end"), message.content, EOS]
            else:
                parts += [ASSISTANT, without_thoughts(message.content), EOS]
            after_tools = False
    return parts
