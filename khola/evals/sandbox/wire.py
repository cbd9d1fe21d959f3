"""What passes between the processes: frames of JSON that carry plain values and nothing that could act.

A value is None, a bool, int, float, complex, str, bytes, range, or a list, tuple, dict, set or frozenset of such, of exactly these types,
or one of these types itself; an iterator arrives as an iterator over its items. What is none of these stays where it is and travels as a
number (a handle).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

DEPTH = 64
ITEMS = 1_000_000
_HEADER = struct.Struct(">I")
_CLASSES: dict[str, type] = {
    kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type(None))
}
_KINDS: tuple[tuple[str, Any], ...] = (("l", list), ("t", tuple), ("S", set), ("F", frozenset))


class MalformedError(ValueError):
    """A message that no honest process sends, or a value that is too large or too deep to be sent."""


def write_frame(descriptor: int, message: Any) -> None:
    """Send one message; waits until all of it is taken."""
    left = memoryview(frame(message))
    while left:
        left = left[os.write(descriptor, left) :]


def frame(message: Any) -> bytes:
    """A message with its length before it."""
    body = json.dumps(message).encode()
    return _HEADER.pack(len(body)) + body


def read_frame(descriptor: int, most: int) -> Any:
    """The next message.

    Raises:
        EOFError: there is none.
        MalformedError: it is longer than `most` bytes, or no JSON.
    """
    (size,) = _HEADER.unpack(_exactly(descriptor, _HEADER.size))
    if size > most:
        raise MalformedError(f"a message of {size} bytes")
    return parse(_exactly(descriptor, size))


def cut(held: bytearray, most: int) -> bytes | None:
    """Take the first whole frame's body out of what has arrived; None when none is whole yet.

    Raises:
        MalformedError: it would be longer than `most` bytes.
    """
    if len(held) < _HEADER.size:
        return None
    (size,) = _HEADER.unpack_from(held)
    if size > most:
        raise MalformedError(f"a message of {size} bytes")
    end = _HEADER.size + size
    if len(held) < end:
        return None
    body = bytes(held[_HEADER.size : end])
    del held[:end]
    return body


def parse(body: bytes) -> Any:
    """A message's JSON.

    Raises:
        MalformedError: it is none, or too deep.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedError("no JSON") from None


def _exactly(descriptor: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        more = os.read(descriptor, size - len(parts))
        if not more:
            raise EOFError
        parts += more
    return bytes(parts)


def encode(value: Any, keep: Callable[[Any], int] | None = None) -> Any:
    """A value as JSON; subclasses of the plain types arrive as the plain types.

    Args:
        value: what is sent.
        keep: takes what is no plain value and gives its handle; without it such a value is refused.
    Raises:
        MalformedError: too large, too deep, or of another type.
    """
    return _Encoder(keep).tree(value, 0)


class _Encoder:
    def __init__(self, keep: Callable[[Any], int] | None) -> None:
        self._keep = keep
        self._left = ITEMS

    def tree(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth > DEPTH or self._left < 0:
            raise MalformedError("a value that is too large or too deep")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return ["i", hex(value)]
        if isinstance(value, float):
            return ["f", float.hex(value)]
        if isinstance(value, complex):
            return ["c", float.hex(value.real), float.hex(value.imag)]
        if isinstance(value, str):
            return ["s", str.__str__(value)]
        if isinstance(value, bytes | bytearray):
            return ["b", bytes(value).hex()]
        if isinstance(value, type) and _CLASSES.get(value.__name__) is value:
            return ["T", value.__name__]
        if isinstance(value, range):
            return ["r", hex(value.start), hex(value.stop), hex(value.step)]
        if isinstance(value, dict):
            return ["d", *([self.tree(key, depth + 1), self.tree(entry, depth + 1)] for key, entry in value.items())]
        for mark, kind in _KINDS:
            if isinstance(value, kind):
                return [mark, *self._items(iter(value), depth)]
        if isinstance(value, Iterator):
            return ["I", *self._items(value, depth)]
        if self._keep is None:
            raise MalformedError(f"a {type(value).__name__} is no plain value")
        return ["o", self._keep(value)]

    def _items(self, items: Iterator[Any], depth: int) -> Iterator[Any]:
        for item in items:
            yield self.tree(item, depth + 1)


def decode(tree: Any, handle: Callable[[int], Any] | None = None) -> Any:
    """The value of a JSON tree, made of exactly the plain types.

    Raises:
        MalformedError: the tree is not one that `encode` makes.
    """
    try:
        return _value(tree, handle, 0)
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise MalformedError(f"a value that cannot be read: {type(error).__name__}") from None


def _value(tree: Any, handle: Callable[[int], Any] | None, depth: int) -> Any:
    if tree is None or tree is True or tree is False:
        return tree
    mark, *rest = tree
    if depth > DEPTH:
        raise ValueError
    if mark in ("l", "t", "S", "F", "I"):
        items = [_value(item, handle, depth + 1) for item in rest]
        return iter(items) if mark == "I" else dict(_KINDS)[mark](items)
    if mark == "d":
        return {_value(key, handle, depth + 1): _value(entry, handle, depth + 1) for key, entry in rest}
    if mark == "r":
        return range(*(int(part, 16) for part in rest))
    if mark == "c":
        return complex(*(float.fromhex(part) for part in rest))
    (only,) = rest
    if mark == "o" and handle is not None and type(only) is int:
        return handle(only)
    readers: dict[str, Callable[[str], Any]] = {
        "i": lambda part: int(part, 16),
        "f": float.fromhex,
        "s": str,
        "b": bytes.fromhex,
        "T": _class,
    }
    if type(only) is not str:
        raise TypeError
    return readers[mark](only) if mark in readers else _unknown()


def _class(name: str) -> type:
    if name not in _CLASSES:
        raise ValueError
    return _CLASSES[name]


def _unknown() -> Any:
    raise ValueError
