"""The page about training names every setting, and the example runs."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from khola.train.config import Lora, Optimiser, Packing, Run, Saving, resolve
from khola.train.methods import NAMES, method_named
from khola.train.rollouts import Sampling

ROOT = Path(__file__).resolve().parents[2]
TABLES = {"": Run, "packing.": Packing, "optimiser.": Optimiser, "lora.": Lora, "save.": Saving}
INNER = {"packing", "optimiser", "lora", "save", "options"}


def explained(file: str, first: str, last: str = "\n## What is written") -> set[str]:
    """Names in the first column of every table of settings between two headings of a page."""
    page = (ROOT / "docs" / file).read_text(encoding="utf-8").partition(first)[2].partition(last)[0]
    found: set[str] = set()
    for table in re.findall(r"\| setting \|.*?(?=\n\n|\Z)", page, re.DOTALL):
        found |= {name for line in table.splitlines()[2:] for name in re.findall(r"`([\w.]+)`", line.split("|")[1])}
    return found


def fields(table: type, prefix: str = "") -> set[str]:
    return {prefix + field.name for field in msgspec.structs.fields(table)}


def test_every_setting_is_explained_and_every_explained_one_is_there() -> None:
    shared = fields(Sampling)
    wanted = {name for prefix, table in TABLES.items() for name in fields(table, prefix)} - INNER | shared
    for method in set(NAMES) - {"distil"}:
        config = method_named(method).Config
        wanted |= fields(config, f"{method}.") - ({f"{method}.{name}" for name in shared} if issubclass(config, Sampling) else set())
    assert explained("train.md", "## Settings") == wanted
    options = {"objective", "teacher", "server", "cache"}
    assert explained("distil.md", "# ", "\0") == fields(method_named("distil").Config) - options


def test_the_example_is_a_run() -> None:
    run = resolve(ROOT / "examples" / "sft.toml", {})
    assert run.lora is not None and run.method == "sft"
