"""Schemathesis asks `khola serve --engine echo` what OpenAI's specification allows to be asked at the addresses that khola has.

    python tests/conformance/run_schemathesis.py SPECIFICATION [FOLDER]

SPECIFICATION is `openapi.json` of https://github.com/openai/openai-openapi. It names few statuses beside 200, so refusals are added:
khola refuses what it does not do (400), and ids that it does not have (404).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from serving import FOLDER, environment, served

PACKAGES = ("schemathesis==4.32.5",)
OPERATIONS = {
    "/chat/completions": ("post",), "/completions": ("post",), "/embeddings": ("post",), "/models": ("get",), "/models/{model}": ("get",),
    "/responses": ("post",), "/responses/{response_id}": ("get", "delete"), "/responses/{response_id}/cancel": ("post",),
    "/responses/{response_id}/input_items": ("get",), "/responses/input_tokens": ("post",),
}  # fmt: skip
REFUSALS = ("400", "404")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def cut(specification: dict[str, Any]) -> dict[str, Any]:
    """The specification of our operations alone."""
    paths: dict[str, Any] = {}
    for path, methods in OPERATIONS.items():
        found = specification["paths"][path]
        paths[path] = {key: value for key, value in found.items() if key in methods or key == "parameters"}
        for method in methods:
            paths[path][method]["responses"].update({status: {"description": "refused"} for status in REFUSALS})
    return {**specification, "paths": paths}


def main(specification: Path, folder: Path) -> int:
    """Ask; the exit code of Schemathesis."""
    folder.mkdir(parents=True, exist_ok=True)
    python = environment(folder / "schemathesis", PACKAGES)
    ours = folder / "openai-cut.json"
    ours.write_text(json.dumps(cut(json.loads(specification.read_text(encoding="utf-8")))))
    with served("--engine", "echo") as address:
        command = [
            str(python.parent / "schemathesis"), "run", str(ours), "--url", address, "--phases", "examples,fuzzing", "--mode", "positive",
            "--max-examples", "25", "--checks", CHECKS, "--seed", "1", "--no-color",
        ]  # fmt: skip
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else FOLDER))
