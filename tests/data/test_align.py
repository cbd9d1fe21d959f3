"""Chunks of two tokenisations: nothing lost, nothing counted twice, no cut where one side has none."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from khola.data.align import Chunks, align, boundary_tokens, common_tokens, ends_of
from khola.errors import BadText
from khola.store.gguf import read_gguf
from khola.tokens.tokenizer import Tokenizer

TEXTS = {
    "english": "Open models are free to run, to study and to change. It cost $1,234,567.89 in 2024!\n",
    "bengali": "আমি বাংলায় গান গাই, বাড়ি ও গাঢ় সময়। ক্ষমা করো, স্বাস্থ্য ভালো রাখো; ১২৩৪৫ টাকা।",
    "rewritten": "\u09dc\u09dd\u09df ও \u09a1\u09bc — সময\u09bc, বাড\u09bcি",
    "code": "def f(x):\n\tif x:\n            return [1, 22, 333]  # why\r\n\n\n    y = {'a': \"b\"}\n",
    "emoji": "👨‍👩‍👧‍👦 🇧🇩🇮🇳 👍🏽 ❤️ 1️⃣ 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "spaces": "          x   \n \n\t\t  y\u00a0\u3000z    ",
    "marks": unicodedata.normalize("NFD", "café Ångström naïve") + "\u0301\u0302 한글 " + unicodedata.normalize("NFD", "한글"),
    "chinese": "开放权重的模型可以在普通电脑上运行。価格は１２３円。𠮷野家",
}


@dataclass
class Letters:
    """A vocabulary of bytes that may rewrite letters, drop some, and put a space in front."""

    rewritten: dict[str, str] = field(default_factory=dict)
    missing_bytes: frozenset[int] = frozenset()
    strips_space: bool = False
    control_ids: frozenset[int] = frozenset({256})
    size: int = 257

    def encode(self, text: str, *, control: bool = False, first: bool = True) -> list[int]:
        for old, new in self.rewritten.items():
            text = text.replace(old, new)
        return [byte for byte in (b" " * self.strips_space + text.encode()) if byte not in self.missing_bytes]

    def token_bytes(self, token_id: int) -> bytes:
        return b"<end>" if token_id == 256 else bytes([token_id])


def check(chunks: Chunks, teacher: np.ndarray, student: np.ndarray) -> None:
    """Everything that must hold of the chunks of two lists of ends."""
    shared = sorted((set(teacher.tolist()) & set(student.tolist())) - {0})
    assert chunks.ends.tolist() == shared
    for firsts, ends, numbers in (
        (chunks.teacher, teacher, chunks.teacher_chunk(len(teacher))),
        (chunks.student, student, chunks.student_chunk(len(student))),
    ):
        assert firsts[0] == 0
        assert (np.diff(firsts) > 0).all()
        for chunk, end in enumerate(shared):
            inside = ends[firsts[chunk] : firsts[chunk + 1]]
            assert inside[-1] == end
            assert (inside > ([0, *shared][chunk])).all() or chunk == 0
        assert np.bincount(numbers[numbers >= 0], minlength=len(shared)).tolist() == np.diff(firsts).tolist()
        assert (numbers == -1).sum() == len(ends) - firsts[-1]


ENDS = st.lists(st.integers(0, 40), min_size=0, max_size=30).map(lambda ends: np.array(sorted(ends), np.int64))


@settings(max_examples=60, deadline=None)
@given(ENDS, ENDS)
def test_chunks_of_any_ends(teacher: np.ndarray, student: np.ndarray) -> None:
    check(align(teacher, student), teacher, student)


@settings(max_examples=60, deadline=None)
@given(ENDS, ENDS, st.randoms(use_true_random=False))
def test_merging_keeps_every_token(teacher: np.ndarray, student: np.ndarray, draw: random.Random) -> None:
    chunks = align(teacher, student)
    kept = np.array([draw.random() < 0.6 for _ in range(len(chunks))], bool)
    merged = chunks.merged(kept)
    assert merged.ends.tolist() == chunks.ends[kept].tolist()
    stay = [0, *(np.flatnonzero(kept) + 1)]
    assert merged.teacher.tolist() == chunks.teacher[stay].tolist()
    assert merged.student.tolist() == chunks.student[stay].tolist()
    # What a token weighs is counted in exactly one chunk, the one that it now belongs to.
    numbers, weights = merged.teacher_chunk(len(teacher)), np.arange(len(teacher)) + 1.0
    sums = np.bincount(numbers[numbers >= 0], weights[numbers >= 0], minlength=len(merged))
    assert sums.tolist() == [weights[first:last].sum() for first, last in pairwise(merged.teacher)]


def test_one_sided_beginning_and_end() -> None:
    # A beginning-of-text token has no bytes; a tail that only one side has is in no chunk.
    chunks = align([0, 2, 5, 9], [2, 3, 5])
    assert chunks.teacher.tolist() == [0, 2, 3]
    assert chunks.student.tolist() == [0, 1, 3]
    assert chunks.single.tolist() == [False, False]
    assert chunks.teacher_chunk(4).tolist() == [0, 0, 1, -1]


def test_nothing_in_common() -> None:
    assert len(align([3, 7], [2, 5])) == 0
    assert align([3, 7], [2, 5]).student_chunk(2).tolist() == [-1, -1]


def test_the_one_who_rewrites_decides() -> None:
    plain, nfc = Letters(), Letters(rewritten={"\u09df": "\u09af\u09bc"})
    text, (left, right) = common_tokens("সম\u09df", plain, nfc)
    assert text == "সম\u09af\u09bc"
    assert left.ids == right.ids == tuple(text.encode())
    assert left.ends.tolist() == list(range(1, len(text.encode()) + 1))


def test_a_space_in_front_is_not_in_the_text() -> None:
    text, (left, right) = common_tokens("ab", Letters(strips_space=True), Letters())
    assert text == "ab"
    assert left.ends.tolist() == [0, 1, 2]
    assert align(left.ends, right.ends).teacher.tolist() == [0, 2, 3]


def test_letters_that_cannot_be_written() -> None:
    with pytest.raises(BadText, match="character 2 of the text"):
        common_tokens("ab\u0004", Letters(), Letters(missing_bytes=frozenset({4})))


def test_two_who_undo_each_other() -> None:
    with pytest.raises(BadText, match="rewrite each other's letters"):
        common_tokens("a", Letters(rewritten={"a": "b"}), Letters(rewritten={"b": "a"}))


def test_boundaries() -> None:
    starts = boundary_tokens(Letters())
    assert starts.nonzero()[0].tolist() == [9, 10, 11, 12, 13, 32, 256]


@pytest.fixture(scope="module")
def vocabularies(real_model: Callable[[str], Path]) -> tuple[Tokenizer, Tokenizer]:
    """SmolLM2 and Qwen2.5, as their files have them."""
    found = []
    for name in ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"):
        with read_gguf(real_model(name)) as file:
            found.append(Tokenizer.from_gguf(file.metadata, name))
    return found[0], found[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_real_vocabularies(name: str, vocabularies: tuple[Tokenizer, Tokenizer]) -> None:
    draw = random.Random(7)
    whole = TEXTS[name]
    for _ in range(40):
        first, last = sorted(draw.choices(range(len(whole) + 1), k=2))
        text, (student, teacher) = common_tokens(whole[first:last], *vocabularies)
        assert text == unicodedata.normalize("NFC", whole[first:last])
        for tokens, vocabulary in zip((student, teacher), vocabularies, strict=True):
            assert b"".join(map(vocabulary.token_bytes, tokens.ids)) == text.encode()
        chunks = align(teacher.ends, student.ends)
        check(chunks, teacher.ends, student.ends)
        assert chunks.teacher[-1] == len(teacher.ids)
        assert chunks.student[-1] == len(student.ids)
        # Every chunk spells the same bytes on both sides.
        for chunk in range(len(chunks)):
            left = b"".join(map(vocabularies[1].token_bytes, teacher.ids[chunks.teacher[chunk] : chunks.teacher[chunk + 1]]))
            right = b"".join(map(vocabularies[0].token_bytes, student.ids[chunks.student[chunk] : chunks.student[chunk + 1]]))
            assert left == right


@pytest.mark.slow
def test_tokens_cut_inside_letters(vocabularies: tuple[Tokenizer, Tokenizer]) -> None:
    draw = random.Random(3)
    student, teacher = vocabularies
    for text in TEXTS.values():
        _, (left, right) = common_tokens(text, student, teacher)
        for _ in range(20):
            # Both texts end somewhere, one of them earlier, perhaps inside a letter.
            some, others = left.ids[: draw.randrange(len(left.ids) + 1)], right.ids[: draw.randrange(len(right.ids) + 1)]
            ends = [ends_of([one.token_bytes(i) for i in ids]) for one, ids in ((teacher, others), (student, some))]
            check(align(*ends), *ends)


@pytest.mark.slow
def test_equal_vocabularies_give_chunks_of_one_token(vocabularies: tuple[Tokenizer, Tokenizer]) -> None:
    student, _ = vocabularies
    for text in TEXTS.values():
        _, (left, right) = common_tokens(text, student, student)
        chunks = align(left.ends, right.ends)
        assert len(chunks) == len(left.ids)
        assert chunks.single.all()
