"""What is remembered of the older part of a conversation: notes that the model writes itself, checked before they are believed.

A small model may write nothing, go on with the talk, or speak of itself. Notes are therefore taken of one part at a time and added to
those before; notes whose words hardly stand in what they are about are replaced by the last sentences of the one who asks; names and
numbers stand in a line before them; and all together never take more than their share of the context: the oldest sentences go first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import regex

from khola.chat.message import Message
from khola.serve.backend import Backend, ChatJob
from khola.serve.kept.history import Kept

FULL_SHARE = 0.6
"""Of the context: a longer conversation is summarised."""
KEPT_SHARE = 0.3
"""Of the context: so much of its end stays word by word."""
PIECE_SHARE = 0.4
"""Of the context: so much is summarised at once."""
SUMMARY_SHARE = 0.15
"""Of the context: the longest notes, all together."""
MOST_SUMMARY_TOKENS = 600
SAID_SHARE = 0.5
"""Of the words of notes, so many must stand in what they are about."""
MOST_NAMES = 16
"""Names and numbers that stand in a line before the notes; the latest."""
STEM = 4
"""Letters by which words are compared, for endings differ; shorter ones stand in every talk."""
NAMES = "• "
"""Begins the line of names."""
SUMMARISE = (
    "{talk}\n\nWrite down what has happened in this conversation so far, for somebody who must go on with it: who is who, what was agreed, "
    "what is still open. At most {words} words, in the language of the conversation, nothing but the summary."
)
_SENTENCE = regex.compile(r"[^।॥.!?\n]*[।॥.!?\n]+|[^।॥.!?\n]+$")
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_NAME = regex.compile(r"(?<=[\p{Ll}\p{N},;] )\p{Lu}[\p{L}\p{M}-]+|(?<![\p{L}\p{M}\p{N}])\p{N}{2,}")

Count = Callable[[str], Awaitable[int]]


@dataclass(frozen=True, kw_only=True)
class Scribe:
    """Who writes the notes, and about whom.

    Args:
        user, other: names of the two who talk.
        context: tokens of the model's context.
        count: tokens of a text.
    """

    backend: Backend
    model: str
    tenant: str
    user: str
    other: str
    context: int
    count: Count

    @property
    def most(self) -> int:
        """Tokens of the notes, all together."""
        return min(MOST_SUMMARY_TOKENS, int(SUMMARY_SHARE * self.context))

    async def notes(self, path: Sequence[Kept], lengths: Sequence[int], before: str) -> str:
        """Notes on a part of a conversation, behind those before; never empty where anything was said.

        Args:
            path: its messages.
            lengths: tokens of each.
        """
        line, told = (before + "\n").split("\n", 1) if before.startswith(NAMES) else ("", before)
        names = [name for name in line.removeprefix(NAMES).split(", ") if name]
        for piece in pieces(path, lengths, PIECE_SHARE * self.context, {"user": self.user, "assistant": self.other}):
            written = await self._written(piece)
            if not stands_in(written, piece):
                own = [line for line in piece.split("\n") if line.startswith(f"{self.user}: ")]
                written = await self._fitting("\n".join(own) or piece, self.most // 2)
            names = list(dict.fromkeys([*names, *names_in(piece)]))[-MOST_NAMES:]
            told = await self._fitting(f"{told.strip()}\n{written}", self.most - self.most // 3)
        while names and await self.count(line := NAMES + ", ".join(names)) > self.most // 3:
            names.pop(0)
        return f"{line}\n{told}" if names else told

    async def _written(self, piece: str) -> str:
        """What the model writes of a piece, up to its last whole sentence."""
        turns = (Message(role="user", content=SUMMARISE.format(talk=piece, words=max(20, self.most // 4))),)
        sampling = {"max_tokens": max(1, self.most // 2), "temperature": 0.0}
        reason, parts = None, list[str]()
        answer = await self.backend.start(ChatJob(messages=turns, sampling=sampling, tenant=self.tenant), self.model)
        async with aclosing(answer):
            async for part in answer:
                parts.append(part.text)
                reason = part.finish_reason or reason
        sentences = _SENTENCE.findall("".join(parts))
        whole = sentences[:-1] if reason == "length" and len(sentences) > 1 else sentences
        return "".join(dict.fromkeys(whole)).strip()

    async def _fitting(self, text: str, most: int) -> str:
        """The last sentences of a text that fit; of a sentence that is longer than all, its end."""
        sentences = list(dict.fromkeys(_SENTENCE.findall(text)))
        while len(sentences) > 1 and await self.count("".join(sentences)) > most:
            sentences = sentences[max(1, len(sentences) // 8) :]
        kept = "".join(sentences)
        while kept and (found := await self.count(kept)) > most:
            kept = kept[max(1, len(kept) * (found - most) // found) :]
        return kept.strip()


def forgotten(lengths: Sequence[int], covered: int, context: int) -> int:
    """How many messages of a path should stand in its notes.

    Args:
        lengths: tokens of each message.
        covered: how many stand in them already.
        context: tokens of the model's context.
    """
    if sum(lengths[covered:]) <= FULL_SHARE * context:
        return covered
    kept, cut = 0, len(lengths)
    while cut > covered + 1 and kept + lengths[cut - 1] <= KEPT_SHARE * context:
        cut -= 1
        kept += lengths[cut]
    return min(cut, len(lengths) - 1)


def pieces(path: Sequence[Kept], lengths: Sequence[int], most: float, names: dict[str, str]) -> Iterator[str]:
    """What was spoken, in texts of at most so many tokens; longer messages are cut where they must be."""
    lines: list[str] = []
    size = 0.0
    for message, length in zip(path, lengths, strict=True):
        parts = max(1, math.ceil(length / most))
        letters = math.ceil(len(message.content) / parts) or 1
        for start in range(0, max(1, len(message.content)), letters):
            if lines and size + length / parts > most:
                yield "\n".join(lines)
                lines, size = [], 0.0
            lines.append(f"{names[message.role]}: {message.content[start : start + letters]}")
            size += length / parts
    if lines:
        yield "\n".join(lines)


def stands_in(notes: str, talk: str) -> bool:
    """Whether notes are about a talk: there are some, and enough of their words were spoken."""
    said, words = ({word.casefold()[:STEM] for word in _WORD.findall(text) if len(word) >= STEM} for text in (talk, notes))
    return bool(words) and len(words & said) >= SAID_SHARE * len(words)


def names_in(talk: str) -> list[str]:
    """Numbers, and words with a capital inside a sentence, those that stand there most often first."""
    return [name for name, _ in Counter(_NAME.findall(talk)).most_common()]
