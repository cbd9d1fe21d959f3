"""Losses between models of different vocabularies, and credit for what a student wrote itself.

Approximate likelihood matching (ALM) compares how surprising both models find the same chunk of text: two numbers a chunk, a = -log P of
the teacher and b = -log Q of the student. Universal logit distillation (ULD) compares sorted probabilities and never asks which is which.

Shapes   N tokens of the student, C chunks, R rows, V and W vocabularies, K kept of the teacher.
Sources  ALM: arXiv:2503.20083 section 3, its debiasing: section 3.3; the limit of infinite temperature is derived in `docs/distil.md`.
         ULD: arXiv:2402.12030 section 3. Credit of a chunk: one-sample reverse KL, arXiv:2605.07711 section 3.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn import functional

LEAST = 1e-6
"""Surprisal of a chunk, at least, in nats; the loss divides by it."""
LEAST_MASS = 1e-4
"""Mass of boundary tokens, at least, before its logarithm is taken: the teacher's is a half on the disk."""


def token_scores(logits_RV: Tensor, ids_R: Tensor, boundary_V: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Log-probability of the given next token, and of a next token that begins no later than at a boundary; [R] each.

    Args:
        logits_RV: what the rows predict.
        ids_R: what really follows each row.
        boundary_V: tokens that never continue a word; without them the second result is 0.
    """
    all_R = logits_RV.logsumexp(-1)
    taken_R = logits_RV.gather(-1, ids_R[:, None])[:, 0] - all_R
    if boundary_V is None:
        return taken_R, torch.zeros_like(taken_R)
    return taken_R, logits_RV[:, boundary_V].logsumexp(-1) - all_R


def chunk_surprisals(logprobs_N: Tensor, chunk_N: Tensor, chunks: int) -> Tensor:
    """Minus the log-probability of every chunk: of its tokens together, [C].

    Args:
        logprobs_N: of every token given those before it.
        chunk_N: number of each token's chunk; tokens of chunk -1 are in none.
        chunks: how many there are.
    """
    inside_N = chunk_N >= 0
    return logprobs_N.new_zeros(chunks).index_add(0, chunk_N[inside_N], -logprobs_N[inside_N])


def debiased(surprisal_C: Tensor, log_mass_C: Tensor) -> Tensor:
    """Surprisals of chunks that end where a word does: the chunk's probability times the mass of tokens that begin behind it.

    A chunk whose last token is the beginning of a longer one is likely for another reason than its text is; the mass takes that away.

    Args:
        surprisal_C: of the chunks.
        log_mass_C: logarithm of the mass of boundary tokens at each chunk's end.
    """
    return surprisal_C - log_mass_C.clamp(min=log(LEAST_MASS))


def alm(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """The two-outcome KL between P^(1/t) and Q^(1/t): of the chunk happening and of anything else, [C].

    Times the temperature it tends to `alm_limit`.

    Args:
        teacher_C, student_C: surprisals in nats, a and b.
        temperature: t, above 0.
    """
    log_p, log_q = (-_at_least(x_C) / temperature for x_C in (teacher_C, student_C))
    not_p, not_q = log1mexp(log_p), log1mexp(log_q)
    return log_p.exp() * (log_p - log_q) + not_p.exp() * (not_p - not_q)


def alm_limit(teacher_C: Tensor, student_C: Tensor) -> Tensor:
    """b - a + a log(a / b), the limit of `alm` times its temperature, [C]; its derivative by log Q is a / b - 1.

    So a chunk that both find equally likely teaches nothing, and none pulls harder than its own cross-entropy would.

    Args:
        teacher_C, student_C: surprisals in nats, a and b.
    """
    a_C, b_C = _at_least(teacher_C), _at_least(student_C)
    return b_C - a_C + a_C * (a_C / b_C).log()


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of negative numbers, exact for small and for large ones.

    Source: M. Mächler, Accurately computing log(1 - exp(-|a|)), 2012.
    """
    near = x > -log(2.0)
    # Both branches are computed for every number, so each is kept away from where it has no gradient.
    small = (-torch.expm1(torch.where(near, x, -1.0))).log()
    large = torch.log1p(-torch.where(near, -1.0, x).exp())
    return torch.where(near, small, large)


def uld(teacher_RV: Tensor, student_RW: Tensor) -> Tensor:
    """Distance of the sorted probabilities, position by position, the shorter vector filled up with zeros, [R]: from 0 to 2.

    Args:
        teacher_RV, student_RW: probabilities of the same places of a text.
    """
    width = max(teacher_RV.shape[-1], student_RW.shape[-1])
    ranked = [functional.pad(p.sort(-1, descending=True).values, (0, width - p.shape[-1])) for p in (teacher_RV, student_RW)]
    return (ranked[0] - ranked[1]).abs().sum(-1)


def uld_kept(teacher_RK: Tensor, logits_RW: Tensor) -> Tensor:
    """`uld` where only the teacher's best are known: rank by rank over these, and the mass of all other ranks in one step, [R].

    It never exceeds `uld` of the whole distributions, and equals it when the teacher kept all its mass and the student has no more ranks.

    Args:
        teacher_RK: log-probabilities of the teacher's best tokens, in any order.
        logits_RW: the student's logits.
    """
    student_RW = logits_RW.softmax(-1)
    best_RK = student_RW.topk(min(teacher_RK.shape[-1], student_RW.shape[-1]), -1).values
    teacher_RK = teacher_RK.to(student_RW.dtype).exp()
    tails = [1 - p.sum(-1, keepdim=True) for p in (teacher_RK, best_RK)]
    return uld(teacher_RK, best_RK) + (tails[0] - tails[1]).abs()[:, 0]


def chunk_credit(teacher_C: Tensor, student_C: Tensor, limit: float = 0.0) -> Tensor:
    """log P - log Q of chunks that the student wrote, without a gradient, [C]: what one sample says of minus the reverse KL.

    Args:
        teacher_C, student_C: surprisals in nats; for equal vocabularies every token is a chunk.
        limit: larger credit, either way, is cut to this; 0 cuts nothing.
    """
    credit_C = (student_C - teacher_C).detach()
    return credit_C.clamp(-limit, limit) if limit > 0 else credit_C


def policy_loss(logprobs_N: Tensor, sampled_N: Tensor, credit_N: Tensor) -> Tensor:
    """Minus credit times the ratio of now to when it was sampled, [N]; its gradient is that of REINFORCE while both are the same.

    Args:
        logprobs_N: of the tokens that were sampled, with gradients.
        sampled_N: the same as the sampler computed them.
        credit_N: of each token: that of its chunk.
    """
    return -credit_N.detach() * (logprobs_N - sampled_N.detach()).exp()


def _at_least(surprisal_C: Tensor) -> Tensor:
    """The surprisal, lifted to `LEAST` where it is less; the gradient passes as if it had not been."""
    return surprisal_C + (surprisal_C.clamp(min=LEAST) - surprisal_C).detach()
