"""The vocabulary of operations: what an architecture may say, and what every interpreter must mean by it.

Shapes   T packed rows of all sequences in a step, S sequences, R rows whose logits are wanted, P pages of one sequence,
         D hidden, N input width, H query heads, K key heads, E head size, V vocabulary, X experts, C experts chosen for a token,
         F inner width of an expert, or size of a value where it differs from that of a key, L latent, N and P parts of a head without
         and with rotary position.
Values   An interpreter's own arrays (numpy arrays, torch tensors, slots of a program). They have a `shape` and understand `+`, `*`, and
         `*` with a number.

An architecture calls these functions and nothing else. Three interpreters run them: `numpy_ops` (the specification),
`native_ops` (recorded once, executed by one C call a step) and `torch_ops` (training and GPU).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

PAGE_TOKENS = 32
"""Tokens in one page of the key-value cache."""

Value = Any
"""An interpreter's own array."""


class Stored(Protocol):
    """A tensor as it lies in a model file; an interpreter decides in which form it keeps it."""

    @property
    def name(self) -> str:
        """In the checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As on disk."""

    @property
    def kind(self) -> str:
        """Number format: "F32", "F16", "BF16", "F8_E4M3", or a GGUF type such as "Q4_0" and "Q6_K"."""

    def float32(self) -> NDArray[np.float32]:
        """The values, dequantised, in `shape`."""

    def raw(self) -> memoryview:
        """The bytes as they lie in the file, rows one after another."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One named module of a checkpoint: its `weight` and, if it has one, its `bias`."""

    name: str
    data: Value
    bias: Value | None = None


