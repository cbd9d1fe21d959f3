"""Fixtures that many rooms share: data sets and real models that lie outside the repository."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
CACHE = Path(os.environ.get("KHOLA_TEST_CACHE") or Path.home() / ".cache" / "khola-tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What only some rooms understand, for all."""
    parser.addoption("--record-parity", action="store_true", help="write tests/models/parity.json anew from what is measured; not with -n")


def pytest_configure() -> None:
    """Ctrl-C works in programs that tests start, also where a shell started the tests in the background and had it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of test sets; tests that need it are skipped where it is missing."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets of {folder}")
    return folder


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """Path of a real model's file, fetched once and kept outside the repository; see `real-models.json`."""

    def fetch(name: str) -> Path:
        script = SHARED / "real-models"
        if not script.exists():
            pytest.skip(f"needs {script} to fetch real weights")
        done = subprocess.run([sys.executable, str(script), str(CACHE), name], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"could not fetch {name}: {done.stderr.strip()[-300:]}")
        return Path(done.stdout.strip().splitlines()[-1].removesuffix(": already there"))

    return fetch
