"""Bodies: strict JSON in, checked against a type; JSON out."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from khola.errors import AskedWrong, BadJson, TooLarge, UnknownOption
from khola.serve.service import Service
from khola.store.strict_json import load_json

T = TypeVar("T")
BODY = "the request body"
AT_ONCE_BYTES = 256 << 10
"""Longer bodies are parsed on another thread: 4 MiB take 50 ms, in which others would not be answered."""
WHOLE = 1 << 63
"""Whole numbers of a body are smaller than this."""

_AT = re.compile(r"^(?P<why>.*?)(?: - at `(?P<key>key in )?\$(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)


async def read_json(request: Request, service: Service, *, media: bool = False) -> dict[str, Any]:
    """The object that the body of a request is.

    Args:
        media: images may stand in it, so that it may be larger.
    Raises:
        TooLarge: more bytes than the server reads.
        AskedWrong: it is no JSON, no object, deeper or longer than the limits, says something twice, or has numbers that are not finite.
    """
    limits = service.limits
    raw = await read_bytes(request, limits.media_bytes if media else limits.body_bytes)
    parse = partial(load_json, raw, file=BODY, max_bytes=len(raw), max_depth=limits.json_depth, max_items=limits.json_values)
    try:
        found = parse() if len(raw) <= AT_ONCE_BYTES else await asyncio.to_thread(parse)
    except BadJson as wrong:
        raise AskedWrong("{why}", why=wrong.told()) from None
    if not isinstance(found, dict):
        raise AskedWrong("{body}: expected an object, found {found}", body=BODY, found=type(found).__name__)
    return found


async def read_bytes(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises:
        TooLarge: more bytes than `limit`, by its header or by count.
    """
    parts, size = [], announced_bytes(request)
    if size <= limit:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                break
            parts.append(part)
    if size > limit:
        raise TooLarge("{body} has {found} bytes or more; at most {limit} are read", body=BODY, found=size, limit=limit)
    return b"".join(parts)


def announced_bytes(request: Request) -> int:
    """Length of the body by its header; 0 where that says none."""
    told = request.headers.get("content-length", "0")
    return int(told[:18]) if told.isascii() and told.isdecimal() else 0


def meant(value: Any, kind: type[T]) -> T:
    """A value as the type that says what may be asked; nothing is coerced, and no field is ignored.

    Raises:
        UnknownOption: a field that the type does not have. Its fact `param` says which.
        AskedWrong: a value is missing, of another kind or out of its range. Its fact `param` says where.
    """
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as wrong:
        raise _refusal(str(wrong)) from None


def _refusal(text: str) -> AskedWrong:
    """What msgspec says of a value, as an error that names the place."""
    found = _AT.match(text)
    why, path = (found["why"], found["path"] or "") if found else (text, "")
    place = path.removeprefix(".")
    if unknown := _UNKNOWN.match(why):
        param = ".".join(part for part in (place, unknown["name"][:100]) if part)
        return UnknownOption("there is no field {param} here", hint="remove it: khola ignores nothing in silence", param=param)
    if missing := re.match(r"Object missing required field `(.*)`", why):
        return AskedWrong("{param} is missing", param=".".join(part for part in (place, missing[1]) if part))
    return AskedWrong("{param}: {why}", param=place or "body", why=why[:1].lower() + why[1:])


def encoded(value: Any, *, raw_utf8: bool = False) -> bytes:
    """JSON of anything that msgspec can encode; ASCII unless told otherwise, so that no split of bytes breaks a letter."""
    written = msgspec.json.encode(value)
    if raw_utf8 or written.isascii():
        return written
    return json.dumps(json.loads(written), separators=(",", ":")).encode()


def json_response(service: Service, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    body = encoded(value, raw_utf8=service.raw_utf8)
    return Response(body, status, headers=dict(headers or {}), media_type="application/json")
