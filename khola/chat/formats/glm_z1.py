"""GLM-Z1 of April 2025: GLM-4-0414's turns without outer spaces and earlier thoughts; every answer begins inside a thought.

Tools stand in a system turn of their own, in Chinese words that name the model ChatGLM.
Source: the chat template in the lab's files (zai-org/GLM-Z1-9B-0414), as copied in public applications.
"""

from __future__ import annotations

from khola.chat.glm import ASSISTANT, BEGIN, STOPS, TOOLS, NamedCalls, offered, turn, turns_of
from khola.chat.message import Asked, Control, Part, Prompt
from khola.chat.parsing import AnswerParser
from khola.chat.thinking import START, ThinkingSplitter, without_thoughts
from khola.chat.turns import check_thinking, check_turns, joined

NAME = "glm_z1"
_HEAD = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n" + TOOLS
)

__all__ = ["NAME", "STOPS", "parser", "render"]


def render(asked: Asked) -> Prompt:
    """See `Format.render`."""
    check_turns(asked)
    check_thinking(NAME, asked.thinking, "always")
    parts: list[Part] = [*BEGIN, *offered(asked.tools, _HEAD, "\n")]
    for message in asked.messages:
        parts += turn("system", message.content) if message.role == "system" else ()
    for message in asked.messages[: len(asked.messages) - asked.continue_last]:
        for role, text, metadata in turns_of(message) if message.role != "system" else ():
            parts += turn(role, without_thoughts(text).strip(), metadata)
    last, opening = asked.messages[-1], (ASSISTANT, "\n", Control(START, plain=True))
    opened = not asked.continue_last or bool(last.thinking and not last.content)
    if not asked.continue_last:
        parts += opening
    elif last.thinking:
        parts += [*opening, "\n", last.thinking, *(() if opened else ("\n", Control("</think>", plain=True), "\n\n", last.content))]
    else:
        parts += turn("assistant", last.content)
    return Prompt(parts=joined(parts), thinking_open=opened, tool_names=tuple(tool.name for tool in asked.tools))


def parser(prompt: Prompt) -> AnswerParser:
    """See `Format.parser`."""
    return AnswerParser(thinking=ThinkingSplitter(opened=prompt.thinking_open), calls=NamedCalls(prompt.tool_names))
