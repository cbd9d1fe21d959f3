"""Programs: run in the sandbox against the tests of their row, or as a whole with input and output."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from khola.errors import BadRow
from khola.evals.sandbox.limits import Limits
from khola.evals.sandbox.pool import Pool
from khola.evals.sandbox.run import Sandbox, Tests
from khola.evals.tasks.program import from_chat
from khola.train.rewards.reward import Reward, Row

LEXICON = (
    "_getframe", "os._exit", "__eq__", "__ne__", "__bool__", "__class__", "__builtins__", "gc.get_", "sys.modules", "sys.exit", "settrace",
    "ctypes", "inspect.", "atexit", "/proc/", "unittest.mock", "subprocess", "os.write", "os.fork",
)  # fmt: skip
"""What programs that try to cheat are made of, and few honest ones."""
Alarm = Callable[[str, tuple[str, ...]], None]


@dataclass(frozen=True, kw_only=True)
class Code:
    """How programs are judged."""

    tests: str = "tests"
    """Key of a row with its tests: a list of pieces of Python."""
    before: str = "before"
    """Key of a row with what the tests need; it may be missing."""
    entry: str = "entry"
    """Key of a row with the name of the function that is wanted; it may be missing."""
    cases: str = "cases"
    """Key of a row that has whole programs judged: a list of objects with "input" and "output"."""
    passed: float = 1.0
    """Worth of a program that passes all tests."""
    failed: float = 0.0
    """Worth of one that does not."""
    without: float = 0.0
    """Worth of an answer in which there is no program."""
    limits: Limits = field(default_factory=Limits)
    """What a run may take."""


def code(config: Code, pool: Pool, alarm: Alarm | None = None) -> Reward:
    """A reward for programs.

    Args:
        config: how they are judged.
        pool: where they run.
        alarm: told of a program that has words of `LEXICON`, and of these words; it is judged like any other.
    """

    def reward(prompt: str, answer: str, row: Row) -> float:
        cases = cases_of(row, config)
        tests = None if cases else tests_of(row, config)
        program = from_chat(answer, str(row.get(config.entry, "")))
        if not program.strip():
            return config.without
        found = suspicious(program)
        if found and alarm is not None:
            alarm(program, found)
        with pool.borrowed() as sandbox:
            right = sandbox.judged(program, tests, config.limits).passed if tests else _all_printed(sandbox, program, cases, config.limits)
        return config.passed if right else config.failed

    return reward


def suspicious(program: str) -> tuple[str, ...]:
    """Words of the lexicon in a program."""
    return tuple(word for word in LEXICON if word in program)


def tests_of(row: Row, config: Code) -> Tests:
    """The tests of a row.

    Raises:
        BadRow: there are none.
    """
    tests, before, entry = row.get(config.tests), row.get(config.before, ""), row.get(config.entry, "")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise BadRow("a row for judging programs needs a list of tests under {key}", key=config.tests)
    if not isinstance(before, str) or not isinstance(entry, str):
        raise BadRow("a row for judging programs has texts under {before} and {entry}", before=config.before, entry=config.entry)
    return Tests(tests=tuple(tests), before=(before,) if before else (), names=(entry,) if entry else ())


def cases_of(row: Row, config: Code) -> list[tuple[str, str]]:
    """Inputs and outputs of a row for whole programs; empty when it has none.

    Raises:
        BadRow: they are not a list of objects with both.
    """
    cases = row.get(config.cases)
    if cases is None:
        return []
    known = isinstance(cases, list) and cases and all(isinstance(case, dict) for case in cases)
    if not known or not all(isinstance(case.get(key), str) for case in cases for key in ("input", "output")):
        raise BadRow("a row for judging whole programs needs objects with input and output under {key}", key=config.cases)
    return [(case["input"], case["output"]) for case in cases]


def _all_printed(sandbox: Sandbox, program: str, cases: list[tuple[str, str]], limits: Limits) -> bool:
    """Whether a program prints what it should for every input; the wanted output never leaves this process."""
    for given, wanted in cases:
        outcome = sandbox.printed(program, given, limits)
        if outcome.kind != "passed" or lines(outcome.text) != lines(wanted):
            return False
    return True


def lines(text: str) -> list[str]:
    """Lines as they are compared: without spaces at their ends, runs of spaces as one, no empty lines at the end."""
    return re.sub(r"[ \t]+", " ", re.sub(r"[ \t\r]+$", "", text, flags=re.MULTILINE)).rstrip("\n").split("\n")
