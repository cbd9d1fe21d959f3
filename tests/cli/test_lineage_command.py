"""`khola lineage`: the tree of cards and records, the check of a record, and what other tools read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import Command
from tests.lineage.family import family


@pytest.fixture
def merged(home: Path) -> Path:
    """A model with a record, in this home's library."""
    return family(home).grandchild


def test_a_card_has_a_tree(khola_says: Command) -> None:
    done = khola_says("lineage", "deepseek-r1-distill-llama-8b")
    assert done.code == 0
    assert done.out.splitlines()[1] == "├─ llama-3.1-8b: initialised, Meta 2024, llama-3.1"
    assert khola_says("lineage", "llama-3.1-8b", "--verify").code == 2


def test_a_record_has_a_tree(khola_says: Command, merged: Path) -> None:
    done = khola_says("lineage", "grandchild")
    assert done.code == 0 and "├─ child: term of a merge, 0.75" in done.out and "teacher, by its texts" in done.out
    assert [line["name"] for line in json.loads(khola_says("lineage", str(merged), "--json").out)][:2] == ["grandchild", "child"]
    assert "মিশ্রণের অংশ" in khola_says("lineage", "grandchild", "--lang", "bn").out


def test_a_record_is_verified(khola_says: Command, merged: Path) -> None:
    done = khola_says("lineage", "grandchild", "--verify")
    assert done.code == 0 and "as it was written" in done.out and "first is not on this disk" in done.err
    (merged / "config.json").write_text("{}", encoding="utf-8")
    done = khola_says("lineage", "grandchild", "--verify", "--json")
    assert done.code == 3 and not done.out and json.loads(done.err.splitlines()[-1])["error"]["code"] == "hash_mismatch"


@pytest.mark.parametrize("form", ["spdx", "cyclonedx", "front-matter"])
def test_exports_are_json(khola_says: Command, merged: Path, form: str) -> None:
    done = khola_says("lineage", "grandchild", "--export", form)
    assert done.code == 0 and isinstance(json.loads(done.out), dict)


def test_a_model_card_is_printed(khola_says: Command, merged: Path) -> None:
    assert khola_says("lineage", "grandchild", "--export", "card").out.strip() == (merged / "README.md").read_text().strip()
    assert khola_says("lineage", "smollm2-135m", "--export", "card").code == 2
    assert khola_says("lineage", "no-such-thing").code == 2
