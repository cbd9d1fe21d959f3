"""Guesses at what comes next, from what the text has said before: several tokens out of one step, and no second model.

A draft is what followed when the newest tokens stood together last time, or the token that a layer behind the model's last one expects,
where it has such a layer (`khola.nn.second_token`). One step computes the newest token and the draft behind it, and
the sampler then draws row by row as it would have drawn anyway, with the random number of each position, for as long as it draws what was
guessed. So an answer is the same token for token with and without drafts, at any temperature; a bad guess costs time and nothing else.

Shapes   N everybody who decodes, D depth of a token in its draft.

Whether a draft pays is a question of time: `Pace` knows how long steps of so many rows take here, `Speculator` how often the guesses of a
request were right, and `shares` weighs one against the other; `pays` does so for the time of a layer itself.

Sources  drafts copied from earlier text: arXiv:2304.04487 section 3; tokens expected of a draft: arXiv:2211.17192 section 3.1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONGEST, SHORTEST = 4, 2
"""Tokens in the runs that are looked up; a longer one is better evidence."""
DRAFT_TOKENS = 15
"""Longest draft; with the token before it, sixteen rows: the height of one tile of the matrix units that make drafts cheap."""
REACH = 32_768
"""Tokens at the end of a prompt that are indexed, at most: bounds the memory of an index."""
AT_ONCE = 2048
"""Tokens that one step takes into an index, at most, so that a long prompt holds nobody up."""

FORGET, RECOVER = 0.8, 0.98
"""What a verdict, and a step without one, leave of the verdicts before."""
EXPECTED = 1
"""Stands for the length of a run where a layer made the guess from the newest token."""
PRIOR = {4: 0.6, 3: 0.45, 2: 0.3, EXPECTED: 0.85}
"""How often a guess is right before anything is known, by the length of its run; for a layer see arXiv:2412.19437 section 5.4.3."""
PRIOR_WEIGHT = 2.0
FORCED = 0.9
"""How often a token is right that a grammar forces."""
LEAST_CHANCE = 1 / 16
"""A draft that is asked for whatever it costs goes on while all of it is right with this chance."""

SAMPLES, TRUSTED = 5, 2
"""Times kept of every number of rows, and how many make a median; of two the shorter, because the first one touches fresh memory."""
PROBE_PLAIN, PROBE_DRAFT = 128, 1024
"""Steps after which the time of a step without and with drafts is taken anew: the first costs less to find out."""
DEPTHS = np.arange(1, DRAFT_TOKENS + 1)
WORTH = 1.05
"""A draft must promise this many times the tokens a second."""


class Runs:
    """Where every short run of tokens in a sequence stood last.

    Args:
        tokens: prompt and answer; the list that grows.
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._indexed = max(SHORTEST, len(tokens) - REACH)
        self._after: dict[int, dict[int, int]] = {length: {} for length in range(LONGEST, SHORTEST - 1, -1)}

    def following(self, most: int) -> tuple[list[int], int]:
        """What followed the newest run last time, and the length of that run, the longest seen before; nothing, and 0, without one.

        A text that repeats itself is taken to go on so: what follows runs on into the guess itself.

        Args:
            most: longest continuation.
        """
        self._catch_up()
        tokens = self._tokens
        for length, after in self._after.items():
            run = tokens[-length:]
            start = after.get(hash(tuple(run)))
            if start is not None and tokens[start - length : start] == run:
                told = tokens[start : start + most]
                return (told * (most // len(told) + 1))[:most], length
        return [], 0

    def _catch_up(self) -> None:
        """Take in what was added, but for the newest runs: those are looked for."""
        tokens = self._tokens
        stop = min(len(tokens), self._indexed + AT_ONCE)
        for end in range(self._indexed, stop):
            for length, after in self._after.items():
                if length <= end:
                    after[hash(tuple(tokens[end - length : end]))] = end
        self._indexed = max(self._indexed, stop)


@dataclass(frozen=True, slots=True)
class Draft:
    """A guess at the next tokens."""

    tokens: list[int]
    chance: float
    """That a token of it is right, given that those before it are; below 1."""
    forced: bool = False
    """Asked for whatever it costs."""


class Speculator:
    """Drafts of one request, and how good they were.

    Args:
        tokens: its prompt and answer; the list that grows.
        wanted: True drafts always, None where it pays, False never.
    """

    def __init__(self, tokens: list[int], wanted: bool | None) -> None:
        self.drafted = 0
        """Guessed tokens that were computed."""
        self.accepted = 0
        """Answer tokens that were guessed right and needed no step of their own."""
        self._wanted = wanted
        self._runs = Runs(tokens)
        self._right = dict.fromkeys(PRIOR, 0.0)
        self._judged = dict.fromkeys(PRIOR, 0.0)
        self._length = 0

    def draft(self, most: int, expected: int | None = None) -> Draft | None:
        """A guess of at most `most` tokens; None without one.

        Args:
            most: longest guess.
            expected: the next token as a layer expects it; what text repeats must begin with it.
        """
        most = min(most, DRAFT_TOKENS)
        self._length = 0
        if self._wanted is False or most < 1:
            return None
        tokens, self._length = self._runs.following(most)
        if expected is not None and tokens[:1] != [expected]:
            tokens, self._length = [expected], EXPECTED
        return Draft(tokens, self.chance(self._length), self._wanted is True) if tokens else None

    def given(self, tokens: list[int], most: int) -> Draft | None:
        """A guess that a grammar makes: only the cut into tokens may turn out otherwise. No verdict on what text repeats."""
        self._length = 0
        tokens = tokens[: min(most, DRAFT_TOKENS)]
        return None if self._wanted is False or not tokens else Draft(tokens, FORCED, self._wanted is True)

    def chance(self, length: int) -> float:
        """How often tokens guessed from runs of this length are right, the latest verdicts first of all."""
        return (self._right[length] + PRIOR[length] * PRIOR_WEIGHT) / (self._judged[length] + PRIOR_WEIGHT)

    def learn(self, drafted: int, right: int) -> None:
        """Take in what became of the last draft.

        Args:
            drafted: tokens of it that were computed.
            right: how many the sampler drew as guessed, before the first that it drew otherwise.
        """
        length = self._length
        if length:
            keep = FORGET if drafted else RECOVER
            self._right[length] = self._right[length] * keep + right
            self._judged[length] = self._judged[length] * keep + min(right + 1, drafted)


class Pace:
    """How long steps take by the number of their rows: running medians for 1, 2, 3 to 4, 5 to 8, 9 to 16 rows and so on.

    Only steps in which everybody decodes are told to it.
    """

    def __init__(self) -> None:
        self._times: dict[int, deque[tuple[float, int]]] = {}
        self._medians: dict[int, tuple[float, int]] = {}
        self._taken: dict[int, int] = {}
        self._steps = 0

    def note(self, rows: int, seconds: float) -> None:
        """Take in one step."""
        bucket = (rows - 1).bit_length()
        times = self._times.setdefault(bucket, deque(maxlen=SAMPLES))
        if times and self._age(bucket) > PROBE_PLAIN:
            times.clear()
            self._medians.pop(bucket, None)
        times.append((seconds, rows))
        self._steps += 1
        self._taken[bucket] = self._steps
        if len(times) >= TRUSTED:
            self._medians[bucket] = sorted(times)[(len(times) - 1) // 2]

    def seconds(self, rows: int, drafts: int) -> NDArray[np.float64] | None:
        """Seconds of steps of so many rows and 0, 1, … `drafts` more; None when the time without drafts must be taken first, or anew.

        Between medians time grows evenly. Numbers of rows that were not tried lately pass for as quick as fewer, and so are tried.
        """
        plain = (rows - 1).bit_length()
        if plain not in self._medians or self._age(plain) > PROBE_PLAIN:
            return None
        known = np.array(sorted((r, s) for bucket, (s, r) in self._medians.items() if self._age(bucket) <= PROBE_DRAFT))
        seconds: NDArray[np.float64] = np.interp(np.arange(rows, rows + drafts + 1, dtype=np.float64), known[:, 0], known[:, 1])
        return seconds

    def _age(self, bucket: int) -> int:
        """Steps since one of so many rows."""
        return self._steps - self._taken[bucket]


def pays(drafts: Sequence[Draft], rows: int, pace: Pace, layer: Pace) -> bool:
    """Whether a layer that guesses is worth its time: more tokens a second come with it than without; True until that is known.

    Args:
        drafts: guesses of those who may do without.
        rows: of the step without guesses.
        pace: how long steps take, the layer left out.
        layer: how long it takes, by how many ask it.
    """
    seconds, more = pace.seconds(rows, len(drafts)), layer.seconds(len(drafts), 0)
    if seconds is None or more is None or not seconds.all():
        return True
    right = sum(draft.chance for draft in drafts)
    return bool((rows + right) / (seconds[-1] + more[0]) >= WORTH * rows / seconds[0])


def shares(drafts: Sequence[Draft | None], pace: Pace, most_rows: int) -> list[int]:
    """How many tokens of each draft the next step should compute so that most tokens come out of every second.

    Args:
        drafts: one for everybody who decodes; None for those who have no guess.
        pace: how long steps take.
        most_rows: rows of the step, drafts included.
    """
    room = max(0, most_rows - len(drafts))
    counts = [_forced(draft) for draft in drafts]
    while (over := sum(counts) - room) > 0:
        longest = counts.index(max(counts))
        counts[longest] -= min(over, max(1, counts[longest] // 2))
    lengths = [0 if draft is None or draft.forced else len(draft.tokens) for draft in drafts]
    more = min(sum(lengths), room - sum(counts))
    seconds = pace.seconds(len(drafts) + sum(counts), more) if more else None
    if seconds is None or not seconds.all():
        return counts
    chances = np.array([0.0 if draft is None else draft.chance for draft in drafts])
    right_ND = chances[:, None] ** DEPTHS
    asked_ND, open_ND = np.array(counts)[:, None] >= DEPTHS, np.array(lengths)[:, None] >= DEPTHS
    likeliest = np.argsort(np.where(open_ND, -right_ND, 1), axis=None, kind="stable")[:more]
    certain = len(drafts) + float(right_ND[asked_ND].sum())
    rates = np.cumsum(np.append(certain, right_ND.ravel()[likeliest])) / seconds
    best = int(rates.argmax())
    if rates[best] < WORTH * rates[0]:
        return counts
    added = np.bincount(likeliest[:best] // DRAFT_TOKENS, minlength=len(drafts))
    return [count + int(extra) for count, extra in zip(counts, added, strict=True)]


def _forced(draft: Draft | None) -> int:
    """Tokens of a draft that was asked for whatever it costs."""
    if draft is None or not draft.forced:
        return 0
    return next((depth for depth in range(1, len(draft.tokens)) if draft.chance ** (depth + 1) < LEAST_CHANCE), len(draft.tokens))
