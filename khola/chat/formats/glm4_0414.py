"""GLM-4-0414 of April 2025: `[gMASK]<sop>`, tools, all system turns, then the other turns.

Source: the chat template in the lab's files (zai-org/GLM-4-9B-0414).
"""

from __future__ import annotations

from khola.chat.glm import BEGIN, STOPS, TOOLS, offered, parser, prompt_of, turn, turns_of
from khola.chat.message import Asked, Part, Prompt
from khola.chat.turns import check_thinking, check_turns

NAME = "glm4_0414"

__all__ = ["NAME", "STOPS", "parser", "render"]


def render(asked: Asked) -> Prompt:
    """See `Format.render`."""
    check_turns(asked)
    check_thinking(NAME, asked.thinking)
    parts: list[Part] = [*BEGIN, *offered(asked.tools, f"{TOOLS}\n", "\n")]
    for message in sorted(asked.messages, key=lambda message: message.role != "system"):
        for role, text, metadata in turns_of(message):
            # The name of a tool has a space behind it here.
            parts += turn(role, text, metadata and f"{metadata} ")
    return prompt_of(parts, asked.tools, continue_last=asked.continue_last)
