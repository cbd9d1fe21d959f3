"""Qwen3's ChatML, in its three kinds: models that may think, that always do, and that never do.

Unlike earlier ChatML there is no default system turn, and thoughts stay in the history while the model works on one question: behind the
last turn that a user wrote, thoughts between calls and results are kept; before it they are cut.

Source: the chat templates in the lab's files (Qwen/Qwen3-0.6B, Qwen/Qwen3-4B-Instruct-2507, Qwen/Qwen3-4B-Thinking-2507).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from khola.chat.chatml import IM_END, IM_START, tool_turn
from khola.chat.message import Asked, Control, Message, Part, Prompt, Tool
from khola.chat.parsing import AnswerParser
from khola.chat.thinking import END, OPENING, START, ThinkingSplitter, without_thoughts
from khola.chat.tool_calls import RESULT, RESULT_END, MarkedCalls, hermes_call, hermes_tools
from khola.chat.turns import check_thinking, check_turns, joined

BEGIN: tuple[Part, ...] = (IM_START, "assistant\n")
CLOSING: tuple[Part, ...] = (Control(END, plain=True), "\n\n")


@dataclass(frozen=True, kw_only=True)
class Qwen3:
    """One kind of Qwen3."""

    name: str
    thinks: Literal["never", "always", "optional"]

    def render(self, asked: Asked) -> Prompt:
        """See `Format.render`. Where thoughts can be switched off, an empty one stands before the answer."""
        check_turns(asked)
        check_thinking(self.name, asked.thinking, self.thinks)
        parts = self._turns(asked.messages, asked.tools, asked.continue_last)
        opened = self.thinks == "always"
        if asked.continue_last:
            opened = self.thinks != "never" and bool(asked.messages[-1].thinking and not asked.messages[-1].content)
        else:
            parts += BEGIN
            if opened:
                parts += OPENING
            elif self.thinks == "optional" and asked.thinking is False:
                parts += [*OPENING, "\n", *CLOSING]
        opening = BEGIN if self.thinks == "never" else ()
        return Prompt(parts=joined(parts), thinking_open=opened, opening=opening, tool_names=tuple(tool.name for tool in asked.tools))

    def parser(self, prompt: Prompt) -> AnswerParser:
        """See `Format.parser`."""
        thinking = None if self.thinks == "never" else ThinkingSplitter(opened=prompt.thinking_open)
        return AnswerParser(thinking=thinking, calls=MarkedCalls() if prompt.tool_names else None)

    def _turns(self, messages: Sequence[Message], tools: Sequence[Tool], continue_last: bool) -> list[Part]:
        """A conversation without the beginning of the answer."""
        parts = _system_turn(messages[0], tools)
        question, end = last_question(messages), len(messages) - 1
        for index, message in enumerate(messages):
            if message.role == "tool":
                parts += tool_turn(messages, index)
            elif message.role == "assistant":
                recent = self.thinks != "never" and index > question
                turn = _assistant_turn(message, cuts=self.thinks != "never", recent=recent, last=index == end)
                parts += _left_open(turn, message, recent) if continue_last and index == end else turn
            elif index or message.role != "system":
                parts += [IM_START, f"{message.role}\n{message.content}", IM_END, "\n"]
        return parts


def last_question(messages: Sequence[Message]) -> int:
    """Index of the last turn that a user wrote; that of the last turn where there is none.

    A user's turn that is the result of a tool, written out with its marks, is none.
    """
    for index in range(len(messages) - 1, -1, -1):
        content = messages[index].content
        if messages[index].role == "user" and not (content.startswith(RESULT) and content.endswith(RESULT_END)):
            return index
    return len(messages) - 1


def _system_turn(first: Message, tools: Sequence[Tool]) -> list[Part]:
    """What stands before the first turn of a speaker: the given system turn, and the tools at its end."""
    given = first.role == "system"
    if not given and not tools:
        return []
    offered = hermes_tools(tools) if tools else ()
    if offered and not given:
        offered = (str(offered[0]).lstrip("\n"), *offered[1:])
    return [IM_START, f"system\n{first.content if given else ''}", *offered, IM_END, "\n"]


def _assistant_turn(message: Message, *, cuts: bool, recent: bool, last: bool) -> list[Part]:
    """An assistant's turn, its thought kept if it belongs to the question that is being worked on."""
    thought, content = message.thinking, message.content
    if cuts and not thought and END in content:
        thought, content = content.split(END)[0].rstrip("\n").split(START)[-1].lstrip("\n"), without_thoughts(content).lstrip("\n")
    parts: list[Part] = [*BEGIN]
    if recent and (last or thought):
        parts += [*OPENING, thought.strip("\n") + "\n", *CLOSING, content.lstrip("\n")]
    else:
        parts.append(content)
    for index, call in enumerate(message.tool_calls):
        written = hermes_call(call)
        parts += written if index or content else written[1:]
    return [*parts, IM_END, "\n"]


def _left_open(turn: Sequence[Part], message: Message, thinks: bool) -> list[Part]:
    """A turn that goes on; one that broke off within its thought goes on there."""
    if thinks and message.thinking and not message.content:
        return [*BEGIN, *OPENING, message.thinking]
    return list(turn[:-2])
