"""Fills a teacher's cache until it is killed; argument: the folder. Tells on stdout of every answer that is on the disk."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from khola.train.opinion import Opinion, Question, scored
from khola.train.teacher_cache import TeacherCache

HEADER = {"teacher": "made", "top": 2, "boundary": True}
ANSWERS = 60


def question(number: int) -> Question:
    return Question(text=f"text {number}: " + "আ" * (number % 7))


def opinion(number: int) -> Opinion:
    """An answer that follows from its number."""
    rng = np.random.default_rng(number)
    text = question(number).text
    raw = text.encode()
    pieces = int(rng.integers(1, 12))
    cuts = np.sort(rng.integers(0, len(raw) + 1, pieces - 1))
    lengths = np.diff(np.concatenate([[0], cuts, [len(raw)]])).tolist()
    logprobs = -rng.exponential(2, pieces)
    logprobs[0] = np.nan
    return scored(text, lengths, logprobs, rng.random(pieces), rng.integers(-1, 999, (pieces, 2)), -rng.exponential(2, (pieces, 2)))


def main() -> None:
    cache = TeacherCache(Path(sys.argv[1]), HEADER)
    for number in range(ANSWERS):
        if question(number) not in cache:
            cache.put(question(number), opinion(number))
            if number % 3 == 0:
                cache.flush()
                print(number, flush=True)
                time.sleep(0.01)
    cache.flush()
    print("done", flush=True)


if __name__ == "__main__":
    main()
