"""The cache gives back what was put, refuses what is damaged or foreign, and survives being killed at any moment."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from khola.chat.message import Message
from khola.errors import BadFiles, HashMismatch
from khola.train.opinion import Opinion, Question, scored, written
from khola.train.teacher_cache import TeacherCache
from tests.train.cache_writer import ANSWERS, HEADER, opinion, question


def same(left: Opinion | None, right: Opinion) -> None:
    assert left is not None
    for name in Opinion.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name, strict=True)


def filled(folder: Path, numbers: range, header: dict[str, object] | None = None) -> TeacherCache:
    cache = TeacherCache(folder, header or HEADER)
    for number in numbers:
        cache.put(question(number), opinion(number))
    cache.flush()
    return cache


def test_round_trip(tmp_path: Path) -> None:
    one = filled(tmp_path, range(5))
    two = filled(tmp_path, range(3, 9))
    for cache in (one, two, TeacherCache(tmp_path, HEADER)):
        for number in range(5 if cache is one else 9):
            same(cache.get(question(number)), opinion(number))
    assert TeacherCache(tmp_path, HEADER).get(question(10)) is None
    assert len(TeacherCache(tmp_path, HEADER)) == 9
    # Known answers are not written again: five in the first shard, four in the second.
    assert len(list(one.folder.glob("*.safetensors"))) == 2


def test_what_waits_is_known(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, HEADER)
    cache.put(question(1), opinion(1))
    same(cache.get(question(1)), opinion(1))
    assert question(1) in cache
    assert not list(cache.folder.glob("*.safetensors"))


def test_written_and_rewritten_texts(tmp_path: Path) -> None:
    turns = (Message(role="user", content="কেমন?"),)
    asked = [Question(messages=turns), Question(messages=turns, seed=1), Question(text="\u09df")]
    told = [written("ভালো।", True, "ভাবি"), written("", False), scored("\u09af\u09bc", [6], np.array([-1.5]))]
    cache = TeacherCache(tmp_path, {"teacher": "x"})
    for one, other in zip(asked, told, strict=True):
        cache.put(one, other)
    cache.flush()
    again = TeacherCache(tmp_path, {"teacher": "x"})
    for one, other in zip(asked, told, strict=True):
        same(again.get(one), other)


def test_a_few_bytes_a_token(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, {"teacher": "x"})
    text = "a" * 20_000
    cache.put(Question(text=text), scored(text, [4] * 5000, np.full(5000, -1.0)))
    cache.flush()
    (shard,) = cache.folder.glob("*.safetensors")
    assert shard.stat().st_size <= 4 * 5000 + 2000


def test_another_teacher_has_another_folder(tmp_path: Path) -> None:
    one, two = filled(tmp_path, range(2)), TeacherCache(tmp_path, {**HEADER, "top": 3})
    assert one.folder != two.folder
    assert len(two) == 0
    (shard,) = one.folder.glob("*.safetensors")
    shard.rename(two.folder / shard.name)
    with pytest.raises(BadFiles, match="belongs to another teacher's cache"):
        TeacherCache(tmp_path, {**HEADER, "top": 3})


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(4))
    (shard,) = cache.folder.glob("*.safetensors")
    raw = shard.read_bytes()
    draw = random.Random(1)
    for _ in range(40):
        at, bit = draw.randrange(len(raw)), 1 << draw.randrange(8)
        shard.write_bytes(raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :])
        with pytest.raises(BadFiles):
            TeacherCache(tmp_path, HEADER)
    shard.write_bytes(raw[:-1])
    with pytest.raises(BadFiles):
        TeacherCache(tmp_path, HEADER)


def test_damage_is_named(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(4))
    (shard,) = cache.folder.glob("*.safetensors")
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(HashMismatch, match="its bytes are not those that were written"):
        TeacherCache(tmp_path, HEADER)
    shard.write_bytes(raw)
    (cache.folder / "header.json").write_text("{}")
    with pytest.raises(BadFiles, match="tells of another teacher"):
        TeacherCache(tmp_path, HEADER)


def killed_once(folder: Path, after_s: float) -> bool:
    """Start the writer, kill it after a while; whether it had ended by itself. What it told of is there."""
    writer = [sys.executable, str(Path(__file__).with_name("cache_writer.py")), str(folder)]
    with subprocess.Popen(writer, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline()]
        time.sleep(after_s)
        process.kill()
        said += process.stdout.readlines()
    cache = TeacherCache(folder, HEADER)
    for word in said:
        if word.strip().isdecimal():
            same(cache.get(question(int(word))), opinion(int(word)))
    return any(word.startswith("done") for word in said)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    draw = random.Random(5)
    sizes = []
    for _ in range(6):
        done = killed_once(tmp_path, draw.uniform(0, 0.05))
        sizes.append(len(TeacherCache(tmp_path, HEADER)))
        if done:
            break
    assert 0 < sizes[0] < ANSWERS
    assert sizes == sorted(sizes)
    assert killed_once(tmp_path, 2.0)
    cache = TeacherCache(tmp_path, HEADER)
    assert len(cache) == ANSWERS
    for number in range(ANSWERS):
        same(cache.get(question(number)), opinion(number))
