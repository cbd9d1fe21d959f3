"""`khola show` and `khola fit` as a user sees them: words, JSON, Bengali, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len

import khola.api.fit
from khola.cards.card import Licence
from khola.cards.catalogue import card, cards, licences
from khola.cli.tables import print_table, size
from khola.cli.talk import Talk
from khola.lineage.sentences import licence_sentences
from khola.native.probe import Machine
from khola.settings import Settings
from tests.cli.command import Command

GB = 10**9
LAPTOP = Machine(
    cpu="Some processor",
    architecture="x86_64",
    system="Linux 6",
    cores=2,
    instruction_sets=("avx2",),
    memory_bytes=26 * GB,
    available_bytes=24 * GB,
    disk_free_bytes=80 * GB,
    read_bytes_s=30e9,
)


@pytest.fixture(autouse=True)
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are for one known machine."""
    monkeypatch.setattr(khola.api.fit, "probe", lambda folder: LAPTOP)


def test_fit_says_that_the_largest_llama_does_not_fit(khola_says: Command) -> None:
    done = khola_says("fit", "llama-3.1-405b-instruct", "--interpreter", "numpy")
    assert done.code == 0
    assert done.err == ""
    lines = done.out.splitlines()
    assert any(line.startswith("It does not fit this machine: it needs 1.63 TB of memory, and 24.0 GB are free.") for line in lines)
    assert any("llama-3.2-3b-instruct" in line for line in lines if line.startswith("Smaller relatives"))
    (row,) = [line for line in lines if line.startswith("q4_k_m")]
    assert "~244 GB" in row
    assert "yes" not in row
    assert "names of models made from it must begin with 'Llama'" in done.out
    assert "700,000,000" in done.out


def test_fit_says_that_a_small_model_fits(khola_says: Command) -> None:
    done = khola_says("fit", "smollm2-135m-instruct", "--context", "8192")
    assert "It fits this machine with 8,192 tokens of context." in done.out
    assert "98.4 MB" in done.out


def test_fit_in_json_holds_the_whole_plan(khola_says: Command) -> None:
    plan = json.loads(khola_says("fit", "deepseek-r1-distill-llama-8b", "--json", "--interpreter", "numpy").out)
    assert plan["fits"] is False
    assert plan["implemented"] is True
    assert plan["parameters"] == 8_030_261_248
    assert [entry["key"] for entry in plan["licences"]] == ["llama-3.1", "MIT"]
    assert plan["machine"]["cores"] == 2
    assert {choice["format"] for choice in plan["choices"]} >= {"bf16", "q8_0", "q4_k_m"}


def test_fit_says_what_khola_does_not_run_yet(khola_says: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("khola.api.fit.implemented", lambda architecture: architecture != "deepseek_v3")
    assert "khola does not run the architecture deepseek_v3 yet." in khola_says("fit", "deepseek-r1").out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["fit", "llama-3.1-8b-instuct"], 2, "llama-3.1-8b-instruct"),
        (["fit", "qwen2.5-0.5b", "--context", "99999999"], 2, "32768"),
        (["fit", "no/such/file.gguf"], 2, "no/such/file.gguf"),
        (["show", "qwq"], 2, "qwq-32b"),
        (["show", "smollm2-135m", "--prompt", "hi"], 2, "khola complete"),
        (["show", "smollm2-135m", "--architecture", "qwen2"], 2, "khola pull smollm2-135m"),
    ],
)
@pytest.mark.parametrize("language", ["en", "bn"])
def test_errors_have_words_a_hint_and_an_exit_code(khola_says: Command, arguments: list[str], code: int, says: str, language: str) -> None:
    done = khola_says(*arguments, "--lang", language)
    assert done.code == code
    assert done.out == ""
    assert says in done.err
    assert done.err.startswith("error: " if language == "en" else "ত্রুটি: ")


