"""The vocabulary in torch: training, gradients and GPUs.

Shapes   T packed rows, S sequences, D hidden, N input width or tokens seen, H query heads, K key heads, E head size, R wanted rows or
         rows of a sequence, F size of a value in a state, B sequences of equal length, C columns of a convolution, J its taps.

No function changes an argument in place, so gradients flow through all of them; only the cache is written to, and never with gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from khola.errors import AskedWrong, NoMemory, OurFault
from khola.ops.latent import latent_sizes
from khola.ops.packed import LastStep, Layout, Span, check_ids, kept_of, layout_of, require_slot, turns
from khola.ops.stack import Stack
from khola.ops.torch_latent import folded_queries, made_of, values_of
from khola.ops.torch_native import NativeKernels
from khola.ops.torch_routing import Routes, choose, mix_experts
from khola.ops.torch_states import convolve, scan, unit
from khola.ops.vocabulary import PAGE_TOKENS, CacheSpec, Forward, Program, Rope, Routing, Step, Stored, Weight

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_AS_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class TorchCache:
    """Keys and values of every layer: planes of [pages, `PAGE_TOKENS`, K, E]. What was never written never reaches a result."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    states: dict[int, Tensor]
    """By layer, [slots, H, E, F], in float32 at least."""
    tails: dict[int, Tensor]
    """Last inputs of convolutions by layer, [slots, taps - 1, columns]."""


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    """A step's layout as tensors on the device."""

    layout: Layout
    slots_T: Tensor
    rows_R: Tensor
    alone: bool
    """Every sequence has one new row: decoding."""
    equal: int
    """Rows of each sequence where all have as many and none has a past; else 0."""


