"""An answer while it is made: the engine's events, read by the parser of the chat format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Protocol

from khola.api.answer import Answer, Delta
from khola.chat.message import ToolCall
from khola.chat.parsing import Parsed, Parser
from khola.chat.tool_calls import CallForm
from khola.engine.request import Event, Failed, Finished


class Events(Protocol):
    """Events of one request; see `khola.engine.stream`."""

    def __next__(self) -> Event:
        """The next event."""

    def close(self) -> None:
        """End the request."""


class PlainText:
    """The parser of text that is no conversation: everything is text."""

    thinks = False
    call_form: CallForm | None = None
    marks = ()

    def push(self, text: str) -> Parsed:
        """Take the next piece."""
        return Parsed(text=text)

    def finish(self) -> Parsed:
        """Nothing was held back."""
        return Parsed()


class DeltaStream(Iterator[Delta]):
    """Pieces of one answer, in order; the last one has `finish_reason` and `usage`.

    Closing it, or letting it go half read, stops the answer and frees what it holds. A context manager.

    Args:
        events: of the request.
        parser: takes thoughts and tool calls out of the text.
        is_json: the answer is held to be JSON.
    """

    def __init__(self, events: Events, parser: Parser, *, is_json: bool = False) -> None:
        self._events = events
        self._parser = parser
        self._is_json = is_json
        self._calls: list[ToolCall] = []

    def __next__(self) -> Delta:
        """The next piece that says something.

        Raises:
            KholaError: the request failed.
        """
        while True:
            event = next(self._events)
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                last = self._parser.finish()
                calls = (*self._calls, *last.tool_calls)
                return Delta(
                    text=last.text,
                    thinking=last.thinking,
                    finish_reason=event.reason,
                    usage=event.usage,
                    tool_calls=calls,
                    complete=event.complete,
                    stopped_by=event.stopped_by,
                )
            parsed = self._parser.push(event.text)
            self._calls += parsed.tool_calls
            if parsed.text or parsed.thinking or event.tokens:
                return Delta(text=parsed.text, thinking=parsed.thinking, tokens=event.tokens)

    def close(self) -> None:
        """Stop the answer; does nothing when it has ended."""
        self._events.close()

    def __enter__(self) -> DeltaStream:
        """The stream itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()

    def whole(self) -> Answer:
        """Read to the end and give the answer in one piece.

        Raises:
            KholaError: the request failed.
        """
        with closing(self):
            deltas = list(self)
        last = deltas[-1]
        assert last.finish_reason is not None and last.usage is not None
        return Answer(
            text="".join(delta.text for delta in deltas),
            thinking="".join(delta.thinking for delta in deltas),
            finish_reason=last.finish_reason,
            usage=last.usage,
            tokens=tuple(token for delta in deltas for token in delta.tokens),
            tool_calls=last.tool_calls,
            complete=last.complete,
            stopped_by=last.stopped_by,
            is_json=self._is_json,
        )
