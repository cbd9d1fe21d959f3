"""Turns, statistics, processes, log-probabilities and reports of a benchmark."""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.api.bench import QUICK, Reading, Work
from khola.errors import BadHeader, Truncated, WrongShape
from khola.evals.bench.figures import GROUPS, Figure, figure, names_of, ratio, unit_of
from khola.evals.bench.machine import Watch, processor_times
from khola.evals.bench.process import late, peak_memory, readings_of, run_process
from khola.evals.bench.quality import compare, fixed_text, read_logit_file
from khola.evals.bench.race import Results, Task, Turn, race
from khola.evals.bench.report import SCHEMA, Entry, Missing, Report, ratios
from khola.lineage.compose import commit

WORK = Work(prefill=(64,), decode=(0,), streams=(1,), budget_s=5.0)


def task(group: str, number: int = 0) -> Task:
    """A task that nobody runs."""
    return Task(group=group, work=WORK, threads=2, first=number == 0, seed=number, scratch=Path())


@dataclass
class Scripted:
    """A contestant that notes its turns and answers from a list."""

    name: str
    log: list[tuple[str, str, int, bool]] = field(default_factory=list)
    speed: float = 10.0
    version: str = "1"
    model: str = "m"

    def run(self, task: Task) -> Turn:
        self.log.append((self.name, task.group, task.seed, task.first))
        return Turn([Reading(name, self.speed + task.seed) for name in names_of(task.group, task.work)])


def test_contestants_take_turns() -> None:
    log: list[tuple[str, str, int, bool]] = []
    told: list[tuple[str, int, int, str]] = []
    looks: list[int] = []
    results = race(
        [Scripted("a", log), Scripted("b", log, 20.0)],
        ["prefill", "quality"],
        3,
        task,
        tell=lambda *words: told.append(words),
        before_round=lambda: looks.append(len(log)),
    )
    assert [(name, group, seed) for name, group, seed, _ in log] == [
        *[(name, "prefill", seed) for seed in range(3) for name in "ab"],
        ("a", "quality", 0),
        ("b", "quality", 0),
    ]
    assert [first for *_, first in log] == [True, True, False, False, False, False, True, True]
    assert looks == [0, 2, 4, 6]
    assert told[3] == ("prefill", 2, 3, "b") and told[-1] == ("quality", 1, 1, "b")
    assert results.figures("b")["prefill_64"].values == (20.0, 21.0, 22.0)


def test_what_a_turn_does_not_tell_has_failed() -> None:
    results = Results()
    results.note("a", task("start"), Turn([Reading("start_s", 1.0)], "exit code 1: no memory"))
    found = results.figures("a")
    assert found["start_s"].median == 1.0
    assert found["memory_bytes"].reason == "failed" and found["memory_bytes"].detail == "exit code 1: no memory"


def test_extra_readings_are_kept() -> None:
    results = Results()
    results.note("a", task("decode"), Turn([Reading("decode_0", 3.0), Reading("bytes_per_token", 8.0)]))
    assert results.figures("a")["bytes_per_token"].median == 8.0


@pytest.mark.parametrize(
    ("values", "middle", "low", "high"),
    [((3.0,), 3.0, 3.0, 3.0), ((5.0, 1.0, 2.0), 2.0, 1.0, 5.0), ((4.0, 1.0, 2.0, 100.0), 3.0, 1.0, 100.0)],
)
def test_median_and_spread(values: tuple[float, ...], middle: float, low: float, high: float) -> None:
    found = figure("prefill_64", [Reading("prefill_64", value) for value in values])
    assert (found.median, found.low, found.high, found.unit) == (middle, low, high, "tokens/s")


def test_one_reading_of_several_is_enough() -> None:
    found = figure("prefill_64", [Reading("prefill_64", None, "failed"), Reading("prefill_64", 2.0)], "why")
    assert found.median == 2.0 and not found.reason and not found.detail


def test_ratios_pair_the_rounds() -> None:
    # The machine became ten times slower; in every round the first was twice as fast. Medians alone would say 20 / 1.
    ours = Figure(unit="", median=20.0, low=2.0, high=20.0, values=(20.0, 20.0, 2.0))
    theirs = Figure(unit="", median=1.0, low=1.0, high=10.0, values=(10.0, 1.0, 1.0))
    assert ratio("decode_0", ours, theirs) == 2.0
    assert ratio("start_s", ours, theirs) == 0.5
    unpaired = Figure(unit="", median=10.0, low=10.0, high=10.0, values=(10.0,))
    assert ratio("decode_0", ours, unpaired) == 2.0
    missing = Figure(unit="", median=None, low=None, high=None, reason="too_long")
    assert ratio("decode_0", ours, missing) is None


