"""Packed weights kept on disk: the first start of a model packs them, later starts map what it left.

One file a model lies in `Settings.packed`. Its key is a hash of everything that decides its bytes, so a file of another model, of a
changed model or of another packer is never used; it is packed anew. What an architecture joins into one matrix shows in the matrices'
names, which must all be there in the form that packing would give them now. Files appear whole or not at all, and one that is in use may be
removed or replaced: several processes need no lock.

The program that runs on these weights is not kept: recording it takes a few milliseconds, and so it always fits the code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from khola.errors import NoDisk, NoRoom
from khola.loader.memory import Room
from khola.native.pack import Plan
from khola.native.packed_file import PackedWriter, packer, read_packed
from khola.ops import native_weights
from khola.ops.native_ops import NativeOps
from khola.ops.native_weights import Joined
from khola.ops.vocabulary import Forward, Stored
from khola.settings import Settings
from khola.store.atomic import atomic_file

SAMPLE_BYTES = 64 << 10
"""Read from both ends of every model file for its key; length and time of change count as well."""
FREE_BYTES = 1_000_000_000
"""Disk that stays free whatever could be kept."""
DRAFT_S = 86_400
"""Age after which an unfinished file belongs to nobody."""
ENDING = ".khola"

Tell = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What packed weights come from."""

    files: tuple[str, ...]
    stored: Mapping[str, Stored]

    @property
    def key(self) -> str:
        """Equal keys mean equal packed weights."""
        facts = {
            "packer": packer(),
            "files": [_traits(Path(file)) for file in self.files],
            "tensors": [[name, tensor.kind, tensor.shape] for name, tensor in self.stored.items()],
        }
        return _sha256(json.dumps(facts).encode())

    @property
    def name(self) -> str:
        """Begins the names of all packed files that came from these files."""
        first = Path(self.files[0])
        return f"{first.stem}-{_sha256(str(first.absolute()).encode())[:8]}"


def settle(
    ops: NativeOps, passes: Sequence[Forward], origin: Origin, settings: Settings, room: Room, release: Callable[[], None], tell: Tell
) -> None:
    """Give an interpreter the packed weights of its forward passes: from the disk, or packed now and left there for the next start.

    What is packed goes to the disk piece by piece and is mapped from there: a first start needs no more memory than later ones.

    Args:
        ops: interpreter without packed weights.
        passes: all that will be compiled.
        origin: of the weights.
        settings: where packed files lie, how much disk they may take, whether they are checked wholly.
        room: memory for the weights; whether they stream is left in `ops.streams`.
        release: see `Interpreter.settle`.
        tell: hears why nothing could be kept.
    Raises:
        NoKernel: a number format that the packer does not know.
        NonFinite: the scale of a group of weights is NaN or infinite.
        NoMemory: they do not fit, and may not stream.
        NoDisk: weights have to stream, and cannot be kept on the disk.
    """
    wanted = ops.matrices(passes)
    file = _place(origin, settings) if settings.packed_bytes else None
    if file is not None and _adopted(ops, wanted, file, settings, room):
        return
    plans = native_weights.plans(wanted)
    needed = sum(plan.nbytes for plan in plans.values())
    ops.streams = room.require(needed, streams=True)
    if file is not None and _kept(ops, wanted, plans, file, settings, release, tell):
        return
    if ops.streams:
        raise NoDisk(
            "weights that stream lie on the disk in packed form, and {needed_mb} MB cannot be kept in {folder}",
            hint="free some disk, or raise KHOLA_PACKED_GB",
            needed_mb=needed // 1_000_000,
            folder=str(settings.packed),
        )
    ops.weights.settle(wanted, ops.threads, release)


@dataclass(frozen=True)
class _Place:
    """Where packed weights of one origin are kept."""

    path: Path
    key: str
    name: str


def _place(origin: Origin, settings: Settings) -> _Place:
    key = origin.key
    return _Place(settings.packed / f"{origin.name}-{key[:16]}{ENDING}", key, origin.name)


def _adopted(ops: NativeOps, wanted: Sequence[Joined], file: _Place, settings: Settings, room: Room) -> bool:
    """Whether the weights came from what an earlier start left."""
    found = read_packed(file.path, file.key, verify=settings.verify, threads=ops.threads)
    if found is None or not ops.weights.adopt(wanted, found):
        return False
    ops.streams = room.require(sum(packed.nbytes for packed in ops.weights.matrices.values()), streams=True)
    with suppress(OSError):  # on a disk that cannot be written to, the oldest is not known
        os.utime(file.path)
    return True


def _kept(
    ops: NativeOps,
    wanted: Sequence[Joined],
    plans: Mapping[str, Plan],
    file: _Place,
    settings: Settings,
    release: Callable[[], None],
    tell: Tell,
) -> bool:
    """Whether the weights were packed into a file and come from there."""
    found = None
    try:
        if _has_room(sum(plan.nbytes for plan in plans.values()), file.path.parent, settings, tell):
            with atomic_file(file.path) as out:
                writer = PackedWriter(out, file.key, plans)
                native_weights.pack_all(wanted, ops.threads, release, writer.put)
                writer.finish()
            _clean(file.path, file.name, settings.packed_bytes)
            found = read_packed(file.path, file.key)
    except (OSError, NoRoom) as wrong:
        reason = wrong.strerror or str(wrong) if isinstance(wrong, OSError) else str(wrong)
        tell("packed weights are not kept for the next start: {reason}", reason=reason)
    return found is not None and ops.weights.adopt(wanted, found)


def _has_room(needed: int, folder: Path, settings: Settings, tell: Tell) -> bool:
    """Whether that many bytes may be kept in the folder, which is there then.

    Raises:
        OSError: the folder cannot be.
    """
    if needed > settings.packed_bytes:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free - needed >= FREE_BYTES:
        return True
    tell(
        "packed weights are not kept for the next start: they need {needed_mb} MB, and {free_mb} MB are free",
        needed_mb=needed // 1_000_000,
        free_mb=free // 1_000_000,
    )
    return False


def _clean(kept: Path, name: str, budget: int) -> None:
    """Remove what the new file replaces, what nobody finished, and then what was not used for longest until the rest is in budget."""
    now = time.time()
    left: list[tuple[float, int, Path]] = []
    for path, state in packed_files(kept.parent):
        if path == kept:
            left.append((now, state.st_size, path))
        elif path.name.startswith(f"{name}-") or (path.suffix != ENDING and now - state.st_mtime > DRAFT_S):
            path.unlink(missing_ok=True)
        elif path.suffix == ENDING:
            left.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in left)
    for _, size, path in sorted(left):
        if total <= budget or path == kept:
            break
        path.unlink(missing_ok=True)
        total -= size


def packed_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Packed files of a folder and drafts of some; those that vanish meanwhile are left out."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.suffix in (ENDING, ".part"):
            with suppress(FileNotFoundError):
                yield path, path.stat()


def _traits(path: Path) -> list[Any]:
    """What tells a file from others without reading it: length, time of change, both ends."""
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        head = file.read(SAMPLE_BYTES)
        file.seek(max(0, state.st_size - SAMPLE_BYTES))
        return [path.name, state.st_size, state.st_mtime_ns, _sha256(head), _sha256(file.read(SAMPLE_BYTES))]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
