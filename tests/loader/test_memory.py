"""Weights and memory: what does not fit is refused with the speed that the disk would allow, or streams when that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from khola.engine.runner import ModelRunner, Part
from khola.errors import NoDisk, NoMemory, UnknownOption
from khola.loader.load import load_model
from khola.loader.loaded import Loaded
from khola.loader.memory import active_share, missed_bytes
from khola.native.probe import disk_bandwidth
from tests.api.small_models import CONFIG, folder_model, settings_in
from tests.loader.test_experts_on_disk import FAMILIES
from tests.needs import needs_library

LITTLE = 10_000
"""Bytes of memory: less than the weights of any model here."""


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    return folder_model(tmp_path / "model", model_type="qwen3_moe", **FAMILIES["qwen3_moe"])


def loaded(path: Path, tmp_path: Path, **options: Any) -> Loaded:
    return load_model(str(path), settings=settings_in(tmp_path), **options)


@needs_library
def test_what_does_not_fit_is_refused_with_the_speed_of_the_disk(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(NoMemory) as wrong:
        loaded(mixture, tmp_path, interpreter="native", available_bytes=LITTLE)
    assert "--stream" in wrong.value.hint() and float(wrong.value.facts["tokens_s"]) > 0
    assert wrong.value.facts["needed_mb"] >= 1


def test_numpy_holds_all_weights(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(NoMemory, match="need") as wrong:
        loaded(mixture, tmp_path, interpreter="numpy", available_bytes=LITTLE)
    assert "native" in wrong.value.hint()
    with pytest.raises(UnknownOption, match="stream"):
        loaded(mixture, tmp_path, interpreter="numpy", available_bytes=LITTLE, stream=True)
    assert loaded(mixture, tmp_path, interpreter="numpy", stream=True).ops.name == "numpy"


@needs_library
@pytest.mark.parametrize("family", ["qwen3_moe", "llama"])
def test_weights_that_stream_compute_the_same(family: str, tmp_path: Path) -> None:
    path = folder_model(tmp_path / "model", model_type=family, **FAMILIES.get(family, {}))
    found = []
    for available, streams in ((None, False), (LITTLE, True)):
        model = loaded(path, tmp_path, interpreter="native", stream=True, available_bytes=available)
        assert getattr(model.ops, "streams", None) is streams
        runner = ModelRunner(model, 4)
        found += [
            runner.logits([Part(list(range(40)), 0, [0, 1], range(40))]),
            runner.logits([Part([7], 40, [0, 1], range(1), answers=b"\1")]),
        ]
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[1], found[3])


@needs_library
def test_weights_that_stream_need_the_disk(mixture: Path, tmp_path: Path) -> None:
    settings = replace(settings_in(tmp_path), packed_bytes=0)
    with pytest.raises(NoDisk, match="packed form"):
        load_model(str(mixture), settings=settings, interpreter="native", available_bytes=LITTLE, stream=True)


def test_what_a_token_misses() -> None:
    assert missed_bytes(100, 1.0, 50) == 100
    assert missed_bytes(100, 0.25, 80) == pytest.approx(5)
    assert missed_bytes(100, 0.25, -10) == 25


def test_dense_models_read_everything() -> None:
    assert active_share({**CONFIG, "model_type": "llama"}) == 1
    assert 0 < active_share({**CONFIG, "model_type": "qwen3_moe", **FAMILIES["qwen3_moe"]}) < 1
    assert active_share({"model_type": "of another world"}) == 1


def test_the_disk_has_a_speed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert disk_bandwidth(path, pieces=4, size=1 << 16) > 1e6
