"""Native products, attention and small operations as torch functions with gradients: bfloat16 in, float32 sums, on the CPU.

Weights may be bfloat16 or float32; a float32 weight is rounded on its way into a product and its gradient is not, so that the numbers that
are trained are the ones that are stored, and no second copy of them exists. Sums go in one order whatever the number of threads.

Shapes   T packed rows, N outputs and K inputs of a matrix, H query heads, G key heads, E head size, R rows with a target, D hidden, V
         vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from khola.errors import NoKernel, OurFault
from khola.native.train import ADD_TO, LANES, LOG_SUM, SOFTMAX_MINUS, STORE, TYPES, KhAttention, KhProduct, KhRows, KhSide, Team

_KINDS: Final = {torch.bfloat16: TYPES["bfloat16"], torch.float32: TYPES["float32"]}
VOCABULARY_PART = 2048
"""Columns of logits that exist at a time."""


def _side(matrix: Tensor) -> KhSide:
    """Rows of a matrix meet those of the other; of a transposed view, columns do."""
    if matrix.dtype not in _KINDS or 1 not in matrix.stride():
        raise OurFault(
            "a product of {dtype} numbers {strides} apart", dtype=str(matrix.dtype).removeprefix("torch."), strides=list(matrix.stride())
        )
    row, deep = matrix.stride()
    # Where there is one row or column, its stride says nothing.
    if deep != 1 and matrix.shape[1] == 1:
        row, deep = (row, 1) if row != 1 else (1, deep)
    return KhSide(matrix.data_ptr(), row, deep, _KINDS[matrix.dtype])


def _plain(matrix: Tensor) -> Tensor:
    """The matrix itself where one of its axes is dense, else a copy."""
    return matrix if matrix.stride(-1) == 1 and matrix.stride(0) >= matrix.shape[-1] else matrix.contiguous()


def _dense(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, or copies whose numbers lie one after another.

    Raises:
        OurFault: one is not in bfloat16 on the CPU.
    """
    for one in tensors:
        if one.dtype is not torch.bfloat16 or one.device.type != "cpu":
            raise OurFault(
                "native kernels take bfloat16 on the CPU, not {dtype} on {device}",
                dtype=str(one.dtype).removeprefix("torch."),
                device=str(one.device),
            )
    return tuple(one.contiguous() for one in tensors)


def _require(fits: bool, what: str, *tensors: Tensor) -> None:
    """Refuse shapes that do not belong together, before pointers to them leave Python."""
    if not fits:
        raise OurFault("{what} of shapes {shapes}", what=what, shapes=[list(one.shape) for one in tensors])


def multiply(team: Team, left_MK: Tensor, right_NK: Tensor, out_MN: Tensor, finish: int = STORE, **more: Any) -> None:
    """out ← left times the transposed right, or what `finish` says; see `kh_product`.

    Raises:
        OurFault: shapes, dtypes or strides do not fit.
    """
    (m, k), (n, deep) = left_MK.shape, right_NK.shape
    fits = finish == LOG_SUM or (out_MN.shape == (m, n) and out_MN.stride(1) == 1)
    _require(k == deep and k > 0 and fits, "a product", left_MK, right_NK, out_MN)
    team(
        "product",
        KhProduct(m, n, k, finish, _side(left_MK), _side(right_NK), out_MN.data_ptr(), out_MN.stride(0), _KINDS[out_MN.dtype], **more),
    )


