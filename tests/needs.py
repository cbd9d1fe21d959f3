"""What some tests cannot do without; `tests/native/test_built.py` sees that no library is missing where one can be built."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from khola.evals.sandbox import kernel
from khola.native.lib import library_path

needs_library = pytest.mark.skipif(library_path() is None, reason="no native library was built")
needs_seccomp = pytest.mark.skipif(not kernel.has_seccomp(), reason="needs a kernel with seccomp filters")
needs_landlock = pytest.mark.skipif(not kernel.landlock_version(), reason="needs a kernel with Landlock")


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skip where one of these programs is missing."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


def said(*command: str | Path, code: int = 0) -> str:
    """What a program prints; its exit code must be as told."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, f"{command[0]} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout
