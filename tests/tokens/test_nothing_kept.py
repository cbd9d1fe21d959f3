"""Whether a text was read before must not show in the time that it takes."""

from __future__ import annotations

import random
import string
import time
from typing import Any

import pytest

from khola.tokens.tokenizer import Tokenizer
from tests.areas import area
from tests.loader.tiny_gguf import letters

WORDS, TRIALS, TEXTS = 600, 80, 5
"""Words of a text; texts of a measurement, and of one vocabulary, which remembers ten thousand words and then no more."""


def vocabulary() -> Tokenizer:
    """Bytes, all pairs of small letters, and many pairs of pairs: words of several merges."""
    rng = random.Random(5)
    pairs = [first + second for first in string.ascii_lowercase for second in string.ascii_lowercase]
    fours = sorted({rng.choice(pairs) + rng.choice(pairs) for _ in range(4000)})
    tokens = [*letters(), *pairs, *fours]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": [f"{token[: len(token) // 2]} {token[len(token) // 2 :]}" for token in (*pairs, *fours)],
    }
    return Tokenizer.from_gguf(metadata)


def times(*, kept: bool) -> tuple[list[float], list[float]]:
    """Processor seconds of texts that were read a moment ago, and of texts that were not."""
    rng = random.Random(6)

    def text() -> str:
        return " ".join("".join(rng.choices(string.ascii_lowercase, k=8)) for _ in range(WORDS))

    def took(asked: str) -> float:
        began = time.thread_time()
        tokenizer.encode(asked)
        return time.thread_time() - began

    again, new = [], []
    for number in range(TRIALS):
        if number % TEXTS == 0:
            tokenizer = vocabulary()
            if not kept:
                tokenizer.keep_nothing()
        known = text()
        tokenizer.encode(known)
        again.append(took(known))
        tokenizer.encode(text())
        new.append(took(text()))
    return again, new


@pytest.mark.slow
def test_words_that_were_read_take_as_long_as_others() -> None:
    # As long as words are kept, whoever asks learns whether somebody wrote these.
    assert area(*times(kept=True)) > 0.75
    assert abs(area(*times(kept=False)) - 0.5) < 4 * ((2 * TRIALS + 1) / (12 * TRIALS**2)) ** 0.5
