"""Answers that are made up, and a backend that gives them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from khola.chat.message import ToolCall
from khola.errors import KholaError
from khola.serve.backend import Cost, FinishReason, Piece

COST = Cost(prompt_tokens=12, cached_tokens=4, answer_tokens=7, wait_s=0.25, prefill_s=0.5, decode_s=1.25)


def last(reason: FinishReason = "stop", text: str = "", stopped_by: str = "") -> Piece:
    """The last piece of an answer."""
    return Piece(text=text, finish_reason=reason, cost=COST, stopped_by=stopped_by)


def call(name: str = "weather", **arguments: object) -> Piece:
    """A piece with a call."""
    return Piece(tool_calls=(ToolCall(name=name, arguments=arguments),))


class Given:
    """Pieces that are there already; an error among them is raised."""

    def __init__(self, pieces: Sequence[Piece | KholaError]) -> None:
        self._left = list(pieces)
        self.closed = False

    def __aiter__(self) -> AsyncIterator[Piece]:
        """Itself."""
        return self

    async def __anext__(self) -> Piece:
        """The next one."""
        if not self._left:
            raise StopAsyncIteration
        piece = self._left.pop(0)
        if isinstance(piece, KholaError):
            raise piece
        return piece

    async def aclose(self) -> None:
        """Remember it."""
        self.closed = True
