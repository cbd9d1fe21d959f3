"""Log-probabilities in the two forms that OpenAI's clients read: those of chats, and the older ones of completions."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from khola.serve.backend import Piece, Token

LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot say; OpenAI's own figure."""


class ContentTokens:
    """The tokens that spell the text of an answer, without those of its thought and of marks around it.

    The parser of a chat format may hold text back that was cut otherwise into tokens, so tokens wait until their text is said.
    """

    def __init__(self) -> None:
        self._waiting: list[Token] = []
        self._thought = False

    def push(self, piece: Piece) -> list[Token]:
        """Tokens that belong to the text of this piece."""
        self._waiting += piece.tokens
        if piece.thinking and not piece.text:
            self._thought = True
            self._waiting.clear()
        if not piece.text:
            return self._let_out() if piece.finish_reason and not (self._thought or piece.tool_calls) else []
        if piece.thinking or self._thought:
            self._thought = False
            self._waiting = _ending(self._waiting, len(piece.text.encode()))
        return self._let_out()

    def _let_out(self) -> list[Token]:
        found, self._waiting = self._waiting, []
        return found


def _ending(tokens: Sequence[Token], length: int) -> list[Token]:
    """The last tokens that spell so many bytes, or just more."""
    at = len(tokens)
    while at > 0 and length > 0:
        at -= 1
        length -= len(tokens[at].spells)
    return list(tokens[at:])


def chat_logprobs(tokens: Iterable[Token]) -> dict[str, Any]:
    """Log-probabilities of a chat's answer; the joined `bytes` are the answer in UTF-8."""
    return {"content": [_entry(token) for token in tokens], "refusal": None}


def output_logprobs(tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """Log-probabilities of a part of a response."""
    return [_entry(token) for token in tokens]


def _entry(token: Token) -> dict[str, Any]:
    top = [{"token": shown(spells), "bytes": list(spells), "logprob": _finite(logprob)} for _, spells, logprob in token.top]
    own = {"token": shown(token.spells), "bytes": list(token.spells), "logprob": _finite(token.logprob or 0.0)}
    return {**own, "top_logprobs": top}


class TextLogprobs:
    """Log-probabilities of a completion, in the older form: four lists, a place a token."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._letters = 0

    def push(self, tokens: Iterable[Token], most: int) -> dict[str, list[Any]]:
        """The lists for the next tokens.

        Args:
            tokens: in the order of the text.
            most: alternatives that were asked for; the token itself stands among them in any case.
        """
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            found["tokens"].append(shown(token.spells))
            found["text_offset"].append(self._letters)
            found["token_logprobs"].append(None if token.logprob is None else _finite(token.logprob))
            found["top_logprobs"].append(None if token.logprob is None else _alternatives(token, most))
            self._letters += len(self._decoder.decode(token.spells))
        return found


def _alternatives(token: Token, most: int) -> dict[str, float]:
    """The most likely tokens by what they show, the chosen one included; of two that look alike the likelier one."""
    found: dict[str, float] = {}
    for _, spells, logprob in token.top[:most]:
        found.setdefault(shown(spells), _finite(logprob))
    assert token.logprob is not None
    found.setdefault(shown(token.spells), _finite(token.logprob))
    return found


def shown(spells: bytes) -> str:
    """A token as text; one that ends inside a letter as the names of its bytes, the way OpenAI writes it."""
    try:
        return spells.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spells)


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)
