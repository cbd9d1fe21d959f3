"""Knows: architectures, one file each, in the checkpoint's own names.

Does not know: files, caches, sampling and training.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import cast

from khola.errors import UnsupportedFormat
from khola.models import text
from khola.nn.specs import FILE, Architecture

ALIASES: Mapping[str, str] = {
    "kimi_k2": "deepseek_v3",
    "minimax_text_01": "minimax",
    "qwen3_5_text": "qwen3_5",
    "qwen3_5_moe_text": "qwen3_5",
}
"""Values of `model_type` that mean an architecture whose file has another name."""


def architectures() -> tuple[str, ...]:
    """Names of all text architectures: the files of `khola.models.text`."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(text.__path__)))


def architecture(model_type: str, file: str = FILE) -> Architecture:
    """The architecture of a checkpoint.

    Args:
        model_type: the key of that name in config.json.
        file: named in errors.
    Raises:
        UnsupportedFormat: khola has no such architecture; the nearest names are in the hint.
    """
    name = ALIASES.get(model_type, model_type)
    known = architectures()
    if name not in known:
        near = difflib.get_close_matches(model_type, (*known, *ALIASES), n=3, cutoff=0.4) or known
        raise UnsupportedFormat(
            "{file}: khola does not know the architecture {model_type!r}",
            hint="the nearest ones are: {near}",
            file=file,
            model_type=model_type[:80],
            near=", ".join(near),
        )
    return cast(Architecture, importlib.import_module(f"khola.models.text.{name}"))
