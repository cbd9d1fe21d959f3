"""GLM-4's turns: `<|role|>`, a newline, text, and no mark at the end; a turn ends where the next one begins.

What stands on the line of the role is "metadata": the name of the tool that an assistant's turn calls, whose text is then the arguments in
JSON. Results come back in turns of the role "observation". An answer begins with that line too, so most begin with a newline.

Source: the chat templates in the lab's files (zai-org/glm-4-9b-chat-hf, zai-org/GLM-4-9B-0414); how answers are read, the lab's demo.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from khola.chat.call_form import NAMES, CallForm, Opening
from khola.chat.message import Control, Message, Part, Prompt, Tool, ToolCall
from khola.chat.parsing import AnswerParser
from khola.chat.tool_calls import as_json
from khola.chat.turns import joined

STOPS = ("<|user|>", "<|observation|>", "<|endoftext|>")
BEGIN: tuple[Part, ...] = (Control("[gMASK]"), Control("<sop>"))
ASSISTANT = Control("<|assistant|>")
TOOLS = "# 可用工具"
_ASK = "\n在调用上述函数时，请使用 Json 格式表示调用的参数。"


def turn(role: str, text: str, metadata: str = "") -> tuple[Part, ...]:
    """One turn; a tool speaks as the observation."""
    return (Control(f"<|{'observation' if role == 'tool' else role}|>"), f"{metadata}\n{text}")


def turns_of(message: Message) -> list[tuple[str, str, str]]:
    """Role, text and metadata of the turns that a message is: its text, then each of its calls."""
    said: list[tuple[str, str, str]] = [(message.role, message.content, "")] if message.content or not message.tool_calls else []
    return said + [("assistant", as_json(call.arguments), call.name) for call in message.tool_calls]


def offered(tools: Sequence[Tool], head: str, gap: str) -> tuple[Part, ...]:
    """The system turn that offers tools, behind a head; `gap` stands before each."""
    if not tools:
        return ()
    listed = ""
    for tool in tools:
        function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        listed += f"{gap}## {tool.name}\n\n{as_json(function, 4)}{_ASK}"
    return turn("system", head + listed)


def prompt_of(parts: Sequence[Part], tools: Sequence[Tool], *, continue_last: bool) -> Prompt:
    """A conversation with the beginning of the answer, unless its last turn goes on."""
    whole = parts if continue_last else [*parts, ASSISTANT]
    return Prompt(parts=joined(whole), opening=(ASSISTANT,), tool_names=tuple(tool.name for tool in tools))


def parser(prompt: Prompt) -> AnswerParser:
    """See `Format.parser`."""
    return AnswerParser(calls=NamedCalls(prompt.tool_names))


class NamedCalls:
    """A call that is the whole answer: the name of a tool on the first line, its arguments in JSON below. Anything else is text.

    Args:
        names: the tools that were offered.
    """

    form = CallForm(between=("\n",), openings=(Opening(rf"[ \t]*(?P<name>{NAMES})[ \t]*\r?\n\s*(?={{)", "arguments", whole=True),))
    marks = ()

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._held = ""
        self._is_text = False
        self._fresh = True
        """The newline behind the empty line of the role is still to come."""

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What became certain with the next piece: text, calls."""
        self._held += text
        if not self._is_text and self._may_be_call():
            return "", ()
        self._is_text = True
        return self._text(), ()

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """What was held back when the stream ended: text, calls."""
        call = None if self._is_text else self._call()
        return ("", (call,)) if call else (self._text(), ())

    def _may_be_call(self) -> bool:
        """Whether what came so far can still become a call."""
        line, ended, body = self._held.partition("\n")
        if not ended:
            return any(name.startswith(line.strip()) for name in self._names)
        return line.strip() in self._names and body.lstrip()[:1] in ("", "{")

    def _call(self) -> ToolCall | None:
        """The call that the answer is; None if it is none."""
        line, _, body = self._held.partition("\n")
        try:
            arguments = json.loads(body)
        except (ValueError, RecursionError):
            return None
        known = line.strip() in self._names and isinstance(arguments, dict)
        return ToolCall(name=line.strip(), arguments=arguments) if known else None

    def _text(self) -> str:
        """What is held, without the newline that belongs to the role."""
        text, self._held = self._held, ""
        if self._fresh and text:
            self._fresh = False
            text = text.removeprefix("\n")
        return text
