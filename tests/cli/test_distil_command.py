"""`khola distil`: licences first, then the teacher, then the student, then the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from khola.lineage.record import read_record
from tests.cli.command import Command
from tests.loader.tiny_gguf import tiny_gguf
from tests.loader.whole_models import write_folder
from tests.train.distil_runs import distil_rows
from tests.train.runs import write_rows


@pytest.fixture
def words(home: Path) -> list[str]:
    """A command line without the licences of its models."""
    student, teacher = write_folder(home / "student"), tiny_gguf(home / "teacher.gguf", seed=3)
    rows = write_rows(home / "rows.jsonl", distil_rows(8))
    sizes = ["--set", "packing.length=96", "--set", "packing.tokens=160", "--set", "dtype=float32"]
    return ["distil", "--teacher", str(teacher), "--student", str(student), "--data", str(rows), "--out", str(home / "new"), *sizes]


def licences(words: list[str], teacher: str = "MIT") -> list[str]:
    """Options that tell them."""
    return [
        "--licence",
        f"{words[words.index('--teacher') + 1]}={teacher}",
        "--licence",
        f"{words[words.index('--student') + 1]}=Apache-2.0",
    ]


@pytest.mark.slow
def test_a_model_is_made_and_its_descent_recorded(khola_says: Command, home: Path, words: list[str]) -> None:
    done = khola_says(*words, *licences(words))
    assert done.code == 0, done.err
    assert done.out.strip() == str(home / "new" / "model")
    assert "the licences allow it" in done.err
    assert "the teacher has answered 8 of 8" in done.err
    record = read_record(home / "new" / "model" / "lineage.json")
    assert (record.name, record.how, record.architecture) == ("new", "distilled", "llama")
    assert [(parent.role, parent.licences) for parent in record.parents] == [("weights", ("Apache-2.0",)), ("teacher-logits", ("MIT",))]
    assert [(one.name, one.licence, one.rows, len(one.sha256)) for one in record.data] == [("rows.jsonl", "own", 8, 64)]
    assert record.recipe["distil"]["objective"] == "alm"
    assert (home / "new" / "model" / "README.md").is_file()
    # The same command finds everything done: the teacher is not asked again, and the model is the same.
    weights = (home / "new" / "model" / "model.safetensors").read_bytes()
    again = khola_says(*words, *licences(words), "--json")
    assert again.code == 0, again.err
    data = json.loads(again.out)
    assert data["verdict"]["allowed"] and data["lineage"].endswith("lineage.json")
    assert (home / "new" / "model" / "model.safetensors").read_bytes() == weights
    assert "answered" not in again.err


def test_licences_are_asked_before_anything_else(khola_says: Command, home: Path, words: list[str]) -> None:
    unknown = khola_says(*words)
    assert (unknown.code, unknown.out) == (5, "")
    at = words.index("--teacher") + 1
    forbidden = khola_says(*words[:at], "llama-3-8b-instruct", *words[at + 1 :], *licences(words))
    assert (forbidden.code, forbidden.out) == (5, "")
    assert "section 1.b.v" in forbidden.err and "does not let its outputs train other models" in forbidden.err
    misnamed = khola_says(*words[:at], "llama-3.1-8b-instruct", *words[at + 1 :], *licences(words))
    assert misnamed.code == 5 and "its name must begin with 'Llama'" in misnamed.err
    assert not (home / "new").exists()


def test_what_is_missing_is_named(khola_says: Command, words: list[str]) -> None:
    done = khola_says(*words[:3])
    assert (done.code, done.out) == (2, "") and "--student is missing" in done.err
    assert "--teacher is missing" in khola_says("distil").err
    assert khola_says(*words, *licences(words), "--set", "distil.debias=2").code == 2
    assert "distil.objektive" in khola_says(*words, *licences(words), "--set", "distil.objektive=alm").err


@pytest.mark.slow
def test_a_file_of_settings(khola_says: Command, home: Path, words: list[str]) -> None:
    file = home / "run.toml"
    settings = f'model = "{words[4]}"\ndata = ["{words[6]}"]\nout = "{home / "new"}"\ndtype = "float32"\n'
    file.write_text(f'{settings}[distil]\nteacher = "{words[2]}"\ntop = 4\n')
    sizes = words[words.index("--set") :]
    done = khola_says("distil", "--config", str(file), "--objective", "uld", *licences(words), *sizes, "--json")
    assert done.code == 0, done.err
    record = read_record(home / "new" / "model" / "lineage.json")
    assert (record.recipe["distil"]["objective"], record.recipe["distil"]["top"]) == ("uld", 4)
