"""Linear attention, the gated delta rule and short convolutions of one sequence in numpy: some rows at a time, and a state between them.

Shapes   R new rows, C rows of a chunk, H heads, E size of a query or key, F size of a value, N columns of a convolution, J its taps.
Source   the chunk of a delta rule as one triangular system, arXiv:2406.06484 section 3.2; with decay, arXiv:2412.06464 section 3.3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CHUNK = 64
"""Rows that are taken together: more make the triangular system larger, fewer the number of calls."""
LENGTH_EPS = 1e-6
"""Added to the square of a length; the lab's kernels, flash-linear-attention `modules/l2norm.py`."""


def scan(q_RHE: Array, k_RHE: Array, v_RHF: Array, logs_RH: Array, shares_RH: Array | None, state_HEF: Array) -> tuple[Array, Array]:
    """What rows read of a state that each of them fades and adds to, [R, H, F], and the state behind them.

    Args:
        q_RHE: queries.
        k_RHE: keys.
        v_RHF: values.
        logs_RH: logarithms of what the state is multiplied by before a row, at most 0.
        shares_RH: how much of the difference between v and what k finds in the state is written; None writes v itself.
        state_HEF: before the first row; not changed.
    """
    out_RHF = np.empty(v_RHF.shape, state_HEF.dtype)
    for first in range(0, len(q_RHE), CHUNK):
        here = slice(first, first + CHUNK)
        shares = None if shares_RH is None else shares_RH[here]
        out_RHF[here], state_HEF = _chunk(q_RHE[here], k_RHE[here], v_RHF[here], logs_RH[here], shares, state_HEF)
    return out_RHF, state_HEF


def _chunk(q_CHE: Array, k_CHE: Array, v_CHF: Array, logs_CH: Array, shares_CH: Array | None, state_HEF: Array) -> tuple[Array, Array]:
    """Rows of one chunk: what they read of the state and of each other, and the state behind them."""
    q_HCE, k_HCE, v_HCF = (x.transpose(1, 0, 2) for x in (q_CHE, k_CHE, v_CHF))
    since_HC = np.cumsum(logs_CH, axis=0).T
    faded_HC1 = np.exp(since_HC)[..., None]
    between_HCC = np.exp(np.minimum(since_HC[:, :, None] - since_HC[:, None, :], 0))
    keys_HEC = k_HCE.transpose(0, 2, 1)
    if shares_CH is not None:
        # Row i finds in the state what the rows j before it wrote: (1 + A) u = shares (v - found), A strictly below the diagonal.
        shares_HC1 = shares_CH.T[..., None]
        found_HCF = faded_HC1 * (k_HCE @ state_HEF)
        system_HCC = np.tril(shares_HC1 * (k_HCE @ keys_HEC) * between_HCC, -1) + np.eye(len(q_CHE), dtype=state_HEF.dtype)
        v_HCF = np.linalg.solve(system_HCC, shares_HC1 * (v_HCF - found_HCF))
    scores_HCC = np.tril((q_HCE @ keys_HEC) * between_HCC)
    out_HCF = scores_HCC @ v_HCF + faded_HC1 * (q_HCE @ state_HEF)
    left_H1C = np.exp(since_HC[:, None, -1:] - since_HC[:, None, :])
    state_HEF = faded_HC1[:, -1:] * state_HEF + (keys_HEC * left_H1C) @ v_HCF
    return out_HCF.transpose(1, 0, 2), state_HEF


def unit(x_RKE: Array) -> Array:
    """Rows divided by their lengths."""
    eps = x_RKE.dtype.type(LENGTH_EPS)
    y: Array = x_RKE / np.sqrt(np.square(x_RKE).sum(-1, keepdims=True) + eps)
    return y


def convolve(x_RN: Array, weight_NJ: Array, before_JN: Array) -> tuple[Array, Array]:
    """Sums over a row and those before it, [R, N], and the last rows, which the next step begins with.

    Args:
        x_RN: new rows.
        weight_NJ: the newest row's taps are the last.
        before_JN: the J - 1 rows before the first.
    """
    rows = np.concatenate([before_JN, x_RN])
    y_RN: Array = np.zeros_like(x_RN)
    for tap, weight_N in enumerate(weight_NJ.T):
        y_RN += rows[tap : tap + len(x_RN)] * weight_N
    return y_RN, rows[len(x_RN) :]
