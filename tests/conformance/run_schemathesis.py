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
UNFOLLOWED = {
    "/chat/completions": (
        "audio", "function_call", "functions", "modalities", "moderation", "n", "prediction", "response_format", "stop", "stream_options",
        "tool_choice", "tools", "top_logprobs", "web_search_options",
    ),
    "/completions": ("best_of", "logit_bias", "n", "stop", "stream_options", "suffix"),
    "/embeddings": ("dimensions", "encoding_format"),
    "/responses": (
        "background", "context_management", "conversation", "include", "moderation", "previous_response_id", "prompt", "reasoning",
        "stream", "text", "tool_choice", "tools", "truncation",
    ),
    "/responses/input_tokens": (
        "conversation", "personality", "previous_response_id", "reasoning", "text", "tool_choice", "tools", "truncation",
    ),
}  # fmt: skip
"""Fields of bodies that are left out, so that not all of what is asked is refused: those that khola refuses by name; those of which a value
made by chance is hardly ever one that can be meant; base64, for which the specification promises a list of numbers all the same; and
streams of responses, whose events Schemathesis holds against the schema with their framing on."""
USER = {
    "type": "object", "required": ["role", "content"], "additionalProperties": False,
    "properties": {"role": {"enum": ["user"]}, "content": {"type": "string", "minLength": 1}},
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
            operation = paths[path][method]
            operation["responses"].update({status: {"description": "refused"} for status in REFUSALS})
            if path in UNFOLLOWED:
                content = operation["requestBody"]["content"]
                content["application/json"]["schema"] = followed(content["application/json"]["schema"], path, specification)
                operation["requestBody"]["content"] = {"application/json": content["application/json"]}
    return {**specification, "paths": paths}


def followed(schema: dict[str, Any], path: str, specification: dict[str, Any]) -> dict[str, Any]:
    """The schema of a body as one object, without the fields that khola does not follow, and with conversations of text."""
    properties, required = parts(schema, specification)
    kept = {name: value for name, value in properties.items() if name not in UNFOLLOWED[path]}
    if "messages" in kept:
        kept["messages"] = {"type": "array", "minItems": 1, "maxItems": 3, "items": USER}
    if path.startswith("/responses"):
        kept["input"] = {"type": "string", "minLength": 1}
        required = required | {"input"}
    return {"type": "object", "properties": kept, "required": sorted(required & set(kept)), "additionalProperties": False}


def parts(schema: dict[str, Any], specification: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Properties of a schema and of all that it is made of, and those that are required."""
    while "$ref" in schema:
        schema = specification["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    properties, required = {**schema.get("properties", {})}, set(schema.get("required", ()))
    for part in schema.get("allOf", ()):
        more, needed = parts(part, specification)
        properties |= more
        required |= needed
    return properties, required


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