class _Linear(torch.autograd.Function):
    """x times the transposed weight, plus a bias."""

    @staticmethod
    def forward(ctx: Any, team: Team, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        x_TK = _plain(x_TK)
        out_TN = x_TK.new_empty(len(x_TK), len(weight_NK))
        wide_N = None if bias_N is None else bias_N.detach().float().contiguous()
        if len(x_TK):
            multiply(team, x_TK, weight_NK, out_TN, bias=None if wide_N is None else wide_N.data_ptr())
        ctx.team, ctx.bias_type = team, None if bias_N is None else bias_N.dtype
        ctx.save_for_backward(x_TK, weight_NK)
        return out_TN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x_TK, weight_NK = ctx.saved_tensors
        slope_TN = _plain(slopes[0])
        _, needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        x = weight = bias = None
        some = len(x_TK) > 0
        if needs_x:
            x = torch.empty_like(x_TK, memory_format=torch.contiguous_format)
            if some:
                multiply(ctx.team, slope_TN, weight_NK.T, x)
        if needs_weight:
            weight = torch.empty_like(weight_NK) if some else torch.zeros_like(weight_NK)
            if some:
                multiply(ctx.team, slope_TN.T, x_TK.T, weight)
        if needs_bias:
            sums_N1 = slope_TN.new_zeros(slope_TN.shape[1], 1, dtype=torch.float32)
            if some:
                multiply(ctx.team, slope_TN.T, slope_TN.new_ones(1, len(slope_TN)), sums_N1)
            bias = sums_N1[:, 0].to(ctx.bias_type)
        return None, x, weight, bias


class _Norm(torch.autograd.Function):
    """Rows by the root of their mean square, times a weight."""

    @staticmethod
    def forward(ctx: Any, team: Team, x: Tensor, weight_D: Tensor, eps: float, offset: float) -> Tensor:
        (x,) = _dense(x)
        _require(weight_D.shape == x.shape[-1:], "a norm", x, weight_D)
        wide_D, out = weight_D.detach().float().contiguous(), torch.empty_like(x)
        factors = torch.empty(x.shape[:-1], dtype=torch.float32)
        sizes = (factors.numel(), x.shape[-1])
        call = {"weight": wide_D.data_ptr(), "factors": factors.data_ptr(), "epsilon": eps, "offset": offset}
        team("norm", KhRows(*sizes, x.data_ptr(), out=out.data_ptr(), **call))
        ctx.team, ctx.eps, ctx.offset = team, eps, offset
        ctx.save_for_backward(x, weight_D, factors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, factors = ctx.saved_tensors
        slope, wide_D, out = *_dense(slopes[0]), weight_D.detach().float().contiguous(), torch.empty_like(x)
        sums_D = torch.empty(x.shape[-1], dtype=torch.float32)
        call = {"weight": wide_D.data_ptr(), "factors": factors.data_ptr(), "epsilon": ctx.eps, "offset": ctx.offset}
        taken = KhRows(factors.numel(), x.shape[-1], x.data_ptr(), slope.data_ptr(), out=out.data_ptr(), **call)
        taken.weight_gradient = sums_D.data_ptr()
        ctx.team("norm_back", taken)
        return None, out, sums_D.to(weight_D.dtype), None, None


class _Gate(torch.autograd.Function):
    """gate x sigmoid(gate) x up."""

    @staticmethod
    def forward(ctx: Any, team: Team, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = _dense(gate, up)
        _require(gate.shape == up.shape, "a gate", gate, up)
        out = torch.empty_like(gate)
        team("gate", KhRows(*_rows_of(gate), gate.data_ptr(), up.data_ptr(), out=out.data_ptr()))
        ctx.team = team
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        slope, of_gate, of_up = *_dense(slopes[0]), torch.empty_like(gate), torch.empty_like(up)
        pointers = (x.data_ptr() for x in (gate, up, slope, of_gate, of_up))
        ctx.team("gate_back", KhRows(*_rows_of(gate), *pointers))
        return None, of_gate, of_up


class _Rotate(torch.autograd.Function):
    """The first numbers of each head turned, pairs half-split."""

    @staticmethod
    def forward(ctx: Any, team: Team, x_THE: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.team, ctx.turns = team, (cosines.contiguous(), sines.contiguous())
        return _turned(team, x_THE, ctx.turns, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        return None, _turned(ctx.team, slopes[0], ctx.turns, -1.0), None, None


class _Attend(torch.autograd.Function):
    """Causal grouped attention inside each sequence."""

    @staticmethod
    def forward(
        ctx: Any, team: Team, q_THE: Tensor, k_TGE: Tensor, v_TGF: Tensor, starts_S1: NDArray[np.int32], scale: float, window: int
    ) -> Tensor:
        q_THE, k_TGE, v_TGF = _dense(q_THE, k_TGE, v_TGF)
        fits = q_THE.shape[2] == k_TGE.shape[2] and k_TGE.shape[:2] == v_TGF.shape[:2] and q_THE.shape[1] % k_TGE.shape[1] == 0
        _require(fits and len(q_THE) == len(k_TGE) == int(starts_S1[-1]), "an attention", q_THE, k_TGE, v_TGF)
        starts_S1 = np.ascontiguousarray(starts_S1, np.int32)
        out_THF = q_THE.new_empty(*q_THE.shape[:2], v_TGF.shape[2])
        sums_HT = torch.empty(q_THE.shape[1], len(q_THE), dtype=torch.float32)
        ctx.team, ctx.others = team, (starts_S1, scale, window)
        team("attend", _attention(q_THE, k_TGE, v_TGF, out_THF, sums_HT, *ctx.others))
        ctx.save_for_backward(q_THE, k_TGE, v_TGF, out_THF, sums_HT)
        return out_THF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        # Under activation checkpointing what was saved can be had once.
        saved = ctx.saved_tensors
        taken = _attention(*saved, *ctx.others)
        (slope,) = _dense(slopes[0])
        q, k, v = (torch.empty_like(x) for x in saved[:3])
        taken.out_gradient, taken.q_gradient, taken.k_gradient, taken.v_gradient = (x.data_ptr() for x in (slope, q, k, v))
        ctx.team("attend_back", taken)
        return None, q, k, v, None, None, None


class _TokenLosses(torch.autograd.Function):
    """Minus the log-probability of each row's target; logits exist a part of the vocabulary at a time, and again for the gradient."""

    @staticmethod
    def forward(ctx: Any, team: Team, x_RD: Tensor, table_VD: Tensor, targets_R: Tensor) -> Tensor:
        x_RD, rows = _plain(x_RD), len(x_RD)
        # Less than any logit, and not so little that a difference would be infinite.
        most, sums, at_target = torch.full((rows, LANES), -1e38), torch.zeros(rows, LANES), torch.zeros(rows)
        more = {"most": most.data_ptr(), "sum": sums.data_ptr(), "at_target": at_target.data_ptr(), "targets": targets_R.data_ptr()}
        if rows:
            multiply(team, x_RD, table_VD, at_target, LOG_SUM, **more)
        top_R1 = most.max(dim=1, keepdim=True).values
        log_sums_R = (sums * torch.exp(most - top_R1)).sum(dim=1).log() + top_R1[:, 0]
        ctx.team = team
        ctx.save_for_backward(x_RD, table_VD, targets_R, log_sums_R)
        return torch.where(targets_R >= 0, log_sums_R - at_target, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, table_VD, targets_R, log_sums_R = ctx.saved_tensors
        (rows, width), vocabulary = x_RD.shape, len(table_VD)
        needs_x, needs_table = ctx.needs_input_grad[1:3]
        factors_R = torch.where(targets_R >= 0, slopes[0].float(), 0.0).contiguous()
        more = {"targets": targets_R.data_ptr(), "log_sum": log_sums_R.data_ptr(), "factor": factors_R.data_ptr()}
        wide_RD = torch.zeros(rows, width)
        table = None if not needs_table else torch.empty_like(table_VD) if rows else torch.zeros_like(table_VD)
        part = min(VOCABULARY_PART, vocabulary)
        scratch = torch.empty(rows * part, dtype=torch.bfloat16)
        for first in range(0, vocabulary if rows else 0, part):
            mine_PD = table_VD[first : first + part]
            logits_RP = scratch[: rows * len(mine_PD)].view(rows, -1)
            multiply(ctx.team, x_RD, mine_PD, logits_RP, SOFTMAX_MINUS, first_column=first, **more)
            if needs_x:
                multiply(ctx.team, logits_RP, mine_PD.T, wide_RD, ADD_TO)
            if table is not None:
                multiply(ctx.team, logits_RP.T, x_RD.T, table[first : first + part])
        return None, wide_RD.to(x_RD.dtype) if needs_x else None, table, None


class NativeKernels:
    """The native forms of some operations of `TorchOps`, for tensors in bfloat16 on the CPU.

    Args:
        threads: that compute; results do not depend on it.
    Raises:
        NoKernel: there is no native library.
    """

    def __init__(self, threads: int) -> None:
        self.team = Team(threads)

    def linear(self, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        """x times the transposed weight, plus the bias, [T, N] in the dtype of x."""
        return _applied(_Linear, self.team, x_TK, weight_NK, bias_N)

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float, plus_one: bool) -> Tensor:
        """x / sqrt(mean(x²) + eps) times the weight, or times 1 + weight, over the last axis."""
        return _applied(_Norm, self.team, x, weight_D, eps, float(plus_one))

    def rotate(self, x_THE: Tensor, cosines_T1F: Tensor, sines_T1F: Tensor) -> Tensor:
        """The first 2 F numbers of each head turned; cosines and sines in float32."""
        return _applied(_Rotate, self.team, x_THE, cosines_T1F, sines_T1F)

    def attend(self, q_THE: Tensor, k_TGE: Tensor, v_TGF: Tensor, starts_S1: NDArray[np.int32], scale: float, window: int | None) -> Tensor:
        """Causal attention inside each sequence, [T, H, F]; no scores are kept for the gradient.

        Source: FlashAttention-2, arXiv:2307.08691 section 3.
        """
        return _applied(_Attend, self.team, q_THE, k_TGE, v_TGF, starts_S1, scale, window or 0)

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """gate x sigmoid(gate) x up."""
        return _applied(_Gate, self.team, gate, up)

    def token_losses(self, x_RD: Tensor, table_VD: Tensor, targets_R: Tensor) -> Tensor:
        """Cross-entropy of each row, [R] in float32 nats, and 0 where the target is negative; the logits never exist as a whole.

        Args:
            x_RD: normed hidden states, in bfloat16.
            table_VD: the head, bfloat16 or float32.
            targets_R: token ids, int64.
        Raises:
            OurFault: a target that the table does not have.
        """
        if len(targets_R) and int(targets_R.max()) >= len(table_VD):
            raise OurFault("target {target} of a vocabulary of {size}", target=int(targets_R.max()), size=len(table_VD))
        return _applied(_TokenLosses, self.team, x_RD, table_VD, targets_R.contiguous())


def native_kernels(threads: int, device: str, tell: Callable[..., None]) -> NativeKernels | None:
    """The kernels where they can be had; else None, and one line says why plain torch computes.

    Args:
        threads: that compute.
        device: of the tensors; only "cpu" has native kernels.
        tell: hears that line.
    """
    try:
        if torch.device(device).type != "cpu":
            raise NoKernel("native kernels are for the CPU, not for {device}", device=device)
        return NativeKernels(threads)
    except NoKernel as wrong:
        tell("plain torch computes this training: {reason}", reason=str(wrong))
        return None


def _applied(function: Any, *inputs: Any) -> Tensor:
    """The result of an autograd function."""
    found: Tensor = function.apply(*inputs)
    return found


def _rows_of(x: Tensor) -> tuple[int, int]:
    """Rows and columns of numbers that lie one after another."""
    columns = x.shape[-1] if x.dim() else 1
    return x.numel() // max(1, columns), columns


def _turned(team: Team, x_THE: Tensor, turns: tuple[Tensor, Tensor], direction: float) -> Tensor:
    """A copy of x, turned by cosines and sines."""
    cosines, sines = turns
    (x_THE,) = _dense(x_THE)
    _require(len(cosines) == len(x_THE) and 2 * cosines.shape[-1] <= x_THE.shape[-1], "a rotation", x_THE, cosines)
    out, half = torch.empty_like(x_THE), cosines.shape[-1]
    call = {"cosines": cosines.data_ptr(), "sines": sines.data_ptr(), "heads": x_THE.shape[1], "half": half, "direction": direction}
    team("rotate", KhRows(*_rows_of(x_THE), x_THE.data_ptr(), out=out.data_ptr(), **call))
    return out


def _attention(
    q_THE: Tensor, k_TGE: Tensor, v_TGF: Tensor, out_THF: Tensor, sums_HT: Tensor, starts_S1: NDArray[np.int32], scale: float, window: int
) -> KhAttention:
    """What the library takes."""
    pointers = (x.data_ptr() for x in (q_THE, k_TGE, v_TGF, out_THF, sums_HT))
    sizes = (len(starts_S1) - 1, q_THE.shape[1], *k_TGE.shape[1:], v_TGF.shape[2], window)
    return KhAttention(*sizes, scale, starts_S1.ctypes.data, *pointers)
