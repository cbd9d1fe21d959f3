"""Texts are cut only where there is memory for it, whatever other threads cut meanwhile."""

from __future__ import annotations

import pytest

from khola.errors import NoMemory
from khola.tokens.room import BYTES_A_BYTE, LARGE_BYTES, MARGIN_BYTES, Room, addresses

TEXT = 100_000
NEEDED = TEXT * BYTES_A_BYTE


def test_what_others_take_counts() -> None:
    room = Room(fits=lambda size: size <= 2 * NEEDED + MARGIN_BYTES, available=lambda: 1 << 40)
    with room.taken(TEXT), room.taken(TEXT), pytest.raises(NoMemory, match="1 bytes may need 1 MB"), room.taken(1):
        pass
    with room.taken(TEXT), pytest.raises(NoMemory), room.taken(2 * TEXT):
        pass
    with room.taken(2 * TEXT):
        pass


def test_long_texts_need_free_memory_too() -> None:
    looked = []

    def available() -> int:
        looked.append(1)
        return NEEDED + MARGIN_BYTES

    room = Room(fits=lambda size: True, available=available)
    with room.taken(LARGE_BYTES // BYTES_A_BYTE):
        assert not looked, "short texts do not wait for the system's figures"
    with room.taken(TEXT), pytest.raises(NoMemory), room.taken(TEXT):
        pass
    assert len(looked) == 2


def test_addresses() -> None:
    assert addresses(1 << 20)
    assert not addresses(1 << 60)
