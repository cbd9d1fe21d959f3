"""Knows: what OpenAI's clients say and expect to hear: chats, completions, responses, embeddings, models, and vLLM's tokens.

Does not know: sockets and models. Bodies become jobs in `*_body.py`, `completions.py` and `embeddings.py`; pieces become bodies and events
beside them; `routes.py` and `responses_routes.py` join both.
"""

from __future__ import annotations

from khola.serve.dialects.openai.errors import error_body
from khola.serve.dialects.openai.responses_routes import ResponsesRoutes
from khola.serve.dialects.openai.routes import Routes
from khola.serve.operation import Operation
from khola.serve.service import Service

__all__ = ["PREFIXES", "error_body", "operations"]
PREFIXES = ("/v1/", "/tokenize", "/detokenize", "/tokenizer_info")


def operations(service: Service) -> list[Operation]:
    """Everything that the dialect offers."""
    return [*Routes(service).operations(), *ResponsesRoutes(service).operations()]
