"""How khola measures itself: on a clock that only computing moves, and on a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.api.bench import (
    QUICK,
    Reading,
    Work,
    bench_engine,
    log_softmax,
    measure_decode,
    measure_prefill,
    measure_streams,
    operations_per_token,
    read_bytes,
    scored_targets,
    window_logprobs,
    windows_of,
)
from khola.engine.engine import Engine
from khola.engine.runner import Part
from khola.errors import AskedWrong
from khola.nn import decoder
from khola.ops.numpy_ops import NumpyOps
from khola.ops.vocabulary import whole_sequences
from khola.ops.weights import tree_of
from tests.engine.fakes import BEGIN, VOCAB, ByteTokenizer
from tests.engine.tiny import quantised_experts, tiny_llama

WORK = Work(prefill=(64, 512), decode=(0, 100), decode_tokens=32, streams=(1, 4, 16), stream_prompt_tokens=40, stream_tokens=32)


@dataclass
class PacedRunner:
    """Computes nothing, in a time that is known: so much for a step, and so much more for every row."""

    step_s: float
    row_s: float
    now: float = 0.0
    steps: list[int] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def logits(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        rows = sum(len(part.ids) for part in parts)
        self.now += self.step_s + rows * self.row_s
        self.steps.append(rows)
        return [np.zeros((len(part.wanted), VOCAB), np.float32) for part in parts]

    def scores(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        return self.logits(parts)

    def hidden(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        raise AssertionError("nobody asked for embeddings")


def paced(runner: PacedRunner, work: Work = WORK) -> Engine:
    """An engine whose steps take a known time."""
    loaded = tiny_llama(context_tokens=2048)
    rows = max(16, *work.streams)
    return Engine(loaded, cache_tokens=work.cache_tokens, max_rows=rows, clock=runner.clock, runner=runner)


def values(readings: Sequence[Reading]) -> dict[str, float | None]:
    """Readings by their names."""
    return {reading.name: reading.value for reading in readings}


def test_prefill_is_tokens_by_seconds() -> None:
    runner = PacedRunner(step_s=0.0, row_s=0.001)
    found = values(list(measure_prefill(paced(runner), WORK, np.random.default_rng(0), runner.clock)))
    assert found == pytest.approx({"prefill_64": 1000.0, "prefill_512": 1000.0})


def test_prefill_runs_once_before_it_is_timed() -> None:
    runner = PacedRunner(step_s=0.0, row_s=0.001)
    list(measure_prefill(paced(runner), WORK, np.random.default_rng(0), runner.clock))
    assert sum(runner.steps) == 2 * (64 + 512)


def test_decode_leaves_the_prompt_out() -> None:
    runner = PacedRunner(step_s=0.01, row_s=0.01)
    found = values(list(measure_decode(paced(runner), WORK, np.random.default_rng(0), runner.clock)))
    assert found == pytest.approx({"decode_0": 50.0, "decode_100": 50.0})


def test_streams_count_tokens_of_all_while_all_run() -> None:
    runner = PacedRunner(step_s=0.1, row_s=0.0)
    found = values(list(measure_streams(paced(runner), WORK, np.random.default_rng(0), runner.clock)))
    assert found == pytest.approx({"streams_1": 10.0, "streams_4": 40.0, "streams_16": 160.0})


def test_every_stream_costs_its_rows() -> None:
    runner = PacedRunner(step_s=0.0, row_s=0.01)
    found = values(list(measure_streams(paced(runner), WORK, np.random.default_rng(0), runner.clock)))
    assert found == pytest.approx({"streams_1": 100.0, "streams_4": 100.0, "streams_16": 100.0})


def test_what_takes_longer_than_its_time_is_said_to() -> None:
    runner = PacedRunner(step_s=0.0, row_s=0.1)
    engine = paced(runner)
    work = Work(prefill=(64, 512), decode=(0, 100), decode_tokens=32, streams=(4,), stream_prompt_tokens=40, stream_tokens=32, budget_s=8.0)
    found = {reading.name: reading for reading in measure_prefill(engine, work, np.random.default_rng(0), runner.clock)}
    assert found["prefill_64"].value == pytest.approx(10.0)
    assert found["prefill_512"].value is None and found["prefill_512"].reason == "too_long"
    found = {reading.name: reading for reading in measure_decode(engine, work, np.random.default_rng(0), runner.clock)}
    assert found["decode_0"].value == pytest.approx(10.0)
    assert found["decode_100"].reason == "too_long"
    (stream,) = measure_streams(engine, work, np.random.default_rng(0), runner.clock)
    assert stream.reason == "too_long"
    stats = engine.stats()
    assert stats.running == stats.waiting == 0 and stats.pages_used == 0


def test_a_long_answer_is_cut_and_still_told() -> None:
    runner = PacedRunner(step_s=0.0, row_s=0.5)
    work = Work(decode=(0,), decode_tokens=128, budget_s=10.0)
    (reading,) = measure_decode(paced(runner, work), work, np.random.default_rng(0), runner.clock)
    assert reading.value == pytest.approx(2.0)


def test_a_short_context_is_no_error() -> None:
    loaded = tiny_llama(context_tokens=128)
    work = Work(prefill=(16, 512), decode=(0, 2048), decode_tokens=8, streams=(2,), stream_prompt_tokens=100, stream_tokens=100)
    engine = bench_engine(loaded, work)
    rng = np.random.default_rng(0)
    found = {
        reading.name: reading for measure in (measure_prefill, measure_decode, measure_streams) for reading in measure(engine, work, rng)
    }
    assert {name for name, reading in found.items() if reading.reason == "context"} == {"prefill_512", "decode_2048", "streams_2"}
    assert found["prefill_16"].value and found["decode_0"].value


def test_the_tiny_model_is_measured_whole() -> None:
    loaded = tiny_llama()
    work = Work(prefill=(40,), decode=(0, 40), decode_tokens=8, streams=(1, 20), stream_prompt_tokens=8, stream_tokens=24)
    engine = bench_engine(loaded, work)
    rng = np.random.default_rng(0)
    for measure in (measure_prefill, measure_decode, measure_streams):
        assert all(reading.value and reading.value > 0 for reading in measure(engine, work, rng))


def test_work_fits_its_own_cache() -> None:
    assert QUICK.context_tokens >= 2048 + QUICK.decode_tokens + 1
    assert QUICK.cache_tokens >= 32 * 64
    assert Work(prefill=(), decode=(), streams=()).cache_tokens > 0


def test_bytes_of_a_token_leave_an_embedding_table_out() -> None:
    loaded = tiny_llama()
    untied = sum(loaded.ops.weight_bytes(weight) for weight in loaded.weights.leaves())
    table = VOCAB * 32 * 4
    assert read_bytes(loaded) == untied - table
    leaves = [weight for weight in loaded.weights.leaves() if weight.name != "lm_head"]
    assert read_bytes(replace(loaded, weights=tree_of(leaves))) == untied - table


def test_a_token_passes_the_experts_that_are_chosen() -> None:
    loaded = quantised_experts(NumpyOps())
    mixture, leaves = loaded.config.mixture, list(loaded.weights.leaves())
    experts = sum(loaded.ops.weight_bytes(weight) for weight in leaves if weight.name.rpartition(".")[0].endswith(".experts"))
    every = sum(loaded.ops.weight_bytes(weight) for weight in leaves if not weight.name.endswith("embed_tokens")) - experts
    share = mixture.routing.chosen / mixture.experts
    assert share < 1 and read_bytes(loaded) == pytest.approx(every + experts * share, rel=1e-6)
    matrices = [w for w in leaves if w.data.ndim > 1 and not w.name.endswith(("embed_tokens", "lm_head"))]
    whole = sum(2 * w.data.size * (share if ".experts." in w.name else 1) for w in matrices)
    assert operations_per_token(loaded) == pytest.approx(whole, rel=1e-6)


def test_windows_are_whole_and_begin_as_the_model_wants() -> None:
    text = "abcdefghij" * 5
    plain = windows_of(ByteTokenizer(), text, 16)
    assert [len(ids) for ids in plain] == [16, 16, 16]
    assert bytes(plain[1]) == text.encode()[16:32]

    class Begins(ByteTokenizer):
        adds_bos = True

    begun = windows_of(Begins(), text, 16)
    assert all(ids[0] == BEGIN and len(ids) == 16 for ids in begun)
    # The first token of the second window gives way to the model's own.
    assert bytes(begun[1][1:]) == text.encode()[16:31]


def test_a_text_may_be_too_short() -> None:
    with pytest.raises(AskedWrong, match="16"):
        windows_of(ByteTokenizer(), "short", 16)


def test_scored_rows_equal_a_forward_without_a_cache() -> None:
    loaded = tiny_llama()
    rng = np.random.default_rng(1)
    windows = [rng.integers(0, 256, 256).tolist() for _ in range(2)]
    found_RV = np.concatenate(list(window_logprobs(loaded, windows)))
    expected = []
    for ids in windows:
        step = whole_sequences([256], range(128, 255))
        logits = decoder.logits(np.asarray(ids, np.int32), loaded.architecture, loaded.weights, loaded.config, step, loaded.ops)
        expected.append(log_softmax(loaded.ops.to_numpy(logits)))
    assert found_RV.shape == (len(scored_targets(windows)), VOCAB) == (254, VOCAB)
    np.testing.assert_allclose(found_RV, np.concatenate(expected), atol=2e-4)
    assert scored_targets(windows)[:127] == windows[0][129:]
    np.testing.assert_allclose(np.exp(found_RV).sum(1), 1, atol=1e-5)
