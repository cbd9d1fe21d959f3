"""A model in fewer bits: tensor by tensor from its files to new ones, which the library then knows with their parents and licences.

```
name -> find -> parts in the target's form -> a format for every tensor -> room on the disk? -> draft, tensor by tensor -> its place
```
A draft is a hidden folder beside its place, and takes its name in one step. What a killed process left of one is removed by the next
that makes the same model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from khola.errors import AskedWrong, LicenceForbids
from khola.fetch.disk import Disk, LocalDisk, check_room, existing, sha256_of
from khola.fetch.library import Entry, Library, ManifestParent
from khola.fetch.places import model_name_from
from khola.fetch.progress import Meter, Progress, unheard
from khola.lineage.compose import Making
from khola.lineage.finish import finish
from khola.lineage.licence import judge_form
from khola.lineage.record import Metric
from khola.loader.exported import FolderParts, GgufParts, as_folder, as_gguf
from khola.loader.find import Located, find
from khola.loader.written import HEADER_BYTES, drafting, place_of, workers, write_parts
from khola.settings import Settings
from khola.store.convert import converted
from khola.store.grouped import SHARD_BYTES
from khola.store.recipes import RECIPES, Choice, Container, choose, keep_from, recipe_named
from khola.store.stored import StoredTensor

Say = Callable[..., None]
_FULL = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A model that was written."""

    name: str
    path: Path
    """A GGUF file, or a checkpoint's folder."""
    source: Located
    recipe: str
    kinds: Mapping[str, int]
    """Tensors of each number format, the most frequent first."""
    weights: int
    """Numbers in all tensors."""
    bytes: int
    """Of all tensors."""
    licences: tuple[str, ...]
    """Keys of licences.toml whose duties it inherits."""
    entry: Entry | None
    """None where it was written outside the library."""

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, scales included."""
        return 8 * self.bytes / max(1, self.weights)


def quantise(
    name: str,
    *,
    to: str,
    settings: Settings,
    keep: Sequence[str] = (),
    new_name: str = "",
    output: Path | None = None,
    into: Container | None = None,
    shard_bytes: int = SHARD_BYTES,
    check: Callable[[Path], Sequence[Metric]] | None = None,
    progress: Callable[[Progress], None] | None = None,
    say: Say = unheard,
    disk: Disk | None = None,
) -> Quantised:
    """Write a model in another number format.

    Args:
        name: a path, a card's name, or a name in the library of this disk.
        to: a key of `khola.store.recipes.RECIPES`.
        keep: "REGEX=FORMAT": the format of tensors whose names in the lab's checkpoint the pattern finds.
        new_name: in the library; by default the source's name and the format.
        output: a GGUF file or a folder to write instead of an entry of the library.
        into: "gguf" or "safetensors"; by default what the format is made for, or what the source is.
        shard_bytes: of a safetensors file, at most.
        check: looks at the new file or folder before it gets its place, and may refuse it; what it measured is recorded.
        progress: hears how many bytes are made.
        say: hears what is unusual: a source that lost precision before, tensors that another format takes.
        disk: asked for free room.
    Raises:
        UnknownModel, NotPulled: the name leads to no files here.
        UnknownOption: there is no such format, or a pattern that finds nothing.
        AskedWrong: something of that name is here already.
        BadFiles: the source is damaged, or cannot be said in the target's form.
        NoDisk: there is no room; checked before the first byte.
        Busy: another process makes the same model.
    """
    recipe, disk = recipe_named(to), disk or LocalDisk()
    located = find(name, settings)
    container: Container = into or recipe.container or ("safetensors" if located.path.is_dir() else "gguf")
    if recipe.container not in (None, container):
        raise AskedWrong("{format} is no format of {container} files", format=to, container=container)
    keeps = [keep_from(text, container) for text in keep]
    place = place_of(_name(located, to), new_name, container, output, settings)
    verdict = judge_form(place.name, name, settings)
    for refusal in verdict.refusals:
        if isinstance(refusal, LicenceForbids):
            say("warning: {reason}", reason=refusal.told(settings.language))
    parts = as_gguf(located.path, place.name) if container == "gguf" else as_folder(located.path)
    with closing(_Closing(parts.close)), drafting(place), workers(settings) as executor:
        choice = choose(recipe, {tensor: stored.shape for tensor, stored in parts.tensors}, keeps)
        _tell(located.name, parts.tensors, choice, say)
        meter = Meter(file=place.name, tell=progress)
        tensors = [_counted(converted(stored, choice.kinds[tensor], executor, count=meter.add), parts) for tensor, stored in parts.tensors]
        total = sum(stored.nbytes for stored in tensors)
        check_room(disk, existing(place.final.parent), total + HEADER_BYTES)
        meter.start("quantise", 0, total)
        write_parts(parts, tensors, place, recipe, shard_bytes)
        meter.end()
        kinds = dict(Counter(choice.kinds.values()).most_common())
        measured = check(place.gguf if container == "gguf" else place.draft) if check else ()
        recipe_said = {"to": to, "keep": list(keep), "kinds": kinds}
        making = Making(how="quantised", recipe=recipe_said, architecture=_architecture(parts), metrics=measured)
        card = located.card.name if located.card else ""
        path, record = finish(place, container, verdict, making, settings, disk, [_parent(located, parts.tensors)], to, card)
    return Quantised(
        name=place.name,
        path=path,
        source=located,
        recipe=to,
        kinds=kinds,
        weights=sum(prod(stored.shape) for stored in tensors),
        bytes=total,
        licences=record.licences,
        entry=Library(settings, disk).find(place.name) if place.listed else None,
    )


class _Closing:
    """Something to close, for `closing`."""

    def __init__(self, close: Callable[[], None]) -> None:
        self.close = close


def _name(located: Located, to: str) -> str:
    """The new model's name: the source's, without the format that it may end in, and the format."""
    base = re.sub(rf"[-._]({'|'.join(RECIPES)})$", "", model_name_from(located.name))
    return f"{base}-{to.lower().replace('-', '_')}"


def _tell(name: str, tensors: Sequence[tuple[str, StoredTensor]], choice: Choice, say: Say) -> None:
    """Say what a user should know before it is done."""
    lossy = {stored.kind for tensor, stored in tensors if len(stored.shape) > 1 and stored.kind not in (*_FULL, choice.kinds[tensor])}
    if lossy:
        say(
            "warning: {name} is quantised already ({kinds}): what that lost does not come back, and this adds its own loss",
            name=name,
            kinds=", ".join(sorted(kind.lower() for kind in lossy)),
        )
    for (wanted, given), count in Counter(choice.instead.values()).items():
        say(
            "matrices whose rows are no whole {wanted} blocks get {given}: {count}",
            count=count,
            given=given.lower(),
            wanted=wanted.lower(),
        )


def _counted(stored: StoredTensor, parts: GgufParts | FolderParts) -> StoredTensor:
    """The tensor, whose source is given back to the system when its bytes are made."""

    def load() -> memoryview:
        data = stored.load()
        parts.forget()
        return data

    return replace(stored, load=load)


def _architecture(parts: GgufParts | FolderParts) -> str:
    """What the container calls it."""
    return str(parts.metadata.get("general.architecture", "") if isinstance(parts, GgufParts) else parts.config.get("model_type", ""))


def _parent(located: Located, tensors: Sequence[tuple[str, StoredTensor]]) -> ManifestParent:
    """The source, as the record of the new model names it."""
    formats = Counter(stored.kind.lower() for _, stored in tensors if len(stored.shape) > 1).most_common()
    return ManifestParent(
        name=located.name,
        how="quantised",
        format=", ".join(kind for kind, _ in formats),
        sha256=sha256_of(located.path) if located.path.is_file() else "",
    )
