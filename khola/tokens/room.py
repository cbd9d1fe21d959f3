"""Whether there is memory to cut a text into tokens: the library that does it ends the whole process where there is none.

It is asked for before, at its worst, and what other threads have asked for meanwhile counts.
"""

from __future__ import annotations

import mmap
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from khola.errors import NoMemory
from khola.native.probe import usable_memory

BYTES_A_BYTE = 640
"""Memory for a byte of text. Measured at the peak: 445 for digits, which are a token each; 90 to 320 for letters and words."""
MARGIN_BYTES = 64 << 20
"""What stays for everything else that runs in the process."""
LARGE_BYTES = 16 << 20
"""From here on the memory of the machine is asked for as well, which takes longer."""


def addresses(size: int) -> bool:
    """Whether the process may have so many bytes more; they are not touched, and few are not even asked for where no limit is set."""
    if sys.platform == "win32":
        return True
    import resource

    if size < LARGE_BYTES + MARGIN_BYTES and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return True
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, MemoryError):
        return False
    return True


@final
class Room:
    """Memory that texts take while they are cut, of all threads together.

    Args:
        fits: whether the process may have so many bytes more.
        available: bytes that this machine has left.
    """

    def __init__(self, fits: Callable[[int], bool] = addresses, available: Callable[[], int] = lambda: usable_memory()[1]) -> None:
        self._fits = fits
        self._available = available
        self._turn = threading.Lock()
        self._taken = 0

    @contextmanager
    def taken(self, text_bytes: int) -> Iterator[None]:
        """Memory for one text, as long as the block runs.

        Raises:
            NoMemory: there is not as much.
        """
        needed = text_bytes * BYTES_A_BYTE
        with self._turn:
            wanted = self._taken + needed + MARGIN_BYTES
            if not self._fits(wanted) or (needed > LARGE_BYTES and self._available() < wanted):
                raise NoMemory(
                    "a text of {bytes} bytes may need {needed_mb} MB to be cut into tokens, and there is less",
                    hint="send a shorter text, or ask again when less is running",
                    bytes=text_bytes,
                    needed_mb=-(-needed // 1_000_000),
                )
            self._taken += needed
        try:
            yield
        finally:
            with self._turn:
                self._taken -= needed


ROOM = Room()
"""Of this process."""
