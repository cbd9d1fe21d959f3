"""Programs, JSON, length and form as rewards, alone, together and many at once."""

from __future__ import annotations

import random
from collections.abc import Iterator

import jsonschema
import pytest

from khola.errors import AskedWrong, BadRow, BadSchema
from khola.evals.sandbox.limits import Limits
from khola.evals.sandbox.pool import Pool
from khola.train.rewards.code import Code, code, lines
from khola.train.rewards.form import Form, Length, Script, form, group_lengths, length, script
from khola.train.rewards.reward import scored, weighed
from khola.train.rewards.schema import Schema, follows, schema
from tests.needs import needs_seccomp

ROW = {"tests": ["assert twice(2) == 4", "assert twice(-1) == -2"], "entry": "twice"}
RIGHT = "Here:\n```python\ndef twice(x):\n    return 2 * x\n```"
WRONG = "```python\ndef twice(x):\n    return 4\n```"
HACK = "```python\nclass Yes(int):\n    __eq__ = lambda *_: True\ndef twice(x):\n    return Yes()\n```"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2, Limits(cpu_s=2, wall_s=5.0)) as opened:
        yield opened


@needs_seccomp
def test_programs_are_judged_many_at_once_and_cheats_are_told(pool: Pool) -> None:
    told: list[tuple[str, ...]] = []
    reward = code(Code(without=-1.0), pool, lambda _, words: told.append(words))
    answers = [RIGHT, WRONG, HACK, "I cannot."] * 5
    assert scored(reward, [""] * 20, answers, [ROW] * 20) == [1.0, 0.0, 0.0, -1.0] * 5
    assert told == [("__eq__",)] * 5


@needs_seccomp
def test_whole_programs_are_judged_by_what_they_print(pool: Pool) -> None:
    row = {"cases": [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5\n", "output": "10"}]}
    reward = code(Code(), pool)
    assert reward("", "```python\nprint(sum(map(int, input().split())))\n```", row) == 1.0
    assert reward("", "```python\nprint(3)\n```", row) == 0.0
    assert reward("", "```python\nprint(3)\nraise SystemExit(1)\n```", row) == 0.0
    assert lines("a  b \n\n") == lines("a b\n") != lines("a\nb")


@needs_seccomp
@pytest.mark.parametrize(
    "row", [{}, {"tests": []}, {"tests": "assert 1"}, {"tests": [1]}, {**ROW, "before": 3}, {"cases": [{}]}, {"cases": "x"}]
)
def test_rows_that_programs_cannot_be_judged_by(row: dict[str, object], pool: Pool) -> None:
    with pytest.raises(BadRow):
        code(Code(), pool)("", RIGHT, row)


ASKED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "pattern": "^[a-z]+$"},
        "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 1]}, "maxItems": 2},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "price": {"type": "number", "multipleOf": 0.01},
    },
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        ('{"name": "anna", "age": 3}', 1.0),
        ('Sure:\n```json\n{"name": "anna", "next": {"name": "b", "next": null}}\n```', 1.0),
        ('{"age": 3, "name": "anna"}', 1.0),
        ('{"name": "anna", "price": 19.99}', 1.0),
        ('{"name": "Anna"}', 0.2),
        ('{"name": "anna", "age": true}', 0.2),
        ('{"name": "anna", "age": 150}', 0.2),
        ('{"name": "anna", "tags": ["a", true]}', 0.2),
        ('{"name": "anna", "more": 1}', 0.2),
        ('{"name": "anna", "next": {}}', 0.2),
        ('{"name": "anna", "name": "bert"}', 0.0),
        ('{"name": "anna"', 0.0),
        ('{"name": NaN}', 0.0),
        ("[" * 100_000, 0.0),
        ("anna", 0.0),
    ],
)
def test_json_is_worth_what_its_schema_says(answer: str, worth: float) -> None:
    assert schema(Schema(schema=ASKED, json=0.2))("", answer, {}) == worth
    assert schema(Schema(json=0.2))("", answer, {"schema": ASKED}) == worth


