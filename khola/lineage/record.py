"""`lineage.json`: who a model was made from, how, from which data, under which licences; written beside it when it is made.

Chain    a record carries the SHA-256 of its own content and of each parent's record, and all ancestors' records whole: whoever changes
         one of them, anywhere above, breaks every record below it.
Place    `lineage.json` in a model's folder; `FILE.lineage.json` beside a single file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from khola.cards.card import How
from khola.errors import BadLineage, HashMismatch, KholaError, MissingFile
from khola.fetch.disk import Disk, sha256_of, write_whole
from khola.fetch.places import is_file_name
from khola.store.strict_json import load_json

NAME = "lineage.json"
VERSION = 1
MAX_BYTES = 16 << 20
MAX_ANCESTORS = 256

Role = Literal["weights", "merge-term", "tokenizer", "teacher-logits", "teacher-text"]
TAUGHT: tuple[Role, ...] = ("teacher-logits", "teacher-text")
"""Roles in which nothing but outputs reaches the new model."""


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a record."""


class RecordedFile(_Strict, frozen=True, kw_only=True):
    """A file by its content."""

    path: str
    """Below the model's folder."""
    bytes: int
    sha256: str


class RecordedParent(_Strict, frozen=True, kw_only=True):
    """A model that this one was made from."""

    name: str
    role: Role
    coefficient: float | None = None
    """Of a merge's term."""
    card: str = ""
    """Of khola's catalogue; empty where none describes it."""
    lab: str = ""
    licences: tuple[str, ...] = ()
    """Keys of licences.toml: its own, or those that reached it."""
    files: tuple[RecordedFile, ...] = ()
    """Empty where the model was only asked, at an address."""
    record: str = ""
    """SHA-256 of its own record; empty where it has none."""


class DataSet(_Strict, frozen=True, kw_only=True):
    """Data that it was trained on."""

    name: str
    sha256: str
    """Of the bytes, or of the list of the files' hashes."""
    licence: str
    """A key of licences.toml, or "own"."""
    rows: int = 0
    source: str = ""


class Metric(_Strict, frozen=True, kw_only=True):
    """Something that was measured, with its interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    """Of the interval."""
    samples: int = 0
    unit: str = ""


class RecordedDuties(_Strict, frozen=True, kw_only=True):
    """What one licence asks of this model, through which ancestor."""

    licence: str
    model: str
    way: Literal["weights", "outputs", "data"]
    sentences: tuple[str, ...]


class MadeWith(_Strict, frozen=True, kw_only=True):
    """The code that made it."""

    khola: str
    commit: str = ""
    """Of the source tree; empty where khola was installed from a package. "+" at the end: files differed from it."""
    python: str = ""
    libraries: dict[str, str] = {}


class Record(_Strict, frozen=True, kw_only=True):
    """One model's descent."""

    version: int
    name: str
    how: How
    created: str
    """ISO 8601 in UTC."""
    made_with: MadeWith
    files: tuple[RecordedFile, ...]
    parents: tuple[RecordedParent, ...]
    architecture: str = ""
    data: tuple[DataSet, ...] = ()
    recipe: dict[str, Any] = {}
    """The resolved configuration of what made it."""
    seeds: dict[str, int] = {}
    metrics: tuple[Metric, ...] = ()
    licences: tuple[str, ...] = ()
    """Keys of licences.toml that ask something of whoever passes it on."""
    commercial: Literal["yes", "no", "conditions"] = "yes"
    duties: tuple[RecordedDuties, ...] = ()
    ancestors: tuple[Record, ...] = ()
    """Records of all ancestors that have one, nearest first, each without its own ancestors."""
    sha256: str = ""
    """Of everything but this and `ancestors`."""

    def ancestor(self, sha256: str) -> Record | None:
        """The ancestor whose record has this hash."""
        return next((record for record in self.ancestors if record.sha256 == sha256), None)


