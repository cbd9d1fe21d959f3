"""Text from tokens one at a time, never cutting a character or a written sign in two.

What is released is final: the pieces joined are exactly what decoding all tokens at once gives. One written sign is held back, because the
next token may add to it (a Bengali vowel sign, a skin tone, the second half of a flag).

Source   extended grapheme clusters, Unicode Standard Annex 29; joined further at viramas, so that a Bengali conjunct stays whole.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection
from typing import Protocol
from unicodedata import category, combining

import regex

MAX_HELD = 64
"""Code points held back at most; a longer sign (only abuse writes one) is released as it comes.

Twice the longest run of marks that the Unicode stream-safe format allows (Annex 15, section 13).
"""

_CLUSTERS = regex.compile(r"\X")
_VIRAMA = 9
"""Canonical combining class of viramas."""
_JOINERS = frozenset("\u200c\u200d")


class Spells(Protocol):
    """What a stream needs of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that mark structure."""

    @property
    def strips_space(self) -> bool:
        """One leading space of the whole text is dropped."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""


class DecodeStream:
    """Turns tokens into text as they come; made by `Tokenizer.stream`."""

    def __init__(self, tokenizer: Spells, *, skip_control: bool = True, shown: Collection[int] = ()) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids.difference(shown) if skip_control else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips = tokenizer.strips_space
        self._held = ""

    def push(self, token_id: int) -> str:
        """Text that is final after one more token; often empty.

        Raises:
            BadText: the id is outside the vocabulary.
        """
        if token_id in self._skipped:
            return ""
        return self._release(self._decoder.decode(self._token_bytes(token_id)))

    def finish(self) -> str:
        """The rest of the text; call it once, after the last token. A character that was never completed becomes U+FFFD."""
        self._take(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return rest

    def _release(self, text: str) -> str:
        self._take(text)
        cut = _whole(self._held) if text else 0
        if len(self._held) - cut > MAX_HELD:
            cut = len(self._held)
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def _take(self, text: str) -> None:
        if text and self._strips:
            text = text.removeprefix(" ")
            self._strips = False
        self._held += text


def _whole(text: str) -> int:
    """Length of the part of a text that no following character can change."""
    if text.isascii() and "\r" not in text:
        return len(text) if not text or text[-1] < " " else len(text) - 1
    starts = [match.start() for match in _CLUSTERS.finditer(text)]
    while starts:
        cut: int = starts.pop()
        if cut == 0 or not (_joins(text[cut - 1]) or category(text[cut]).startswith("M")):
            return cut
    return 0


def _joins(letter: str) -> bool:
    """Whether a character binds what follows it to what went before."""
    return letter in _JOINERS or combining(letter) == _VIRAMA
