"""What a reward is: a function of prompt, answer and row; and many of them at once.

A reward never fails for what an answer says: that is worth nothing. It does fail for a row that it cannot judge by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from khola.errors import AskedWrong, BadRow

Row = Mapping[str, Any]


class Reward(Protocol):
    """Gives the worth of an answer; safe to call from several threads."""

    def __call__(self, prompt: str, answer: str, row: Row) -> float:
        """The worth of one answer.

        Raises:
            BadRow: the row lacks what the answer is judged by.
        """
        ...


def scored(reward: Reward, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row], workers: int = 2) -> list[float]:
    """The worth of many answers, in their order.

    Args:
        reward: the rule.
        prompts, answers, rows: one entry an answer.
        workers: threads; rewards that run programs wait for processes, so as many as their pool has sandboxes are of use.
    Raises:
        AskedWrong: the lists differ in length.
        BadRow: a row cannot be judged by.
    """
    if not len(prompts) == len(answers) == len(rows):
        raise AskedWrong(
            "rewards need a prompt and a row for every answer; there are {prompts}, {answers} and {rows}",
            prompts=len(prompts),
            answers=len(answers),
            rows=len(rows),
        )
    with ThreadPoolExecutor(max(1, workers)) as threads:
        return list(threads.map(reward, prompts, answers, rows))


def weighed(parts: Mapping[Reward, float]) -> Reward:
    """The sum of several rewards, each times its weight."""

    def reward(prompt: str, answer: str, row: Row) -> float:
        return sum(weight * part(prompt, answer, row) for part, weight in parts.items())

    return reward


def text_of(row: Row, key: str) -> str:
    """A text of a row; a number is read as its text.

    Raises:
        BadRow: there is none.
    """
    found = row.get(key)
    if isinstance(found, int | float) and not isinstance(found, bool):
        return str(found)
    if not isinstance(found, str) or not found.strip():
        raise BadRow(
            "a reward reads the text {key} of a row, which is {found}",
            key=key,
            found=type(found).__name__ if found is not None else "missing",
        )
    return found
