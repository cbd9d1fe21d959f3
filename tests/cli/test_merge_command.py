"""`khola merge`: the new folder's path on stdout, everything else on stderr or as JSON; licences are asked first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.api.small_models import folder_model
from tests.cli.command import Command


@pytest.fixture
def models(home: Path) -> list[str]:
    """Two folders."""
    return [str(folder_model(home / name)) for name in ("one", "two")]


def test_models_are_merged(khola_says: Command, home: Path, models: list[str]) -> None:
    said = [option for model in models for option in ("--licence", f"{model}=MIT")]
    done = khola_says("merge", f"{models[0]}=0.7", f"{models[1]}=0.3", "--name", "both", *said)
    assert done.code == 0 and done.out == f"{home / 'khola' / 'models' / 'both'}\n" and "20 tensors in f32" in done.err, done.err
    done = khola_says("lineage", "both")
    assert "one: term of a merge, 0.7, MIT" in done.out
    done = khola_says("merge", *models, "--name", "arc", "--method", "slerp", "--t", "0.25", "--json", *said)
    assert json.loads(done.out)["recipe"]["coefficients"] == [0.75, 0.25] and json.loads(done.out)["verdict"]["licences"] == ["MIT"]


def test_a_merge_that_may_not_be(khola_says: Command, home: Path, models: list[str]) -> None:
    done = khola_says("merge", *models, "--name", "both")
    assert done.code == 5 and "--licence" in done.err and not (home / "khola" / "models" / "both").exists()
    said = ["--licence", f"{models[0]}=llama-3.2", "--licence", f"{models[1]}=MIT"]
    done = khola_says("merge", *models, "--name", "both", *said, "--json")
    assert done.code == 5 and json.loads(done.err)["error"]["facts"]["suggestion"] == "llama-both"


def test_what_cannot_be_meant(khola_says: Command, models: list[str]) -> None:
    assert khola_says("merge", *models).code == 2
    assert khola_says("merge", models[0], "--name", "x").code == 2
    done = khola_says("merge", *models, "--method", "ties", "--name", "x", "--lang", "bn")
    assert done.code == 2 and "--base" in done.err
