"""ChatML, which many labs share: `<|im_start|>`role, a newline, text, `<|im_end|>`, a newline.

Source: the ChatML description of OpenAI's openai-python repository (`chatml.md`); tools as in Qwen2.5's template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from khola.chat.message import Asked, Control, Message, Part, Prompt, Tool
from khola.chat.parsing import AnswerParser
from khola.chat.thinking import OPENING, ThinkingSplitter, open_turn, without_thoughts
from khola.chat.tool_calls import RESULT, RESULT_END, MarkedCalls, hermes_call, hermes_tools
from khola.chat.turns import check_no_tools, check_thinking, check_turns, joined

IM_START, IM_END = Control("<|im_start|>"), Control("<|im_end|>")
STOPS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True, kw_only=True)
class ChatML:
    """One lab's ChatML."""

    name: str
    system: str | None = None
    """Said where no system turn comes first; None is no system turn."""
    tools: bool = False
    """Whether the model calls tools, in Hermes' words."""
    thinks: bool = False
    """Whether every answer begins inside a thought, and the history goes without."""

    def render(self, asked: Asked) -> Prompt:
        """See `Format.render`."""
        check_turns(asked)
        check_thinking(self.name, asked.thinking, "always" if self.thinks else "never")
        if not self.tools:
            check_no_tools(self.name, asked.messages, asked.tools)
        parts = chatml_turns(
            asked.messages, default_system=self.system, tools=asked.tools, drop_thoughts=self.thinks, continue_last=asked.continue_last
        )
        opened = self.thinks
        if asked.continue_last:
            opened = self.thinks and bool(asked.messages[-1].thinking and not asked.messages[-1].content)
        else:
            parts += [IM_START, "assistant\n", *(OPENING if self.thinks else ())]
        opening = () if self.thinks else (IM_START, "assistant\n")
        return Prompt(parts=joined(parts), thinking_open=opened, opening=opening, tool_names=tuple(tool.name for tool in asked.tools))

    def parser(self, prompt: Prompt) -> AnswerParser:
        """See `Format.parser`."""
        thinking = ThinkingSplitter(opened=prompt.thinking_open) if self.thinks else None
        return AnswerParser(thinking=thinking, calls=MarkedCalls() if prompt.tool_names else None)


def chatml_turns(
    messages: Sequence[Message],
    *,
    default_system: str | None,
    tools: Sequence[Tool] = (),
    drop_thoughts: bool = False,
    continue_last: bool = False,
) -> list[Part]:
    """A conversation in ChatML, without the beginning of the answer.

    Args:
        messages: at least one turn.
        default_system: said where no system turn comes first; None is no system turn.
        tools: offered at the end of the first system turn, in Hermes' words.
        drop_thoughts: cut thoughts out of the contents of all turns but the last, as QwQ's template does; the last keeps its own if it
            goes on.
        continue_last: leave the last turn open.
    """
    given = messages[0].role == "system"
    system = messages[0].content if given else default_system
    parts: list[Part] = []
    if tools or system is not None:
        parts += [IM_START, f"system\n{system or ''}", *(hermes_tools(tools) if tools else ()), IM_END, "\n"]
    for index in range(1 if given else 0, len(messages)):
        message, last = messages[index], index == len(messages) - 1
        if message.role == "tool":
            parts += tool_turn(messages, index)
        elif message.role == "assistant":
            parts += [
                IM_START,
                *_assistant_turn(message, thinks=drop_thoughts, cut=drop_thoughts and not last, goes_on=continue_last and last),
            ]
        else:
            parts += [IM_START, f"{message.role}\n{message.content}", IM_END, "\n"]
    return parts


def _assistant_turn(message: Message, *, thinks: bool, cut: bool, goes_on: bool) -> list[Part]:
    """An assistant's turn behind its start mark."""
    content = without_thoughts(message.content).lstrip("\n") if cut else message.content
    if goes_on:
        return ["assistant\n", *(open_turn(message) if thinks else (content,))]
    if not message.tool_calls:
        return [f"assistant\n{content}", IM_END, "\n"]
    calls = [part for call in message.tool_calls for part in hermes_call(call)]
    return ["assistant" + (f"\n{content}" if message.content else ""), *calls, IM_END, "\n"]


def tool_turn(messages: Sequence[Message], index: int) -> list[Part]:
    """A tool's answer; neighbouring ones share one user turn."""
    first = index == 0 or messages[index - 1].role != "tool"
    last = index == len(messages) - 1 or messages[index + 1].role != "tool"
    body: list[Part] = [
        "\n",
        Control(RESULT, plain=True),
        f"\n{messages[index].content}\n",
        Control(RESULT_END, plain=True),
    ]
    begin: list[Part] = [IM_START, "user"] if first else []
    end: list[Part] = [IM_END, "\n"] if last else []
    return [*begin, *body, *end]
