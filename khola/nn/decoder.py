"""A decoder is its embedding, its blocks in order, its norm and its head.

Shapes   T packed tokens, R rows whose logits are wanted, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from khola.nn.specs import Architecture
from khola.ops.vocabulary import Ops, Step, Value


def hidden(ids_T: Value, architecture: Architecture, w: Any, c: Any, step: Step, ops: Ops, keep: bool = False) -> Value:
    """Normed hidden states of the wanted rows, [R, D]; `keep` leaves those of all rows in the step as the last block gives them."""
    x_TD = architecture.embed(ids_T, w, c, ops)
    layers = w.below(architecture.LAYERS)
    for layer in range(c.num_hidden_layers):
        x_TD = architecture.block(x_TD, layers[layer], layer, step, c, ops)
    if keep:
        ops.keep(x_TD, step)
    return architecture.norm(ops.rows(x_TD, step), w, c, ops)


def logits(ids_T: Value, architecture: Architecture, w: Any, c: Any, step: Step, ops: Ops, keep: bool = False) -> Value:
    """Logits of the wanted rows, [R, V]; see `hidden`."""
    return architecture.head(hidden(ids_T, architecture, w, c, step, ops, keep), w, c, ops)
