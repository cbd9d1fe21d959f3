"""A record as a model card: the front matter that model hubs read, and a page for people.

Source   Hugging Face model cards, keys of the metadata specification (`base_model`, `base_model_relation`, `license`, `datasets`).
         Hubs have no relation for "distilled from", so teachers stand in the text and among the tags.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from khola.cards.catalogue import cards, licences
from khola.lineage.record import TAUGHT, Metric, Record, RecordedParent

RELATIONS = {"merged": "merge", "quantised": "quantized"}
"""Of `base_model_relation`; everything else that has a base is a fine-tune."""
HUB_LICENCES = {
    "Apache-2.0": "apache-2.0", "MIT": "mit", "llama-2": "llama2", "llama-3": "llama3", "llama-3.1": "llama3.1", "llama-3.2": "llama3.2",
    "llama-3.3": "llama3.3", "CC-BY-4.0": "cc-by-4.0", "CC-BY-SA-4.0": "cc-by-sa-4.0", "CC-BY-NC-4.0": "cc-by-nc-4.0",
    "CC-BY-NC-SA-4.0": "cc-by-nc-sa-4.0", "CC0-1.0": "cc0-1.0", "BSD-3-Clause": "bsd-3-clause",
}  # fmt: skip
"""Words of the hub; every other licence, and every pair of them, is "other"."""


def front_matter(record: Record) -> dict[str, Any]:
    """The metadata at the head of a model card."""
    bases = list(dict.fromkeys(hub_name(parent) for parent in record.parents if parent.role in ("weights", "merge-term")))
    found: dict[str, Any] = {"library_name": "khola", "tags": [record.how, *(f"distilled-from:{name}" for name in _teachers(record))]}
    if len(record.licences) == 1 and record.licences[0] in HUB_LICENCES:
        found["license"] = HUB_LICENCES[record.licences[0]]
    elif record.licences:
        found |= {"license": "other", "license_name": " AND ".join(record.licences), "license_link": "README.md"}
    if bases:
        found |= {"base_model": bases, "base_model_relation": RELATIONS.get(record.how, "finetune")}
    if record.data:
        found["datasets"] = [data.name for data in record.data]
    return found


def model_card(record: Record) -> str:
    """The whole README.md: front matter, descent, duties, data, measures, and how it was made."""
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front_matter(record).items()), "---"]
    lines += [f"# {_plain(record.name)}", "", f"Made with khola {record.made_with.khola} on {record.created}: {record.how}.", ""]
    lines += ["`lineage.json` beside this page holds everything below with its hashes; `khola lineage --verify` checks it.", ""]
    lines += ["## Made from", ""]
    lines += [_parent_line(parent) for parent in record.parents] or ["Nothing: trained from scratch."]
    lines += ["", "## What its licences ask", ""]
    for duty in record.duties:
        lines += [f"- **{licences()[duty.licence].name}** ({duty.way} of {_plain(duty.model)}): {licences()[duty.licence].url}"]
        lines += [f"  - {sentence}" for sentence in duty.sentences]
    commercial = {"yes": "allowed", "no": "not allowed", "conditions": "allowed under conditions"}[record.commercial]
    lines += ["", f"Commercial use: {commercial}. This is a machine's reading of the licences, not legal advice.", ""]
    if record.data:
        lines += ["## Data", "", "| name | licence | rows | SHA-256 |", "|---|---|---|---|"]
        lines += [f"| {_cell(data.name)} | {_cell(data.licence)} | {data.rows or '-'} | `{data.sha256}` |" for data in record.data]
        lines += [""]
    if record.metrics:
        lines += ["## Measured", "", "| what | value | interval | samples |", "|---|---|---|---|"]
        lines += [f"| {_cell(metric.name)} | {metric.value:.6g} {metric.unit} | {interval(metric)} | {metric.samples or '-'} |"
                  for metric in record.metrics]  # fmt: skip
        lines += [""]
    recipe = {"recipe": record.recipe, "seeds": record.seeds, "made_with": _made_with(record)}
    lines += ["## Recipe", "", "```json", json.dumps(recipe, ensure_ascii=False, indent=1).replace("```", "'''"), "```", ""]
    return "\n".join(lines)


def interval(metric: Metric) -> str:
    """The interval of a metric, or a dash."""
    if metric.low is None or metric.high is None:
        return "-"
    return f"{metric.low:.6g} to {metric.high:.6g} ({100 * metric.level:g} %)"


def hub_name(parent: RecordedParent) -> str:
    """What a hub calls a parent; khola's own name where no hub has it."""
    sources: Sequence[str] = cards()[parent.card].sources if parent.card in cards() else ()
    return next((source.removeprefix("hf:") for source in sources if source.startswith("hf:")), parent.name)


def _teachers(record: Record) -> list[str]:
    return [hub_name(parent) for parent in record.parents if parent.role in TAUGHT]


def _parent_line(parent: RecordedParent) -> str:
    share = "" if parent.coefficient is None else f", coefficient {parent.coefficient:g}"
    hashes = "".join(f"\n  - `{file.path}` SHA-256 `{file.sha256}`" for file in parent.files)
    return f"- **{_plain(parent.name)}**: {parent.role}{share}; licence {' AND '.join(parent.licences) or '-'}{hashes}"


def _made_with(record: Record) -> dict[str, Any]:
    made = record.made_with
    return {"khola": made.khola, "commit": made.commit, "python": made.python, **made.libraries}


def _plain(text: str) -> str:
    """A name without what Markdown would read as more than letters."""
    return "".join(letter if letter.isalnum() or letter in " .-_/:+" else "?" for letter in text)


def _cell(text: str) -> str:
    return _plain(text).replace("|", "?")
