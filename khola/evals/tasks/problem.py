"""A task that is solved by a Python function: what the model is asked, and what its program must do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from khola.errors import BadJson, MissingFile
from khola.evals.sandbox.pool import Pool
from khola.evals.sandbox.run import Tests, Verdict
from khola.evals.tasks.program import from_chat, from_completion, indented


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One task of a benchmark."""

    name: str
    """Name within its benchmark, as "HumanEval/0"."""
    question: str
    """What a chat model is asked."""
    head: str
    """What a base model continues; empty where a benchmark has only questions."""
    entry: str
    """The function that is wanted."""
    tests: Tests
    """What it must do."""
    canonical: str
    """A right program, whole."""

    def program(self, answer: str, *, completion: bool = False) -> str:
        """The whole program in an answer.

        Args:
            answer: a chat answer, or the continuation of `head`.
            completion: which of the two.
        """
        if completion:
            return self.head + from_completion(answer)
        found = from_chat(answer, self.entry)
        if not self.head or not found:
            return found
        if f"def {self.entry}" in found:  # its imports and auxiliary functions stand in the head
            return f"{self.head}\n    pass\n\n{found}"
        return self.head + indented(found)


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file of JSON lines, packed by gzip or not, with their line numbers from 1.

    Raises:
        MissingFile: there is no such file.
        BadJson: a line is no JSON object; the message names file and line.
    """
    if not path.is_file():
        raise MissingFile("there is no file {path}", hint="fetch the benchmark's file and give its path", path=str(path))
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadJson("{path}, line {line}: {why}", path=str(path), line=number, why=str(error)) from None
            if not isinstance(row, dict):
                raise BadJson("{path}, line {line}: {why}", path=str(path), line=number, why="not an object")
            yield number, row


def wanted(row: dict[str, Any], path: Path, line: int, **kinds: type) -> dict[str, Any]:
    """The row, once it is seen to have these keys with values of these kinds.

    Raises:
        BadJson: it has not; the message names file, line and key.
    """
    for key, kind in kinds.items():
        if not isinstance(row.get(key), kind):
            why = f"{key} should be {kind.__name__} and is {type(row.get(key)).__name__}"
            raise BadJson("{path}, line {line}: {why}", path=str(path), line=line, why=why)
    return row


def judged(pool: Pool, problems: Sequence[Problem], programs: Sequence[Sequence[str]]) -> list[list[Verdict]]:
    """Verdicts on every program of every problem.

    Args:
        pool: where they run.
        problems: the tasks.
        programs: for each task its programs, whole.
    """
    tasks = [(problem, program) for problem, several in zip(problems, programs, strict=True) for program in several]
    found = iter(pool.map(lambda sandbox, task: sandbox.judged(task[1], task[0].tests), tasks))
    return [[next(found) for _ in several] for several in programs]
