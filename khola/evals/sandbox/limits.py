"""What one run may take, for each of its two processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a run; as no process may start another, those of a process are those of everything it does."""

    cpu_s: int = 2
    """Processor time of a process, seconds; one more second and it is killed even if it ignores the signal."""
    wall_s: float = 5.0
    """Time on the clock of the whole run, seconds."""
    memory_bytes: int = 1 << 30
    """Address space of a process, bytes, its interpreter of some 50 MB included."""
    output_bytes: int = 1 << 20
    """What a process may print, bytes."""
    message_bytes: int = 4 << 20
    """The longest message (arguments or a result), bytes."""
    threads: int = 16
    """Threads of a process; counted every 20 ms."""
    open_files: int = 64
    """Descriptors of a process."""
