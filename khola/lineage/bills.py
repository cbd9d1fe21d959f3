"""A record as the bills of materials that other tools read: SPDX 3 and CycloneDX 1.7, both JSON.

Source   SPDX 3.0.1, profiles Core, Software, AI, Dataset and SimpleLicensing; CycloneDX 1.7, component type "machine-learning-model"
         with modelCard and pedigree.
Rule     neither has a word for "distilled from": SPDX says dependsOn and an annotation, CycloneDX says it in the notes of the pedigree.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any

from khola.cards.catalogue import licences
from khola.lineage.record import TAUGHT, DataSet, Metric, Record, RecordedFile, RecordedParent

SPDX_LISTED = frozenset({"Apache-2.0", "MIT", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"})
"""Keys of licences.toml that are identifiers of SPDX's own list."""
Object = dict[str, Any]


def spdx(record: Record) -> Object:
    """One SPDX 3.0.1 document, as JSON-LD."""
    base = f"urn:spdx.dev:khola:{record.sha256}#"
    creation = "_:creation"
    elements: list[Object] = []

    def add(kind: str, place: str, **facts: Any) -> str:
        known = {key: value for key, value in facts.items() if value}
        elements.append({"type": kind, "spdxId": base + place, "creationInfo": creation, **known})
        return base + place

    agent = add("SoftwareAgent", "khola", name=f"khola {record.made_with.khola}")
    root = add("ai_AIPackage", "model", **_spdx_model(record), suppliedBy=agent)
    relations: list[tuple[str, str, str]] = []
    for place, parent in enumerate(record.parents):
        other = add("ai_AIPackage", f"parent-{place}", **_spdx_parent(parent))
        relations += [(root, "dependsOn" if parent.role in TAUGHT else "descendantOf", other), *_licensed(add, other, parent.licences)]
        if parent.role in TAUGHT or parent.coefficient is not None:
            share = "" if parent.coefficient is None else f", coefficient {parent.coefficient:g}"
            add("Annotation", f"role-{place}", annotationType="other", subject=root, statement=f"{parent.name}: {parent.role}{share}")
    for place, data in enumerate(record.data):
        other = add("dataset_DatasetPackage", f"data-{place}", **_spdx_data(data, record))
        relations += [(root, "trainedOn", other), *_licensed(add, other, (data.licence,))]
    relations += _licensed(add, root, record.licences)
    for place, (first, kind, second) in enumerate(relations):
        add("Relationship", f"relation-{place}", **{"from": first, "relationshipType": kind, "to": [second]})
    document = {
        "type": "SpdxDocument", "spdxId": base + "document", "creationInfo": creation, "name": record.name, "rootElement": [root],
        "element": [element["spdxId"] for element in elements],
        "profileConformance": ["core", "software", "ai", "dataset", "simpleLicensing"],
    }  # fmt: skip
    info = {"type": "CreationInfo", "@id": creation, "specVersion": "3.0.1", "created": _time(record), "createdBy": [agent]}
    return {"@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld", "@graph": [info, document, *elements]}


def _licensed(add: Any, element: str, keys: Iterable[str]) -> list[tuple[str, str, str]]:
    """One licence expression, declared and concluded, as the AI and Dataset profiles want it."""
    name = element.partition("#")[2]
    said = " AND ".join(key if key in SPDX_LISTED else f"LicenseRef-{key}" for key in keys) or "NOASSERTION"
    expression = add("simplelicensing_LicenseExpression", f"licence-of-{name}", simplelicensing_licenseExpression=said)
    return [(element, "hasDeclaredLicense", expression), (element, "hasConcludedLicense", expression)]


def _hashes(files: Iterable[RecordedFile]) -> list[Object]:
    return [{"type": "Hash", "algorithm": "sha256", "hashValue": file.sha256, "comment": file.path} for file in files]


def _spdx_model(record: Record) -> Object:
    return {
        "name": record.name,
        "software_primaryPurpose": "model",
        "software_packageVersion": record.sha256[:16],
        "software_downloadLocation": "",
        "releaseTime": _time(record),
        "verifiedUsing": _hashes(record.files),
        "ai_typeOfModel": [record.architecture] if record.architecture else [],
        "ai_informationAboutTraining": f"{record.how} with khola {record.made_with.khola} {record.made_with.commit}".strip(),
        "ai_hyperparameter": [_entry(key, value) for key, value in {**record.recipe, **_seeds(record)}.items()],
        "ai_metric": [_entry(metric.name, _measure(metric)) for metric in record.metrics],
    }


