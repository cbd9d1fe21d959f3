"""Adapters merged into the model that they were trained beside; no torch.

File     a folder as PEFT writes it: adapter_config.json, adapter_model.safetensors with `base_model.model.MODULE.lora_A.weight` [R, N],
         `lora_B.weight` [D, R] and, of DoRA, `lora_magnitude_vector` [D].
Formulas W + s B A with s = alpha / R, or alpha / sqrt(R) where it is rank-stabilised: arXiv:2106.09685 section 4.1, arXiv:2312.03732
         section 3; DoRA: m (W + s B A) / |W + s B A| with the length of each row: arXiv:2402.09353 section 4.1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from khola.errors import BadConfig, UnexpectedTensor, UnsupportedFormat, WrongShape
from khola.loader.exported import FolderParts, as_folder
from khola.store.kinds import bytes_of
from khola.store.safetensors import SafetensorsFile, read_safetensors
from khola.store.stored import StoredTensor
from khola.store.strict_json import load_object
from khola.train.merge import encoded

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")
_WANTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "fan_in_fan_out": (False, None), "rank_pattern": ({}, None), "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
}  # fmt: skip
"""What khola reads; anything else would be dropped in silence."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One matrix's adapter."""

    a_RN: Floats
    b_DR: Floats
    scale: float
    magnitude_D: Floats | None = None

    def merged(self, weight_DN: Floats) -> Floats:
        """The adapted matrix [D, N]."""
        found: Floats = weight_DN + np.float32(self.scale) * (self.b_DR @ self.a_RN)
        if self.magnitude_D is not None:
            found *= (self.magnitude_D / np.linalg.norm(found, axis=1))[:, None]
        return found


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """A folder of adapters."""

    by_weight: dict[str, Adapter]
    """By the names of the weights that they change."""
    sha256: str
    """Of the file of tensors."""
    recipe: dict[str, object]


def read_adapters(folder: Path) -> Adapters:
    """The adapters of a folder.

    Raises:
        MissingFile, BadJson: a file is not there or damaged.
        UnsupportedFormat: another kind of adapter, or an option of one that khola does not read.
        BadConfig, UnexpectedTensor, WrongShape: numbers and tensors do not belong together.
    """
    config = load_object(folder / CONFIG)
    for key, allowed in _WANTED.items():
        if config.get(key, allowed[0] if key != "peft_type" else None) not in allowed:
            text = "{file}: {key} is {found}, which khola does not merge"
            raise UnsupportedFormat(text, file=CONFIG, key=key, found=repr(config.get(key))[:80])
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise BadConfig(
            "{file}: r and lora_alpha are {rank} and {alpha}; expected numbers", file=CONFIG, rank=repr(rank), alpha=repr(alpha)
        )
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    with read_safetensors(folder / TENSORS) as file:
        parts = _by_module(file)
        found = {f"{module}.weight": _adapter(module, some, rank, scale, bool(config.get("use_dora"))) for module, some in parts.items()}
    digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    recipe = {"adapters": digest, "rank": rank, "alpha": alpha, "dora": bool(config.get("use_dora")), "matrices": len(found)}
    return Adapters(by_weight=found, sha256=digest, recipe=recipe)


def _by_module(file: SafetensorsFile) -> dict[str, dict[str, Floats]]:
    parts: dict[str, dict[str, Floats]] = {}
    for name, stored in file.tensors.items():
        known = _NAME.fullmatch(name)
        if known is None:
            raise UnexpectedTensor("{file}: tensor {tensor} is no part of an adapter that khola merges", file=TENSORS, tensor=name)
        parts.setdefault(known[1], {})[known[2]] = stored.float32()
    return parts


def _adapter(module: str, parts: dict[str, Floats], rank: int, scale: float, dora: bool) -> Adapter:
    a_RN, b_DR, magnitude_D = parts.get("lora_A"), parts.get("lora_B"), parts.get("lora_magnitude_vector")
    fits = a_RN is not None and b_DR is not None and a_RN.ndim == b_DR.ndim == 2 and len(a_RN) == b_DR.shape[1] == rank
    if a_RN is None or b_DR is None or not fits or (magnitude_D is not None) != dora:
        raise WrongShape(
            "{file}: the parts of {module} do not belong together or are not of rank {rank}", file=TENSORS, module=module, rank=rank
        )
    flat = None if magnitude_D is None else magnitude_D.reshape(-1)
    return Adapter(a_RN=a_RN, b_DR=b_DR, scale=scale, magnitude_D=flat)


@contextmanager
def adapting(base: Path, adapters: Adapters) -> Iterator[FolderParts]:
    """A model with its adapters merged, in float32; a tensor is computed when its bytes are asked for.

    Raises:
        UnexpectedTensor, WrongShape: an adapter belongs to no matrix of this model.
    """
    parts = as_folder(base)
    try:
        shapes = {name: stored.shape for name, stored in parts.tensors}
        for name, one in adapters.by_weight.items():
            expected = (len(one.b_DR), one.a_RN.shape[1])
            if name not in shapes:
                raise UnexpectedTensor("{file}: the model has no matrix {tensor}", file=TENSORS, tensor=name)
            if shapes[name] != expected or (one.magnitude_D is not None and len(one.magnitude_D) != expected[0]):
                text = "{file}: the adapter of {tensor} is for shape {expected}; the model has {found}"
                raise WrongShape(text, file=TENSORS, tensor=name, expected=list(expected), found=list(shapes[name]))

        def lazy(name: str, stored: StoredTensor) -> StoredTensor:
            def load() -> memoryview:
                values = stored.float32()
                parts.forget()
                adapter = adapters.by_weight.get(name)
                return encoded(name, adapter.merged(values) if adapter else values, "F32")

            nbytes = bytes_of("F32", stored.shape, file="memory", tensor=name)
            return StoredTensor(name, stored.shape, "F32", nbytes, load)

        yield replace(parts, tensors=tuple((name, lazy(name, stored)) for name, stored in parts.tensors))
    finally:
        parts.close()
