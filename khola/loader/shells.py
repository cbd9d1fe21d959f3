"""Checkpoints that see as well as read: their text part as a checkpoint of its own, under the names of the lab's text models.

Source   config.json and the tensor names of Qwen/Qwen3.5-27B and -35B-A3B, and of MiniMaxAI/MiniMax-VL-01; transformers `models/qwen3_5`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from khola.errors import BadConfig
from khola.store.stored import StoredTensor, parts_of, some_rows

Tell = Callable[..., None]

STACKED = re.compile(r"(.+\.mlp\.experts)\.(gate_up_proj|down_proj)")
"""All experts of a layer in one tensor; of gate_up_proj, rows of the gate stand before those of up."""


@dataclass(frozen=True)
class Shell:
    """How the checkpoints of one `model_type` wrap a text model."""

    inside: str
    """What the names of the text part begin with."""
    instead: str
    """What they begin with in the lab's text models."""
    seeing: tuple[str, ...]
    """What the names of everything begin with that pictures go through."""


_QWEN = Shell("model.language_model.", "model.", ("model.visual.",))
SHELLS: Mapping[str, Shell] = {
    "qwen3_5": _QWEN,
    "qwen3_5_moe": _QWEN,
    "minimax_vl_01": Shell("language_model.", "", ("vision_tower.", "multi_modal_projector.", "image_newline")),
}


def text_part(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], file: str, tell: Tell
) -> tuple[Mapping[str, Any], Mapping[str, StoredTensor]]:
    """Configuration and tensors of the text part; a checkpoint that is nothing else stays as it is.

    Args:
        config: of the checkpoint.
        tensors: by their names on disk.
        file: named in errors.
        tell: hears what was left out.
    Raises:
        BadConfig: the configuration has no text part.
    """
    shell = SHELLS.get(str(config.get("model_type")))
    if shell is None or ("text_config" not in config and "vision_config" not in config):
        return config, tensors
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise BadConfig("{file}: the configuration lacks {key}", file=file, key="text_config")
    inner = {"tie_word_embeddings": config["tie_word_embeddings"]} if "tie_word_embeddings" in config else {}
    kept = {name: stored for name, stored in tensors.items() if not name.startswith(shell.seeing)}
    tell(
        "{file}: only the text part is read; {count} tensors that pictures go through are left out",
        file=file,
        count=len(tensors) - len(kept),
    )
    named = (
        stored.renamed(shell.instead + name.removeprefix(shell.inside)) if name.startswith(shell.inside) else stored
        for name, stored in kept.items()
    )
    return {**inner, **text}, {one.name: one for stored in named for one in _apart(stored)}


def _apart(stored: StoredTensor) -> Iterator[StoredTensor]:
    """Each expert's matrices by themselves."""
    found = STACKED.fullmatch(stored.name)
    if found is None or len(stored.shape) != 3:
        yield stored
        return
    path, kind = found.groups()
    for expert, part in enumerate(parts_of(stored)):
        here, half = f"{path}.{expert}", part.shape[0] // 2
        if kind == "down_proj":
            yield part.renamed(f"{here}.down_proj.weight")
        else:
            yield some_rows(part, f"{here}.gate_proj.weight", 0, half)
            yield some_rows(part, f"{here}.up_proj.weight", half, 2 * half)
