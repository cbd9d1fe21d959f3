"""MBPP: 974 short functions asked for in a sentence, with three assertions each.

Source   "Program Synthesis with Large Language Models", arXiv:2108.07732, section 2.1; mbpp.jsonl of google-research (CC BY 4.0).
Splits   Tasks 1 to 10 are examples for the prompt, 11 to 510 the test, 511 to 600 validation, 601 to 974 training.
"""

from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any

from khola.evals.sandbox.run import Tests
from khola.evals.tasks.problem import Problem, rows_of, wanted

SPLITS = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
QUESTION = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n{tests}\n\n"
    "Answer with the whole program in one block of code."
)


def problems(path: Path, split: str = "test") -> list[Problem]:
    """The tasks of one split of a file.

    Args:
        path: the file of all 974 tasks.
        split: "prompt", "test", "validation" or "train".
    Raises:
        MissingFile: there is no such file.
        BadJson: a row is not one of MBPP's; the message names file and line.
    """
    found = []
    for line, row in rows_of(path):
        wanted(row, path, line, task_id=int, text=str, code=str, test_setup_code=str, test_list=list)
        if row["task_id"] in SPLITS[split]:
            found.append(problem_of(row))
    return found


def problem_of(row: dict[str, Any]) -> Problem:
    """One task from its row; the test's names that the solution must have are those that the reference program makes."""
    made = _made(row["code"])
    used = [name for test in row["test_list"] for name in _used(test)]
    entry = next((name for name in used if name in made), "")
    tests = tuple(test for test in (row["test_setup_code"], *row["test_list"]) if test.strip())
    return Problem(
        name=f"MBPP/{row['task_id']}",
        question=QUESTION.format(text=row["text"].strip(), tests="\n".join(row["test_list"])),
        head="",
        entry=entry,
        tests=Tests(tests=tests, names=tuple(sorted({name for name in used if name in made and hasattr(builtins, name)}))),
        canonical=row["code"],
    )


def _made(code: str) -> frozenset[str]:
    """Functions and classes that a program defines at its left margin."""
    return frozenset(re.findall(r"^(?:def|class)\s+(\w+)", code, re.MULTILINE))


def _used(test: str) -> list[str]:
    """Words of a test that may be names, in their order."""
    return re.findall(r"\b[A-Za-z_]\w*", test)
