"""Answers in a form, asked for by a program."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import khola
from khola.api import Model
from khola.errors import AskedWrong, BadGrammar, BadSchema, UnknownOption
from tests.api.test_api_model import ChatTokenizer, Script, scripted
from tests.engine.fakes import END, fake_loaded
from tests.engine.schemas import SCHEMAS

PERSON = SCHEMAS["object"]


class FormTokenizer(ChatTokenizer):
    """Its control tokens are spelled as ChatML spells them."""

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else self.token(token_id).encode()


def model(answer: str, *, chat_format: str = "chatml") -> Model:
    return scripted(answer, chat_format=chat_format, tokenizer=FormTokenizer())


def test_a_schema_gives_a_value() -> None:
    answer = model('{"name": "Rahim", "age": 42}').chat("Who?", schema=PERSON)
    assert (answer.parsed, answer.complete, answer.finish_reason) == ({"name": "Rahim", "age": 42}, True, "stop")
    assert answer.json()["parsed"] == answer.parsed
    assert "is_json" not in answer.json()


def test_a_schema_holds_a_model_that_says_something_else() -> None:
    answer = model("I would rather chat.").chat("Who?", schema=PERSON)
    Draft202012Validator(PERSON).validate(answer.parsed)


def test_a_schema_may_be_text_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(PERSON), encoding="utf-8")
    said = '{"name": "R", "age": 1}'
    for schema in (json.dumps(PERSON), str(path), path):
        assert model(said).chat("Who?", schema=schema).text == said


def test_the_other_forms(tmp_path: Path) -> None:
    path = tmp_path / "answer.lark"
    path.write_text('start: "x"+\n', encoding="utf-8")
    assert model("perhaps").chat("?", choice=["yes", "no"]).text in ("yes", "no")
    assert model("12345").chat("?", regex="[0-9]{3}").text == "123"
    assert set(model("xxx").chat("?", grammar=path, sampling={"max_tokens": 4}).text) == {"x"}
    assert model('{"a": 1}').chat("?", json_object=True).parsed == {"a": 1}
    assert len(model("xxx").complete("?", regex="[a-z]{3}").text) == 3
    free = model("text").chat("?")
    assert (free.parsed, free.complete) == (None, None)
    assert model('"text"').chat("?", regex='"text"').parsed is None


def test_pieces_of_an_answer_in_a_form() -> None:
    deltas = list(model('{"name": "R", "age": 1}').stream("?", schema=PERSON))
    assert json.loads("".join(delta.text for delta in deltas)) == {"name": "R", "age": 1}
    assert [delta.complete for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].complete is True


def test_a_cut_answer_has_no_value() -> None:
    answer = model('{"name": "Rahim", "age": 42}').chat("Who?", schema=PERSON, sampling={"max_tokens": 7})
    assert (answer.finish_reason, answer.complete, answer.parsed, answer.text) == ("length", False, None, '{"name"')


def test_json_that_python_cannot_hold_is_said() -> None:
    answer = khola.api.Answer(text="9" * 5000, thinking="", finish_reason="stop", usage=None, complete=True, is_json=True)  # type: ignore[arg-type]
    with pytest.raises(AskedWrong, match="cannot be held"):
        _ = answer.parsed


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"schema": {"not": {}}}, BadSchema),
        ({"schema": "no-such-file.json"}, AskedWrong),
        ({"schema": PERSON, "regex": "a"}, UnknownOption),
        ({"scheme": PERSON}, UnknownOption),
        ({"choice": "yes"}, BadGrammar),
        ({"grammar": "no rules here"}, BadGrammar),
        ({"thinking_tokens": 5}, AskedWrong),
        ({"tool_choice": "required"}, AskedWrong),
    ],
)
def test_forms_that_cannot_be_meant_are_refused(form: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        model("x").chat("?", **form)


def test_the_form_holds_behind_the_thought() -> None:
    answer = model("it may rain</think>\n\nperhaps", chat_format="qwq").chat("?", choice=["yes", "no"])
    assert answer.thinking == "it may rain"
    assert answer.text in ("yes", "no")
    bounded = model("it may rain and rain and rain", chat_format="qwq").chat("?", choice=["yes", "no"], thinking_tokens=11)
    assert bounded.thinking == "it may rain"
    assert bounded.text in ("yes", "no")


TOOLS = [
    {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False},
    },
    {"name": "stop", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
]


THINKING = ("qwq", "glm_z1", "ernie4_5_thinking")


@pytest.mark.parametrize(
    "chat_format",
    ["qwen2_5", "llama3_1", "deepseek_v3", "deepseek_v3_1", "kimi_k2", "minimax", "glm4", "glm4_0414", "qwen3_coder", *THINKING],
)
@pytest.mark.parametrize("tool_choice", ["required", "add", "stop"])
def test_a_call_can_be_required(chat_format: str, tool_choice: str) -> None:
    class Anyone(FormTokenizer):
        def id_of(self, token: str) -> int | None:
            return super().id_of(token) or (
                258 if token.startswith(("<|", "<｜", "<beg", "<end", "[g", "<s")) and "tool" not in token else None
            )

    loaded = fake_loaded(context_tokens=2048, tokenizer=Anyone(), chat_format=chat_format, stop_ids=frozenset({END}))
    with Model(loaded, runner=Script("I will not call anybody.</think>\n\n"), cache_tokens=2048) as stubborn:
        answer = stubborn.chat("1+1?", tools=TOOLS, tool_choice=tool_choice, thinking_tokens=30 if chat_format in THINKING else None)
    (call,) = answer.tool_calls
    assert call.name in ("add", "stop")
    assert tool_choice in ("required", call.name)
    parameters = next(tool["parameters"] for tool in TOOLS if tool["name"] == call.name)
    Draft202012Validator(parameters).validate(call.arguments)  # type: ignore[arg-type]
    assert answer.complete
    assert not answer.text.strip()


def test_a_call_that_is_required_leaves_no_text_for_another_form() -> None:
    answer = model("x", chat_format="qwen2_5").chat("?", tools=TOOLS, tool_choice="required", regex="a")
    assert (answer.text, len(answer.tool_calls)) == ("", 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_model_keeps_to_every_schema(real_model: Callable[[str], Path]) -> None:
    with khola.load(str(real_model("smollm2-135m-instruct")), context=1024) as real:

        def ask(number: int, schema: dict[str, Any]) -> khola.api.Answer:
            sampling = {"max_tokens": 150, "seed": 1, "temperature": 1.5 * (number % 2)}
            return real.chat("Give me some JSON.", schema=schema, sampling=sampling)

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(ask, range(len(SCHEMAS)), SCHEMAS.values()))
        for (name, schema), answer in zip(SCHEMAS.items(), answers, strict=True):
            if name == "list that nests" and answer.finish_reason == "length":
                # It has no greatest depth, and the likeliest answer goes on for ever.
                assert answer.complete is False
                continue
            assert (answer.finish_reason, answer.complete) == ("stop", True), (name, answer.text)
            Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(answer.parsed)
            assert not {token.id for token in answer.tokens} & real.loaded.tokenizer.control_ids, name


@pytest.mark.slow
def test_a_real_model_chooses_by_sense(real_model: Callable[[str], Path]) -> None:
    with khola.load(str(real_model("smollm2-135m-instruct")), context=512) as real:
        answer = real.complete("The capital of France is", choice=[" Berlin", " Paris", " Dhaka"], sampling={"temperature": 0})
        assert answer.text == " Paris"
        letters = real.chat("How do you say yes in Bengali?", choice=["হ্যাঁ", "না", "য়"], sampling={"temperature": 0})
        assert letters.text in ("হ্যাঁ", "না", "য়")
