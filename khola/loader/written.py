"""Writing a model: a draft beside its place, tensor by tensor, which takes its name in one step.

A draft is a hidden folder; what a killed process left of one is removed by the next that makes the same model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from khola.errors import AskedWrong
from khola.fetch.disk import Disk, sha256_of, writing
from khola.fetch.library import VERSION, Manifest, ManifestFile, ManifestParent, write_manifest
from khola.fetch.locks import locked
from khola.fetch.places import model_folder, model_name_from
from khola.loader.exported import FolderParts, GgufParts
from khola.native.probe import usable_cores
from khola.settings import Settings
from khola.store.gguf import write_gguf
from khola.store.grouped import SHARD_BYTES, quantization_config, write_sharded
from khola.store.recipes import Container, Recipe
from khola.store.stored import StoredTensor

CLASSES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM", "glm": "GlmForCausalLM", "glm4": "Glm4ForCausalLM", "ernie4_5": "Ernie4_5ForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM",
}  # fmt: skip
"""What `architectures` of config.json says in the labs' checkpoints, by their `model_type`; GGUF files do not tell it."""
TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
HEADER_BYTES = 32 << 20
"""Room for a header: names, shapes and a vocabulary; the largest published ones take half of it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model will lie."""

    name: str
    final: Path
    """Of the model's folder, or of the file or folder that was asked for."""
    listed: bool
    """In the library."""

    @property
    def draft(self) -> Path:
        """A hidden folder beside it."""
        return self.final.with_name(f".{self.final.name}.part")

    @property
    def gguf(self) -> Path:
        """Of a GGUF file's draft, which has its final name."""
        return self.draft / (f"{self.name}.gguf" if self.listed else self.final.name)


def place_of(name: str, new_name: str, container: Container, output: Path | None, settings: Settings) -> Place:
    """Where a new model will lie.

    Args:
        name: in the library, when neither `new_name` nor `output` says otherwise.
        new_name: what the user calls it; empty when nothing was said.
        output: a GGUF file or a folder to write instead of an entry of the library.
    Raises:
        AskedWrong: something is there already, or a GGUF file would not be called one.
    """
    if output is None:
        called = new_name or name
        place = Place(name=called, final=model_folder(settings.models, called), listed=True)
    elif container == "gguf" and output.suffix.lower() != ".gguf":
        raise AskedWrong("{path}: the name of a GGUF file must end in .gguf", path=str(output))
    else:
        stem = output.stem if container == "gguf" else output.name
        place = Place(name=new_name or model_name_from(stem), final=output.expanduser().absolute(), listed=False)
    if place.final.exists():
        raise AskedWrong("{path} is here already", hint="remove it, or give another name with --name", path=str(place.final))
    return place


@contextmanager
def drafting(place: Place) -> Iterator[Path]:
    """An empty hidden folder to write into, which is gone in the end, however it ends.

    Raises:
        Busy: another process makes the same model.
    """
    with locked(place.draft.with_suffix(".lock")):
        with writing(place.draft):
            shutil.rmtree(place.draft, ignore_errors=True)
            place.draft.mkdir(parents=True)
        try:
            yield place.draft
        finally:
            shutil.rmtree(place.draft, ignore_errors=True)


@contextmanager
def workers(settings: Settings) -> Iterator[Executor]:
    """Threads that make pieces; when something goes wrong they end without the pieces that have not begun."""
    executor = ThreadPoolExecutor(settings.threads or usable_cores())
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def write_parts(
    parts: GgufParts | FolderParts, tensors: Sequence[StoredTensor], place: Place, recipe: Recipe, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a model into its draft.

    Args:
        parts: configuration, vocabulary and the files that go along.
        tensors: in the formats that are to be written, in the order of `parts`.
        shard_bytes: of a safetensors file, at most; a larger checkpoint gets several and an index.
    Raises:
        NoDisk, NoRoom: it cannot be written.
    """
    if isinstance(parts, GgufParts):
        write_gguf(place.gguf, _metadata(parts.metadata, recipe), tensors)
        return
    kinds = [stored.kind for stored in tensors]
    config = dict(parts.config)
    if config.get("model_type") in CLASSES:
        config.setdefault("architectures", [CLASSES[config["model_type"]]])
    if recipe.body in TORCH_NAMES:
        config = {key: value for key, value in config.items() if key != "dtype"} | {"torch_dtype": TORCH_NAMES[recipe.body]}
    if any(kind.startswith("INT") for kind in kinds):
        config["quantization_config"] = quantization_config(kinds)
    documents = parts.documents | {"config.json": json.dumps(config, ensure_ascii=False, indent=1).encode() + b"\n"}
    for name, data in documents.items():
        with writing(place.draft / name):
            (place.draft / name).write_bytes(data)
    write_sharded(place.draft, tensors, {"format": "pt"}, shard_bytes)


def _metadata(found: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The source's keys, without those of an earlier quantisation and with those of this one."""
    kept = {key: value for key, value in found.items() if not key.startswith(("quantize.", "split.")) and key != "general.file_type"}
    return kept | {"general.file_type": np.uint32(recipe.file_type), "general.quantization_version": np.uint32(2)}


def manifest_of(place: Place, parents: Sequence[ManifestParent], licences: tuple[str, ...], format_: str, card: str = "") -> Manifest:
    """The library's record of a model whose draft is whole: its files with their hashes, its parents, its licences."""
    files = [
        ManifestFile(
            path=file.name,
            bytes=file.stat().st_size,
            sha256=sha256_of(file),
            format=format_ if file.suffix in (".gguf", ".safetensors") else "",
        )
        for file in sorted(place.draft.iterdir())
    ]
    return Manifest(
        version=VERSION,
        name=place.name,
        files=tuple(files),
        card=card,
        pulled=datetime.now(UTC).isoformat(timespec="seconds"),
        parents=tuple(parents),
        licences=licences,
    )


def publish(place: Place, record: Manifest | None, container: Container, disk: Disk) -> Path:
    """Give the draft its place in one step; gives the GGUF file, or the folder.

    Args:
        record: for a model of the library; None for one that is written elsewhere.
    """
    if record is not None:
        write_manifest(place.draft, record, disk)
    with writing(place.final):
        disk.replace(place.gguf if container == "gguf" and not place.listed else place.draft, place.final)
    return place.final / place.gguf.name if container == "gguf" and place.listed else place.final
