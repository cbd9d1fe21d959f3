"""How far a student's next-token distribution is from its teacher's, over the whole vocabulary or over what the teacher kept of it.

Divergences are taken between log-probabilities of the same outcomes, [R, N]: all tokens, or the teacher's K best and one outcome for all
others. All work on some rows of logits at a time, as `khola.train.losses` hands them out: a whole matrix is never there.

Shapes   R rows, V vocabulary, K kept of the teacher, N outcomes.
Sources  forward and reverse KL; generalised Jensen-Shannon divergence, arXiv:2306.13649 section 3; truncated reverse KL renormalised over
         the teacher's best, arXiv:2603.25562.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Literal

import torch
from torch import Tensor

from khola.errors import UnknownOption

LEAST_TAIL = 1e-6
"""Probability of all other tokens, at least: the kept ones are rounded to halves, and their sum may be 1."""

Rest = Literal["tail", "renormalise", "drop"]
Compared = Callable[[Tensor, Tensor], Tensor]


def forward_kl(teacher_RN: Tensor, student_RN: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities, in nats, [R]: covers all that the teacher does."""
    return (teacher_RN.exp() * _difference(teacher_RN, student_RN)).sum(-1)


def reverse_kl(teacher_RN: Tensor, student_RN: Tensor) -> Tensor:
    """KL(q || p) of log-probabilities, in nats, [R]: seeks what the teacher likes best."""
    return forward_kl(student_RN, teacher_RN)


def generalised_jsd(teacher_RN: Tensor, student_RN: Tensor, beta: float) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, [R]; the ends are forward (0) and reverse KL (1).

    Args:
        teacher_RN, student_RN: log-probabilities.
        beta: from 0 to 1.
    Raises:
        UnknownOption: beta is outside.
    """
    if not 0 <= beta <= 1:
        raise UnknownOption("beta is {value}; expected a number from 0 to 1", value=beta)
    if beta in (0.0, 1.0):
        return reverse_kl(teacher_RN, student_RN) if beta else forward_kl(teacher_RN, student_RN)
    # Where neither can be, the sum of two impossible outcomes would have no gradient.
    nobody_RN = (teacher_RN == -torch.inf) & (student_RN == -torch.inf)
    left_RN, right_RN = (x_RN.masked_fill(nobody_RN, 0.0) for x_RN in (teacher_RN, student_RN))
    mixed_RN = torch.logaddexp(left_RN + log(beta), right_RN + log(1 - beta)).masked_fill(nobody_RN, -torch.inf)
    return beta * forward_kl(teacher_RN, mixed_RN) + (1 - beta) * forward_kl(student_RN, mixed_RN)


def kept_outcomes(logits_RV: Tensor, ids_RK: Tensor, teacher_RK: Tensor, rest: Rest = "tail") -> tuple[Tensor, Tensor]:
    """The distributions of teacher and student over what the teacher kept.

    Args:
        logits_RV: the student's.
        ids_RK: the teacher's best tokens, as the student numbers them; -1 where the student has no such token.
        teacher_RK: their log-probabilities under the teacher.
        rest: what becomes of all other tokens. "tail" makes them one outcome, which also takes the places of -1; "renormalise" leaves them
            out and divides both by what remains; "drop" leaves them out and divides nothing, so the sums are no distributions: gradients
            of the reverse KL then push mass out of the kept tokens (arXiv:2603.25562), which is why it is no default anywhere.
    Returns:
        Log-probabilities of the teacher and of the student, [R, K + 1] with a tail and [R, K] without.
    """
    known_RK = ids_RK >= 0
    places_RK = ids_RK.clamp(min=0)
    teacher_RK = teacher_RK.to(logits_RV.dtype).masked_fill(~known_RK, -torch.inf)
    all_R1 = logits_RV.logsumexp(-1, keepdim=True)
    student_RK = (logits_RV.gather(-1, places_RK) - all_R1).masked_fill(~known_RK, -torch.inf)
    if rest == "drop":
        return teacher_RK, student_RK
    if rest == "renormalise":
        return _renormalised(teacher_RK), _renormalised(student_RK)
    teacher_R1 = (1 - teacher_RK.exp().sum(-1, keepdim=True)).clamp(min=LEAST_TAIL).log()
    kept_RV = torch.zeros_like(logits_RV, dtype=torch.bool).scatter_(-1, places_RK, known_RK)
    # A place of -1 was clamped onto token 0 and may have unmarked it; what really is token 0 is marked again.
    kept_RV[:, 0] = ((ids_RK == 0) & known_RK).any(-1)
    student_R1 = logits_RV.masked_fill(kept_RV, -torch.inf).logsumexp(-1, keepdim=True) - all_R1
    teacher_RN = torch.cat([teacher_RK, teacher_R1], -1)
    teacher_RN = teacher_RN - teacher_RN.logsumexp(-1, keepdim=True)
    return teacher_RN, torch.cat([student_RK, student_R1], -1)


def divergence_named(name: str, beta: float = 0.5) -> Compared:
    """A divergence by its name: "forward", "reverse" or "jsd".

    Args:
        beta: of the generalised Jensen-Shannon divergence.
    Raises:
        UnknownOption: there is no such divergence.
    """
    known: dict[str, Compared] = {
        "forward": forward_kl,
        "reverse": reverse_kl,
        "jsd": lambda teacher_RN, student_RN: generalised_jsd(teacher_RN, student_RN, beta),
    }
    if name not in known:
        raise UnknownOption("there is no divergence {name!r}", hint="the divergences are: {known}", name=name, known=", ".join(known))
    return known[name]


def _renormalised(logs_RK: Tensor) -> Tensor:
    """Divided by what is there; a row in which nothing is possible stays so."""
    empty_R1 = (logs_RK == -torch.inf).all(-1, keepdim=True)
    some_RK = logs_RK.masked_fill(empty_R1, 0.0)
    return (some_RK - some_RK.logsumexp(-1, keepdim=True)).masked_fill(empty_R1, -torch.inf)


def _difference(left_RN: Tensor, right_RN: Tensor) -> Tensor:
    """left - right where left is possible; 0 where it is not, since its weight there is 0. Infinities would spoil the gradient."""
    possible_RN = left_RN > -torch.inf
    return torch.where(possible_RN, left_RN.masked_fill(~possible_RN, 0.0) - right_RN.masked_fill(~possible_RN, 0.0), 0.0)
