"""What openai-python's tests are told about khola: calls that it does not offer, fields that it refuses, and ids that exist.

The tests are written for a stand-in that accepts everything and knows every id.
"""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Callable
from functools import wraps
from typing import Any

import openai
import pytest
from openai.resources.responses import AsyncResponses, Responses
from openai.resources.responses.input_items import AsyncInputItems, InputItems
from openai.resources.responses.input_tokens import AsyncInputTokens, InputTokens

SKIPPED = {
    r"chat/test_completions.*(retrieve|update|list|delete)": "completions are not kept: store has no effect",
    r"test_models.*delete": "a client of this dialect does not delete files",
    r"test_responses.*compact": "not offered: what it returns can be read by OpenAI alone",
    r"test_responses.*retrieve.*overload_2": "a response that is kept is not streamed again",
    r"test_responses.*retrieve_with_all_params": "asks to include results of OpenAI's file search",
}
"""By what the id of a test matches."""
REFUSED = {
    r"chat/test_completions.*create_with_all_params": "audio, functions, moderation, web_search_options and a logit_bias of no token",
    r"[^/]test_completions.*create_with_all_params|resources/test_completions.*create_with_all_params": "suffix, best_of 0",
    r"test_responses.*create_with_all_params": "conversation, prompt, context_management, moderation, file search",
    r"test_input_tokens.*with_all_params": "conversation, personality, truncation",
    r"test_embeddings.*create_with_all_params": "dimensions 1, which the vectors do not have",
    r"test_input_items.*with_all_params": "asks to include results of OpenAI's file search",
}
"""These must end with status 400: they ask for things that khola does not do."""
CONTRADICTED = r"test_embeddings.*test_(method|raw_response|streaming_response)_create.(strict|aiohttp)"
"""The strict client asks for base64 of itself, and then takes only a list: these fail on every server that does as it is asked."""
ANY_ID = re.compile(r"^(resp_677efb\w*|response_id)$")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is left out, and what must be refused."""
    for item in items:
        for pattern, reason in SKIPPED.items():
            if re.search(pattern, item.nodeid):
                item.add_marker(pytest.mark.skip(reason=reason))
        for pattern, reason in REFUSED.items():
            if re.search(pattern, item.nodeid):
                item.add_marker(pytest.mark.xfail(raises=openai.BadRequestError, strict=True, reason=f"refused: {reason}"))
        if re.search(CONTRADICTED, item.nodeid):
            reason = "the strict client asks for base64 and expects a list"
            item.add_marker(pytest.mark.xfail(raises=openai.APIResponseValidationError, strict=True, reason=reason))


def kept(*, background: bool) -> str:
    """Id of a response that was just made."""
    body = json.dumps({"model": "echo", "input": "string", "background": background}).encode()
    request = urllib.request.Request(
        f"{os.environ['TEST_API_BASE_URL']}/responses", body, {"Content-Type": "application/json", "Authorization": "Bearer My API Key"}
    )
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["id"])


def with_input(method: Callable[..., Any]) -> Callable[..., Any]:
    """The call with a model and an input, which the interface needs and the tests leave out."""

    @wraps(method)
    def call(self: Any, **fields: Any) -> Any:
        return method(self, **{"model": "echo", "input": "string", **fields})

    return call


def with_id(method: Callable[..., Any], *, background: bool = False) -> Callable[..., Any]:
    """The call with an id that exists."""

    @wraps(method)
    def call(self: Any, response_id: str, **fields: Any) -> Any:
        return method(self, kept(background=background) if ANY_ID.match(response_id) else response_id, **fields)

    return call


for kind in (Responses, AsyncResponses):
    kind.create = with_input(kind.create)
    kind.retrieve, kind.delete, kind.cancel = with_id(kind.retrieve), with_id(kind.delete), with_id(kind.cancel, background=True)
for kind in (InputTokens, AsyncInputTokens):
    kind.count = with_input(kind.count)
for kind in (InputItems, AsyncInputItems):
    kind.list = with_id(kind.list)
