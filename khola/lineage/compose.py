"""The record of a model that was just made, out of its verdict and its files; and the check of a record that lies beside a model."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from khola.cards.card import How
from khola.errors import BadLineage, KholaError
from khola.fetch.disk import Disk, LocalDisk, sha256_of, write_whole
from khola.fetch.library import MANIFEST, Library
from khola.fetch.listing import WEIGHTS
from khola.lineage.licence import Source, Verdict
from khola.lineage.record import (
    NAME,
    VERSION,
    DataSet,
    MadeWith,
    Metric,
    Record,
    RecordedFile,
    RecordedParent,
    checked_metric,
    differences,
    read_record,
    record_beside,
    record_path,
    sealed,
    write_record,
)
from khola.lineage.sentences import recorded_duties
from khola.lineage.terms import Terms
from khola.loader.find import find
from khola.settings import Settings

LIBRARIES = ("numpy", "torch", "tokenizers")
"""Whose versions a record names, where this process has imported them."""
COMPANIONS = (NAME, MANIFEST, "README.md")
"""Files of a model's folder that are about it and no part of it."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """What only the maker knows; everything else is looked up."""

    how: How
    recipe: Mapping[str, Any]
    """The resolved configuration: JSON values."""
    architecture: str = ""
    seeds: Mapping[str, int] | None = None
    data: Sequence[DataSet] = ()
    metrics: Sequence[Metric] = ()


def compose(verdict: Verdict, making: Making, path: Path, settings: Settings) -> Record:
    """The sealed record of a model whose files are written.

    Args:
        verdict: of `khola.lineage.licence.judge`, for the model's name and all its sources.
        path: its folder, or its single file.
    Raises:
        BadLineage: a parent's record is damaged, or a metric cannot be true.
        BadFiles: a file cannot be read.
    """
    root, names = _files_of(path)
    files = tuple(RecordedFile(path=name, bytes=(root / name).stat().st_size, sha256=sha256_of(root / name)) for name in names)
    record = Record(
        version=VERSION,
        name=verdict.name,
        how=making.how,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        made_with=made_with(),
        files=files,
        parents=tuple(_parent(source, terms, settings) for source, terms in verdict.sources),
        architecture=making.architecture,
        data=tuple(making.data),
        recipe=dict(making.recipe),
        seeds=dict(making.seeds or {}),
        metrics=tuple(checked_metric(metric) for metric in making.metrics),
        licences=verdict.licences,
        commercial=verdict.commercial,
        duties=recorded_duties(verdict),
    )
    return sealed(record, {terms.name: terms.record for _, terms in verdict.sources if terms.record is not None})


def write_beside(record: Record, path: Path, disk: Disk | None = None) -> None:
    """Put a record and its model card beside a model's folder or file.

    Raises:
        NoDisk, NoRoom: one cannot be written.
    """
    from khola.lineage.model_card import model_card

    disk = disk or LocalDisk()
    write_record(record_path(path), record, disk)
    if path.is_dir():
        write_whole(path / "README.md", model_card(record).encode(), disk)


def made_with() -> MadeWith:
    """The code of this process."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        if name in sys.modules:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return MadeWith(
        khola=sys.modules["khola"].__version__,  # whose package is there before any of its rooms, and stands above them
        commit=commit(Path(__file__).resolve().parents[2]),
        python=platform.python_version(),
        libraries=found,
    )


def _files_of(path: Path) -> tuple[Path, list[str]]:
    """The folder, and the names below it of the files that are the model."""
    if not path.is_dir():
        return path.parent, [path.name]
    names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return path, sorted(name for name in names if name not in COMPANIONS and not any(part.startswith(".") for part in name.split("/")))


def _parent(source: Source, terms: Terms, settings: Settings) -> RecordedParent:
    record = terms.record
    return RecordedParent(
        name=terms.name,
        role=source.role,
        coefficient=source.coefficient,
        card=terms.card,
        lab=terms.lab,
        licences=record.licences if record is not None else terms.licences,
        files=_weights(terms, settings),
    )


def _weights(terms: Terms, settings: Settings) -> tuple[RecordedFile, ...]:
    """A parent's weight files; hashes that its own record or the library has are not computed again."""
    if terms.path is None:
        return ()
    root, names = _files_of(terms.path)
    known = {file.path: file.sha256 for file in terms.record.files} if terms.record is not None else {}
    entry = Library(settings).find(terms.name)
    if entry is not None and entry.folder == root:
        known = {file.path.relative_to(root).as_posix(): file.sha256 for file in entry.files if file.sha256} | known
    return tuple(
        RecordedFile(path=name, bytes=(root / name).stat().st_size, sha256=known.get(name) or sha256_of(root / name))
        for name in names
        if name.lower().endswith(WEIGHTS)
    )


def verify(path: Path, settings: Settings, say: Callable[..., None]) -> Iterator[KholaError]:
    """Everything about a model's record that is not as it should be; empty when all is well.

    The chain of hashes and every file are checked, and every ancestor that is on this disk is compared with what the record says of it.

    Args:
        path: of the model's folder or file.
        say: hears what could not be compared.
    """
    shared = path.parent / NAME
    try:
        record = read_record(shared if not record_path(path).exists() and shared.exists() else record_path(path))
    except KholaError as wrong:
        yield wrong
        return
    yield from differences(record, path if path.is_dir() else path.parent)
    for parent in record.parents:
        yield from _compared(record, parent, settings, say)


def _compared(record: Record, parent: RecordedParent, settings: Settings, say: Callable[..., None]) -> Iterator[KholaError]:
    """A parent on this disk against what is recorded of it."""
    try:
        located = find(parent.name, settings)
        found = record_beside(located.path)
    except BadLineage as wrong:
        yield wrong
        return
    except KholaError:
        say("{name}: its parent {parent} is not on this disk and was not compared", name=record.name, parent=parent.name)
        return
    if parent.record and (found is None or found.sha256 != parent.record):
        yield BadLineage(
            "{name}: the record of its parent {parent} is {found}; expected {expected}",
            hint="the parent was made again or changed: make this one again too",
            name=record.name,
            parent=parent.name,
            found=found.sha256[:16] if found else "-",
            expected=parent.record[:16],
        )
    root = located.path if located.path.is_dir() else located.path.parent
    for file in parent.files:
        if (root / file.path).is_file() and sha256_of(root / file.path) != file.sha256:
            yield BadLineage(
                "{name}: {file} of its parent {parent} is not the file that it was made from",
                hint="the parent was made again or changed: make this one again too",
                name=record.name,
                parent=parent.name,
                file=file.path,
            )


def commit(folder: Path) -> str:
    """The git commit of a source tree, with "+" when files differ from it; empty outside of one."""
    if not (folder / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],  # noqa: S607
            cwd=folder, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
