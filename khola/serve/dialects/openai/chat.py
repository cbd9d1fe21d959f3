"""`POST /v1/chat/completions`: what is answered, whole and in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from khola import __version__
from khola.chat.message import ToolCall
from khola.serve.backend import Cost, Piece, Token
from khola.serve.dialects.openai.answers import timings, usage
from khola.serve.dialects.openai.logprobs import ContentTokens, chat_logprobs

FINGERPRINT = f"khola-{__version__}"
"""Of what computes the answer: the same seed gives the same answer under the same fingerprint."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What every chunk of one answer says."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str

    def around(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A body or chunk."""
        told = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**told, "system_fingerprint": FINGERPRINT, "choices": list(choices)}


class Choice:
    """One answer of a chat as it grows.

    Args:
        index: of the answer.
        logprobs: whether they are told.
        one_call: whether it may have one call at most; the others are left out.
        call_id: makes an id for a call whose format has none.
    """

    def __init__(self, index: int, *, logprobs: bool, one_call: bool, call_id: Callable[[], str]) -> None:
        self._index = index
        self._logprobs = logprobs
        self._one_call = one_call
        self._call_id = call_id
        self._content = ContentTokens()
        self._calls = 0
        self.cost: Cost | None = None

    def first(self) -> dict[str, Any]:
        """What a stream begins with."""
        return self._delta({"role": "assistant", "content": ""})

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        """The choices of the chunks that tell of a piece."""
        tokens = self._content.push(piece) if self._logprobs else []
        said = []
        if piece.thinking:
            said.append(self._delta(reasoning(piece.thinking)))
        if piece.text or tokens:
            said.append(self._delta({"content": piece.text}, tokens))
        for call in self._kept(piece.tool_calls):
            function = {"name": call.name, "arguments": ""}
            begun = {"index": self._calls, "id": call.id, "type": "function", "function": function}
            rest = {"index": self._calls, "function": {"arguments": arguments_of(call)}}
            said += [self._delta({"tool_calls": [begun]}), self._delta({"tool_calls": [rest]})]
            self._calls += 1
        if piece.finish_reason is not None:
            self.cost = piece.cost
            said.append({**self._delta({}), "finish_reason": self._reason(piece)})
        return said

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The choice of a body that is not streamed."""
        tokens = [token for piece in pieces for token in self._content.push(piece)] if self._logprobs else None
        calls = []
        for piece in pieces:
            kept = self._kept(piece.tool_calls)
            calls += kept
            self._calls += len(kept)
        text, thought = "".join(piece.text for piece in pieces), "".join(piece.thinking for piece in pieces)
        self.cost = pieces[-1].cost
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        message |= reasoning(thought) if thought else {}
        if calls:
            named = [{"name": call.name, "arguments": arguments_of(call)} for call in calls]
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": function} for call, function in zip(calls, named, strict=True)
            ]
        logprobs = None if tokens is None else chat_logprobs(tokens)
        return {"index": self._index, "message": message, "logprobs": logprobs, "finish_reason": self._reason(pieces[-1])}

    def _delta(self, delta: dict[str, Any], tokens: Sequence[Token] = ()) -> dict[str, Any]:
        logprobs = chat_logprobs(tokens) if tokens else None
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _kept(self, calls: Sequence[ToolCall]) -> list[ToolCall]:
        """The calls that are told, each with an id."""
        room = max(0, 1 - self._calls) if self._one_call else len(calls)
        return [ToolCall(name=call.name, arguments=call.arguments, id=call.id or self._call_id()) for call in calls[:room]]

    def _reason(self, piece: Piece) -> str:
        """Why the answer ended, in OpenAI's words."""
        return "tool_calls" if self._calls and piece.finish_reason == "stop" else str(piece.finish_reason)


def reasoning(text: str) -> dict[str, str]:
    """A thought under both names by which clients look for it; none of them shows it twice."""
    return {"reasoning": text, "reasoning_content": text}


def arguments_of(call: ToolCall) -> str:
    """The arguments of a call as JSON text."""
    import msgspec

    return msgspec.json.encode(call.arguments).decode()


def body(head: Head, choices: Sequence[Choice], answers: Sequence[Sequence[Piece]]) -> dict[str, Any]:
    """The whole answer to a chat."""
    told = [choice.whole(pieces) for choice, pieces in zip(choices, answers, strict=True)]
    costs = [choice.cost for choice in choices if choice.cost is not None]
    found = {**head.around("chat.completion", told), "usage": usage(costs)}
    return {**found, "timings": timings(costs[0])} if len(costs) == 1 else found


def chunk(head: Head, choices: Sequence[dict[str, Any]], *, tells_usage: bool) -> dict[str, Any]:
    """A chunk of a stream; where it tells what it cost, all chunks but the last say null."""
    return {**head.around("chat.completion.chunk", choices), **({"usage": None} if tells_usage else {})}


def usage_chunk(head: Head, choices: Sequence[Choice]) -> dict[str, Any]:
    """The last chunk of a stream that tells what it cost."""
    costs = [choice.cost for choice in choices if choice.cost is not None]
    return {**head.around("chat.completion.chunk", []), "usage": usage(costs)}
