"""Character cards: JSON of versions 1, 2 and 3, alone or inside a PNG picture, read strictly and written back with all they held.

Files    PNG text chunks "chara" (version 2 or 1) and "ccv3" (version 3): base64 of UTF-8 JSON. Where both stand, the newer one counts.
Source   github.com/malfoyslastname/character-card-spec-v2, github.com/kwaroran/character-card-spec-v3; PNG: ISO/IEC 15948 sections 5, 11.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Literal, final

import msgspec

from khola.errors import BadHeader, Truncated, UnknownKey, UnsupportedFormat, WrongShape
from khola.store.strict_json import load_object

Version = Literal["v1", "v2", "v3"]

LARGEST_CARD = 4 << 20
"""Bytes of JSON."""
LARGEST_PICTURE = 16 << 20
"""Bytes of a PNG file."""
MOST_CHUNKS = 4096
MOST_PIXELS = 40_000_000
SIGNATURE = b"\x89PNG\r\n\x1a\n"
DRAWN = frozenset({b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"bKGD", b"IDAT", b"IEND"})
"""Chunks that a kept picture consists of; comments, places, dates and colour profiles of strangers are left out."""
FLAT = ("name", "description", "personality", "scenario", "first_mes", "mes_example")
"""Fields of version 1, which has nothing else."""
WORDS = ("name", "description", "personality", "scenario", "first_mes", "mes_example", "creator_notes", "system_prompt",
         "post_history_instructions", "creator", "character_version", "nickname")  # fmt: skip
LISTS = ("alternate_greetings", "tags", "group_only_greetings", "source")
SPECS = {"chara_card_v2": "v2", "chara_card_v3": "v3"}


class LoreEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a lore book: what is told when one of its keys is spoken of. Fields that are not named here stay in the card."""

    keys: tuple[str, ...]
    content: str
    enabled: bool = True
    insertion_order: float = 0
    case_sensitive: bool | None = None
    constant: bool | None = None
    selective: bool | None = None
    secondary_keys: tuple[str, ...] | None = None
    priority: float | None = None
    position: str | None = None
    use_regex: bool | None = None


class LoreBook(msgspec.Struct, frozen=True, kw_only=True):
    """What a character's world knows."""

    entries: tuple[LoreEntry, ...] = ()
    scan_depth: int | None = None
    """Messages, counted from the last, in which keys are looked for."""
    token_budget: int | None = None
    """Tokens that all told entries together may take."""
    recursive_scanning: bool | None = None
    """Whether keys are looked for in told entries as well."""


@final
class Character(msgspec.Struct, frozen=True, kw_only=True):
    """A character: the data object of its card as it was read, unknown fields and extensions included."""

    data: dict[str, Any]

    def text(self, field: str) -> str:
        """One of `WORDS`; empty where the card has none."""
        return str(self.data.get(field) or "")

    def texts(self, field: str) -> tuple[str, ...]:
        """One of `LISTS`."""
        return tuple(self.data.get(field) or ())

    @property
    def name(self) -> str:
        """What it is called."""
        return self.text("name")

    @property
    def book(self) -> LoreBook:
        """Its lore; an empty book where it has none."""
        return _book(self.data.get("character_book"))


def character(value: dict[str, Any]) -> Character:
    """A character from the JSON of a card.

    Raises:
        UnsupportedFormat: a specification of another name.
        WrongShape: a field of another type than its specification says.
        UnknownKey: no name.
    """
    spec = value.get("spec")
    if spec is not None and spec not in SPECS:
        raise UnsupportedFormat("a character card of the kind {found!r}; khola reads versions 1, 2 and 3", found=str(spec)[:40])
    data = value.get("data") if spec is not None else value
    if not isinstance(data, dict):
        raise WrongShape("character card: {field} is {found}; expected {expected}", field="data", found=_kind(data), expected="an object")
    for field in WORDS:
        _expect(field, data.get(field), isinstance(data.get(field), str), "a text")
    for field in LISTS:
        found = data.get(field)
        _expect(field, found, isinstance(found, list) and all(isinstance(item, str) for item in found), "a list of texts")
    _expect("extensions", data.get("extensions"), isinstance(data.get("extensions"), dict), "an object")
    _book(data.get("character_book"))
    if not str(data.get("name") or "").strip():
        raise UnknownKey("character card: it has no name", hint="a card needs at least {field!r}", field="name")
    return Character(data=dict(data))


def read_json(raw: bytes) -> Character:
    """A character from the bytes of a JSON card.

    Raises:
        BadFiles: no JSON, or no card.
    """
    return character(load_object(raw, file="character card", max_bytes=LARGEST_CARD))


def read_png(raw: bytes) -> tuple[Character, bytes]:
    """The character in a picture, and the picture without anything but what it draws.

    Raises:
        BadFiles: no PNG, a damaged one, one without a card, or no card in it.
    """
    found: dict[str, bytes] = {}
    for kind, body in chunks(raw):
        if kind == b"tEXt":
            keyword, _, text = body.partition(b"\0")
            if keyword.lower() in (b"chara", b"ccv3"):
                found.setdefault(keyword.lower().decode(), text)
    encoded = found.get("ccv3") or found.get("chara")
    if encoded is None:
        raise UnsupportedFormat("the picture holds no character card", hint="pictures with a card have a text chunk chara or ccv3")
    try:
        card = base64.b64decode(encoded.translate(None, b"\r\n\t "), validate=True)
    except binascii.Error as problem:
        raise BadHeader("the character card in the picture is no base64: {reason}", reason=str(problem)) from problem
    return read_json(card), drawn(raw)


