"""`khola bench`: what is asked is understood, and the report is told in words and as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from khola.api.bench import FULL, QUICK, Reading
from khola.cli.bench import FIGURE_WORDS, GROUP_NAMES, GROUP_WORDS, PEER_NAMES, REASONS
from khola.evals.bench.figures import GROUPS, figure, names_of
from khola.evals.bench.report import Entry, Missing, Report
from khola.evals.bench.run import REFERENCE, Asked
from khola.evals.peers.known import PEERS
from tests.cli.command import Command

MODEL = "smollm2-135m-instruct"


def readings(speed: float) -> dict[str, Any]:
    """Figures of all groups, in two rounds."""
    names = [name for group in GROUPS for name in names_of(group, QUICK)]
    found = {name: figure(name, [Reading(name, speed), Reading(name, 2 * speed)]) for name in names}
    return {**found, "bytes_per_token": figure("bytes_per_token", [Reading("", 1e8)])}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """A report instead of a measurement; what was asked for."""
    asked_for: list[Asked] = []

    def bench(asked: Asked, settings: Any, *, tell: Callable[..., None]) -> Report:
        asked_for.append(asked)
        tell("prefill", 1, asked.rounds, "khola")
        tell(REFERENCE, 1, 1, MODEL)
        theirs = readings(50.0) | {
            "prefill_2048": figure("prefill_2048", [Reading("", None, "too_long")]),
            "start_s": figure("start_s", [Reading("", None, "failed")], "exit code 1: no memory"),
        }
        entries = [
            Entry(name=name, version="1", model=MODEL, model_bytes=98_000_000, figures=figures)
            for name, figures in (("khola", readings(100.0)), ("llama.cpp", theirs))
        ]
        return Report(
            command=asked.command, khola="0", commit="", when="", took_s=1.0, python="", machine={"cpu": "Test CPU"}, threads=2,
            rounds=asked.rounds, work={}, reference=MODEL, bandwidth={"2": figure("", [Reading("", 20e9), Reading("", 30e9)])}, rates=None,
            load=[0.5, 3.0], stolen_share=0.012, entries=entries,
            missing=[Missing(name="vllm", message="not here", next_step="install it")],
        )  # fmt: skip

    monkeypatch.setattr("khola.evals.bench.run.bench", bench)
    return asked_for


def test_names_are_those_of_the_rooms() -> None:
    assert set(PEER_NAMES) == set(PEERS)
    assert GROUP_NAMES == GROUPS
    assert {*GROUPS, REFERENCE} == set(GROUP_WORDS)
    names = {name for group in GROUPS for name in names_of(group, FULL)}
    assert all(name in FIGURE_WORDS or name.partition("_")[0] in FIGURE_WORDS for name in names)
    assert set(REASONS) == {"context", "too_long", "unsupported", "failed"}


def test_what_is_asked(khola_says: Command, measured: list[Asked], home: Path) -> None:
    done = khola_says(
        "bench", MODEL, "--quick", "--against", "llama.cpp, vllm,llama.cpp", "--only", "decode,start", "--peer", "llama.cpp=/x/bin",
        "--peer-model", "vllm=/y/model", "--reference", "/z.gguf",
    )  # fmt: skip
    assert done.code == 0, done.err
    (asked,) = measured
    assert asked.against == ["llama.cpp", "vllm"] and asked.groups == ["decode", "start"]
    assert asked.places == {"llama.cpp": "/x/bin"} and asked.models == {"vllm": "/y/model"} and asked.reference == "/z.gguf"
    assert asked.work == QUICK and asked.rounds == 2
    khola_says("bench", MODEL, "--peer", "vllm=~/bin/python")
    assert measured[1].places == {"vllm": str(home / "bin/python")}
    assert measured[1].work == FULL and measured[1].rounds == 3 and measured[1].groups == list(GROUPS) and not measured[1].against


def test_the_table(khola_says: Command, measured: list[Asked]) -> None:
    done = khola_says("bench", MODEL, "--against", "llama.cpp")
    rows = {line.split("  ")[0]: line for line in done.out.splitlines()}
    assert rows["prefill 512 tokens, tokens/s"].split()[4:] == ["150", "(100-200)", "75.0", "(50.0-100)", "2.00"]
    assert rows["start to first token, s"].split()[5:] == ["150", "(100-200)", "failed", "-"]
    assert "no time" in rows["prefill 2048 tokens, tokens/s"]
    assert rows["of the read bandwidth, %"].split()[-3:] == ["60", "30", "-"]
    assert "25.0 (20.0-30.0) GB/s with 2 threads" in done.out
    assert "load 0.5 to 3.0, 1.2 % of the time stolen" in done.out
    assert "vllm: not here; install it" in done.out
    assert "llama.cpp, start to first token, s: exit code 1: no memory" in done.out
    assert "not measured: no native library here times them" in done.out
    assert "reading prompts, round 1 of 3: khola" in done.err and "reading prompts" not in done.out


def test_data(khola_says: Command, measured: list[Asked]) -> None:
    done = khola_says("bench", MODEL, "--json", "--quiet")
    data = json.loads(done.out)
    assert data["schema"] == 2 and not done.err
    assert data["entries"][0]["figures"]["decode_0"] == {
        "unit": "tokens/s", "median": 150.0, "low": 100.0, "high": 200.0, "values": [100.0, 200.0], "reason": "", "detail": "",
    }  # fmt: skip
    assert data["ratios"]["llama.cpp"]["decode_0"] == 2.0


def test_bengali(khola_says: Command, measured: list[Asked]) -> None:
    done = khola_says("bench", MODEL, "--lang", "bn")
    assert "কত গুণ ভালো" in done.out and "পালা 1/3: khola" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--against", "lama.cpp"), "llama.cpp"),
        (("--only", "decoding"), "decode"),
        (("--peer", "llama.cpp"), "NAME=VALUE"),
        (("--peer", "ollama=/x"), "ollama"),
    ],
)
def test_what_cannot_be_meant(khola_says: Command, measured: list[Asked], words: tuple[str, ...], said: str) -> None:
    done = khola_says("bench", MODEL, *words)
    assert done.code == 2 and said in done.err and not measured


def test_a_model_that_is_not_here(khola_says: Command) -> None:
    assert khola_says("bench", MODEL).code == 2
    assert khola_says("bench", "/no/such.gguf").code == 2
