"""The vocabulary recorded: an architecture runs once on slots and leaves a flat program, which one native call a step executes.

Shapes   T packed rows, R wanted rows, D hidden, H query heads, E head size, V vocabulary.

A value is a `Slot`: a number, a width, and whether it has a row for every packed row or only for the wanted ones. Calling an op appends
an instruction. `native_fusion` then joins neighbours, and `native_program` hands the result to the library.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from khola.errors import NoKernel, NoMemory, OurFault
from khola.native.lib import CACHE_FORMS, KhLayerCache, KhStateCache, library
from khola.native.pack import STRIP, packed_bytes
from khola.ops.latent import key_matrices, latent_sizes, value_matrices
from khola.ops.native_fusion import fuse
from khola.ops.native_program import NativeProgram
from khola.ops.native_recording import Instruction, Recording
from khola.ops.native_weights import Joined, NativeWeights, matrices_of, with_heads
from khola.ops.vocabulary import PAGE_TOKENS, CacheSpec, Forward, Rope, Routing, StateCache, Step, Stored, Weight

CacheForm = Literal["bf16", "int8", "float32"]
MOST_TAPS = 64
"""Rows that a convolution of the library sees at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A value that is known only when the program runs."""

    recorder: NativeOps
    number: int
    width: int
    wanted: bool
    head_size: int = 0
    """Columns of a head where the value is seen as heads; 0 where it is seen as rows."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """Symbolic: the number of rows is not known."""
        rows = "R" if self.wanted else "T"
        return (rows, self.width // self.head_size, self.head_size) if self.head_size else (rows, self.width)

    def __add__(self, other: Slot) -> Slot:
        return self.recorder.emit("add", (self, other), self.width)

    def __mul__(self, other: Slot | float) -> Slot:
        if isinstance(other, float):
            return self.recorder.emit("scale", (self,), self.width, factor=other)
        return self.recorder.emit("mul", (self, other), max(self.width, other.width))


@dataclass(slots=True, eq=False)
class NativeCache:
    """Pages of every layer, in the library's own order."""

    handle: int
    num_pages: int

    def __del__(self) -> None:
        library().kh_cache_free(self.handle)


