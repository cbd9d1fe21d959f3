"""Form: how long an answer is, whether it keeps to a pattern, in which script it is written."""

from __future__ import annotations

from dataclasses import dataclass

import regex

from khola.errors import AskedWrong
from khola.train.rewards.reward import Reward, Row

PATTERN_S = 0.5
THINK_AND_ANSWER = r"\s*<think>(?:(?!</?think>).)*</think>\s*<answer>(?:(?!</?answer>).)*</answer>\s*"
"""One block of thoughts and one answer, as DeepSeek-R1 was rewarded for (arXiv:2501.12948, section 2.2.2)."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """A penalty for answers that are too long, linear over the last stretch (DAPO, arXiv:2503.14476, equation 13), or too short."""

    most: int = 2000
    """Length from which on an answer loses all of `penalty`."""
    slack: int = 500
    """How far before `most` the loss begins."""
    least: int = 0
    """Length below which an answer loses all of `penalty`."""
    penalty: float = 1.0
    """What is lost."""
    unit: str = "characters"
    """"characters" (code points) or "words" (between spaces)."""


def length(config: Length) -> Reward:
    """A reward of 0 for answers of a good length, down to minus the penalty.

    Raises:
        AskedWrong: the numbers contradict each other, or the unit is unknown.
    """
    if config.unit not in ("characters", "words") or not 0 <= config.slack <= config.most or not 0 <= config.least <= config.most:
        raise AskedWrong(
            "a length is counted in characters or words, with slack and least up to most; found {unit}, {least}, {slack}, {most}",
            unit=config.unit,
            least=config.least,
            slack=config.slack,
            most=config.most,
        )

    def reward(prompt: str, answer: str, row: Row) -> float:
        size = len(answer) if config.unit == "characters" else len(answer.split())
        if size < config.least or size >= config.most:
            return -config.penalty
        over = size - (config.most - config.slack)
        return -config.penalty * over / config.slack if over > 0 else 0.0

    return reward


@dataclass(frozen=True, kw_only=True)
class Form:
    """A pattern that the whole answer must match."""

    pattern: str = THINK_AND_ANSWER
    """Regular expression; a dot matches line ends too."""
    kept: float = 1.0
    """Worth of an answer that matches."""
    broken: float = 0.0
    """Worth of one that does not, or that takes more than half a second to match."""


def form(config: Form) -> Reward:
    """A reward for keeping to a form.

    Raises:
        AskedWrong: the pattern is no regular expression.
    """
    try:
        pattern = regex.compile(config.pattern, regex.DOTALL)
    except regex.error as error:
        raise AskedWrong("the pattern of a reward is no regular expression: {why}", why=str(error)) from None

    def reward(prompt: str, answer: str, row: Row) -> float:
        try:
            return config.kept if pattern.fullmatch(answer, timeout=PATTERN_S) else config.broken
        except TimeoutError:
            return config.broken

    return reward


@dataclass(frozen=True, kw_only=True)
class Script:
    """The share of letters that belong to a script (the reward for one language of arXiv:2501.12948, section 2.3.2, by letters)."""

    script: str = "Bengali"
    """A script of Unicode by its name."""
    weight: float = 1.0
    """Worth of an answer that is written in it throughout."""


def script(config: Script) -> Reward:
    """A reward for writing in a script; 0 for an answer without letters.

    Raises:
        AskedWrong: Unicode has no such script.
    """
    try:
        ours = regex.compile(rf"[\p{{Script={config.script}}}&&\p{{L}}]", regex.V1)
    except regex.error:
        raise AskedWrong("Unicode has no script called {name}", name=config.script) from None
    letters = regex.compile(r"\p{L}")

    def reward(prompt: str, answer: str, row: Row) -> float:
        every = len(letters.findall(answer))
        return config.weight * len(ours.findall(answer)) / every if every else 0.0

    return reward


def group_lengths(lengths: list[int], right: list[bool]) -> list[float]:
    """Rewards for being shorter than the other answers to the same prompt, -0.5 to 0.5; wrong answers get at most 0.

    Source: Kimi k1.5, arXiv:2501.12599, section 2.3.3.
    """
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    if shortest == longest:
        return [0.0] * len(lengths)
    shares = [0.5 - (size - shortest) / (longest - shortest) for size in lengths]
    return [share if good else min(0.0, share) for share, good in zip(shares, right, strict=True)]
