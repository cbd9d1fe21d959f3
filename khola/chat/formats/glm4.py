"""GLM-4-9B-Chat of June 2024: `[gMASK]<sop>`, then turns; one that says nothing is left out.

Tools stand in a system turn of their own, in Chinese words that name the model ChatGLM.
Source: the chat template in the lab's files (zai-org/glm-4-9b-chat-hf).
"""

from __future__ import annotations

from khola.chat.glm import BEGIN, STOPS, TOOLS, offered, parser, prompt_of, turn, turns_of
from khola.chat.message import Asked, Part, Prompt
from khola.chat.turns import check_thinking, check_turns

NAME = "glm4"
_HEAD = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n" + TOOLS
)

__all__ = ["NAME", "STOPS", "parser", "render"]


def render(asked: Asked) -> Prompt:
    """See `Format.render`."""
    check_turns(asked)
    check_thinking(NAME, asked.thinking)
    parts: list[Part] = [*BEGIN, *offered(asked.tools, _HEAD, "\n")]
    for index, message in enumerate(asked.messages):
        for role, text, metadata in turns_of(message):
            if text or (asked.continue_last and index == len(asked.messages) - 1):
                parts += turn(role, text, metadata)
    return prompt_of(parts, asked.tools, continue_last=asked.continue_last)
