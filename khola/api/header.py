"""What the headers of model files say: architecture, configuration, tensors, template. No weight is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from khola.cards.card import Card
from khola.cards.catalogue import card as card_named
from khola.cards.catalogue import cards
from khola.cards.formats import FORMATS
from khola.errors import BadConfig, NotPulled, UnknownModel
from khola.fetch.library import Library
from khola.fetch.places import on_disk, path_of
from khola.loader.assemble import FURTHER
from khola.loader.find import find
from khola.loader.interpreter import unheard
from khola.loader.shells import text_part
from khola.models import ALIASES, architecture, architectures
from khola.nn.specs import parse_config
from khola.settings import Settings
from khola.store.gguf import read_gguf
from khola.store.names import as_in_checkpoint, config_from_gguf
from khola.store.safetensors import read_checkpoint, read_safetensors
from khola.store.stored import StoredTensor

COMPANIONS = ("rope_freqs.weight",)
"""Tensors of GGUF files that become part of the configuration."""


@dataclass(frozen=True, kw_only=True)
class KindCount:
    """All tensors of one number format."""

    kind: str
    tensors: int
    weights: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """A model file or a checkpoint's folder, without its weights."""

    path: Path
    container: str
    """"GGUF 3" or "safetensors"."""
    title: str
    """The name that the file gives itself; empty when it gives none."""
    architecture: str
    """Its `model_type`; empty when nothing says."""
    config: dict[str, Any]
    """As config.json has it; of a lone safetensors file without one beside it, empty."""
    kinds: tuple[KindCount, ...]
    """Formats by the bytes they take, the largest first."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of every tensor, by its name in the checkpoint."""
    template: str
    """Source of the chat template in the files; empty without one."""

    @property
    def parameters(self) -> int:
        """Weights in the file; a head that is the embedding counts once or twice, as it is stored."""
        return sum(kind.weights for kind in self.kinds)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(kind.bytes for kind in self.kinds)

    @property
    def format(self) -> str:
        """The format in the file's name, else the one that takes most bytes."""
        named = [name for name in FORMATS if name in self.path.name.lower().replace("-", "_")]
        return max(named, key=len) if named else self.kinds[0].kind.lower() if self.kinds else ""

    @property
    def template_sha256(self) -> str:
        """SHA-256 of the template, which says whether it is a known one; empty without one."""
        return hashlib.sha256(self.template.encode("utf-8", "surrogatepass")).hexdigest() if self.template else ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A file's tensors beside those that an architecture needs."""

    architecture: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Name, expected shape, found shape."""

    @property
    def agrees(self) -> bool:
        """Whether the architecture could compute these weights."""
        return not (self.missing or self.unexpected or self.misshapen)


def header_of(name: str, settings: Settings) -> tuple[Header | None, Card | None]:
    """What is here of a model: the header of its files when they are on this disk, and its card when it has one.

    Args:
        name: a path, a card's name, or a name in the library of this disk.
    Raises:
        UnknownModel: nothing has this name.
        BadFiles: the files are damaged, or of a kind that khola does not read.
    """
    path = path_of(name)
    if path.suffix == ".safetensors":
        return read_header(path), None
    entry = Library(settings).find(name)
    if entry is not None and entry.missing and name.lower() in cards():
        return None, card_named(name)
    try:
        located = find(name, settings)
    except NotPulled:
        return None, card_named(name)
    return read_header(located.path), located.card


def read_header(path: Path) -> Header:
    """Read the headers of a GGUF file, a safetensors file or a checkpoint's folder.

    Raises:
        UnknownModel: there is nothing at this path.
        BadFiles: the file is damaged, or of a kind that khola does not read.
    """
    if on_disk(str(path)) is None:
        raise UnknownModel("there is no file or folder {path}", hint="`khola list` shows the models on this disk", path=str(path)[:400])
    path = path.expanduser()
    if path.is_dir():
        return _of_checkpoint(path)
    return _of_safetensors(path) if path.suffix.lower() == ".safetensors" else _of_gguf(path)


def compare(header: Header, name: str = "") -> Comparison:
    """What an architecture would miss in a file, and what it would not know.

    Args:
        name: of the architecture; by default the file's own.
    Raises:
        UnsupportedFormat: khola has no such architecture.
        BadConfig: the configuration lacks what the architecture needs.
    """
    kind = name or header.architecture
    found = architecture(kind, str(header.path))
    config = {key: value for key, value in header.config.items() if kind == header.architecture or key in found.Config.__struct_fields__}
    needed = found.tensors(parse_config(found, config, str(header.path)))
    shared = {known for known in needed if known in header.shapes}
    tied = {"lm_head.weight"} if header.config.get("tie_word_embeddings") else set()
    return Comparison(
        architecture=kind,
        missing=tuple(known for known in needed if known not in shared),
        unexpected=tuple(known for known in header.shapes if known not in shared and known not in tied and not FURTHER.search(known)),
        misshapen=tuple((known, needed[known], header.shapes[known]) for known in sorted(shared) if needed[known] != header.shapes[known]),
    )


def implemented(model_type: str) -> bool:
    """Whether khola can run this architecture."""
    return ALIASES.get(model_type, model_type) in architectures()


def _of_gguf(path: Path) -> Header:
    with read_gguf(path) as file:
        config = config_from_gguf(file.metadata, file.tensors)
        kind = str(file.metadata["general.architecture"])
        return _header(
            path,
            f"GGUF {file.version}",
            config,
            [one for tensor in file.tensors.values() for one in as_in_checkpoint(kind, tensor) or (tensor,)],
            title=file.metadata.get("general.name"),
            template=file.metadata.get("tokenizer.chat_template"),
        )


def _of_safetensors(path: Path) -> Header:
    if (path.parent / "config.json").is_file():
        return _of_checkpoint(path.parent)
    with read_safetensors(path) as file:
        return _header(path, "safetensors", {}, file.tensors.values())


def _of_checkpoint(folder: Path) -> Header:
    with read_checkpoint(folder) as found:
        config, tensors = text_part(found.config, found.tensors, folder.name, unheard)
        return _header(folder, "safetensors", config, tensors.values(), template=found.chat_template)


def _header(
    path: Path,
    container: str,
    config: Mapping[str, Any],
    tensors: Iterable[StoredTensor],
    *,
    title: Any = None,
    template: Any = None,
) -> Header:
    counts: dict[str, list[int]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        count = counts.setdefault(tensor.kind, [0, 0, 0])
        for place, more in enumerate((1, prod(tensor.shape), tensor.nbytes)):
            count[place] += more
        if tensor.name not in COMPANIONS:
            shapes[tensor.name] = tensor.shape
    kinds = [KindCount(kind=kind, tensors=of[0], weights=of[1], bytes=of[2]) for kind, of in counts.items()]
    kind = config.get("model_type", "")
    if not isinstance(kind, str):
        raise BadConfig("{file}: model_type is {found!r}; expected a name", file=str(path), found=kind)
    return Header(
        path=path,
        container=container,
        title=title if isinstance(title, str) else "",
        architecture=kind,
        config=dict(config),
        kinds=tuple(sorted(kinds, key=lambda kind: (-kind.bytes, kind.kind))),
        shapes=shapes,
        template=template if isinstance(template, str) else "",
    )
