"""The server described as OpenAPI, from the types that its bodies are checked against.

Source   https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from khola import __version__
from khola.serve.operation import Operation

ERRORS = {
    400: "the request cannot be meant",
    401: "a key is needed, or this one is wrong",
    403: "this is not allowed",
    404: "there is nothing of this name",
    408: "the body came in too slowly",
    413: "the body is too large",
    415: "the body is of another media type",
    421: "the server is not the host that was named",
    422: "a model file is damaged",
    429: "too many requests at once; Retry-After says when to ask again",
    500: "the server failed",
    502: "something could not be fetched",
    503: "there is no room, or the server is stopping",
    504: "the answer was not there at its deadline",
}

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document.

    Args:
        operations: everything that the server offers.
    """
    types = [kind for operation in operations for kind in (operation.body, operation.answer) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    found = iter(schemas)
    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for operation in operations:
        body = next(found) if operation.body is not None else None
        answer = next(found) if operation.answer is not None else None
        path = _PARAMETER.sub(r"{\1}", operation.path)
        paths[path][operation.method.lower()] = _described(operation, body, answer)
    return {
        "openapi": "3.1.0",
        "info": {"title": "khola", "version": __version__, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": dict(paths),
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _described(operation: Operation, body: Any, answer: Any) -> dict[str, Any]:
    """One operation of one path."""
    content: dict[str, Any] = {} if answer is None else {"application/json": {"schema": answer}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    good = {str(status): {"description": "the answer", **({"content": content} if content else {})} for status in operation.statuses}
    bad = {str(status): {"description": words} for status, words in ERRORS.items() if status != 401 or operation.scope != "open"}
    told: dict[str, Any] = {"summary": operation.summary, "responses": {**good, **bad}}
    if operation.scope != "open":
        told["security"] = [{"key": []}]
        told["x-scope"] = operation.scope
    if names := _PARAMETER.findall(operation.path):
        told["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    if body is not None:
        told["requestBody"] = {"required": True, "content": {kind: {"schema": body} for kind in operation.types}}
    return told
