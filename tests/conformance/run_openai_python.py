"""openai-python's own tests of its resources against `khola serve --engine echo`.

    python tests/conformance/run_openai_python.py [FOLDER] [PYTEST OPTIONS…]

They come out of the source distribution and never into this repository; `openai_python_plugin.py` says which are left out, and why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from serving import FOLDER, environment, served, source

VERSION = "3.54.0"
PACKAGES = (f"openai[aiohttp]=={VERSION}", "pytest==9.2.0", "pytest-asyncio==1.5.0", "inline-snapshot==0.36.1", "rich==15.0.0")
FILES = (
    "chat/test_completions.py", "test_completions.py", "test_embeddings.py", "test_models.py", "test_responses.py",
    "responses/test_input_tokens.py", "responses/test_input_items.py",
)  # fmt: skip
STREAMS = Path(__file__).with_name("openai_python_streams.py")
"""Of our own; it lies beside theirs while they run, for their fixtures."""
MODELS = ("echo", "gpt-6-astra")
"""Names that the tests of models ask for."""


def main(folder: Path, options: list[str]) -> int:
    """Run them; pytest's exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    python = environment(folder / "openai-python", PACKAGES)
    tests = source(folder, "openai", VERSION)
    with served("--engine", "echo", *MODELS) as address:
        env = {
            **os.environ, "TEST_API_BASE_URL": address, "OPENAI_TEST_HTTP_CLIENT": "httpx2",
            "PYTHONPATH": f"{tests}:{Path(__file__).parent}",
        }  # fmt: skip
        command = [python, "-m", "pytest", "-o", "addopts=", "-p", "openai_python_plugin", "-q", "-rsx", *options]
        shutil.copy(STREAMS, tests / "tests" / "test_khola_streams.py")
        files = [*(f"tests/api_resources/{file}" for file in FILES), "tests/test_khola_streams.py"]
        return subprocess.run([*command, *files], cwd=tests, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER, sys.argv[2:]))
