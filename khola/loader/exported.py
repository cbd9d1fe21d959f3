"""A model's files as the other container has them: GGUF metadata and tensors, or a folder's documents and tensors.

Nothing is computed here: tensors keep their number format, and only names, the order of rows and the form of configuration and vocabulary
change. What the other container cannot say is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from khola.errors import BadTokenizer, MissingTensor, UnsupportedFormat
from khola.loader.gguf_config import gguf_config
from khola.loader.whole_ups import as_stored, with_whole_ups
from khola.models import ALIASES
from khola.models import architecture as architecture_named
from khola.nn.specs import parse_config
from khola.store.gguf import GgufFile, read_gguf
from khola.store.gguf_header import SCALARS
from khola.store.names import DIVISORS, FAMILIES, ROW, checkpoint_name, checkpoint_tensors, config_from_gguf, gguf_name
from khola.store.safetensors import Checkpoint, read_checkpoint
from khola.store.stored import StoredTensor, adjacent_pairs, in_memory, stacked
from khola.tokens import gguf_vocab, json_vocab
from khola.tokens.export import gguf_keys, json_file, settings_files
from khola.tokens.tables import Tables

COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""Files of a checkpoint's folder that go with its weights."""
_LEGAL = ("license", "licence", "notice", "use_policy", "copying")
_CODES = dict(SCALARS.values())


@dataclass(frozen=True, kw_only=True)
class GgufParts:
    """Everything that a GGUF file is written from."""

    metadata: dict[str, Any]
    tensors: tuple[tuple[str, StoredTensor], ...]
    """Names in the lab's checkpoint beside the tensors, which have the names and the order of rows of GGUF."""
    close: Callable[[], None]
    forget: Callable[[], None]
    """Lets the system have back the memory of what was read."""


@dataclass(frozen=True, kw_only=True)
class FolderParts:
    """Everything that a checkpoint's folder is written from."""

    config: dict[str, Any]
    """Of config.json, without `quantization_config`."""
    documents: dict[str, bytes]
    """Files beside config.json and the weights."""
    tensors: tuple[tuple[str, StoredTensor], ...]
    """By their names in the lab's checkpoint, in the order of the source."""
    close: Callable[[], None]
    forget: Callable[[], None]


def as_gguf(path: Path, name: str) -> GgufParts:
    """A GGUF file, or a checkpoint's folder, as GGUF has it.

    Args:
        path: the file or folder.
        name: `general.name` where the source has none.
    Raises:
        BadFiles: the source is damaged, or GGUF has no form for something in it.
    """
    if path.is_dir():
        checkpoint = read_checkpoint(path)
        try:
            return _gguf_of_folder(checkpoint, name)
        except BaseException:
            checkpoint.close()
            raise
    file = read_gguf(path)
    try:
        kind = str(file.metadata.get("general.architecture"))
        named = tuple((checkpoint_name(kind, stored.name) or stored.name, stored) for stored in file.tensors.values())
        return GgufParts(metadata=_exact(file), tensors=named, close=file.close, forget=file.file.release)
    except BaseException:
        file.close()
        raise


def as_folder(path: Path) -> FolderParts:
    """A checkpoint's folder, or a GGUF file, as a folder has it; errors as `as_gguf`."""
    if path.is_dir():
        checkpoint = read_checkpoint(path)
        documents = {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file() and _goes_along(file.name)}
        named = tuple(checkpoint.tensors.items())
        return FolderParts(
            config=checkpoint.config, documents=documents, tensors=named, close=checkpoint.close, forget=lambda: _forget_all(checkpoint)
        )
    file = read_gguf(path)
    try:
        config = config_from_gguf(file.metadata, file.tensors, file=path.name)
        named = tuple((name, as_stored(tensor)) for name, tensor in with_whole_ups(checkpoint_tensors(file)).items())
        documents = _documents(file)
        return FolderParts(config=config, documents=documents, tensors=named, close=file.close, forget=file.file.release)
    except BaseException:
        file.close()
        raise


def _goes_along(name: str) -> bool:
    return name in COMPANIONS or name.lower().startswith(_LEGAL)


def _forget_all(checkpoint: Checkpoint) -> None:
    for file in checkpoint.files:
        file.file.release()


