"""A recorded program, packed and handed to the native library; running it is one call a step.

Shapes   T packed rows, S sequences, R wanted rows, P pages of the longest sequence, V width of the result.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from khola.errors import NoKernel, NoMemory, OurFault
from khola.native.lib import KhBatch, KhLayerCache, KhOp, KhProgram, KhRope, KhVector, KhWeight, library
from khola.native.pack import Packed
from khola.ops.native_recording import Instruction, Recording, with_few_slots
from khola.ops.native_scores import Arrays, Firsts, Handle, NativeScores
from khola.ops.native_weights import Joined, NativeWeights, joined, matrices_of
from khola.ops.vocabulary import CacheSpec, Rope, Routing, Step, Weight

STATES = ("decay_scan", "delta_scan", "log_decay", "causal_conv", "scale")
"""Operations over states of sequences, and what goes with them."""
OPCODES = (
    {
        name: code
        for code, name in enumerate(
            (
                "embed",
                "rms_norm",
                "layer_norm",
                "linear",
                "rotate",
                "attend",
                "silu_mul",
                "gelu",
                "sigmoid",
                "add",
                "mul",
                "rows",
                "slice",
                "rotate_store",
                "attend_stored",
                "copy_out",
                "route",
                "experts",
            ),
            start=1,
        )
    }
    | {"head_linear": 40, "attend_latent": 41}
    | {name: code for code, name in enumerate(STATES, start=50)}
    | {"keep": 60, "kept": 61, "join": 62}
)
"""`kh_opcode`."""
ADD_IN1, GATED, NORMED, HEAD = 1, 2, 4, 8
SIGMOID_SCORES, NORMALISED = 1, 2
ROUGH = 1
"""`KH_ROUGH`."""
ROOMS = 2
"""Memory for so many steps' scores is kept."""


