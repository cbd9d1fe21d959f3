"""`POST /v1/embeddings`: a vector for every text.

Source   OpenAI's API reference, "Create embeddings"; openai-python asks for base64 and reads little-endian float32.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from khola.errors import UnknownOption
from khola.serve.access.limits import Limits
from khola.serve.dialects.openai.completions import Prompt, prompts_of
from khola.serve.dialects.openai.fields import kept
from khola.serve.http.body import meant


class EmbeddingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may be asked."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    input: str | list[str | int | list[int]]
    """A text or token ids, or a list of either."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None


def asked(body: Mapping[str, Any], limits: Limits) -> tuple[EmbeddingBody, tuple[Prompt, ...], list[str]]:
    """Understand a body: what was asked, the texts, and the fields without effect.

    Raises:
        UnknownOption: a field that khola does not know.
        AskedWrong: a value cannot be meant.
    """
    fields, ignored = kept(body, neutral={})
    given = meant(fields, EmbeddingBody)
    return given, prompts_of(given.input, "input", limits), ignored


def body(given: EmbeddingBody, vectors: Sequence[Sequence[float]], tokens: int) -> dict[str, Any]:
    """The answer.

    Raises:
        UnknownOption: another length was asked for than the model's vectors have; cutting them is right only where they were trained so.
    """
    own = len(vectors[0])
    if given.dimensions not in (None, own):
        raise UnknownOption(
            "{param} is {found}; vectors of {model} have {own}", param="dimensions", found=given.dimensions, model=given.model, own=own
        )
    told = [base64_of(vector) if given.encoding_format == "base64" else vector for vector in vectors]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(told)]
    return {"object": "list", "data": data, "model": given.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def base64_of(vector: Sequence[float]) -> str:
    """Little-endian float32 in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
