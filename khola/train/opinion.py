"""What is asked of a teacher, and what it answers: a text with the probability of its tokens, or a text of its own.

Shapes   N pieces of a text (the teacher's tokens), K alternatives kept of each.

A piece is told by its length in bytes, so nothing of the teacher's vocabulary is needed to read an opinion. The end of an answer, where it
is scored, is a piece of one byte behind the text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from khola.chat.message import Message

LEAST_LOGPROB = -60000.0
"""What an impossible token has; halves end at -65504."""
UNKNOWN = -1
"""In place of the id of a token that the student has not."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to ask."""

    messages: tuple[Message, ...] = ()
    """Turns before the answer; none where a plain text is meant."""
    prompt: str = ""
    """Plain text before the text that is meant; only without messages."""
    text: str = ""
    """What is to be scored; empty where the teacher is to write."""
    seed: int = 0
    """Of the text that it writes."""

    def key(self) -> bytes:
        """SHA-256 of all that is asked, 32 bytes."""
        return hashlib.sha256(msgspec.json.encode(self)).digest()


@dataclass(frozen=True, eq=False, kw_only=True)
class Opinion:
    """What a teacher answers to a question."""

    text: str
    """As the teacher read it (its normal form may rewrite letters), or wrote it."""
    lengths_N: NDArray[np.uint16]
    """Bytes of each piece; none where the teacher wrote."""
    logprobs_N: NDArray[np.float16]
    """Natural logarithms; NaN where nothing stood before the piece."""
    masses_N: NDArray[np.float16]
    """Probability, behind each piece, that the next token begins where a word does; none where it was not asked for or is not told."""
    top_ids_NK: NDArray[np.int32]
    """The teacher's best tokens in place of each piece, best first; K may be 0."""
    top_NK: NDArray[np.float16]
    """Their log-probabilities."""
    thinking: str = ""
    """What it thought before it wrote."""
    whole: bool = True
    """A text that the teacher wrote ended by itself."""

    @property
    def ends(self) -> NDArray[np.int64]:
        """Where each piece ends, in bytes, [N]."""
        return np.cumsum(self.lengths_N, dtype=np.int64)


def scored(
    text: str,
    lengths: list[int],
    logprobs: NDArray[np.floating],
    masses: NDArray[np.floating] | None = None,
    top_ids: NDArray[np.integer] | None = None,
    top: NDArray[np.floating] | None = None,
) -> Opinion:
    """An opinion about a text, in the numbers in which it is kept; arguments as the fields of `Opinion`."""
    empty, none = np.zeros((len(lengths), 0)), np.zeros(0)
    return Opinion(
        text=text,
        lengths_N=np.array(lengths, np.uint16),
        logprobs_N=np.maximum(logprobs, LEAST_LOGPROB).astype(np.float16),
        masses_N=(none if masses is None else masses).astype(np.float16),
        top_ids_NK=(empty if top_ids is None else top_ids).astype(np.int32),
        top_NK=np.maximum(empty if top is None else top, LEAST_LOGPROB).astype(np.float16),
    )


def written(text: str, whole: bool, thinking: str = "") -> Opinion:
    """A text of the teacher's own; arguments as the fields of `Opinion`."""
    return replace(scored(text, [], np.zeros(0)), whole=whole, thinking=thinking)
