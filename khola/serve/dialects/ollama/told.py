"""Pieces of an answer, told in Ollama's form: as lines, or as one object that is all lines together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from khola.errors import Cancelled, KholaError
from khola.serve.backend import Cost, Piece, Token
from khola.serve.http.refusal import message_of
from khola.serve.http.sse import Event

NANOSECONDS = 1_000_000_000


def error_body(error: KholaError, request_id: str) -> dict[str, Any]:
    """An error in Ollama's shape, which has a sentence and no more; the id stands in the header."""
    return {"error": message_of(error)}


def error_events(error: KholaError, request_id: str) -> list[Event]:
    """An error behind the first line."""
    return [Event(error_body(error, request_id))]


def moment(seconds: float) -> str:
    """A time as Go writes it: 2026-11-22T13:00:00.123456Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Telling:
    """One answer as it is told.

    Args:
        model: as the client called it.
        key: "message" for /api/chat, "response" for /api/generate.
        clock: seconds since 1970.
        new_id: a fresh identifier.
        logprobs: tell them.
    """

    def __init__(
        self,
        model: str,
        key: Literal["message", "response"],
        *,
        clock: Callable[[], float],
        new_id: Callable[[], str],
        logprobs: bool = False,
    ) -> None:
        self._model, self._key, self._clock, self._new_id, self._logprobs = model, key, clock, new_id, logprobs
        self._began = clock()
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._tokens: list[dict[str, Any]] = []
        self._end: dict[str, Any] = {"done": False}

    def take(self, piece: Piece) -> list[Event]:
        """The lines of a piece: what it says, and the counts behind the last one.

        Raises:
            Cancelled: somebody else ended the answer.
        """
        lines: list[Event] = []
        calls = [self._call(call.name, call.arguments, call.id, at) for at, call in enumerate(piece.tool_calls, len(self._calls))]
        tokens = [_token(token) for token in piece.tokens] if self._logprobs else []
        self._text.append(piece.text)
        self._thoughts.append(piece.thinking)
        self._calls += calls
        self._tokens += tokens
        if piece.text or piece.thinking or calls or tokens:
            lines.append(Event(self._line(piece.text, piece.thinking, calls, tokens, {"done": False})))
        if piece.finish_reason is not None:
            self._end = self._ended(piece)
            lines.append(Event(self._line("", "", [], [], self._end)))
        return lines

    def whole(self) -> dict[str, Any]:
        """Everything in one object."""
        return self._line("".join(self._text), "".join(self._thoughts), self._calls, self._tokens, self._end)

    def nothing(self, reason: Literal["load", "unload"]) -> dict[str, Any]:
        """What a request without a prompt is told: the model was loaded, or unloaded."""
        return self._line("", "", [], [], {"done": True, "done_reason": reason})

    def _line(
        self, text: str, thinking: str, calls: list[dict[str, Any]], tokens: list[dict[str, Any]], end: dict[str, Any]
    ) -> dict[str, Any]:
        said: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if calls:
            said["tool_calls"] = calls
        body: dict[str, Any] = {"model": self._model, "created_at": moment(self._clock())}
        body |= {"message": {"role": "assistant", "content": text, **said}} if self._key == "message" else {"response": text, **said}
        return body | ({"logprobs": tokens} if tokens else {}) | end

    def _call(self, name: str, arguments: dict[str, Any], given_id: str, index: int) -> dict[str, Any]:
        return {"id": given_id or f"call_{self._new_id()}", "function": {"index": index, "name": name, "arguments": arguments}}

    def _ended(self, piece: Piece) -> dict[str, Any]:
        if piece.finish_reason == "cancelled":
            raise Cancelled("the answer was ended before it was whole")
        reason = "length" if piece.finish_reason == "length" else "stop"
        total = self._clock() - self._began
        return {"done": True, "done_reason": reason, **durations(total, piece.cost)}


def durations(total_s: float, cost: Cost | None) -> dict[str, int]:
    """Counts and times in nanoseconds; what is neither reading nor writing is loading and waiting."""
    spent = cost or Cost(prompt_tokens=0, cached_tokens=0, answer_tokens=0)
    total = max(total_s, spent.prefill_s + spent.decode_s)
    return {
        "total_duration": int(total * NANOSECONDS),
        "load_duration": int((total - spent.prefill_s - spent.decode_s) * NANOSECONDS),
        "prompt_eval_count": spent.prompt_tokens,
        "prompt_eval_duration": int(spent.prefill_s * NANOSECONDS),
        "eval_count": spent.answer_tokens,
        "eval_duration": int(spent.decode_s * NANOSECONDS),
    }


def _token(token: Token) -> dict[str, Any]:
    """A token with its log-probability; its bytes may end within a letter."""
    top = [_spelt(spells, logprob) for _, spells, logprob in token.top]
    return {**_spelt(token.spells, token.logprob), "top_logprobs": top}


def _spelt(spells: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": spells.decode(errors="replace"), "logprob": logprob, "bytes": list(spells)}
