"""HumanEval: 164 functions to be completed from their head and description.

Source   "Evaluating Large Language Models Trained on Code", arXiv:2107.03374; data/HumanEval.jsonl.gz of openai/human-eval (MIT).
Judging  The judge gets the prompt's own auxiliary functions and never the completion; a test that calls the function by its name gets the
         candidate.
"""

from __future__ import annotations

from pathlib import Path

from khola.evals.sandbox.run import Tests
from khola.evals.tasks.problem import Problem, rows_of, wanted

QUESTION = "Complete the following Python function. Answer with the whole function in one block of code.\n\n```python\n{prompt}```\n"


def problems(path: Path) -> list[Problem]:
    """The tasks of a file.

    Raises:
        MissingFile: there is no such file.
        BadJson: a row is not one of HumanEval's; the message names file and line.
    """
    return [
        problem_of(wanted(row, path, line, task_id=str, prompt=str, entry_point=str, canonical_solution=str, test=str))
        for line, row in rows_of(path)
    ]


def problem_of(row: dict[str, str]) -> Problem:
    """One task from its row."""
    entry = row["entry_point"]
    tests = Tests(before=(row["prompt"] + "\n    pass\n",), tests=(row["test"], f"check({entry})"), names=(entry,))
    return Problem(
        name=row["task_id"],
        question=QUESTION.format(prompt=row["prompt"].rstrip() + "\n"),
        head=row["prompt"],
        entry=entry,
        tests=tests,
        canonical=row["prompt"] + row["canonical_solution"],
    )
