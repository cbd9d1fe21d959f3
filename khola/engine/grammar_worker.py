"""The process that compiles a stranger's grammar first: bounded, and killed when it takes too long.

A grammar may be written so that compiling it takes minutes, gigabytes or more stack than there is, which would end the whole program. So it
is compiled here before it is compiled beside the model: the work is the same, but for the vocabulary, which is that of single bytes here.

Run as a program, never imported for its functions: `python -I -S grammar_worker.py FOLDER`, the folder being where llguidance lies. It
reads one JSON object from stdin and writes one to stdout: `{"grammars": […]}` as llguidance takes them, or
`{"error": …, "path": …, "part": …, "failures": […]}`, which tell the first schema that fails, and all of them.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

COMPILE_S = 0.5
"""Seconds of processor time for compiling and the first mask."""
MEMORY_BYTES = 768 << 20
"""Of addresses, of which the interpreter and its allocator take half before anything is compiled."""
STACK_BYTES = 2 << 20
"""A quarter of what threads have elsewhere, so that what fits here fits there."""
LIMITS: dict[str, Any] = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""Given to llguidance here and beside the model. A lexer state takes one to two kilobytes."""
_SEARCH_S = 0.3
"""Seconds of processor time for finding what fails."""


def bound() -> None:
    """Give up what compiling does not need; systems without such bounds have the parent's clock only."""
    try:
        import resource
        import signal
    except ImportError:
        return
    for name, value in (("AS", MEMORY_BYTES), ("NOFILE", 0), ("FSIZE", 0), ("CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        except (OSError, ValueError):  # macOS knows some of these and refuses to set them
            continue
    signal.setitimer(signal.ITIMER_PROF, COMPILE_S)


def unbound() -> None:
    """Stop the clock: the verdict is found."""
    try:
        import signal
    except ImportError:
        return
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, 0)


class Bytes:
    """A vocabulary of single bytes, as llguidance asks for one."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def told(message: str) -> str:
    """What llguidance says, in one line."""
    lines = [line.strip() for line in message.strip().splitlines()] or ["it cannot be read"]
    if lines[0].startswith("NoExtension"):
        return "nothing matches it"
    if lines[0].startswith("oneOf"):
        return "the alternatives of oneOf may overlap; use anyOf"
    # A regular expression is shown on several lines, and the reason comes last.
    reason = next((line for line in lines[1:] if line.startswith("error:")), "")
    return f"{lines[0][:200]} {reason[:200]}".strip()


class Compiler:
    """Compiles for single bytes."""

    def __init__(self) -> None:
        import llguidance

        self._library = llguidance
        self._vocabulary = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), slices=[])
        self._limits = llguidance.LLParserLimits(**LIMITS)

    def error(self, grammars: list[dict[str, Any]], *, first_mask: bool = True) -> str:
        """Why grammars cannot be used; empty when they can."""
        matcher = self._library.LLMatcher(self._vocabulary, json.dumps({"grammars": grammars}), log_level=0, limits=self._limits)
        if matcher.is_error():
            return told(matcher.get_error())
        if first_mask and not any(matcher.compute_bitmask()):
            return told(matcher.get_error() or "NoExtension")
        return told(matcher.get_error()) if matcher.is_error() else ""

    def lark(self, gbnf: str) -> str:
        """GBNF in Lark's notation."""
        from llguidance.gbnf_to_lark import gbnf_to_lark

        return gbnf_to_lark(gbnf)

    def culprit(self, schema: dict[str, Any], message: str, until: float) -> list[str | int]:
        """Steps to the innermost part of a schema that fails alone with the same words, as far as a short search finds."""
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}

        def fails(part: dict[str, Any]) -> bool:
            return time.process_time() < until and self.error([{"json_schema": {**shared, **part}}], first_mask=False) == message

        steps: list[str | int] = []
        while found := next(((more, part) for more, part in _parts(schema) if fails(part)), None):
            steps, schema = [*steps, *found[0]], found[1]
        return steps


def path_of(steps: Sequence[str | int]) -> str:
    """How a place in a schema is told."""
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


def _parts(schema: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """Schemas directly within a schema, and the steps to them."""
    # A shared part comes before those that refer to it and fail with it.
    for key, value in sorted(schema.items(), key=lambda one: one[0] not in ("$defs", "definitions")):
        if key in ("properties", "patternProperties", "$defs", "definitions"):
            yield from (((key, name), inner) for name, inner in value.items() if isinstance(inner, dict))
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            yield from (((key, index), inner) for index, inner in enumerate(value) if isinstance(inner, dict))
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            yield (key,), value


def verdict(compiler: Compiler, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request."""
    grammars = request.get("grammars", [])
    try:
        if "gbnf" in request:
            grammars = [{"lark_grammar": compiler.lark(request["gbnf"])}]
        error = compiler.error(grammars)
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as failure:
        return {"error": told(str(failure))}
    unbound()
    if not error:
        return {"grammars": grammars}
    failures: list[dict[str, Any]] = []
    until = time.process_time() + _SEARCH_S
    for one in grammars:
        schema = one.get("json_schema")
        if failures and time.process_time() > until:
            break
        if isinstance(schema, dict) and (alone := compiler.error([{"json_schema": schema}], first_mask=len(grammars) == 1)):
            steps = compiler.culprit(schema, alone, until)
            failures.append({"error": alone, "path": path_of(steps), "part": one.get("name", ""), "steps": steps})
    return {**(failures[0] if failures else {"error": error, "path": ""}), "failures": failures}


def main() -> None:
    """Answer one request."""
    sys.path[:0] = sys.argv[1:]
    compiler = Compiler()
    import llguidance.gbnf_to_lark  # noqa: F401 - files are out of reach later

    request = json.loads(sys.stdin.buffer.read())
    answers: list[dict[str, Any]] = []
    bound()
    threading.stack_size(STACK_BYTES)
    work = threading.Thread(target=lambda: answers.append(verdict(compiler, request)))
    work.start()
    work.join()
    sys.stdout.buffer.write(json.dumps(answers[0]).encode())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
