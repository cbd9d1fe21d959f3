"""Chooses tokens from logits: the same logits, seed and position give the same token, whoever else is in the batch.

Order    logit bias, penalties, grammar, temperature, top-k, top-p, min-p; then one draw. Equal logits rank by id, lowest first.
Speed    No sort of the vocabulary: bounds from one pass leave candidates, and only these are sorted.
Shapes   V vocabulary, G groups, C candidates.

Sources  repetition penalty: arXiv:1909.05858 section 4.1; top-p: arXiv:1904.09751 section 3.1; min-p: arXiv:2407.01082 section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from khola.engine.request import Sampling, TokenInfo
from khola.errors import NonFinite, UnknownOption
from khola.ops.scores import Changes, Row

if TYPE_CHECKING:
    from khola.engine.constraint import Constraint

Logits = NDArray[np.float32]

GROUP = 32
"""Ids in one group of which the maximum is taken."""
CHUNK = 1024
"""Ids in one partial sum of a draw from the whole vocabulary."""
ADDENDS = 16
"""Numbers of a long sum that are added in float32."""
SLACK = 1.1
"""Room for rounding in what a nucleus may leave out."""
MOST_BEST = 256
"""Top-k up to which the best logits are searched for one by one."""


def checked(sampling: Sampling, num_tokens: int) -> Sampling:
    """Sampling whose every value lies in its range.

    Raises:
        UnknownOption: a value lies outside its range, or a bias names an id that the vocabulary does not have.
    """
    try:
        good = msgspec.convert(msgspec.to_builtins(sampling), Sampling)
    except (msgspec.ValidationError, TypeError, OverflowError) as error:
        raise UnknownOption("sampling cannot be meant: {detail}", detail=str(error)) from None
    for token, bias in good.logit_bias.items():
        if not 0 <= token < num_tokens:
            raise UnknownOption("logit_bias names token {token}; ids go from 0 to {last}", token=token, last=num_tokens - 1)
        if not -100 <= bias <= 100:
            raise UnknownOption("logit_bias of token {token} is {bias}; expected -100 to 100", token=token, bias=bias)
    if not all(good.stop):
        raise UnknownOption("a stop string is empty", hint="leave it out")
    return good


def uniform(seed: int, position: int) -> float:
    """A random number from [0, 1) that depends on nothing but the seed and the position in the sequence."""
    digest = blake2b(f"{seed}:{position}".encode(), digest_size=8, person=b"khola draw").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def log_normaliser(logits_V: Logits) -> float:
    """log Σ exp of one row; subtract it from a logit to have its log-probability."""
    most = float(logits_V.max())
    with np.errstate(over="ignore", under="ignore"):
        return most + math.log(total(np.exp(logits_V - np.float32(most))))


def require_finite(logits_V: Logits, position: int) -> None:
    """Refuse logits that no token can be chosen from.

    Raises:
        NonFinite: a logit is NaN or infinite.
    """
    if not np.isfinite(logits_V).all():
        raise not_finite(logits_V, position)


def not_finite(logits_V: Logits, position: int) -> NonFinite:
    """What is wrong with such logits."""
    return NonFinite(
        "the model gave {count} numbers that are not finite at position {position}",
        hint="a weight of the model may be damaged: check its file, or try another number format",
        count=int(np.count_nonzero(~np.isfinite(logits_V))),
        position=position,
    )


class Chooser:
    """Chooses the tokens of one request, and remembers what its penalties need.

    Args:
        sampling: checked values.
        seed: of all draws of this request.
        prompt: its tokens.
        num_tokens: ids from here on are padding of the head and are never chosen.
    """

    def __init__(self, sampling: Sampling, seed: int, prompt: Iterable[int], num_tokens: int) -> None:
        self.sampling = sampling
        self.seed = seed
        self.num_tokens = num_tokens
        penalties = sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty
        self._changes = Changes(sampling.logit_bias, *penalties, seen=prompt)

    @property
    def num_best(self) -> int:
        """How many of the best logits decide, and nothing is told of the others; 0 where all count."""
        sampling = self.sampling
        if sampling.logprobs is not None:
            return 0
        if sampling.temperature == 0:
            return 1
        return sampling.top_k if sampling.top_k <= min(MOST_BEST, self.num_tokens - 1) else 0

    def can_choose(self, logits_V: Logits | Row) -> bool:
        """Whether all logits are finite."""
        if isinstance(logits_V, np.ndarray):
            return bool(np.isfinite(logits_V[: self.num_tokens]).all())
        return logits_V.best(1, self.num_tokens, self._changes) is not None

    def expected(self, logits_V: Logits | Row) -> int | None:
        """The likeliest token after bias and penalties; None where a logit is NaN or infinite."""
        if isinstance(logits_V, np.ndarray):
            return int(self._changes.applied(logits_V[: self.num_tokens]).argmax()) if self.can_choose(logits_V) else None
        found = logits_V.best(1, self.num_tokens, self._changes)
        return None if found is None else int(found[0][0])

    def choose(self, logits_V: Logits | Row, position: int, constraint: Constraint | None = None) -> TokenInfo:
        """The next token.

        Args:
            logits_V: of one row, padding included; not changed.
            position: of the new token in its sequence.
            constraint: which tokens may come; it is asked here and not told of the choice.
        Raises:
            NonFinite: a logit is NaN or infinite.
            BadGrammar: no token may come.
        """
        if isinstance(logits_V, np.ndarray):
            told = self._chosen(logits_V[: self.num_tokens], position, constraint)
        elif self.num_best and (constraint is None or constraint.free):
            told = TokenInfo(self._best(logits_V, position))
            if constraint is not None and not constraint.fits(told.id):
                told = self._chosen(logits_V.whole()[: self.num_tokens], position, constraint)
        else:
            told = self._chosen(logits_V.whole()[: self.num_tokens], position, constraint)
        self._changes.add(told.id)
        return told

    def _best(self, row: Row, position: int) -> int:
        """The token, from no more logits than top-k leaves."""
        found = row.best(self.num_best, self.num_tokens, self._changes)
        if found is None:
            raise not_finite(row.whole()[: self.num_tokens], position)
        ids_k, logits_k = found
        if self.sampling.temperature == 0:
            return int(ids_k[0])
        with np.errstate(over="ignore", under="ignore"):
            weights_k = falling_weights(logits_k, self.sampling.temperature, self.sampling.top_p, self.sampling.min_p)
        return int(ids_k[draw(weights_k, uniform(self.seed, position))])

    def _chosen(self, logits_V: Logits, position: int, constraint: Constraint | None) -> TokenInfo:
        """The token, from all logits."""
        require_finite(logits_V, position)
        changed_V = self._changes.applied(logits_V)
        if constraint is not None:
            changed_V = constraint.applied(changed_V)
        token = self._picked(changed_V, position)
        while constraint is not None and not constraint.fits(token):
            changed_V = np.where(np.arange(len(changed_V)) == token, np.float32(-np.inf), changed_V)
            token = self._picked(changed_V, position)
        wanted = self.sampling.logprobs
        return TokenInfo(token) if wanted is None else told(token, logits_V, wanted)

    def _picked(self, changed_V: Logits, position: int) -> int:
        """The greatest of the logits, or one drawn from them."""
        return int(changed_V.argmax()) if self.sampling.temperature == 0 else self._drawn(changed_V, uniform(self.seed, position))

    def _drawn(self, logits_V: Logits, chance: float) -> int:
        """One token drawn from what temperature and filters leave."""
        sampling = self.sampling
        with np.errstate(over="ignore", under="ignore"):
            ids_C, weights_C = survivors(logits_V, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        place = draw(weights_C, chance)
        return place if ids_C is None else int(ids_C[place])


def told(token: int, logits_V: Logits, wanted: int) -> TokenInfo:
    """A token with its log-probability and so many of the likeliest ones."""
    whole = log_normaliser(logits_V)
    best = likeliest(logits_V, wanted) if wanted else ()
    return TokenInfo(token, float(logits_V[token]) - whole, tuple((int(i), float(logits_V[i]) - whole) for i in best))


def likeliest(logits_V: Logits, k: int) -> NDArray[np.intp]:
    """Ids of the k greatest logits, greatest first, equal ones by id.

    The k-th greatest of the group maxima is no more than the k-th greatest logit, so only groups that reach it need be looked at.
    """
    num = len(logits_V)
    if k * GROUP >= num:
        return ranked(logits_V)[:k]
    whole = num // GROUP * GROUP
    maxima_G = logits_V[:whole].reshape(GROUP, -1).max(axis=0)
    at_least = np.partition(maxima_G, len(maxima_G) - k)[len(maxima_G) - k]
    groups = np.flatnonzero(maxima_G >= at_least)
    members = (np.arange(GROUP)[:, None] * len(maxima_G) + groups).ravel()
    near = np.concatenate([members, np.arange(whole, num)])
    near = near[logits_V[near] >= at_least]
    best: NDArray[np.intp] = near[ranked(logits_V[near])[:k]]
    return best


def ranked(values_C: Logits) -> NDArray[np.intp]:
    """Places of all values, greatest first, equal ones in order of place.

    Value and place are packed into one integer, because integers are sorted several times faster than a stable order of floats is found.
    """
    bits_C = (values_C + np.float32(0)).view(np.int32)
    rising_C = bits_C ^ ((bits_C >> 31) & np.int32(0x7FFFFFFF))
    keys_C = (~rising_C).astype(np.int64) << 32 | np.arange(len(values_C))
    keys_C.sort()
    return keys_C & 0xFFFFFFFF


def survivors(
    logits_V: Logits, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[NDArray[np.intp] | None, NDArray[np.float32]]:
    """What temperature and filters leave.

    Args:
        logits_V: after bias and penalties.
        temperature: keeps the order, so that top-k can come first; 0 counts as a very small one.
        top_k: keep so many; 0 keeps all.
        top_p: then keep the likeliest until their share of what is left reaches this.
        min_p: then drop tokens less likely than this share of the likeliest.
    Returns:
        Ids, in an order that depends on the logits only, and their weights (probabilities up to a factor). Ids are None when all are left,
        in order of id.
    """
    if 0 < top_k < len(logits_V):
        best = likeliest(logits_V, top_k)
        places, weights_C = survivors(logits_V[best], temperature, 0, top_p, min_p)
        return best if places is None else best[places], weights_C
    scaled_V = logits_V - logits_V.max()
    if temperature != 1:
        scaled_V /= np.float32(max(temperature, 1e-30))
    if top_p < 1:
        ids_C, weights_C = _nucleus(scaled_V, top_p)
    elif min_p > 0:
        ids_C = np.flatnonzero(scaled_V >= _floor(min_p))
        weights_C = np.exp(scaled_V[ids_C])
    else:
        return None, np.exp(scaled_V)
    if min_p > 0:
        likely = scaled_V[ids_C] >= _floor(min_p)
        ids_C, weights_C = ids_C[likely], weights_C[likely]
    return ids_C, weights_C


def falling_weights(logits_k: Logits, temperature: float, top_p: float, min_p: float) -> NDArray[np.float32]:
    """What temperature and filters leave of logits that fall: always the first of them, with the very weights that `survivors` gives."""
    scaled_k = logits_k - logits_k[0]
    if temperature != 1:
        scaled_k /= np.float32(max(temperature, 1e-30))
    weights_k = np.exp(scaled_k)
    num = len(weights_k)
    if top_p < 1:
        whole = total(weights_k)
        near = np.count_nonzero(weights_k >= np.float32((1 - top_p) * whole / (SLACK * num)))
        num = _reaching(weights_k[:near], top_p * whole)
    if min_p > 0:
        num = min(num, int(np.count_nonzero(scaled_k >= _floor(min_p))))
    left_k: NDArray[np.float32] = weights_k[:num]
    return left_k


def _floor(min_p: float) -> np.float32:
    """The scaled logit below which min-p drops a token; the likeliest has 0 and always stays."""
    return np.float32(min(0.0, math.log(min_p)))


def _nucleus(scaled_V: Logits, top_p: float) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The likeliest tokens whose share of the whole reaches top_p, in order of id.

    Tokens so unlikely that V of them together would not make up what may be left out need not be sorted.
    """
    weights_V = np.exp(scaled_V)
    whole = total(weights_V)
    near_C = np.flatnonzero(weights_V >= np.float32((1 - top_p) * whole / (SLACK * len(scaled_V))))
    scaled_C = scaled_V[near_C]
    falling_C = np.sort(scaled_C)[::-1]
    inside = _reaching(np.exp(falling_C), top_p * whole)
    edge = falling_C[inside - 1]
    kept_C = scaled_C >= edge
    too_many = int(np.count_nonzero(kept_C)) - inside
    if too_many:
        kept_C[np.flatnonzero(scaled_C == edge)[-too_many:]] = False
    ids_C = near_C[kept_C]
    return ids_C, weights_V[ids_C]