class NativeOps:
    """Interpreter that records; `compile` makes a program of what it recorded.

    What is certain: a row's numbers depend neither on the other rows of a step nor on the number of threads. Inputs of products are
    rounded to bfloat16 where the row is a token of a prompt, and to 8 bits in groups where it is one of an answer, or drawn from; with a
    cache in float32 they are not, and nothing is but sums.

    Args:
        threads: of the engine; 0 means one a core.
        cache: how keys and values are kept: in bfloat16, in codes of 8 bits with a scale for every token and key head, or in float32.
    """

    name = "native"

    def __init__(self, threads: int = 0, cache: CacheForm = "bf16") -> None:
        self.streams = False
        """Whether memory may not hold all weights, so that programs ask for them ahead; set by whoever finds that out."""
        self.threads = threads or _cores()
        self.precise = cache == "float32"
        self.tells_answers = not self.precise
        self.cache_form = CACHE_FORMS[cache]
        self.weights = NativeWeights()
        self._recording: Recording | None = None

    def take(self, stored: Stored, bias: Stored | None = None, *, exact: bool = False) -> Weight:
        """The tensor as it lies in its file: matrices are packed when it is known what they are joined with. Others are read."""
        name = stored.name.removesuffix(".weight")
        convolution = len(stored.shape) == 3 and stored.shape[1] == 1
        data = stored if len(stored.shape) >= 2 and not convolution else np.ascontiguousarray(stored.float32(), np.float32)
        return Weight(name, data, None if bias is None else np.ascontiguousarray(bias.float32(), np.float32))

    def weight_bytes(self, weight: Weight) -> int:
        """Memory of the packed matrix, were it not joined with others, and of its bias."""
        data = weight.data
        here = data.nbytes if isinstance(data, np.ndarray) else packed_bytes(data)
        return here + (weight.bias.nbytes if weight.bias is not None else 0)

    def settle(self, passes: Sequence[Forward], release: Callable[[], None] = lambda: None) -> None:
        """Pack every matrix that one of the passes multiplies by or looks up in."""
        self.weights.settle(self.matrices(passes), self.threads, release)

    def matrices(self, passes: Sequence[Forward]) -> list[Joined]:
        """Every matrix that one of the passes needs, as it has to be packed; this records the passes, some milliseconds each."""
        recorded = [one.facts for forward in passes for one in self.recorded(forward).instructions]
        return with_heads([matrix for facts in recorded for matrix in matrices_of(facts)])

    def compile(self, forward: Forward, spec: CacheSpec, max_context: int, max_rows: int) -> NativeProgram:
        """Record a pass and hand it to the library; weights that were not settled are packed now."""
        self.settle([forward])
        recording = self.recorded(forward)
        return NativeProgram(
            recording,
            self.weights,
            spec,
            threads=self.threads,
            max_rows=max_rows,
            max_context=max_context,
            streams=self.streams,
            precise=self.precise,
        )

    def recorded(self, forward: Forward) -> Recording:
        """What a pass does, its neighbours joined."""
        self._recording = recording = Recording()
        try:
            ids = Slot(self, recording.new_slot(1, False), 1, False)
            result: Slot = forward(ids, _SYMBOLIC, self)
        finally:
            self._recording = None
        recording.result = result.number
        return fuse(recording)

    def token_bytes(self, spec: CacheSpec) -> int:
        """A part of a page, in which heads are padded to 32 numbers and codes have their scales."""
        return int(library().kh_cache_bytes(_layers(spec), len(spec.layers), 1, self.cache_form)) // PAGE_TOKENS

    def state_bytes(self, spec: CacheSpec) -> int:
        """Numbers of 32 bits."""
        return int(library().kh_state_bytes(_states(spec), len(spec.layers)))

    def new_cache(self, spec: CacheSpec, num_pages: int, num_states: int = 0) -> NativeCache:
        """Pages in bfloat16, in codes of 8 bits or in float32.

        Raises:
            NoMemory: they do not fit.
            NoKernel: latents in codes: one scale for a latent and a rotated key, which is many times as large, would leave nothing of it.
        """
        if self.cache_form == CACHE_FORMS["int8"] and any(not layer.value_size for layer in spec.layers):
            raise NoKernel("latents are kept in bfloat16; there is no cache of 8 bits for them", hint="leave the cache out, or say bf16")
        handle = library().kh_cache_new(_layers(spec), len(spec.layers), num_pages, self.cache_form)
        if not handle:
            raise NoMemory(
                "a cache of {tokens} tokens needs {bytes} bytes, which this machine does not have",
                hint="ask for a shorter context",
                tokens=num_pages * PAGE_TOKENS,
                bytes=self.token_bytes(spec) * num_pages * PAGE_TOKENS,
            )
        cache = NativeCache(handle, num_pages)
        if spec.states and library().kh_cache_keep_states(handle, _states(spec), len(spec.layers), num_states) < 0:
            raise NoMemory(
                "{slots} states of sequences need {bytes} bytes, which this machine does not have",
                hint="run fewer requests at once",
                slots=num_states,
                bytes=self.state_bytes(spec) * num_states,
            )
        return cache

    def to_numpy(self, value: NDArray[np.float32]) -> NDArray[np.float32]:
        """Programs give arrays already."""
        return value

    def emit(self, op: str, inputs: tuple[Slot, ...], width: int, wanted: bool | None = None, **facts: Any) -> Slot:
        """Append an instruction; its result is a new slot."""
        if self._recording is None:
            raise OurFault("native values exist only while a program is recorded")
        on_wanted = inputs[0].wanted if wanted is None else wanted
        number = self._recording.new_slot(width, on_wanted)
        self._recording.instructions.append(Instruction(op, tuple(slot.number for slot in inputs), number, facts))
        return Slot(self, number, width, on_wanted)

    def embed(self, ids_T: Slot, table: Weight) -> Slot:
        """Rows of a packed table, [T, D]."""
        return self.emit("embed", (ids_T,), table.data.shape[1], weights=(table,))

    def linear(self, x_TN: Slot, weight: Weight) -> Slot:
        """x times the transposed weight, plus its bias."""
        return self.emit("linear", (x_TN,), weight.data.shape[0], weights=(weight,))

    def rms_norm(self, x: Slot, weight: Weight, eps: float, plus_one: bool = False) -> Slot:
        """x / sqrt(mean(x²) + eps) times the weight, over rows or over heads."""
        done = self.emit("rms_norm", (x,), x.width, vector=weight, eps=eps, offset=float(plus_one), head_size=x.head_size)
        return replace(done, head_size=x.head_size)

    def layer_norm(self, x: Slot, weight: Weight, eps: float) -> Slot:
        """(x - mean) / sqrt(variance + eps) times the weight, plus its bias."""
        return self.emit("layer_norm", (x,), x.width, vector=weight, eps=eps)

    def heads(self, x_TD: Slot, size: int) -> Slot:
        """The same slot seen as heads."""
        return replace(x_TD, head_size=size)

    def flat(self, x_THE: Slot) -> Slot:
        """The same slot seen as rows."""
        return replace(x_THE, head_size=0)

    def split(self, x: Slot, sizes: Sequence[int]) -> tuple[Slot, ...]:
        """Copies of column ranges, of rows or of heads."""
        if sum(sizes) != (x.head_size or x.width):
            raise OurFault("sizes {sizes} do not add up to {width}", sizes=list(sizes), width=x.head_size or x.width)
        starts = np.cumsum([0, *sizes]).tolist()
        if not x.head_size:
            return tuple(self.emit("slice", (x,), size, start=start) for size, start in zip(sizes, starts, strict=False))
        heads = x.width // x.head_size
        parts = [(size, {"start": start, "head_size": x.head_size, "size": size}) for size, start in zip(sizes, starts, strict=False)]
        return tuple(replace(self.emit("slice", (x,), heads * size, **facts), head_size=size) for size, facts in parts)

    def rotate(self, x_THE: Slot, step: Step, rope: Rope) -> Slot:
        """Heads turned by position."""
        return replace(self.emit("rotate", (x_THE,), x_THE.width, rope=rope, head_size=x_THE.head_size), head_size=x_THE.head_size)

    def attend(self, q_THE: Slot, k_TKE: Slot, v_TKE: Slot, step: Step, layer: int, scale: float, window: int | None = None) -> Slot:
        """Attention over the pages of each sequence."""
        width = q_THE.width // k_TKE.head_size * v_TKE.head_size
        facts: dict[str, Any] = {"layer": layer, "scale": scale, "window": window or 0, "head_size": q_THE.head_size}
        return replace(self.emit("attend", (q_THE, k_TKE, v_TKE), width, **facts), head_size=v_TKE.head_size)

    def attend_latent(
        self, q_THN: Slot, turned_THP: Slot, latent_TL: Slot, key_TP: Slot, up: Weight, step: Step, layer: int, scale: float
    ) -> Slot:
        """Attention over the latents of each sequence, absorbed: queries and mixtures are multiplied head by head."""
        heads = q_THN.width // q_THN.head_size
        sizes = latent_sizes((0, heads, q_THN.head_size), (0, heads, turned_THP.head_size), up.data.shape)
        keys, values = key_matrices(up.data, sizes, 2 * STRIP), value_matrices(up.data, sizes, 2 * STRIP)
        folded = self._by_head((q_THN, turned_THP), keys, heads, sizes.latent)
        mixed = self.emit("attend_latent", (folded, latent_TL, key_TP), heads * sizes.latent, layer=layer, scale=scale)
        return replace(self._by_head((mixed,), values, heads, sizes.value), head_size=sizes.value)

    def _by_head(self, inputs: tuple[Slot, ...], matrices: Stored, heads: int, size: int) -> Slot:
        """Every head's own product, and behind it what a second input has for the head."""
        width = heads * size + sum(slot.width for slot in inputs[1:])
        return self.emit("head_linear", inputs, width, weights=(Weight(matrices.name, matrices),), heads=heads, size=size)

    def decay_scan(self, q_THE: Slot, k_THE: Slot, v_THF: Slot, decay_H: tuple[float, ...], step: Step, layer: int) -> Slot:
        """Linear attention whose memory fades, row by row."""
        decay = Weight(f"decay of layer {layer}", np.array(decay_H, np.float32))
        return replace(self.emit("decay_scan", (q_THE, k_THE, v_THF), v_THF.width, layer=layer, vector=decay), head_size=v_THF.head_size)

    def delta_scan(self, q_TKE: Slot, k_TKE: Slot, v_THF: Slot, log_decay_TH: Slot, share_TH: Slot, step: Step, layer: int) -> Slot:
        """The gated delta rule, row by row."""
        inputs = (q_TKE, k_TKE, v_THF, log_decay_TH, share_TH)
        key_heads = q_TKE.width // q_TKE.head_size
        return replace(self.emit("delta_scan", inputs, v_THF.width, layer=layer, key_heads=key_heads), head_size=v_THF.head_size)

    def log_decay(self, a_TH: Slot, rate: Weight, bias: Weight) -> Slot:
        """-exp(rate) x log(1 + exp(a + bias))."""
        return self.emit("log_decay", (a_TH,), a_TH.width, vector=rate, bias=bias)

    def causal_conv(self, x_TC: Slot, weight: Weight, step: Step, layer: int) -> Slot:
        """A sum over some rows, and its gate; weights of one row of all columns lie side by side.

        Raises:
            NoKernel: it sees more rows than the library looks at.
        """
        taps = weight.data.shape[2]
        if taps > MOST_TAPS:
            raise NoKernel("a convolution over {taps} rows has no native kernel", taps=taps)
        by_row = Weight(weight.name, np.ascontiguousarray(weight.data.reshape(x_TC.width, taps).T).reshape(-1))
        return self.emit("causal_conv", (x_TC,), x_TC.width, layer=layer, vector=by_row)

    def silu_mul(self, gate: Slot, up: Slot) -> Slot:
        """gate x sigmoid(gate) x up."""
        return self.emit("silu_mul", (gate, up), gate.width)

    def gelu(self, x: Slot) -> Slot:
        """x times the normal distribution function of x."""
        return self.emit("gelu", (x,), x.width)

    def sigmoid(self, x: Slot) -> Slot:
        """1 / (1 + exp(-x))."""
        return self.emit("sigmoid", (x,), x.width)

    def route(self, x_TD: Slot, router: Weight, routing: Routing) -> Slot:
        """Numbers of the chosen experts, then their shares; inputs of the router are rounded to bfloat16 in every row."""
        logits_TX = self.linear(x_TD, Weight(router.name, router.data))
        bias = None if router.bias is None else Weight(f"{router.name}.bias", router.bias.reshape(-1))
        return self.emit("route", (logits_TX,), 2 * routing.chosen, routing=routing, bias=bias)

    def experts(self, x_TD: Slot, routes: Slot, gate_XFD: Weight, up_XFD: Weight, down_XDF: Weight) -> Slot:
        """Rows sorted by expert, multiplied, and added up by their shares.

        Raises:
            NoKernel: an expert's matrices are no whole strips.
        """
        experts, inner, hidden = gate_XFD.data.shape
        if inner % STRIP or hidden % (2 * STRIP):
            raise NoKernel("experts of width {inner} in rows of {hidden} have no native kernel", inner=inner, hidden=hidden)
        facts = {"weights": (gate_XFD, up_XFD), "gated": True, "down": (down_XDF,), "experts": experts, "chosen": routes.width // 2}
        return self.emit("experts", (x_TD, routes), hidden, **facts)

    def rows(self, x_TD: Slot, step: Step) -> Slot:
        """The rows whose logits are wanted."""
        return self.emit("rows", (x_TD,), x_TD.width, wanted=True)

    def join(self, x_TN: Slot, y_TD: Slot) -> Slot:
        """The columns of both side by side."""
        return self.emit("join", (x_TN, y_TD), x_TN.width + y_TD.width)

    def keep(self, x_TD: Slot, step: Step) -> None:
        """Leave hidden states in the step; nothing reads the slot that this writes."""
        self.emit("keep", (x_TD,), 1)

    def kept(self, width: int, step: Step) -> Slot:
        """What was left there."""
        return self.emit("kept", (), width, wanted=False)


_EMPTY: NDArray[np.int32] = np.zeros(0, np.int32)
_SYMBOLIC = Step(_EMPTY, _EMPTY, _EMPTY, _EMPTY)


def _layers(spec: CacheSpec) -> Any:
    """What the library is told of every layer's cache."""
    return (KhLayerCache * len(spec.layers))(*(KhLayerCache(layer.heads, layer.key_size, layer.value_size) for layer in spec.pages))


def _states(spec: CacheSpec) -> Any:
    """What the library is told of every layer's state."""
    none = StateCache(0, 0, 0)
    kept = [spec.states.get(layer, none) for layer in range(len(spec.layers))]
    return (KhStateCache * len(kept))(*(KhStateCache(s.heads, s.key_size, s.value_size, s.width, s.taps) for s in kept))


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
