"""Pieces of an answer, told in Anthropic's form: as one message, or as events in the order that its clients build a message from.

```
message_start  ping  (content_block_start  content_block_delta…  content_block_stop)…  message_delta  message_stop
```
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Literal

import msgspec

from khola.chat.message import ToolCall
from khola.errors import Cancelled, KholaError
from khola.serve.backend import Cost, Piece
from khola.serve.http.refusal import message_of
from khola.serve.http.sse import Event

ERROR_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 409: "invalid_request_error", 410: "not_found_error",
    413: "request_too_large", 415: "invalid_request_error", 422: "invalid_request_error", 429: "rate_limit_error",
    499: "invalid_request_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
"""What Anthropic's clients are told for a status; everything else is an "api_error"."""


def error_body(error: KholaError, request_id: str) -> dict[str, Any]:
    """An error in Anthropic's shape."""
    kind = ERROR_TYPES.get(error.http_status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message_of(error)}, "request_id": request_id}


def error_events(error: KholaError, request_id: str) -> list[Event]:
    """An error behind the first event."""
    return [_event(error_body(error, request_id))]


def signature(thought: str) -> str:
    """What stands where Anthropic signs a thought: a digest of it. Nothing is proven by it, and it is not looked at when it comes back."""
    return b64encode(sha256(thought.encode()).digest()).decode()


class Telling:
    """One answer as it is told.

    Args:
        model: as the client called it.
        new_id: a fresh identifier without prefix.
        one_call: tell the first call only.
        shows_thought: tell what was thought, not only that it was.
    """

    def __init__(self, model: str, new_id: Callable[[], str], *, one_call: bool = False, shows_thought: bool = True) -> None:
        self._model, self._new_id = model, new_id
        self._one_call, self._shows_thought = one_call, shows_thought
        self._id = f"msg_{new_id()}"
        self._content: list[dict[str, Any]] = []
        self._calls = 0
        self._thought = ""
        self._stop: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}
        self._usage: dict[str, Any] = _usage(None)

    def start(self) -> list[Event]:
        """What stands before the first piece. The counts are not known yet; `message_delta` has them."""
        return [_event({"type": "message_start", "message": self.message()}), _event({"type": "ping"})]

    def take(self, piece: Piece) -> list[Event]:
        """What a piece adds.

        Raises:
            Cancelled: somebody else ended the answer.
        """
        events: list[Event] = []
        if piece.thinking:
            self._thought += piece.thinking
            if self._shows_thought:
                events += self._grow("thinking", piece.thinking)
            elif not self._open("thinking"):
                events += self._begin({"type": "thinking", "thinking": "", "signature": ""})
        if piece.text:
            events += self._grow("text", piece.text)
        for call in piece.tool_calls:
            events += self._call(call)
        if piece.finish_reason is not None:
            events += self._end(piece)
        return events

    def message(self) -> dict[str, Any]:
        """The message so far."""
        content = [dict(block) for block in self._content]
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._model}
        return {**head, "content": content, **self._stop, "usage": self._usage}

    def _open(self, kind: str) -> bool:
        return bool(self._content) and self._content[-1]["type"] == kind

    def _grow(self, kind: Literal["thinking", "text"], more: str) -> list[Event]:
        """Add to a text or a thought."""
        events = []
        if not self._open(kind):
            events = self._begin({"type": kind, kind: ""} if kind == "text" else {"type": kind, kind: "", "signature": ""})
        self._content[-1][kind] += more
        return [*events, self._delta({"type": f"{kind}_delta", kind: more})]

    def _call(self, call: ToolCall) -> list[Event]:
        """A whole call; its arguments come in one fragment, and a client that joins fragments joins one."""
        if self._one_call and self._calls:
            return []
        self._calls += 1
        block = {"type": "tool_use", "id": call.id or f"toolu_{self._new_id()}", "name": call.name, "input": {}}
        events = self._begin(block)
        self._content[-1]["input"] = call.arguments
        return [*events, self._delta({"type": "input_json_delta", "partial_json": msgspec.json.encode(call.arguments).decode()})]

    def _begin(self, block: dict[str, Any]) -> list[Event]:
        events = self._close()
        self._content.append(block)
        return [*events, _event({"type": "content_block_start", "index": len(self._content) - 1, "content_block": dict(block)})]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return _event({"type": "content_block_delta", "index": len(self._content) - 1, "delta": delta})

    def _close(self) -> list[Event]:
        """End the block that is open, a thought with its signature."""
        if not self._content:
            return []
        events: list[Event] = []
        if self._open("thinking"):
            self._content[-1]["signature"] = signature(self._thought)
            self._thought = ""
            events.append(self._delta({"type": "signature_delta", "signature": self._content[-1]["signature"]}))
        return [*events, _event({"type": "content_block_stop", "index": len(self._content) - 1})]

    def _end(self, piece: Piece) -> list[Event]:
        events = self._close()
        self._stop = {"stop_reason": self._reason(piece), "stop_sequence": piece.stopped_by or None}
        self._usage = _usage(piece.cost)
        return [*events, _event({"type": "message_delta", "delta": self._stop, "usage": self._usage}), _event({"type": "message_stop"})]

    def _reason(self, piece: Piece) -> str:
        if piece.finish_reason == "cancelled":
            raise Cancelled("the answer was ended before it was whole")
        if piece.finish_reason == "length":
            return "max_tokens"
        if self._calls:
            return "tool_use"
        return "stop_sequence" if piece.stopped_by else "end_turn"


def _event(data: dict[str, Any]) -> Event:
    """An event is named like its type."""
    return Event(data, name=data["type"])


def _usage(cost: Cost | None) -> dict[str, Any]:
    """Counts in Anthropic's way: what was found in the cache is not counted as input again."""
    cached = cost.cached_tokens if cost else 0
    return {
        "input_tokens": cost.prompt_tokens - cached if cost else 0,
        "output_tokens": cost.answer_tokens if cost else 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
    }
