"""What quantising cost and saved: the same texts through both models, compared token by token.

Measures  KL divergence of the next-token distributions, KL(before || after) in nats a token: 0 when nothing changed. Perplexity of both.
          Top-1 agreement: how often both think the same token most likely. Speed of decoding one stream.
Shapes    T tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np
from numpy.typing import NDArray

from khola.api.header import read_header
from khola.api.model import Model
from khola.data.judging import judging_texts
from khola.engine.request import Sampling
from khola.engine.runner import ModelRunner, Part, in_turn
from khola.errors import EmptyPrompt
from khola.loader import load_model
from khola.loader.find import find
from khola.loader.loaded import Loaded
from khola.ops.vocabulary import PAGE_TOKENS
from khola.settings import Settings
from khola.tokens.tokenizer import Tokenizer

TOKENS_OF_EACH = 512
"""Tokens of each text that are judged; a text that has more is cut there."""
CHUNK_TOKENS = 64
"""Tokens whose logits are in memory at once."""
SPEED_TOKENS = 33

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two models."""

    name: str
    bytes: int
    """Of all tensors."""
    bits_per_weight: float
    perplexity: float
    tokens_per_s: float
    """Of decoding, after the first token."""


@dataclass(frozen=True, kw_only=True)
class TextQuality:
    """One text through both models."""

    text: str
    tokens: int
    """Tokens that were predicted."""
    kl: float
    """Mean KL divergence, nats a token."""
    kl_99: float
    """What 99 of 100 tokens stay below."""
    top_1: float
    """Agreement, 0 to 1."""
    perplexity_before: float
    perplexity_after: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Both models, all texts together, and each text."""

    before: Side
    after: Side
    tokens: int
    kl: float
    kl_99: float
    top_1: float
    texts: tuple[TextQuality, ...]


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """What is kept of the first model's opinion on one text."""

    ids: tuple[int, ...]
    logprobs_TV: NDArray[np.float16]
    """Halves: a distribution of 150,000 tokens would fill memory in whole numbers, and the error is 0.0005 where it matters."""
    losses_T: Floats


def compare(
    before: str, after: str, *, settings: Settings, interpreter: str = "numpy", texts: Mapping[str, str] | None = None,
    say: Callable[..., None] | None = None,
) -> Report:  # fmt: skip
    """Judge a model against the one it was made from; one is in memory at a time.

    Args:
        before, after: paths, cards' names or names in the library.
        texts: by name; khola's own by default.
        say: hears what the loader finds unusual.
    Raises:
        EmptyPrompt: a text is too short to predict anything.
        KholaError: whatever loading either model raises.
    """
    first = load_model(before, settings=settings, interpreter=interpreter, tell=say)
    judged: dict[str, _Judged] = {}
    for name, text in (texts or judging_texts()).items():
        ids = _ids(first.tokenizer, text)
        pieces = list(text_logprobs(first, ids))
        judged[name] = _Judged(
            ids=ids, logprobs_TV=np.concatenate([piece.astype(np.float16) for piece in pieces]), losses_T=_losses(pieces, ids)
        )
        del pieces
    old_losses = np.concatenate([one.losses_T for one in judged.values()])
    old = _side(before, first, old_losses, settings)
    del first
    second = load_model(after, settings=settings, interpreter=interpreter, tell=say)
    found = {name: _against(second, one) for name, one in judged.items()}
    new = _side(after, second, np.concatenate([losses for losses, _, _ in found.values()]), settings)
    kl, agree = (np.concatenate([one[place] for one in found.values()]) for place in (1, 2))
    return Report(
        before=old,
        after=new,
        tokens=len(kl),
        kl=float(kl.mean()),
        kl_99=float(np.quantile(kl, 0.99)),
        top_1=float(agree.mean()),
        texts=tuple(_of_text(name, judged[name], *found[name]) for name in judged),
    )


