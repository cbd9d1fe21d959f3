"""A teacher of this machine: what it tells of a text equals what the engine computes, and the cache is asked first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from khola.api import Model
from khola.api.quality import text_logprobs
from khola.chat.formats import Format, format_named
from khola.chat.message import Message
from khola.data.align import boundary_tokens, common_tokens
from khola.errors import ContextOverflow, NoTemplate
from khola.store.gguf import read_gguf
from khola.tokens.tokenizer import Tokenizer
from khola.train.matching import chunk_match
from khola.train.opinion import Opinion, Question, scored, written
from khola.train.teacher import LocalTeacher, Wanted, consult, spoken
from khola.train.teacher_cache import TeacherCache
from tests.serve.engines.rig import direct

HALF = 2e-3
"""Relative rounding of halves, and a little."""
TEXT = "about a cab: ab\n\tআব "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with direct(tmp_path_factory.mktemp("teacher"), "one", interpreter="numpy") as found:
        yield found


def rows(model: Model, ids: Sequence[int]) -> np.ndarray:
    """Log-probabilities of what follows each of the ids, [T, V]."""
    return np.concatenate(list(text_logprobs(model.loaded, [*ids, 0])))


@pytest.mark.parametrize("prompt", ["", "It is "])
def test_scores_are_the_engines(model: Model, prompt: str) -> None:
    question = Question(prompt=prompt, text=TEXT)
    (opinion,) = LocalTeacher(model, Wanted(top=3, boundary=True)).answers([question])
    tokenizer = model.loaded.tokenizer
    before, said = tokenizer.encode(prompt) if prompt else [], tokenizer.encode(TEXT)
    ids = [*before, *said, min(tokenizer.end_ids)]
    assert opinion.lengths_N.tolist() == [*(len(tokenizer.token_bytes(token)) for token in said), 1]
    assert opinion.ends[-1] == len(TEXT.encode()) + 1
    all_TV = rows(model, ids)
    first = len(before)
    expected = [np.nan if at == 0 else all_TV[at - 1, ids[at]] for at in range(first, len(ids))]
    np.testing.assert_allclose(opinion.logprobs_N.astype(float), expected, rtol=HALF, atol=1e-4)
    boundary_V = boundary_tokens(tokenizer)
    masses = [*np.exp(all_TV[first:-1])[:, boundary_V].sum(-1), 1.0]
    np.testing.assert_allclose(opinion.masses_N.astype(float), masses, rtol=HALF, atol=1e-4)
    assert 0 < min(masses) < 0.99
    for place in range(1 if not prompt else 0, len(said) + 1):
        best_V = np.argsort(-all_TV[first + place - 1], kind="stable")[:3]
        assert opinion.top_ids_NK[place].tolist() == best_V.tolist()
        np.testing.assert_allclose(opinion.top_NK[place].astype(float), all_TV[first + place - 1, best_V], rtol=HALF)
    if not prompt:
        assert np.isnan(opinion.logprobs_N[0])
        assert opinion.top_ids_NK[0].tolist() == [-1, -1, -1]


def test_scores_agree_with_the_api(model: Model) -> None:
    (opinion,) = LocalTeacher(model, Wanted()).answers([Question(text=TEXT)])
    np.testing.assert_allclose(opinion.logprobs_N[1:-1].astype(float), model.score(TEXT).logprobs, rtol=HALF, atol=2e-3)
    assert opinion.masses_N.shape == (0,)
    assert opinion.top_ids_NK.shape == (len(opinion.lengths_N), 0)


def test_texts_of_its_own(model: Model) -> None:
    teacher = LocalTeacher(model, Wanted(sampling={"max_tokens": 6, "temperature": 1.0}))
    questions = [Question(prompt="ab", seed=seed) for seed in (1, 2, 1)]
    one, two, again = teacher.answers(questions)
    assert one.text == again.text != two.text
    assert not one.whole
    assert one.text == model.complete("ab", sampling={"max_tokens": 6, "temperature": 1.0, "seed": 1}).text
    assert len(one.lengths_N) == 0


def test_too_long(model: Model) -> None:
    with pytest.raises(ContextOverflow, match="the teacher reads 512 tokens at most; this text has 601"):
        LocalTeacher(model, Wanted()).answers([Question(text="x" * 600)])


def test_messages_need_a_format(model: Model) -> None:
    with pytest.raises(NoTemplate, match="a chat format that khola knows"):
        spoken(Question(messages=({"role": "user", "content": "?"},), text="x"), model.loaded.tokenizer, None)


def test_the_header_follows_the_files(model: Model, tmp_path: Path) -> None:
    header = LocalTeacher(model, Wanted()).header()
    with direct(tmp_path, "two", interpreter="numpy") as other:
        assert LocalTeacher(other, Wanted()).header()["files"] != header["files"]
    assert LocalTeacher(model, Wanted(boundary=True)).header() != header
    assert LocalTeacher(model, Wanted(sampling={"seed": 1})).header() != header


@pytest.fixture(scope="module")
def labs(real_model: Callable[[str], Path]) -> list[tuple[Tokenizer, Format]]:
    """Vocabulary and chat format of SmolLM2 and of Qwen2.5."""
    found = []
    for name, chat in (("smollm2-135m-instruct", "smollm2"), ("qwen2.5-coder-0.5b-instruct", "qwen2_5")):
        with read_gguf(real_model(name)) as file:
            found.append((Tokenizer.from_gguf(file.metadata, name), format_named(chat)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["It is 4.", "আমি বাংলায় গান গাই, বাড়ি।", "def f(x):\n\treturn x  # ok", "👨‍👩‍👧‍👦 \u09df"])
def test_an_answer_in_two_labs_formats(answer: str, labs: list[tuple[Tokenizer, Format]]) -> None:
    """What stands before an answer differs, and where it begins; its bytes do not."""
    (text, _) = common_tokens(answer, *(tokenizer for tokenizer, _ in labs))
    turns = (Message(role="user", content="2 + 2?"), Message(role="assistant", content="5"), Message(role="user", content="No."))
    student, teacher = (spoken(Question(messages=turns, text=text), *one) for one in labs)
    assert student.text == teacher.text == text
    assert student.first != teacher.first
    for said, (tokenizer, _) in zip((student, teacher), labs, strict=True):
        assert said.closed and int(said.ids_T[-1]) == tokenizer.id_of("<|im_end|>")
        assert b"".join(map(tokenizer.token_bytes, said.ids_T[said.first : -1].tolist())) == text.encode()
        assert said.ends[-1] == len(text.encode()) + 1
    surprisals = np.arange(1, len(teacher.lengths) + 1) / 8
    matched = chunk_match(student, scored(text, list(teacher.lengths), -surprisals))
    # Every token of the student is in a chunk, the end is a chunk of its own, and nothing that the teacher said is lost.
    assert (matched["chunk_r"] >= 0).all()
    assert matched["teacher_C"][-1] == pytest.approx(surprisals[-1], rel=HALF)
    assert matched["teacher_C"].sum() == pytest.approx(surprisals.sum(), rel=HALF)


class Counting:
    """Writes down what it is asked, and breaks where it is told to."""

    at_once = 2

    def __init__(self, breaks_at: str = "") -> None:
        self.asked: list[str] = []
        self._breaks_at = breaks_at

    def header(self) -> dict[str, object]:
        return {"teacher": "counting"}

    def answers(self, questions: Sequence[Question]) -> list[Opinion]:
        for question in questions:
            if question.prompt == self._breaks_at:
                raise KeyboardInterrupt
            self.asked.append(question.prompt)
        return [written(question.prompt.upper(), True) for question in questions]


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    questions = [Question(prompt=letter) for letter in "abcadeb"]
    teacher, heard = Counting(), []
    cache = TeacherCache(tmp_path, teacher.header())
    opinions = consult(teacher, questions, cache, lambda known, of: heard.append((known, of)))
    assert [opinion.text for opinion in opinions] == list("ABCADEB")
    assert teacher.asked == list("abcde")
    assert heard == [(2, 5), (4, 5), (5, 5)]
    later = Counting()
    again = consult(later, [*questions, Question(prompt="f")], TeacherCache(tmp_path, teacher.header()))
    assert [opinion.text for opinion in again] == list("ABCADEBF")
    assert later.asked == ["f"]


def test_what_was_answered_before_a_break_is_kept(tmp_path: Path) -> None:
    questions = [Question(prompt=letter) for letter in "abcdef"]
    with pytest.raises(KeyboardInterrupt):
        consult(Counting("e"), questions, TeacherCache(tmp_path, {"teacher": "counting"}))
    later = Counting()
    consult(later, questions, TeacherCache(tmp_path, {"teacher": "counting"}))
    assert later.asked == ["e", "f"]
