"""A vocabulary in which every byte is a token and every control token of any chat format is known."""

from __future__ import annotations

from collections.abc import Iterable

from khola.chat.message import Control, Prompt


class Bytes:
    """Stands in for `khola.tokens.tokenizer.Tokenizer`."""

    adds_bos = False
    bos_id = None
    control_ids: frozenset[int] = frozenset()
    end_ids: frozenset[int] = frozenset({256})

    def __init__(self) -> None:
        self._control: dict[str, int] = {}

    def encode(self, text: str, *, control: bool = False, first: bool = True) -> list[int]:
        """The bytes of a text."""
        assert not control
        return list(text.encode())

    def id_of(self, token: str) -> int:
        """A number for every control token."""
        return self._control.setdefault(token, 257 + len(self._control))

    def text(self, ids: Iterable[int]) -> str:
        """The way back, control tokens spelled."""
        spelled = {number: token.encode() for token, number in self._control.items()}
        return b"".join(spelled.get(int(one), bytes([int(one) % 256])) for one in ids).decode()

    def prompt(self, prompt: Prompt) -> str:
        """A prompt as `text` would spell it."""
        return "".join(part.token if isinstance(part, Control) else part for part in prompt.parts)
