"""`khola licence`: verdicts as words and as JSON, in both languages; refusals end with the exit code of what is forbidden."""

from __future__ import annotations

import json

from tests.cli.command import Command


def test_what_a_model_owes(khola_says: Command) -> None:
    done = khola_says("licence", "llama-3.2-1b-instruct")
    assert done.code == 0 and "Built with Llama" in done.out and "section" in done.out and "700,000,000" in done.out


def test_a_model_whose_name_breaks_its_licence(khola_says: Command) -> None:
    done = khola_says("licence", "deepseek-r1-distill-llama-8b")
    assert done.code == 0 and "it breaks a licence" in done.out and "section 1.b.i" in done.out


def test_a_forbidden_student(khola_says: Command) -> None:
    done = khola_says("licence", "llama-3-8b-instruct", "--student", "qwen2.5-7b", "--name", "mine")
    assert done.code == 5 and "not allowed" in done.out and "section 1.b.v" in done.out
    done = khola_says("licence", "llama-3-8b-instruct", "--student", "qwen2.5-7b", "--lang", "bn")
    assert done.code == 5 and "করা যাবে না" in done.out and "করণীয়" in done.out


def test_an_allowed_student_as_json(khola_says: Command) -> None:
    done = khola_says("licence", "qwen2.5-coder-0.5b-instruct", "--student", "smollm2-135m-instruct", "--name", "avocado", "--json")
    data = json.loads(done.out)
    assert done.code == 0 and data["allowed"] and data["licences"] == ["Apache-2.0"] and data["refusals"] == []
    assert {(claim["model"], claim["way"], claim["binds"]) for claim in data["claims"]} == {
        ("qwen2.5-coder-0.5b-instruct", "outputs", False),
        ("smollm2-135m-instruct", "weights", True),
    }


def test_weights_and_data(khola_says: Command) -> None:
    done = khola_says("licence", "qwen2.5-3b", "--use", "weights", "--name", "x", "--data", "mine=own", "--json")
    assert json.loads(done.out)["commercial"] == "no"
    done = khola_says("licence", "qwen2.5-7b", "--name", "x", "--data", "mine=whatever", "--json")
    assert done.code == 5 and json.loads(done.out)["refusals"][0]["code"] == "unknown_licence"
    assert khola_says("licence", "qwen2.5-7b", "--name", "x", "--data", "mine").code == 2


def test_a_model_that_nobody_knows(khola_says: Command) -> None:
    done = khola_says("licence", "gpt-x")
    assert done.code == 5 and "--licence gpt-x=KEY" in done.err
    done = khola_says("licence", "gpt-x", "--licence", "gpt-x=MIT+Apache-2.0", "--json")
    assert done.code == 0 and json.loads(done.out)["licences"] == ["MIT", "Apache-2.0"]


def test_the_list_of_licences(khola_says: Command) -> None:
    assert {"llama-3", "MIT", "deepseek"} <= {entry["key"] for entry in json.loads(khola_says("licence", "--json").out)}
    done = khola_says("licence", "mit")
    assert done.out.startswith("MIT\n") and "its answers may train other models" in done.out
