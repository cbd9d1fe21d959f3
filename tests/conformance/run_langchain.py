"""LangChain's standard tests of chat models, through `langchain-openai`, against `khola serve`.

    python tests/conformance/run_langchain.py [MODEL [FOLDER]] [PYTEST OPTIONS…]

MODEL is a name in the library of `KHOLA_HOME`, or "echo" for the engine without a model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from serving import FOLDER, environment, served

PACKAGES = ("langchain-openai==1.7.3", "langchain-tests==1.1.9", "pytest==9.2.0", "pytest-asyncio==1.5.0")
LOOPS = ("-o", "asyncio_default_test_loop_scope=session", "-o", "asyncio_default_fixture_loop_scope=session")
"""One event loop for all: the client keeps its connections from test to test."""
SUITE = Path(__file__).with_name("langchain_suite.py")


def main(model: str, folder: Path, options: list[str]) -> int:
    """Run them; pytest's exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    python = environment(folder / "langchain", PACKAGES)
    words = ("--engine", "echo") if model == "echo" else (model,)
    with served(*words, home=None if model == "echo" else os.environ["KHOLA_HOME"]) as address:
        env = {**os.environ, "KHOLA_ADDRESS": address, "KHOLA_MODEL": model, "LANGSMITH_TRACING": "false"}
        command = [
            python,
            "-m",
            "pytest",
            "-q",
            "-rsx",
            "-c",
            os.devnull,
            "-o",
            "asyncio_mode=auto",
            *LOOPS,
            "-p",
            "no:cacheprovider",
            *options,
            SUITE,
        ]
        return subprocess.run(command, cwd=folder, env=env, check=False).returncode


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(given[0] if given else "echo", Path(given[1]) if len(given) > 1 else FOLDER, given[2:]))
