"""`POST /v1/responses`: what is answered, whole and as events.

Source   OpenAI's API reference, "The response object" and "Streaming events".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from khola.chat.message import ToolCall
from khola.errors import KholaError, NoRoom
from khola.serve.backend import Cost, Piece, Token
from khola.serve.dialects.openai.chat import arguments_of
from khola.serve.dialects.openai.logprobs import ContentTokens, output_logprobs
from khola.serve.dialects.openai.responses_body import Asked
from khola.serve.http import refusal
from khola.serve.http.sse import Event

Item = dict[str, Any]


class Response:
    """One response as it grows, and the events that tell of it.

    Args:
        asked: the request.
        model: that answers.
        created: seconds since 1970.
        number: ends ids.
    """

    def __init__(self, asked: Asked, model: str, created: float, number: Callable[[], str]) -> None:
        self.id = f"resp_{number()}"
        self.output: list[Item] = []
        self._asked = asked
        self._model = model
        self._created = created
        self._number = number
        self._tokens = ContentTokens()
        self._said: list[Token] = []
        self._text = ""
        self._sequence = -1
        self._open = ""
        """Kind of the item that is not done."""
        self._cost: Cost | None = None
        self._calls = 0
        self._told: dict[str, Any] = {}
        self.status = "queued" if asked.body.background else "in_progress"

    def begin(self) -> list[Event]:
        """What a stream begins with."""
        self.status = "in_progress"
        return [self._event("response.created", response=self.body()), self._event("response.in_progress", response=self.body())]

    def push(self, piece: Piece) -> list[Event]:
        """What tells of a piece."""
        tokens = self._tokens.push(piece) if self._asked.logprobs is not None else []
        events = self._more("reasoning", piece.thinking, []) if piece.thinking else []
        events += self._more("message", piece.text, tokens) if piece.text or tokens else []
        for call in piece.tool_calls:
            if self._asked.body.parallel_tool_calls is False and self._calls:
                break
            self._calls += 1
            events += self._close() + self._called(call)
        if piece.finish_reason is not None:
            events += self._finished(piece)
        return events

    def failed(self, error: KholaError, request_id: str) -> list[Event]:
        """What tells that it failed."""
        self.fail(error, request_id)
        return [self._event("response.failed", response=self.body())]

    def fail(self, error: KholaError, request_id: str) -> None:
        """Remember that it failed."""
        code = "rate_limit_exceeded" if isinstance(error, NoRoom) else "server_error" if error.http_status >= 500 else "invalid_prompt"
        self.status = "failed"
        self._told = {"error": {"code": code, "message": refusal.error_body(error, request_id)["error"]["message"]}}

    def cancel(self) -> None:
        """Remember that it was cancelled; what was said by then stays."""
        self._close("incomplete")
        self.status = "cancelled"

    def body(self) -> dict[str, Any]:
        """The response as it is now."""
        given = self._asked.body
        reasoning = {"effort": given.reasoning.effort if given.reasoning else None, "summary": None}
        wanted = given.text.format if given.text else None
        form = (
            {"type": "text"} if wanted is None else {key: value for key, value in msgspec.to_builtins(wanted).items() if value is not None}
        )
        told = {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": self.status,
            "background": bool(given.background),
            "error": None,
            "incomplete_details": None,
            "instructions": given.instructions,
            "max_output_tokens": given.max_output_tokens,
            "metadata": given.metadata or {},
            "model": self._model,
            "output": list(self.output),
            "parallel_tool_calls": given.parallel_tool_calls is not False,
            "previous_response_id": given.previous_response_id,
            "reasoning": reasoning,
            "store": given.store is not False,
            "temperature": given.temperature,
            "text": {"format": form},
            "tool_choice": given.tool_choice if given.tool_choice is not None else "auto",
            "tools": [_tool(msgspec.to_builtins(tool)) for tool in given.tools or ()],
            "top_logprobs": self._asked.logprobs or 0,
            "top_p": given.top_p,
            "truncation": "disabled",
            "usage": None if self._cost is None else usage(self._cost),
        }
        return told | self._told

    def _event(self, kind: str, **told: Any) -> Event:
        self._sequence += 1
        return Event({"type": kind, "sequence_number": self._sequence, **told}, name=kind)

    def _place(self, **told: Any) -> dict[str, Any]:
        """Where a part is: its item, and what it is told with."""
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1, **told}

    def _added(self, item: Item) -> Event:
        self.output.append(item)
        return self._event("response.output_item.added", output_index=len(self.output) - 1, item={**item})

    def _done(self) -> Event:
        return self._event("response.output_item.done", output_index=len(self.output) - 1, item={**self.output[-1]})

    def _more(self, kind: str, text: str, tokens: list[Token]) -> list[Event]:
        """More of a thought or of the answer's text."""
        events = []
        if self._open != kind:
            events += self._close()
            self._open, self._text, self._said = kind, "", []
            item: Item = {"type": kind, "status": "in_progress", "content": []}
            about = (
                {"id": f"msg_{self._number()}", "role": "assistant"} if kind == "message" else {"id": f"rs_{self._number()}", "summary": []}
            )
            events.append(self._added({**about, **item}))
            events.append(self._event("response.content_part.added", **self._place(content_index=0, part=self._part())))
        self._text += text
        self._said += tokens
        place = self._place(content_index=0, delta=text)
        logprobs = {"logprobs": output_logprobs(tokens)} if kind == "message" else {}
        return [*events, self._event(f"response.{self._name()}.delta", **place, **logprobs)]

    def _name(self) -> str:
        return "output_text" if self._open == "message" else "reasoning_text"

    def _part(self) -> dict[str, Any]:
        """The part as it is now."""
        if self._open == "reasoning":
            return {"type": "reasoning_text", "text": self._text}
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": output_logprobs(self._said)}

    def _close(self, status: str = "completed") -> list[Event]:
        """End the item that is open."""
        if not self._open:
            return []
        part = self._part()
        logprobs = {"logprobs": part["logprobs"]} if self._open == "message" else {}
        events = [
            self._event(f"response.{self._name()}.done", **self._place(content_index=0, text=self._text), **logprobs),
            self._event("response.content_part.done", **self._place(content_index=0, part=part)),
        ]
        self.output[-1] |= {"content": [part], "status": status}
        self._open = ""
        return [*events, self._done()]

    def _called(self, call: ToolCall) -> list[Event]:
        """A whole call."""
        name, arguments = call.name, arguments_of(call)
        told = {"id": f"fc_{self._number()}", "type": "function_call", "call_id": call.id or f"call_{self._number()}", "name": name}
        events = [self._added({**told, "arguments": "", "status": "in_progress"})]
        events.append(self._event("response.function_call_arguments.delta", **self._place(delta=arguments)))
        events.append(self._event("response.function_call_arguments.done", **self._place(name=name, arguments=arguments)))
        self.output[-1] |= {"arguments": arguments, "status": "completed"}
        return [*events, self._done()]

    def _finished(self, piece: Piece) -> list[Event]:
        """The end."""
        whole = piece.finish_reason == "stop"
        events = self._close("completed" if whole else "incomplete")
        self._cost = piece.cost
        self.status = "completed" if whole else "incomplete"
        self._told = {} if whole else {"incomplete_details": {"reason": "max_output_tokens"}}
        return [*events, self._event(f"response.{self.status}", response=self.body())]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as responses tell of it: a call that is required always fits its schema."""
    return {**tool, "parameters": tool["parameters"] or {}, "strict": bool(tool["strict"])}


def usage(cost: Cost) -> dict[str, Any]:
    """What it cost."""
    return {
        "input_tokens": cost.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cost.cached_tokens, "cache_write_tokens": cost.prompt_tokens - cost.cached_tokens},
        "output_tokens": cost.answer_tokens,
        "output_tokens_details": {"reasoning_tokens": cost.thinking_tokens},
        "total_tokens": cost.prompt_tokens + cost.answer_tokens,
    }
