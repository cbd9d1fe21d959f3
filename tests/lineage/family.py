"""A family of three small models on a disk: a grandparent without a record, a child and a grandchild with theirs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from khola.lineage.compose import Making, compose, write_beside
from khola.lineage.licence import Source, judge
from khola.lineage.record import DataSet, Metric, Record
from khola.settings import Settings
from tests.api.small_models import folder_model, settings_in

DATA = DataSet(name="own rows", sha256="ab" * 32, licence="own", rows=120, source="rows.jsonl")
SCORE = Metric(name="held-out bits per byte", value=1.25, low=1.2, high=1.31, samples=640, unit="bits")


@dataclass(frozen=True)
class Family:
    """Where they lie, and what was recorded."""

    settings: Settings
    first: Path
    child: Path
    grandchild: Path
    records: tuple[Record, Record]


def family(home: Path) -> Family:
    """The three, the child taught by a published model, the grandchild merged from the child and its parent."""
    settings = settings_in(home)
    first = folder_model(home / "first")
    child, grandchild = folder_model(settings.models / "child"), folder_model(settings.models / "grandchild")
    base = Source(model=str(first), role="weights", licences=("MIT",))
    teacher = Source(model="deepseek-v3", role="teacher-text")
    verdict = judge("child", [base, teacher], settings, {DATA.name: DATA.licence})
    making = Making(how="distilled", recipe={"method": "distil", "rate": 1e-5}, architecture="llama", seeds={"data": 7}, data=[DATA])
    one = compose(verdict, making, child, settings)
    write_beside(one, child)
    terms = [
        Source(model="child", role="merge-term", coefficient=0.75),
        Source(model=str(first), role="merge-term", coefficient=0.25, licences=("MIT",)),
    ]
    two = compose(judge("grandchild", terms, settings), Making(how="merged", recipe={}, metrics=[SCORE]), grandchild, settings)
    write_beside(two, grandchild)
    return Family(settings, first, child, grandchild, (one, two))
