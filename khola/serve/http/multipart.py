"""Forms with files (multipart/form-data), read strictly: bounded parts, whole names, no encodings.

Source   RFC 7578, RFC 2046 section 5.1.
"""

from __future__ import annotations

import re

import msgspec

from khola.errors import AskedWrong

PARTS = 16
HEADER_BYTES = 8 << 10
_BOUNDARY = re.compile(r"""multipart/form-data\s*;\s*boundary=("?)([A-Za-z0-9'()+_,./:=? -]{1,70})\1\s*""", re.IGNORECASE)
_NAMED = re.compile(
    r'form-data; name="([^"\r\n]{1,100})"(?:; filename="([^"\r\n]{0,255})")?(?:; filename\*=[^;\r\n]{0,500})?', re.IGNORECASE
)


class Part(msgspec.Struct, frozen=True):
    """One field of a form."""

    name: str
    content: bytes
    filename: str | None = None
    """None where it is no file."""


def parts(content_type: str, body: bytes) -> dict[str, Part]:
    """The fields of a form, by name.

    Args:
        content_type: header of the request.
        body: whole and already bounded.
    Raises:
        AskedWrong: it is no such form, has too many fields, or one twice.
    """
    named = _BOUNDARY.fullmatch(content_type.strip())
    if named is None:
        raise _wrong("its boundary is missing")
    mark = b"--" + named[2].rstrip().encode()
    if not body.startswith(mark):
        raise _wrong("it does not begin with its boundary")
    found: dict[str, Part] = {}
    pieces = body.split(b"\r\n" + mark, PARTS + 2)
    first = pieces[0][len(mark) :]
    for piece in [first, *pieces[1:]]:
        if piece.startswith(b"--"):
            return found
        if len(found) >= PARTS:
            break
        part = _part(piece)
        if part.name in found:
            raise _wrong("a field is there twice")
        found[part.name] = part
    raise _wrong("it has no end, or too many fields")


def _part(piece: bytes) -> Part:
    """One field, behind its boundary."""
    head, gap, content = piece.partition(b"\r\n\r\n")
    if not head.startswith(b"\r\n") or not gap or len(head) > HEADER_BYTES:
        raise _wrong("a field has no headers, or too long ones")
    try:
        lines = head.decode("utf-8").strip("\r\n").split("\r\n")
    except UnicodeDecodeError:
        raise _wrong("a header is not UTF-8") from None
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    named = _NAMED.fullmatch(headers.get("content-disposition", ""))
    if named is None or "content-transfer-encoding" in headers:
        raise _wrong("a field has no name, or is encoded")
    return Part(named[1], content, named[2])


def _wrong(why: str) -> AskedWrong:
    return AskedWrong("the form cannot be read: {why}", hint="send multipart/form-data as RFC 7578 has it", why=why, param="body")
