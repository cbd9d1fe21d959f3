"""Streamed answers taken apart: text, thoughts and tool calls, however the stream is cut."""

from __future__ import annotations

from typing import Protocol

import msgspec

from khola.chat.call_form import CallForm
from khola.chat.calls_alone import CallsAlone
from khola.chat.message import Prompt, ToolCall
from khola.chat.thinking import END, START, ThinkingSplitter
from khola.chat.tool_calls import CallReader, MarkedCalls


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """What became certain with the last piece of an answer."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class Parser(Protocol):
    """Reads one answer, piece by piece; the pieces' results joined do not depend on where the cuts fall."""

    @property
    def thinks(self) -> bool:
        """Whether thoughts are taken out."""

    @property
    def call_form(self) -> CallForm | None:
        """How calls are written; None where nothing is read as a call."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What it finds its way by: even a special token of this spelling belongs to the text."""

    def alone(self, names: tuple[str, ...]) -> None:
        """Read calls of these tools only where the answer begins with one: its text was held to a form."""

    def push(self, text: str) -> Parsed:
        """Take the next piece."""

    def finish(self) -> Parsed:
        """The answer has ended: give what was held back."""


class AnswerParser:
    """Thoughts first, then calls within the rest.

    Args:
        thinking: takes thoughts out of the stream; None for models that do not think aloud.
        calls: takes tool calls out of what is left; None when no tools were offered.
    """

    def __init__(self, *, thinking: ThinkingSplitter | None = None, calls: CallReader | None = None) -> None:
        self._thinking = thinking
        self._calls = calls
        self.thinks = thinking is not None
        self.call_form: CallForm | None = calls.form if calls else None
        self.marks = ((START, END) if thinking else ()) + (calls.marks if calls else ())

    def alone(self, names: tuple[str, ...]) -> None:
        """Read calls of these tools only where the answer begins with one: its text was held to a form."""
        if self._calls is not None and self.call_form is not None:
            self._calls = CallsAlone(self._calls, self.call_form, names)

    def push(self, text: str) -> Parsed:
        """Take the next piece."""
        thought, rest = self._thinking.push(text) if self._thinking else ("", text)
        answer, found = self._calls.push(rest) if self._calls else (rest, ())
        return Parsed(text=answer, thinking=thought, tool_calls=found)

    def finish(self) -> Parsed:
        """The answer has ended: give what was held back."""
        thought, rest = self._thinking.finish() if self._thinking else ("", "")
        if self._calls is None:
            return Parsed(text=rest, thinking=thought)
        answer, found = self._calls.push(rest)
        last, more = self._calls.finish()
        return Parsed(text=answer + last, thinking=thought, tool_calls=found + more)


def template_parser(prompt: Prompt) -> AnswerParser:
    """A reader for answers to a prompt that an embedded template wrote: the marks that most open models share."""
    calls = MarkedCalls() if prompt.tool_names else None
    return AnswerParser(thinking=ThinkingSplitter(opened=prompt.thinking_open), calls=calls)
