"""A rendered prompt as token ids, so that only the format's own control tokens become control tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from khola.chat.message import Control, Part, Prompt
from khola.chat.turns import joined
from khola.errors import BadTokenizer


class Encoder(Protocol):
    """What a prompt needs of a tokenizer."""

    @property
    def adds_bos(self) -> bool:
        """Whether the model wants the beginning-of-text token first."""

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-text token."""

    @property
    def control_ids(self) -> frozenset[int]:
        """Every added token: what plain text may never become."""

    def encode(self, text: str, *, control: bool = False, first: bool = True) -> list[int]:
        """Ids of a text."""

    def id_of(self, token: str) -> int | None:
        """Id of a token, or None."""


def prompt_ids(prompt: Prompt, tokenizer: Encoder) -> list[int]:
    """Ids of a prompt.

    Neighbouring texts are encoded as one, as the lab's tokenizer would read them; each such run begins the sequence or follows a control
    token, which is where SentencePiece vocabularies put a space in front. The beginning-of-text token stands first exactly once, whether
    or not the format writes it.

    Raises:
        BadTokenizer: the vocabulary lacks a control token of the format, or plain text came out as one.
    """
    ids = ids_of(prompt.parts, tokenizer)
    bos = tokenizer.bos_id
    return [bos, *ids] if tokenizer.adds_bos and bos is not None and ids[:1] != [bos] else ids


def answer_runs(prompt: Prompt, ids: Sequence[int], tokenizer: Encoder, ends: Collection[int]) -> tuple[range, ...]:
    """Where the ids of a prompt are those of earlier answers: from behind what opens an answer to before the token that ends it.

    Args:
        prompt: whose `opening` is looked for.
        ids: of the prompt.
        ends: tokens that end an answer.
    """
    opening = ids_of(prompt.opening, tokenizer)
    runs: list[range] = []
    for place, token in enumerate(ids):
        first = place + 1
        if not opening or token != opening[-1] or list(ids[first - len(opening) : first]) != opening:
            continue
        if runs and runs[-1].stop > place:
            continue
        end = next((at for at in range(first, len(ids)) if ids[at] in ends), len(ids))
        runs += [range(first, end)] if end > first else []
    return tuple(runs)


def ids_of(parts: Sequence[Part], tokenizer: Encoder) -> list[int]:
    """Ids of parts, without a beginning-of-text token that none of them is; errors as `prompt_ids`."""
    ids: list[int] = []
    for part in joined(_spelled(part, tokenizer) if isinstance(part, Control) else part for part in parts):
        if isinstance(part, Control):
            ids.append(_control_id(part, tokenizer))
        else:
            ids += _text_ids(part, tokenizer)
    return ids


def _spelled(part: Control, tokenizer: Encoder) -> Control | str:
    """A control token, or its letters where the vocabulary may do without."""
    return part.token if part.plain and tokenizer.id_of(part.token) is None else part


def _control_id(part: Control, tokenizer: Encoder) -> int:
    """The id of a control token."""
    found = tokenizer.id_of(part.token)
    if found is None:
        raise BadTokenizer(
            "the vocabulary has no token {token!r}, which the chat format writes",
            hint="the model's chat format is another one; see `khola show`",
            token=part.token,
        )
    return found


def _text_ids(text: str, tokenizer: Encoder) -> list[int]:
    """Ids of plain text."""
    ids = tokenizer.encode(text, control=False, first=True)
    forged = tokenizer.control_ids.intersection(ids)
    if forged:
        raise BadTokenizer("the vocabulary turns plain text into the control tokens {ids}", ids=sorted(forged))
    return ids
