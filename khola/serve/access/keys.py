"""Keys of the server: `kh_<id>_<secret>`, of which only a hash is kept.

A secret has 256 random bits, so a fast hash keeps it as well as a slow one would. The file is read again when it changes, so a key that
is revoked opens nothing from the next request on.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import string
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from khola.errors import BadJson, BadManifest, NotFound
from khola.serve.access.quota import Quota

KeyScope = Literal["infer", "admin", "train", "vote"]
SCOPES: tuple[KeyScope, ...] = ("infer", "admin", "train", "vote")
FILE = "keys.json"
"""Below the home folder of khola."""

_SHAPE = re.compile(r"kh_([0-9A-Za-z]{8})_[0-9A-Za-z_-]{43}")
_LETTERS = string.ascii_letters + string.digits
_ADDRESSES = 4096


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a key."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z]{8}$")]
    hash: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the whole key."""
    scopes: tuple[KeyScope, ...]
    created: int
    """Seconds since 1970."""
    expires: int | None = None
    """Seconds since 1970; None never."""
    note: str = ""
    quota: Quota | None = None
    """What it may use."""

    def over(self, now: float) -> bool:
        """Whether it has expired."""
        return self.expires is not None and self.expires <= now


class Keys:
    """The keys of one file; a file that is not there has none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, Key] = {}

    def all(self) -> list[Key]:
        """Every key, oldest first.

        Raises:
            BadManifest: the file is damaged.
        """
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._keys = None, {}
            return []
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            try:
                found = msgspec.json.decode(self._path.read_bytes(), type=list[Key])
            except (msgspec.DecodeError, BadJson, OSError) as wrong:
                raise BadManifest("{file}: no list of keys: {why}", file=str(self._path), why=str(wrong)) from wrong
            self._stamp, self._keys = stamp, {key.id: key for key in found}
        return sorted(self._keys.values(), key=lambda key: key.created)

    def new(self, scopes: Sequence[KeyScope], *, days: float | None = None, note: str = "", quota: Quota | None = None) -> str:
        """Make a key; the only time that it is told whole."""
        key, shown = made(scopes, days=days, note=note, quota=quota)
        self._write([*self.all(), key])
        return shown

    def revoke(self, number: str) -> Key:
        """Take a key away.

        Raises:
            NotFound: no key has this id.
        """
        keys = self.all()
        gone = next((key for key in keys if key.id == number), None)
        if gone is None:
            raise NotFound("there is no key {id}", hint="`khola key list` lists the keys", id=number[:80])
        self._write([key for key in keys if key is not gone])
        return gone

    def find(self, shown: str, now: float) -> Key | None:
        """The key that was shown, if it is one of these and has not expired. An unknown id is compared like a known one."""
        self.all()
        return matching(shown, self._keys, now)

    def _write(self, keys: list[Key]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(keys), indent=1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self._stamp = None


def made(scopes: Sequence[KeyScope], *, days: float | None = None, note: str = "", quota: Quota | None = None) -> tuple[Key, str]:
    """A new key: what is kept of it, and what its owner is told."""
    number = "".join(secrets.choice(_LETTERS) for _ in range(8))
    shown = f"kh_{number}_{secrets.token_urlsafe(32)}"
    now = int(time.time())
    expires = None if days is None else now + int(days * 86_400)
    return Key(id=number, hash=_hash(shown), scopes=tuple(scopes), created=now, expires=expires, note=note, quota=quota), shown


def looks_like_one(shown: str) -> bool:
    """Whether a credential means to be a key of khola's, and not the word that clients send where none is needed."""
    return shown.startswith("kh_")


def matching(shown: str, keys: dict[str, Key], now: float) -> Key | None:
    """The key by its public id, if its hash is the right one; the comparison takes as long for a wrong one."""
    shape = _SHAPE.fullmatch(shown)
    key = keys.get(shape[1]) if shape else None
    right = hmac.compare_digest(_hash(shown), key.hash if key is not None else "0" * 64)
    return key if key is not None and right and not key.over(now) else None


def _hash(shown: str) -> str:
    return hashlib.sha256(shown.encode("utf-8", "surrogateescape")).hexdigest()


class Failures:
    """Wrong keys of the last minute, by address; those of the addresses that were heard last are remembered.

    Args:
        limit: how many an address may show in a minute.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def note(self, address: str, now: float) -> None:
        """Remember a wrong key."""
        times = self._times.setdefault(address, deque(maxlen=self._limit))
        times.append(now)
        self._times.move_to_end(address)
        while len(self._times) > _ADDRESSES:
            self._times.popitem(last=False)

    def wait_s(self, address: str, now: float) -> float:
        """Seconds until this address may show a key again; 0 when it may now."""
        times = self._times.get(address)
        if times is None or len(times) < self._limit:
            return 0.0
        return max(0.0, times[0] + 60.0 - now)
