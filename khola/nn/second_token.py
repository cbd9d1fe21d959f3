"""A layer behind the last one that guesses the token after the next one: multi-token prediction, asked for guesses only.

It reads what the last layer leaves of a token, before the final norm, and the embedding of the token behind it. Each is normed, one matrix
takes both, a layer of the decoder's own form looks back at what came before, in a cache plane of its own, and the decoder's own head says
what follows. So the row at position p stands for the tokens up to p + 1, and speaks of the one at p + 2.

Shapes   T packed tokens, R rows whose logits are wanted, D hidden, V vocabulary.
Source   arXiv:2412.19437 section 2.2.
Files    `model.layers.N.` with N behind the last layer. The copies of embedding and head that lie beside it are the decoder's own.
"""

from __future__ import annotations

from typing import Any

import msgspec

from khola.nn.specs import Architecture
from khola.ops.vocabulary import Ops, Step, Value

OWN_NORMS = ("enorm", "hnorm", "shared_head.norm")


def with_layer(c: Any) -> Any:
    """The configuration of a decoder that is one layer longer: its tensors and its cache are those of both."""
    return msgspec.structs.replace(c, num_hidden_layers=c.num_hidden_layers + 1)


def tensors(architecture: Architecture, c: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the decoder and of the layer behind its last one."""
    here, width = f"{architecture.LAYERS}.{c.num_hidden_layers}", c.hidden_size
    own: dict[str, tuple[int, ...]] = {f"{here}.{name}.weight": (width,) for name in OWN_NORMS}
    return architecture.tensors(with_layer(c)) | own | {f"{here}.eh_proj.weight": (width, 2 * width)}


def logits(ids_T: Value, architecture: Architecture, w: Any, c: Any, step: Step, ops: Ops) -> Value:
    """What comes behind the wanted rows, [R, V].

    Args:
        ids_T: of every row the token behind it.
        architecture: of the decoder.
        w: the whole tree.
        c: the decoder's own configuration, without the layer.
        step: as for the tokens that the rows stand for, with the hidden states that were kept of them.
        ops: the interpreter.
    """
    own = w.below(architecture.LAYERS)[c.num_hidden_layers]
    token_TD = ops.rms_norm(architecture.embed(ids_T, w, c, ops), own.enorm, c.rms_norm_eps)
    before_TD = ops.rms_norm(ops.kept(c.hidden_size, step), own.hnorm, c.rms_norm_eps)
    x_TD = ops.linear(ops.join(token_TD, before_TD), own.eh_proj)
    x_TD = architecture.block(x_TD, own, c.num_hidden_layers, step, c, ops)
    return architecture.head(ops.rms_norm(ops.rows(x_TD, step), own.shared_head.norm, c.rms_norm_eps), w, c, ops)
