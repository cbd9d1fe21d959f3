"""The last steps of making a model: its record and model card, its entry in the library, its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from khola.fetch.disk import Disk
from khola.fetch.library import ManifestParent
from khola.lineage.compose import Making, compose, write_beside
from khola.lineage.licence import Verdict
from khola.lineage.record import Record, record_path, write_record
from khola.loader.written import Place, manifest_of, publish
from khola.settings import Settings
from khola.store.recipes import Container


def finish(
    place: Place, container: Container, verdict: Verdict, making: Making, settings: Settings, disk: Disk,
    parents: Sequence[ManifestParent], format_: str, card: str = "",
) -> tuple[Path, Record]:  # fmt: skip
    """Write the record of a model whose draft is whole, and give the draft its place.

    Args:
        parents: as the library keeps them.
        format_: of its weights, a key of `khola.store.recipes.RECIPES`.
        card: of the catalogue, where the model is a published one in another form.
    Returns:
        Its GGUF file or folder, and its record.
    Raises:
        NoDisk, NoRoom: it cannot be written.
        BadLineage: a parent's record is damaged.
    """
    if container == "gguf" and not place.listed:
        record = compose(verdict, making, place.gguf, settings)
        write_record(record_path(place.final), record, disk)
        return publish(place, None, container, disk), record
    record = compose(verdict, making, place.draft, settings)
    write_beside(record, place.draft, disk)
    manifest = manifest_of(place, parents, verdict.licences, format_, card) if place.listed else None
    return publish(place, manifest, container, disk), record
