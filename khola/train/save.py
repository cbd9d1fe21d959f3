"""Checkpoints that are written whole or not at all, and found valid or not found.

```
step-000020.tmp-5f3a…/   weights, optimiser, state.json, manifest.json, each on the disk   ->  renamed to step-000020
```
A folder counts only if its manifest's own hash and the hash of every file agree; the highest such step is where a run goes on. Nothing
points to it, so nothing can point wrongly. Nothing is written into a folder that has its name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from khola.errors import BadFiles, HashMismatch, KholaError, NoDisk, NoRoom
from khola.fetch.disk import sha256_of
from khola.store.atomic import atomic_file, replace_for_good
from khola.store.safetensors import read_safetensors, write_safetensors
from khola.store.strict_json import load_json, load_object

VERSION = 1
NAME = re.compile(r"step-(\d{6,})")
DRAFT = re.compile(r"step-\d{6,}\.tmp-[0-9a-f]+")
MAX_STATE_BYTES = 1 << 30
_DTYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64}


@dataclass(frozen=True, kw_only=True, eq=False)
class Saved:
    """A checkpoint that was read back."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    """By file ("weights", "optimiser") and name."""
    state: dict[str, Any]


def write(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint.

    Args:
        folder: of all checkpoints of a run; the caller alone writes to it.
        step: steps that are done.
        tensors: by file and name; on any device, float32 or float64.
        state: JSON.
    Raises:
        NoDisk: the disk is full; what was there before is untouched.
        NoRoom: it cannot be written for another reason.
    """
    final = folder / f"step-{step:06}"
    draft = folder / f"{final.name}.tmp-{secrets.token_hex(6)}"
    try:
        draft.mkdir(parents=True)
        for name, some in tensors.items():
            write_safetensors(draft / f"{name}.safetensors", {key: one.detach().cpu().numpy() for key, one in some.items()})
        _write_json(draft / "state.json", {"version": VERSION, "step": step, **state})
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(draft.iterdir())}
        _write_json(draft / "manifest.json", {"version": VERSION, "files": files, "sha256": _digest(files)})
        if final.exists():
            _remove(final)
        replace_for_good(draft, final)
    except OSError as wrong:
        if wrong.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoDisk("{file} cannot be written: the disk is full", file=str(final)) from None
        raise NoRoom("{file} cannot be written: {reason}", file=str(final), reason=wrong.strerror or str(wrong)) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final


def newest(folder: Path, tell: Callable[..., None]) -> Saved | None:
    """The highest valid checkpoint; None where there is none. Damaged ones are told of."""
    for step, path in sorted(_steps(folder).items(), reverse=True):
        try:
            return read(path, step)
        except KholaError as problem:
            tell("{path} is damaged and is not used: {reason}", path=str(path), reason=problem.told())
    return None


def read(path: Path, step: int) -> Saved:
    """One checkpoint.

    Raises:
        BadFiles: it is not whole, or a byte of it changed.
    """
    check(path)
    state = load_json(path / "state.json", max_bytes=MAX_STATE_BYTES, max_items=1 << 28)
    if state.get("version") != VERSION or state.get("step") != step:
        raise BadFiles("{file} is of another version or step", file=str(path / "state.json"))
    tensors = {file.stem: _tensors(file) for file in sorted(path.glob("*.safetensors"))}
    return Saved(step=step, tensors=tensors, state=state)


def check(path: Path) -> None:
    """Every byte of a checkpoint against its manifest.

    Raises:
        BadFiles: a file is missing, is one too many, or differs.
    """
    manifest = load_object(path / "manifest.json")
    files = manifest.get("files")
    if manifest.get("version") != VERSION or not isinstance(files, dict) or manifest.get("sha256") != _digest(files):
        raise HashMismatch("{file} does not agree with itself", file=str(path / "manifest.json"))
    found = {one.name for one in path.iterdir()} - {"manifest.json"}
    if found != set(files):
        raise HashMismatch("{folder} has other files than its manifest says", folder=str(path))
    for name, said in files.items():
        if sha256_of(path / name) != said["sha256"]:
            raise HashMismatch("{file} is not what its manifest says", file=str(path / name))


def purge(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep`; nothing goes before the newest is checked again.

    Raises:
        BadFiles: the newest is damaged; everything stays.
    """
    steps = sorted(_steps(folder).items(), reverse=True)
    if len(steps) > keep:
        check(steps[0][1])
        for _, path in steps[keep:]:
            _remove(path)


def tidy(folder: Path) -> None:
    """Remove drafts that a killed process left; the caller holds the run's lock."""
    if folder.is_dir():
        for path in folder.iterdir():
            if DRAFT.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def _steps(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    return {int(match[1]): path for path in folder.iterdir() if (match := NAME.fullmatch(path.name)) and path.is_dir()}


def _remove(path: Path) -> None:
    """Its manifest goes first, so that no moment shows half of it as whole."""
    (path / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _digest(files: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _write_json(path: Path, value: Any) -> None:
    with atomic_file(path) as out:
        out.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")


def _tensors(path: Path) -> dict[str, Tensor]:
    with read_safetensors(path) as file:
        return {
            name: torch.from_numpy(np.frombuffer(stored.raw(), _DTYPES[stored.kind]).reshape(stored.shape).copy())
            for name, stored in file.tensors.items()
        }
