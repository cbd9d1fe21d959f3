"""ERNIE 4.5: `User: ` and `Assistant: ` on lines of their own, within one sentence; the system turn is a bare line.

"User: " is plain text, which a user can write too: only the ends of sentences are control tokens. There is no room for tools.
Source: the chat template in the lab's files (baidu/ERNIE-4.5-0.3B-PT).
"""

from __future__ import annotations

from khola.chat.message import Asked, Control, Part, Prompt
from khola.chat.parsing import AnswerParser
from khola.chat.turns import check_no_tools, check_thinking, check_turns, joined

NAME = "ernie4_5"
STOPS = ("</s>", "<|end_of_sentence|>")
BEGIN, END = Control("<|begin_of_sentence|>"), Control("<|end_of_sentence|>")


def render(asked: Asked) -> Prompt:
    """See `Format.render`."""
    check_turns(asked)
    check_no_tools(NAME, asked.messages, asked.tools)
    check_thinking(NAME, asked.thinking)
    parts: list[Part] = [BEGIN]
    for message in asked.messages:
        if message.role == "assistant":
            parts += [f"Assistant: {message.content}", END]
        else:
            parts.append(f"{'User: ' if message.role == 'user' else ''}{message.content}\n")
    return Prompt(parts=joined(parts[:-1] if asked.continue_last else [*parts, "Assistant: "]))


def parser(prompt: Prompt) -> AnswerParser:
    """See `Format.parser`."""
    return AnswerParser()
