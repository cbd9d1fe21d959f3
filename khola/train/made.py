"""From names to a merged model in its place: licences first, then files, then tensor by tensor, then its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from khola.errors import AskedWrong
from khola.fetch.disk import Disk, LocalDisk, check_room, existing
from khola.fetch.library import ManifestParent
from khola.fetch.progress import Meter, Progress, unheard
from khola.lineage.compose import Making
from khola.lineage.finish import finish
from khola.lineage.licence import Source, Verdict, judge
from khola.lineage.record import Record
from khola.loader.exported import FolderParts
from khola.loader.find import find
from khola.loader.written import HEADER_BYTES, Place, drafting, place_of, write_parts
from khola.settings import Settings
from khola.store.convert import counted
from khola.store.grouped import SHARD_BYTES
from khola.store.recipes import recipe_named
from khola.train.merge import FULL, Plan, checked, merging


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model that was written."""

    name: str
    path: Path
    """A checkpoint's folder."""
    kind: str
    """Number format of its tensors."""
    tensors: int
    bytes: int
    verdict: Verdict
    record: Record


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be merged into what."""

    plan: Plan
    base: str = ""
    """Of methods that add differences to one."""
    name: str = ""
    """What to call it in the library; one of this and `output`."""
    output: Path | None = None
    """The folder to write instead."""
    kind: str = ""
    """"f32", "bf16" or "f16"; see `khola.train.merge.merging`."""
    licences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What the user says of models that khola does not know, by their names as in the order."""
    shard_bytes: int = SHARD_BYTES


def merge(
    models: Sequence[str],
    order: Order,
    *,
    settings: Settings,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[..., None] = unheard,
    disk: Disk | None = None,
) -> Made:
    """Merge models that are on this disk into a checkpoint's folder.

    Args:
        models: paths, or names in the library; one for each coefficient of the plan.
        progress: hears how many bytes are made.
        say: hears what is unusual.
    Raises:
        LicenceForbids, UnknownLicence: a licence forbids it, its name included; asked before anything is read.
        AskedWrong, BadFiles: see `khola.train.merge.merging`.
        NoDisk: there is no room; checked before the first byte.
        Busy: another process makes the same model.
    """
    plan, base, name, output, kind, said = order.plan, order.base, order.name, order.output, order.kind, order.licences
    checked(plan, len(models), bool(base))
    if not (name or output):
        raise AskedWrong("the new model needs a name", hint="give --name NAME or --output FOLDER")
    if kind and kind.upper() not in FULL:
        raise AskedWrong("there is no format {kind!r} for a merge; expected one of {known}", kind=kind, known=", ".join(FULL).lower())
    place = place_of(name, name, "safetensors", output, settings)
    sources = [
        *([Source(model=base, role="weights", licences=said.get(base, ()))] if base else []),
        *(
            Source(model=model, role="merge-term", coefficient=coefficient, licences=said.get(model, ()))
            for model, coefficient in zip(models, plan.coefficients, strict=True)
        ),
    ]
    verdict = judge(place.name, sources, settings)
    verdict.enforce()
    paths = [find(model, settings).path for model in models]
    with merging(paths, plan, find(base, settings).path if base else None, kind.upper(), say) as parts:
        seeds = {"drop": plan.seed} if "dare" in plan.method else {}
        making = Making(how="merged", recipe=plan.recipe(), seeds=seeds, architecture=str(parts.config.get("model_type", "")))
        return write_made(
            place, parts, verdict, making, settings=settings, shard_bytes=order.shard_bytes, progress=progress, disk=disk or LocalDisk()
        )


def write_made(
    place: Place, parts: FolderParts, verdict: Verdict, making: Making, *, settings: Settings, shard_bytes: int,
    progress: Callable[[Progress], None] | None, disk: Disk,
) -> Made:  # fmt: skip
    """Write a folder whose tensors are computed as their turn comes, with its record; errors as `merge`."""
    meter = Meter(file=place.name, tell=progress)
    tensors = [counted(stored, meter.add) for _, stored in parts.tensors]
    total = sum(stored.nbytes for stored in tensors)
    kind = tensors[0].kind
    with drafting(place):
        check_room(disk, existing(place.final.parent), total + HEADER_BYTES)
        meter.start("merge", 0, total)
        write_parts(parts, tensors, place, recipe_named(kind), shard_bytes)
        meter.end()
        parents = [ManifestParent(name=terms.name, how=making.how) for _, terms in verdict.sources]
        path, record = finish(place, "safetensors", verdict, making, settings, disk, parents, kind.lower())
    return Made(
        name=place.name, path=path, kind=kind.lower(), tensors=len(tensors), bytes=total, verdict=verdict, record=record
    )  # fmt: skip
