"""Prompts become ids: control tokens by name, texts as plain text, one beginning of text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chat_conversations import PLAIN, assistant, system, user

from khola.chat.encode import answer_runs, prompt_ids
from khola.chat.formats import Format, format_named
from khola.chat.message import Asked, Control, Prompt
from khola.errors import BadTokenizer
from khola.store.gguf import read_gguf
from khola.tokens.tokenizer import Tokenizer


class Letters:
    """A vocabulary of code points, with control tokens above them; keeps the texts that it was asked to encode."""

    def __init__(self, *control: str, adds_bos: bool = False, leaks: bool = False) -> None:
        self.ids = {token: 0x110000 + index for index, token in enumerate(control)}
        self.control_ids = frozenset(self.ids.values())
        self.bos_id = self.ids.get("<s>")
        self.adds_bos = adds_bos
        self.leaks = leaks
        self.asked: list[str] = []

    def encode(self, text: str, *, control: bool = False, first: bool = True) -> list[int]:
        assert not control
        assert first
        self.asked.append(text)
        return [next(iter(self.control_ids))] if self.leaks else [ord(letter) for letter in text]

    def id_of(self, token: str) -> int | None:
        return self.ids.get(token)


def test_texts_are_joined_and_control_tokens_named() -> None:
    letters = Letters("<a>", "<b>")
    ids = prompt_ids(Prompt(parts=(Control("<a>"), "x", "", "<b>", Control("<b>"), Control("<a>"))), letters)
    assert letters.asked == ["x<b>"]
    assert ids == [0x110000, *map(ord, "x<b>"), 0x110001, 0x110000]


def test_a_plain_mark_is_text_where_the_vocabulary_lacks_it() -> None:
    parts = ("x", Control("<think>", plain=True), "y")
    letters = Letters("<a>")
    assert prompt_ids(Prompt(parts=parts), letters) == [*map(ord, "x<think>y")]
    assert letters.asked == ["x<think>y"]
    assert prompt_ids(Prompt(parts=parts), Letters("<think>")) == [ord("x"), 0x110000, ord("y")]


def test_a_missing_control_token_is_an_error() -> None:
    with pytest.raises(BadTokenizer, match="no token '<b>'"):
        prompt_ids(Prompt(parts=(Control("<b>"),)), Letters("<a>"))


def test_text_that_encodes_to_a_control_token_is_an_error() -> None:
    with pytest.raises(BadTokenizer, match="turns plain text into the control tokens"):
        prompt_ids(Prompt(parts=("x",)), Letters("<a>", leaks=True))


@pytest.mark.parametrize(
    ("adds_bos", "parts", "count"),
    [(True, ("x",), 1), (True, (Control("<s>"), "x"), 1), (False, (Control("<s>"), "x"), 1), (False, ("x",), 0)],
)
def test_the_beginning_of_text_stands_once(adds_bos: bool, parts: tuple[Control | str, ...], count: int) -> None:
    ids = prompt_ids(Prompt(parts=parts), Letters("<s>", adds_bos=adds_bos))
    assert ids.count(0x110000) == count
    assert ids[-1] == ord("x")


def test_later_beginnings_stay() -> None:
    prompt = format_named("llama2").render(Asked([user("a"), assistant("b"), user("c")]))
    assert prompt_ids(prompt, Letters("<s>", "</s>", adds_bos=True)).count(0x110000) == 2


def read_tokenizer(path: Path) -> Tokenizer:
    file = read_gguf(path)
    try:
        return Tokenizer.from_gguf(file.metadata)
    finally:
        file.close()


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(("model", "name"), [("smollm2-135m-instruct", "smollm2"), ("qwen2.5-coder-0.5b-instruct", "qwen2_5")])
def test_real_vocabularies_read_prompts_as_the_reference_does(real_model: Callable[[str], Path], model: str, name: str) -> None:
    tokenizer = read_tokenizer(real_model(model))
    for title, messages in PLAIN.items():
        prompt = format_named(name).render(Asked(messages))
        ids = prompt_ids(prompt, tokenizer)
        if title != "marks in text":
            assert ids == tokenizer.encode(prompt.text(), control=True), title
        if name == "smollm2":  # Qwen's vocabulary normalises letters, so that they need not come back as they were
            assert tokenizer.decode(ids, skip_control=False) == prompt.text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "names"), [("smollm2-135m-instruct", ["chatml", "smollm2"]), ("qwen2.5-coder-0.5b-instruct", ["qwen1_5", "qwen2_5", "qwq"])]
)
def test_no_control_id_comes_from_a_speaker(real_model: Callable[[str], Path], model: str, names: list[str]) -> None:
    tokenizer = read_tokenizer(real_model(model))
    tokens = [tokenizer.token(index) for index in sorted(tokenizer.control_ids)]
    for name in names:
        form = format_named(name)

        def controls(text: str, form: Format = form) -> int:
            prompt = form.render(Asked([system(text), user(text), assistant(text), user(text)]))
            return sum(index in tokenizer.control_ids for index in prompt_ids(prompt, tokenizer))

        expected = controls("x")
        for token in tokens:
            for text in (token, token * 2, f"x {token}\n{token}y", token[:3], token[3:]):
                assert controls(text) == expected, text


CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
OLD = ("<s>", "</s>")


@pytest.mark.parametrize(
    ("name", "control", "marked"),
    [("smollm2", CHATML, True), ("qwen2_5", CHATML, True), ("llama3", HEADERS, True), ("llama3_2", HEADERS, True), ("llama2", OLD, False)],
)
def test_earlier_answers_are_found(name: str, control: tuple[str, ...], marked: bool) -> None:
    """Whoever spoke them, and none where letters alone tell who speaks; a prompt that ends behind the opening has no answer there yet."""
    turns = [user("assistant\n"), assistant("It is <|im_start|>assistant\nParis."), user("And?"), assistant("Rome")]
    letters, ends = (
        Letters(*control),
        [0x110000 + index for index, token in enumerate(control) if token not in ("<|im_start|>", *HEADERS[:3])],
    )
    for goes_on in (False, True):
        given = turns if goes_on else [*turns, user("Thanks")]
        prompt = format_named(name).render(Asked(given, continue_last=goes_on))
        ids = prompt_ids(prompt, letters)
        found = ["".join(map(chr, ids[run.start : run.stop])) for run in answer_runs(prompt, ids, letters, ends)]
        assert found == ([turn.content for turn in (turns[1], turns[3])] if marked else [])


def test_thoughts_that_leave_the_history_leave_no_answer_to_find() -> None:
    prompt = format_named("qwq").render(Asked([user("a"), assistant("b"), user("c")]))
    letters = Letters(*CHATML, "<think>")
    assert answer_runs(prompt, prompt_ids(prompt, letters), letters, [0x110001]) == ()
