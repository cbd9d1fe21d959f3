"""Llama 2 Chat: `[INST]` user `[/INST]` assistant, each pair between `<s>` and `</s>`.

Turns alternate, the first and the last are the user's; the system turn stands between `<<SYS>>` marks within the first user turn. These
marks, like `[INST]`, are plain text that a user can write too: only `<s>` and `</s>` are control tokens.
Source: the chat template in the lab's files (meta-llama/Llama-2-7b-chat-hf); "Llama 2", arXiv:2307.09288, appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence

from khola.chat.conversation import role_order
from khola.chat.message import Asked, Control, Message, Part, Prompt
from khola.chat.parsing import AnswerParser
from khola.chat.turns import check_no_tools, check_thinking, check_turns, joined
from khola.errors import AskedWrong

NAME = "llama2"
STOPS = ("</s>",)
BOS, EOS = Control("<s>"), Control("</s>")


def render(asked: Asked) -> Prompt:
    """See `Format.render`."""
    check_turns(asked)
    check_no_tools(NAME, asked.messages, asked.tools)
    check_thinking(NAME, asked.thinking)
    system = f"<<SYS>>\n{asked.messages[0].content}\n<</SYS>>\n\n" if asked.messages[0].role == "system" else ""
    turns = asked.messages[1:] if system else asked.messages
    _check_alternation(asked.messages, turns, continue_last=asked.continue_last)
    parts: list[Part] = []
    for index, message in enumerate(turns):
        if message.role == "user":
            text = (system if index == 0 else "") + message.content
            parts += [BOS, f"[INST] {text.strip()} [/INST]"]
        else:
            parts += [f" {message.content.strip()} ", EOS]
    if asked.continue_last:
        parts[-2:] = [f" {turns[-1].content.strip()}"]
    return Prompt(parts=joined(parts))


def parser(prompt: Prompt) -> AnswerParser:
    """See `Format.parser`."""
    return AnswerParser()


def _check_alternation(messages: Sequence[Message], turns: Sequence[Message], *, continue_last: bool) -> None:
    """Turns must be user, assistant, user, … and end where an answer can begin."""
    alternate = all(message.role == ("user", "assistant")[index % 2] for index, message in enumerate(turns))
    if not alternate or len(turns) % 2 != (0 if continue_last else 1):
        raise AskedWrong(
            "{name}: after an optional system turn, user and assistant must alternate and the user speaks last; the roles are: {roles}",
            name=NAME,
            roles=role_order(messages),
        )
