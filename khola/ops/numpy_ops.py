"""The vocabulary in numpy: the specification, the oracle of every test, and what runs where nothing was compiled.

Shapes   T packed rows, D hidden, N input width, H query heads, K key heads, E head size, R wanted rows, X experts, F width of one, or of
         a value in a state, C columns of a convolution.

Weights are dequantised when they are taken. Every array has the interpreter's one dtype: a single float64 table would make
whatever it touches float64, and a step 16 times slower.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from khola.errors import AskedWrong, NoMemory, OurFault
from khola.ops.latent import latent_sizes
from khola.ops.normal import normal_distribution
from khola.ops.numpy_attention import mix_values
from khola.ops.numpy_latent import mix_latents
from khola.ops.numpy_routing import Routes, choose
from khola.ops.numpy_states import convolve, scan, unit
from khola.ops.packed import LastStep, Layout, Span, check_ids, kept_of, layout_of, require_slot, turns
from khola.ops.vocabulary import PAGE_TOKENS, CacheSpec, Forward, Program, Rope, Routing, Step, Stored, Weight

Array = NDArray[Any]

LONE_ROWS = 3
"""Up to here each row is a matrix-vector product of its own: BLAS reads the matrix at full bandwidth only then."""
FEW_ROWS = 64
"""Up to here the matrix stands on the left, which BLAS multiplies up to twice as fast."""


@dataclass(frozen=True, slots=True, eq=False)
class NumpyCache:
    """Keys and values of every layer: planes of [pages, `PAGE_TOKENS`, K, E]. What was never written is never read."""

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    states: dict[int, Array]
    """By layer, [slots, H, E, F]."""
    tails: dict[int, Array]
    """Last inputs of convolutions by layer, [slots, taps - 1, columns]."""


class NumpyOps:
    """Interpreter in float32, or in float64 to judge the others.

    What is certain: the same step on the same machine with the same number of BLAS threads gives the same bits, and a sequence's
    attention does not depend on its neighbours or on where its pages lie. What is not: BLAS sums in another order for other numbers of
    rows, so a row alone (or among at most `LONE_ROWS`) and the same row in a larger step differ by rounding, about 1e-6 in float32.

    Args:
        threads: BLAS threads; 0 leaves the choice to BLAS. Other numbers take effect only where `threadpoolctl` is installed;
            `threads` afterwards says what is in force.
        dtype: "float32" or "float64".
    Raises:
        AskedWrong: another dtype.
    """

    name = "numpy"
    tells_answers = False

    def __init__(self, threads: int = 0, dtype: str = "float32") -> None:
        if dtype not in ("float32", "float64"):
            raise AskedWrong("numpy computes in float32 or float64, not in {dtype}", dtype=dtype)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.threads = threads if threads and _limit_blas(threads) else 0
        self._layout: LastStep[Layout] = LastStep(layout_of)
        self._turns: dict[Rope, Array] = {}
        self._turns_T: LastStep[dict[Rope, tuple[Array, Array]]] = LastStep(lambda step: {})

    def token_bytes(self, spec: CacheSpec) -> int:
        """Numbers of the dtype."""
        return spec.numbers_per_token() * self.dtype.itemsize

    def state_bytes(self, spec: CacheSpec) -> int:
        """Numbers of the dtype."""
        return spec.numbers_per_state() * self.dtype.itemsize

    def take(self, stored: Stored, bias: Stored | None = None, *, exact: bool = False) -> Weight:
        """The tensor, dequantised; a file's own float32 array is used as it lies."""
        name = stored.name.removesuffix(".weight")
        return Weight(name, self._array(stored), None if bias is None else self._array(bias))

    def weight_bytes(self, weight: Weight) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for array in (weight.data, weight.bias) if array is not None)

    def settle(self, passes: Sequence[Forward], release: Callable[[], None] = lambda: None) -> None:
        """Nothing to do: weights are dequantised when they are taken."""

    def compile(self, forward: Forward, spec: CacheSpec, max_context: int, max_rows: int) -> Program:
        """The pass itself, called anew at every step."""
        return lambda ids_T, step: self.to_numpy(forward(ids_T, step, self))

    def new_cache(self, spec: CacheSpec, num_pages: int, num_states: int = 0) -> NumpyCache:
        """Planes of uninitialised memory, which the machine provides page by page as they are written.

        Raises:
            NoMemory: the planes do not fit.
        """
        try:
            keys = tuple(np.empty((num_pages, PAGE_TOKENS, layer.heads, layer.key_size), self.dtype) for layer in spec.pages)
            values = tuple(np.empty((num_pages, PAGE_TOKENS, layer.heads, layer.value_size), self.dtype) for layer in spec.pages)
            kept = spec.states.items()
            states = {layer: np.empty((num_states, s.heads, s.key_size, s.value_size), self.dtype) for layer, s in kept}
            tails = {layer: np.empty((num_states, s.taps - 1, s.width), self.dtype) for layer, s in kept}
        except MemoryError:
            wanted = self.token_bytes(spec) * num_pages * PAGE_TOKENS + self.state_bytes(spec) * num_states
            raise NoMemory(
                "a cache of {tokens} tokens needs {bytes} bytes, which this machine does not have",
                hint="ask for a shorter context",
                tokens=num_pages * PAGE_TOKENS,
                bytes=wanted,
            ) from None
        return NumpyCache(keys, values, states, tails)

    def to_numpy(self, value: Array) -> NDArray[np.float32]:
        """The value in float32."""
        return value.astype(np.float32, copy=False)

    def embed(self, ids_T: Array, table: Weight) -> Array:
        """Rows of a table, [T, D].

        Raises:
            OurFault: the table has no such row.
        """
        check_ids(ids_T, len(table.data))
        rows: Array = table.data[ids_T]
        return rows

    def linear(self, x_TN: Array, weight: Weight) -> Array:
        """x times the transposed weight, plus its bias."""
        y = _times_transposed(x_TN, weight.data) if x_TN.ndim == 2 else x_TN @ weight.data.T
        if weight.bias is not None:
            y += weight.bias
        return y

    def rms_norm(self, x: Array, weight: Weight, eps: float, plus_one: bool = False) -> Array:
        """x / sqrt(mean(x²) + eps) times the weight."""
        mean = np.add.reduce(x * x, axis=-1, keepdims=True)
        mean *= self.dtype.type(1 / x.shape[-1])
        mean += self.dtype.type(eps)
        np.sqrt(mean, out=mean)
        y: Array = x / mean
        y *= weight.data + self.dtype.type(1) if plus_one else weight.data
        return y

    def layer_norm(self, x: Array, weight: Weight, eps: float) -> Array:
        """(x - mean) / sqrt(variance + eps) times the weight, plus its bias."""
        y: Array = x - x.mean(-1, keepdims=True)
        y /= np.sqrt(np.square(y).mean(-1, keepdims=True) + self.dtype.type(eps))
        y *= weight.data
        if weight.bias is not None:
            y += weight.bias
        return y

    def heads(self, x_TD: Array, size: int) -> Array:
        """A view of [T, H x E] as [T, H, E]."""
        return x_TD.reshape(x_TD.shape[0], -1, size)

    def flat(self, x_THE: Array) -> Array:
        """A view of [T, H, E] as [T, H x E]."""
        return x_THE.reshape(x_THE.shape[0], -1)

    def split(self, x: Array, sizes: Sequence[int]) -> tuple[Array, ...]:
        """Views of the last axis."""
        ends = np.cumsum(sizes).tolist()
        if ends[-1] != x.shape[-1]:
            raise OurFault("sizes {sizes} do not add up to {width}", sizes=list(sizes), width=x.shape[-1])
        return tuple(x[..., end - size : end] for end, size in zip(ends, sizes, strict=True))

    def rotate(self, x_THE: Array, step: Step, rope: Rope) -> Array:
        """The first `rope.width` dimensions of each head turned by position times frequency."""
        cos_T1F, sin_T1F = self._turns_of(step, rope)
        half = cos_T1F.shape[-1]
        left, right = x_THE[..., :half], x_THE[..., half : 2 * half]
        y: Array = np.empty_like(x_THE)
        np.subtract(left * cos_T1F, right * sin_T1F, out=y[..., :half])
        np.add(right * cos_T1F, left * sin_T1F, out=y[..., half : 2 * half])
        y[..., 2 * half :] = x_THE[..., 2 * half :]
        return y

    def attend(self, q_THE: Array, k_TKE: Array, v_TKE: Array, step: Step, layer: int, scale: float, window: int | None = None) -> Array:
        """Causal grouped-query attention; with a cache, k and v are written to it first."""
        layout = self._layout(step)
        cache: NumpyCache | None = step.cache
        if cache is not None:
            _slots(cache.keys[layer])[layout.slots_T] = k_TKE
            _slots(cache.values[layer])[layout.slots_T] = v_TKE
        if cache is None and len(layout.spans) == 1:
            return mix_values(q_THE, k_TKE, v_TKE, scale, window)
        mixed: Array = np.empty((*q_THE.shape[:2], v_TKE.shape[-1]), self.dtype)
        for span in layout.spans:
            mine = slice(span.first, span.last)
            if not span.num_rows:
                continue
            if cache is None:
                k_NKE, v_NKE = k_TKE[mine], v_TKE[mine]
            else:
                k_NKE, v_NKE = _seen(cache.keys[layer], span, window), _seen(cache.values[layer], span, window)
            mixed[mine] = mix_values(q_THE[mine], k_NKE, v_NKE, scale, window)
        return mixed

    def decay_scan(self, q_THE: Array, k_THE: Array, v_THF: Array, decay_H: tuple[float, ...], step: Step, layer: int) -> Array:
        """Linear attention whose memory fades, a chunk of rows at a time."""
        logs_TH = np.broadcast_to(np.log(decay_H).astype(self.dtype), q_THE.shape[:2])
        return self._scan(q_THE, k_THE, v_THF, logs_TH, None, step, layer)

    def delta_scan(self, q_TKE: Array, k_TKE: Array, v_THF: Array, log_decay_TH: Array, share_TH: Array, step: Step, layer: int) -> Array:
        """The gated delta rule, a chunk of rows at a time."""
        group = v_THF.shape[1] // q_TKE.shape[1]
        scale = self.dtype.type(q_TKE.shape[2] ** -0.5)
        q_THE, k_THE = (np.repeat(x, group, axis=1) for x in (unit(q_TKE) * scale, unit(k_TKE)))
        return self._scan(q_THE, k_THE, v_THF, log_decay_TH, share_TH, step, layer)

    def log_decay(self, a_TH: Array, rate: Weight, bias: Weight) -> Array:
        """-exp(rate) x log(1 + exp(a + bias))."""
        y: Array = -np.exp(rate.data) * np.logaddexp(a_TH + bias.data, self.dtype.type(0))
        return y

    def causal_conv(self, x_TC: Array, weight: Weight, step: Step, layer: int) -> Array:
        """A sum over some rows, and its gate."""
        y_TC: Array = np.empty_like(x_TC)
        taps = weight.data.reshape(x_TC.shape[1], -1)
        tails = None if step.cache is None else step.cache.tails[layer]
        for span in self._layout(step).spans:
            mine = slice(span.first, span.last)
            before = np.zeros((taps.shape[1] - 1, x_TC.shape[1]), self.dtype) if span.read < 0 or tails is None else tails[span.read]
            y_TC[mine], tail = convolve(x_TC[mine], taps, before)
            if tails is not None:
                tails[require_slot(span)] = tail
        return self.silu_mul(y_TC, self.dtype.type(1))

    def silu_mul(self, gate: Array, up: Array | np.floating[Any]) -> Array:
        """gate x sigmoid(gate) x up."""
        y = _one_plus_exp_minus(gate)
        np.divide(gate, y, out=y)
        y *= up
        return y

    def gelu(self, x: Array) -> Array:
        """x times the normal distribution function of x."""
        y: Array = x * normal_distribution(x)
        return y

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + exp(-x))."""
        y = _one_plus_exp_minus(x)
        return np.reciprocal(y, out=y)

    def route(self, x_TD: Array, router: Weight, routing: Routing) -> Routes:
        """The experts of each row and their shares."""
        return choose(_times_transposed(x_TD, router.data), router.bias, routing)

    def experts(self, x_TD: Array, routes: Routes, gate_XFD: Weight, up_XFD: Weight, down_XDF: Weight) -> Array:
        """What the experts of each row make of it, by their shares; rows of one expert are multiplied together."""
        y_TD: Array = np.zeros_like(x_TD)
        for expert, rows, shares in routes.by_expert():
            x = x_TD[rows]
            inner = self.silu_mul(_times_transposed(x, gate_XFD.data[expert]), _times_transposed(x, up_XFD.data[expert]))
            y_TD[rows] += shares[:, None] * _times_transposed(inner, down_XDF.data[expert])
        return y_TD

    def rows(self, x_TD: Array, step: Step) -> Array:
        """The rows whose logits are wanted."""
        return x_TD[step.rows_R]

    def join(self, x_TN: Array, y_TD: Array) -> Array:
        """The columns of both side by side."""
        return np.concatenate([x_TN, y_TD], axis=-1)

    def keep(self, x_TD: Array, step: Step) -> None:
        """Leave hidden states in the step."""
        if step.kept_TD is not None:
            step.kept_TD[:] = x_TD

    def kept(self, width: int, step: Step) -> Array:
        """What was left there."""
        return kept_of(step, width).astype(self.dtype)

    def attend_latent(
        self, q_THN: Array, turned_THP: Array, latent_TL: Array, key_TP: Array, up: Weight, step: Step, layer: int, scale: float
    ) -> Array:
        """Causal attention over latents; with a cache, latent and key are written to it first."""
        layout = self._layout(step)
        cache: NumpyCache | None = step.cache
        sizes = latent_sizes(q_THN.shape, turned_THP.shape, up.data.shape)
        kept_TC = np.concatenate([latent_TL, key_TP], axis=-1)
        if cache is not None:
            _slots(cache.keys[layer])[layout.slots_T, 0] = kept_TC
        mixed_THE: Array = np.empty((*q_THN.shape[:2], sizes.value), self.dtype)
        for span in layout.spans:
            mine = slice(span.first, span.last)
            if span.num_rows:
                seen_NC = kept_TC[mine] if cache is None else _seen(cache.keys[layer], span, None)[:, 0]
                mixed_THE[mine] = mix_latents(q_THN[mine], turned_THP[mine], seen_NC, up.data, sizes, scale)
        return mixed_THE

    def _scan(self, q_THE: Array, k_THE: Array, v_THF: Array, logs_TH: Array, shares_TH: Array | None, step: Step, layer: int) -> Array:
        """One sequence after another, each from its state to its next one."""
        out_THF: Array = np.empty(v_THF.shape, self.dtype)
        states = None if step.cache is None else step.cache.states[layer]
        fresh_HEF = np.zeros((*q_THE.shape[1:], v_THF.shape[2]), self.dtype)
        for span in self._layout(step).spans:
            mine = slice(span.first, span.last)
            before = fresh_HEF if span.read < 0 or states is None else states[span.read]
            shares = None if shares_TH is None else shares_TH[mine]
            out_THF[mine], state_HEF = scan(q_THE[mine], k_THE[mine], v_THF[mine], logs_TH[mine], shares, before)
            if states is not None:
                states[require_slot(span)] = state_HEF
        return out_THF

    def _array(self, stored: Stored) -> Array:
        """A stored tensor's values in this interpreter's dtype."""
        return np.ascontiguousarray(stored.float32(), self.dtype).reshape(stored.shape)

    def _turns_of(self, step: Step, rope: Rope) -> tuple[Array, Array]:
        """Cosines and sines of the step's positions, [T, 1, width / 2] each."""
        known = self._turns_T(step)
        if rope not in known:
            last = int(step.positions_T.max(initial=0)) + 1
            table = self._turns.get(rope)
            if table is None or table.shape[1] < last:
                size = max(last, 256 if table is None else 2 * table.shape[1])
                table = self._turns[rope] = turns(rope, 0, size).astype(self.dtype)
            cos_T1F, sin_T1F = table[:, step.positions_T, None, :]
            known[rope] = (cos_T1F, sin_T1F)
        return known[rope]