@dataclass(frozen=True)
class Rope:
    """Rotary positions, worked out from a configuration by `khola.nn.rope`.

    Pairs are half-split: dimension i rotates with i + width / 2. Frequencies are in radians a token.
    """

    frequencies: tuple[float, ...]
    """Angle a token of each pair, width / 2 of them; scaling is already in them."""
    factor: float = 1.0
    """Multiplies cosines and sines (YaRN's attention factor)."""

    @property
    def width(self) -> int:
        """Rotated dimensions of a head, from its start."""
        return 2 * len(self.frequencies)


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How logits of a router become the experts of a token and their shares: one record for every family of models.

    An expert's score is the softmax or the sigmoid of its logit. Chosen are those with the best scores, to which the router's bias is
    added if it has one; with groups, only from the groups that are best, a group being as good as the sum of its two best experts.
    The shares are the plain scores of the chosen. A softmax over the chosen alone is a softmax over all, `normalised`.

    Source: groups and the bias, arXiv:2412.19437 section 2.1.2; softmax over all, arXiv:2101.03961 section 2.1.
    """

    chosen: int
    """Experts of a token."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    groups: int = 1
    """Equal groups of consecutive experts."""
    kept_groups: int = 1
    """Groups that a token may choose from."""
    normalised: bool = True
    """Whether shares are divided by their sum."""
    floor: float = 1e-20
    """What they are divided by at least."""
    scale: float = 1.0
    """Multiplies the shares."""


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps of every token."""

    heads: int
    key_size: int
    value_size: int
    """0 where values are made from the keys (`Ops.attend_latent`)."""

    @property
    def numbers_per_token(self) -> int:
        """Numbers kept for one token."""
        return self.heads * (self.key_size + self.value_size)


@dataclass(frozen=True)
class StateCache:
    """What one layer keeps of a sequence, however long it is: the state of a scan, and the last inputs of a short convolution.

    The state of a head is a matrix [key_size, value_size].
    """

    heads: int
    key_size: int
    value_size: int
    width: int = 0
    """Columns of the convolution; 0 where there is none."""
    taps: int = 1
    """Rows that the convolution sees, the newest included."""

    @property
    def numbers(self) -> int:
        """Numbers kept for one sequence."""
        return self.heads * self.key_size * self.value_size + self.width * (self.taps - 1)


NO_PAGES = LayerCache(0, 0, 0)


@dataclass(frozen=True)
class CacheSpec:
    """What a model keeps, layer by layer: of every token, or of a whole sequence."""

    layers: tuple[LayerCache | StateCache, ...]

    @property
    def pages(self) -> tuple[LayerCache, ...]:
        """What each layer keeps of every token; nothing where it keeps a state."""
        return tuple(layer if isinstance(layer, LayerCache) else NO_PAGES for layer in self.layers)

    @property
    def states(self) -> dict[int, StateCache]:
        """The layers that keep a state, by number."""
        return {number: layer for number, layer in enumerate(self.layers) if isinstance(layer, StateCache)}

    def numbers_per_token(self) -> int:
        """Numbers kept for one token in all layers."""
        return sum(layer.numbers_per_token for layer in self.pages)

    def numbers_per_state(self) -> int:
        """Numbers kept for one sequence in all layers, however long it is."""
        return sum(state.numbers for state in self.states.values())


@dataclass(frozen=True, eq=False)
class Step:
    """Everything a forward pass must know besides its input: the same object for all interpreters.

    Sequence s owns the packed rows starts_S1[s] to starts_S1[s + 1]. It has lengths_S[s] tokens of context once this step is done,
    so its first new token stands at position lengths_S[s] minus its number of rows.
    """

    positions_T: NDArray[np.int32]
    """Position of each packed row in its own sequence."""
    starts_S1: NDArray[np.int32]
    """First row of each sequence, and T at the end."""
    lengths_S: NDArray[np.int32]
    """Tokens of each sequence that are known once this step is done: cached and new."""
    rows_R: NDArray[np.int32]
    """Packed rows whose logits are wanted."""
    pages_SP: NDArray[np.int32] | None = None
    """Page table: page p of sequence s holds positions 32 p to 32 p + 31; unused entries are -1."""
    cache: Any = None
    """The interpreter's own cache planes; None means that every sequence is whole in this step (training, scoring)."""
    answers_T: NDArray[np.bool_] | None = None
    """Packed rows that are tokens of an answer and not of a prompt; None means that none is. What an interpreter rounds may depend on
    this and on nothing else, so that a row's numbers never depend on its neighbours."""
    drawn_R: NDArray[np.bool_] | None = None
    """Wanted rows that a token is drawn from, and not only scored; None means none. It may decide how the head rounds."""
    states_S2: NDArray[np.int32] | None = None
    """The slot that the state of each sequence is read from, and another one that it is written to, so that a step may be repeated. Nothing
    is read, and the slot is -1, where a sequence starts at position 0: its state is zero. None where no layer keeps a state."""
    kept_TD: NDArray[np.float32] | None = None
    """Hidden states of the packed rows, which one forward pass leaves (`Ops.keep`) and another reads (`Ops.kept`); None: nobody does."""


