"""Answers have the form that was asked for, whatever the weights say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex as regular
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from khola.engine import grammar
from khola.engine.engine import Engine
from khola.engine.grammar import Grammar
from khola.engine.matcher import Grammars, ids_of, only
from khola.engine.request import Finished, Request, Sampling, Thought
from khola.errors import AskedWrong, BadGrammar, BadSchema
from khola.store.gguf import read_gguf
from khola.tokens.tokenizer import Tokenizer
from tests.engine.fakes import BEGIN, END, MARK, VOCAB, Bytes, ByteTokenizer, FakeRunner, fake_engine, fake_loaded, require_empty, run
from tests.engine.schemas import SCHEMAS
from tests.engine.tiny import tiny_llama

STOPS = frozenset({END})
ENDLESS = {"type": "array", "items": {"type": "integer"}}


@pytest.fixture(scope="module")
def engine() -> Engine:
    """A llama of random weights: it says anything."""
    return Engine(tiny_llama(stop_ids=STOPS), cache_tokens=8192, max_rows=16)


def request(form: Grammar | None, prompt: bytes = b"Say: ", *, thought: Thought | None = None, **sampling: Any) -> Request:
    how = Sampling(**{"max_tokens": 600, "seed": 1, **sampling})
    return Request(prompt=tuple(prompt), sampling=how, stop_ids=STOPS, grammar=form, thought=thought)


def whole(engine: Engine, asked: Request) -> str:
    """The text of an answer that is complete and holds no control token."""
    ids, text, end = run(engine, asked)[asked]
    assert isinstance(end, Finished), end
    assert (end.reason, end.complete) == ("stop", True), text
    assert not set(ids) & {BEGIN, END, MARK, VOCAB - 1}
    return text


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_are_valid_under_their_schema(engine: Engine, name: str) -> None:
    check = Draft202012Validator(SCHEMAS[name], format_checker=Draft202012Validator.FORMAT_CHECKER)
    form = grammar.json_schema(SCHEMAS[name])
    asked = [request(form, seed=seed, temperature=temperature) for seed in range(3) for temperature in (0.0, 1.0, 5.0)]
    for one, (ids, text, end) in run(engine, *asked).items():
        assert isinstance(end, Finished), (one.sampling, end)
        assert (end.reason, end.complete) == ("stop", True), text
        assert not set(ids) & {BEGIN, END, MARK, VOCAB - 1}
        check.validate(json.loads(text))


@pytest.mark.parametrize(
    "pattern",
    ["[a-z]{3,5}", "^[0-9]{4}-[0-9]{2}$", "(?:yes|no)[.!]?", r"[\p{Bengali}]{2,4}", "a\\$", r"x{0}", "a/b|c\\\\", "[^a-z\n]{1,9}"],
)
def test_the_whole_answer_matches_a_regular_expression(engine: Engine, pattern: str) -> None:
    for seed in range(4):
        text = whole(engine, request(grammar.regex(pattern), seed=seed))
        assert regular.fullmatch(pattern, text), (pattern, text)


@pytest.mark.parametrize("texts", [["yes", "no"], ["a", "ab", "abc"], ["হ্যাঁ", "না"], [""], ['q"\\', "\n"], ["e\u0301", "é", "ড়"]])
def test_choices(engine: Engine, texts: list[str]) -> None:
    seen = {whole(engine, request(grammar.choice(texts), seed=seed, temperature=3.0)) for seed in range(24)}
    assert seen <= set(texts)
    assert len(seen) > 1 or len(texts) == 1


LARK = 'start: "(" (start | NAME) ")"\nNAME: /[a-z]{1,3}/\n'
GBNF = 'root ::= "(" (root | name) ")"\nname ::= [a-z]{1,3}\n'


@pytest.mark.parametrize("source", [LARK, GBNF])
def test_grammars_in_both_notations(engine: Engine, source: str) -> None:
    for seed in range(6):
        text = whole(engine, request(grammar.notation(source), seed=seed))
        assert regular.fullmatch(r"(\((?:(?1)|[a-z]{1,3})\))", text), text


def test_an_answer_that_is_cut_is_said_to_be(engine: Engine) -> None:
    form = grammar.json_schema({"type": "string", "minLength": 50})
    _, text, end = run(engine, one := request(form, max_tokens=9))[one]
    assert isinstance(end, Finished)
    assert (end.reason, end.complete) == ("length", False)
    assert text.startswith('"')
    # Nine letters are whole for this one, though more could follow.
    _, _, end = run(engine, one := request(grammar.regex("[a-z]*"), max_tokens=9, logit_bias={END: -100}))[one]
    assert isinstance(end, Finished)
    assert (end.reason, end.complete) == ("length", True)
    # The last token of the grammar may be the last that is allowed.
    _, text, end = run(engine, one := request(grammar.choice(["abc"]), max_tokens=3))[one]
    assert isinstance(end, Finished)
    assert (text, end.reason, end.complete) == ("abc", "stop", True)


def test_a_stop_string_cuts_too(engine: Engine) -> None:
    _, text, end = run(engine, one := request(grammar.choice(["left|right"]), stop=("|",)))[one]
    assert isinstance(end, Finished)
    assert (text, end.reason, end.complete) == ("left", "stop", False)


def test_the_end_comes_exactly_where_the_grammar_may_end(engine: Engine) -> None:
    wants_to_end = {END: 100.0}
    assert whole(engine, request(grammar.regex("a{3,9}"), logit_bias=wants_to_end, temperature=0)) == "aaa"
    reluctant = {END: -100.0, ord("a"): 100.0}
    assert whole(engine, request(grammar.regex("a{3,9}"), logit_bias=reluctant, temperature=0)) == "a" * 9


def test_penalties_bias_filters_and_logprobs_work_beside_a_grammar(engine: Engine) -> None:
    sampling = {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.2}
    asked = request(grammar.regex("[ab]{12}"), logprobs=2, logit_bias={ord("z"): 100.0}, **sampling)
    ids: list[int] = []
    for event in engine.stream(asked):
        if not isinstance(event, Finished):
            for token in event.tokens:  # type: ignore[union-attr]
                ids.append(token.id)
                assert token.logprob is not None
                # They are the model's own, before bias and grammar.
                assert -60 < token.logprob <= 0
                assert len(token.top) == 2
    assert set(ids) <= set(b"ab")
    assert len(ids) == 12


def test_answers_do_not_depend_on_the_batch_or_on_preemption() -> None:
    forms = [grammar.json_schema(SCHEMAS[name]) for name in ("nested", "object", "Bengali names", "map of integers")]
    prompts = [bytes(range(65 + n, 95 + n)) for n in range(4)]

    def asked() -> list[Request]:
        return [request(form, prompt, seed=n) for n, (form, prompt) in enumerate(zip(forms, prompts, strict=True))]

    roomy, tight = fake_engine(pages=64), fake_engine(pages=7)
    alone = [ids for one in asked() for ids, *_ in [run(roomy, one)[one]]]
    together = run(fake_engine(pages=64), *(batch := asked()))
    squeezed = run(tight, *(small := asked()))
    assert [together[one][0] for one in batch] == alone
    assert [squeezed[one][0] for one in small] == alone
    assert tight.stats().preemptions > 0
    require_empty(tight)


def test_the_same_seed_gives_the_same_answer(engine: Engine) -> None:
    form = grammar.json_schema(SCHEMAS["object"])
    assert whole(engine, request(form, seed=5)) == whole(engine, request(form, seed=5))
    assert len({whole(engine, request(form, seed=seed)) for seed in range(6)}) > 1


class ThinkingTokenizer(ByteTokenizer):
    """A token a byte; MARK closes a thought, as a token of its own."""

    def id_of(self, token: str) -> int | None:
        return {"</think>": MARK, "<think>": BEGIN}.get(token)

    def token_bytes(self, token_id: int) -> bytes:
        return {MARK: b"</think>", BEGIN: b"<think>"}.get(token_id) or super().token_bytes(token_id)

    def stream(self, skip_control: bool = True, shown: Collection[int] = ()) -> Bytes:
        outer = self

        class Marked(Bytes):
            def push(self, token: int) -> str:
                return outer.token_bytes(token).decode() if token in (MARK, BEGIN) else super().push(token)

        return Marked(skip_control)


class Wants(FakeRunner):
    """Would say the same bytes, whatever is allowed."""

    def __init__(self, wish: list[int]) -> None:
        super().__init__(64)
        self.wish = wish

    def _row(self, context: NDArray[np.int64]) -> NDArray[np.float32]:
        row = np.zeros(VOCAB, np.float32)
        said = len(context) - 5
        row[self.wish[min(said, len(self.wish) - 1)]] = 20
        return row


def thinker(wish: list[int], tokenizer: ByteTokenizer | None = None) -> Engine:
    loaded = fake_loaded(tokenizer=tokenizer or ThinkingTokenizer(), stop_ids=STOPS)
    return Engine(loaded, cache_tokens=2048, runner=Wants(wish))


THINKS = {"start": "<think>", "end": "</think>"}
FORM = grammar.choice(["[1]"])


@pytest.mark.parametrize(
    ("wish", "thought", "text"),
    [
        ([*b"hm, {", MARK, *b"xx"], Thought(**THINKS, opened=True), "hm, {</think>\n\n[1]"),
        ([*b"hm", END, *b"no", MARK], Thought(**THINKS, opened=True), "hm\0no</think>\n\n[1]"),
        ([*b"on and on and on"], Thought(**THINKS, opened=True, most_tokens=4), "on a\n</think>\n\n[1]"),
        ([*b"on"], Thought(**THINKS, opened=True, most_tokens=0), "\n</think>\n\n[1]"),
        ([BEGIN, *b"so", MARK], Thought(**THINKS, may_open=True), "<think>so</think>\n\n[1]"),
        ([*b"no"], Thought(**THINKS, may_open=True), "[1]"),
        ([BEGIN, *b"so", MARK], Thought(**THINKS), "[1]"),
    ],
)
def test_the_grammar_begins_behind_the_thought(wish: list[int], thought: Thought, text: str) -> None:
    engine = thinker(wish)
    said = whole_thought(engine, request(FORM, b"12345", thought=thought, temperature=0))
    assert said == text


def whole_thought(engine: Engine, asked: Request) -> str:
    _, text, end = run(engine, asked)[asked]
    assert isinstance(end, Finished)
    assert (end.reason, end.complete) == ("stop", True), text
    return text


def test_an_end_mark_of_several_tokens_counts_and_does_not_smuggle_text() -> None:
    class Pairs(ByteTokenizer):
        """MARK spells the last letter of the end mark and the beginning of an answer."""

        def token_bytes(self, token_id: int) -> bytes:
            return b">no" if token_id == MARK else super().token_bytes(token_id)

        control_ids = frozenset({BEGIN, END})

    plain = thinker([*b"a </think> [2]"], ByteTokenizer())
    text = whole_thought(plain, request(FORM, b"12345", thought=Thought(**THINKS, opened=True), temperature=0))
    assert text == "a </think>\n\n[1]"
    wish = [*b"a </think", MARK]
    smuggler = thinker(wish, Pairs())
    one = request(FORM, b"12345", thought=Thought(**THINKS, opened=True, most_tokens=40), temperature=0)
    ids, _, end = run(smuggler, one)[one]
    assert ids[: len(wish) - 1] == wish[:-1]
    assert ids[len(wish) - 1] != MARK
    assert isinstance(end, Finished)
    assert end.complete


def test_a_budget_needs_no_grammar() -> None:
    engine = thinker([*b"on and on"])
    one = request(None, b"12345", thought=Thought(**THINKS, opened=True, most_tokens=2), temperature=0, max_tokens=9)
    _, text, end = run(engine, one)[one]
    assert isinstance(end, Finished)
    assert text.startswith("on\n</think>\n\n")
    assert end.complete is None


def test_a_decoder_that_drops_a_space_gets_one() -> None:
    class Dropping(ByteTokenizer):
        strips_space = True

    matcher = Grammars(Dropping(), STOPS).matcher(grammar.choice([" a", "b"]), begins_text=True)
    assert ids_of(matcher.allowed()) == [ord(" ")]
    matcher.push(ord(" "))
    assert ids_of(matcher.allowed()) == [ord(" "), ord("b")]
    later = Grammars(Dropping(), STOPS).matcher(grammar.choice([" a", "b"]), begins_text=False)
    assert ids_of(later.allowed()) == [ord(" "), ord("b")]


def test_forced_tokens_are_told_for_speculation() -> None:
    matcher = Grammars(ByteTokenizer(), STOPS).matcher(grammar.choice(["abc", "abx"]), begins_text=True)
    assert matcher.forced() == [*b"ab"]
    for token in matcher.forced():
        matcher.push(token)
    assert matcher.forced() == []
    assert not matcher.ended
    matcher.push(ord("c"))
    assert matcher.ended
    assert matcher.forced() == []


def test_what_a_grammar_forces_is_drafted_and_changes_no_answer(engine: Engine) -> None:
    for name in ("Bengali names", "nested", "constant", "uuid"):
        form = grammar.json_schema(SCHEMAS[name])
        for temperature in (0.0, 1.0):
            ids, ends = [], []
            for speculate in (False, True):
                one = request(form, seed=3, temperature=temperature, speculate=speculate)
                found = run(engine, one)[one]
                ids.append(found[0])
                ends.append(found[2])
            assert ids[0] == ids[1]
            assert all(isinstance(end, Finished) and end.complete for end in ends)
            assert name == "uuid" or ends[1].usage.accepted_tokens > 0


@pytest.mark.parametrize("count", [1, 31, 32, 33, 259, 1000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_masks_leave_exactly_the_allowed(count: int, share: float) -> None:
    rng = np.random.default_rng(count)
    logits_V = rng.normal(size=count).astype(np.float32)
    for words in (-(-count // 32), -(-count // 32) + 1):
        flags = np.zeros(words * 32, bool)
        flags[rng.random(words * 32) < share] = True
        flags[0] = True
        kept_V = only(logits_V, np.packbits(flags, bitorder="little").view(np.uint32))
        expected = np.where(flags[:count], logits_V, -np.inf)
        np.testing.assert_array_equal(kept_V, expected)
        assert kept_V.dtype == np.float32


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ('{"type": "string", "type": "string"}', "stands twice"),
        ("[]", "expected an object"),
        ("{", "cannot be read"),
        ({"frobnicate": 1}, r"\$\.frobnicate"),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        ({"properties": {"a": {"not": {}}}}, r"\$\.properties\.a\.not"),
        ({"anyOf": [{}, {"uniqueItems": True}]}, r"\$\.anyOf\[1\]\.uniqueItems"),
        ({"items": [{}]}, "prefixItems|list"),
        ({"type": "text"}, "text"),
        ({"type": 7}, r"\$\.type is 7"),
        ({"minLength": -1}, r"\$\.minLength is -1"),
        ({"maxItems": True}, r"\$\.maxItems is true"),
        ({"multipleOf": 0}, "above 0"),
        ({"exclusiveMinimum": True}, "a number"),
        ({"format": "iri"}, "iri"),
        ({"$ref": "http://example.com/x.json"}, "example.com"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "2020-12"),
        ({"$defs": {"a": 3}}, r"\$\.\$defs\.a is int"),
        ({"required": "a"}, "list of names"),
        ({"nullable": True, "type": "string"}, "nullable"),
    ],
)
def test_schemas_that_cannot_be_followed_are_refused_by_path(schema: Any, said: str) -> None:
    with pytest.raises(BadSchema, match=said):
        grammar.json_schema(schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "#"}, "nothing matches"),
        ({"$ref": "#/$defs/no"}, "no"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}, r"properties\.a: .*unclosed group"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)"}}}, r"properties\.a: .*look-around"),
        ({"type": "array", "items": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, r"\$\.items: .*overlap"),
        ({"allOf": [{"type": "integer"}, {"type": "string"}]}, "incompatible"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "greater than"),
        ({"enum": []}, "empty"),
    ],
)
def test_schemas_that_nothing_fits_are_refused_when_they_are_submitted(engine: Engine, schema: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSchema, match=said):
        engine.submit(request(grammar.json_schema(schema)))
    require_empty(engine)


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def chain(length: int) -> dict[str, Any]:
    links = {f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}, "required": ["a"]} for i in range(length)}
    return {"$defs": {**links, f"d{length}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


HOSTILE: dict[str, Callable[[], Grammar]] = {
    "deep schema": lambda: grammar.json_schema(deep(70)),
    "very deep JSON": lambda: grammar.json_schema("[" * 100_000),
    "long schema": lambda: grammar.json_schema({"enum": ["x" * 300_000]}),
    "chain of references": lambda: grammar.json_schema(chain(1500)),
    "optional properties": lambda: grammar.json_schema(
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}, "additionalProperties": False}
    ),
    "product of alternatives": lambda: grammar.json_schema(
        {"allOf": [{"anyOf": [{"properties": {f"a{i}_{j}": {"type": "integer"}}} for i in range(20)]} for j in range(6)]}
    ),
    "long pattern": lambda: grammar.regex("a" * 5000),
    "unclosed pattern": lambda: grammar.regex("(" * 4000),
    "deep pattern": lambda: grammar.regex("(" * 1500 + "a" + ")" * 1500),
    "intersection": lambda: grammar.notation("start: A\nA: " + " & ".join(f"/(.*x){{{i}}}.*/" for i in range(2, 14))),
    "chain of rules": lambda: grammar.notation(
        "start: r0\n" + "".join(f'r{i}: "x{i}" r{i + 1} | r{i + 1} "y{i}"\n' for i in range(998)) + 'r998: "e"'
    ),
    "many rules": lambda: grammar.notation("start: a\n" + "a: b\n" * 2000),
    "deep groups": lambda: grammar.notation("start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "deep groups in GBNF": lambda: grammar.notation("root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "rule without an end": lambda: grammar.notation("root ::= root"),
    "unknown rule": lambda: grammar.notation("root ::= nothing"),
    "temperature in a rule": lambda: grammar.notation('start[temperature=9]: "a"'),
    "choices": lambda: grammar.choice([str(i) for i in range(1001)]),
    "no choice": lambda: grammar.choice([]),
    "half a letter": lambda: grammar.regex("\ud800"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end_in_an_error_of_their_own(engine: Engine, name: str) -> None:
    began = time.process_time()
    with pytest.raises(BadGrammar):
        engine.submit(request(HOSTILE[name]()))
    assert time.process_time() - began < 1
    require_empty(engine)


HEAVY: dict[str, Callable[[], Grammar]] = {
    "enum": lambda: grammar.json_schema({"enum": [f"value number {i}" for i in range(5000)]}),
    "long enum": lambda: grammar.json_schema({"enum": ["x" * 20_000, "y" * 20_000]}),
    "required properties": lambda: grammar.json_schema(
        {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(500)}, "required": [f"p{i}" for i in range(500)]}
    ),
    "billion items": lambda: grammar.json_schema({"type": "array", "items": {"type": "null"}, "minItems": 10**9}),
    "billion letters": lambda: grammar.json_schema({"type": "string", "maxLength": 10**9}),
    "exponential pattern": lambda: grammar.regex("(a|b)*a(a|b){300}"),
    "nested stars": lambda: grammar.regex("((a*)*(a*)*(a*)*)*b"),
    "product of counts": lambda: grammar.regex("((a{1,1000}){1,1000}){1,1000}"),
    "ambiguity": lambda: grammar.notation('start: s\ns: s s | s s s | "a"'),
}


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_grammars_are_followed_in_time(engine: Engine, name: str) -> None:
    began = time.process_time()
    one = request(HEAVY[name](), max_tokens=12)
    end = run(engine, one)[one][2]
    assert isinstance(end, Finished)
    assert time.process_time() - began < 1.5


def test_grammars_without_an_answer_are_refused(engine: Engine) -> None:
    form = grammar.json_object()
    for asked in (request(form, max_tokens=0), request(form, ignore_end=True)):
        with pytest.raises(AskedWrong, match="grammar"):
            engine.submit(asked)


@pytest.mark.parametrize("source", [f"start: <[{MARK}]>", "start: <mark>", "start: <[256]>", "start: <end>"])
def test_a_control_token_cannot_be_asked_for(engine: Engine, source: str) -> None:
    one = request(grammar.notation(source))
    try:
        error = run(engine, one)[one][2].error  # type: ignore[union-attr]
    except BadGrammar as refused:
        error = refused
    assert isinstance(error, BadGrammar)
    require_empty(engine)


@pytest.mark.slow
def test_masks_of_a_large_vocabulary_cost_little(real_model: Callable[[str], Path]) -> None:
    with closing(read_gguf(real_model("qwen2.5-coder-0.5b-instruct"))) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}, "age": {"type": "integer"}},
        "required": ["name", "tags", "age"],
        "additionalProperties": False,
    }
    text = '{"name": "Rahim Uddin Khan শফিক", "tags": ["a red apple", "the blue sea", "several words"], "age": 42}'
    logits_V = np.zeros(tokenizer.size, np.float32)
    matcher = Grammars(tokenizer).matcher(grammar.json_schema(schema), begins_text=True)
    times_s = []
    for token in tokenizer.encode(text):
        began = time.perf_counter()
        kept_V = only(logits_V, matcher.allowed())
        matcher.push(token)
        times_s.append(time.perf_counter() - began)
        assert np.isfinite(kept_V[token])
    assert matcher.accepting
    times_s.sort()
    print(f"p50 {times_s[len(times_s) // 2] * 1e3:.3f} ms, greatest {times_s[-1] * 1e3:.3f} ms, {len(times_s)} tokens")
    # The aim is 0.3 ms in a quiet minute; the bound leaves room for a machine that does other things.
    assert times_s[len(times_s) // 2] < 1e-3
