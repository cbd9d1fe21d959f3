"""Whatever a power cut leaves of a save, the newest checkpoint is the old one or the new one, whole (P2).

The disk's operations of one save are recorded. After each of them the power may go: what was not yet made to last, a file's bytes or a
name in a folder, may then be there or not, in any combination.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from khola.train import save
from tests.train.test_save import STATE, newest, tensors


@dataclass
class Disk:
    """What is on a disk for certain, and what may be."""

    folder: Path
    lasting: dict[str, bytes] = field(default_factory=dict)
    """Bytes by file number, once the file was synced."""
    operations: list[tuple[str, str, str]] = field(default_factory=list)
    """In order. ("link", path, number), ("move", from, to) and ("folder", path, "") make names; ("file", number, "") and
    ("names", folder, "") make bytes and names last."""


def recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """One save, written down."""
    disk = Disk(folder)
    sync, replace, mkdir = os.fsync, Path.replace, Path.mkdir

    def name(path: str | Path) -> str:
        return os.path.relpath(path, folder)

    def fsync(handle: int) -> None:
        sync(handle)
        where = Path(f"/proc/self/fd/{handle}").readlink()
        if where.is_dir():
            disk.operations.append(("names", name(where), ""))
            return
        number = str(os.fstat(handle).st_ino)
        disk.lasting[number] = where.read_bytes()
        disk.operations += [("link", name(where), number), ("file", number, "")]

    def moved(path: Path, target: Path) -> Path:
        disk.operations.append(("move", name(path), name(target)))
        return replace(path, target)

    def made(path: Path, *args: object, **options: object) -> None:
        if not path.exists():
            disk.operations.append(("folder", name(path), ""))
        mkdir(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(Path, "replace", moved)
        patch.setattr(Path, "mkdir", made)
        save.write(folder, 2, tensors(2.0), STATE)
    return disk


def crashes(disk: Disk, rng: random.Random, each: int) -> Iterator[dict[str, bytes]]:
    """Trees of files that a power cut may leave: after every operation, some combinations of what need not last."""
    for cut in range(len(disk.operations) + 1):
        done = disk.operations[:cut]
        loose = [place for place, (kind, *_) in enumerate(done) if kind in ("link", "move", "folder") and not _lasts(done, place)]
        synced = {number for kind, number, _ in done if kind == "file"}
        for trial in range(each):
            lost = {place for place in loose if trial == 0 or (trial > 1 and rng.random() < 0.5)}
            tree: dict[str, bytes] = {}
            for place, (kind, one, other) in enumerate(done):
                if place in lost:
                    continue
                if kind == "link":
                    whole = disk.lasting[other]
                    tree[one] = whole if other in synced else whole[: rng.randrange(len(whole))]
                elif kind == "move":
                    for path in [path for path in tree if path == one or path.startswith(f"{one}/")]:
                        tree[other + path.removeprefix(one)] = tree.pop(path)
            yield tree


def _lasts(done: list[tuple[str, str, str]], place: int) -> bool:
    """Whether the name that an operation made was synced with its folder afterwards."""
    kind, one, other = done[place]
    folder = str(Path(other if kind == "move" else one).parent)
    return ("names", folder, "") in done[place:]


@pytest.mark.parametrize("each", [6])
def test_every_power_cut_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: int) -> None:
    folder = tmp_path / "run"
    save.write(folder, 1, tensors(1.0), STATE)
    first = {f"step-000001/{path.name}": path.read_bytes() for path in (folder / "step-000001").iterdir()}
    disk = recorded(folder, monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    found, rng = {1: 0, 2: 0}, random.Random(0)
    for tree in crashes(disk, rng, each):
        shutil.rmtree(folder)
        for path, data in (first | tree).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        saved = newest(folder)
        assert saved is not None
        assert saved.tensors["weights"]["a"].eq(float(saved.step)).all()
        found[saved.step] += 1
    assert found[1] > 100 and found[2] > 0, found


@pytest.mark.soak
def test_two_thousand_power_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_every_power_cut_leaves_the_old_or_the_new(tmp_path, monkeypatch, 100)


def test_a_save_that_does_not_sync_would_be_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last state of a finished save must be the new one whatever was not made to last: nothing may be loose."""
    disk = recorded(tmp_path / "run", monkeypatch)
    last = list(crashes(disk, random.Random(0), 1))[-1]
    assert sorted(last) == [
        f"step-000002/{name}" for name in ("manifest.json", "optimiser.safetensors", "state.json", "weights.safetensors")
    ]
