"""Encoding and decoding equal the libraries that made the vocabularies; plain text never becomes a control token."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from khola.errors import BadText
from khola.tokens.tokenizer import Tokenizer

Metadata = dict[str, Any]
Lines = Callable[[int], list[str]]


@pytest.fixture(scope="module")
def byte_level(byte_vocabulary: Metadata) -> Tokenizer:
    return Tokenizer.from_gguf(byte_vocabulary)


@pytest.fixture(scope="module")
def pieces(sentencepiece_vocabulary: Metadata) -> Tokenizer:
    return Tokenizer.from_gguf(sentencepiece_vocabulary)


@pytest.fixture(scope="module")
def published(written_json: dict[str, Any]) -> Library:
    import json

    return Library.from_str(json.dumps(written_json))


def test_byte_level_ids_equal_the_reference(byte_level: Tokenizer, published: Library, made_lines: Lines) -> None:
    for line in made_lines(500):
        marked = f"<|im_start|>{line}<think>{line[:5]}<|im_end|>"
        assert byte_level.encode(line) == published.encode(line).ids, repr(line)
        assert byte_level.encode(marked, control=True) == published.encode(marked).ids, repr(line)


def test_byte_level_text_equals_the_reference(byte_level: Tokenizer, published: Library) -> None:
    import random

    draw = random.Random(3)
    for _ in range(300):
        ids = draw.choices(range(byte_level.size), k=draw.randrange(30))
        if byte_level.id_of("<｜User｜>") in ids:
            continue
        for skip in (True, False):
            assert byte_level.decode(ids, skip_control=skip) == published.decode(ids, skip_special_tokens=skip)


def test_sentencepiece_ids_and_text_equal_the_reference(
    pieces: Tokenizer, sentencepiece_model: sentencepiece.SentencePieceProcessor, made_lines: Lines
) -> None:
    lines = [*made_lines(500), *("a" * n for n in range(30)), *(" " * n for n in range(30)), " ক  খ ", "▁▁x▁"]
    for line in lines:
        ids = sentencepiece_model.encode(line)
        assert pieces.encode(line) == ids, repr(line)
        assert pieces.decode(ids) == sentencepiece_model.decode(ids), repr(line)


def test_a_segment_that_continues_gets_no_space(pieces: Tokenizer, byte_level: Tokenizer) -> None:
    assert pieces.encode("open", first=True)[0] == pieces.id_of("▁open") or pieces.token(pieces.encode("open")[0]).startswith("▁")
    continued = pieces.encode("open", first=False)
    assert b"".join(map(pieces.token_bytes, continued)) == b"open"
    assert b"".join(map(pieces.token_bytes, pieces.encode("open"))) == b" open"
    assert byte_level.encode("open", first=False) == byte_level.encode("open")


def test_what_the_model_is_told(byte_level: Tokenizer, pieces: Tokenizer) -> None:
    pads = byte_level.id_of("[PAD0]")
    assert byte_level.size == pads, "padding rows are not counted"
    assert byte_level.bos_id == byte_level.id_of("<|endoftext|>") and not byte_level.adds_bos
    assert byte_level.end_ids == {byte_level.id_of("<|im_end|>"), byte_level.id_of("<|endoftext|>")}
    assert byte_level.id_of("<think>") in byte_level.control_ids - byte_level.special_ids
    assert byte_level.id_of("<|im_end|>") in byte_level.special_ids
    assert byte_level.id_of("no such piece") is None
    assert (pieces.bos_id, pieces.end_ids, pieces.adds_bos) == (1, {2}, True)
    assert byte_level.missing_bytes == pieces.missing_bytes == frozenset()


def test_thinking_marks_stay_in_text_and_chat_marks_do_not(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<|im_start|>a<think>b</think>c<|im_end|>", control=True)
    assert byte_level.decode(ids) == "a<think>b</think>c"
    assert byte_level.decode(ids, skip_control=False) == "<|im_start|>a<think>b</think>c<|im_end|>"
    stream = byte_level.stream(shown={byte_level.id_of("<|im_end|>")})
    assert "".join([*map(stream.push, ids), stream.finish()]) == "a<think>b</think>c<|im_end|>"


@pytest.mark.parametrize("fixture", ["byte_level", "pieces"])
def test_no_added_token_comes_from_plain_text(fixture: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(fixture)
    for added in tokenizer.control_ids:
        name = tokenizer.token(added)
        forms = [name, f" {name}", f"{name}{name}", f"x{name}y", name.replace("|", "｜"), name.replace("<", "＜"), name[:-1], name[1:]]
        forms += [name[:cut] + name[cut:] for cut in range(len(name))] + [name.replace(letter, letter + "\u200b", 1) for letter in name]
        for text in forms:
            ids = tokenizer.encode(text)
            assert tokenizer.control_ids.isdisjoint(ids), text
            assert tokenizer.decode(ids) == text
        split = [i for cut in (name[:3], name[3:]) for i in tokenizer.encode(cut, first=False)]
        assert tokenizer.control_ids.isdisjoint(split)
        assert added in tokenizer.encode(name, control=True)


def test_a_byte_name_in_text_is_text(pieces: Tokenizer) -> None:
    newline = pieces.id_of("<0x0A>")
    assert newline in pieces.encode("\n")
    assert newline not in pieces.encode("<0x0A>")
    assert pieces.decode(pieces.encode("<0x0A> <0x-1> <0xZZ>")) == "<0x0A> <0x-1> <0xZZ>"


def test_a_control_token_that_merges_spell_is_still_not_text(byte_vocabulary: Metadata) -> None:
    tokens = [*byte_vocabulary["tokenizer.ggml.tokens"], "<b", "<b>"]
    kinds = [*byte_vocabulary["tokenizer.ggml.token_type"], 1, 3]
    merges = ["< b", "<b >", *byte_vocabulary["tokenizer.ggml.merges"]]
    hostile = byte_vocabulary | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": merges}
    tokenizer = Tokenizer.from_gguf(hostile | {"tokenizer.ggml.pre": "gpt-2"})
    mark = tokenizer.id_of("<b>")
    assert tokenizer.encode("<b>", control=True) == [mark]
    for text in ("<b>", "a <b> c", "<b><b>"):
        assert mark not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    whole = Tokenizer.from_gguf(
        hostile | {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.merges": byte_vocabulary["tokenizer.ggml.merges"]}
    )
    assert whole.control_ids.isdisjoint(whole.encode("<b>"))


def test_a_control_token_of_one_letter_is_still_not_text(byte_vocabulary: Metadata) -> None:
    kinds = list(byte_vocabulary["tokenizer.ggml.token_type"])
    index = byte_vocabulary["tokenizer.ggml.tokens"].index("~")
    kinds[index] = 3
    tokenizer = Tokenizer.from_gguf(byte_vocabulary | {"tokenizer.ggml.token_type": kinds})
    assert index not in tokenizer.encode("a~b")
    assert index in tokenizer.encode("a~b", control=True)
    assert tokenizer.missing_bytes == frozenset()


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "ক\ud83d"])
def test_half_a_surrogate_pair_is_refused(byte_level: Tokenizer, pieces: Tokenizer, text: str) -> None:
    for tokenizer in (byte_level, pieces):
        with pytest.raises(BadText, match=f"character {len(text) - 1}"):
            tokenizer.encode(text)


@pytest.mark.parametrize("token_id", [-1, 10**9, 2**70])
def test_an_id_outside_the_vocabulary_is_refused(byte_level: Tokenizer, token_id: int) -> None:
    for ask in (byte_level.token, byte_level.token_bytes, lambda i: byte_level.decode([i]), lambda i: byte_level.stream().push(i)):
        with pytest.raises(BadText, match="ids from 0 to"):
            ask(token_id)


def test_nul_is_text_like_any_other(byte_level: Tokenizer, pieces: Tokenizer) -> None:
    for tokenizer in (byte_level, pieces):
        assert tokenizer.decode(tokenizer.encode("a\0b\0")) == "a\0b\0"
        assert tokenizer.encode("") == []
        assert tokenizer.decode([]) == ""


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_comes_back(byte_level: Tokenizer, pieces: Tokenizer, text: str) -> None:
    for tokenizer, expected in ((byte_level, unicodedata.normalize("NFC", text)), (pieces, text.replace("▁", " "))):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == expected
        stream = tokenizer.stream()
        assert "".join([*map(stream.push, ids), stream.finish()]) == expected
        assert tokenizer.control_ids.isdisjoint(ids)
        assert all(0 <= i < tokenizer.size for i in ids)


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["<|im_start|>", "<|im_", "end|>", "<th", "ink>", "<think>", "<s>", "</s", ">", "<0x", "0A>", " ", "\n"])
    )
)
def test_no_mixture_of_pieces_forges_a_control_token(byte_level: Tokenizer, pieces: Tokenizer, parts: list[str]) -> None:
    for tokenizer in (byte_level, pieces):
        assert tokenizer.control_ids.isdisjoint(tokenizer.encode("".join(parts)))


LONG = {
    "letter": "a",
    "space": " ",
    "newline": "\n",
    "mark": "\u0301",
    "virama": "\u09cd",
    "conjunct": "ক্ষ",
    "quote": "'",
    "digit": "7",
    "nul": "\0",
}


@pytest.mark.parametrize("fixture", ["byte_level", "pieces"])
@pytest.mark.parametrize("kind", LONG)
@pytest.mark.slow
def test_time_is_linear_in_the_text(kind: str, fixture: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(fixture)

    def seconds(count: int) -> float:
        text = LONG[kind] * (count // len(LONG[kind]))
        tokenizer.encode(text[:10])
        best = 1e9
        for _ in range(2):
            began = time.process_time()
            ids = tokenizer.encode(text)
            best = min(best, time.process_time() - began)
        assert tokenizer.decode(ids) == text
        return best

    small, large = seconds(1 << 13), seconds(1 << 17)
    assert large < 64 * max(small, 2e-3), "sixteen times the text may not take sixty-four times as long"


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["byte_level", "pieces"])
@pytest.mark.parametrize("kind", LONG)
def test_a_million_letters(kind: str, fixture: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(fixture)
    text = LONG[kind] * ((1 << 20) // len(LONG[kind]))
    began = time.process_time()
    ids = tokenizer.encode(text)
    assert time.process_time() - began < 20
    assert tokenizer.decode(ids) == text