def content_hash(record: Record) -> str:
    """SHA-256 of what a record says: keys in order, no spaces, without its own hash and its ancestors."""
    built: dict[str, Any] = msgspec.to_builtins(record)
    del built["sha256"], built["ancestors"]
    return hashlib.sha256(json.dumps(built, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def sealed(record: Record, parents: Mapping[str, Record]) -> Record:
    """The record with its parents' hashes, all ancestors' records and its own hash.

    Args:
        parents: records of parents, by the parents' names; those that have none are left out.
    """
    linked = tuple(
        msgspec.structs.replace(parent, record=parents[parent.name].sha256 if parent.name in parents else "") for parent in record.parents
    )
    above = {one.sha256: one for parent in parents.values() for one in (_alone(parent), *parent.ancestors)}
    whole = msgspec.structs.replace(record, parents=linked, ancestors=tuple(above.values()))
    return msgspec.structs.replace(whole, sha256=content_hash(whole))


def _alone(record: Record) -> Record:
    return msgspec.structs.replace(record, ancestors=())


def record_path(path: Path) -> Path:
    """Where the record of a model's folder or of a single file lies."""
    return path / NAME if path.is_dir() else path.with_name(f"{path.name}.{NAME}")


def record_beside(path: Path) -> Record | None:
    """The record of a model's folder or file; None when there is none.

    Raises:
        BadLineage: it is damaged, or was changed after it was written.
    """
    own = record_path(path)
    if own.is_file():
        return read_record(own)
    shared = path.parent / NAME
    record = read_record(shared) if path.is_file() and shared.is_file() else None
    return record if record is not None and any(file.path == path.name for file in record.files) else None


def read_record(path: Path) -> Record:
    """A record, its chain checked.

    Raises:
        MissingFile, BadJson: it is not there, or is no JSON.
        BadLineage: a key, type, version or name that no record has, or a hash that does not agree.
    """
    found = load_json(path, max_bytes=MAX_BYTES)
    try:
        record = msgspec.convert(found, Record)
    except msgspec.ValidationError as wrong:
        raise BadLineage("{file}: no record of this kind: {reason}", file=str(path), reason=str(wrong)[:200]) from None
    for one in (record, *record.ancestors):
        if one.version != VERSION:
            raise BadLineage(
                "{file}: the record has version {found}; expected {expected}",
                hint="a newer khola wrote it",
                file=str(path),
                found=one.version,
                expected=VERSION,
            )
        names = [file.path for file in one.files]
        wrong_name = next((name for name in names if not is_file_name(name)), None)
        if wrong_name is not None or len(set(names)) != len(names) or len(record.ancestors) > MAX_ANCESTORS:
            raise BadLineage(
                "{file}: the record names a file that no model may have: {name!r}",
                file=str(path),
                name=(wrong_name or "twice the same")[:200],
            )
    _check_chain(record, str(path))
    return record


def _check_chain(record: Record, file: str) -> None:
    """Every hash agrees with what it stands for, and every record that is named is there.

    Raises:
        BadLineage: one does not.
    """
    for one in (record, *record.ancestors):
        found = content_hash(one)
        if found != one.sha256:
            raise BadLineage(
                "{file}: the record of {name} was changed after it was written: its hash is {found}, it says {expected}",
                hint="nothing below it can be trusted: make it again, or get the record from whoever made it",
                file=file,
                name=one.name,
                found=found[:16],
                expected=one.sha256[:16],
            )
        for parent in one.parents:
            if parent.record and record.ancestor(parent.record) is None:
                raise BadLineage(
                    "{file}: {name} names a record of its parent {parent}, {expected}, that is not there",
                    hint="nothing below it can be trusted: make it again, or get the record from whoever made it",
                    file=file,
                    name=one.name,
                    parent=parent.name,
                    expected=parent.record[:16],
                )


def write_record(path: Path, record: Record, disk: Disk) -> None:
    """Put a sealed record beside its model; readers find the old one or the new one.

    Raises:
        NoDisk, NoRoom: it cannot be written.
    """
    built: dict[str, Any] = msgspec.to_builtins(record)
    write_whole(path, json.dumps(built, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n", disk)


def differences(record: Record, folder: Path) -> Iterator[KholaError]:
    """Files that are not as the record says: every one is read and hashed.

    Args:
        folder: where the model's files lie.
    """
    for file in record.files:
        path = folder / file.path
        if not path.is_file():
            yield MissingFile("{file} is missing in {folder}", file=file.path, folder=str(folder))
        elif (found := sha256_of(path)) != file.sha256:
            yield HashMismatch(
                "{file}: its SHA-256 is {found}; the record says {expected}",
                file=file.path,
                found=found[:16],
                expected=file.sha256[:16],
            )


def checked_metric(metric: Metric) -> Metric:
    """The metric, whose numbers JSON can hold and whose interval holds its value.

    Raises:
        BadLineage: they cannot be true.
    """
    numbers = [number for number in (metric.value, metric.low, metric.high) if number is not None]
    inside = metric.low is None or metric.high is None or metric.low <= metric.value <= metric.high
    if not all(map(math.isfinite, numbers)) or not inside or not 0 < metric.level < 1:
        raise BadLineage(
            "metric {name}: {value} with the interval {low} to {high} cannot be true",
            name=metric.name,
            value=metric.value,
            low=metric.low,
            high=metric.high,
        )
    return metric
