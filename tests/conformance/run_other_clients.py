"""Anthropic's, Ollama's and LangChain's clients, and OpenAI's for files and batches, against a running `khola serve`.

    python tests/conformance/run_other_clients.py [FOLDER] [MODEL] [PYTEST OPTIONS…]

Without MODEL the server runs `--engine echo`, and the checks expect exactly what it says; with one, it loads that model, and what does not
depend on the words is checked. What each client does is in `checks_*.py`, which its own environment runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from serving import FOLDER, environment, served

PYTEST = "pytest==9.2.0"
CLIENTS = {
    "anthropic": ("anthropic==2.12.0", PYTEST),
    "ollama": ("ollama==0.6.3", PYTEST),
    "langchain": ("langchain-anthropic==1.7.7", "langchain-ollama==1.1.0", PYTEST),
    "batches": ("openai==3.54.0", PYTEST),
}


def main(folder: Path, model: str, options: list[str]) -> int:
    """Run all checks; the worst exit code of pytest."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = []
    words = ("--idle", "0", model) if model else ("--engine", "echo")
    home = os.environ.get("KHOLA_HOME") if model else None
    with served(*words, home=home) as address:
        for name, packages in CLIENTS.items():
            python = environment(folder / name, packages)
            env = {**os.environ, "KHOLA_ADDRESS": address.removesuffix("/v1"), "KHOLA_MODEL": model or "echo", "PYTHONPATH": ""}
            checks = Path(__file__).parent / f"checks_{name}.py"
            command = [python, "-m", "pytest", "-c", os.devnull, "--rootdir", str(checks.parent), "-q", "-rs", "-p", "no:cacheprovider"]
            codes.append(subprocess.run([*command, str(checks), *options], env=env, check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    sys.exit(main(place, sys.argv[2] if len(sys.argv) > 2 else "", sys.argv[3:]))