def _of_text(name: str, judged: _Judged, losses_T: Floats, kl_T: Floats, agree_T: Floats) -> TextQuality:
    return TextQuality(
        text=name,
        tokens=len(kl_T),
        kl=float(kl_T.mean()),
        kl_99=float(np.quantile(kl_T, 0.99)),
        top_1=float(agree_T.mean()),
        perplexity_before=exp(float(judged.losses_T.mean())),
        perplexity_after=exp(float(losses_T.mean())),
    )


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The first ids of a text, with the token in front that the model wants there.

    Raises:
        EmptyPrompt: there are not two.
    """
    bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    ids = (*bos, *tokenizer.encode(text))[:TOKENS_OF_EACH]
    if len(ids) < 2:
        raise EmptyPrompt("a text to judge by must have two tokens", hint="give a longer one")
    return ids


def text_logprobs(loaded: Loaded, ids: Sequence[int], runner: ModelRunner | None = None) -> Iterator[Floats]:
    """Log-probabilities of what follows each token but the last, in chunks of rows, [t, V]; a runner of one's own has room for all ids."""
    pages = range(-(-len(ids) // PAGE_TOKENS))
    runner = runner or ModelRunner(loaded, len(pages), num_states=2)
    for start in range(0, len(ids) - 1, CHUNK_TOKENS):
        some = ids[start : min(start + CHUNK_TOKENS, len(ids) - 1)]
        (rows,) = runner.logits([Part(some, start, pages, range(len(some)), states=in_turn(start // CHUNK_TOKENS))])
        # Rows of padding are never chosen, and have no part in the distribution.
        rows = rows[:, : loaded.tokenizer.size]
        rows = rows - rows.max(axis=1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        yield rows


def _losses(pieces: list[Floats], ids: tuple[int, ...]) -> Floats:
    """Minus the log-probability of each token that really follows."""
    return np.concatenate([-piece[np.arange(len(piece)), ids[1 + at * CHUNK_TOKENS :][: len(piece)]] for at, piece in enumerate(pieces)])


def _against(loaded: Loaded, judged: _Judged) -> tuple[Floats, Floats, Floats]:
    """Losses, KL divergences and agreements of every predicted token."""
    losses, kls, agreed = [], [], []
    at = 0
    for rows in text_logprobs(loaded, judged.ids):
        before = judged.logprobs_TV[at : at + len(rows)].astype(np.float32)
        losses.append(-rows[np.arange(len(rows)), judged.ids[at + 1 : at + 1 + len(rows)]])
        agreed.append((before.argmax(axis=1) == rows.argmax(axis=1)).astype(np.float32))
        # Rounded to halves the distribution adds up to almost 1; what is missing would count as divergence.
        before -= np.log(np.exp(before).sum(axis=1, keepdims=True))
        kls.append((np.exp(before) * (before - rows)).sum(axis=1))
        at += len(rows)
    return np.concatenate(losses), np.concatenate(kls), np.concatenate(agreed)


def _side(name: str, loaded: Loaded, losses: Floats, settings: Settings) -> Side:
    header = read_header(find(name, settings).path)
    return Side(
        name=loaded.name,
        bytes=header.tensor_bytes,
        bits_per_weight=8 * header.tensor_bytes / max(1, header.parameters),
        perplexity=exp(float(losses.mean())),
        tokens_per_s=_speed(loaded),
    )


def _speed(loaded: Loaded) -> float:
    """Tokens a second of one stream."""
    with Model(loaded, cache_tokens=min(loaded.context_tokens, 4 * PAGE_TOKENS)) as model:
        room = model.context_tokens // 2
        sampling = Sampling(temperature=0, max_tokens=min(SPEED_TOKENS, room), ignore_end=True)
        usage = model.complete("1 2 3 4", sampling=sampling).usage
    return (usage.answer_tokens - 1) / usage.decode_s if usage.decode_s > 0 else 0.0
