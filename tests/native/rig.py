"""Programs of a few operations, run as a model's would be, whose every slot can be looked at.

Inputs of a step are rows of a table in bfloat16: what a test wants to feed must be exact in it.

Shapes   T packed rows, N outputs, K inputs, S sequences, P pages.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from khola.native.lib import (
    CACHE_FORMS,
    ISAS,
    KhBatch,
    KhLayerCache,
    KhOp,
    KhProgram,
    KhRope,
    KhStateCache,
    KhVector,
    KhWeight,
    choose_isa,
    library,
)
from khola.native.pack import Packed, pack
from khola.ops.native_ops import CacheForm
from khola.ops.native_program import ADD_IN1, GATED, HEAD, NORMED, OPCODES
from khola.store.quantise import dequantise

Array = NDArray[Any]
PAGE = 32
FEW = 16
"""Int8 rows that a kernel multiplies at once."""
FLAGS = {"add": ADD_IN1, "gated": GATED, "normed": NORMED, "head": HEAD}


class Raw:
    """A stored matrix whose blocks are given."""

    def __init__(self, kind: str, shape: tuple[int, ...], blocks: bytes) -> None:
        self.name, self.kind, self.shape, self.blocks = f"a {kind} matrix", kind, shape, blocks

    def float32(self) -> NDArray[np.float32]:
        """What the file format says."""
        return np.asarray(dequantise(self.kind, self.blocks), np.float32).reshape(self.shape)

    def raw(self) -> memoryview:
        """The blocks."""
        return memoryview(self.blocks)


def rounded(x: Array) -> NDArray[np.float32]:
    """Nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def plain(x: Array) -> Packed:
    """A matrix of floats, packed with 16 bits a number."""
    values = np.ascontiguousarray(x, np.float32)
    return pack([Raw("F32", values.shape, values.tobytes())])


def nmse(found: Array, wanted: Array) -> float:
    """Squared error over squared size; infinite where a number is missing."""
    error = float(np.square(np.asarray(found, np.float64) - wanted).sum() / np.square(np.asarray(wanted, np.float64)).sum())
    return error if np.isfinite(error) else float("inf")


@dataclass(eq=False)
class Run:
    """One sequence of a step: how long it is already, how many rows it adds, and its pages."""

    before: int
    rows: int
    pages: list[int]


