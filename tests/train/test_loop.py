"""A run from rows to a model, what it refuses, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import khola
from khola.cli.main import run as command
from khola.errors import AskedWrong, BadRow, Busy, NonFinite, NoTemplate, UnknownOption
from khola.fetch.locks import locked
from khola.train import loop
from khola.train.config import resolve, toml
from khola.train.methods import NAMES, Loss, method_named, sft
from khola.train.model import Trainee
from tests.train.runs import LORA, bits, done, last, rows, settings, small_run, write_rows

BAD_ROWS: dict[str, tuple[Any, str]] = {
    "a wrong role": ({"messages": [{"role": "robot", "content": "x"}]}, "has the role 'robot'"),
    "no answer": ({"messages": [{"role": "user", "content": "x"}]}, "nothing would be learned"),
    "an empty conversation": ({"messages": []}, "the conversation is empty"),
    "messages of a wrong kind": ({"messages": "hello"}, "a list of messages, not str"),
    "a key that nobody reads": ({"messages": [], "weight": 2}, "nothing reads the key 'weight'"),
    "an empty completion": ({"prompt": "a", "completion": ""}, "completion is empty"),
    "a completion without its prompt": ({"completion": "a"}, "prompt is NoneType"),
    "neither of the kinds": ({"txt": "a"}, "nothing reads the key 'txt'"),
    "too long": ({"text": "x" * 300}, "301 tokens; at most 96 are read"),
    "tools of a wrong kind": ({"messages": rows(1)[0]["messages"], "tools": [{"name": 3}]}, "tools: "),
}


def losses(run: Any) -> list[float]:
    """Of every step."""
    return [one["loss"] for one in last(run).state["history"]]


@pytest.mark.parametrize("options", [(), LORA])
def test_a_run_learns_and_its_model_runs(tmp_path: Path, options: tuple[str, ...]) -> None:
    run = small_run(tmp_path, options=["epochs=6", *options])
    finished = done(run, tmp_path)
    assert finished is not None
    found = losses(run)
    assert sum(found[-3:]) < 0.75 * sum(found[:3])
    with khola.load(str(finished.model), interpreter="numpy") as model:
        assert model.complete("the", sampling={"max_tokens": 4, "temperature": 0}).tokens
    assert {path.name for path in Path(run.out).iterdir()} >= {"config.toml", "run.json", "curves.html", "model", "checkpoints"}
    page = (Path(run.out) / "curves.html").read_text()
    assert page.count("<svg") == 4 and "http" not in page.replace("http://www.w3.org", "")
    record = json.loads((Path(run.out) / "run.json").read_text())
    assert list(record["data"]) == [str(tmp_path / "rows.jsonl")]
    if options:
        adapter = json.loads((Path(run.out) / "adapter" / "adapter_config.json").read_text())
        assert (adapter["r"], adapter["use_dora"]) == (4, True)


def test_the_written_config_is_the_run(tmp_path: Path) -> None:
    run = small_run(tmp_path, options=["steps=1", *LORA])
    done(run, tmp_path)
    again = resolve(Path(run.out) / "config.toml", {})
    assert again == run and again.fingerprint() == run.fingerprint()
    assert toml(again.table()) == (Path(run.out) / "config.toml").read_text()


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named_before_anything_is_trained(tmp_path: Path, kind: str) -> None:
    value, said = BAD_ROWS[kind]
    run = small_run(tmp_path, values=[*rows(5), value, *rows(2)])
    with pytest.raises(BadRow, match=said) as caught:
        done(run, tmp_path)
    assert caught.value.facts["line"] == 6
    assert not (Path(run.out) / "checkpoints").exists()


def test_long_rows_are_cut_or_left_out_when_that_is_asked_for(tmp_path: Path) -> None:
    values = [*rows(5), {"text": "x" * 300}]
    told: list[str] = []
    done(small_run(tmp_path, out="cut", values=values, options=["packing.too_long=cut", "steps=1"]), tmp_path, told=told)
    assert told == []
    done(small_run(tmp_path, out="without", options=["packing.too_long=leave_out", "steps=1"]), tmp_path, told=told)
    assert told == [f"1 rows are longer than 96 tokens and are left out: {tmp_path / 'rows.jsonl'}:6"]


def test_a_row_that_loses_its_answer_by_cutting_is_refused(tmp_path: Path) -> None:
    talk = {"messages": [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]}
    with pytest.raises(BadRow, match="no token of this row would be learned"):
        done(small_run(tmp_path, values=[talk], options=["packing.too_long=cut"]), tmp_path)


def test_data_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AskedWrong, match="nothing in the data would be learned"):
        done(small_run(tmp_path, values=[{"text": "x" * 300}], options=["packing.too_long=leave_out"]), tmp_path)


def test_a_model_without_a_format_takes_no_messages(tmp_path: Path) -> None:
    with pytest.raises(BadRow, match="no chat format that khola knows"):
        done(small_run(tmp_path, options=["chat="]), tmp_path)
    model = Trainee(loop.find(str(tmp_path / "tiny"), settings(tmp_path)))
    with pytest.raises(NoTemplate):
        assert model.format


def test_another_run_does_not_go_into_the_same_folder(tmp_path: Path) -> None:
    done(small_run(tmp_path, options=["steps=1"]), tmp_path)
    with pytest.raises(AskedWrong, match="its settings differs"):
        done(small_run(tmp_path, options=["steps=2"]), tmp_path)
    write_rows(tmp_path / "rows.jsonl", rows(7))
    with pytest.raises(AskedWrong, match="its data differs"):
        done(small_run(tmp_path, options=["steps=1"]), tmp_path)


def test_two_trainers_do_not_share_a_folder(tmp_path: Path) -> None:
    run = small_run(tmp_path, options=["steps=1"])
    with locked(Path(run.out) / ".lock"), pytest.raises(Busy):
        done(run, tmp_path)


def poisoned(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool], value: float) -> None:
    """Let the losses of some batches be no numbers."""
    plain, calls = sft.loss, iter(range(10_000))

    def loss(model: Any, batch: Any, config: Any) -> Loss:
        found = plain(model, batch, config)
        return Loss(sum=found.sum * value) if bad(next(calls)) else found

    monkeypatch.setattr(sft, "loss", loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_never_reaches_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    options = ["steps=4", "save.every=1", "save.keep=9"]
    run, told = small_run(tmp_path, options=options), list[str]()
    poisoned(monkeypatch, lambda call: call == 5, value)  # the second micro-batch of the third step
    done(run, tmp_path, told=told)
    before, after = (loop.save.read(Path(run.out) / "checkpoints" / f"step-{step:06}", step) for step in (2, 3))
    assert bits(before) == bits(after)
    assert [one["loss"] is None for one in last(run).state["history"]] == [False, False, True, False]
    assert told == ["step 3 gave numbers that are not finite; the weights stay as they are"]
    assert all(torch.isfinite(one).all() for one in last(run).tensors["weights"].values())


def test_ten_bad_steps_in_a_row_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, lambda call: True, float("nan"))
    run = small_run(tmp_path, options=["epochs=9"])
    with pytest.raises(NonFinite, match=r"10 steps in a row .*rows\.jsonl:\d+"):
        done(run, tmp_path)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    options = ["steps=6", "save.every=2", "save.keep=9"]
    straight, hurt = (small_run(tmp_path, out=out, options=options) for out in ("straight", "hurt"))
    done(straight, tmp_path)
    done(hurt, tmp_path)
    damaged = Path(hurt.out) / "checkpoints" / "step-000006" / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    told: list[str] = []
    done(hurt, tmp_path, told=told)
    assert "damaged" in told[0] and told[1] == "going on behind step 4 of 6"
    assert bits(last(straight)) == bits(last(hurt))


def test_settings_that_nobody_reads_are_refused(tmp_path: Path) -> None:
    for setting, said in {
        "optimiser.lrr=1": "there is no setting optimiser.lrr", "speed=3": "there is no setting speed",
        "sft.turn=last": "there is no setting sft.turn", "method=stf": "no training method 'stf'", "lora.rnk=2": "no setting lora.rnk",
    }.items():  # fmt: skip
        with pytest.raises(UnknownOption, match=said):
            small_run(tmp_path, options=[setting])
    for setting, said in {
        "optimiser.clip=-1": "optimiser.clip: ", "sft.turns=some": "sft.turns: ", "epochs=0": "epochs: ", "packing=3": "packing: ",
        "nothing": "expected NAME=VALUE", "seed.a=1": "seed",
    }.items():  # fmt: skip
        with pytest.raises(AskedWrong, match=said):
            small_run(tmp_path, options=[setting])


@pytest.mark.parametrize("name", NAMES)
def test_methods_are_whole(name: str) -> None:
    method = method_named(name)
    assert name == method.NAME and method.Config() is not None
    assert callable(method.samples) and callable(method.source) and callable(method.loss)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KHOLA_LANG", "en")
    monkeypatch.setenv("KHOLA_HOME", str(tmp_path / "khola"))
    small_run(tmp_path)
    words = [
        "train",
        "sft",
        str(tmp_path / "tiny"),
        "--data",
        str(tmp_path / "rows.jsonl"),
        "--set",
        "chat=chatml",
        "--set",
        "packing.length=96",
        "--set",
        "packing.tokens=99",
    ]
    words += ["--set", "packing.accumulate=1"]
    assert command([*words, "--preview", "1"]) == 0
    shown = capsys.readouterr()
    assert "<|im_start|>assistant\n⟦in the 0<|im_end|>⟧\n" in shown.out
    assert "60 sequences" in shown.err
    assert command([*words, "--out", str(tmp_path / "new"), "--lora"]) != 0
    assert "--licence" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    known = ["--licence", f"{tmp_path / 'tiny'}=Apache-2.0"]
    assert command([*words, *known, "--out", str(tmp_path / "new"), "--lora", "--set", "steps=2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["steps"] == 2
    record = json.loads(Path(shown["lineage"]).read_text(encoding="utf-8"))
    assert (record["how"], record["parents"][0]["role"], record["data"][0]["rows"]) == ("fine-tuned", "weights", 60)
    assert command(["train", "sft", str(tmp_path / "tiny")]) == 2
    assert "--data is missing" in capsys.readouterr().err
    assert command(["train", str(tmp_path / "new" / "config.toml"), *known]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'new' / 'model'}\n"
    assert "going on behind step 2 of 2" in shown.err
