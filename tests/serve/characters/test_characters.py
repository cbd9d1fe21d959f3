"""Character cards: nothing is lost on the way through, and damaged pictures are refused with a reason."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from typing import Any

import msgspec
import pytest

from khola.errors import BadFiles, BadHeader, BadJson, KholaError, Truncated, UnknownKey, UnsupportedFormat, WrongShape
from khola.serve.characters import card as characters
from khola.serve.characters.card import SIGNATURE, character, chunks, plain_picture, read_json, read_png, write_json, write_png

V2: dict[str, Any] = {
    "spec": "chara_card_v2",
    "spec_version": "2.0",
    "data": {
        "name": "রিনা",
        "description": "A ferryman's daughter.",
        "first_mes": "নমস্কার {{user}}!",
        "alternate_greetings": ["Hello"],
        "tags": ["river"],
        "extensions": {"other/app": {"depth": 4, "list": [1, None, "x"]}},
        "character_book": {
            "entries": [{"keys": ["Padma"], "content": "A river.", "enabled": True, "insertion_order": 1, "extensions": {"a": 1}}]
        },
        "made_up_field": {"kept": True},
    },
}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def picture(*texts: tuple[bytes, bytes]) -> bytes:
    """A picture with text chunks before its end."""
    plain = plain_picture("x")
    return plain[:-12] + b"".join(chunk(b"tEXt", key + b"\0" + text) for key, text in texts) + plain[-12:]


def coded(card: object) -> bytes:
    return base64.b64encode(json.dumps(card).encode())


def test_everything_survives_json_and_png() -> None:
    who = character(V2)
    assert read_json(write_json(who, "v2")).data["made_up_field"] == {"kept": True}
    again, kept = read_png(write_png(who, None))
    assert again.data == {**again.data, **V2["data"]} and kept == plain_picture("রিনা")
    assert json.loads(write_json(again, "v3"))["data"]["extensions"] == V2["data"]["extensions"]
    assert json.loads(write_json(again, "v2"))["data"]["character_book"] == V2["data"]["character_book"]


def test_version_1_is_flat_both_ways() -> None:
    flat = {"name": "Rina", "description": "d", "personality": "p", "scenario": "s", "first_mes": "f", "mes_example": "e"}
    assert json.loads(write_json(character(flat), "v1")) == flat


def test_version_3_goes_before_version_2() -> None:
    newer = {"spec": "chara_card_v3", "spec_version": "3.0", "data": {"name": "Newer", "nickname": "N"}}
    assert read_png(picture((b"chara", coded(V2)), (b"ccv3", coded(newer))))[0].name == "Newer"
    assert read_png(picture((b"Chara", coded(V2))))[0].name == "রিনা"


def test_what_a_picture_carries_besides_is_left_out() -> None:
    raw = picture((b"chara", coded(V2)), (b"Comment", b"home address"))
    raw = raw[:-12] + chunk(b"eXIf", b"place") + raw[-12:]
    _, kept = read_png(raw)
    assert b"home" not in kept and b"place" not in kept and b"chara" not in kept
    assert {kind for kind, _ in chunks(kept)} == {b"IHDR", b"IDAT", b"IEND"}


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"GIF89a", UnsupportedFormat),
        (SIGNATURE, Truncated),
        (plain_picture("x")[:-1], Truncated),
        (plain_picture("x") + b"tail", BadHeader),
        (SIGNATURE + chunk(b"IDAT", b""), BadHeader),
        (SIGNATURE + chunk(b"IHDR", b"short"), BadHeader),
        (SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0)), UnsupportedFormat),
        (SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 1, 8, 2, 0, 0, 0)), UnsupportedFormat),
        (SIGNATURE + struct.pack(">I4s", 0xFFFFFFFF, b"IHDR") + bytes(40), Truncated),
        (plain_picture("x")[:20] + b"\xff" + plain_picture("x")[21:], BadHeader),
        (plain_picture("x")[:-12] + chunk(b"te t", b"") + plain_picture("x")[-12:], BadHeader),
        (plain_picture("x")[:-12] + chunk(b"tEXt", b"a\0b") * 5000 + plain_picture("x")[-12:], BadHeader),
        (plain_picture("x"), UnsupportedFormat),
        (picture((b"chara", b"%%%")), BadHeader),
        (picture((b"chara", base64.b64encode(b"[1]"))), BadJson),
        (picture((b"chara", base64.b64encode(b"[" * 5000))), BadJson),
    ],
)
def test_damaged_pictures_are_refused(raw: bytes, error: type[KholaError]) -> None:
    with pytest.raises(error):
        read_png(raw)


def test_a_large_picture_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(characters, "LARGEST_PICTURE", 100)
    with pytest.raises(UnsupportedFormat, match="at most 100"):
        read_png(plain_picture("x"))


@pytest.mark.parametrize(
    ("card", "error"),
    [
        ({"spec": "chara_card_v9", "data": {}}, UnsupportedFormat),
        ({"spec": "chara_card_v2", "data": []}, WrongShape),
        ({"name": 7}, WrongShape),
        ({"name": "x", "tags": [1]}, WrongShape),
        ({"name": "x", "extensions": []}, WrongShape),
        ({"name": "x", "character_book": {"entries": [{"content": "no keys"}]}}, WrongShape),
        ({"name": "  "}, UnknownKey),
        ({}, UnknownKey),
    ],
)
def test_what_is_no_card_is_refused(card: dict[str, Any], error: type[KholaError]) -> None:
    with pytest.raises(error):
        character(card)


def test_a_flipped_or_cut_byte_never_gives_anything_but_a_typed_error() -> None:
    whole, chance = picture((b"chara", coded(V2))), random.Random(7)
    for _ in range(100):
        raw = bytearray(whole)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        for damaged in (bytes(raw), whole[: chance.randrange(len(whole))]):
            with pytest.raises(BadFiles):
                read_png(damaged)


def test_two_equal_keys_are_refused() -> None:
    with pytest.raises(BadJson):
        read_json(b'{"name": "a", "name": "b"}')
    assert msgspec.json.decode(write_json(character({"name": "a"})))["spec"] == "chara_card_v3"
