"""The shape of errors where no dialect has one of its own: OpenAI's, which most clients read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from khola.errors import AskedWrong, KholaError, NoKey, NoMemory, NoRoom, OurFault
from khola.serve.access.quota import Level

KINDS: dict[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    501: "not_supported_error",
    502: "unavailable_error",
    503: "unavailable_error",
    504: "unavailable_error",
}


def kind_of(status: int) -> str:
    """`type` of an error by its status, from OpenAI's list."""
    return KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")


def message_of(error: KholaError) -> str:
    """What happened and what to do, in English; of faults of our own that nobody foresaw only that there was one."""
    if isinstance(error, OurFault) and error.http_status == OurFault.http_status:
        return "the server failed on this request; its log says more under the request id"
    hint = error.hint()
    return f"{error.told()}; {hint}" if hint else error.told()


def error_body(error: KholaError, request_id: str) -> dict[str, Any]:
    """The body of an error. `param` is the fact of that name."""
    kind = "invalid_request_error" if isinstance(error, AskedWrong) and error.http_status == 404 else kind_of(error.http_status)
    param = error.facts.get("param")
    return {"error": {"message": message_of(error), "type": kind, "param": param, "code": error.code, "request_id": request_id}}


def quota_headers(levels: Mapping[str, Level], now: float) -> list[tuple[bytes, bytes]]:
    """What is left of a key's limits, under the names of OpenAI and of Anthropic.

    Args:
        levels: of "requests" and "tokens".
        now: seconds since 1970.
    Source: https://platform.openai.com/docs/guides/rate-limits, https://docs.anthropic.com/en/api/rate-limits (response headers).
    """
    told: dict[str, str] = {}
    for name, level in levels.items():
        full = datetime.fromtimestamp(now + level.full_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        minutes, seconds = divmod(math.ceil(level.full_s), 60)
        hours, minutes = divmod(minutes, 60)
        told |= {f"x-ratelimit-limit-{name}": str(level.most), f"anthropic-ratelimit-{name}-limit": str(level.most)}
        told |= {f"x-ratelimit-remaining-{name}": str(level.left), f"anthropic-ratelimit-{name}-remaining": str(level.left)}
        told |= {f"x-ratelimit-reset-{name}": f"{hours}h" * bool(hours) + f"{minutes}m" * bool(hours or minutes) + f"{seconds}s"}
        told |= {f"anthropic-ratelimit-{name}-reset": full}
    return [(name.encode(), value.encode()) for name, value in told.items()]


def error_headers(error: KholaError) -> dict[str, str]:
    """Headers that tell a client whether to ask again, and when."""
    if allow := error.facts.get("allow"):
        return {"allow": str(allow)}
    if isinstance(error, NoMemory):
        return {"x-should-retry": "false"}
    if isinstance(error, NoRoom) or error.http_status == 503:
        return {"retry-after": str(error.facts.get("retry_after", 2)), "x-should-retry": "true"}
    if isinstance(error, NoKey):
        return {"www-authenticate": "Bearer"}
    return {}