def total(weights_C: NDArray[np.float32]) -> float:
    """The sum of numbers that are not negative, to about a millionth: few of them at a time in float32, these sums in float64."""
    whole = len(weights_C) // ADDENDS * ADDENDS
    sums = weights_C[:whole].reshape(ADDENDS, -1).sum(axis=0)
    return float(sums.sum(dtype=np.float64) + weights_C[whole:].sum(dtype=np.float64))


def _reaching(weights_C: NDArray[np.float32], enough: float) -> int:
    """How many of the first weights add up to at least `enough`; all of them when rounding keeps them below."""
    return _place(weights_C, _chunk_sums(weights_C), enough, "left") + 1


def draw(weights_C: NDArray[Any], chance: float) -> int:
    """The place that a number from [0, 1) falls on when every place is as long as its weight; places without weight are never hit."""
    sums = _chunk_sums(weights_C)
    place = _place(weights_C, sums, chance * float(sums[-1]), "right")
    # Rounding may carry the target past the last place of a chunk that has weight.
    first = place // CHUNK * CHUNK
    return first + min(place - first, int(np.flatnonzero(weights_C[first : first + CHUNK])[-1]))


def _chunk_sums(weights_C: NDArray[Any]) -> NDArray[np.float64]:
    """Sums of the weights up to the end of each chunk."""
    sums: NDArray[np.float64] = np.cumsum(np.add.reduceat(weights_C, np.arange(0, len(weights_C), CHUNK), dtype=np.float64))
    return sums


def _place(weights_C: NDArray[Any], sums: NDArray[np.float64], target: float, side: Literal["left", "right"]) -> int:
    """Where the sum of the weights reaches a target ("left") or passes it ("right"); rounding keeps it inside its chunk."""
    chunk = min(int(sums.searchsorted(target, side)), len(sums) - 1)
    inside = np.cumsum(weights_C[chunk * CHUNK : (chunk + 1) * CHUNK], dtype=np.float64)
    place = int(inside.searchsorted(target - (float(sums[chunk - 1]) if chunk else 0.0), side))
    return chunk * CHUNK + min(place, len(inside) - 1)
