"""The page of models in the docs says what the cards say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from khola.models import ALIASES, architectures
from tests.tolerances import LOGITS

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "models_table.py"


def test_the_page_of_models_is_up_to_date() -> None:
    script = _script()
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run make models-page"


def test_what_was_recorded_is_of_architectures_that_exist() -> None:
    recorded = json.loads(_script().PARITY.read_text(encoding="utf-8"))["logits"]
    assert {"llama", "qwen3_moe", "ernie4_5_moe"} <= set(recorded) <= {*architectures(), *ALIASES}
    assert all(0 < error <= LOGITS for errors in recorded.values() for error in errors.values())


def test_the_summary_says_what_runs_in_24_gb() -> None:
    lines = [line.split(" | ") for line in _script().page().splitlines() if line.startswith("| ERNIE")]
    assert [cells[2] for cells in lines] == ["`ernie4_5`", "`ernie4_5_moe`"]
    assert lines[1][1] == "21B, 300B"
    assert lines[1][5].startswith("21B q") and "300B" not in lines[1][5]


def _script() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("models_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script
