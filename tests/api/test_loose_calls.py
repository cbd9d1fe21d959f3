"""Tools whose schemas cannot be held whole are offered all the same, unless they are strict; calls are held to the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from khola.engine import grammar
from khola.engine.grammar import Grammar
from khola.engine.matcher import Grammars
from khola.errors import BadSchema
from tests.api.tool_schemas import PARTLY, WHOLE
from tests.api.wanderers import Marks, seeded, wanderer

OPENED = {"qwen2_5": '<tool_call>\n{{"name": "{}"', "qwen3_coder": "<tool_call>\n<function={}>"}
LIKE_CLIENTS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in WHOLE.items()]


def argument(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A schema of arguments: this one, and one that is always held."""
    return {"type": "object", "properties": {"a": schema, "sure": {"type": "boolean"}}, "required": ["a", "sure"], **more}


LOOSE = [{"name": name, "parameters": argument(PARTLY[name][0], additionalProperties=False)} for name in PARTLY]


def called(name: str, tool: str, tools: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The arguments of a call of a tool by random weights."""
    model, prepared = wanderer(name, OPENED[name].format(tool), marked=False, tools=tools)
    answer = seeded(model, prepared, seed, max_tokens=4000)
    assert (answer.finish_reason, answer.complete) == ("stop", None), answer.text[-300:]
    assert answer.tool_calls[0].name == tool
    return dict(answer.tool_calls[0].arguments)


def usable(form: str, parameters: dict[str, dict[str, Any]], loose: list[str] | None = None) -> Grammar:
    """What calls of loose tools are held to."""
    shape = wanderer(form, "", marked=False, tools=LIKE_CLIENTS)[1].parser.call_form
    assert shape is not None
    made = grammar.calls(list(parameters.items()), shape, loose=list(parameters) if loose is None else loose)
    return Grammars(Marks()).usable(made)


@pytest.mark.parametrize("tool", WHOLE)
def test_tools_of_clients_are_taken_and_their_calls_are_valid(tool: str) -> None:
    check = Draft202012Validator(WHOLE[tool], format_checker=Draft202012Validator.FORMAT_CHECKER)
    check.validate(called("qwen2_5", tool, LIKE_CLIENTS, 1))


@pytest.mark.parametrize("form", OPENED)
def test_only_what_cannot_be_held_lets_more_through(form: str) -> None:
    parameters = {name: argument(PARTLY[name][0]) for name in PARTLY}
    found = json.loads(usable(form, {**parameters, **WHOLE}).source)
    assert found["schemas"].keys() == {*PARTLY, *WHOLE}
    if form == "qwen3_coder":
        assert found["open"] == {"one of": [0], "within": [0]}
        return
    assert {name: found["schemas"][name] for name in PARTLY} == {name: argument(PARTLY[name][1]) for name in PARTLY}
    strict = json.loads(usable(form, WHOLE, []).source)["schemas"]
    assert {name: found["schemas"][name] for name in WHOLE} == strict


@pytest.mark.parametrize(("form", "tool"), [("qwen2_5", "within"), ("qwen3_coder", "one of")])
def test_calls_are_held_to_the_rest(form: str, tool: str) -> None:
    Draft202012Validator(argument(PARTLY[tool][1])).validate(called(form, tool, LOOSE, 1))


FREE_IN_TAGS = ("byte", "elsewhere", "nowhere", "within")
"""Texts without a bound, whose end random weights do not find; and a list beside a text, which is read as text there."""


@pytest.mark.slow
@pytest.mark.parametrize("form", OPENED)
def test_calls_of_all_tools_are_held_to_what_can_be(form: str) -> None:
    for tool in PARTLY:
        for seed in range(4 if form == "qwen2_5" or tool not in FREE_IN_TAGS else 0):
            Draft202012Validator(argument(PARTLY[tool][1])).validate(called(form, tool, LOOSE, seed))
    for tool in WHOLE if form == "qwen2_5" else ():
        for seed in range(4):
            check = Draft202012Validator(WHOLE[tool], format_checker=Draft202012Validator.FORMAT_CHECKER)
            check.validate(called(form, tool, LIKE_CLIENTS, seed))


@pytest.mark.parametrize("tool", [pytest.param(tool, marks=() if tool in ("unique", "one of") else pytest.mark.slow) for tool in PARTLY])
def test_strict_tools_and_calls_that_must_come_are_refused_by_path(tool: str) -> None:
    model, _ = wanderer("qwen2_5", "", marked=False, tools=LIKE_CLIENTS)
    wrong = {"name": "pay", "parameters": argument(PARTLY[tool][0])}
    asked: dict[str, Any]
    for asked in ({"tools": [*LIKE_CLIENTS, {**wrong, "strict": True}]}, {"tools": [wrong], "tool_choice": "required"}):
        with pytest.raises(BadSchema) as caught:
            model.chat("?", **asked)
        assert "pay.properties.a" in caught.value.told()
        assert caught.value.facts["param"] == "tools"


def test_a_shared_part_is_widened_where_it_stands_and_several_parts_one_by_one() -> None:
    ahead = {"type": "string", "pattern": "(?=a)"}
    schema = {**argument({"$ref": "#/$defs/x"}), "$defs": {"x": {"type": "array", "items": ahead}}}
    several = {"type": "object", "properties": dict.fromkeys("abcd", ahead)}
    found = json.loads(usable("qwen2_5", {"shared": schema, "several": several}).source)["schemas"]
    text = {"type": "string"}
    assert found["shared"] == {**schema, "$defs": {"x": {"type": "array", "items": text}}}
    assert found["several"]["properties"] == dict.fromkeys("abcd", text)


def test_a_mistake_is_refused_strict_or_not() -> None:
    model, _ = wanderer("qwen2_5", "", marked=False, tools=LIKE_CLIENTS)
    for schema in ({"type": "array"}, argument({"type": "text"}), {"properties": []}):
        with pytest.raises(BadSchema, match="pay"):
            model.chat("?", tools=[{"name": "pay", "parameters": schema}])


def test_tools_that_are_too_large_together_are_held_by_name_and_the_smaller_ones_wholly() -> None:
    large = {"allOf": [{"anyOf": [{"properties": {f"a{i}_{j}": {"type": "integer"}}} for i in range(20)]} for j in range(6)]}
    found = json.loads(usable("qwen2_5", {"large": large, "unique": argument(PARTLY["unique"][0])}).source)["schemas"]
    assert found == {"large": {"type": "object"}, "unique": argument(PARTLY["unique"][1])}
