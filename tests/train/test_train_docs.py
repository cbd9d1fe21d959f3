"""The page about training names every setting, and the example runs."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from khola.train.config import Lora, Optimiser, Packing, Run, Saving, resolve
from khola.train.methods import NAMES, method_named

ROOT = Path(__file__).resolve().parents[2]
TABLES = {"": Run, "packing.": Packing, "optimiser.": Optimiser, "lora.": Lora, "save.": Saving}
INNER = {"packing", "optimiser", "lora", "save", "options"}


def test_every_setting_is_explained_and_every_explained_one_is_there() -> None:
    page = (ROOT / "docs" / "train.md").read_text(encoding="utf-8").split("## Settings")[1].split("\n## ")[0]
    tables = TABLES | {f"{name}.": method_named(name).Config for name in NAMES}
    wanted = {prefix + field.name for prefix, table in tables.items() for field in msgspec.structs.fields(table)} - INNER
    told = {name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`([\w.]+)`", line.split("|")[1])}
    assert told == wanted


def test_the_example_is_a_run() -> None:
    run = resolve(ROOT / "examples" / "sft.toml", {})
    assert run.lora is not None and run.method == "sft"
