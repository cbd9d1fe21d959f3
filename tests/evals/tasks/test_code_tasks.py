"""HumanEval and MBPP as tasks: every canonical solution passes, answers become programs, and rows are checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from khola.errors import BadJson, MissingFile
from khola.evals.sandbox.limits import Limits
from khola.evals.sandbox.pool import Pool
from khola.evals.tasks import humaneval, mbpp
from khola.evals.tasks.problem import Problem, judged
from khola.evals.tasks.program import from_chat, from_completion, indented
from tests.needs import needs_seccomp

# A busy machine must not decide; some reference programs of MBPP take seconds.
LIMITS = Limits(cpu_s=20, wall_s=60.0)


def failed(problems: Sequence[Problem], repeats: int = 1) -> list[tuple[str, str]]:
    """Names and kinds of reference programs that do not pass every time."""
    with Pool(2, LIMITS) as pool:
        found = judged(pool, problems, [[problem.canonical] * repeats for problem in problems])
    return [(problem.name, one.kind) for problem, several in zip(problems, found, strict=True) for one in several if not one.passed]


def without_body(problem: Problem) -> str:
    """A program that defines the function and does nothing."""
    return f"{problem.head}\n    pass\n"


@needs_seccomp
def test_some_canonical_solutions_of_humaneval_pass_and_empty_ones_do_not(shared_data: Path) -> None:
    problems = humaneval.problems(shared_data / "HumanEval.jsonl.gz")
    assert len(problems) == 164
    some = [problems[number] for number in (0, 32, 33, 38, 50, 70, 120, 149)]
    assert failed(some) == []
    with Pool(2, LIMITS) as pool:
        assert not any(one.passed for (one,) in judged(pool, some, [[without_body(problem)] for problem in some]))


@needs_seccomp
@pytest.mark.slow
def test_every_canonical_solution_of_humaneval_passes(shared_data: Path) -> None:
    assert failed(humaneval.problems(shared_data / "HumanEval.jsonl.gz")) == []


@needs_seccomp
@pytest.mark.soak
def test_every_canonical_solution_of_humaneval_and_mbpp_passes_three_times(shared_data: Path) -> None:
    path = shared_data / "mbpp.jsonl.gz"
    every = [problem for split in mbpp.SPLITS for problem in mbpp.problems(path, split)]
    assert len(every) == 974 and len(mbpp.problems(path)) == 500
    assert failed([*humaneval.problems(shared_data / "HumanEval.jsonl.gz"), *every], repeats=3) == []


@needs_seccomp
def test_odd_problems_of_mbpp_pass(shared_data: Path) -> None:
    """A function named like a built-in one, types as arguments, classes and trees of the solution's, modules that only it imports."""
    odd = ("MBPP/126", "MBPP/533", "MBPP/601", "MBPP/367", "MBPP/927", "MBPP/2", "MBPP/98")
    every = {problem.name: problem for split in mbpp.SPLITS for problem in mbpp.problems(shared_data / "mbpp.jsonl.gz", split)}
    assert failed([every[name] for name in odd]) == []


@needs_seccomp
@pytest.mark.slow
def test_humaneval_is_solved_by_chat_answers_and_by_completions(shared_data: Path) -> None:
    problems = humaneval.problems(shared_data / "HumanEval.jsonl.gz")[::6]
    bodies = [problem.canonical.removeprefix(problem.head) for problem in problems]
    programs = [
        [
            problem.program(
                f"Sure! Here it is.\n\n```python\n{problem.canonical}```\nIt works because of this:\n```python\nprint('x')\n```\n"
            ),
            problem.program(f"{body}\n\ndef another():\n    return", completion=True),
            problem.program(f"```python\n{body}```"),
        ]
        for problem, body in zip(problems, bodies, strict=True)
    ]
    with Pool(2, LIMITS) as pool:
        found = judged(pool, problems, programs)
    assert [
        (problem.name, [one.kind for one in three])
        for problem, three in zip(problems, found, strict=True)
        if not all(v.passed for v in three)
    ] == []


def test_questions_show_what_is_asked(shared_data: Path) -> None:
    human = humaneval.problems(shared_data / "HumanEval.jsonl.gz")[0]
    assert "def has_close_elements" in human.question and "assert" not in human.question
    basic = mbpp.problems(shared_data / "mbpp.jsonl.gz")[0]
    assert basic.name == "MBPP/11" and basic.entry == "remove_Occ" and basic.question.count("assert remove_Occ") == 3
    assert basic.canonical not in basic.question


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("```python\ndef f(): return 1\n```", "def f(): return 1\n"),
        ("```py\nimport os\n```\nthen\n```\ndef f(): return 2\n```\n```python\nprint(f())\n```", "import os\n\ndef f(): return 2\n"),
        ("```python\nprint(1)\n```\n```python\ndef f(): return 3\n```", "def f(): return 3\n"),
        ("~~~python\ndef f(): return 4\n~~~", "def f(): return 4\n"),
        ("```python\ndef f():\n    return 5", "def f():\n    return 5"),
        ("```bash\nls\n```\n```python\nx = 1\n```", "x = 1\n"),
        ("The answer:\ndef f():\n    return 6", "def f():\n    return 6"),
        ("I cannot do that.", ""),
        ("```json\n{}\n```", ""),
        ("```python\ndef f():\n    return '''\n    ```x'''\n```", "def f():\n    return '''\n    ```x'''\n"),
    ],
)
def test_a_program_is_found_in_a_chat_answer(answer: str, found: str) -> None:
    assert from_chat(answer, "f") == found


def test_a_completion_ends_where_the_function_does() -> None:
    assert from_completion("    return 1\n\n\ndef g():\n    pass") == "    return 1\n\n"
    assert from_completion("    x = 1\n    # a remark\n    return x\nprint(f())") == "    x = 1\n    # a remark\n    return x"
    assert from_completion("    return 1") == "    return 1"
    assert indented("x = 1\n\nreturn x") == "    x = 1\n\n    return x" and indented("    return 1") == "    return 1"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"task_id": 1}\n', "line 1: text should be str and is NoneType"),
        ("{}\n[1]\n", "line 1: "),
        ('\n\n{"task_id"\n', "line 3: "),
        ("[1]\n", "line 1: not an object"),
    ],
)
def test_bad_rows_are_named_with_their_line(text: str, where: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(BadJson, match=where):
        mbpp.problems(path)
    with pytest.raises(MissingFile):
        humaneval.problems(tmp_path / "none.jsonl")


def test_rows_may_lie_unpacked(tmp_path: Path) -> None:
    row = {"task_id": 11, "text": "One.", "code": "def f(): return 1", "test_setup_code": "", "test_list": ["assert f() == 1"]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n\n" + json.dumps({**row, "task_id": 700}) + "\n")
    assert [problem.name for problem in mbpp.problems(path)] == ["MBPP/11"]
    assert [problem.name for problem in mbpp.problems(path, "train")] == ["MBPP/700"]
