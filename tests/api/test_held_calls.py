"""Calls that a model decides on have the form of their tool from their opening on; what opens none is not touched."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import khola
from khola.api import Model
from khola.api.stream import Prepared
from khola.engine import grammar
from khola.errors import BadGrammar, BadSchema
from tests.api import wanderers
from tests.api.wanderers import Marks, seeded, spelled
from tests.engine.schemas import SCHEMAS

ORDER = {
    "type": "object",
    "properties": {
        "dish": {"enum": ["ভাত", "ডাল ও রুটি", 'a "b" </x>']},
        "plates": {"type": "integer", "minimum": 1, "maximum": 99},
        "note": {"type": "string", "minLength": 1, "maxLength": 9},
        "hot": {"type": "boolean"},
        "table": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]},
        "guests": {"type": "array", "items": {"$ref": "#/$defs/guest"}, "maxItems": 2},
        "host": {"$ref": "#/$defs/guest"},
    },
    "required": ["dish", "plates", "note"],
    "additionalProperties": False,
    "$defs": {
        "guest": {
            "type": "object",
            "properties": {"name": {"enum": ["রহিম", "Mary"]}, "age": {"type": ["integer", "null"], "minimum": 0, "maximum": 120}},
            "required": ["name"],
            "additionalProperties": False,
        }
    },
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS: list[dict[str, Any]] = [
    {"name": "order", "parameters": ORDER},
    {"name": "order_all", "parameters": NOTHING},
    {"name": "খোঁজা", "parameters": NOTHING},
]
CHECKS = {tool["name"]: Draft202012Validator(tool["parameters"]) for tool in TOOLS}

HERMES, FENCE = "<tool_call>", "```typescript\nfunctions.order("
DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
KIMI = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")
JSON = ('{"name": "order"', '{"type": "function", "function": {"name": "order_all"', "<|python_tag|>", ' {"function":"order"')
NAMED = ("order\n{", "order_all \n {")
OPENINGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("qwen2_5", "qwen3", "qwen3_instruct", "qwen3_coder", "qwen3_5", "qwen3_5_small", "qwen3_6"), (HERMES,)),
    **dict.fromkeys(("qwen3_thinking", "qwq", "ernie4_5_thinking"), (HERMES,)),
    **dict.fromkeys(("deepseek_v3", "deepseek_v3_1", "deepseek_r1_0528"), DEEPSEEK),
    **dict.fromkeys(("llama3_1", "llama3_2"), JSON),
    **dict.fromkeys(("glm4", "glm4_0414", "glm_z1"), NAMED),
    "kimi_k2": KIMI,
    "minimax": ("<function_call>", FENCE),
}
WHOLE = ("llama3_1", "llama3_2", "glm4", "glm4_0414", "glm_z1")
CASES = [(name, opening, marked) for name, openings in OPENINGS.items() for opening in openings for marked in (False, True)]
FEW = ("qwen2_5", "qwen3_coder", "kimi_k2", "glm4", "deepseek_v3_1", "minimax", "llama3_1")
"""A format for every way to write calls; the others come where time allows."""
MANY = [pytest.param(name, marks=() if name in FEW[:4] else pytest.mark.slow) for name in OPENINGS]


def wanderer(name: str, opening: str, **asked: Any) -> tuple[Model, Prepared]:
    """A model that is offered these tools."""
    return wanderers.wanderer(name, opening, **{"tools": TOOLS, **asked})


def require_calls(answer: khola.api.Answer) -> None:
    """Everything that was called has the form of its tool."""
    assert answer.finish_reason == "stop", answer
    for call in answer.tool_calls:
        CHECKS[call.name].validate(call.arguments)


def holds(name: str, opening: str, marked: bool, seeds: range) -> None:
    """Behind its opening a call keeps to its tool, whatever the weights say."""
    model, prepared = wanderer(name, opening, marked=marked, said="" if name in WHOLE else "দেখি। ")
    for seed in seeds:
        answer = seeded(model, prepared, seed)
        require_calls(answer)
        assert answer.tool_calls, answer
        assert answer.thinking in ("", "ভাবি <tool_call>{")
        assert not answer.text if name in WHOLE else answer.text.startswith("দেখি।")


@pytest.mark.parametrize("name", FEW)
def test_a_call_that_is_opened_keeps_to_its_tool(name: str) -> None:
    for opening in OPENINGS[name][:2]:
        holds(name, opening, len(name) % 2 > 0, range(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPENINGS)
def test_calls_keep_to_their_tools_behind_every_opening(name: str) -> None:
    for opening in OPENINGS[name]:
        for marked in (False, True):
            holds(name, opening, marked, range(2))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "opening", "marked"), CASES)
def test_calls_keep_to_their_tools_hundreds_of_times(name: str, opening: str, marked: bool) -> None:
    holds(name, opening, marked, range(1, 201))


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", MANY)
def test_a_form_beside_tools_leaves_both_ways_open(name: str) -> None:
    begun = OPENINGS[name][0]
    bounded = {"thinking_tokens": 40} if name in ("qwq", "glm_z1") else {}
    for opening, calls in ((begun, True), ('{"na', False), ("Well, {", None)):
        model, prepared = wanderer(name, opening, marked=len(name) % 2 > 0, schema=PERSON, **bounded)
        answer = seeded(model, prepared, 1)
        require_calls(answer)
        assert answer.complete
        assert calls in (None, bool(answer.tool_calls)) or name in WHOLE
        if answer.tool_calls:
            assert (answer.text, answer.parsed) == ("", None)
        else:
            Draft202012Validator(PERSON).validate(answer.parsed)


QUOTED = {
    "qwen2_5": "<tool_call>{}</tool_call>",
    "qwen3_coder": "<tool_call><function=order></function></tool_call>",
    "deepseek_v3_1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>order<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
    "minimax": "```typescript functions.order({}) ```",
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in ("qwen2_5", "minimax") else pytest.mark.slow) for name in QUOTED])
def test_a_form_may_quote_a_call(name: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
    model, prepared = wanderer(name, "", marked=False, schema=schema)
    model.engine._runner.tokens = [*f'{{"a": "{QUOTED[name]}"}}'.encode(), 257]
    answer = seeded(model, prepared, 1)
    assert (answer.parsed, answer.tool_calls) == ({"a": QUOTED[name]}, ())


@pytest.mark.parametrize(("name", "text"), [("llama3_1", '{"name": "order", "parameters": {"x": 1}}'), ("glm4", 'order\n{"x": 1}')])
def test_what_begins_as_a_call_beside_a_form_keeps_to_its_tool(name: str, text: str) -> None:
    form: dict[str, Any] = {"json_object": True} if name == "llama3_1" else {"regex": "(?s:.*)"}
    model, prepared = wanderer(name, text, marked=False, **form)
    answer = seeded(model, prepared, 1)
    require_calls(answer)
    assert [call.name for call in answer.tool_calls] == ["order"]
    model, prepared = wanderer("llama3_1", '{"parameters": {"x": 1}, "name": "order"}', marked=False, json_object=True)
    answer = seeded(model, prepared, 1)
    assert (answer.parsed["name"], answer.tool_calls) == ("order", ())


def test_a_form_beside_tools_may_be_any_but_gbnf() -> None:
    for form in ({"json_object": True}, {"choice": ["হ্যাঁ", "না"]}, {"regex": "[ab]{3}"}, {"grammar": 'start: "x" "y"'}):
        model, prepared = wanderer("qwen2_5", "", marked=False, **form)
        require_calls(seeded(model, prepared, 1))
    with pytest.raises(BadGrammar, match="GBNF"):
        wanderer("qwen2_5", "", marked=False, grammar='root ::= "x"')


TWO = '<tool_call>\n{"name": "order_all", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "খোঁজা", "arguments": {}}\n</tool_call>'


def test_several_calls_or_one() -> None:
    model, prepared = wanderer("qwen2_5", "", marked=False)
    model.engine._runner.tokens = [*TWO.encode(), *" শেষ".encode(), 257]
    answer = seeded(model, prepared, 1)
    assert ([call.name for call in answer.tool_calls], answer.text.strip()) == (["order_all", "খোঁজা"], "শেষ")
    one = model.prepared("?", tools=TOOLS, one_call=True)
    answer = seeded(model, one, 1)
    assert ([call.name for call in answer.tool_calls], answer.text, answer.finish_reason) == (["order_all"], "", "stop")


def test_calls_come_with_the_delta_that_completes_them() -> None:
    model, prepared = wanderer("qwen2_5", "", marked=True)
    model.engine._runner.tokens = [*"দেখি।".encode(), *spelled(model.loaded.tokenizer, TWO), 257]
    deltas = list(model._answer(prepared))
    assert [len(delta.tool_calls) for delta in deltas if delta.tool_calls] == [1, 1]
    assert "".join(delta.text for delta in deltas) == "দেখি।"


@pytest.mark.parametrize("name", MANY)
def test_text_without_a_call_is_not_changed_by_one_token(name: str) -> None:
    model, prepared = wanderer(
        name, "", marked=len(name) % 2 > 0, said='{"name": "Order", "কথা": "<tool_cal> <|tool"} order\n```typescript\nfunctions.x(1)'
    )
    for sampling in ({"temperature": 0.0, "max_tokens": 100}, {"temperature": 1.5, "max_tokens": 100}):
        held = seeded(model, prepared, 3, **sampling)
        free = seeded(model, Prepared(request=replace(prepared.request, openings=None), parser=prepared.parser), 3, **sampling)
        assert [token.id for token in held.tokens] == [token.id for token in free.tokens]
        assert (held.text, held.complete) == (free.text, None)


def test_a_token_that_opens_a_call_and_goes_on_must_go_on_rightly() -> None:
    wrong, right = (259 + Marks.MERGED.index(token) for token in (b"l>x", b'l>\n{"n'))
    for token in (wrong, right):
        model, prepared = wanderer("qwen2_5", "", marked=False)
        model.engine._runner.tokens = [*b"<tool_cal", token]
        answer = seeded(model, prepared, 1)
        assert ([one.id for one in answer.tokens][9] == token) == (token == right)
        require_calls(answer)
        assert bool(answer.tool_calls) == (token == right)


@pytest.mark.parametrize("marked", [False, True])
def test_a_thought_that_the_model_opens_is_free(marked: bool) -> None:
    model, prepared = wanderer("qwen3", "", marked=False)
    if marked:
        model, prepared = wanderer("qwen3", "<think>", marked=True)
    runner: Any = model.engine._runner
    runner.tokens = spelled(model.loaded.tokenizer, "<think>\n<tool_call>x</think>\n\n<tool_call>")
    answer = seeded(model, prepared, 1)
    require_calls(answer)
    assert (answer.thinking, len(answer.tool_calls)) == ("<tool_call>x", 1)


def test_a_call_that_is_cut_is_said_to_be() -> None:
    model, prepared = wanderer("qwen2_5", "<tool_call>", marked=False)
    answer = seeded(model, prepared, 1, max_tokens=30)
    assert (answer.finish_reason, answer.complete, answer.tool_calls) == ("length", False, ())


@pytest.mark.parametrize(
    ("name", "schema", "where"),
    [
        ("qwen2_5", {"properties": {"a": {"not": {}}}}, "pay.properties.a.not"),
        ("qwen2_5", {"type": "array"}, "pay.type"),
        ("qwen2_5", {"properties": {"a": {"type": "string", "pattern": "(?=a)"}}}, "pay.properties.a"),
        ("llama3_1", {"properties": {"a": {"type": "array", "uniqueItems": True}}}, "pay.properties.a.uniqueItems"),
        ("qwen3_coder", {"properties": {"a": {"type": "string", "pattern": "a"}}}, "pay.properties.a.pattern"),
        ("qwen3_coder", {"properties": {"a": {}}, "minProperties": 1}, "pay.minProperties"),
    ],
)
def test_schemas_that_no_call_can_be_held_to_are_refused_by_name(name: str, schema: dict[str, Any], where: str) -> None:
    model, _ = wanderer(name, "", marked=False)
    with pytest.raises(BadSchema) as caught:
        model.chat("?", tools=[{"name": "pay", "parameters": schema, "strict": True}])
    assert where in caught.value.told()
    assert caught.value.facts["param"] == "tools"


NOT_IN_TAGS = {"text of a pattern", "text of a Bengali pattern", "pattern within", "date", "uuid", "address", "all of"}
NOT_IN_TAGS |= {"reference with more beside it"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "refused"), [("qwen2_5", set[str]()), ("qwen3_coder", NOT_IN_TAGS)])
@pytest.mark.parametrize("part", [0, 1])
def test_arguments_of_every_schema(name: str, refused: set[str], part: int) -> None:
    model, prepared = wanderer(name, "<tool_call>", marked=False)
    form = prepared.parser.call_form
    assert form is not None
    shared = ("$defs", "definitions")
    whole: dict[str, Any] = {
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
        "$defs": {},
        "definitions": {},
    }
    for title, schema in list(SCHEMAS.items())[part::2]:
        one = {**whole, "required": [title], "properties": {title: {key: schema[key] for key in schema if key not in ("$schema", *shared)}}}
        one |= {key: schema.get(key, {}) for key in shared}
        if title in refused:
            with pytest.raises(BadSchema, match=f"pay.properties.{title}"):
                grammar.calls([("pay", one)], form)
        elif all(whole[key].get(inner, value) == value for key in shared for inner, value in one[key].items()):
            for key in ("properties", *shared):
                whole[key] |= one[key]
            whole["required"].append(title)
    assert len(whole["required"]) >= 15
    check = Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)
    prepared = model.prepared("?", tools=[{"name": "pay", "parameters": whole}])
    model.engine._runner.begun = len(prepared.request.prompt)
    answer = seeded(model, prepared, 1, max_tokens=4000)
    for call in answer.tool_calls:
        check.validate(call.arguments)
    assert (answer.finish_reason, len(answer.tool_calls) > 0) == ("stop", True), answer.text[-500:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_model_calls_and_talks(real_model: Callable[[str], Path]) -> None:
    place = {"type": "string", "enum": ["ঢাকা", "চট্টগ্রাম", "সিলেট"]}
    weather = {"name": "weather", "description": "The weather of a city.", "parameters": {
        "type": "object", "properties": {"place": place, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["place", "days"], "additionalProperties": False,
    }}  # fmt: skip
    check = Draft202012Validator(weather["parameters"])
    ask = {"temperature": 0.0, "seed": 1, "max_tokens": 60}
    with khola.load(str(real_model("qwen2.5-coder-0.5b-instruct")), context=1024) as real:
        # It writes calls without their mark by itself, and so is told to write the mark; left alone it goes on with what is no call.
        wish = "Write the word <tool_call> and then anything."
        plain, guessed, warm = (
            real.chat(wish, tools=[weather], sampling={**ask, **more})
            for more in ({"speculate": False}, {"speculate": True}, {"temperature": 1.0})
        )
        assert [token.id for token in plain.tokens] == [token.id for token in guessed.tokens]
        assert [call.name for call in plain.tool_calls] == ["weather"]
        for call in plain.tool_calls + warm.tool_calls:
            check.validate(call.arguments)
        for more in ({"speculate": False}, {"speculate": True}, {"temperature": 0.7, "top_k": 20}):
            prepared = real.prepared("What is a list in Python?", tools=[weather], sampling={**ask, **more})
            free = Prepared(request=replace(prepared.request, openings=None), parser=deepcopy(prepared.parser))
            held, bare = real._answer(prepared).whole(), real._answer(free).whole()
            assert [token.id for token in held.tokens] == [token.id for token in bare.tokens]
