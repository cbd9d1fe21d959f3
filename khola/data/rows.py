"""Rows of JSON on disk, all read and checked before anything is done with them: an error names the file and the line.

A file is JSONL (a row a line; empty lines are refused, because a half-written file has them) or one JSON list of rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from khola.errors import BadJson, BadRow, KholaError, MissingFile
from khola.store.strict_json import parse_json

MAX_ROW_BYTES = 16 << 20
"""Of one row; longer ones are another kind of file."""
MAX_LIST_BYTES = 1 << 30
"""Of a file that is one JSON list, which is parsed whole."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row, and where it stands."""

    file: str
    line: int
    """From 1; in a JSON list, which row."""
    value: Mapping[str, Any]

    @property
    def place(self) -> dict[str, Any]:
        """Facts of an error of this row, whose text begins with "{file}, line {line}: "."""
        return {"file": self.file, "line": self.line}

    def text(self, key: str) -> str:
        """The text under a key.

        Raises:
            BadRow: it is missing, empty or no text.
        """
        found = self.value.get(key)
        if not isinstance(found, str):
            raise BadRow("{file}, line {line}: {key} is {kind}; expected a text", **self.place, key=key, kind=type(found).__name__)
        if not found:
            raise BadRow("{file}, line {line}: {key} is empty", **self.place, key=key)
        return found

    def only(self, allowed: Iterable[str]) -> None:
        """Refuse keys that nobody would read.

        Raises:
            BadRow: there is one.
        """
        known = tuple(allowed)
        unknown = [key for key in self.value if key not in known]
        if unknown:
            raise BadRow(
                "{file}, line {line}: nothing reads the key {key!r}; known are {known}",
                **self.place,
                key=unknown[0],
                known=", ".join(known),
            )

    def located(self, problem: KholaError) -> BadRow:
        """The same problem with the place of this row."""
        return BadRow("{file}, line {line}: {reason}", **self.place, reason=problem.told())


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """Rows of all files, in order.

    Raises:
        MissingFile: a file is not there.
        BadRow: one is empty, is not JSON, holds NaN or says something twice; or a file has no row at all.
    """
    rows: list[Row] = []
    for path in paths:
        before = len(rows)
        rows += _listed(path) if path.suffix.lower() == ".json" else _lines(path)
        if len(rows) == before:
            raise BadRow("{file} holds no row", file=str(path), line=0)
    return rows


def hashes(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file by its path as it was named."""
    found = {}
    for path in paths:
        with _opened(path) as file:
            found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def sample_seed(seed: int, epoch: int, sample: int) -> int:
    """A seed for what is random about one sample in one epoch: a function of these alone, whatever was drawn before."""
    digest = hashlib.blake2b(json.dumps([seed, epoch, sample]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as problem:
        raise MissingFile("{file} cannot be read: {reason}", file=str(path), reason=problem.strerror or str(problem)) from None


def _lines(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        number = 0
        while raw := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(raw) > MAX_ROW_BYTES:
                raise BadRow("{file}, line {line}: longer than {limit} bytes", file=str(path), line=number, limit=MAX_ROW_BYTES)
            if not raw.strip():
                raise BadRow("{file}, line {line}: the line is empty", file=str(path), line=number)
            yield _row(path, number, _parsed(path, number, raw))


def _listed(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        raw = file.read(MAX_LIST_BYTES + 1)
    if len(raw) > MAX_LIST_BYTES:
        raise BadRow(
            "{file}: a JSON list of more than {limit} bytes", hint="write it as JSONL", file=str(path), line=0, limit=MAX_LIST_BYTES
        )
    found = _parsed(path, 1, raw)
    if not isinstance(found, list):
        raise BadRow("{file}: expected a JSON list of rows, found {kind}", file=str(path), line=1, kind=type(found).__name__)
    yield from (_row(path, number, value) for number, value in enumerate(found, 1))


def _parsed(path: Path, number: int, raw: bytes) -> Any:
    try:
        return parse_json(raw.decode("utf-8-sig" if number == 1 else "utf-8"), path.name)
    except UnicodeDecodeError as problem:
        raise BadRow("{file}, line {line}: byte {at} is not UTF-8", file=str(path), line=number, at=problem.start) from None
    except BadJson as problem:
        raise BadRow("{file}, line {line}: {reason}", file=str(path), line=number, reason=problem.told()) from None


def _row(path: Path, number: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise BadRow("{file}, line {line}: expected an object, found {kind}", file=str(path), line=number, kind=type(value).__name__)
    if not value:
        raise BadRow("{file}, line {line}: the row is empty", file=str(path), line=number)
    return Row(str(path), number, value)
