"""The exact tokens that a run would learn, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from khola.data.packing import Sample
from khola.tokens.tokenizer import Tokenizer


def shown(sample: Sample, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """A sequence as runs of text, each with whether the model learns to write it; control tokens are spelled."""
    learned: Sequence[bool] = [False, *(bool(one) for one in sample.learned[1:])]
    for is_learned, run in groupby(zip(sample.ids.tolist(), learned, strict=True), key=lambda pair: pair[1]):
        yield tokenizer.decode([token for token, _ in run], skip_control=False), is_learned


def counts(samples: Sequence[Sample]) -> tuple[int, int, int]:
    """Sequences, tokens, and tokens that are learned."""
    return len(samples), sum(len(one.ids) for one in samples), sum(int(one.learned[1:].sum()) for one in samples)
