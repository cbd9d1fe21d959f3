"""What other tools read of a record: SPDX 3, CycloneDX 1.7, model cards. Their own schemas were run over these by hand."""

from __future__ import annotations

import json
import re
from typing import Any

from khola.lineage.bills import cyclonedx, spdx
from khola.lineage.model_card import front_matter, model_card
from tests.lineage.family import Family


def graph(kin: Family) -> dict[str, list[dict[str, Any]]]:
    """Elements of the child's SPDX document by their types."""
    found: dict[str, list[dict[str, Any]]] = {}
    for element in spdx(kin.records[0])["@graph"]:
        found.setdefault(element["type"], []).append(element)
    return found


def test_spdx_names_parents_teachers_and_data(kin: Family) -> None:
    found = graph(kin)
    model, base, teacher = found["ai_AIPackage"]
    (data,) = found["dataset_DatasetPackage"]
    relations = {(one["from"], one["relationshipType"], *one["to"]) for one in found["Relationship"]}
    assert (model["spdxId"], "descendantOf", base["spdxId"]) in relations and (model["spdxId"], "trainedOn", data["spdxId"]) in relations
    assert (model["spdxId"], "dependsOn", teacher["spdxId"]) in relations
    assert found["Annotation"][0]["statement"] == "deepseek-v3: teacher-text"
    assert {"key": "seed.data", "value": "7", "type": "DictionaryEntry"} in model["ai_hyperparameter"]
    for package in (model, base, teacher, data):
        for kind in ("hasDeclaredLicense", "hasConcludedLicense"):
            assert len([1 for first, said, _ in relations if (first, said) == (package["spdxId"], kind)]) == 1


def test_spdx_holds_together(kin: Family) -> None:
    built = spdx(kin.records[0])
    known = [element["spdxId"] for element in built["@graph"] if "spdxId" in element]
    assert len(set(known)) == len(known)
    (document,) = (element for element in built["@graph"] if element["type"] == "SpdxDocument")
    assert set(document["element"]) | {document["spdxId"]} == set(known)
    assert all(
        one in known for element in built["@graph"] if element["type"] == "Relationship" for one in (element["from"], *element["to"])
    )
    expressions = {e["simplelicensing_licenseExpression"] for e in built["@graph"] if e["type"] == "simplelicensing_LicenseExpression"}
    assert expressions == {"MIT", "LicenseRef-deepseek", "MIT AND LicenseRef-deepseek", "LicenseRef-own"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", built["@graph"][0]["created"])


def test_cyclonedx_has_pedigree_and_card(kin: Family) -> None:
    built = cyclonedx(kin.records[1])
    model = built["metadata"]["component"]
    assert built["specVersion"] == "1.7" and model["type"] == "machine-learning-model"
    assert [one["name"] for one in model["pedigree"]["ancestors"]] == ["child", "first"]
    assert "child: merge-term, coefficient 0.75" in model["pedigree"]["notes"]
    (measure,) = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert measure["confidenceInterval"] == {"lowerBound": "1.2", "upperBound": "1.31"}
    assert any("military" in text for text in model["modelCard"]["considerations"]["technicalLimitations"])
    hashes = [part["hashes"][0]["content"] for part in model["components"]]
    assert hashes == [file.sha256 for file in kin.records[1].files]
    assert cyclonedx(kin.records[0])["components"][0]["name"] == "own rows"
    assert cyclonedx(kin.records[1])["serialNumber"] == built["serialNumber"]


def test_front_matter_is_what_hubs_read(kin: Family) -> None:
    child, grandchild = map(front_matter, kin.records)
    assert child["base_model"] == ["first"] and child["base_model_relation"] == "finetune"
    assert "distilled-from:deepseek-ai/DeepSeek-V3" in child["tags"] and child["license"] == "other" and child["datasets"] == ["own rows"]
    assert grandchild["base_model"] == ["child", "first"] and grandchild["base_model_relation"] == "merge"


def test_a_model_card_can_be_read(kin: Family) -> None:
    text = (kin.grandchild / "README.md").read_text(encoding="utf-8")
    assert text == model_card(kin.records[1])
    head = text.split("---\n")[1]
    assert {line.split(": ")[0]: json.loads(line.split(": ", 1)[1]) for line in head.splitlines()} == front_matter(kin.records[1])
    assert "coefficient 0.75" in text and "1.2 to 1.31 (95 %)" in text and "military" in text and kin.records[0].files[0].sha256 not in text
    assert all(file.sha256 in text for parent in kin.records[1].parents for file in parent.files)
