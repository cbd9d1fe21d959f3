"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`.

Source   OpenAI's API reference, "Error codes"; LangChain and Inspect look for the code of a context that is too long and for the words
         "maximum context length".
"""

from __future__ import annotations

from typing import Any

from khola.errors import ContextOverflow, KholaError
from khola.serve.http import refusal
from khola.serve.http.sse import Event

CODES = {
    "bad_request": "invalid_value", "unknown_option": "unsupported_parameter", "model_not_pulled": "model_not_found",
    "internal_error": "server_error",
}  # fmt: skip
"""Codes that clients know, for what khola names otherwise."""
COUNTS = {"prompt_tokens": "n_prompt_tokens", "context_tokens": "n_ctx", "n_prompt_tokens": "n_prompt_tokens", "n_ctx": "n_ctx"}
"""Facts of a context that is too long, by the names that clients of llama.cpp's server read."""


def error_body(error: KholaError, request_id: str) -> dict[str, Any]:
    """The body of an answer that failed; the fact `param` of an error names the field that was wrong."""
    told = refusal.error_body(error, request_id)["error"]
    if isinstance(error, ContextOverflow):
        told |= {name: error.facts[fact] for fact, name in COUNTS.items() if fact in error.facts}
    return {"error": {**told, "code": CODES.get(error.code, error.code)}}


def error_events(error: KholaError, request_id: str) -> list[Event]:
    """An error of a stream that has begun: openai-python raises `APIError` from it."""
    return [Event(error_body(error, request_id))]
