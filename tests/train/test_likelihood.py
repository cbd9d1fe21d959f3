"""Likelihood matching, universal logits and credit: formulas, gradients and the identities that hold between them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from khola.train.divergence import reverse_kl
from khola.train.likelihood import (
    LEAST,
    alm,
    alm_limit,
    chunk_credit,
    chunk_surprisals,
    debiased,
    log1mexp,
    policy_loss,
    token_scores,
    uld,
    uld_kept,
)
from tests.train import distil_references as formulas
from tests.train.test_divergence import logits

A = torch.tensor([0.02, 0.5, 1.0, 3.0, 5.0, 0.3], dtype=torch.float64)
B = torch.tensor([0.5, 0.5, 4.0, 1.0, 5.0, 0.01], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 100.0])
def test_alm_equals_its_formula(temperature: float) -> None:
    found = alm(A, B, temperature)
    np.testing.assert_allclose(found, formulas.alm(np.exp(-A.numpy()), np.exp(-B.numpy()), temperature), rtol=1e-9, atol=1e-14)
    assert torch.autograd.gradcheck(lambda b: alm(A, b, temperature), B.clone().requires_grad_())


def test_the_limit_is_one() -> None:
    apart = A != B
    # The published default, temperature 100: within 2 % up to five nats.
    np.testing.assert_allclose(100 * alm(A, B, 100.0)[apart], alm_limit(A, B)[apart], rtol=0.02)
    # And it is the limit: ten thousand times that is a thousand times as near.
    np.testing.assert_allclose(1e6 * alm(A, B, 1e6)[apart], alm_limit(A, B)[apart], rtol=1e-5)


def test_the_pull_of_a_chunk() -> None:
    b = B.clone().requires_grad_()
    alm_limit(A, b).sum().backward()
    assert b.grad is not None
    # By log Q = -b: a / b - 1. Equal surprisals teach nothing, and no chunk pulls harder than its cross-entropy, which has -1.
    np.testing.assert_allclose(-b.grad, A / B - 1, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda b: alm_limit(A, b), B.clone().requires_grad_())


def test_a_student_that_is_certain_is_pushed_down_gently() -> None:
    # One token, of probability almost 1; the teacher thinks it has surprisal 2.
    scores = torch.tensor([[30.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (taken, _) = token_scores(scores, torch.tensor([0]))
    loss = alm_limit(torch.tensor([2.0], dtype=torch.float64), -taken)
    loss.sum().backward()
    assert scores.grad is not None
    assert -taken.item() < LEAST
    assert 0 < scores.grad[0, 0].item() <= 2.0
    exact = torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (taken, _) = token_scores(exact, torch.tensor([0]))
    alm_limit(torch.tensor([2.0], dtype=torch.float64), -taken).sum().backward()
    assert exact.grad is not None
    b = -taken.item()
    np.testing.assert_allclose(exact.grad[0, 0].item(), (2.0 / b - 1) * (1 - np.exp(-b)), rtol=1e-12)


def test_log1mexp() -> None:
    x = torch.tensor([-1e-12, -1e-3, -0.5, -0.7, -3.0, -40.0], dtype=torch.float64)
    exact = np.where(x.numpy() > -1, np.log(-np.expm1(x.numpy())), np.log1p(-np.exp(x.numpy())))
    np.testing.assert_allclose(log1mexp(x), exact, rtol=1e-12)
    assert torch.autograd.gradcheck(log1mexp, x[1:5].clone().requires_grad_())
    edges = torch.tensor([-1e-30, -200.0], dtype=torch.float32, requires_grad=True)
    log1mexp(edges).sum().backward()
    assert edges.grad is not None
    assert bool(torch.isfinite(edges.grad).all())


def test_scores_of_tokens() -> None:
    scores, boundary = logits(0), torch.zeros(17, dtype=torch.bool)
    boundary[[1, 4, 5]] = True
    ids = torch.tensor([4, 0, 1, 16, 3])
    q = formulas.softmax(scores.numpy())
    taken, mass = token_scores(scores, ids, boundary)
    np.testing.assert_allclose(taken, np.log(q[np.arange(5), ids.numpy()]), rtol=1e-12)
    np.testing.assert_allclose(mass, np.log(q[:, [1, 4, 5]].sum(-1)), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: token_scores(x, ids, boundary), scores.clone().requires_grad_())


def test_surprisals_of_chunks_add_up() -> None:
    scores = logits(1).log_softmax(-1)[:, 0]
    chunks = chunk_surprisals(scores, torch.tensor([0, 0, 1, 2, -1]), 3)
    np.testing.assert_allclose(chunks, [-(scores[0] + scores[1]), -scores[2], -scores[3]], rtol=1e-12)
    # All chunks together are the sequence, on each side.
    assert chunk_surprisals(scores, torch.arange(5), 5).sum().item() == pytest.approx(-scores.sum().item(), rel=1e-12)


def test_a_hand_made_teacher_of_three_tokens() -> None:
    # Text "abc"; the teacher has "a", "bc" with 1/2 and 1/8, the student "ab", "c" with 1/4 and 1/2: one chunk.
    teacher, student = torch.tensor([0.5, 0.125]).double().log(), torch.tensor([0.25, 0.5]).double().log()
    a = chunk_surprisals(teacher, torch.tensor([0, 0]), 1)
    b = chunk_surprisals(student, torch.tensor([0, 0]), 1)
    np.testing.assert_allclose(a, np.log(16), rtol=1e-12)
    np.testing.assert_allclose(b, np.log(8), rtol=1e-12)
    np.testing.assert_allclose(alm_limit(a, b), np.log(8) - np.log(16) + np.log(16) * np.log(np.log(16) / np.log(8)), rtol=1e-12)
    np.testing.assert_allclose(chunk_credit(a, b), [np.log(8) - np.log(16)], rtol=1e-12)
    # Debiased: the mass of tokens that begin a word is 1/2 behind the teacher's chunk and 1 behind the student's.
    np.testing.assert_allclose(debiased(a, torch.tensor([0.5]).double().log()), np.log(32), rtol=1e-12)
    np.testing.assert_allclose(debiased(b, torch.zeros(1).double()), np.log(8), rtol=1e-12)


@pytest.mark.parametrize("width", [17, 11, 23])
def test_universal_logits(width: int) -> None:
    teacher, student = logits(2), logits(3, width=width)
    p, q = formulas.softmax(teacher.numpy()), formulas.softmax(student.numpy())
    np.testing.assert_allclose(uld(teacher.softmax(-1), student.softmax(-1)), formulas.uld(p, q), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: uld(teacher.softmax(-1), x.softmax(-1)), student.clone().requires_grad_())


def test_universal_logits_of_what_was_kept() -> None:
    teacher, student = logits(4), logits(5, width=23)
    whole = uld(teacher.softmax(-1), student.softmax(-1))
    log_p = teacher.log_softmax(-1)
    distances = [uld_kept(log_p.topk(kept, -1).values, student) for kept in (1, 4, 12, 17)]
    for less, more in zip(distances, [*distances[1:], whole], strict=True):
        assert bool((less <= more + 1e-12).all())
    p, q = formulas.softmax(teacher.numpy()), formulas.softmax(student.numpy())
    ranked_p, ranked_q = -np.sort(-p, -1), -np.sort(-q, -1)
    expected = np.abs(ranked_p[:, :4] - ranked_q[:, :4]).sum(-1) + np.abs(ranked_p[:, 4:].sum(-1) - ranked_q[:, 4:].sum(-1))
    np.testing.assert_allclose(distances[1], expected, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: uld_kept(log_p.topk(4, -1).values, x), student.clone().requires_grad_())


@pytest.mark.parametrize("cut", [(0, 1, 2), (0, 0, 1)])
def test_credit_is_the_reverse_kl(cut: tuple[int, ...]) -> None:
    """The expected gradient of the policy loss, over all texts that the student could write, is that of the reverse KL of whole texts."""
    letters, length = 3, 3
    p_log = logits(6, length, letters).log_softmax(-1)
    student = logits(7, length, letters).requires_grad_()
    q_log = student.log_softmax(-1)
    chunk_N = torch.tensor(cut)
    expected = torch.zeros_like(student)
    for text in product(range(letters), repeat=length):
        ids = torch.tensor(text)
        taken_N, teacher_N = q_log[torch.arange(length), ids], p_log[torch.arange(length), ids]
        credit_C = chunk_credit(*(chunk_surprisals(x_N, chunk_N, max(cut) + 1) for x_N in (teacher_N, taken_N)))
        loss = policy_loss(taken_N, taken_N, credit_C[chunk_N]).sum()
        probability = taken_N.sum().exp().detach()
        expected += probability * torch.autograd.grad(loss, student, retain_graph=True)[0]
    exact = torch.autograd.grad(reverse_kl(p_log, q_log).sum(), student)[0]
    torch.testing.assert_close(expected, exact, rtol=1e-10, atol=1e-12)


def test_credit_is_limited_and_has_no_gradient() -> None:
    b = torch.tensor([1.0, 9.0], requires_grad=True)
    credit = chunk_credit(torch.tensor([3.0, 2.0]), b, limit=5.0)
    assert credit.tolist() == [-2.0, 5.0]
    assert not credit.requires_grad


def test_ratio_to_the_sampler() -> None:
    now, then, credit = (torch.tensor(x, dtype=torch.float64) for x in ([-1.0, -2.0], [-1.5, -2.0], [2.0, -3.0]))
    found = policy_loss(now.requires_grad_(), then, credit)
    np.testing.assert_allclose(found.detach(), [-2 * np.exp(0.5), 3.0], rtol=1e-12)


def test_one_token_a_chunk_is_the_form_per_token() -> None:
    teacher, student = logits(8), logits(9)
    ids = torch.tensor([3, 1, 4, 1, 5])
    a, b = (-token_scores(x, ids)[0] for x in (teacher, student))
    whole = alm_limit(*(chunk_surprisals(-x, torch.arange(5), 5) for x in (a, b)))
    torch.testing.assert_close(whole, b - a + a * torch.log(a / b))