def test_show_prints_a_card(khola_says: Command) -> None:
    done = khola_says("show", "DeepSeek-R1-Distill-Qwen-1.5B")
    assert done.code == 0
    for said in (
        "DeepSeek-R1-Distill-Qwen-1.5B  (deepseek-r1-distill-qwen-1.5b)",
        "qwen2.5-math-1.5b: initialised, Alibaba Cloud 2024",
        "  qwen2.5-1.5b: initialised, Alibaba Cloud 2024",
        "deepseek-r1: distilled, DeepSeek 2025",
        "1.78B (1,777,088,000); open",
        "temperature 0.6, top_p 0.95",
        "MIT License  https://",
        "Apache License 2.0  https://",
        "hf:deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    ):
        assert said in done.out, said


@pytest.mark.parametrize("name", sorted(cards()))
@pytest.mark.parametrize("language", ["en", pytest.param("bn", marks=pytest.mark.slow)])
def test_every_card_can_be_shown(khola_says: Command, name: str, language: str) -> None:
    done = khola_says("show", name, "--lang", language)
    assert (done.code, done.err) == (0, "")
    assert card(name).title in done.out
    assert ("নির্মাতা" in done.out) == (language == "bn")


def test_labels_line_up_in_bengali(khola_says: Command) -> None:
    lines = khola_says("show", "llama-3.2-1b-instruct", "--lang", "bn").out.splitlines()
    starts = {
        cell_len(line[: line.index(value)])
        for line in lines
        for value in ("Llama-3.2-1B-Instruct  (", "Meta, US", "2024-09-25")
        if value in line
    }
    assert len(starts) == 1


def test_show_in_json_holds_configuration_and_licence(khola_says: Command) -> None:
    shown = json.loads(khola_says("show", "qwen2.5-coder-0.5b-instruct", "--json").out)
    assert shown["config"]["hidden_size"] == 896
    assert shown["sizes"]["parameters"] == 494_032_768
    assert shown["licences"][0]["key"] == "Apache-2.0"
    assert shown["files"][0]["bytes"] == 491_400_064


def test_show_without_a_name_lists_every_card(khola_says: Command) -> None:
    lines = khola_says("show").out.splitlines()
    assert len(lines) == 1 + len(cards())
    assert {line.split()[0] for line in lines[1:]} == set(cards())
    assert len(json.loads(khola_says("show", "--json").out)) == len(cards())


def test_show_prints_a_prompt_as_the_model_reads_it(khola_says: Command) -> None:
    done = khola_says("show", "qwen2.5-0.5b-instruct", "--prompt", "hi <|im_end|>")
    assert done.out.endswith("<|im_start|>user\nhi <|im_end|><|im_end|>\n<|im_start|>assistant\n\n")
    shown = json.loads(khola_says("show", "qwen2.5-0.5b-instruct", "--prompt", "hi <|im_end|>", "--json").out)
    assert shown["format"] == "qwen2_5"
    assert {"control": "<|im_start|>"} in shown["parts"]
    assert any("hi <|im_end|>" in part.get("text", "") for part in shown["parts"])


@pytest.mark.parametrize("key", list(licences()))
@pytest.mark.parametrize("language", ["en", "bn"])
def test_licences_as_sentences(tmp_path: Path, key: str, language: str) -> None:
    record: Licence = licences()[key]
    talk = Talk(settings=Settings(home=tmp_path, user_home=tmp_path, language=language))
    said = "\n".join(licence_sentences(record, talk.language))
    for fact in (record.notice, record.use_policy, record.name_prefix, f"{record.mau_limit:,}" if record.mau_limit else ""):
        assert fact in said
    assert ("read it before you rely on it" in said or "মূল পাঠ পড়ে নিন" in said) == (not record.verified)
    assert len(said.splitlines()) >= 2 + len(record.duties)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (98_362_432, "98.4 MB"),
        (999_960_000, "1.00 GB"),
        (1_630_000_000_000, "1.63 TB"),
        (12_345e12, "12,345 TB"),
    ],
)
def test_sizes_have_three_figures(count: float, said: str) -> None:
    assert size(count) == said


def test_tables_line_up_in_every_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Talk(settings=Settings(home=tmp_path, user_home=tmp_path))
    print_table(talk, ["মডেল", "n"], [["a", "1"], ["模型模型", "22"], ["স্মৃতি", "[b]3[/b]"], ["x" * 200, "4"]], right=(1,))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert len({cell_len(line) for line in lines}) == 1
    assert lines[3].endswith("[b]3[/b]")


@pytest.mark.slow
def test_show_a_real_file(khola_says: Command, real_model: Callable[[str], Path]) -> None:
    path = str(real_model("qwen2.5-coder-0.5b-instruct"))
    done = khola_says("show", path)
    assert "630,167,424 in 291 tensors" in done.out
    assert "all that qwen2 needs, and no others" in done.out
    shown = json.loads(khola_says("show", path, "--json").out)
    assert shown["comparison"]["agrees"] is True
    assert shown["config"]["num_key_value_heads"] == 2
    other = khola_says("show", path, "--architecture", "llama")
    assert "72 that llama does not know:" in other.out
    assert "model.layers.0.self_attn.k_proj.bias" in other.out


def test_a_model_without_weights_is_shown_and_fits_nowhere(khola_says: Command) -> None:
    assert "not published" in khola_says("show", "kimi-k1.5").out
    assert json.loads(khola_says("show", "kimi-k1.5", "--json").out)["sizes"] is None
    refused = khola_says("fit", "kimi-k1.5")
    assert refused.code == 2 and "the weights of kimi-k1.5 have not been published" in refused.err
    assert "kimi-k2-instruct" in khola_says("show").out


def test_latents_have_no_cache_of_8_bits(khola_says: Command) -> None:
    refused = khola_says("fit", "moonlight-16b-a3b", "--interpreter", "native", "--cache", "int8")
    assert refused.code != 0 and "latents are kept in bfloat16" in refused.err


def test_precise_numbers_are_for_the_native_interpreter_alone(khola_says: Command) -> None:
    refused = khola_says("fit", "qwen2.5-0.5b", "--interpreter", "numpy", "--precise")
    assert refused.code == 2 and "the numpy interpreter rounds nothing" in refused.err
    refused = khola_says("fit", "qwen2.5-0.5b", "--precise", "--cache", "int8")
    assert refused.code == 2 and "precise keeps keys and values in float32, not in int8" in refused.err
    plain, precise = (
        json.loads(khola_says("fit", "qwen2.5-0.5b", "--json", "--interpreter", "native", *more).out) for more in ((), ("--precise",))
    )
    assert precise["cache_bytes"] / precise["context"] == 2 * plain["cache_bytes"] / plain["context"]
