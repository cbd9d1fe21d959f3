"""Thoughts taken out of a stream of text.

Models that think aloud write `<think>` thoughts `</think>` answer. Some prompts end behind the first mark already (`Prompt.thinking_open`),
so that only the second one comes; some models then repeat the first. The marks count once, at the start: whatever the answer itself
spells later, in code or in quotes, is plain text. Newlines that only set a thought off from its marks are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from khola.chat.message import Control, Message, Part

START, END = "<think>", "</think>"
OPENING: tuple[Part, ...] = (Control(START, plain=True), "\n")
"""How a prompt opens a thought."""


def held_back(text: str, mark: str) -> int:
    """Characters at the end of a text that may turn out to begin a mark."""
    for count in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:count]):
            return count
    return 0


def without_thoughts(content: str) -> str:
    """What stands behind the last end mark, as the labs' templates cut the history."""
    return content.rsplit(END, 1)[-1]


def open_turn(message: Message) -> tuple[Part, ...]:
    """The contents of an assistant's turn that goes on; one that broke off within its thought goes on there."""
    if not message.thinking:
        return (message.content,)
    if not message.content:
        return (*OPENING, message.thinking)
    return (*OPENING, f"{message.thinking}\n", Control(END, plain=True), f"\n\n{message.content}")


class ThoughtTokens:
    """Counts the tokens of a thought, its marks included.

    Args:
        opened: as for `ThinkingSplitter`.
        token_bytes: the bytes that a token stands for.
    """

    def __init__(self, *, opened: bool, token_bytes: Callable[[int], bytes]) -> None:
        self.count = 0
        """So far."""
        self._state: Literal["start", "thinking", "answer"] = "start"
        self._opened = opened
        self._token_bytes = token_bytes
        self._seen = 0
        self._tail = b""

    def push(self, token: int) -> None:
        """Take the next token of the answer."""
        if self._state == "answer":
            return
        self._seen += 1
        self._tail += self._token_bytes(token)
        if self._state == "start":
            self._begin()
        if self._state == "thinking":
            before, mark, _ = self._tail.partition(END.encode())
            self._state = "answer" if mark else "thinking"
            self._tail = before[-len(END) :]
        if self._opened or self._state == "thinking" or self.count:
            self.count = self._seen

    def _begin(self) -> None:
        """Decide whether the answer begins with a thought."""
        seen = self._tail.lstrip()
        if seen.startswith(START.encode()):
            self._tail = seen[len(START) :]
            self._state = "thinking"
        elif not START.encode().startswith(seen):
            self._state = "thinking" if self._opened else "answer"


class ThinkingSplitter:
    """Splits a stream into thoughts and answer.

    Args:
        opened: the prompt ended inside a thought. Otherwise there is a thought only if the answer begins with the start mark.
    """

    def __init__(self, *, opened: bool) -> None:
        self._state: Literal["start", "thinking", "answer"] = "start"
        self._opened = opened
        self._held = ""
        self._fresh = False
        """Newlines that come next stand between a mark and what it sets off."""

    def push(self, text: str) -> tuple[str, str]:
        """What became certain: thoughts, answer."""
        self._held += text
        thinking = answer = ""
        if self._state == "start":
            self._begin()
        if self._state == "thinking":
            thinking = self._think()
        if self._state == "answer":
            answer = self._answer()
        return thinking, answer

    def finish(self) -> tuple[str, str]:
        """What was held back when the stream ended: thoughts, answer."""
        rest, self._held = self._held, ""
        if self._state == "answer" or (self._state == "start" and not self._opened):
            return "", rest
        return (rest.lstrip("\n") if self._fresh or self._state == "start" else rest).rstrip("\n"), ""

    def _begin(self) -> None:
        """Decide whether the stream begins with a thought, as soon as that is certain."""
        seen = self._held.lstrip()
        if seen.startswith(START):
            self._held = seen[len(START) :]
            self._state, self._fresh = "thinking", True
        elif not START.startswith(seen):
            self._state = "thinking" if self._opened else "answer"
            self._fresh = self._opened

    def _think(self) -> str:
        """Thoughts up to the end mark, or up to what may begin it."""
        end = self._held.find(END)
        if end >= 0:
            text, rest = self._held[:end], self._held[end + len(END) :]
            thinking = (text.lstrip("\n") if self._fresh else text).rstrip("\n")
            self._held, self._state, self._fresh = rest, "answer", True
            return thinking
        sure = self._held[: len(self._held) - held_back(self._held, END)].rstrip("\n")
        self._held = self._held[len(sure) :]
        thinking = sure.lstrip("\n") if self._fresh else sure
        self._fresh = self._fresh and not sure
        return thinking

    def _answer(self) -> str:
        """Everything, without the newlines that set it off."""
        text, self._held = self._held, ""
        if self._fresh:
            text = text.lstrip("\n")
            self._fresh = not text
        return text
