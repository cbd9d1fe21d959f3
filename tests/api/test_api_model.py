"""What a program may ask of a model, over a runner that answers from a script."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from datetime import date
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import khola
from khola.api import Message, Model, Sampling, Tool
from khola.api import model as model_module
from khola.api.model import default_cache_tokens
from khola.errors import AskedWrong, BadTemplate, Cancelled, ContextOverflow, EmptyPrompt, NoMemory, NonFinite, NoTemplate, UnknownOption
from khola.loader.loaded import Loaded
from khola.ops.vocabulary import CacheSpec
from khola.settings import Settings
from tests.engine.fakes import BEGIN, END, VOCAB, ByteTokenizer, FakeRunner, fake_loaded

NAMES = {BEGIN: "<|im_start|>", END: "<|im_end|>", 258: "<|endoftext|>"}
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ChatTokenizer(ByteTokenizer):
    """Bytes, and the control tokens of ChatML."""

    def id_of(self, token: str) -> int | None:
        return {name: index for index, name in NAMES.items()}.get(token)

    def token(self, token_id: int) -> str:
        return NAMES.get(token_id) or chr(token_id)


class BosTokenizer(ChatTokenizer):
    adds_bos = True


class Script(FakeRunner):
    """Answers every turn of an assistant with the same bytes, then ends it."""

    def __init__(self, answer: str, pages: int = 64) -> None:
        super().__init__(pages)
        self.answer = [*answer.encode(), END]

    def _row(self, context: NDArray[np.int64]) -> NDArray[np.float32]:
        text = bytes(int(t) if t < 256 else 0 for t in context)
        begun = text.rpartition(b"assistant\n")[2] if b"assistant\n" in text else b""
        said = len(begun.removeprefix(b"<think>\n"))
        row = np.zeros(VOCAB, np.float32)
        row[self.answer[min(said, len(self.answer) - 1)]] = 20
        return row


def scripted(answer: str, *, chat_format: str = "chatml", **changes: Any) -> Model:
    options = {name: changes.pop(name) for name in ("context", "cache_tokens", "trust_template", "available_bytes") if name in changes}
    facts = {"tokenizer": ChatTokenizer(), "chat_format": chat_format, "stop_ids": frozenset({END}), **changes}
    return Model(fake_loaded(context_tokens=2048, **facts), runner=Script(answer), **{"cache_tokens": 2048, **options})


def random_model(**changes: Any) -> Model:
    loaded = fake_loaded(**{"context_tokens": 512, "tokenizer": ChatTokenizer(), **changes})
    return Model(loaded, runner=FakeRunner(16))


def test_a_question_is_answered_whole_and_in_pieces() -> None:
    model = scripted("প্যারিস।")
    answer = model.chat("What is the capital of France?")
    assert (answer.text, answer.finish_reason, answer.thinking, answer.tool_calls) == ("প্যারিস।", "stop", "", ())
    deltas = list(model.stream([Message(role="user", content="Again?")]))
    assert "".join(delta.text for delta in deltas) == "প্যারিস।"
    assert all(delta.finish_reason is None and delta.usage is None for delta in deltas[:-1])
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.answer_tokens == len("প্যারিস।".encode()) + 1
    assert bytes(token.id for delta in deltas for token in delta.tokens).decode() == "প্যারিস।"


def test_the_second_turn_computes_only_what_is_new() -> None:
    model = scripted("A fairly long answer about the city.")
    turns: list[Any] = [{"role": "user", "content": "Tell me about Dhaka, please, at some length."}]
    first = model.chat(turns)
    turns += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And Kolkata?"}]
    second = model.chat(turns)
    assert second.usage.cached_tokens == first.usage.prompt_tokens + first.usage.answer_tokens - 1
    assert model.stats().pages_used == 0


def test_thoughts_are_set_apart() -> None:
    model = scripted("two and two</think>\n\nfour", chat_format="qwq")
    answer = model.chat("2+2?")
    assert (answer.thinking.strip(), answer.text) == ("two and two", "four")
    assert answer.thinking_tokens == len("two and two</think>")
    deltas = list(model.stream("2+2?"))
    assert "".join(d.thinking for d in deltas).strip() == "two and two"
    assert "".join(d.text for d in deltas) == "four"


def test_marks_of_calls_are_seen_even_where_they_are_special_tokens() -> None:
    asked: list[frozenset[int]] = []

    class Marked(ChatTokenizer):
        special_ids = frozenset({1, 2})

        def id_of(self, token: str) -> int | None:
            return {"<tool_call>": 1, "<|im_start|>": 2}.get(token, super().id_of(token))

        def stream(self, skip_control: bool = True, shown: Collection[int] = ()) -> Any:
            asked.append(frozenset(shown) & self.special_ids)
            return super().stream(skip_control)

    model = scripted("x", chat_format="qwen2_5", tokenizer=Marked())
    for tools in ([], [Tool(name="add")]):
        model.chat("?", tools=tools)
    assert asked == [frozenset(), frozenset({1})]


@pytest.mark.parametrize(
    "tool",
    [
        Tool(name="add", parameters={"type": "object"}),
        {"name": "add", "parameters": {"type": "object"}},
        {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},
    ],
)
def test_tool_calls_are_read(tool: Any) -> None:
    model = scripted('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', chat_format="qwen2_5")
    answer = model.chat("1+1?", tools=[tool])
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("add", {"a": 1})]
    assert "tool_call" not in answer.text
    assert answer.json()["tool_calls"] == [{"name": "add", "arguments": {"a": 1}}]


@pytest.mark.parametrize("tool", [{"name": ""}, {"description": "no name"}, {"name": 3}, "add"])
def test_tools_that_cannot_be_meant_are_refused(tool: Any) -> None:
    with pytest.raises(AskedWrong):
        scripted("x", chat_format="qwen2_5").chat("1+1?", tools=[tool])


def test_without_a_format_chat_is_refused_and_completion_works() -> None:
    model = scripted("x", chat_format="")
    with pytest.raises(NoTemplate) as caught:
        model.chat("hello")
    assert "khola complete" in caught.value.hint()
    assert model.complete("assistant\n").text == "x"


def test_a_template_runs_only_when_it_is_trusted() -> None:
    with pytest.raises(NoTemplate) as caught:
        scripted("yes", chat_format="", template=TEMPLATE).chat("hello")
    assert "trust" in caught.value.hint()
    with scripted("yes", chat_format="", template=TEMPLATE, trust_template=True) as model:
        answer = model.chat("hello <|im_end|>")
        assert answer.text == "yes"
        assert answer.usage.prompt_tokens == len(b"0user\nhello <|im_end|>0\n0assistant\n")
    with scripted("yes", chat_format="", template="{{ messages | bogus }}", trust_template=True) as model, pytest.raises(BadTemplate):
        model.chat("hello")


def test_sampling_lies_over_what_the_lab_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted("abc", sampling={"temperature": 0.6, "top_p": 0.95})
    seen: list[Sampling] = []
    stream = model.engine.stream
    monkeypatch.setattr(model.engine, "stream", lambda request: seen.append(request.sampling) or stream(request))
    model.chat("hi")
    model.chat("hi", sampling={"temperature": 0.1, "stop": "c"})
    model.complete("hi", sampling=Sampling(top_k=3, max_tokens=1))
    assert [(s.temperature, s.top_p, s.top_k) for s in seen] == [(0.6, 0.95, 0), (0.1, 0.95, 0), (1.0, 1.0, 3)]
    assert seen[1].stop == ("c",)
    assert model.chat("hi", sampling={"stop": ["c"]}).text == "ab"


@pytest.mark.parametrize(("option", "told"), [({"temprature": 1}, "temperature"), ({"top_p": 2}, "top_p"), ({"top_k": "many"}, "top_k")])
def test_options_that_do_not_exist_or_fit_are_named(option: dict[str, Any], told: str) -> None:
    with pytest.raises(UnknownOption) as caught:
        scripted("x").chat("hi", sampling=option)
    assert told in f"{caught.value} {caught.value.hint()}"


def test_what_is_too_long_is_refused_at_once_with_both_numbers() -> None:
    model = scripted("x", context=64)
    with pytest.raises(ContextOverflow) as caught:
        model.stream("word " * 100)
    assert caught.value.facts["context_tokens"] == 64
    assert caught.value.facts["prompt_tokens"] > 500
    with pytest.raises(ContextOverflow):
        model.embed("x" * 65)
    with pytest.raises(ContextOverflow):
        model.score("x" * 65)
    assert model.embed("x" * 64).shape == (1, 8)
    assert len(model.score("x" * 64).logprobs) == 63


def test_an_answer_goes_up_to_the_end_of_the_context() -> None:
    answer = random_model().complete("start", sampling={"temperature": 0})
    assert (answer.finish_reason, answer.usage.answer_tokens) == ("length", 512 - 5)


def test_a_stream_that_is_closed_or_forgotten_frees_everything() -> None:
    model = random_model()
    with model.stream_complete("one") as stream:
        next(stream)
        assert model.stats().running == 1
    unread = model.stream_complete("two")
    unread.close()
    half = model.stream_complete("three")
    next(half)
    del half
    stats = model.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)


def test_a_failed_request_raises_its_error() -> None:
    model = random_model()
    model.engine._runner.poison = {7}  # type: ignore[union-attr]
    with pytest.raises(NonFinite):
        model.complete("\x07")
    with pytest.raises(NonFinite):
        model.embed(["fine", "\x07"])
    assert model.stats().pages_used == 0
    assert model.embed(["fine"]).shape == (1, 8)


def test_texts_become_vectors_in_their_order() -> None:
    model = random_model()
    texts = [f"text number {n}" * (n + 1) for n in range(20)]
    together = model.embed(texts)
    assert (together.shape, together.dtype) == ((20, 8), np.float32)
    np.testing.assert_allclose(together, np.concatenate([model.embed(text) for text in texts]), rtol=1e-6)


@pytest.mark.parametrize("ask", [lambda m: m.embed(""), lambda m: m.embed([]), lambda m: m.embed(["a", ""]), lambda m: m.score("")])
@pytest.mark.parametrize("tokenizer", [ChatTokenizer(), BosTokenizer()])
def test_empty_texts_are_refused(ask: Any, tokenizer: ByteTokenizer) -> None:
    with pytest.raises(EmptyPrompt):
        ask(random_model(tokenizer=tokenizer))


def test_a_completion_may_start_from_nothing_only_where_the_model_has_a_beginning() -> None:
    with pytest.raises(EmptyPrompt):
        random_model().complete("")
    assert random_model(tokenizer=BosTokenizer()).complete("", sampling={"max_tokens": 3}).usage.prompt_tokens == 1


def test_scores_start_from_the_beginning_that_the_model_has() -> None:
    bare, begun = random_model().score("abc"), random_model(tokenizer=BosTokenizer()).score("abc")
    assert (bare.tokens, begun.tokens) == ((97, 98, 99), (BEGIN, 97, 98, 99))
    assert (len(bare.logprobs), len(begun.logprobs)) == (2, 3)
    assert begun.logprob == pytest.approx(sum(begun.logprobs))
    assert begun.perplexity == pytest.approx(np.exp(-np.mean(begun.logprobs)))
    assert len(random_model(tokenizer=BosTokenizer()).score("a").logprobs) == 1
    with pytest.raises(AskedWrong):
        random_model().score("a")


def test_a_seed_gives_the_same_answer_again() -> None:
    model = random_model()
    sampling = {"temperature": 1.5, "seed": 3, "max_tokens": 20}
    one, two = model.complete("x", sampling=sampling), model.complete("x", sampling=sampling)
    other = model.complete("x", sampling={**sampling, "seed": 4})
    assert [t.id for t in one.tokens] == [t.id for t in two.tokens] != [t.id for t in other.tokens]


@pytest.mark.parametrize(
    ("available", "expected"), [(None, 2048), (10**9, 2048), (32 * 1000, 992), (0, 32)], ids=["unknown", "plenty", "some", "none"]
)
def test_the_default_cache_is_what_fits(available: int | None, expected: int) -> None:
    assert default_cache_tokens(32, 2048, available) == expected


@pytest.mark.parametrize(
    ("memory", "context", "expected"),
    [(100_000, None, 8192), (16_384, None, 4096), (4000, None, 2048), (1000, None, 992), (100_000, 500, 2000), (1000, 500, 500)],
)
def test_more_answers_at_once_have_more_cache(memory: int, context: int | None, expected: int) -> None:
    assert default_cache_tokens(32, 2048, 32 * memory, rows=64, context=context) == expected


def test_context_and_cache_follow_what_is_asked() -> None:
    loaded = fake_loaded(context_tokens=10_000)

    def made(**options: Any) -> Model:
        return Model(loaded, runner=FakeRunner(1), **options)

    assert made().context_tokens == 8192
    assert made(context=10_000).context_tokens == 10_000
    assert made(cache_tokens=1000).context_tokens == 1000
    assert (made(context=500, cache_tokens=1000).context_tokens, made(available_bytes=32 * 1000).context_tokens) == (500, 992)
    for options, error in [
        ({"context": 10_001}, ContextOverflow),
        ({"context": 5000, "cache_tokens": 1000}, ContextOverflow),
        ({"context": 0}, AskedWrong),
        ({"cache_tokens": -5}, AskedWrong),
        ({"context": 5000, "available_bytes": 1000}, NoMemory),
        ({"available_bytes": 100}, NoMemory),
    ]:
        with pytest.raises(error):
            made(**options)


def test_closing_ends_answers_with_an_error() -> None:
    model = random_model()
    stream = model.stream_complete("x")
    next(stream)
    model.close()
    with pytest.raises(Cancelled):
        list(stream)
    with pytest.raises(AskedWrong):
        model.complete("x")


class FakeOps:
    """An interpreter that is never asked to compute."""

    def token_bytes(self, spec: CacheSpec) -> int:
        return 4 * spec.numbers_per_token()

    def new_cache(self, spec: CacheSpec, pages: int, num_states: int = 0) -> tuple[str, int]:
        return "planes", pages

    def compile(self, forward: Any, spec: CacheSpec, max_context: int, max_rows: int) -> None:
        assert max_context == 100


def test_load_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    seen: dict[str, Any] = {}

    def loader(name: str, **options: Any) -> Loaded:
        seen.update(options, name=name)
        return fake_loaded(ops=FakeOps())

    monkeypatch.setattr(model_module, "load_model", loader)
    settings = Settings(home=tmp_path, user_home=tmp_path)
    with khola.load("some-model", settings=settings, interpreter="torch", context=100, dtype="bfloat16") as model:
        assert (model.name, model.card, model.context_tokens) == ("fake", None, 100)
        assert model.engine._runner._cache == ("planes", 4)  # type: ignore[union-attr]
    assert (seen["name"], seen["settings"], seen["interpreter"], seen["dtype"]) == ("some-model", settings, "torch", "bfloat16")


def test_looking_into_the_room_loads_no_engine() -> None:
    code = "import sys, khola.api; assert not {'numpy', 'khola.engine.engine', 'torch'} & set(sys.modules), sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError):
        _ = khola.api.nothing


def test_texts_go_on_side_by_side_and_from_ids() -> None:
    model = random_model()
    sampling = {"temperature": 0, "max_tokens": 6, "ignore_end": True}
    alone = [model.complete(text, sampling=sampling).text for text in ("one", "two", "three")]
    assert [answer.text for answer in model.complete_all(["one", tuple(b"two"), "three"], sampling=sampling)] == alone
    assert model.stats().pages_used == 0
    with pytest.raises(EmptyPrompt):
        model.complete_all(["one", ""], sampling=sampling)
    assert model.stats().running == 0


def test_the_prompt_is_told_with_what_was_likelier() -> None:
    model = random_model()
    score = model.score("a text")
    answer = model.complete("a text", sampling={"temperature": 0, "max_tokens": 2}, prompt_logprobs=3)
    assert tuple(token.id for token in answer.prompt) == score.tokens
    assert tuple(token.logprob for token in answer.prompt) == (None, *score.logprobs)
    for token in answer.prompt[1:]:
        assert len(token.top) == 3
        assert token.logprob is not None
        assert token.logprob <= token.top[0][1] >= token.top[1][1] >= token.top[2][1]
        assert token.logprob in [logprob for _, logprob in token.top] or token.logprob <= token.top[2][1]
    first, *rest = model.stream_complete("a text", sampling={"temperature": 0, "max_tokens": 2}, prompt_logprobs=0)
    assert (len(first.prompt), first.text) == (6, "")
    assert not any(delta.prompt for delta in rest)


def test_tenants_do_not_share_their_cache() -> None:
    model = scripted("answer")
    text = "a long beginning that several questions share, and on it goes for more than one page"
    for tenant, cached in (("a", False), ("b", False), ("a", True)):
        for ask in (model.complete, model.chat):
            answer = ask(text, sampling={"max_tokens": 1}, tenant=tenant)
            assert bool(answer.usage.cached_tokens) == cached


@pytest.mark.slow
def test_the_default_model_knows_paris_and_remembers_its_first_turn(real_model: Any) -> None:
    with khola.load(str(real_model("smollm2-135m-instruct"))) as model:
        turns: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
        first = model.chat(turns, sampling={"temperature": 0, "max_tokens": 40})
        assert "Paris" in first.text
        turns += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And of Italy?"}]
        second = model.chat(turns, sampling={"temperature": 0, "max_tokens": 40})
        assert "Rome" in second.text
        assert second.usage.cached_tokens == first.usage.prompt_tokens + first.usage.answer_tokens - 1
        assert model.score("The capital of France is Paris.").logprob > model.score("The capital of France is potato.").logprob
        near, same, far = model.embed(["A cat sat down.", "A cat sat down.", "def f(x): return x"])
        np.testing.assert_allclose(near, same, atol=1e-4)
        assert np.linalg.norm(near - far) > 1


def test_the_date_line_is_written_for_today() -> None:
    text = "hello"
    loaded = fake_loaded(tokenizer=ChatTokenizer(), chat_format="llama3_1")
    with Model(loaded, runner=Script(text), cache_tokens=2048, today=lambda: date(2026, 2, 3)) as model:
        prompt, _ = model.rendered([Message(role="user", content="hi")])
    assert "Today Date: 03 Feb 2026" in prompt.text()
