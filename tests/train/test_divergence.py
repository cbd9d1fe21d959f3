"""Divergences equal their formulas in float64, and their gradients are finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from khola.errors import UnknownOption
from khola.train.divergence import divergence_named, forward_kl, generalised_jsd, kept_outcomes, reverse_kl
from tests.train import distil_references as formulas

ROWS, VOCABULARY, KEPT = 5, 17, 4
NAMES = ("forward", "reverse", "jsd")


def logits(seed: int, rows: int = ROWS, width: int = VOCABULARY) -> Tensor:
    """Logits that are neither flat nor certain."""
    return 2 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_formulas(beta: float) -> None:
    teacher, student = logits(0), logits(1)
    p, q = formulas.softmax(teacher.numpy()), formulas.softmax(student.numpy())
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    np.testing.assert_allclose(forward_kl(log_p, log_q), formulas.kl(p, q), rtol=1e-12)
    np.testing.assert_allclose(reverse_kl(log_p, log_q), formulas.kl(q, p), rtol=1e-12)
    expected = {0.0: formulas.kl(p, q), 1.0: formulas.kl(q, p)}.get(beta, formulas.jsd(p, q, beta))
    np.testing.assert_allclose(generalised_jsd(log_p, log_q, beta), expected, rtol=1e-12)


def test_beta_outside() -> None:
    with pytest.raises(UnknownOption, match=r"beta is 1\.5"):
        generalised_jsd(logits(0), logits(1), 1.5)


def test_unknown_divergence() -> None:
    with pytest.raises(UnknownOption, match="there is no divergence 'total'"):
        divergence_named("total")


@pytest.mark.parametrize("name", NAMES)
def test_kept_outcomes(name: str) -> None:
    teacher, student = logits(2), logits(3)
    log_p = teacher.log_softmax(-1)
    kept_RK, ids_RK = log_p.topk(KEPT, -1)
    p, q = formulas.softmax(teacher.numpy()), formulas.softmax(student.numpy())
    both = {"forward": formulas.kl, "reverse": lambda p, q: formulas.kl(q, p), "jsd": lambda p, q: formulas.jsd(p, q, 0.3)}[name]
    compared = divergence_named(name, 0.3)
    tail = compared(*kept_outcomes(student, ids_RK, kept_RK, "tail"))
    np.testing.assert_allclose(tail, both(formulas.with_tail(p, ids_RK.numpy()), formulas.with_tail(q, ids_RK.numpy())), rtol=1e-10)
    renormalised = compared(*kept_outcomes(student, ids_RK, kept_RK, "renormalise"))
    alone = [formulas.softmax(np.take_along_axis(x.numpy(), ids_RK.numpy(), -1)) for x in (teacher, student)]
    np.testing.assert_allclose(renormalised, both(*alone), rtol=1e-10)
    dropped = compared(*kept_outcomes(student, ids_RK, kept_RK, "drop"))
    np.testing.assert_allclose(dropped, both(*(np.take_along_axis(x, ids_RK.numpy(), -1) for x in (p, q))), rtol=1e-10)
    # Nothing is left out when all tokens are kept.
    all_RV, ids_RV = log_p.sort(-1, descending=True)
    whole = compared(*kept_outcomes(student, ids_RV, all_RV, "renormalise"))
    np.testing.assert_allclose(whole, both(p, q), rtol=1e-10)
    # Fewer outcomes never tell two distributions apart better than all of them do.
    assert bool((tail <= whole + 1e-12).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rest", ["tail", "renormalise", "drop"])
def test_tokens_that_the_student_lacks(name: str, rest: str) -> None:
    teacher, student = logits(4), logits(5).requires_grad_()
    kept_RK, ids_RK = teacher.log_softmax(-1).topk(KEPT, -1)
    lacking = ids_RK.clone()
    lacking[0, 1], lacking[1, 0], lacking[1, 3] = -1, -1, 0
    lacking[2] = -1
    loss_R = divergence_named(name, 0.5)(*kept_outcomes(student, lacking, kept_RK, rest))
    loss_R.sum().backward()
    assert student.grad is not None
    assert bool(torch.isfinite(loss_R).all())
    assert bool(torch.isfinite(student.grad).all())
    if rest == "tail":
        # The mass of a token that is not there lies in the tail of both.
        keep = [0, 2, 3]
        same = divergence_named(name, 0.5)(*kept_outcomes(student[:1], ids_RK[:1, keep], kept_RK[:1, keep], "tail"))
        np.testing.assert_allclose(loss_R[0].item(), same.item(), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rest", ["tail", "renormalise", "drop"])
def test_gradients(name: str, rest: str) -> None:
    kept_RK, ids_RK = logits(6).log_softmax(-1).topk(KEPT, -1)
    compared = divergence_named(name, 0.3)
    whole_RV = logits(6).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda x: compared(*kept_outcomes(x, ids_RK, kept_RK, rest)), logits(7).requires_grad_())
    assert torch.autograd.gradcheck(lambda x: compared(whole_RV, x.log_softmax(-1)), logits(7).requires_grad_())
