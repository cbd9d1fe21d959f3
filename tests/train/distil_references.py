"""The papers' formulas of distillation, in float64 and with plain loops: what the losses are compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def softmax(logits_RV: Floats) -> Floats:
    """Probabilities of each row."""
    wide = np.exp(logits_RV - logits_RV.max(-1, keepdims=True))
    shares: Floats = wide / wide.sum(-1, keepdims=True)
    return shares


def kl(p_RV: Floats, q_RV: Floats) -> Floats:
    """Sum of p (log p - log q), outcomes of p = 0 left out."""
    return np.array([sum(p * (np.log(p) - np.log(q)) for p, q in zip(*row, strict=True) if p > 0) for row in zip(p_RV, q_RV, strict=True)])


def jsd(p_RV: Floats, q_RV: Floats, beta: float) -> Floats:
    """The generalised Jensen-Shannon divergence of arXiv:2306.13649, equation 1."""
    m_RV = beta * p_RV + (1 - beta) * q_RV
    return beta * kl(p_RV, m_RV) + (1 - beta) * kl(q_RV, m_RV)


def with_tail(p_RV: Floats, ids_RK: NDArray[np.int64]) -> Floats:
    """The kept outcomes and the sum of all others."""
    kept_RK = np.take_along_axis(p_RV, ids_RK, -1)
    return np.concatenate([kept_RK, 1 - kept_RK.sum(-1, keepdims=True)], -1)


def alm(p_C: Floats, q_C: Floats, temperature: float) -> Floats:
    """f(P, Q) + f(1 - P, 1 - Q) of the probabilities' roots, arXiv:2503.20083 equation 5, with f the terms of a KL."""
    p_C, q_C = p_C ** (1 / temperature), q_C ** (1 / temperature)
    return p_C * np.log(p_C / q_C) + (1 - p_C) * np.log((1 - p_C) / (1 - q_C))


def uld(p_RV: Floats, q_RW: Floats) -> Floats:
    """Distance of the sorted probabilities, arXiv:2402.12030 section 3."""
    found = []
    for p, q in zip(p_RV, q_RW, strict=True):
        left, right = sorted(p, reverse=True), sorted(q, reverse=True)
        width = max(len(left), len(right))
        left, right = left + [0.0] * (width - len(left)), right + [0.0] * (width - len(right))
        found.append(sum(abs(x - y) for x, y in zip(left, right, strict=True)))
    return np.array(found)
