"""`GET /v1/models`, and `/tokenize` and `/detokenize` in the forms of vLLM and llama.cpp's server.

Source   OpenAI's API reference, "Models"; lm-evaluation-harness, `RemoteTokenizer`, for the other two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from khola.errors import AskedWrong
from khola.serve.backend import ModelState
from khola.serve.http.body import meant


class TokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text, under vLLM's name or llama.cpp's."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    add_special_tokens: bool | None = None
    """Put the token in front with which the model wants texts to begin: vLLM's name."""
    add_special: bool | None = None
    """The same under llama.cpp's name."""

    def text(self) -> str:
        """The text.

        Raises:
            AskedWrong: there is none, or there are two.
        """
        given = [text for text in (self.prompt, self.content) if text is not None]
        if len(given) != 1:
            raise AskedWrong("{param} or content is the text; exactly one is expected", param="prompt")
        return given[0]

    def special(self) -> bool:
        """Whether the token in front is wanted: vLLM's default is yes, llama.cpp's no."""
        told = [flag for flag in (self.add_special_tokens, self.add_special) if flag is not None]
        return told[0] if told else self.prompt is not None


class DetokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Token ids."""

    tokens: list[int]
    model: str | None = None


def model_object(state: ModelState) -> dict[str, Any]:
    """One model. Its owner is its lab: clients take "ollama" for a server with Ollama's own routes."""
    told: dict[str, Any] = {"id": state.name, "object": "model", "created": state.created, "owned_by": state.lab or "khola"}
    if state.context_tokens:
        told["max_model_len"] = state.context_tokens
    return told


def model_list(states: Sequence[ModelState]) -> dict[str, Any]:
    """All of them."""
    return {"object": "list", "data": [model_object(state) for state in states]}


def tokenize_asked(body: Mapping[str, Any]) -> TokenizeBody:
    """Understand a body of `/tokenize`."""
    return meant({name: value for name, value in body.items() if value is not None}, TokenizeBody)


def detokenize_asked(body: Mapping[str, Any]) -> DetokenizeBody:
    """Understand a body of `/detokenize`."""
    return meant({name: value for name, value in body.items() if value is not None}, DetokenizeBody)


def tokenized(ids: Sequence[int]) -> dict[str, Any]:
    """The answer of `/tokenize`."""
    return {"tokens": list(ids), "count": len(ids)}


def detokenized(text: str) -> dict[str, Any]:
    """The answer of `/detokenize`, under both names."""
    return {"prompt": text, "content": text}


def tokenizer_info(state: ModelState) -> dict[str, Any]:
    """How texts of a model begin and end. The template stays here: `/v1/chat/completions` applies it."""
    return {"bos_token": state.begins_with or None, "eos_token": state.ends_with or None, "pad_token": None, "chat_template": None}
