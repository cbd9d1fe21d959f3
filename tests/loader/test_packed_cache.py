"""The second start maps what the first one packed, and packs anew whenever it must."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.engine.runner import ModelRunner, Part
from khola.errors import OurFault
from khola.loader import packed_cache
from khola.loader.load import load_model
from khola.loader.loaded import Loaded
from khola.native.pack import Packed
from khola.native.packed_file import PackedWriter
from khola.ops import native_weights
from khola.ops.native_ops import NativeOps
from khola.settings import Settings
from tests.loader.tiny_gguf import tiny_gguf
from tests.needs import needs_library

pytestmark = needs_library


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", user_home=tmp_path, threads=2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_gguf(tmp_path / "tiny.gguf")


def loaded(model: Path, settings: Settings, said: list[str] | None = None) -> Loaded:
    """The model, natively."""
    tell = lambda text, **facts: (said if said is not None else []).append(text.format(**facts))  # noqa: E731
    return load_model(str(model), settings=settings, interpreter="native", tell=tell)


def logits(model: Loaded) -> NDArray[np.float32]:
    """Of a short text, in one step."""
    (rows,) = ModelRunner(model, 4).logits([Part(list(b"some text"), 0, [0, 1], range(9))])
    return rows


def files(settings: Settings) -> list[Path]:
    """What is kept."""
    return sorted(settings.packed.iterdir()) if settings.packed.is_dir() else []


@pytest.fixture
def no_packing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From here on, packing is an error."""

    def forbid() -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise OurFault("packed again")

        monkeypatch.setattr(native_weights, "pack", refuse)

    return forbid


def test_the_second_start_packs_nothing_and_says_the_same(model: Path, settings: Settings, no_packing: Any) -> None:
    first = logits(loaded(model, settings))
    (kept,) = files(settings)
    no_packing()
    second = loaded(model, settings)
    assert np.array_equal(logits(second), first)
    assert all(packed.data.base is not None and not packed.data.flags.writeable for packed in second.ops.weights.matrices.values())  # type: ignore[attr-defined]
    assert files(settings) == [kept]


def test_loading_records_every_pass_once(model: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, passes = NativeOps.recorded, []

    def noted(self: NativeOps, forward: Any) -> Any:
        passes.append(forward)
        return recorded(self, forward)

    monkeypatch.setattr(NativeOps, "recorded", noted)
    loaded(model, settings)
    first = len(passes)
    loaded(model, settings)
    assert first == len(passes) - first == 2, "logits and hidden states"


def test_a_changed_model_is_packed_anew_and_replaces_the_old_file(model: Path, settings: Settings) -> None:
    before = logits(loaded(model, settings))
    (old,) = files(settings)
    tiny_gguf(model, seed=1)
    after = logits(loaded(model, settings))
    (new,) = files(settings)
    assert new != old and not np.array_equal(before, after)
    os.utime(model, ns=(1, 1))
    assert np.array_equal(logits(loaded(model, settings)), after)
    assert files(settings) != [new], "the time of change is part of the key"


def test_other_packing_code_does_not_use_the_file(model: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(model, settings)
    (old,) = files(settings)
    monkeypatch.setattr(packed_cache, "packer", lambda: [99])
    loaded(model, settings)
    assert files(settings) != [old]


@pytest.mark.parametrize("damage", ["cut", "header", "matrix", "empty", "form"])
def test_a_damaged_file_is_packed_anew(model: Path, settings: Settings, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = logits(loaded(model, settings))
    (kept,) = files(settings)
    whole = kept.read_bytes()
    if damage == "form":
        # As if an architecture joined other weights than it did when the file was written.
        monkeypatch.setattr(native_weights.Joined, "name", property(lambda self: "/".join(weight.name for weight in self.weights)))
    else:
        at = {"cut": 0, "empty": 0, "header": 100, "matrix": len(whole) // 2}[damage]
        spoiled = bytes([whole[at] ^ 4])
        kept.write_bytes({"cut": whole[:-5000], "empty": b""}.get(damage, whole[:at] + spoiled + whole[at + 1 :]))
    again = loaded(model, replace(settings, verify=damage == "matrix"))
    assert np.array_equal(logits(again), wanted)
    assert damage == "form" or (files(settings) == [kept] and kept.read_bytes() == whole)


def test_the_folder_stays_in_its_budget(tmp_path: Path, settings: Settings) -> None:
    models = [tiny_gguf(tmp_path / f"model{i}.gguf", seed=i) for i in range(4)]
    loaded(models[0], settings)
    size = files(settings)[0].stat().st_size
    small = replace(settings, packed_bytes=3 * size + 100)
    draft = settings.packed / ".left.khola.123.part"
    draft.write_bytes(b"x")
    os.utime(draft, (1, 1))
    for age, path in enumerate(files(settings)):
        os.utime(path, (age + 1, age + 1))
    loaded(models[1], small)
    loaded(models[2], small)
    loaded(models[0], small)
    loaded(models[3], small)
    assert [path.name.split("-")[0] for path in files(settings)] == ["model0", "model2", "model3"]
    assert not draft.exists()


def test_nothing_is_kept_where_nothing_may_be(model: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    wanted = logits(loaded(model, replace(settings, packed_bytes=0), said))
    assert np.array_equal(logits(loaded(model, replace(settings, packed_bytes=1000), said)), wanted)
    assert not files(settings) and not said
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 10**9))  # type: ignore[attr-defined]
    assert np.array_equal(logits(loaded(model, settings, said)), wanted)
    assert len(said) == 1 and "1000 MB are free" in said[0] and not files(settings)


def test_a_folder_that_cannot_be_is_told_once(model: Path, settings: Settings) -> None:
    settings.home.write_text("a file where the folder should be")
    said: list[str] = []
    loaded(model, settings, said)
    assert len(said) == 1 and said[0].startswith("packed weights are not kept for the next start: ")


def test_a_disk_that_fills_up_costs_the_file_and_nothing_else(model: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = logits(loaded(model, replace(settings, packed_bytes=0)))
    put, left = PackedWriter.put, [3]

    def full(self: PackedWriter, name: str, packed: Packed) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, name, packed)

    monkeypatch.setattr(PackedWriter, "put", full)
    said: list[str] = []
    assert np.array_equal(logits(loaded(model, settings, said)), wanted)
    assert len(said) == 1 and "the disk is full" in said[0] and not files(settings)


def test_several_at_once_harm_nobody(model: Path, settings: Settings) -> None:
    wanted = logits(loaded(model, replace(settings, packed_bytes=0)))
    found: list[NDArray[np.float32]] = []
    threads = [threading.Thread(target=lambda: found.append(logits(loaded(model, settings)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all(np.array_equal(rows, wanted) for rows in found)
    (kept,) = files(settings)
    assert kept.suffix == packed_cache.ENDING
