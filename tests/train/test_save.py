"""Checkpoints: whole or not at all, damage is seen, the last valid one stays (P2, P3, P7, P8)."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from khola.errors import HashMismatch, KholaError, NoDisk, NoRoom
from khola.train import save
from khola.train.save import Saved

STATE = {"tokens": 3}


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    """Small ones."""
    return {
        "weights": {"a": torch.full((2, 3), value), "b": torch.full((4,), value, dtype=torch.float64)},
        "optimiser": {"m/a": torch.ones(2, 3)},
    }


def newest(folder: Path, told: list[str] | None = None) -> Saved | None:
    """The newest valid one."""
    return save.newest(folder, lambda text, **facts: (told if told is not None else []).append(text.format(**facts)))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save.write(tmp_path, 7, tensors(0.1), STATE)
    found = newest(tmp_path)
    assert found is not None and found.step == 7 and found.state["tokens"] == 3
    for name, values in tensors(0.1)["weights"].items():
        assert torch.equal(found.tensors["weights"][name], values)
        assert found.tensors["weights"][name].dtype is values.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["step-000007"]


def failing(monkeypatch: pytest.MonkeyPatch, at: int, code: int) -> Callable[[], int]:
    """Let the `at`-th call that changes the disk fail; gives the number of calls."""
    calls = 0

    def wrapped(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal calls
            if "rb" in args:
                return function(*args, **options)
            calls += 1
            if calls == at:
                raise OSError(code, os.strerror(code))
            return function(*args, **options)

        return call

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "mkdir"), (Path, "open")):
        monkeypatch.setattr(owner, name, wrapped(getattr(owner, name)))
    return lambda: calls


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, NoDisk), (errno.EDQUOT, NoDisk), (errno.EIO, NoRoom)])
def test_a_full_disk_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[KholaError]) -> None:
    """At every operation: a typed error, the old checkpoint stays, no draft is left, and the next attempt works."""
    save.write(tmp_path, 1, tensors(1.0), STATE)
    with monkeypatch.context() as patch:
        calls = failing(patch, 0, code)
        save.write(tmp_path, 2, tensors(2.0), STATE)
        operations = calls()
    assert operations > 15
    for at in range(1, operations + 1):
        shutil.rmtree(tmp_path / "step-000002", ignore_errors=True)
        with monkeypatch.context() as patch:
            failing(patch, at, code)
            try:
                save.write(tmp_path, 2, tensors(2.0), STATE)
                failed = False
            except KholaError as problem:
                failed = True
                assert isinstance(problem, error)
        found = newest(tmp_path)
        assert found is not None
        assert found.step in ((1, 2) if failed else (2,))
        assert torch.equal(found.tensors["weights"]["a"], tensors(float(found.step))["weights"]["a"])
        assert not [path for path in tmp_path.iterdir() if ".tmp-" in path.name]
    save.write(tmp_path, 3, tensors(3.0), STATE)
    assert (found := newest(tmp_path)) is not None and found.step == 3


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    """The damaged checkpoint is told of, and the one before it is used."""
    rng = random.Random(0)
    save.write(tmp_path, 1, tensors(1.0), STATE)
    path = save.write(tmp_path, 2, tensors(2.0), STATE)
    files = sorted(path.iterdir())
    assert len(files) == 4
    for _ in range(100):
        file = rng.choice(files)
        whole = bytearray(file.read_bytes())
        bit = rng.randrange(8 * len(whole))
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        told: list[str] = []
        found = newest(tmp_path, told)
        assert found is not None and found.step == 1, (file, bit)
        assert len(told) == 1 and "damaged" in told[0]
        file.write_bytes(whole)
    assert (found := newest(tmp_path)) is not None and found.step == 2


def test_a_file_too_many_or_too_few_is_seen(tmp_path: Path) -> None:
    path = save.write(tmp_path, 1, tensors(1.0), STATE)
    (path / "more.safetensors").write_bytes(b"")
    with pytest.raises(HashMismatch):
        save.check(path)
    (path / "more.safetensors").unlink()
    save.check(path)
    (path / "optimiser.safetensors").unlink()
    with pytest.raises(HashMismatch):
        save.check(path)


def test_purging_never_removes_the_last_valid_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random schedules of saving, damaging and purging; that bytes reach the disk matters to other tests."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    rng = random.Random(1)
    for schedule in range(15):
        folder = tmp_path / str(schedule)
        valid: set[int] = set()
        for step in range(1, 8):
            save.write(folder, step, tensors(float(step)), STATE)
            valid.add(step)
            if rng.random() < 0.4:
                hurt = rng.choice(sorted(valid))
                (folder / f"step-{hurt:06}" / "weights.safetensors").write_bytes(b"damaged")
                valid.discard(hurt)
            before = newest(folder)
            try:
                save.purge(folder, rng.choice([1, 2, 3]))
            except KholaError:
                assert step not in valid
            after = newest(folder)
            assert (before is None) == (after is None)
            assert before is None or (after is not None and after.step == before.step)
            valid &= {int(path.name[5:]) for path in folder.iterdir()}


def test_drafts_of_a_killed_process_go(tmp_path: Path) -> None:
    (tmp_path / "step-000003.tmp-0a1b").mkdir()
    (tmp_path / "step-000003.tmp-0a1b" / "weights.safetensors").write_bytes(b"half")
    (tmp_path / "kept").mkdir()
    assert newest(tmp_path) is None
    save.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
