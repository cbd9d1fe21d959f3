"""Lightning attention: linear attention whose memory fades at a rate of its own in every head, behind a norm and a gate.

Shapes   T packed rows, D hidden, H heads, E head size.
Source   MiniMax-01, arXiv:2501.08313 section 2.2; Lightning Attention-2, arXiv:2401.04658 section 3; the fading of heads and layers,
         arXiv:2307.14995 section 3.2, and `modeling_minimax_text_01.py` in the lab's repository.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from khola.nn.pairs import Grouped, Moved
from khola.ops.vocabulary import Ops, StateCache, Step, Value

NORM_EPS = 1e-6
"""Epsilon of the norm on what all heads read together, whatever the configuration says of the others."""


class Lightning(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer of lightning attention is, besides its weights."""

    hidden: int
    heads: int
    head_size: int
    decay: tuple[float, ...]
    """What the state of each head is multiplied by at every token."""

    @property
    def width(self) -> int:
        """Of all heads together."""
        return self.heads * self.head_size

    @property
    def cache(self) -> StateCache:
        """What the layer keeps of a sequence."""
        return StateCache(self.heads, self.head_size, self.head_size)


def lightning(x_TD: Value, w: Any, step: Step, layer: int, a: Lightning, ops: Ops) -> Value:
    """Project, add to the state and read it, norm, gate, project back: [T, D] to [T, D].

    Args:
        x_TD: normed hidden states.
        w: a subtree with qkv_proj (rows of q, of k, then of v), norm, output_gate and out_proj.
        step: segments and state slots of this step.
        layer: index of the state.
        a: sizes and decay.
        ops: the interpreter.
    """
    qkv_TD = ops.linear(x_TD, w.qkv_proj)
    q_THE, k_THE, v_THE = (ops.heads(part, a.head_size) for part in ops.split(ops.sigmoid(qkv_TD) * qkv_TD, (a.width,) * 3))
    read_TD = ops.rms_norm(ops.flat(ops.decay_scan(q_THE, k_THE, v_THE, a.decay, step, layer)), w.norm, NORM_EPS)
    return ops.linear(ops.sigmoid(ops.linear(x_TD, w.output_gate)) * read_TD, w.out_proj)


def lightning_tensors(prefix: str, a: Lightning) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's tensors; `prefix` ends with a dot."""
    return {
        f"{prefix}qkv_proj.weight": (3 * a.width, a.hidden),
        f"{prefix}output_gate.weight": (a.width, a.hidden),
        f"{prefix}out_proj.weight": (a.hidden, a.width),
        f"{prefix}norm.weight": (a.width,),
    }


def lightning_rows(prefix: str, a: Lightning) -> dict[str, Moved]:
    """Tensors whose rows are moved: the checkpoint has q, k and v of each head one after another; `prefix` ends with a dot."""
    return {f"{prefix}qkv_proj.weight": Grouped((a.head_size,) * 3)}


def decays(heads: int, layer: int, layers: int) -> tuple[float, ...]:
    """What the state of each head is multiplied by at every token: the later a head, the slower it fades, and the later a layer.

    Args:
        heads: of the layer.
        layer: among all layers, whatever they mix with.
        layers: of the model.
    """
    rate = 1 - layer / max(layers - 1, 1) + 1e-5
    return tuple(math.exp(-slope * rate) for slope in slopes(heads))


def slopes(heads: int) -> list[float]:
    """How fast heads fade in the first layer: 2^(-8 (h + 1) / heads) for powers of two, and between those for others. arXiv:2108.12409."""
    power = 1 << (heads.bit_length() - 1)
    found = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return found if power == heads else found + slopes(2 * power)[::2][: heads - power]