def _exact(file: GgufFile) -> dict[str, Any]:
    """Metadata of a file with each number in its own type, so that writing it gives the same bytes."""
    found: dict[str, Any] = {}
    for key, value in file.metadata.items():
        kind = file.value_types[key]
        number = kind in _CODES and kind != "bool"
        found[key] = np.dtype(_CODES[kind]).type(value) if number else list(value) if kind == "array of string" else value
    return found


def _documents(file: GgufFile) -> dict[str, bytes]:
    """Vocabulary, ends and chat template of a GGUF file as the files of a folder."""
    tables = gguf_vocab.read_vocabulary(file.metadata, file.path.name)
    end = file.metadata.get("tokenizer.ggml.eos_token_id")
    documents = {"tokenizer.json": _json(json_file(tables))}
    documents |= {name: _json(content) for name, content in settings_files(tables, end if isinstance(end, int) else None).items()}
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        documents["chat_template.jinja"] = template.encode()
    return documents


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"


def _gguf_of_folder(checkpoint: Checkpoint, name: str) -> GgufParts:
    if checkpoint.tokenizer_path is None:
        raise BadTokenizer("{folder}: there is no tokenizer.json", folder=checkpoint.folder.name)
    model_type = str(checkpoint.config.get("model_type"))
    architecture = architecture_named(model_type)
    config = parse_config(architecture, checkpoint.config, "config.json")
    family = next((key for key, family in FAMILIES.items() if family.model_type == ALIASES.get(model_type, model_type)), None)
    if family is None:
        raise UnsupportedFormat(
            "{file}: khola writes no GGUF files of the architecture {architecture}", file="config.json", architecture=model_type
        )
    tables = json_vocab.read_vocabulary(checkpoint.tokenizer_path)
    if tables.size > config.vocab_size:
        raise BadTokenizer(
            "{file}: the tokenizer has {found} tokens, but the model's embedding has {expected} rows",
            file=checkpoint.folder.name,
            found=tables.size,
            expected=config.vocab_size,
        )
    keys, divisors = gguf_config(family, config)
    metadata = {"general.architecture": family, "general.type": "model", "general.name": name, **keys}
    metadata |= gguf_keys(tables, config.vocab_size, _end_id(checkpoint, tables))
    if checkpoint.chat_template:
        metadata["tokenizer.chat_template"] = checkpoint.chat_template
    wanted = architecture.tensors(config)
    missing = next((tensor for tensor in wanted if tensor not in checkpoint.tensors), None)
    if missing is not None:
        raise MissingTensor("{file}: tensor {tensor} is missing", file=checkpoint.folder.name, tensor=missing)
    named = _named_for_gguf(family, [checkpoint.tensors[tensor] for tensor in wanted], config)
    if divisors is not None:
        named.append((DIVISORS, in_memory(DIVISORS, divisors)))
    return GgufParts(metadata=metadata, tensors=tuple(named), close=checkpoint.close, forget=lambda: _forget_all(checkpoint))


def _named_for_gguf(family: str, tensors: Iterable[StoredTensor], config: Any) -> list[tuple[str, StoredTensor]]:
    """Tensors as GGUF has them, beside their names in the checkpoint; the experts of a layer are one, a star in its name."""
    together: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        ours = _for_gguf(family, tensor, config)
        together.setdefault(ours.name, []).append(ours)
    named = {name: checkpoint_name(family, name) or name for name in together}
    return [(named[name], stacked(name, parts) if "*" in named[name] else parts[0]) for name, parts in together.items()]


def _for_gguf(family: str, stored: StoredTensor, config: Any) -> StoredTensor:
    """A tensor with its name, and its order of rows, in GGUF."""
    name = gguf_name(family, stored.name)
    if name is None:
        raise UnsupportedFormat("tensor {tensor} has no name in GGUF", tensor=stored.name)
    if FAMILIES[family].adjacent_pairs and ".self_attn.q_proj." in stored.name:
        stored = adjacent_pairs(stored, config.num_attention_heads)
    elif FAMILIES[family].adjacent_pairs and ".self_attn.k_proj." in stored.name:
        stored = adjacent_pairs(stored, config.key_heads)
    if stored.name.endswith(ROW):
        stored = replace(stored, shape=stored.shape[1:])
    return stored.renamed(name)


def _end_id(checkpoint: Checkpoint, tables: Tables) -> int | None:
    """The end that the tokenizer's own settings name."""
    found: Any = checkpoint.tokenizer_config.get("eos_token")
    text = found.get("content") if isinstance(found, Mapping) else found
    return tables.vocab.get(text) if isinstance(text, str) else None