def test_schemas_that_are_wrong() -> None:
    with pytest.raises(BadSchema):
        schema(Schema(schema={"type": "thing"}))
    with pytest.raises(BadRow):
        schema(Schema())("", "{}", {"schema": {"contains": {}}})
    with pytest.raises(BadRow):
        schema(Schema())("", "{}", {})
    assert schema(Schema(schema={"type": "object"}, bare=True))("", "```json\n{}\n```", {}) == 0.0
    assert schema(Schema(schema={"type": "string", "pattern": "(a+)+$"}))("", '"' + "a" * 40 + 'b"', {}) == 0.0


def test_values_follow_schemas_as_the_reference_says() -> None:
    generator = random.Random(3)
    atoms = [None, True, False, 0, 1, 1.0, 2.5, -3, "", "ab", "2024-01-31", [], [1], [1, "a"], {}, {"a": 1}, {"a": [None], "b": {}}]
    parts = [
        {"type": "integer"}, {"type": ["string", "null"]}, {"const": 1}, {"enum": [True, "ab", [1]]}, {"minimum": 1}, {"maximum": 1},
        {"exclusiveMinimum": 0}, {"multipleOf": 0.5}, {"minLength": 1}, {"maxLength": 1}, {"pattern": "b"}, {"format": "date"},
        {"minItems": 1}, {"maxItems": 1}, True, False, {}, {"required": ["a"]}, {"minProperties": 1}, {"maxProperties": 1},
        {"$ref": "#/$defs/list"},
    ]  # fmt: skip
    counted = 0
    for _ in range(1500):
        one, two = generator.choice(parts), generator.choice(parts)
        joined = {"$defs": {"list": {"type": "array", "items": {"type": "integer"}}}} | generator.choice(
            [
                {"allOf": [one, two]}, {"anyOf": [one, two]}, {"oneOf": [one, two]}, {"items": one}, {"prefixItems": [one], "items": two},
                {"properties": {"a": one}, "additionalProperties": two}, {"patternProperties": {"^a": one}},
            ]
        )  # fmt: skip
        value = generator.choice(atoms)
        checker = jsonschema.Draft202012Validator(joined, format_checker=jsonschema.FormatChecker())
        assert follows(value, joined, joined) == checker.is_valid(value), (value, joined)
        counted += checker.is_valid(value)
    assert 300 < counted < 1300


def test_lengths() -> None:
    reward = length(Length(most=100, slack=20, least=5))
    assert [reward("", "x" * size, {}) for size in (4, 5, 80, 90, 100, 500)] == [-1.0, 0.0, 0.0, -0.5, -1.0, -1.0]
    assert length(Length(most=3, slack=0, unit="words"))("", "one two", {}) == 0.0
    for wrong in (Length(unit="miles"), Length(most=5, slack=9), Length(most=5, slack=0, least=6)):
        with pytest.raises(AskedWrong):
            length(wrong)
    assert group_lengths([10, 20, 30], [True, True, True]) == [0.5, 0.0, -0.5]
    assert group_lengths([10, 20, 30], [False, True, False]) == [0.0, 0.0, -0.5]
    assert group_lengths([7, 7], [True, False]) == [0.0, 0.0] and group_lengths([], []) == []


def test_forms() -> None:
    reward = form(Form())
    assert reward("", "<think>so\nit is</think>\n<answer>3</answer>\n", {}) == 1.0
    for broken in ("<answer>3</answer>", "<think>a</think>b<answer>3</answer>", "<think><think>a</think><answer>3</answer>", "", "3"):
        assert reward("", broken, {}) == 0.0, broken
    assert form(Form(pattern="(a+)+b"))("", "a" * 50, {}) == 0.0
    with pytest.raises(AskedWrong):
        form(Form(pattern="("))


def test_scripts() -> None:
    assert script(Script())("", "আমি ভাত খাই", {}) == 1.0
    assert script(Script(weight=2.0))("", "আম ab", {}) == pytest.approx(2.0 * 2 / 4, abs=0.41)
    assert script(Script())("", "only English", {}) == 0.0 == script(Script())("", "123", {})
    with pytest.raises(AskedWrong):
        script(Script(script="Klingon-ish"))


def test_rewards_together() -> None:
    both = weighed({form(Form(pattern="x+")): 2.0, length(Length(most=4, slack=0)): 0.5})
    assert scored(both, ["", "", ""], ["xx", "yy", "xxxx"], [{}] * 3) == [2.0, 0.0, 1.5]
    with pytest.raises(AskedWrong, match="every answer"):
        scored(both, [""], ["x", "y"], [{}])
