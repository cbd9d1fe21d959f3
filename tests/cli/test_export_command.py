"""`khola export`: the path on stdout, the round trip on stderr or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from tests.api.small_models import folder_model
from tests.cli.command import Command


def test_a_model_is_exported(khola_says: Command, home: Path) -> None:
    source = str(folder_model(home / "source"))
    done = khola_says("export", source, "--form", "gguf", "--output", str(home / "out.gguf"))
    assert done.code == 0 and done.out == f"{home / 'out.gguf'}\n" and "32 of 32 greedy tokens are the same" in done.err, done.err
    assert (home / "out.gguf.lineage.json").is_file()
    done = khola_says("export", source, "--to", "bf16", "--json", "--name", "halved")
    data = json.loads(done.out)
    assert data["format"] == "bf16" and data["gate"]["lossless"] is False and len(data["gate"]["tokens"]) == 32
    done = khola_says("export", source, "--no-gate", "--output", str(home / "out"), "--lang", "bn")
    assert done.code == 0 and "মিলিয়ে দেখা হয়নি" in done.err


def test_what_cannot_be_exported(khola_says: Command, home: Path) -> None:
    source = str(folder_model(home / "source"))
    assert khola_says("export", source, "--form", "gguf", "--to", "int4g64").code == 2
    assert khola_says("export", source, "--adapter", str(home), "--name", "x").code == 3
    assert khola_says("export", "no-such-model").code == 2
