"""khola's own groups of 64 in safetensors, and a writer that asks for one tensor's bytes at a time.

A matrix [N, K] in int4g64 or int8g64 lies as U8 [N, K / 64, 34] or [N, K / 64, 66]: the groups of a row one after another, each a float16
scale and its codes (`docs/formats.md`). config.json says `"quantization_config": {"quant_method": "khola", "version": 1, ...}`; without
that, such a tensor is just bytes.

Source   safetensors `README.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from khola.errors import AskedWrong, BadConfig
from khola.store.atomic import atomic_file
from khola.store.kinds import KINDS, SAFETENSORS_TYPES, bytes_of
from khola.store.stored import StoredTensor

METHOD = "khola"
VERSION = 1
GROUP = 64
SHARD_BYTES = 5_000_000_000
"""Of a safetensors file, at most, as transformers splits them."""
WEIGHTS = "model.safetensors"
_KINDS_BY_BYTES = {KINDS[kind].bytes: kind for kind in ("INT4G64", "INT8G64")}


def quantization_config(kinds: Sequence[str]) -> dict[str, Any]:
    """What config.json says about a checkpoint with tensors of these formats; `bits` is that of most of them, for people."""
    grouped = [kind for kind in kinds if kind in _KINDS_BY_BYTES.values()]
    bits = 4 if 2 * grouped.count("INT4G64") >= len(grouped) else 8
    return {"quant_method": METHOD, "version": VERSION, "bits": bits, "group": GROUP}


def with_groups(tensors: Mapping[str, StoredTensor], said: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Tensors as their matrices, those in groups of 64 with their own format and shape.

    Args:
        tensors: as the safetensors header describes them.
        said: `quantization_config` of config.json.
    Raises:
        BadConfig: a version or group size that khola does not read.
    """
    for key, expected in (("version", VERSION), ("group", GROUP)):
        if said.get(key) != expected or type(said.get(key)) is not int:
            raise BadConfig(
                "config.json: quantization_config.{key} is {found}; expected {expected}",
                key=key,
                found=repr(said.get(key))[:80],
                expected=expected,
            )
    return {name: _as_matrix(stored) for name, stored in tensors.items()}


def _as_matrix(stored: StoredTensor) -> StoredTensor:
    if stored.kind != "U8" or len(stored.shape) < 3 or stored.shape[-1] not in _KINDS_BY_BYTES:
        return stored
    *rows, groups, size = stored.shape
    return replace(stored, kind=_KINDS_BY_BYTES[size], shape=(*rows, groups * GROUP))


def _entry(stored: StoredTensor) -> tuple[str, tuple[int, ...]]:
    """dtype and shape in the file."""
    if stored.kind in _KINDS_BY_BYTES.values():
        return "U8", (*stored.shape[:-1], stored.shape[-1] // GROUP, KINDS[stored.kind].bytes)
    if stored.kind not in SAFETENSORS_TYPES or stored.scales is not None:
        raise AskedWrong("tensor {tensor}: {kind} has no form in safetensors", tensor=stored.name, kind=stored.kind)
    return stored.kind, stored.shape


def safetensors_header(tensors: Sequence[StoredTensor], metadata: Mapping[str, str]) -> bytes:
    """Everything before the data, length included; the tensors' bytes follow in this order.

    Raises:
        AskedWrong: a number format has no form in safetensors.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for stored in tensors:
        kind, shape = _entry(stored)
        size = bytes_of(kind, shape, file="memory", tensor=stored.name)
        entries[stored.name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def write_tensors(path: Path, tensors: Sequence[StoredTensor], metadata: Mapping[str, str]) -> None:
    """Write stored tensors as one safetensors file in one piece; each one's bytes are asked for once, when their turn comes.

    Wider numbers come first, so that every tensor is aligned to its own width.

    Raises:
        AskedWrong: a number format has no form in safetensors.
        NoDisk: the disk is full.
    """
    order = sorted(tensors, key=lambda stored: (-KINDS[_entry(stored)[0]].bytes, stored.name))
    head = safetensors_header(order, metadata)
    with atomic_file(path) as out:
        out.write(head)
        for stored in order:
            out.write(stored.raw())


def write_sharded(folder: Path, tensors: Sequence[StoredTensor], metadata: Mapping[str, str], shard_bytes: int = SHARD_BYTES) -> None:
    """Write a checkpoint's tensors: one file, or several files and the index that says which tensor lies in which.

    Tensors keep their order over the files; a tensor that is larger than a file may be has one of its own.

    Raises:
        AskedWrong, NoDisk: as `write_tensors`.
    """
    shards: list[list[StoredTensor]] = [[]]
    filled = 0
    for stored in tensors:
        if shards[-1] and filled + stored.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(stored)
        filled += stored.nbytes
    if len(shards) == 1:
        write_tensors(folder / WEIGHTS, tensors, metadata)
        return
    names = [f"model-{place:05}-of-{len(shards):05}.safetensors" for place in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, shard, metadata)
    where = {stored.name: name for name, shard in zip(names, shards, strict=True) for stored in shard}
    index = {"metadata": {"total_size": sum(stored.nbytes for stored in tensors)}, "weight_map": dict(sorted(where.items()))}
    with atomic_file(folder / f"{WEIGHTS}.index.json") as out:
        out.write(json.dumps(index, ensure_ascii=False, indent=1).encode() + b"\n")
