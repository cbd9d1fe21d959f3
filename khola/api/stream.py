"""An answer while it is made: the engine's events, read by the parser of the chat format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from khola.api.answer import Answer, Delta
from khola.chat.call_form import CallForm
from khola.chat.parsing import Parsed, Parser
from khola.chat.thinking import ThoughtTokens
from khola.engine.request import Event, Failed, Finished, Request


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

    def alone(self, names: tuple[str, ...]) -> None:
        """There are no calls."""

    def push(self, text: str) -> Parsed:
        """Take the next piece."""
        return Parsed(text=text)

    def finish(self) -> Parsed:
        """Nothing was held back."""
        return Parsed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request, and what reads its answer."""

    request: Request
    parser: Parser

    @property
    def is_json(self) -> bool:
        """The answer is held to be JSON."""
        return self.request.grammar is not None and self.request.grammar.is_json


class Reader:
    """Makes deltas of the events of one request.

    Args:
        prepared: the request, and the parser that takes thoughts and tool calls out of its text.
        token_bytes: the bytes that a token of the model stands for.
    """

    def __init__(self, prepared: Prepared, token_bytes: Callable[[int], bytes]) -> None:
        self._parser = prepared.parser
        thought = prepared.request.thought
        self._thought = None if thought is None else ThoughtTokens(opened=thought.opened, token_bytes=token_bytes)

    def read(self, event: Event) -> Delta | None:
        """What an event says; None when nothing became certain.

        Raises:
            KholaError: the request failed.
        """
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            last = self._parser.finish()
            return Delta(
                text=last.text,
                thinking=last.thinking,
                finish_reason=event.reason,
                usage=event.usage,
                tool_calls=last.tool_calls,
                thinking_tokens=0 if self._thought is None else self._thought.count,
                complete=event.complete,
                stopped_by=event.stopped_by,
            )
        parsed = self._parser.push(event.text)
        if self._thought is not None:
            for token in event.tokens:
                self._thought.push(token.id)
        if not (parsed.text or parsed.thinking or parsed.tool_calls or event.tokens or event.prompt):
            return None
        return Delta(text=parsed.text, thinking=parsed.thinking, tokens=event.tokens, prompt=event.prompt, tool_calls=parsed.tool_calls)


class DeltaStream(Iterator[Delta]):
    """Pieces of one answer, in order; the last one has `finish_reason` and `usage`.

    Closing it, or letting it go half read, stops the answer and frees what it holds. A context manager.

    Args:
        events: of the request.
        reader: of these events.
        is_json: the answer is held to be JSON.
    """

    def __init__(self, events: Events, reader: Reader, *, is_json: bool = False) -> None:
        self._events = events
        self._reader = reader
        self._is_json = is_json

    def __next__(self) -> Delta:
        """The next piece that says something.

        Raises:
            KholaError: the request failed.
        """
        while (delta := self._reader.read(next(self._events))) is None:
            pass
        return delta

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
            prompt=tuple(token for delta in deltas for token in delta.prompt),
            tool_calls=tuple(call for delta in deltas for call in delta.tool_calls),
            thinking_tokens=last.thinking_tokens,
            complete=last.complete,
            stopped_by=last.stopped_by,
            is_json=self._is_json,
        )
