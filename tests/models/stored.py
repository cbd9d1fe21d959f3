"""Stored tensors made from arrays, for tests that need no file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from khola.loader.assemble import CORRECTION


class Plain:
    """A float32 array under a name."""

    kind = "F32"

    def __init__(self, name: str, values: Any) -> None:
        self.name = name
        self._values = np.ascontiguousarray(values, np.float32)
        self.shape: tuple[int, ...] = self._values.shape

    def float32(self) -> NDArray[np.float32]:
        """The array itself."""
        return self._values

    def raw(self) -> memoryview:
        """Its bytes."""
        return memoryview(self._values).cast("B")


class Quantised:
    """An array in blocks of a GGUF type, made and read by the `gguf` package."""

    def __init__(self, name: str, values: NDArray[np.float32], kind: str) -> None:
        import gguf

        self._type = gguf.GGMLQuantizationType[kind]
        self._bytes = gguf.quantize(np.asarray(values, np.float32), self._type)
        self.name, self.kind, self.shape = name, kind, values.shape

    def float32(self) -> NDArray[np.float32]:
        """The values, dequantised."""
        import gguf

        return np.asarray(gguf.dequantize(self._bytes, self._type), np.float32).reshape(self.shape)

    def raw(self) -> memoryview:
        """The blocks."""
        return memoryview(self._bytes).cast("B")


def stored(arrays: Mapping[str, Any]) -> dict[str, Plain]:
    """A checkpoint in memory."""
    return {name: Plain(name, values) for name, values in arrays.items()}


def kept_tensors(model: Any) -> list[tuple[str, Any]]:
    """A reference's tensors that an architecture reads; corrections of routers are no parameters there."""
    return [*model.named_parameters(), *((name, buffer) for name, buffer in model.named_buffers() if CORRECTION.fullmatch(name))]


def as_on_disk(tensors: Iterable[tuple[str, Any]], rename: Callable[[str], str]) -> dict[str, Any]:
    """A reference's tensors by their names in checkpoints, as views: its library keeps all experts of a layer in two tensors."""
    found: dict[str, Any] = {}
    for name, tensor in tensors:
        path, _, kind = name.rpartition(".")
        if not path.endswith(".experts"):
            found[rename(name)] = tensor
            continue
        for expert, values in enumerate(tensor):
            parts = zip(("gate_proj", "up_proj"), values.chunk(2), strict=True) if kind == "gate_up_proj" else [(kind, values)]
            found |= {rename(f"{path}.{expert}.{part}.weight"): rows for part, rows in parts}
    return found
