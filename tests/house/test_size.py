"""Files, functions and rooms stay small enough to be read."""

from __future__ import annotations

import ast
from collections import Counter

import pytest
import source

FILE_LINES = 500
FUNCTION_LINES = 80
# Lines of Python in a room; a budget is raised in a commit of its own, which says why.
BUDGETS = {
    "models": 6500, "evals": 4200, "train": 7500, "engine": 4600, "nn": 2000, "ops": 4000, "store": 3700, "fetch": 3000,
    "native": 1350, "serve": 11900, "cli": 5050, "chat": 3700, "tokens": 1700, "data": 1800, "lineage": 1500, "api": 2700,
    "loader": 1850,
}  # fmt: skip
OTHER_BUDGET = 900


def lines_of_rooms() -> Counter[str]:
    """Lines of Python below each room."""
    lines: Counter[str] = Counter()
    for path in source.modules():
        room = path.relative_to(source.PACKAGE).parts[0]
        lines[room.removesuffix(".py")] += len(path.read_text(encoding="utf-8").splitlines())
    return lines


def test_files() -> None:
    paths = [path for path in source.ROOT.rglob("*.py") if not any(part.startswith(".") for part in path.relative_to(source.ROOT).parts)]
    assert source.PACKAGE / "errors.py" in paths
    long = {source.name(path): count for path in paths if (count := len(path.read_text(encoding="utf-8").splitlines())) > FILE_LINES}
    assert not long, f"longer than {FILE_LINES} lines: {long}"


def test_functions() -> None:
    long = {
        f"{source.name(path)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path, tree in source.modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES
    }
    assert not long, f"longer than {FUNCTION_LINES} lines: {long}"


@pytest.mark.parametrize("room", sorted(lines_of_rooms()))
def test_rooms(room: str) -> None:
    assert lines_of_rooms()[room] <= BUDGETS.get(room, OTHER_BUDGET), f"khola/{room} is over its budget: take something out first"
