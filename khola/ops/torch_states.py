"""Linear attention, the gated delta rule and short convolutions in torch: chunks of rows, with gradients.

Shapes   B sequences of equal length, R rows of each, C rows of a chunk, H heads, E size of a query or key, F size of a value, N columns of
         a convolution, J its taps.
Source   see `khola.ops.numpy_states`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from khola.ops.numpy_states import CHUNK, LENGTH_EPS


def scan(
    q_BRHE: Tensor, k_BRHE: Tensor, v_BRHF: Tensor, logs_BRH: Tensor, shares_BRH: Tensor | None, state_BHEF: Tensor
) -> tuple[Tensor, Tensor]:
    """What rows read of states that each of them fades and adds to, [B, R, H, F], and the states behind them.

    Args:
        q_BRHE: queries.
        k_BRHE: keys.
        v_BRHF: values.
        logs_BRH: logarithms of what a state is multiplied by before a row, at most 0.
        shares_BRH: how much of the difference between v and what k finds in the state is written; None writes v itself.
        state_BHEF: before the first row.
    """
    found = []
    for first in range(0, q_BRHE.shape[1], CHUNK):
        here = slice(first, first + CHUNK)
        shares = None if shares_BRH is None else shares_BRH[:, here]
        out, state_BHEF = _chunk(q_BRHE[:, here], k_BRHE[:, here], v_BRHF[:, here], logs_BRH[:, here], shares, state_BHEF)
        found.append(out)
    return torch.cat(found, dim=1), state_BHEF


def _chunk(
    q_BCHE: Tensor, k_BCHE: Tensor, v_BCHF: Tensor, logs_BCH: Tensor, shares_BCH: Tensor | None, state_BHEF: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of one chunk: what they read of the state and of each other, and the state behind them."""
    q, k, v = (x.transpose(1, 2) for x in (q_BCHE, k_BCHE, v_BCHF))
    since_BHC = logs_BCH.cumsum(1).transpose(1, 2)
    faded = since_BHC.exp()[..., None]
    # The minimum keeps what lies above the diagonal, and is cut off later, from overflowing: its gradient would not be a number.
    between = (since_BHC[..., :, None] - since_BHC[..., None, :]).clamp(max=0).exp()
    keys = k.transpose(2, 3)
    if shares_BCH is not None:
        shares = shares_BCH.transpose(1, 2)[..., None]
        system = (shares * (k @ keys) * between).tril(-1)
        v = torch.linalg.solve_triangular(system, shares * (v - faded * (k @ state_BHEF)), upper=False, unitriangular=True)
    out = ((q @ keys) * between).tril() @ v + faded * (q @ state_BHEF)
    left = (since_BHC[..., None, -1:] - since_BHC[..., None, :]).exp()
    state_BHEF = faded[..., -1:, :] * state_BHEF + (keys * left) @ v
    return out.transpose(1, 2), state_BHEF


def unit(x: Tensor) -> Tensor:
    """Rows divided by their lengths."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LENGTH_EPS)


def convolve(x_BRN: Tensor, weight_NJ: Tensor, before_BJN: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over a row and those before it, [B, R, N], and the last J - 1 rows, which the next step begins with."""
    rows = torch.cat([before_BJN, x_BRN], dim=1)
    y_BNR = functional.conv1d(rows.transpose(1, 2), weight_NJ[:, None], groups=len(weight_NJ))
    return y_BNR.transpose(1, 2), rows[:, x_BRN.shape[1] :]