def write_json(who: Character, version: Version = "v3") -> bytes:
    """A card of the asked version, with everything that was read; version 1 holds six texts and loses the rest."""
    return msgspec.json.format(msgspec.json.encode(_card(who, version)), indent=2)


def write_png(who: Character, picture: bytes | None) -> bytes:
    """A picture with the card in it as versions 2 and 3; without a picture, one is drawn.

    Raises:
        BadFiles: the picture is no PNG.
    """
    texts = [(b"chara", _card(who, "v2")), (b"ccv3", _card(who, "v3"))]
    made = bytearray(SIGNATURE)
    for kind, body in chunks(drawn(picture) if picture else plain_picture(who.name)):
        if kind == b"IEND":
            for keyword, card in texts:
                made += _chunk(b"tEXt", keyword + b"\0" + base64.b64encode(msgspec.json.encode(card)))
        made += _chunk(kind, body)
    return bytes(made)


def chunks(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of every chunk of a PNG file, each checked before it is given; nothing is decompressed.

    Raises:
        UnsupportedFormat: it is no PNG, or a larger one than khola takes.
        BadHeader, Truncated: a length, a name, a checksum or the order of chunks cannot be.
    """
    if raw[:8] != SIGNATURE:
        raise UnsupportedFormat("the picture is no PNG file")
    if len(raw) > LARGEST_PICTURE:
        raise UnsupportedFormat("the picture has {found} bytes; at most {most} are taken", found=len(raw), most=LARGEST_PICTURE)
    place, last = 8, b""
    for number in range(MOST_CHUNKS):
        if len(raw) - place < 12:
            raise Truncated("PNG: byte {at}: the file ends inside a chunk", at=place)
        length, kind = struct.unpack_from(">I4s", raw, place)
        if length > len(raw) - place - 12:
            raise Truncated("PNG: byte {at}: the file ends inside a chunk", at=place)
        if not kind.isalpha() or (number == 0) != (kind == b"IHDR") or (kind == b"IEND" and length):
            raise BadHeader("PNG: byte {at}: no chunk of this kind may stand here", at=place)
        body = raw[place + 8 : place + 8 + length]
        if zlib.crc32(raw[place + 4 : place + 8 + length]) != int.from_bytes(raw[place + 8 + length : place + 12 + length], "big"):
            raise BadHeader("PNG: byte {at}: the checksum of a chunk is wrong", at=place)
        if kind == b"IHDR":
            _check_size(body)
        last, place = kind, place + 12 + length
        yield kind, body
        if kind == b"IEND":
            break
    if last != b"IEND":
        raise BadHeader("PNG: more than {most} chunks", most=MOST_CHUNKS)
    if place != len(raw):
        raise BadHeader("PNG: {count} bytes stand behind the end of the picture", count=len(raw) - place)


def drawn(raw: bytes) -> bytes:
    """A picture with nothing in it but what it draws.

    Raises:
        BadFiles: it is no PNG, or a damaged one.
    """
    return SIGNATURE + b"".join(_chunk(kind, body) for kind, body in chunks(raw) if kind in DRAWN)


def plain_picture(name: str) -> bytes:
    """A picture of two colours for a character that has none; the same for the same name."""
    seed = zlib.crc32(name.encode())
    dark = bytes(60 + (seed >> shift) % 90 for shift in (0, 8, 16))
    light = bytes(min(255, value + 90) for value in dark)
    size, row = 96, b"\0"
    halves = [math.isqrt(max(0, 1521 - (y - 48) ** 2)) for y in range(size)]
    rows = b"".join(row + dark * (48 - half) + light * (2 * half) + dark * (48 - half) for half in halves)
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows, 9)) + _chunk(b"IEND", b"")


def _card(who: Character, version: Version) -> dict[str, Any]:
    if version == "v1":
        return {field: who.text(field) for field in FLAT}
    filled = {name: who.data.get(name) or "" for name in WORDS if name != "nickname"}
    lists = {"alternate_greetings": list(who.texts("alternate_greetings")), "tags": list(who.texts("tags"))}
    data = {**filled, **lists, "extensions": {}, **{name: value for name, value in who.data.items() if value is not None}}
    if version == "v3":
        data.setdefault("group_only_greetings", [])
    return {"spec": f"chara_card_{version}", "spec_version": "2.0" if version == "v2" else "3.0", "data": data}


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _check_size(header: bytes) -> None:
    if len(header) != 13:
        raise BadHeader("PNG: the header has {found} bytes; expected 13", found=len(header))
    width, height = struct.unpack_from(">II", header)
    if not (width and height) or width * height > MOST_PIXELS:
        raise UnsupportedFormat(
            "a picture of {width} x {height}; at most {most} pixels are taken", width=width, height=height, most=MOST_PIXELS
        )


def _book(value: object) -> LoreBook:
    if value is None:
        return LoreBook()
    try:
        return msgspec.convert(value, LoreBook)
    except msgspec.ValidationError as problem:
        raise WrongShape("character card: the lore book: {reason}", reason=str(problem)) from problem


def _expect(field: str, value: object, right: bool, expected: str) -> None:
    if value is not None and not right:
        raise WrongShape("character card: {field} is {found}; expected {expected}", field=field, found=_kind(value), expected=expected)


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
