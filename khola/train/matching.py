"""What a teacher said of a text, laid beside the student's tokens of it.

Shapes   r trained rows of one sample (a row predicts one token of the text), N student tokens and M teacher's pieces of the text, C chunks,
         K alternatives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from khola.data.align import Chunks, align
from khola.errors import BadText
from khola.train.opinion import Opinion
from khola.train.teacher import Spoken

Matched = dict[str, NDArray[Any]]
NOWHERE = -1


def chunk_match(said: Spoken, opinion: Opinion, debias: float = 0.0) -> Matched:
    """Chunks that both sides can score.

    Args:
        said: the student's tokens, perhaps cut short.
        opinion: the teacher's scores of the same text.
        debias: chunks end only where the teacher gives tokens that begin a word more than this mass; 0 takes every common end.
    Returns:
        "chunk_r" (chunk of every row, -1 for none), "teacher_C" (surprisals in nats), "mass_C" (logarithm of the mass behind each chunk, 0
        without debiasing) and "behind_C" (row that tells the student's mass there, -1 where the text is over).
    Raises:
        BadText: the two read different texts.
    """
    chunks = _chunks(said, opinion)
    surprisal_M = -opinion.logprobs_N.astype(np.float64)
    if debias > 0:
        masses_C = opinion.masses_N[chunks.teacher[1:] - 1].astype(np.float64)
        chunks = chunks.merged(masses_C > debias)
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(surprisal_M))])
    unknown = np.concatenate([[0], np.cumsum(np.isnan(surprisal_M))])
    teacher_C = np.diff(sums[chunks.teacher])
    skipped = _unpredicted(said)
    # A chunk with a token that nothing stands before cannot be scored, on either side.
    scored_C = (np.diff(unknown[chunks.teacher]) == 0) & (chunks.student[:-1] >= skipped)
    numbers = np.where(scored_C, np.cumsum(scored_C) - 1, NOWHERE)
    chunk_N = chunks.student_chunk(len(said.lengths))
    chunk_N = np.where(chunk_N >= 0, np.append(numbers, NOWHERE)[chunk_N], NOWHERE)
    behind_C = np.where(chunks.student[1:] < len(said.lengths), chunks.student[1:] - skipped, NOWHERE)
    masses_C = opinion.masses_N[chunks.teacher[1:] - 1].astype(np.float64) if debias > 0 else np.ones(len(chunks))
    return {
        "chunk_r": chunk_N[skipped:],
        "teacher_C": teacher_C[scored_C].astype(np.float32),
        "mass_C": np.log(masses_C[scored_C]).astype(np.float32),
        "behind_C": behind_C[scored_C],
    }


def token_match(said: Spoken, opinion: Opinion, *, same: bool) -> Matched:
    """The teacher's best tokens for every row.

    Args:
        said, opinion: as of `chunk_match`.
        same: both cut the text alike; otherwise places are paired by their number, as universal logit distillation does.
    Returns:
        "ids_rK", "top_rK" (log-probabilities) and "scored_r" (whether the teacher says anything of that row).
    Raises:
        BadText: the two read different texts, or cut it differently where they must not.
    """
    chunks = _chunks(said, opinion)
    if same and not (chunks.single.all() and len(chunks) >= min(len(said.lengths), len(opinion.lengths_N))):
        raise BadText(
            "teacher and student cut this text into different tokens, so their logits cannot be compared",
            hint="set distil.objective to alm or uld",
        )
    skipped = _unpredicted(said)
    rows, pieces = len(said.lengths) - skipped, opinion.lengths_N[skipped:]
    told = min(rows, len(pieces))
    kept = opinion.top_ids_NK.shape[1]
    ids_rK, top_rK = np.full((rows, kept), NOWHERE, np.int64), np.full((rows, kept), -np.inf, np.float32)
    scored_r = np.zeros(rows, np.bool_)
    ids_rK[:told] = opinion.top_ids_NK[skipped:][:told]
    top_rK[:told] = opinion.top_NK[skipped:][:told]
    scored_r[:told] = ~np.isnan(opinion.logprobs_N[skipped:][:told])
    return {"ids_rK": ids_rK, "top_rK": top_rK, "scored_r": scored_r}


def _unpredicted(said: Spoken) -> int:
    """Tokens of the text that no row predicts: its first one, where nothing stands before it."""
    return int(said.first == 0)


def _chunks(said: Spoken, opinion: Opinion) -> Chunks:
    if said.text != opinion.text and not opinion.text.startswith(said.text):
        raise BadText(
            "teacher and student read different texts: {teacher!r} and {student!r}",
            hint="their chat formats may write this answer differently",
            teacher=opinion.text[:60],
            student=said.text[:60],
        )
    return align(opinion.ends, said.ends)