def whole_sequences(lengths: Sequence[int], rows: Sequence[int] | None = None) -> Step:
    """A step without a cache, in which every sequence starts at position 0.

    Args:
        lengths: tokens of each sequence; they lie one after another.
        rows: packed rows whose logits are wanted; all of them by default.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    wanted = np.arange(starts[-1], dtype=np.int32) if rows is None else np.asarray(rows, np.int32)
    return Step(positions, starts, np.asarray(lengths, np.int32), wanted)


class Ops(Protocol):
    """The words. Statistics of norms and the softmax are taken in float32 whatever the dtype of the values."""

    def embed(self, ids_T: Value, table: Weight) -> Value:
        """Rows of a table, [T, D]; the table may be dense or packed."""

    def linear(self, x_TN: Value, weight: Weight) -> Value:
        """x times the transposed weight, plus its bias if it has one: [..., N] and [D, N] give [..., D]."""

    def rms_norm(self, x: Value, weight: Weight, eps: float, plus_one: bool = False) -> Value:
        """x / sqrt(mean(x²) + eps) times the weight (or 1 + weight) over the last axis. arXiv:1910.07467 section 3."""

    def layer_norm(self, x: Value, weight: Weight, eps: float) -> Value:
        """(x - mean) / sqrt(variance + eps) times the weight, plus its bias if it has one, over the last axis."""

    def heads(self, x_TD: Value, size: int) -> Value:
        """A view of [T, H x E] as [T, H, E]."""

    def flat(self, x_THE: Value) -> Value:
        """A view of [T, H, E] as [T, H x E]."""

    def split(self, x: Value, sizes: Sequence[int]) -> tuple[Value, ...]:
        """Views of the last axis, cut into consecutive sizes that add up to it."""

    def rotate(self, x_THE: Value, step: Step, rope: Rope) -> Value:
        """The first `rope.width` dimensions of each head turned by position times frequency. arXiv:2104.09864 section 3.2."""

    def attend(self, q_THE: Value, k_TKE: Value, v_TKE: Value, step: Step, layer: int, scale: float, window: int | None = None) -> Value:
        """Causal grouped-query attention, [T, H, E]. arXiv:2305.13245 section 2.2.

        With a cache, k and v are written to the planes of `layer` first and every sequence reads all its pages. Query head h reads key
        head h // (H / K). With a window, a row at position p sees positions above p - window only.
        """

    def decay_scan(self, q_THE: Value, k_THE: Value, v_THF: Value, decay_H: tuple[float, ...], step: Step, layer: int) -> Value:
        """Linear attention whose memory fades, [T, H, F]: S ← decay S + k vᵀ, then qᵀ S. arXiv:2401.04658 section 3.

        The state S [E, F] of each head is kept in float32 at least, in the slots of `step.states_S2`; its decay, 0 to 1, never changes.
        """

    def delta_scan(self, q_TKE: Value, k_TKE: Value, v_THF: Value, log_decay_TH: Value, share_TH: Value, step: Step, layer: int) -> Value:
        """The gated delta rule, [T, H, F]: S ← exp(log_decay) S, S ← S + k (share (v - Sᵀk))ᵀ, then Sᵀq. arXiv:2412.06464 section 3.1.

        The state is kept as in `decay_scan`. k and q are divided by their lengths first (the root of the sum of squares plus 1e-6), q by
        the root of E as well. Head h reads key head h // (H / K).
        """

    def log_decay(self, a_TH: Value, rate: Weight, bias: Weight) -> Value:
        """-exp(rate) x log(1 + exp(a + bias)), for `delta_scan`; at least in float32. arXiv:2405.21060 section 7.

        Rate and bias have a number for each head.
        """

    def causal_conv(self, x_TC: Value, weight: Weight, step: Step, layer: int) -> Value:
        """y sigmoid(y), where column c of row t of y is the sum over j of x[t - j, c] weight[c, 0, last - j]. arXiv:2312.00752 section 3.4.

        Rows before the first one of a sequence are zero; those before this step are kept in the slots of `step.states_S2`.
        """

    def silu_mul(self, gate: Value, up: Value) -> Value:
        """gate x sigmoid(gate) x up."""

    def gelu(self, x: Value) -> Value:
        """x times the normal distribution function of x (the exact form)."""

    def sigmoid(self, x: Value) -> Value:
        """1 / (1 + exp(-x))."""

    def route(self, x_TD: Value, router: Weight, routing: Routing) -> Value:
        """The experts of each row and their shares, in a form of the interpreter's own, for `experts`.

        The router's weight is [X, D]; its bias, [X] or [1, X], only helps to choose. Logits, scores and shares are taken in float32 at
        least, whatever the dtype of x.
        """

    def experts(self, x_TD: Value, routes: Value, gate_XFD: Weight, up_XFD: Weight, down_XDF: Weight) -> Value:
        """The sum over the experts of a row of share x down(silu(gate(x)) x up(x)), [T, D]. arXiv:2401.06066 section 2."""

    def rows(self, x_TD: Value, step: Step) -> Value:
        """The rows whose logits are wanted, [R, D]."""

    def join(self, x_TN: Value, y_TD: Value) -> Value:
        """The columns of both side by side, [T, N + D]."""

    def keep(self, x_TD: Value, step: Step) -> None:
        """Leave hidden states in `step.kept_TD`, if there is one."""

    def kept(self, width: int, step: Step) -> Value:
        """The hidden states in `step.kept_TD`, [T, width]."""

    def attend_latent(
        self, q_THN: Value, turned_THP: Value, latent_TL: Value, key_TP: Value, up: Weight, step: Step, layer: int, scale: float
    ) -> Value:
        """Causal attention whose keys and values are made from one latent a token, [T, H, E]. arXiv:2405.04434 section 2.1.

        The weight of `up` is [H x (N + E), L], of each head first the rows that make its key of the latent, then those that make its
        value. A query, [q, turned], meets the key [up_key x latent, key]; `turned` and `key`, which all heads share, are rotated. With a
        cache, latent and key are all that is written to it, in this order. Whether keys and values are made (expanded), or up is folded
        into queries and mixtures instead (absorbed), is the interpreter's choice: the numbers are the same.
        """


Forward = Callable[[Value, Step, Ops], Value]
"""A forward pass over ids and a step, to the rows that are wanted; what it computes with otherwise does not change."""
Program = Callable[[NDArray[np.int32], Step], NDArray[np.float32]]
"""A forward pass that is ready to run: ids and a step in, the wanted rows out."""


class Interpreter(Ops, Protocol):
    """The words, and how values come in and go out."""

    name: str
    """"numpy", "native" or "torch"."""

    tells_answers: bool
    """Whether it rounds tokens of answers otherwise than those of prompts; see `Step.answers_T`."""

    def token_bytes(self, spec: CacheSpec) -> int:
        """Memory of one token in the cache, in all layers."""

    def state_bytes(self, spec: CacheSpec) -> int:
        """Memory of one slot for the states of a sequence, in all layers."""

    def take(self, stored: Stored, bias: Stored | None = None, *, exact: bool = False) -> Weight:
        """A stored tensor in the form this interpreter computes with; its module's name loses the ending ".weight".

        Args:
            stored: the tensor.
            bias: added to its products, or to the scores of a router.
            exact: the products decide between near things, so that numbers narrower than float32 may not do.
        """

    def weight_bytes(self, weight: Weight) -> int:
        """Memory that a taken weight occupies, its bias included."""

    def settle(self, passes: Sequence[Forward], release: Callable[[], None] = lambda: None) -> None:
        """Bring the weights that these passes read into their last form; their files may be closed afterwards.

        Args:
            passes: every forward pass that will be compiled.
            release: called now and then: what was read of the files so far may leave memory.
        Raises:
            NoKernel: a weight's number format has no such form here.
            NoMemory: they do not fit.
        """

    def compile(self, forward: Forward, spec: CacheSpec, max_context: int, max_rows: int) -> Program:
        """A forward pass, made ready to run.

        Args:
            forward: as it was settled.
            spec: of the cache that steps will bring.
            max_context: positions of a sequence at most.
            max_rows: packed rows of a step at most.
        Raises:
            NoMemory: its buffers do not fit.
        """

    def new_cache(self, spec: CacheSpec, num_pages: int, num_states: int = 0) -> Any:
        """Planes for `num_pages` pages of `PAGE_TOKENS` tokens, or for `num_states` slots, in every layer; to be put into `Step.cache`.

        Raises:
            NoMemory: the planes do not fit.
        """

    def to_numpy(self, value: Value) -> NDArray[np.float32]:
        """A value as a float32 numpy array."""