@dataclass(eq=False)
class Rig:
    """A program under construction, then a model."""

    isa: str = ""
    threads: int = 1
    max_rows: int = 64
    max_context: int = 64
    ops: list[KhOp] = field(default_factory=list)
    widths: list[int] = field(default_factory=lambda: [1])
    wanted: list[int] = field(default_factory=lambda: [0])
    weights: list[Packed] = field(default_factory=list)
    vectors: list[Array] = field(default_factory=list)
    frequencies: list[Array] = field(default_factory=list)
    layers: list[tuple[int, int, int]] = field(default_factory=list)
    num_pages: int = 0
    states: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """Sizes of each layer's state: heads, keys, values, columns and taps."""
    num_states: int = 0
    cache_form: CacheForm = "bf16"
    """How the cache keeps numbers; in float32, the program is a precise one."""
    model: int = 0
    cache: int = 0
    owned: bool = True
    """The model is freed with the rig."""
    _alive: list[Any] = field(default_factory=list)

    def op(
        self,
        name: str,
        inputs: Sequence[int],
        width: int,
        *,
        w0: int = -1,
        w1: int = -1,
        arg: Sequence[int] = (),
        f: Sequence[float] = (),
        flags: Sequence[str] = (),
        wanted: bool = False,
    ) -> int:
        """Append an operation; gives its slot."""
        slots = [*inputs, -1, -1, -1]
        one = KhOp(
            op=OPCODES[name], flags=sum(FLAGS[flag] for flag in flags), in0=slots[0], in1=slots[1], in2=slots[2], out=len(self.widths)
        )
        one.w0, one.w1 = w0, w1
        one.arg[: len(arg)], one.f[: len(f)] = list(arg), list(f)
        self.ops.append(one)
        self.widths.append(width)
        self.wanted.append(int(wanted))
        return len(self.widths) - 1

    def weight(self, packed: Packed) -> int:
        """Number of a matrix."""
        self.weights.append(packed)
        return len(self.weights) - 1

    def vector(self, values: Array) -> int:
        """Number of a vector."""
        self.vectors.append(np.ascontiguousarray(values, np.float32))
        return len(self.vectors) - 1

    def rope(self, frequencies: Array) -> int:
        """Number of a rope."""
        self.frequencies.append(np.ascontiguousarray(frequencies, np.float32))
        return len(self.frequencies) - 1

    def feed(self, x: Array) -> int:
        """A slot with these rows: row r of the step is row ids[r] of x."""
        return self.op("embed", [0], x.shape[1], w0=self.weight(plain(x)))

    def build(self) -> Rig:
        """Make the model."""
        choose_isa(self.isa)
        widths, wanted = np.array(self.widths, np.int32), np.array(self.wanted, np.int32)
        vectors = [KhVector(weight=v.ctypes.data, bias=None, n=len(v)) for v in self.vectors]
        ropes = [KhRope(frequencies=v.ctypes.data, half=len(v), factor=1.0) for v in self.frequencies]
        layers = (KhLayerCache * len(self.layers))(*(KhLayerCache(*layer) for layer in self.layers))
        program = KhProgram(
            num_ops=len(self.ops), num_slots=len(widths), num_weights=len(self.weights), num_vectors=len(vectors), num_ropes=len(ropes),
            num_layers=len(self.layers), ops=(KhOp * len(self.ops))(*self.ops), slot_width=widths.ctypes.data, slot_rows=wanted.ctypes.data,
            weights=(KhWeight * len(self.weights))(*(w.form for w in self.weights)), vectors=(KhVector * len(vectors))(*vectors),
            ropes=(KhRope * len(ropes))(*ropes), layers=layers,
            max_rows=self.max_rows, max_wanted=self.max_rows, max_context=self.max_context, precise=self.cache_form == "float32",
        )  # fmt: skip
        self.model = library().kh_model_new(ctypes.byref(program), self.threads)
        if self.layers or self.states:
            self.cache = library().kh_cache_new(layers, len(self.layers), self.num_pages, CACHE_FORMS[self.cache_form])
        if self.states:
            states = (KhStateCache * len(self.states))(*(KhStateCache(*state) for state in self.states))
            assert library().kh_cache_keep_states(self.cache, states, len(states), self.num_states) == 0
        choose_isa("")
        return self

    def __del__(self) -> None:
        if self.model and self.owned:
            library().kh_model_free(self.model)
        if self.cache:
            library().kh_cache_free(self.cache)

    def step(
        self,
        ids: Sequence[int] | Array,
        sequences: Sequence[Run] | None = None,
        *,
        poison: bool = True,
        logits: Array | None = None,
        block_max: Array | None = None,
        answers: Sequence[bool] | Array | None = None,
        **more: Array,
    ) -> int:
        """Run one step, by default one new sequence; gives the library's answer.

        Args:
            answers: rows whose inputs are rounded to int8; all of them by default when there are up to sixteen, otherwise none.
            more: other arrays of `kh_batch`.
        """
        rows = np.ascontiguousarray(ids, np.int32)
        spans = list(sequences or [Run(0, len(rows), list(range(-(-len(rows) // PAGE))))])
        positions = np.concatenate([np.arange(s.before, s.before + s.rows) for s in spans]).astype(np.int32)
        starts = np.cumsum([0, *(s.rows for s in spans)]).astype(np.int32)
        lengths = np.array([s.before + s.rows for s in spans], np.int32)
        pages = np.full((len(spans), max(len(s.pages) for s in spans)), -1, np.int32)
        for i, s in enumerate(spans):
            pages[i, : len(s.pages)] = s.pages
        wanted = np.arange(len(rows), dtype=np.int32)
        kinds = np.full(len(rows), len(rows) <= FEW, np.uint8) if answers is None else np.ascontiguousarray(answers, np.uint8)
        if poison:
            library().kh_poison(self.model)
        batch = KhBatch(
            num_rows=len(rows), num_sequences=len(spans), num_wanted=len(rows), ids=rows.ctypes.data, positions=positions.ctypes.data,
            starts=starts.ctypes.data, lengths=lengths.ctypes.data, wanted=wanted.ctypes.data,
            answers=kinds.ctypes.data, drawn=kinds.ctypes.data, pages=pages.ctypes.data,
            page_stride=pages.shape[1], logits=None if logits is None else logits.ctypes.data,
            block_max=None if block_max is None else block_max.ctypes.data,
            **{name: array.ctypes.data for name, array in more.items()},
        )  # fmt: skip
        return int(library().kh_step(self.model, self.cache, ctypes.byref(batch)))

    def slot(self, number: int, rows: int) -> NDArray[np.float32]:
        """Rows of a slot as the last step left them."""
        stride = ctypes.c_int32()
        place = library().kh_slot(self.model, number, ctypes.byref(stride))
        floats = (ctypes.c_float * (rows * stride.value)).from_address(place)
        return np.array(floats, np.float32).reshape(rows, stride.value)[:, : self.widths[number]]


def splits(isa: str) -> bool:
    """Whether heads are split for an instruction set."""
    choose_isa(isa)
    split = bool(pack([Raw("Q8_0", (1, 32), bytes(34))], head=True).form.split)
    choose_isa("")
    return split


def available() -> list[str]:
    """Instruction sets that this processor and this build have."""
    from khola.errors import NoKernel

    names = []
    for name in reversed(ISAS):
        try:
            names.append(choose_isa(name))
        except NoKernel:
            continue
    choose_isa("")
    return names