class NativeProgram:
    """A program that is ready to run.

    Args:
        recording: fused or not.
        weights: the matrices it names, packed.
        spec: of the cache.
        threads: that execute it.
        max_rows: packed rows of a step at most.
        max_context: positions at most.
        streams: the weights are parts of a mapped file that memory may not hold all of.
        precise: neither inputs of products nor keys and values are rounded; the cache must be one in float32.
    Raises:
        NoMemory: its buffers do not fit.
    """

    def __init__(
        self,
        recording: Recording,
        weights: NativeWeights,
        spec: CacheSpec,
        *,
        threads: int,
        max_rows: int,
        max_context: int,
        streams: bool = False,
        precise: bool = False,
    ) -> None:
        self.width, self._wanted = recording.width[recording.result], recording.wanted[recording.result]
        self._recording = recording = with_few_slots(_ending(recording))
        self._weights = weights
        self._numbers: dict[str, int] = {}
        self._packed: list[Packed] = []
        self._vectors: dict[str, int] = {}
        self._arrays: list[NDArray[Any]] = []
        self._kh_vectors: list[KhVector] = []
        self._ropes: dict[Rope, int] = {}
        self._kh_ropes: list[KhRope] = []
        ops = [self._op(one) for one in recording.instructions]
        kept = [one.inputs[0] if one.op == "keep" else one.out for one in recording.instructions if one.op in ("keep", "kept")]
        self._kept_width = recording.width[kept[0]] if kept else 0
        self._max_rows, self._max_context = max_rows, max_context
        self._model = Handle(self._created(ops, spec, threads, precise))
        library().kh_stream(self._model.address, streams)
        self._rooms: list[Arrays] = []
        # What a search for the best logits starts from: the head of the program, if its logits go out as they are.
        last = recording.instructions[-1]
        self._inputs = recording.width[last.inputs[0]] if last.facts.get("head") and self._wanted else 0

    def __call__(self, ids_T: NDArray[np.int32], step: Step) -> NDArray[np.float32]:
        """The wanted rows of one step, [R, V]."""
        out_RV = np.empty((len(step.rows_R if self._wanted else ids_T), self.width), np.float32)
        self._run(ids_T, step, logits=out_RV.ctypes.data)
        return out_RV

    def scores(self, ids_T: NDArray[np.int32], step: Step, best_R: Sequence[int]) -> NativeScores | None:
        """The wanted rows of one step, for a search for the best of them; None where the program does not end on logits.

        Args:
            ids_T: packed ids.
            step: everything else.
            best_R: how many of the best of each row will be searched for; 0: others are needed as well. Without a 0 the others may be
                approximations.
        """
        if not self._inputs:
            return None
        arrays = self._room(len(best_R))
        best = np.array(best_R, np.int32)
        rough = {"margins": arrays.margins, "inputs": arrays.inputs, "best": best.ctypes.data} if all(best_R) else {}
        result = self._run(ids_T, step, logits=arrays.logits, block_max=arrays.maxima, **rough)
        firsts = None if result == ROUGH else Firsts(arrays, len(best_R))
        return NativeScores(self._model, arrays, result == ROUGH, range(len(best_R)), firsts)

    def _room(self, rows: int) -> Arrays:
        """Memory for the scores of one step: that of an earlier step whose scores nobody looks at any more, for fresh memory is slow."""
        found = next((arrays for arrays in self._rooms if arrays.rows >= rows and arrays.is_free()), None)
        if found is None:
            found = Arrays(rows, self.width, self._inputs)
            self._rooms = [found, *self._rooms[: ROOMS - 1]]
        return found

    def _run(self, ids_T: NDArray[np.int32], step: Step, **results: int) -> int:
        """One step; gives the library's answer."""
        if len(ids_T) > self._max_rows:
            raise OurFault("a step has {found} rows; this program was made for {expected}", found=len(ids_T), expected=self._max_rows)
        pages_SP = step.pages_SP
        if step.cache is None or pages_SP is None:
            raise NoKernel("the native interpreter computes over a cache only")
        numbers = {
            "ids": ids_T, "positions": step.positions_T, "starts": step.starts_S1, "lengths": step.lengths_S, "wanted": step.rows_R,
            "pages": pages_SP,
        }  # fmt: skip
        arrays = {name: np.ascontiguousarray(array, np.int32) for name, array in numbers.items()}
        for name, mask in (("answers", step.answers_T), ("drawn", step.drawn_R)):
            if mask is not None and len(mask):
                arrays[name] = np.ascontiguousarray(mask, np.uint8)
        if step.states_S2 is not None:
            arrays["states"] = np.ascontiguousarray(step.states_S2, np.int32)
        if step.kept_TD is not None:
            results["kept"] = self._address_of(step.kept_TD, len(ids_T))
        batch = KhBatch(
            num_rows=len(ids_T),
            num_sequences=len(step.lengths_S),
            num_wanted=len(step.rows_R),
            page_stride=pages_SP.shape[1],
            **{name: array.ctypes.data for name, array in arrays.items()},
            **results,
        )
        result = int(library().kh_step(self._model.address, step.cache.handle, ctypes.byref(batch)))
        if result < 0:
            raise OurFault("the native library refused a step (code {code})", code=result)
        return result

    def _address_of(self, kept_TD: NDArray[np.float32], rows: int) -> int:
        """Where the hidden states lie that the program leaves or reads, once their shape is sure: the library looks at as many as that."""
        if kept_TD.shape != (rows, self._kept_width) or kept_TD.dtype != np.float32 or not kept_TD.flags.c_contiguous:
            raise OurFault("a step of {rows} rows lacks their hidden states of width {width}", rows=rows, width=self._kept_width)
        return kept_TD.ctypes.data

    def profile(self) -> dict[str, float]:
        """Seconds spent in each operation since the last call."""
        seconds = np.zeros(64)
        library().kh_profile(self._model.address, seconds.ctypes.data, len(seconds))
        return {name: float(seconds[code]) for name, code in OPCODES.items() if seconds[code]}

    def _created(self, ops: list[KhOp], spec: CacheSpec, threads: int, precise: bool) -> int:
        recording = self._recording
        widths = np.array(recording.width, np.int32)
        rows = np.array(recording.wanted, np.int32)
        layers = [KhLayerCache(layer.heads, layer.key_size, layer.value_size) for layer in spec.pages]
        program = KhProgram(
            num_ops=len(ops),
            num_slots=len(widths),
            num_weights=len(self._packed),
            num_vectors=len(self._kh_vectors),
            num_ropes=len(self._kh_ropes),
            num_layers=len(layers),
            ops=(KhOp * len(ops))(*ops),
            slot_width=widths.ctypes.data,
            slot_rows=rows.ctypes.data,
            weights=(KhWeight * len(self._packed))(*(packed.form for packed in self._packed)),
            vectors=(KhVector * len(self._kh_vectors))(*self._kh_vectors),
            ropes=(KhRope * len(self._kh_ropes))(*self._kh_ropes),
            layers=(KhLayerCache * len(layers))(*layers),
            max_rows=self._max_rows,
            max_wanted=self._max_rows,
            max_context=self._max_context,
            precise=precise,
        )
        model = library().kh_model_new(ctypes.byref(program), threads)
        if not model:
            raise NoMemory("the native engine cannot allocate its buffers for {rows} rows", rows=self._max_rows)
        return int(model)

    def _op(self, one: Instruction) -> KhOp:
        facts = one.facts
        inputs = (*one.inputs, -1, -1, -1)[:3]
        op = KhOp(op=OPCODES[one.op], in0=inputs[0], in1=inputs[1], in2=inputs[2], out=one.out, w0=-1, w1=-1)
        if one.op in ("linear", "embed"):
            op.w0 = self._matrix(joined(facts))
            op.flags = sum(flag for name, flag in (("add", ADD_IN1), ("gated", GATED), ("norm", NORMED), ("head", HEAD)) if facts.get(name))
        if "norm" in facts:
            op.w1 = self._vector(facts["norm"]["vector"])
            op.f[0], op.f[1] = facts["norm"]["eps"], facts["norm"]["offset"]
        if one.op in ("rms_norm", "layer_norm"):
            op.arg[0] = facts.get("head_size", 0)
            op.w0 = self._vector(facts["vector"])
            op.f[0], op.f[1] = facts["eps"], facts.get("offset", 0.0)
        if one.op == "rotate":
            op.arg[0], op.arg[1] = self._rope(facts["rope"]), facts["head_size"]
        if one.op == "rotate_store":
            op.w1 = self._rope(facts["rope"])
            op.arg[:] = [facts["layer"], facts["head_size"], facts["heads"], facts["key_heads"]]
        if one.op in ("attend", "attend_stored"):
            op.arg[:] = [facts["layer"], facts["head_size"], facts["window"], 0]
            op.f[0] = facts["scale"]
        if one.op == "route":
            routing: Routing = facts["routing"]
            op.w0 = -1 if facts["bias"] is None else self._vector(facts["bias"])
            kind = SIGMOID_SCORES * (routing.score == "sigmoid") + NORMALISED * routing.normalised
            op.arg[:] = [routing.chosen, routing.groups, routing.kept_groups, kind]
            op.f[0], op.f[1] = routing.floor, routing.scale
        if one.op == "experts":
            op.w0, op.w1 = map(self._matrix, matrices_of(facts))
            op.arg[0], op.arg[1] = facts["experts"], facts["chosen"]
        if one.op == "slice":
            op.arg[:] = [facts["start"], facts.get("head_size", 0), facts.get("size", 0), 0]
        if one.op == "head_linear":
            op.w0 = self._matrix(joined(facts))
            op.arg[0], op.arg[1] = facts["heads"], facts["size"]
        if one.op == "attend_latent":
            op.arg[0], op.f[0] = facts["layer"], facts["scale"]
        if one.op in STATES:
            self._state_op(op, one)
        return op

    def _state_op(self, op: KhOp, one: Instruction) -> None:
        """What the operations over states need besides slots; a delta rule has more slots than others."""
        facts = one.facts
        if one.op == "scale":
            op.f[0] = facts["factor"]
        if "vector" in facts:
            op.w0 = self._vector(facts["vector"])
        if "bias" in facts:
            op.w1 = self._vector(facts["bias"])
        op.arg[0] = facts.get("layer", 0)
        if one.op == "delta_scan":
            op.arg[1], op.arg[2], op.arg[3] = one.inputs[3], one.inputs[4], facts["key_heads"]

    def _matrix(self, matrix: Joined) -> int:
        """Number of a packed matrix in this program; a tied table has one."""
        name = matrix.name
        if name not in self._numbers:
            self._numbers[name] = len(self._packed)
            self._packed.append(self._weights.packed(matrix))
        return self._numbers[name]

    def _vector(self, weight: Weight) -> int:
        if weight.name not in self._vectors:
            self._vectors[weight.name] = len(self._kh_vectors)
            self._arrays += [array for array in (weight.data, weight.bias) if array is not None]
            bias = None if weight.bias is None else weight.bias.ctypes.data
            self._kh_vectors.append(KhVector(weight=weight.data.ctypes.data, bias=bias, n=len(weight.data)))
        return self._vectors[weight.name]

    def _rope(self, rope: Rope) -> int:
        if rope not in self._ropes:
            self._ropes[rope] = len(self._kh_ropes)
            frequencies = np.array(rope.frequencies, np.float32)
            self._arrays.append(frequencies)
            self._kh_ropes.append(KhRope(frequencies=frequencies.ctypes.data, half=len(frequencies), factor=rope.factor))
        return self._ropes[rope]


def _ending(recording: Recording) -> Recording:
    """The program with an instruction at its end that hands the result out, unless its last product does so itself."""
    last = recording.instructions[-1]
    if last.out == recording.result and last.facts.get("head"):
        return recording
    end = Instruction("copy_out", (recording.result,), recording.new_slot(1, recording.wanted[recording.result]), {})
    return replace(recording, instructions=[*recording.instructions, end])
