"""The matrix that makes keys and values of latents, whole, wherever a GGUF file holds its two parts apart."""

from __future__ import annotations

from collections.abc import Mapping

from khola.ops.latent import TwoUps
from khola.ops.vocabulary import Stored
from khola.store.names import KEYS_UP, VALUES_UP
from khola.store.stored import StoredTensor

WHOLE = "self_attn.kv_b_proj"


def with_whole_ups(tensors: Mapping[str, StoredTensor]) -> dict[str, Stored]:
    """The tensors of a checkpoint, where the parts of a layer's matrix are one; a part without the other stays what it is."""
    found: dict[str, Stored] = dict(tensors)
    for name in tensors:
        other, whole = (name.replace(KEYS_UP, new) for new in (VALUES_UP, WHOLE))
        if KEYS_UP in name and other in tensors and len(tensors[name].shape) == len(tensors[other].shape) == 3:
            found[whole] = TwoUps(whole, found.pop(name), found.pop(other))
    return found


def as_stored(tensor: Stored) -> StoredTensor:
    """A tensor that can be written to a file: as it lies in its own, or in float32 if it was made of two."""
    if isinstance(tensor, StoredTensor):
        return tensor
    size = 4
    for length in tensor.shape:
        size *= length
    return StoredTensor(tensor.name, tensor.shape, tensor.kind, size, tensor.raw)
