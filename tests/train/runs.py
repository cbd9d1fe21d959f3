"""Tiny runs: a random model, rows that it can learn from, and a run over both."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from khola.settings import Settings
from khola.train.config import Run, resolve
from khola.train.loop import Finished, Progress, train
from khola.train.save import Saved, newest
from tests.loader.whole_models import write_folder

SMALL = ("chat=chatml", "packing.length=96", "packing.tokens=160", "packing.accumulate=2", "dtype=float32", "optimiser.lr=0.002")
FULL: tuple[str, ...] = ()
LORA = ("lora.rank=4", "lora.dora=true")
HALF = ("dtype=bfloat16",)


def settings(place: Path) -> Settings:
    """Of a home that holds nothing; one thread."""
    return Settings(home=place / "khola", user_home=place, threads=1)


def rows(count: int = 60) -> list[dict[str, Any]]:
    """Questions and answers of several lengths."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"the {number}"},
                {"role": "assistant", "content": "in the " + str(number) * (number % 9 + 1)},
            ]
        }
        for number in range(count)
    ]


def pairs(count: int = 40) -> list[dict[str, Any]]:
    """Questions with an answer that is preferred and one that is not."""
    return [
        {"messages": [{"role": "user", "content": f"the {number}"}], "chosen": "in the " * (number % 3 + 1), "rejected": str(number) * 5}
        for number in range(count)
    ]


def asked(count: int = 12) -> list[dict[str, Any]]:
    """Prompts of which the reward knows the answer."""
    return [{"prompt": f"the {number} ", "answer": "the in"} for number in range(count)]


ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {"sft": rows, "distil": rows, "dpo": pairs, "grpo": asked, "k15": asked}
SAMPLED = ("answer_tokens=6", "group=4", "prompts=3", "reward={form={pattern='.*[a-m].*'}}")
ON_LINE = {method: ("chat=", *(f"{method}.{setting}" for setting in SAMPLED)) for method in ("grpo", "k15")}
"""Settings with which a tiny model answers and is rewarded, often enough either way."""


def write_rows(path: Path, values: Sequence[Any]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def small_run(
    place: Path, *, out: str = "out", options: Sequence[str] = (), values: Sequence[Any] | None = None, method: str = "sft"
) -> Run:
    """A run over the tiny model in `place`, which is made if need be; one of distil gets a teacher, who has been asked."""
    if method == "distil" and not any(option.startswith("distil.teacher=") for option in options):
        from tests.train.distil_runs import distil_run, other_teacher

        return distil_run(place, other_teacher(place), out=out, options=options, values=values)
    model = place / "tiny"
    if not model.exists():
        write_folder(model)
    data = place / ("rows.jsonl" if ROWS[method] is rows else f"{method}.jsonl")
    if values is not None or not data.exists():
        write_rows(data, ROWS[method]() if values is None else values)
    given = {"method": method, "model": str(model), "data": (str(data),), "out": str(place / out)}
    return resolve(None, given, [*SMALL, *ON_LINE.get(method, ()), *options])


def done(run: Run, place: Path, *, until: int | None = None, told: list[str] | None = None) -> Finished | None:
    """Run it; `until` stops it as Ctrl-C would, behind this step and before what is done behind it."""

    def progress(now: Progress) -> None:
        if now.step == until:
            raise KeyboardInterrupt

    def tell(text: str, **facts: object) -> None:
        if told is not None:
            told.append(text.format(**facts))

    try:
        return train(run, settings(place), tell=tell, progress=progress)
    except KeyboardInterrupt:
        return None


def last(run: Run, tell: Callable[..., None] = lambda *_, **__: None) -> Saved:
    """The newest checkpoint of a run."""
    found = newest(Path(run.out) / "checkpoints", tell)
    assert found is not None
    return found


def figures(saved: Saved) -> list[dict[str, Any]]:
    """The history of a run without what a clock says, numbers as exact text."""
    clocked = ("seconds", "tokens_per_s")
    return [
        {key: value.hex() if isinstance(value, float) else value for key, value in one.items() if key not in clocked}
        for one in saved.state["history"]
    ]


def bits(saved: Saved) -> dict[str, bytes]:
    """Every number that a run goes on with, as bytes."""
    return {f"{file}/{name}": tensor.numpy().tobytes() for file, some in saved.tensors.items() for name, tensor in some.items()}


def same_runs(one: Saved, other: Saved) -> None:
    """Fail where two runs differ in a bit of a weight, a moment or a figure, or in their place in the data."""
    assert figures(one) == figures(other)
    assert bits(one) == bits(other)
    assert one.step == other.step
    for key in ("source", "updates", "tokens", "torch_rng"):
        assert one.state[key] == other.state[key], key
