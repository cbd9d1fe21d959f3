"""`khola quantise`: the path on stdout, everything else on stderr, the report as tables or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from khola.store.gguf import read_gguf
from tests.api.small_models import folder_model
from tests.cli.command import Command


@pytest.fixture
def source(home: Path) -> Path:
    """A checkpoint's folder."""
    return folder_model(home / "source")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tokens of each text."""
    monkeypatch.setattr("khola.api.quality.TOKENS_OF_EACH", 24)


def test_a_model_is_written_and_judged(khola_says: Command, home: Path, source: Path) -> None:
    done = khola_says("quantise", str(source), "--to", "q8_0")
    assert done.code == 0, done.err
    path = home / "khola" / "models" / "source-q8_0" / "source-q8_0.gguf"
    lines = done.out.splitlines()
    assert lines[0] == str(path) and path.is_file()
    table = {line.split("  ")[0].strip(): line.split() for line in lines[1:]}
    assert float(table["KL divergence"][-1]) < 0.01 and float(table["bits a weight"][-2]) == 32.0
    assert {"size", "perplexity", "tokens/s", "same best token", "English", "code", "Bengali"} <= set(table)
    assert "no card describes the source" in done.err and "bits a weight (15 q8_0, 5 f32)" in done.err


def test_json_has_everything(khola_says: Command, source: Path) -> None:
    done = khola_says("quantise", str(source), "--to", "int4g64", "--json", "--name", "small", "--keep", "down_proj=int8g64")
    data = json.loads(done.out)
    assert data["name"] == "small" and data["kinds"] == {"int4g64": 12, "f32": 5, "int8g64": 3} and data["parent"] == "source"
    report = data["report"]
    assert (
        0 < report["kl"] < 2 and 0 < report["top_1"] <= 1 and [text["text"] for text in report["texts"]] == ["english", "code", "bengali"]
    )
    assert report["before"]["bytes"] > 5 * report["after"]["bytes"] and report["after"]["tokens_per_s"] > 0


def test_without_a_report_no_model_runs(khola_says: Command, source: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("khola.api.quality.compare", lambda *_, **__: pytest.fail("compared"))
    done = khola_says("quantise", str(source), "--to", "q4_0", "--no-report", "--output", str(home / "out.gguf"), "--quiet")
    assert (done.code, done.out, done.err) == (0, f"{home / 'out.gguf'}\n", "")
    with read_gguf(home / "out.gguf") as file:
        assert file.metadata["general.file_type"] == 2


def test_a_report_that_cannot_be_made_keeps_the_model(khola_says: Command, source: Path, home: Path) -> None:
    (source / "tokenizer.json").unlink()
    done = khola_says("quantise", str(source), "--to", "int8g64", "--lang", "en")
    assert done.code == 0 and "were not compared" in done.err and Path(done.out.strip()).is_dir()


def test_errors_say_what_there_is(khola_says: Command, source: Path) -> None:
    done = khola_says("quantise", str(source), "--to", "q4")
    assert done.code == 2 and "int4g64" in done.err
    assert khola_says("quantise", str(source)).code == 2
    done = khola_says("quantise", str(source), "--to", "q8_0", "--keep", "down=int4g64", "--lang", "bn")
    assert done.code == 2 and "ফরম্যাট" in done.err


def test_bengali(khola_says: Command, source: Path) -> None:
    done = khola_says("quantise", str(source), "--to", "q8_0", "--lang", "bn")
    assert done.code == 0 and "ওজনপিছু বিট" in done.out and "লাইসেন্স" in done.err
    assert "কম বিটে" in khola_says("quantise", "--help", "--lang", "bn").out