class TorchOps:
    """Interpreter on tensors of one dtype and device.

    Norms and rotations are computed in float32 (float64 where the values are) and rounded once. Without a cache attention is torch's
    own, one call for each sequence, or one for all where they are equally long. With a cache, decoding rows are gathered into one
    call and padded by masks, so that a result depends on its neighbours by rounding.

    Args:
        device: "cpu", "cuda", "cuda:1".
        dtype: "float32", "bfloat16", "float16" or "float64".
        kernels: native forms of some operations, for training in bfloat16 on the CPU; see `khola.ops.torch_native.native_kernels`.
    Raises:
        AskedWrong: another dtype, or a device that torch does not have here; kernels for another dtype or device than theirs.
    """

    name = "torch"
    tells_answers = False

    def __init__(self, device: str = "cpu", dtype: str = "float32", kernels: NativeKernels | None = None) -> None:
        if dtype not in DTYPES:
            raise AskedWrong("torch computes in {known}, not in {dtype}", known=", ".join(DTYPES), dtype=dtype)
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as wrong:
            raise AskedWrong("torch has no device {device} here: {reason}", device=device, reason=str(wrong).split("\n")[0]) from None
        self.dtype = DTYPES[dtype]
        if kernels is not None and (dtype != "bfloat16" or self.device.type != "cpu"):
            raise AskedWrong("native kernels train in bfloat16 on the CPU, not in {dtype} on {device}", dtype=dtype, device=device)
        self.kernels = kernels
        self._wide = torch.float64 if self.dtype is torch.float64 else torch.float32
        self._placed: LastStep[_Placed] = LastStep(self._place)
        self._turns: dict[Rope, Tensor] = {}
        self._turns_T: LastStep[dict[Rope, tuple[Tensor, Tensor]]] = LastStep(lambda step: {})

    def token_bytes(self, spec: CacheSpec) -> int:
        """Numbers of the dtype."""
        return spec.numbers_per_token() * self.dtype.itemsize

    def state_bytes(self, spec: CacheSpec) -> int:
        """Numbers of 32 bits at least; convolutions keep theirs in the dtype, which is counted as if it were as wide."""
        return spec.numbers_per_state() * self._wide.itemsize

    def take(self, stored: Stored, bias: Stored | None = None, *, exact: bool = False) -> Weight:
        """The tensor on this device in this dtype; plain numbers are read as they lie, others are dequantised."""
        name, dtype = stored.name.removesuffix(".weight"), self._wide if exact else self.dtype
        return Weight(name, self._tensor(stored, dtype), None if bias is None else self._tensor(bias, dtype))

    def weight_bytes(self, weight: Weight) -> int:
        """Memory of the tensors."""
        return sum(tensor.nbytes for tensor in (weight.data, weight.bias) if tensor is not None)

    def settle(self, passes: Sequence[Forward], release: Callable[[], None] = lambda: None) -> None:
        """Nothing to do: weights are on the device when they are taken."""

    def compile(self, forward: Forward, spec: CacheSpec, max_context: int, max_rows: int) -> Program:
        """The pass itself, called anew at every step."""
        return lambda ids_T, step: self.to_numpy(forward(ids_T, step, self))

    def new_cache(self, spec: CacheSpec, num_pages: int, num_states: int = 0) -> TorchCache:
        """Planes of uninitialised memory on the device.

        Raises:
            NoMemory: the planes do not fit.
        """
        try:
            with torch.inference_mode(False):
                keys = tuple(self._plane(num_pages, PAGE_TOKENS, layer.heads, layer.key_size) for layer in spec.pages)
                values = tuple(self._plane(num_pages, PAGE_TOKENS, layer.heads, layer.value_size) for layer in spec.pages)
                kept = spec.states.items()
                states = {layer: self._plane(num_states, s.heads, s.key_size, s.value_size).to(self._wide) for layer, s in kept}
                tails = {layer: self._plane(num_states, s.taps - 1, s.width) for layer, s in kept}
        except RuntimeError:
            wanted = self.token_bytes(spec) * num_pages * PAGE_TOKENS + self.state_bytes(spec) * num_states
            raise NoMemory(
                "a cache of {tokens} tokens needs {bytes} bytes, which this machine does not have",
                hint="ask for a shorter context",
                tokens=num_pages * PAGE_TOKENS,
                bytes=wanted,
            ) from None
        return TorchCache(keys, values, states, tails)

    def to_numpy(self, value: Tensor) -> NDArray[np.float32]:
        """The value in float32, on the CPU and without gradients."""
        array: NDArray[np.float32] = value.detach().to("cpu", torch.float32).numpy()
        return array

    def embed(self, ids_T: NDArray[np.integer] | Tensor, table: Weight) -> Tensor:
        """Rows of a table, [T, D]; ids may be a numpy array or a tensor.

        Raises:
            OurFault: the table has no such row; only ids that come from numpy are looked at, because reading a GPU's waits for it.
        """
        if isinstance(ids_T, np.ndarray):
            check_ids(ids_T, len(table.data))
        ids = torch.as_tensor(ids_T, dtype=torch.long, device=self.device)
        return functional.embedding(ids, table.data).to(self.dtype)

    def linear(self, x_TN: Tensor, weight: Weight) -> Tensor:
        """x times the transposed weight, plus its bias; a weight with an adapter, or in groups, makes its product itself."""
        if not isinstance(weight.data, Tensor):
            product: Tensor = weight.data.product(x_TN, weight.bias, self)
            return product
        if self.kernels is not None:
            return self.kernels.linear(x_TN, weight.data, weight.bias)
        return functional.linear(x_TN, weight.data, weight.bias)

    def rms_norm(self, x: Tensor, weight: Weight, eps: float, plus_one: bool = False) -> Tensor:
        """x / sqrt(mean(x²) + eps), rounded to the dtype of x, times the weight."""
        if self.kernels is not None:
            return self.kernels.rms_norm(x, weight.data, eps, plus_one)
        wide = x.to(self._wide)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        y: Tensor = (wide * (1 + weight.data.to(self._wide))).to(x.dtype) if plus_one else weight.data * wide.to(x.dtype)
        return y

    def layer_norm(self, x: Tensor, weight: Weight, eps: float) -> Tensor:
        """(x - mean) / sqrt(variance + eps) times the weight, plus its bias."""
        return functional.layer_norm(x, x.shape[-1:], weight.data, weight.bias, eps)

    def heads(self, x_TD: Tensor, size: int) -> Tensor:
        """A view of [T, H x E] as [T, H, E]."""
        return x_TD.reshape(x_TD.shape[0], -1, size)

    def flat(self, x_THE: Tensor) -> Tensor:
        """A view of [T, H, E] as [T, H x E]."""
        return x_THE.reshape(x_THE.shape[0], -1)

    def split(self, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        """Views of the last axis."""
        if sum(sizes) != x.shape[-1]:
            raise OurFault("sizes {sizes} do not add up to {width}", sizes=list(sizes), width=x.shape[-1])
        return torch.split(x, list(sizes), dim=-1)

    def rotate(self, x_THE: Tensor, step: Step, rope: Rope) -> Tensor:
        """The first `rope.width` dimensions of each head turned by position times frequency."""
        cos_T1F, sin_T1F = self._turns_of(step, rope)
        if self.kernels is not None:
            return self.kernels.rotate(x_THE, cos_T1F, sin_T1F)
        half = cos_T1F.shape[-1]
        wide = x_THE.to(self._wide)
        left, right = wide[..., :half], wide[..., half : 2 * half]
        turned = torch.cat([left * cos_T1F - right * sin_T1F, right * cos_T1F + left * sin_T1F], dim=-1).to(x_THE.dtype)
        return turned if 2 * half == x_THE.shape[-1] else torch.cat([turned, x_THE[..., 2 * half :]], dim=-1)

    def attend(
        self, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, step: Step, layer: int, scale: float, window: int | None = None
    ) -> Tensor:
        """Causal grouped-query attention; with a cache, k and v are written to it first."""
        placed = self._placed(step)
        if step.cache is not None:
            return self._attend_cached(q_THE, k_TKE, v_TKE, placed, step.cache, layer, scale, window)
        if self.kernels is not None:
            return self.kernels.attend(q_THE, k_TKE, v_TKE, step.starts_S1, scale, window)
        if placed.equal:
            q, k, v = (x.reshape(-1, placed.equal, *x.shape[1:]).transpose(1, 2) for x in (q_THE, k_TKE, v_TKE))
            return _mix(q, k, v, scale, window).transpose(1, 2).flatten(0, 1)
        mixed = []
        for span in placed.layout.spans:
            mine = slice(span.first, span.last)
            mixed.append(_mix_rows(q_THE[mine], k_TKE[mine], v_TKE[mine], scale, window))
        return torch.cat(mixed)

    def decay_scan(self, q_THE: Tensor, k_THE: Tensor, v_THF: Tensor, decay_H: tuple[float, ...], step: Step, layer: int) -> Tensor:
        """Linear attention whose memory fades, a chunk of rows at a time."""
        logs_TH = torch.as_tensor(np.log(decay_H), device=self.device).to(self._wide).expand(q_THE.shape[:2])
        return self._scan(q_THE.to(self._wide), k_THE.to(self._wide), v_THF, logs_TH, None, step, layer)

    def delta_scan(
        self, q_TKE: Tensor, k_TKE: Tensor, v_THF: Tensor, log_decay_TH: Tensor, share_TH: Tensor, step: Step, layer: int
    ) -> Tensor:
        """The gated delta rule, a chunk of rows at a time."""
        group, scale = v_THF.shape[1] // q_TKE.shape[1], q_TKE.shape[2] ** -0.5
        q_THE, k_THE = (unit(x.to(self._wide)).repeat_interleave(group, dim=1) for x in (q_TKE, k_TKE))
        return self._scan(q_THE * scale, k_THE, v_THF, log_decay_TH.to(self._wide), share_TH.to(self._wide), step, layer)

    def log_decay(self, a_TH: Tensor, rate: Weight, bias: Weight) -> Tensor:
        """-exp(rate) x log(1 + exp(a + bias)), as wide as the state."""
        a_TH, rate_H, bias_H = (x.to(self._wide) for x in (a_TH, rate.data, bias.data))
        return -rate_H.exp() * functional.softplus(a_TH + bias_H)

    def causal_conv(self, x_TC: Tensor, weight: Weight, step: Step, layer: int) -> Tensor:
        """A sum over some rows, and its gate."""
        taps_CJ = weight.data.flatten(1)
        tails = None if step.cache is None else step.cache.tails[layer]
        found = []
        for spans, rows in self._equal_parts(step):
            x_BRC = _by_sequence(x_TC, spans, rows)
            y_BRC, tail = convolve(x_BRC, taps_CJ, self._before(tails, spans, (taps_CJ.shape[1] - 1, x_TC.shape[1]), x_TC.dtype))
            self._keep(tails, spans, tail)
            found.append(y_BRC.flatten(0, 1))
        return functional.silu(torch.cat(found))

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """gate x sigmoid(gate) x up."""
        if self.kernels is not None:
            return self.kernels.silu_mul(gate, up)
        return functional.silu(gate) * up

    def gelu(self, x: Tensor) -> Tensor:
        """x times the normal distribution function of x."""
        return functional.gelu(x)

    def sigmoid(self, x: Tensor) -> Tensor:
        """1 / (1 + exp(-x))."""
        return torch.sigmoid(x)

    def route(self, x_TD: Tensor, router: Weight, routing: Routing) -> Routes:
        """The experts of each row and their shares; gradients flow through the shares."""
        logits_TX = functional.linear(x_TD.to(self._wide), router.data.to(self._wide))
        return choose(logits_TX, router.bias, routing)

    def experts(self, x_TD: Tensor, routes: Routes, gate_XFD: Weight, up_XFD: Weight, down_XDF: Weight) -> Tensor:
        """What the experts of each row make of it, by their shares."""
        return mix_experts(x_TD, routes, gate_XFD.data, up_XFD.data, down_XDF.data)

    def rows(self, x_TD: Tensor, step: Step) -> Tensor:
        """The rows whose logits are wanted."""
        return x_TD[self._placed(step).rows_R]

    def join(self, x_TN: Tensor, y_TD: Tensor) -> Tensor:
        """The columns of both side by side."""
        return torch.cat([x_TN, y_TD], dim=-1)

    def keep(self, x_TD: Tensor, step: Step) -> None:
        """Leave hidden states in the step."""
        if step.kept_TD is not None:
            step.kept_TD[:] = self.to_numpy(x_TD)

    def kept(self, width: int, step: Step) -> Tensor:
        """What was left there."""
        return torch.as_tensor(kept_of(step, width), dtype=self.dtype, device=self.device)

    def attend_latent(
        self, q_THN: Tensor, turned_THP: Tensor, latent_TL: Tensor, key_TP: Tensor, up: Weight, step: Step, layer: int, scale: float
    ) -> Tensor:
        """Causal attention over latents; with a cache, latent and key are written to it first."""
        sizes = latent_sizes(q_THN.shape, turned_THP.shape, up.data.shape)
        kept_TC, q_THK = torch.cat([latent_TL, key_TP], dim=-1), torch.cat([q_THN, turned_THP], dim=-1)
        if step.cache is None:
            return self.attend(q_THK, *made_of(kept_TC, up.data, sizes), step, layer, scale)
        _refuse_gradients(kept_TC)
        placed, kept = self._placed(step), step.cache.keys[layer].flatten(0, 2)
        kept[placed.slots_T] = kept_TC
        spans = placed.layout.spans
        if placed.alone and len(spans) > 1:
            folded_THC = folded_queries(q_THN, turned_THP, up.data, sizes)
            mixed_THL = self._decode(folded_THC, kept[:, None], kept[:, None, : sizes.latent], spans, scale, None)
            return values_of(mixed_THL, up.data, sizes)
        mixed = []
        for span in spans:
            mine, seen_NC = slice(span.first, span.last), kept[self._seen(span, None)]
            if sizes.absorbs(span.num_rows, span.length):
                folded_RHC = folded_queries(q_THN[mine], turned_THP[mine], up.data, sizes)
                mixed_RHL = _mix_rows(folded_RHC, seen_NC[:, None], seen_NC[:, None, : sizes.latent], scale, None)
                mixed.append(values_of(mixed_RHL, up.data, sizes))
            else:
                mixed.append(_mix_rows(q_THK[mine], *made_of(seen_NC, up.data, sizes), scale, None))
        return torch.cat(mixed)

    def _scan(
        self, q_THE: Tensor, k_THE: Tensor, v_THF: Tensor, logs_TH: Tensor, shares_TH: Tensor | None, step: Step, layer: int
    ) -> Tensor:
        """Sequences from their states to their next ones, those of equal length together."""
        states = None if step.cache is None else step.cache.states[layer]
        found = []
        for spans, rows in self._equal_parts(step):
            q, k, v, logs = (_by_sequence(x, spans, rows) for x in (q_THE, k_THE, v_THF.to(self._wide), logs_TH))
            shares = None if shares_TH is None else _by_sequence(shares_TH, spans, rows)
            before = self._before(states, spans, (*q_THE.shape[1:], v_THF.shape[2]), self._wide)
            out_BRHF, after = scan(q, k, v, logs, shares, before)
            self._keep(states, spans, after)
            found.append(out_BRHF.flatten(0, 1))
        return torch.cat(found).to(v_THF.dtype)

    def _equal_parts(self, step: Step) -> list[tuple[Sequence[Span], slice]]:
        """All sequences of a step where they have as many new rows, else each by itself; and their rows."""
        spans = self._placed(step).layout.spans
        if len({span.num_rows for span in spans}) == 1:
            return [(spans, slice(0, spans[-1].last))]
        return [([span], slice(span.first, span.last)) for span in spans if span.num_rows]

    def _before(self, plane: Tensor | None, spans: Sequence[Span], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """What a plane holds for these sequences, and zero for those that start."""
        before = torch.zeros((len(spans), *shape), dtype=dtype, device=self.device)
        going = [place for place, span in enumerate(spans) if span.read >= 0]
        if plane is not None and going:
            before[self._indices(going)] = plane[self._indices([spans[place].read for place in going])]
        return before

    def _keep(self, plane: Tensor | None, spans: Sequence[Span], after: Tensor) -> None:
        """Write what these sequences go on with."""
        if plane is None:
            return
        if torch.is_grad_enabled() and after.requires_grad:
            raise OurFault("a cache cannot carry gradients", hint="run under torch.inference_mode, or without a cache")
        plane[self._indices([require_slot(span) for span in spans])] = after

    def _indices(self, numbers: Sequence[int]) -> Tensor:
        """Numbers of rows, on the device."""
        return torch.as_tensor(numbers, dtype=torch.long, device=self.device)

    def _attend_cached(
        self, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, placed: _Placed, cache: TorchCache, layer: int, scale: float, window: int | None
    ) -> Tensor:
        """Write the new rows to the cache, then read what every sequence sees."""
        _refuse_gradients(k_TKE)
        keys, values = cache.keys[layer].flatten(0, 1), cache.values[layer].flatten(0, 1)
        keys[placed.slots_T], values[placed.slots_T] = k_TKE, v_TKE
        spans = placed.layout.spans
        if placed.alone and len(spans) > 1:
            return self._decode(q_THE, keys, values, spans, scale, window)
        mixed = []
        for span in spans:
            slots_N = self._seen(span, window)
            mixed.append(_mix_rows(q_THE[span.first : span.last], keys[slots_N], values[slots_N], scale, window))
        return torch.cat(mixed)

    def _decode(self, q_SHE: Tensor, keys: Tensor, values: Tensor, spans: Sequence[Span], scale: float, window: int | None) -> Tensor:
        """One new row for each sequence: gather all of them, as long as the longest; padding is read from a written slot and masked."""
        first = [0 if window is None else max(0, span.length - window) for span in spans]
        width = max(span.length - low for span, low in zip(spans, first, strict=True))
        slots_SN = np.zeros((len(spans), width), np.int64)
        seen_SN = np.zeros((len(spans), width), np.bool_)
        for row, (span, low) in enumerate(zip(spans, first, strict=True)):
            mine_N = _slots_of(span, low)
            slots_SN[row] = mine_N[-1]
            slots_SN[row, : len(mine_N)] = mine_N
            seen_SN[row, : len(mine_N)] = True
        slots, seen = torch.as_tensor(slots_SN, device=self.device), torch.as_tensor(seen_SN, device=self.device)
        k, v = (plane[slots].transpose(1, 2) for plane in (keys, values))
        mask = None if seen_SN.all() else seen[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(q_SHE[:, :, None], k, v, attn_mask=mask, scale=scale, enable_gqa=True)
        return mixed[:, :, 0]

    def _seen(self, span: Span, window: int | None) -> Tensor:
        """Cache slots of the tokens that a sequence's new rows may see."""
        return torch.as_tensor(_slots_of(span, span.first_seen(window)), device=self.device)

    def _place(self, step: Step) -> _Placed:
        """The layout of a step, its indices on the device."""
        layout = layout_of(step)
        lengths = {span.num_rows for span in layout.spans}
        whole = step.cache is None and len(lengths) == 1
        return _Placed(
            layout,
            torch.as_tensor(layout.slots_T, device=self.device),
            torch.as_tensor(step.rows_R, dtype=torch.long, device=self.device),
            lengths == {1},
            lengths.pop() if whole else 0,
        )

    def _turns_of(self, step: Step, rope: Rope) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the step's positions, [T, 1, width / 2] each."""
        known = self._turns_T(step)
        if rope not in known:
            last = int(step.positions_T.max(initial=0)) + 1
            table = self._turns.get(rope)
            if table is None or table.shape[1] < last:
                size = max(last, 256 if table is None else 2 * table.shape[1])
                with torch.inference_mode(False):
                    table = self._turns[rope] = torch.as_tensor(turns(rope, 0, size)).to(self.device, self._wide)
            cos, sin = table[:, torch.as_tensor(step.positions_T, dtype=torch.long, device=self.device), None, :]
            known[rope] = (cos, sin)
        return known[rope]

    def _tensor(self, stored: Stored, dtype: torch.dtype) -> Tensor:
        """A stored tensor's values on this device in a dtype."""
        if isinstance(stored, Stack):
            with torch.inference_mode(False):
                stacked = torch.empty(stored.shape, dtype=dtype, device=self.device)
            for place, part in enumerate(stored.parts):
                stacked[place] = self._tensor(part, dtype)
            return stacked
        with torch.inference_mode(False):
            plain = _AS_STORED.get(stored.kind)
            if plain is None or not stored.shape:
                tensor = torch.from_numpy(np.array(stored.float32(), np.float32))
            else:
                tensor = torch.frombuffer(bytearray(stored.raw()), dtype=plain)
            return tensor.reshape(stored.shape).to(self.device, dtype)

    def _plane(self, *shape: int) -> Tensor:
        """One cache plane."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)


def _by_sequence(x: Tensor, spans: Sequence[Span], rows: slice) -> Tensor:
    """Rows of equally long sequences, [B, R, ...]."""
    return x[rows].reshape(len(spans), -1, *x.shape[1:])


def _slots_of(span: Span, low: int) -> NDArray[np.intp]:
    """Cache slots of a sequence's positions from `low` on."""
    positions = np.arange(low, span.length)
    return span.pages_P[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS


def _refuse_gradients(kept: Tensor) -> None:
    """What is written to a cache must not carry any."""
    if torch.is_grad_enabled() and kept.requires_grad:
        raise OurFault("a cache cannot carry gradients", hint="run under torch.inference_mode, or without a cache")


def _mix_rows(q_RHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, scale: float, window: int | None) -> Tensor:
    """Causal attention of the last R of N tokens of one sequence, [R, H, E]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_RHE, k_NKE, v_NKE))
    return _mix(q, k, v, scale, window)[0].transpose(0, 1)


def _mix(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """Causal attention of the last rows of a sequence: q [B, H, R, E]; k and v [B, K, N, E]; R may be less than N."""
    new, seen = q.shape[-2], k.shape[-2]
    if new == seen and (window is None or window >= seen):
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    mask = None
    if new > 1 or window is not None:
        row = torch.arange(seen - new, seen, device=q.device)[:, None]
        column = torch.arange(seen, device=q.device)
        mask = column <= row if window is None else (column <= row) & (column > row - window)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
