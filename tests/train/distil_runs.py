"""Tiny distillations: a student, a teacher of another vocabulary or of the same one, and rows for both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from khola.train.config import Run
from khola.train.lessons import ask_teacher
from tests.loader.tiny_gguf import tiny_gguf
from tests.loader.whole_models import CONFIG, LETTERS, PIECES, arrays_of, write_folder
from tests.train.runs import settings, small_run

WORDS = ("about the cab", "in the inner", "under\tthe table ", "ab ab abba", "বাড়ি ও ক্ষমা", "x = [1, 22]\n")


def distil_rows(count: int = 24) -> list[dict[str, Any]]:
    """Prompts and completions, and plain texts."""
    pairs = [{"prompt": f"{number}: ", "completion": WORDS[number % 6] * (1 + number % 2)} for number in range(count)]
    return [{"text": "so " + row["completion"]} if number % 4 == 3 else row for number, row in enumerate(pairs)]


def other_teacher(place: Path) -> Path:
    """A teacher whose vocabulary is not the student's."""
    file = place / "teacher.gguf"
    return file if file.exists() else tiny_gguf(file, seed=3)


def same_teacher(place: Path) -> Path:
    """A teacher with the student's vocabulary and other weights."""
    folder = place / "elder"
    if not folder.exists():
        rng = np.random.default_rng(9)
        write_folder(
            folder, arrays={name: (one + rng.normal(0, 0.1, one.shape)).astype(np.float32) for name, one in arrays_of(CONFIG).items()}
        )
    return folder


def ascii_student(place: Path) -> Path:
    """The student of random weights, made to write ASCII: one number of every hidden state is large, and the head reads it."""
    arrays = arrays_of(CONFIG)
    arrays["model.embed_tokens.weight"][:, 0] = 4
    raw = [byte for byte, _ in enumerate(LETTERS)]
    arrays["lm_head.weight"][:, 0] = [3 if at >= len(raw) or 32 <= raw[at] < 127 else -3 for at in range(len(PIECES))]
    return write_folder(place / "tiny", arrays=arrays)


def distil_run(
    place: Path, teacher: Path, *, out: str = "out", options: Sequence[str] = (), values: Sequence[Any] | None = None, asks: bool = True
) -> Run:
    """A run whose teacher has been asked."""
    chosen = [f"distil.teacher={teacher}", *options]
    run = small_run(place, out=out, options=chosen, values=distil_rows() if values is None else values, method="distil")
    return ask_teacher(run, settings(place)) if asks else run