def test_every_figure_has_its_unit() -> None:
    names = [name for group in GROUPS for name in names_of(group, QUICK)]
    assert {unit_of(name) for name in names} == {"tokens/s", "s", "bytes", "", "nats/token", "share"}
    assert [name for name in names if not unit_of(name)] == ["perplexity"]


def test_a_process_is_timed_to_its_first_byte() -> None:
    outcome = run_process([sys.executable, "-c", "import time; time.sleep(.2); print('a', flush=True); time.sleep(.4)"], 20)
    assert outcome.code == 0 and outcome.out == "a\n" and not outcome.timed_out
    assert outcome.first_byte_s is not None and outcome.first_byte_s >= 0.2


@pytest.mark.skipif(not peak_memory(1), reason="needs /proc")
def test_the_peak_of_memory_is_that_of_the_process() -> None:
    small = run_process([sys.executable, "-c", "import time; time.sleep(.1)"], 20)
    large = run_process([sys.executable, "-c", "x = bytearray(64 << 20); x = None; import time; time.sleep(.1)"], 20)
    assert large.peak_bytes - small.peak_bytes == pytest.approx(64 << 20, rel=0.1)


def test_a_process_that_takes_too_long_is_ended_and_what_it_said_counts() -> None:
    code = 'import time; print(\'{"name": "prefill_64", "value": 3}\', flush=True); time.sleep(60)'
    outcome = run_process([sys.executable, "-c", code], 0.7)
    assert outcome.timed_out and outcome.code < 0
    readings = late(["prefill_64", "prefill_128"], readings_of(outcome), outcome)
    assert readings == [Reading("prefill_64", 3.0), Reading("prefill_128", None, "too_long")]


def test_a_program_that_is_not_there_is_an_outcome() -> None:
    outcome = run_process(["/no/such/program"], 5)
    assert outcome.code == 127 and "No such file" in outcome.detail and not outcome.timed_out


def test_other_talk_among_readings_is_passed_over() -> None:
    lines = "loading...\n[1, 2]\n{}\n{broken\n" + json.dumps({"name": "decode_0", "value": None, "reason": "context"})
    outcome = run_process([sys.executable, "-c", f"print({lines!r})"], 20)
    assert readings_of(outcome) == [Reading("decode_0", None, "context")]


def logprobs(rows: int, vocab: int, seed: int = 0) -> NDArray[np.float32]:
    """Log-probabilities of some distributions."""
    logits = np.random.default_rng(seed).normal(0, 3, (rows, vocab))
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


def test_quality_of_the_reference_itself() -> None:
    rows = logprobs(100, 50)
    targets = list(range(50)) * 2
    found = compare(rows, rows, targets)
    assert found.kl == 0 and found.same_token == 1
    assert found.perplexity == pytest.approx(np.exp(-rows[np.arange(100), targets].mean(dtype=np.float64)))


def test_quality_by_hand() -> None:
    reference = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32))
    found = np.log(np.array([[0.25, 0.75], [0.8, 0.2]], np.float32))
    quality = compare(reference, found, [0, 1])
    by_hand = (0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75) + 0.9 * np.log(0.9 / 0.8) + 0.1 * np.log(0.5)) / 2
    assert quality.kl == pytest.approx(by_hand, rel=1e-5)
    assert quality.perplexity == pytest.approx(np.sqrt(1 / 0.25 / 0.2), rel=1e-5)
    assert quality.same_token == 0.5


def test_padding_rows_of_a_vocabulary_are_left_out() -> None:
    rows = logprobs(4, 50)
    padded = np.concatenate([rows, np.full((4, 14), -100, np.float32)], axis=1)
    assert compare(rows, padded, [0, 1, 2, 3]).kl == 0
    with pytest.raises(WrongShape):
        compare(rows, rows[:3], [0, 1, 2, 3])


def logit_file(path: Path, rows: NDArray[np.float32], window: int, windows: int) -> None:
    """Write a file as llama-perplexity does."""
    vocab = rows.shape[1]
    head = b"_logits_" + struct.pack("<3i", window, vocab, windows) + np.arange(window * windows, dtype="<i4").tobytes()
    body = b""
    for row in rows:
        low = max(float(row.min()), float(row.max()) - 16)
        scale = (float(row.max()) - low) / 65535
        steps = np.clip(np.rint((row - low) / scale), 0, 65535).astype("<u2")
        body += struct.pack("<2f", scale, low) + steps.tobytes() + bytes(2 * (vocab % 2))
    path.write_bytes(head + body)


@pytest.mark.parametrize("vocab", [50, 51])
def test_logits_of_a_peer_are_read(tmp_path: Path, vocab: int) -> None:
    rows = logprobs(2 * 7, vocab)
    logit_file(tmp_path / "f", rows, 16, 2)
    ids, found = read_logit_file(tmp_path / "f")
    assert ids.shape == (2, 16) and ids[1, 0] == 16
    np.testing.assert_allclose(found, np.maximum(rows, rows.max(1, keepdims=True) - 16), atol=3e-4)


