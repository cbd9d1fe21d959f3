"""What the scripts here share: environments of their own for the clients of others, and a server to ask."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(os.environ.get("KHOLA_TEST_CACHE") or Path.home() / ".cache" / "khola-tests") / "conformance"
"""Where environments and sources lie; outside the repository."""
_ADDRESS = re.compile(r"http://\S+/v1")


def environment(folder: Path, packages: Sequence[str]) -> Path:
    """The Python of an environment with these packages, made where it is missing."""
    python, told = folder / "bin" / "python", folder / "packages.txt"
    wanted = "\n".join(packages)
    if not told.exists() or told.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
        told.write_text(wanted)
    return python


def source(folder: Path, package: str, version: str) -> Path:
    """The unpacked source distribution of a package, fetched where it is missing."""
    found = folder / f"{package}-{version}"
    if not found.is_dir():
        command = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), f"{package}=={version}"]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True)
        import tarfile

        with tarfile.open(folder / f"{package}-{version}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return found


@contextmanager
def served(*words: str, home: str | None = None) -> Iterator[str]:
    """A running `khola serve` on a free port; its address, with `/v1`.

    Args:
        words: more of its command line.
        home: its `KHOLA_HOME`; a folder that vanishes afterwards by default.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "khola", "serve", "--port", "0", "--lang", "en", *words]
        env = {**os.environ, "KHOLA_HOME": home or scratch}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as server:
            assert server.stderr is not None
            try:
                yield next(found[0] for line in server.stderr if (found := _ADDRESS.search(line)))
            finally:
                server.terminate()
                server.communicate(timeout=60)
