"""A model as others read it: a folder in the lab's layout or a GGUF file, adapters merged, and a round trip before it is done."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from khola.api.quantise import Quantised, quantise
from khola.errors import AskedWrong
from khola.fetch.disk import LocalDisk, existing
from khola.fetch.places import model_name_from
from khola.fetch.progress import Progress, unheard
from khola.lineage.compose import Making
from khola.lineage.licence import judge_form
from khola.lineage.record import Metric
from khola.loader.exported import as_folder
from khola.loader.find import find
from khola.loader.written import Place
from khola.settings import Settings
from khola.store.grouped import SHARD_BYTES
from khola.store.recipes import Container
from khola.train.adapters import adapting, read_adapters
from khola.train.gate import Gate, gate
from khola.train.made import write_made

FULL = ("F32", "BF16", "F16")
HOLDS = {"F32": ("F32", "BF16", "F16"), "BF16": ("BF16",), "F16": ("F16",)}
"""Formats whose every number a format has."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model that was written, and how it compared with its source; no gate where none was asked for."""

    made: Quantised
    gate: Gate | None


def export(
    model: str,
    *,
    into: Container,
    settings: Settings,
    to: str = "",
    adapter: Path | None = None,
    name: str = "",
    output: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    interpreter: str = "numpy",
    gated: bool = True,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[..., None] = unheard,
) -> Exported:
    """Write a model for other programs.

    Args:
        model: a path, or a name in the library.
        into: a folder of safetensors with configuration and tokenizer, or a GGUF file.
        to: a key of `khola.store.recipes.RECIPES`; by default the source's own full format, or bf16.
        adapter: a folder of adapters, which are merged into the model first.
        name, output: what to call it in the library, or the file or folder to write instead.
        interpreter: what computes the round trip.
        gated: whether the new file has to go on as its source did before it gets its place.
    Raises:
        BadFiles: the source or the adapters are damaged, the container cannot say something, or the round trip fails.
        AskedWrong, NoDisk, Busy: see `khola.api.quantise.quantise`.
    """
    located = find(model, settings)
    with ExitStack() as closing:
        source = located.path
        if adapter is not None:
            root = existing(settings.models)
            source = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix=".export-", dir=root))) / model_name_from(located.name)
            _merge_adapters(model, located.path, adapter, source, settings, progress)
        kinds = _matrices(source)
        to = to or (next(iter(kinds)).lower() if len(kinds) == 1 and kinds <= set(FULL) and adapter is None else "bf16")
        lossless = to.upper() in HOLDS and kinds <= set(HOLDS[to.upper()])
        found: list[Gate] = []

        def check(draft: Path) -> Sequence[Metric]:
            if gated:
                found.append(gate(source, draft, settings=settings, lossless=lossless, interpreter=interpreter, say=say))
            return found[0].metrics() if found else ()

        if adapter is not None and not (name or output):
            raise AskedWrong("the new model needs a name", hint="give --name NAME or --output FOLDER")
        made = quantise(
            str(source) if adapter is not None else model, to=to, settings=settings, new_name=name, output=output, into=into,
            shard_bytes=shard_bytes, progress=progress, say=say, check=check,
        )  # fmt: skip
    return Exported(made=made, gate=found[0] if found else None)


def _matrices(path: Path) -> set[str]:
    """Number formats of a model's matrices."""
    parts = as_folder(path)
    try:
        return {stored.kind for _, stored in parts.tensors if len(stored.shape) > 1}
    finally:
        parts.close()


def _merge_adapters(
    model: str, base: Path, adapter: Path, folder: Path, settings: Settings, progress: Callable[[Progress], None] | None
) -> None:  # fmt: skip
    """Write the model with its adapters as a folder of its own, in float32, with a record that names the adapters."""
    adapters = read_adapters(adapter)
    name = f"{folder.name}-adapted"
    verdict = judge_form(name, model, settings)
    with adapting(base, adapters) as parts:
        making = Making(how="fine-tuned", recipe=adapters.recipe, architecture=str(parts.config.get("model_type", "")))
        place = Place(name=name, final=folder, listed=False)
        write_made(place, parts, verdict, making, settings=settings, shard_bytes=SHARD_BYTES, progress=progress, disk=LocalDisk())
