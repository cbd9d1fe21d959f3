"""Calls beside another form: an answer that does not begin as a call is text, whatever it spells later.

JSON may quote a call, marks and all; where the text of an answer was held to a form, that is no call.
"""

from __future__ import annotations

import re

from khola.chat.call_form import CallForm, expressions
from khola.chat.message import ToolCall
from khola.chat.tool_calls import CallReader


class CallsAlone:
    """Reads calls only where the answer begins with one.

    Args:
        reader: of the chat format.
        form: how it writes calls.
        names: of the tools.
    """

    def __init__(self, reader: CallReader, form: CallForm, names: tuple[str, ...]) -> None:
        self.form: CallForm | None = form
        self.marks = reader.marks
        self._reader = reader
        self._mark = next(iter((*form.section[0], *form.before)), "")
        self._whole = [re.compile(pattern) for pattern, one in expressions(form, names) if one.whole]
        self._held = ""
        self._is_text = self._is_call = False

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What became certain with the next piece: text, calls."""
        if self._is_text:
            return text, ()
        if self._is_call:
            return self._reader.push(text)
        self._held += text
        if not self._mark:
            told, calls = self._reader.push(text)
            self._is_text = bool(told)
            return told, calls
        self._is_call = self._held.startswith(self._mark)
        self._is_text = not self._is_call and not self._mark.startswith(self._held)
        return self._reader.push(self._held) if self._is_call else (self._held if self._is_text else "", ())

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """What was held back when the stream ended: text, calls."""
        if self._is_call:
            return self._reader.finish()
        if self._mark or self._is_text:
            return ("" if self._is_text else self._held), ()
        text, calls = self._reader.finish()
        return (text, calls) if any(one.match(self._held) for one in self._whole) else (self._held, ())
