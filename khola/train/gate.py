"""The round trip: a file is called done when it goes on as its source did, token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from khola.api.model import Model, load
from khola.engine.request import Sampling
from khola.errors import BadFiles
from khola.lineage.record import Metric
from khola.settings import Settings

PROMPT = "The capital of France is"
TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Gate:
    """How a file compared with its source."""

    tokens: tuple[int, ...]
    """What the source went on with, the most likely token each time."""
    same: int
    """How many of them, from the first on, the new file went on with too."""
    difference: float
    """Largest difference of the log-probabilities that both give to the prompt and these tokens, in nats."""
    lossless: bool
    """Whether the file's formats hold every number of the source."""

    def metrics(self) -> tuple[Metric, ...]:
        """For the record."""
        share = self.same / max(1, len(self.tokens))
        same = Metric(name="round trip: same greedy tokens", value=share, samples=len(self.tokens))
        return same, Metric(name="round trip: largest difference of log-probabilities", value=self.difference, unit="nats")


def gate(
    source: Path, made: Path, *, settings: Settings, lossless: bool, interpreter: str = "numpy", say: Callable[..., None] | None = None
) -> Gate:
    """Compare a written file with its source; one is in memory at a time.

    Args:
        source, made: GGUF files or checkpoints' folders.
        lossless: the formats hold every number of the source, so the tokens must be the same.
    Raises:
        BadFiles: they must be the same and are not, or the file does not load.
    """
    tokens, before = _said(source, None, settings, interpreter, say)
    again, after = _said(made, tokens, settings, interpreter, say)
    same = next(
        (place for place, (one, other) in enumerate(zip(tokens, again, strict=False)) if one != other), min(len(tokens), len(again))
    )
    found = Gate(tokens=tokens, same=same, difference=float(np.abs(before - after).max(initial=0.0)), lossless=lossless)
    if lossless and same < len(tokens):
        raise BadFiles(
            "{file}: goes on otherwise than its source: {same} of {count} tokens are the same, log-probabilities differ by {difference}",
            hint="please report it: this should not happen; --no-gate writes it all the same",
            file=made.name,
            same=same,
            count=len(tokens),
            difference=f"{found.difference:.4f}",
        )
    return found


def _said(
    path: Path, given: tuple[int, ...] | None, settings: Settings, interpreter: str, say: Callable[..., None] | None
) -> tuple[tuple[int, ...], NDArray[np.float64]]:  # fmt: skip
    """The tokens that a model goes on with, and its log-probabilities of the prompt and of them, or of those that are given."""
    with load(str(path), settings=settings, interpreter=interpreter, tell=say) as model:
        prompt = _prompt(model)
        room = model.context_tokens - len(prompt) - 1
        sampling = Sampling(temperature=0, max_tokens=max(1, min(TOKENS, room)), ignore_end=True, logprobs=0)
        tokens = tuple(token.id for token in model.complete(prompt, sampling=sampling).tokens)
        whole = (*prompt, *(given if given is not None else tokens))
        read = model.complete(whole, sampling=Sampling(max_tokens=0), prompt_logprobs=0).prompt
    return tokens, np.array([token.logprob for token in read if token.logprob is not None])


def _prompt(model: Model) -> tuple[int, ...]:
    """The prompt's ids, with the token in front that the model wants there."""
    tokenizer = model.loaded.tokenizer
    front = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    return (*front, *tokenizer.encode(PROMPT))
