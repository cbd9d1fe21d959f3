"""P33: a wrong program never scores and a right one always does, with the same verdict every time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from khola.evals.sandbox.level import chosen
from khola.evals.sandbox.limits import Limits
from khola.evals.sandbox.pool import Pool
from khola.evals.sandbox.process import Layers
from khola.evals.sandbox.run import Sandbox, Tests, Verdict
from tests.evals.sandbox.corpus import Section, census, sections
from tests.needs import needs_seccomp

HACKS = sections("hacks.txt")
TESTS = Tests(
    tests=(
        "assert solve([3, 1, 2]) == [1, 2, 3]",
        "assert solve([]) == []",
        "given = [5, 5, 1]\nassert solve(given) == [1, 5, 5]",
        "def check(candidate):\n for given in ([2, 1], [9, 8, 7], [4]):\n  assert candidate(list(given)) == sorted(given)\ncheck(solve)",
        "assert not solve([2, 0]) != [0, 2]",
        "given = [8, 2]\nassert solve(given) == sorted(given)",
    )
)
LIMITS = Limits(cpu_s=1, wall_s=1.5, memory_bytes=256 << 20)
RIGHT = {
    "plain": "def solve(xs): return sorted(xs)",
    "in place": "def solve(xs):\n    xs.sort()\n    return xs",
    "a subclass of list": "class Mine(list): pass\ndef solve(xs): return Mine(sorted(xs))",
    "a method": "class Solver:\n    def run(self, xs): return sorted(xs)\nsolve = Solver().run",
    "with output": "def solve(xs):\n    print(xs)\n    return sorted(xs)",
    "with threads": "import concurrent.futures as c\ndef solve(xs): return list(c.ThreadPoolExecutor(2).map(int, sorted(xs)))",
    "with a loop of events": "import asyncio\nasync def f(xs): return sorted(xs)\ndef solve(xs): return asyncio.run(f(xs))",
    "with an examples block": "def solve(xs): return sorted(xs)\nif __name__ == '__main__':\n    raise SystemExit(solve([2, 1]))",
    "truths instead of numbers": "def solve(xs): return [True if x == 1 else x for x in sorted(xs)]",
}

pytestmark = needs_seccomp


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(chosen(), LIMITS) as opened:
        yield opened


def judged(sandbox: Sandbox, section: Section) -> Verdict:
    before = census()
    verdict = sandbox.judged(section.body, TESTS)
    assert census() == before, section.name
    assert verdict.wall_s <= LIMITS.wall_s + 0.5, section.name
    return verdict


def test_there_are_80_hacks_with_names_of_their_own() -> None:
    assert len({section.name for section in HACKS}) == len(HACKS) >= 80


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_scores(name: str, sandbox: Sandbox) -> None:
    assert sandbox.judged(RIGHT[name], TESTS).passed


def test_a_sample_of_the_hacks_does_not_score(sandbox: Sandbox) -> None:
    assert [section.name for section in HACKS[::12] if judged(sandbox, section).passed] == []


@pytest.mark.slow
def test_no_hack_scores_and_verdicts_repeat(sandbox: Sandbox) -> None:
    first = [judged(sandbox, section) for section in HACKS]
    assert [section.name for section, verdict in zip(HACKS, first, strict=True) if verdict.passed] == []
    with Pool(2, LIMITS) as pool:
        for _ in range(2):
            again = pool.map(lambda one, section: one.judged(section.body, TESTS).kind, HACKS)
            differ = [(section.name, one.kind, two) for section, one, two in zip(HACKS, first, again, strict=True) if one.kind != two]
            assert not differ


@pytest.mark.slow
def test_hacks_do_not_score_without_a_sandbox_either() -> None:
    """Judge and candidate apart are enough against lies; the layers are against escapes."""
    lies = [section for section in HACKS if section.name.startswith(("gives", "answers", "raises", "writes a verdict", "signs"))]
    with Sandbox(Layers(), LIMITS) as bare:
        assert [section.name for section in lies[::4] if bare.judged(section.body, TESTS).passed] == []


@pytest.mark.parametrize(
    ("program", "kind", "why"),
    [
        ("def solve(xs): return []", "wrong", "AssertionError"),
        ("def solve(xs): return 1 / 0", "raised", "ZeroDivisionError: division by zero"),
        ("def solve(xs) return", "syntax", "SyntaxError"),
        ("import numpy_that_is_not_there", "import", "ModuleNotFoundError"),
        ("import os\nos._exit(0)", "exited", ""),
        ("import ctypes\nctypes.string_at(0)", "crashed", ""),
        ("def solve(xs): return bytearray(4 << 30)", "memory", "MemoryError"),
        ("def solve(xs): return object()", "malformed", "no plain value"),
        ("while True: print('x' * 999)", "output", ""),
        ("import time\ntime.sleep(60)", "timeout", ""),
    ],
)
def test_verdicts_say_what_happened(program: str, kind: str, why: str, sandbox: Sandbox) -> None:
    verdict = sandbox.judged(program, TESTS, Limits(cpu_s=1, wall_s=0.5, memory_bytes=512 << 20))
    assert (verdict.kind, verdict.level) == (kind, sandbox.layers.name) and why in verdict.why


def test_tests_that_do_not_compile_are_told_from_wrong_programs(sandbox: Sandbox) -> None:
    assert sandbox.judged("def solve(xs): return xs", Tests(tests=("assert solve(",))).kind == "broken"
    assert sandbox.judged("def solve(xs): return xs", Tests(before=("1 / 0",), tests=("assert 1",))).kind == "broken"
    assert sandbox.judged("def solve(xs): return xs", Tests(tests=("raise SystemExit(0)",))).kind == "wrong"
    assert sandbox.judged("def solve(xs): return xs", Tests(tests=("import os\nos._exit(0)",))).kind == "broken"


def test_objects_of_the_solution_are_asked_and_set_but_never_compared(sandbox: Sandbox) -> None:
    program = "class Node:\n    def __init__(self, value): self.value, self.next = value, None\n"
    program += "def total(n): return n.value + (total(n.next) if n.next else 0)"
    made = "a = Node(1)\na.next = Node(2)\na.next.next = Node(3)"
    assert sandbox.judged(program, Tests(tests=(made, "assert total(a) == 6", "assert a.next.value == 2"))).passed
    for lie in (
        "assert a == a.next",
        "assert a",
        "assert not a != a",
        "assert a in [1, 2]",
        "assert len(a) == 0",
        "assert bool(a.next)",
        "assert a < 3",
    ):
        assert sandbox.judged(program, Tests(tests=(made, lie))).kind == "malformed", lie


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def solve(xs):\n    xs.clear()\n    return xs", "given = [8, 2]\nassert solve(given) == sorted(given)"),
        ("def solve(xs):\n    xs[:] = [0]\n    return [0]", "given = [8, 2]\nassert solve(given) == sorted(given)"),
        ("def solve(xs): raise StopIteration", "for found in map(solve, [[2, 1], [3]]):\n    assert found == []"),
        ("def solve(xs): raise StopIteration", "assert all(map(lambda one: solve(one) == [1], [[1]]))"),
        ("def solve(xs): raise StopAsyncIteration", "assert [solve(one) for one in [[1]]] == [[1]]"),
    ],
)
def test_weak_tests_are_not_passed_by_what_would_fool_them_in_one_process(program: str, test: str, sandbox: Sandbox) -> None:
    assert not sandbox.judged(program, Tests(tests=(test,))).passed


def test_changed_arguments_come_back_where_a_task_asks_for_it(sandbox: Sandbox) -> None:
    program = "def solve(xs, seen, found):\n    xs.sort()\n    seen.add(3)\n    found['a'] = [1]"
    test = "xs, seen, found = [2, 1], {2}, {}\nsolve(xs, seen, found)\nassert (xs, seen, found) == ([1, 2], {2, 3}, {'a': [1]})"
    assert sandbox.judged(program, Tests(tests=(test,), changes=True)).passed
    assert not sandbox.judged(program, Tests(tests=(test,))).passed


def test_whole_programs_read_and_print(sandbox: Sandbox) -> None:
    found = sandbox.printed("import sys\nprint(sum(map(int, sys.stdin)))\nsys.exit()", "1\n2\n3\n")
    assert (found.kind, found.text) == ("passed", "6\n")
    assert sandbox.printed("import sys\nsys.exit(3)").kind == "exited"
    assert sandbox.printed("print('half'); 1 / 0").kind == "raised"


def test_calls_give_plain_values(sandbox: Sandbox) -> None:
    values = [
        None,
        True,
        -(2**200),
        1.5,
        float("inf"),
        2 - 3j,
        "ক\ud800",
        b"\0\xff",
        [1, [2]],
        (1,),
        {1: {2}},
        frozenset({3}),
        range(1, 9, 2),
        int,
    ]
    found = sandbox.called("def same(x): return x", "same", values)
    assert found.value == values and [type(one) for one in found.value] == [type(one) for one in values]
