"""One lock a file: two processes never write the same model file, and the second learns who holds it.

The lock is the kernel's (flock, or a byte range on Windows), so it dies with its holder; the file beside it only tells the holder's
process id. The file is removed before the lock is given up; whoever opened it meanwhile notices and opens the new one.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from khola.errors import Busy
from khola.fetch.disk import writing

POLL_S = 0.1
TRIES = 1000
"""How often a folder that comes and goes is made again."""


@contextmanager
def locked(
    path: Path,
    *,
    wait_s: float = 0.0,
    waiting: Callable[[int], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the lock of this path while the block runs.

    Args:
        path: the lock's own file; its folder is made if need be, and removed with it when nothing else is in it.
        wait_s: how long to wait for another holder, in seconds.
        waiting: called once, with the holder's process id (0 if unknown), when waiting begins.
    Raises:
        Busy: another process still holds it after `wait_s`.
        NoDisk, NoRoom: the lock's file cannot be written.
    """
    until, told = clock() + wait_s, False
    while (handle := _taken(path)) is None:
        holder = _holder(path)
        if clock() >= until:
            raise Busy("{path} is held by process {pid}", hint="wait for it to end, then try again", path=str(path), pid=holder or "?")
        if waiting is not None and not told:
            waiting(holder)
            told = True
        sleep(POLL_S)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file, and the folder may be in use: the lock works without
            path.unlink()
            path.parent.rmdir()
        os.close(handle)


def _taken(path: Path) -> int | None:
    """The open and locked file, or None while another process has it."""
    with writing(path):
        return _opened_and_locked(path)


def _opened_and_locked(path: Path) -> int | None:
    for left in reversed(range(TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            if not left:
                raise  # no file can be made in this folder
            continue  # the folder went with its last file between the two calls
        except FileExistsError:
            if not left or _is_other_than_folder(path.parent):
                raise
            continue  # the folder was there for `mkdir` and gone when it looked again
        if not _try_lock(handle):
            os.close(handle)
            return None
        if _same_file(handle, path):
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            return handle
        os.close(handle)
    return None


def _is_other_than_folder(path: Path) -> bool:
    """Looks once: asking twice, whether it is there and what it is, would race with a holder that removes it."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 1 << 20, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _same_file(handle: int, path: Path) -> bool:
    with suppress(OSError):
        there, here = path.stat(), os.fstat(handle)
        return (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)
    return False


def _holder(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii")[:20])
    return 0