def _spdx_parent(parent: RecordedParent) -> Object:
    return {"name": parent.name, "software_primaryPurpose": "model", "verifiedUsing": _hashes(parent.files)}


def _spdx_data(data: DataSet, record: Record) -> Object:
    return {
        "name": data.name,
        "dataset_datasetType": ["text"],
        "dataset_datasetSize": data.rows,
        "releaseTime": _time(record),
        "verifiedUsing": [{"type": "Hash", "algorithm": "sha256", "hashValue": data.sha256}],
        "comment": data.source,
    }


def _entry(key: str, value: Any) -> Object:
    return {"type": "DictionaryEntry", "key": key, "value": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


def _seeds(record: Record) -> Object:
    return {f"seed.{name}": seed for name, seed in record.seeds.items()}


def _measure(metric: Metric) -> str:
    around = "" if metric.low is None or metric.high is None else f" [{metric.low:g}, {metric.high:g}] at {metric.level:g}"
    return f"{metric.value:g}{' ' + metric.unit if metric.unit else ''}{around}"


def _time(record: Record) -> str:
    """As SPDX wants it: seconds, and a Z."""
    return record.created[:19] + "Z"


def cyclonedx(record: Record) -> Object:
    """One CycloneDX 1.7 bill, its model with pedigree and model card."""
    component = {
        **_component(record.name, record.licences, record.files),
        "bom-ref": "model",
        "pedigree": {
            "ancestors": [_component(parent.name, parent.licences, parent.files) for parent in record.parents],
            "notes": "; ".join(_role(parent) for parent in record.parents),
        },
        "modelCard": _cyclonedx_card(record),
        "properties": [
            {"name": f"khola:{name}", "value": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
            for name, value in (("how", record.how), ("record", record.sha256), ("recipe", record.recipe), ("seeds", record.seeds))
        ],
    }
    tool = {"type": "application", "name": "khola", "version": record.made_with.khola}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, record.sha256)}",
        "version": 1,
        "metadata": {"timestamp": _time(record), "tools": {"components": [tool]}, "component": component},
        "components": [_data_component(place, data) for place, data in enumerate(record.data)],
    }


def _component(name: str, keys: Iterable[str], files: Iterable[RecordedFile]) -> Object:
    parts = [{"type": "file", "name": file.path, "hashes": [{"alg": "SHA-256", "content": file.sha256}]} for file in files]
    return {"type": "machine-learning-model", "name": name, "licenses": [_licence(key) for key in keys], "components": parts}


def _licence(key: str) -> Object:
    known = licences().get(key)
    named = {"id": key} if key in SPDX_LISTED else {"name": known.name if known else key}
    return {"license": {**named, **({"url": known.url} if known else {})}}


def _role(parent: RecordedParent) -> str:
    return f"{parent.name}: {parent.role}" + ("" if parent.coefficient is None else f", coefficient {parent.coefficient:g}")


def _data_component(place: int, data: DataSet) -> Object:
    return {
        "type": "data",
        "bom-ref": f"data-{place}",
        "name": data.name,
        "hashes": [{"alg": "SHA-256", "content": data.sha256}],
        "licenses": [_licence(data.licence)],
        "data": [{"type": "dataset", "name": data.name}],
    }


def _cyclonedx_card(record: Record) -> Object:
    parameters: Object = {"task": "text-generation", "datasets": [{"ref": f"data-{place}"} for place in range(len(record.data))]}
    if record.architecture:
        parameters["architectureFamily"] = record.architecture
    metrics = [{"type": metric.name, "value": f"{metric.value:g}", **_bounds(metric)} for metric in record.metrics]
    duties = [sentence for duty in record.duties for sentence in duty.sentences]
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {"technicalLimitations": duties},
    }


def _bounds(metric: Metric) -> Object:
    if metric.low is None or metric.high is None:
        return {}
    return {"confidenceInterval": {"lowerBound": f"{metric.low:g}", "upperBound": f"{metric.high:g}"}}
