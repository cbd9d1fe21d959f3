"""What the disk says of a model that is offered, without a look into its files."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path

from khola.fetch.library import Entry
from khola.fetch.places import on_disk


def created(entry: Entry | None, path: Path) -> int:
    """When a model came to this disk, in seconds since 1970."""
    if entry is not None and entry.pulled:
        with suppress(ValueError):
            return int(datetime.fromisoformat(entry.pulled).timestamp())
    files = [file.path for file in entry.files] if entry is not None else [path.expanduser()]
    with suppress(OSError, ValueError):
        return int(min(file.stat().st_mtime for file in files))
    return 0


def path_of(source: str) -> Path | None:
    """What lies at an offered path; None where it is a name, or nothing lies there."""
    is_path = "/" in source or "\\" in source or source.endswith((".gguf", ".safetensors"))
    return on_disk(source) if is_path else None


def bytes_at(path: Path) -> int:
    """Size of a file, or of the weights in a folder; 0 where there is neither."""
    with suppress(OSError):
        if path.is_dir():
            return sum(file.stat().st_size for file in path.glob("*.safetensors"))
        return path.stat().st_size
    return 0
