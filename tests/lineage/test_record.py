"""`lineage.json`: written beside a model, read strictly, chained to its ancestors' records, compared with the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from khola.errors import BadJson, BadLineage, HashMismatch, KholaError, MissingFile, UnknownLicence
from khola.lineage.compose import Making, compose, verify
from khola.lineage.licence import Source, judge
from khola.lineage.record import NAME, Metric, content_hash, read_record, record_beside
from khola.lineage.terms import terms_of
from khola.lineage.tree import drawn, tree_of_record
from tests.lineage.family import DATA, SCORE, Family


def problems(path: Path, kin: Family) -> list[KholaError]:
    """What `verify` finds."""
    return list(verify(path, kin.settings, lambda *_, **__: None))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a record in its file."""
    built = json.loads(path.read_text(encoding="utf-8"))
    change(built)
    path.write_text(json.dumps(built), encoding="utf-8")


def test_a_record_says_everything(kin: Family) -> None:
    record = record_beside(kin.child)
    assert record == kin.records[0] and record is not None
    assert [(parent.name, parent.role, parent.licences) for parent in record.parents] == [
        ("first", "weights", ("MIT",)),
        ("deepseek-v3", "teacher-text", ("deepseek",)),
    ]
    assert [file.path for file in record.parents[0].files] == ["model.safetensors"] and not record.parents[1].files
    assert record.data == (DATA,) and record.seeds == {"data": 7} and record.recipe == {"method": "distil", "rate": 1e-5}
    assert record.licences == ("MIT", "deepseek") and any("military" in sentence for duty in record.duties for sentence in duty.sentences)
    assert record.made_with.khola and record.made_with.python and "numpy" in record.made_with.libraries
    assert {file.path for file in record.files} == {file.name for file in kin.child.iterdir()} - {NAME, "README.md"}
    assert kin.records[1].metrics == (SCORE,) and kin.records[1].ancestors == (record,)


def test_restrictions_reach_the_grandchild(kin: Family) -> None:
    verdict = judge("great-grandchild", [Source(model="grandchild", role="weights")], kin.settings)
    assert verdict.allowed and "deepseek" in verdict.licences and verdict.use_policies
    assert [claim.path for claim in verdict.claims if claim.key == "deepseek"] == [("grandchild", "child", "deepseek-v3")]
    assert terms_of(str(kin.grandchild), kin.settings).record == kin.records[1]


def test_all_is_well(kin: Family) -> None:
    said: list[str] = []
    assert not list(verify(kin.grandchild, kin.settings, lambda text, **facts: said.append(text.format(**facts))))
    assert said == ["grandchild: its parent first is not on this disk and was not compared"]


@pytest.mark.parametrize("victim", ["model.safetensors", "config.json", "LICENSE"])
def test_an_edited_file_is_found(kin: Family, victim: str) -> None:
    raw = bytearray((kin.child / victim).read_bytes())
    raw[-1] ^= 1
    (kin.child / victim).write_bytes(raw)
    assert [type(problem) for problem in problems(kin.child, kin)] == [HashMismatch]
    if victim == "model.safetensors":
        (found,) = problems(kin.grandchild, kin)
        assert isinstance(found, BadLineage) and "not the file that it was made from" in found.told()
    (kin.child / victim).unlink()
    assert [type(problem) for problem in problems(kin.child, kin)] == [MissingFile]


def test_editing_an_ancestor_breaks_its_descendants(kin: Family) -> None:
    """In its own file, in the descendant's, and with its hash made to fit."""

    def freer(built: dict[str, Any]) -> None:
        built["licences"] = ["MIT"]

    edit(kin.child / NAME, freer)
    with pytest.raises(BadLineage, match="was changed after it was written"):
        record_beside(kin.child)
    (found,) = problems(kin.grandchild, kin)
    assert "was changed" in found.told()

    forged = msgspec.structs.replace(kin.records[0], licences=("MIT",))
    forged = msgspec.structs.replace(forged, sha256=content_hash(forged))
    (kin.child / NAME).write_bytes(msgspec.json.encode(forged))
    assert not problems(kin.child, kin), "a forger may seal a record anew, but those below name the old one"
    (found,) = problems(kin.grandchild, kin)
    assert isinstance(found, BadLineage) and kin.records[0].sha256[:16] in found.told()

    edit(kin.grandchild / NAME, lambda built: built.update(ancestors=[msgspec.to_builtins(forged)]))
    with pytest.raises(BadLineage, match="that is not there"):
        record_beside(kin.grandchild)
    edit(kin.grandchild / NAME, lambda built: built["parents"][0].update(record=forged.sha256))
    with pytest.raises(BadLineage, match="the record of grandchild was changed"):
        record_beside(kin.grandchild)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an unknown key": lambda built: built.update(extra=1),
    "a key that is missing": lambda built: built.pop("parents"),
    "another type": lambda built: built.update(name=7),
    "an unknown role": lambda built: built["parents"][0].update(role="uncle"),
    "another version": lambda built: built.update(version=2),
    "a path that leads out": lambda built: built["files"][0].update(path="../x"),
    "a file that stands twice": lambda built: built["files"].append(built["files"][0]),
    "a coefficient": lambda built: built["parents"][0].update(coefficient=0.5),
    "a duty that is gone": lambda built: built["duties"].clear(),
    "a missing hash": lambda built: built.update(sha256=""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_is_read_strictly(kin: Family, change: str) -> None:
    edit(kin.grandchild / NAME, CHANGES[change])
    with pytest.raises(BadLineage):
        read_record(kin.grandchild / NAME)


@pytest.mark.parametrize("text", ["", "{", '{"name": 1, "name": 2}', "[" * 100, "NaN"])
def test_what_is_no_json(kin: Family, text: str) -> None:
    (kin.child / NAME).write_text(text, encoding="utf-8")
    with pytest.raises((BadJson, BadLineage)):
        record_beside(kin.child)


def test_a_single_file_has_its_record_beside_it(kin: Family, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(UnknownLicence):
        terms_of(str(path), kin.settings)
    verdict = judge("out", [Source(model="child", role="weights")], kin.settings)
    record = compose(verdict, Making(how="quantised", recipe={}), path, kin.settings)
    (tmp_path / "out.gguf.lineage.json").write_bytes(msgspec.json.encode(record))
    assert record_beside(path) == record and [file.path for file in record.files] == ["out.gguf"]
    assert not problems(path, kin)


def test_a_tree_names_everyone(kin: Family) -> None:
    lines = [f"{branches}{one.name}" for branches, one in drawn(list(tree_of_record(kin.records[1])))]
    assert lines == ["grandchild", "├─ child", "│  ├─ first", "│  └─ deepseek-v3", "│     └─ deepseek-v3-base", "└─ first"]


@pytest.mark.parametrize(("value", "low", "high"), [(2.0, 0.0, 1.0), (float("nan"), None, None), (1.0, 0.0, float("inf"))])
def test_metrics_that_cannot_be_true(kin: Family, value: float, low: float | None, high: float | None) -> None:
    verdict = judge("child", [Source(model="child", role="weights")], kin.settings)
    with pytest.raises(BadLineage, match="cannot be true"):
        compose(
            verdict,
            Making(how="fine-tuned", recipe={}, metrics=[Metric(name="x", value=value, low=low, high=high)]),
            kin.child,
            kin.settings,
        )
