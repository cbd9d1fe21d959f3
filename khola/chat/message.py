"""Messages, tools and the rendered prompt: the plain data that chat formats read and write."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]

IMAGE = "\ufdd3"
"""Stands in the content of a message where an image does: a noncharacter, which no speaker may write."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model asks for."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    """JSON Schema of its arguments."""
    strict: bool = False
    """Refuse the tool where a call cannot be held to all of its schema; a call that must come always is."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Role
    content: str = ""
    """Text, and `IMAGE` for every image in it."""
    thinking: str = ""
    """Thoughts of an assistant turn, without marks."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    """Which call a tool turn answers."""
    name: str = ""
    """Name of the tool that a tool turn speaks for, or of the speaker."""


class Asked(msgspec.Struct, frozen=True):
    """What a format is asked to write."""

    messages: Sequence[Message]
    """At least one turn. Thoughts on earlier questions are not written: no model here is trained to read its old ones."""
    tools: Sequence[Tool] = ()
    """Functions that the model may call."""
    thinking: bool | None = None
    """Whether the answer begins with a thought; None is what the lab does."""
    today: date | None = None
    """The date that formats with a date line write; None is the constant of the lab's template. Give the same date for a whole day, so that
    prompts share their beginning."""
    continue_last: bool = False
    """The last turn is an assistant's, and the answer goes on where it ends."""


class Control(msgspec.Struct, frozen=True):
    """A control token of the vocabulary, written by the format and never by a speaker."""

    token: str
    plain: bool = False
    """Where the vocabulary has no such token, the same letters stand in as text, as the lab's own tokenizer would have it."""


Part = Control | str
"""A rendered prompt is a sequence of control tokens and plain text; plain text can never become a control token."""


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A rendered conversation."""

    parts: tuple[Part, ...]
    thinking_open: bool = False
    """The prompt ends inside a thought, so the answer begins in one."""
    opening: tuple[Part, ...] = ()
    """What stands before every answer, those of the history and the one to come; empty where no such mark tells where answers are."""
    tool_names: tuple[str, ...] = ()
    """Tools that the prompt offers; without any, nothing in the answer is read as a call."""
    tools: tuple[Tool, ...] = ()
    """The same whole, where their schemas say what an argument is that the model writes without a type."""

    def text(self) -> str:
        """The prompt as the lab's template would print it."""
        return "".join(part.token if isinstance(part, Control) else part for part in self.parts)
