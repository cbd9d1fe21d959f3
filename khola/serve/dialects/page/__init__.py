"""Knows: what the page shows and keeps: conversations, characters, the catalogue with its pulls, the family tree, figures of the engines.

Does not know: how it looks.

Chats themselves go through `/v1/chat/completions`, as those of every client; here is what only the page has.
"""

from __future__ import annotations

from typing import Any

from khola.errors import KholaError, OurFault
from khola.serve.dialects.page import catalogue, conversations, figures, persons, static
from khola.serve.http import refusal
from khola.serve.kept.history import History
from khola.serve.operation import Operation
from khola.serve.service import Service

PREFIXES = ("/page",)


def error_body(error: KholaError, request_id: str) -> dict[str, Any]:
    """An error in both languages, so that the page can say it in the one it speaks."""
    body = refusal.error_body(error, request_id)
    if not isinstance(error, OurFault):
        hint = error.hint("bn")
        body["error"]["message_bn"] = f"{error.told('bn')}; {hint}" if hint else error.told("bn")
    return body


def operations(service: Service) -> list[Operation]:
    """The page's own addresses."""
    kept = service.store("page.sqlite3", lambda path: History(path, service.clock))
    return [
        *static.operations(),
        *conversations.operations(service, kept),
        *persons.operations(service, kept),
        *catalogue.operations(service),
        *figures.operations(service),
    ]