def test_damaged_logits_are_refused(tmp_path: Path) -> None:
    logit_file(tmp_path / "f", logprobs(7, 50), 16, 1)
    raw = (tmp_path / "f").read_bytes()
    (tmp_path / "short").write_bytes(raw[:-1])
    (tmp_path / "other").write_bytes(b"GGUF" + raw)
    (tmp_path / "zero").write_bytes(raw[:8] + struct.pack("<3i", 16, 0, 1) + raw[20:])
    with pytest.raises(Truncated):
        read_logit_file(tmp_path / "short")
    with pytest.raises(BadHeader):
        read_logit_file(tmp_path / "other")
    with pytest.raises(Truncated):
        read_logit_file(tmp_path / "zero")


def test_the_text_is_long_enough() -> None:
    assert 600 < len(fixed_text().split()) < 900


def test_the_watch_counts_stolen_time(tmp_path: Path) -> None:
    stat = tmp_path / "proc/stat"
    stat.parent.mkdir()
    stat.write_text("cpu  10 0 10 70 0 0 0 10 5 0\ncpu0 1 1 1 1 1 1 1 1\n")
    assert processor_times(tmp_path) == (10, 100)
    watch = Watch(threads=2, root=tmp_path)
    watch.look()
    stat.write_text("cpu  60 0 10 100 0 0 0 30 5 0\n")
    assert watch.stolen_share() == 0.2
    assert set(watch.bandwidth()) == {"1", "2"} and watch.bandwidth()["1"].unit == "bytes/s"
    assert processor_times(tmp_path / "nothing") == (0, 0)


def test_a_folder_without_a_repository_has_no_commit(tmp_path: Path) -> None:
    assert commit(tmp_path) == ""


def report() -> Report:
    """A report with one peer and one that is missing."""
    ours = {"decode_0": figure("decode_0", [Reading("", 20.0)]), "bytes_per_token": figure("bytes_per_token", [Reading("", 5e8)])}
    theirs = {"decode_0": figure("decode_0", [Reading("", 10.0)]), "start_s": figure("start_s", [])}
    entries = [
        Entry(name=name, version="1", model="m", model_bytes=1, figures=figures)
        for name, figures in (("khola", ours), ("llama.cpp", theirs))
    ]
    return Report(
        command=["khola", "bench"], khola="0", commit="", when="", took_s=1.0, python="", machine={}, threads=2, rounds=1, work={},
        reference="", bandwidth={"2": figure("bandwidth", [Reading("", 20e9)])}, rates=None, load=[0.5], stolen_share=0.0,
        entries=entries, missing=[Missing(name="vllm", message="not here", next_step="install it")],
    )  # fmt: skip


def test_a_report_has_the_keys_of_its_schema() -> None:
    data = json.loads(json.dumps(report().data()))
    assert SCHEMA == 2, "keys changed? then count SCHEMA up, and change this list"
    assert list(data) == [
        "schema", "command", "khola", "commit", "when", "took_s", "python", "machine", "threads", "rounds", "work", "reference",
        "bandwidth", "rates", "load", "stolen_share", "entries", "missing", "ratios",
    ]  # fmt: skip
    assert list(data["entries"][0]) == ["name", "version", "model", "model_bytes", "figures", "bandwidth_efficiency", "multiply_efficiency"]
    assert list(data["entries"][0]["figures"]["decode_0"]) == ["unit", "median", "low", "high", "values", "reason", "detail"]
    assert list(data["missing"][0]) == ["name", "message", "next_step"]
    assert data["ratios"] == {"llama.cpp": {"decode_0": 2.0}}


def test_products_are_measured_against_the_unit_that_keeps_their_numbers() -> None:
    plain = report()
    assert plain.multiply_efficiency(plain.entries[0]) is None
    figures = {
        "prefill_128": figure("prefill_128", [Reading("", 100.0)]),
        "prefill_2048": figure("prefill_2048", [Reading("", 500.0)]),
        "operations_per_token": figure("operations_per_token", [Reading("", 1e9)]),
    }
    ours = replace(plain.entries[0], figures=figures)
    timed = replace(plain, entries=[ours], rates={"amx_bf16": 2e12, "amx_int8": 4e12, "avx2_float32": 1e11})
    assert timed.multiply_efficiency(ours) == 0.25


def test_efficiency_is_bytes_by_bandwidth() -> None:
    ours, theirs = report().entries
    assert report().bandwidth_efficiency(ours) == pytest.approx(20 * 5e8 / 20e9)
    assert report().bandwidth_efficiency(theirs) is None
    assert ratios(ours, theirs) == {"decode_0": 2.0}
