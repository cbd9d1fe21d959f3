"""Llama 3 Instruct: `<|start_header_id|>`role`<|end_header_id|>`, a blank line, text without outer spaces, `<|eot_id|>`.

Source: the chat template in the lab's files (meta-llama/Meta-Llama-3-8B-Instruct); the lab's model card of Llama 3, prompt format.
"""

from __future__ import annotations

from khola.chat.headers import BOS, answer_begins, turn
from khola.chat.message import Asked, Part, Prompt
from khola.chat.parsing import AnswerParser
from khola.chat.turns import check_no_tools, check_thinking, check_turns, joined

NAME = "llama3"
STOPS = ("<|eot_id|>", "<|end_of_text|>")


def render(asked: Asked) -> Prompt:
    """See `Format.render`."""
    check_turns(asked)
    check_no_tools(NAME, asked.messages, asked.tools)
    check_thinking(NAME, asked.thinking)
    parts: list[Part] = [BOS]
    for message in asked.messages:
        parts += turn(message.role, message.content.strip())
    return Prompt(parts=joined(parts[:-1] if asked.continue_last else [*parts, *answer_begins()]), opening=answer_begins())


def parser(prompt: Prompt) -> AnswerParser:
    """See `Format.parser`."""
    return AnswerParser()
