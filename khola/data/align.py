"""Two tokenisations of one text, cut where both end a token.

Every token is given by the byte offset at which it ends, so that nothing hangs on how a vocabulary spells its pieces. Offsets are those of
the text that both vocabularies really read: where one of them rewrites letters first (Qwen's NFC does so with three Bengali ones), the
other one is made to read the rewritten text as well.

Shapes   M tokens of the teacher, N tokens of the student, C chunks, V vocabulary.
Source   chunks and their debiasing: approximate likelihood matching, arXiv:2503.20083 section 3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from khola.errors import BadText

BOUNDARIES = frozenset(b" \t\n\r\v\f")
"""Bytes before which pre-tokenizers cut: a token that starts with one of them never continues the word before it."""
ROUNDS = 4
"""Normal forms of two vocabularies settle in two rounds; more than this is a contradiction."""

Offsets = NDArray[np.int64]


class Vocabulary(Protocol):
    """What aligning needs of a tokenizer."""

    @property
    def strips_space(self) -> bool:
        """Whether encoding puts a space in front that is not in the text."""

    @property
    def size(self) -> int:
        """Ids run from 0 up to here."""

    @property
    def control_ids(self) -> frozenset[int]:
        """What plain text never becomes."""

    @property
    def missing_bytes(self) -> frozenset[int]:
        """Bytes that the vocabulary cannot write."""

    def encode(self, text: str, *, control: bool = False, first: bool = True) -> list[int]:
        """Ids of a text."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text as one vocabulary cuts it."""

    ids: tuple[int, ...]
    ends: Offsets
    """Where each token ends, in bytes of the text; never falling."""


@dataclass(frozen=True, eq=False)
class Chunks:
    """Runs of tokens of both sides over the same bytes: chunk c has teacher tokens `teacher[c]` up to `teacher[c + 1]`."""

    teacher: Offsets
    """First token of every chunk, and the end of the last one, [C + 1]."""
    student: Offsets
    """The same of the student, [C + 1]."""
    ends: Offsets
    """Byte offset at which each chunk ends, [C]."""

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def single(self) -> NDArray[np.bool_]:
        """Chunks of one token on each side, [C]."""
        single: NDArray[np.bool_] = (np.diff(self.teacher) == 1) & (np.diff(self.student) == 1)
        return single

    def merged(self, kept: NDArray[np.bool_]) -> Chunks:
        """The chunks with some of their ends taken away: what stood before such an end belongs to the next chunk.

        Args:
            kept: which ends stay, [C]; chunks behind the last one that stays are left out.
        """
        stays = np.concatenate([[True], kept])
        return Chunks(self.teacher[stays], self.student[stays], self.ends[kept])

    def student_chunk(self, num_tokens: int) -> NDArray[np.int64]:
        """Number of the chunk of every student token, -1 behind the last chunk, [N].

        Args:
            num_tokens: tokens of the student.
        """
        return _chunk_of(self.student, num_tokens)

    def teacher_chunk(self, num_tokens: int) -> NDArray[np.int64]:
        """Number of the chunk of every teacher token, -1 behind the last chunk, [M].

        Args:
            num_tokens: tokens of the teacher.
        """
        return _chunk_of(self.teacher, num_tokens)


def align(teacher_ends: Sequence[int] | Offsets, student_ends: Sequence[int] | Offsets) -> Chunks:
    """The finest chunks that begin and end with a token on both sides; linear in the number of tokens.

    Tokens without bytes of their own (half of a letter that was not told, a mark) belong to the chunk before them. Tokens behind the last
    common end are in no chunk: one side may have been cut short.

    Args:
        teacher_ends, student_ends: byte offsets over the same text, never falling.
    """
    teacher, student = (np.asarray(ends, np.int64) for ends in (teacher_ends, student_ends))
    shared = np.intersect1d(teacher, student)
    shared = shared[shared > 0]
    firsts = [np.concatenate([[0], np.searchsorted(ends, shared, side="right")]) for ends in (teacher, student)]
    return Chunks(firsts[0], firsts[1], shared)


def common_tokens(text: str, *vocabularies: Vocabulary) -> tuple[str, list[Tokens]]:
    """A text in the form that all vocabularies read unchanged, and its tokens in each.

    Raises:
        BadText: a vocabulary cannot write a letter of it, or two of them undo each other's normal form.
    """
    for _ in range(ROUNDS):
        ids = [tuple(vocabulary.encode(text)) for vocabulary in vocabularies]
        pieces = [_pieces(one, vocabulary) for one, vocabulary in zip(ids, vocabularies, strict=True)]
        wanted = text.encode()
        others = [(at, joined) for at, parts in enumerate(pieces) if (joined := b"".join(parts)) != wanted]
        if not others:
            return text, [Tokens(one, ends_of(parts)) for one, parts in zip(ids, pieces, strict=True)]
        at, joined = others[0]
        _check_letters(text, vocabularies[at])
        text = joined.decode("utf-8", "replace")
    raise BadText("the vocabularies of teacher and student rewrite each other's letters", hint="bring the text into one normal form (NFC)")


def ends_of(pieces: Sequence[bytes]) -> Offsets:
    """Where each piece ends when they are joined, in bytes."""
    return np.cumsum([len(piece) for piece in pieces], dtype=np.int64)


def boundary_tokens(vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """Tokens that never continue a word: those that begin with a boundary byte, and control tokens, [V]."""
    starts = np.zeros(vocabulary.size, np.bool_)
    for index in range(vocabulary.size):
        starts[index] = index in vocabulary.control_ids or vocabulary.token_bytes(index)[:1] in _FIRSTS
    return starts


def vocabulary_hash(vocabulary: Vocabulary) -> str:
    """SHA-256 of what every token spells, in order: vocabularies that share it share their ids."""
    digest = hashlib.sha256()
    for index in range(vocabulary.size):
        raw = vocabulary.token_bytes(index)
        digest.update(len(raw).to_bytes(4, "little") + raw)
    return digest.hexdigest()


_FIRSTS = frozenset(bytes([byte]) for byte in BOUNDARIES)


def _pieces(ids: Sequence[int], vocabulary: Vocabulary) -> list[bytes]:
    """The bytes of each token, without a space that only encoding put in front."""
    pieces = [vocabulary.token_bytes(index) for index in ids]
    if vocabulary.strips_space and pieces and pieces[0].startswith(b" "):
        pieces[0] = pieces[0][1:]
    return pieces


def _check_letters(text: str, vocabulary: Vocabulary) -> None:
    """Refuse what a vocabulary drops; rewriting is another matter."""
    missing = vocabulary.missing_bytes
    if not missing:
        return
    for at, letter in enumerate(text):
        if not missing.isdisjoint(letter.encode()):
            raise BadText(
                "character {position} of the text is {letter!r}, which one of the two vocabularies cannot write",
                hint="take it out of the data",
                position=at,
                letter=letter,
            )


def _chunk_of(firsts: Offsets, num_tokens: int) -> NDArray[np.int64]:
    tokens = np.arange(num_tokens)
    chunks = np.searchsorted(firsts, tokens, side="right") - 1
    return np.where(tokens < firsts[-1], chunks, -1)
