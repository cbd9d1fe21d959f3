"""What a run leaves: the model in the lab's layout and, of adapters, the adapters alone."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from khola.fetch.disk import writing
from khola.loader.written import TORCH_NAMES
from khola.store.atomic import atomic_file, replace_for_good
from khola.store.grouped import write_tensors
from khola.store.safetensors import write_safetensors
from khola.train.config import Lora
from khola.train.model import Trainee


def write_model(model: Trainee, folder: Path, kind: str) -> Path:
    """The whole model, adapters merged: config.json, model.safetensors, tokenizer and chat template.

    Args:
        model: with whole masters.
        folder: takes its name in one step; what was there before goes.
        kind: "BF16", "F32" or "F16".
    Raises:
        NoDisk, NoRoom: it cannot be written.
    """
    raw = {key: value for key, value in model.origin.raw.items() if key not in ("quantization_config", "dtype")}
    config = raw | {"torch_dtype": TORCH_NAMES[kind]}
    with drafted(folder) as draft:
        for name, data in model.origin.documents.items():
            (draft / name).write_bytes(data)
        write_json(draft / "config.json", config)
        write_tensors(draft / "model.safetensors", list(model.exported(kind)), {"format": "pt"})
    return folder


def write_adapters(masters: Mapping[str, Tensor], lora: Lora, base: str, folder: Path) -> Path:
    """The adapters alone, under the names that PEFT gives them; errors as `write_model`."""
    names = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "lora_magnitude": "lora_magnitude_vector"}
    tensors = {}
    for name, master in masters.items():
        path, _, kind = name.rpartition(".")
        tensors[f"base_model.model.{path}.{names[kind]}"] = master.detach().cpu().numpy().astype(np.float32)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.rank, "lora_alpha": lora.alpha,
        "use_rslora": lora.stabilised, "use_dora": lora.dora, "bias": "none", "lora_dropout": 0.0, "inference_mode": True,
        "target_modules": sorted({name.split(".")[-2] for name in masters}),
    }  # fmt: skip
    with drafted(folder) as draft:
        write_json(draft / "adapter_config.json", config)
        write_safetensors(draft / "adapter_model.safetensors", tensors, {"format": "pt"})
    return folder


def write_json(path: Path, value: Any) -> None:
    """One JSON file, in one piece."""
    with atomic_file(path) as out:
        out.write(json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n")


def write_text(path: Path, text: str) -> None:
    """One text file, in one piece."""
    with atomic_file(path) as out:
        out.write(text.encode())


@contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its name when the block ends well."""
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.part")
    with writing(folder):
        try:
            draft.mkdir(parents=True)
            yield draft
            if folder.exists():
                shutil.rmtree(folder)
            replace_for_good(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