def _times_transposed(x_TN: Array, weight_DN: Array) -> Array:
    """x · weightᵀ, [T, D], by the road that BLAS is quickest on for this number of rows."""
    num_rows = x_TN.shape[0]
    if num_rows > FEW_ROWS:
        return x_TN @ weight_DN.T
    if num_rows > LONE_ROWS:
        return np.ascontiguousarray((weight_DN @ x_TN.T).T)
    y: Array = np.empty((num_rows, weight_DN.shape[0]), weight_DN.dtype)
    for row in range(num_rows):
        np.dot(weight_DN, x_TN[row], out=y[row])
    return y


def _one_plus_exp_minus(x: Array) -> Array:
    """1 + exp(-x); infinite where exp overflows, so that its reciprocal is the right zero."""
    with np.errstate(over="ignore"):
        y: Array = np.exp(-x)
    y += 1
    return y


def _slots(plane: Array) -> Array:
    """A cache plane as one row of tokens, [pages x `PAGE_TOKENS`, K, E]."""
    return plane.reshape(-1, *plane.shape[2:])


def _seen(plane: Array, span: Span, window: int | None) -> Array:
    """Cached tokens that a sequence's new rows may see, [N, K, E]: a view where its pages lie one after another, else a copy."""
    low = span.first_seen(window)
    pages = span.pages_P[low // PAGE_TOKENS :]
    if span.run:
        start = int(pages[0]) * PAGE_TOKENS
        return _slots(plane)[start : start + span.length - low]
    return _slots(plane[pages])[: span.length - low]


def _limit_blas(threads: int) -> bool:
    """Ask BLAS for a number of threads; says whether it could be asked."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return False
    from threadpoolctl import threadpool_limits  # type: ignore[import-not-found,unused-ignore]

    threadpool_limits(threads, user_api="blas")
    return True
