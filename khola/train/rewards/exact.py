"""Exact answers: the text is the one that is wanted."""

from __future__ import annotations

from dataclasses import dataclass

from khola.train.rewards.reward import Reward, Row, text_of


@dataclass(frozen=True, kw_only=True)
class Exact:
    """How texts are compared."""

    key: str = "answer"
    """Key of a row under which the wanted text stands."""
    right: float = 1.0
    """Worth of the wanted text, but for space around it."""
    wrong: float = 0.0
    """Worth of any other."""
    begun: float = 0.0
    """Worth of another for each leading word that is right, as a share of the wanted words: less than `right` in all."""


def exact(config: Exact) -> Reward:
    """A reward for saying one thing and nothing else."""

    def reward(prompt: str, answer: str, row: Row) -> float:
        wanted, found = text_of(row, config.key).strip(), answer.strip()
        if found == wanted:
            return config.right
        words = wanted.split()
        same = 0
        for one, other in zip(words, found.split(), strict=False):
            if one != other:
                break
            same += 1
        return config.wrong + config.begun * same / (len(words) + 1)

    return reward
