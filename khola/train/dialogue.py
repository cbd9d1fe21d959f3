"""Conversations as sequences of ids of which only the assistant's words are learned.

Each answer is written exactly as serving will see it: the prompt that the chat format gives before the answer, then the answer's own
tokens, then the token that ends it. Turns share one sequence where the format writes earlier answers as it asked for them; where it does
not (old thoughts are dropped, say), an answer has a sequence of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from khola.chat.conversation import conversation
from khola.chat.encode import ids_of, prompt_ids
from khola.chat.formats import Format
from khola.chat.message import Asked, Control, Message, Part, Prompt, Tool
from khola.chat.turns import joined
from khola.data.packing import Sample
from khola.errors import AskedWrong
from khola.tokens.tokenizer import Tokenizer


def end_id(chat: Format, tokenizer: Tokenizer) -> int:
    """The token that ends an answer: the one that the format writes behind earlier answers.

    Raises:
        AskedWrong: the vocabulary has none of the format's ends.
    """
    ends = [found for token in chat.STOPS if (found := tokenizer.id_of(token)) is not None]
    asked = [Message(role="user", content="?"), Message(role="assistant", content="!"), Message(role="user", content="?")]
    parts = chat.render(Asked(asked)).parts
    behind = next((place for place, part in enumerate(parts) if isinstance(part, str) and part.rstrip().endswith("!")), len(parts))
    for part in parts[behind:]:
        if isinstance(part, Control) and part.token in chat.STOPS and tokenizer.id_of(part.token) in ends:
            return ends[ends.index(tokenizer.id_of(part.token) or 0)]
    if not ends:
        raise AskedWrong("the vocabulary has none of the tokens that end an answer in the chat format {name}", name=chat.NAME)
    return ends[0]


def taught(
    chat: Format, tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] = (), *, only_last: bool = False
) -> list[Sample]:
    """A conversation as sequences.

    Args:
        chat: its format.
        tokenizer: of the model.
        messages: at least one of them the assistant's.
        tools: that are offered.
        only_last: learn the last answer only.
    Raises:
        AskedWrong: there is no answer, or the format cannot say this.
    """
    answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
    if not answers or answers == [0]:
        raise AskedWrong("there is no answer of the assistant behind a question, so nothing would be learned")
    end = end_id(chat, tokenizer)
    found: list[tuple[list[int], list[bool]]] = []
    for place in answers[-1:] if only_last else answers:
        if place == 0:
            continue
        before, answer = _cut(chat, messages, place, tools)
        asked = prompt_ids(before, tokenizer)
        said = [*_going_on(answer, before.parts, tokenizer), end]
        if found and asked[: len(found[-1][0])] == found[-1][0]:
            known = found[-1][1]
            found[-1] = (asked + said, known + [False] * (len(asked) - len(known)) + [True] * len(said))
        else:
            found.append((asked + said, [False] * len(asked) + [True] * len(said)))
    return [Sample(ids=np.array(ids, np.int32), learned=np.array(learned, np.bool_)) for ids, learned in found]


def before_answer(chat: Format, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of everything before the answer to these messages; the format refuses what it cannot say."""
    return prompt_ids(chat.render(Asked(messages)), tokenizer)


def continued(prompt: Sequence[int], text: str, tokenizer: Tokenizer, end: int | None) -> Sample:
    """A text behind ids, learned with the token that ends it.

    Args:
        prompt: ids that are not learned.
        text: what is.
        end: id behind it; None for none.
    """
    said = tokenizer.encode(text, control=False, first=not prompt) + ([] if end is None else [end])
    first = [] if prompt else _bos(tokenizer)
    ids = [*first, *prompt, *said]
    unlearned = len(ids) - len(said)
    return Sample(ids=np.array(ids, np.int32), learned=np.arange(len(ids)) >= max(1, unlearned))


def messages_of(value: object) -> tuple[Message, ...]:
    """Messages of a row; errors as `khola.chat.conversation.conversation`."""
    if isinstance(value, str):
        raise AskedWrong("a conversation is a list of messages, not {kind}", kind="str")
    return conversation(cast(Any, value))


def _bos(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []


def _cut(chat: Format, messages: Sequence[Message], place: int, tools: Sequence[Tool]) -> tuple[Prompt, list[Part]]:
    """The prompt before an answer, and the parts of the answer."""
    answer = messages[place]
    asked = _prompt(chat, messages[:place], tools, bool(answer.thinking))
    if answer.tool_calls:
        behind = Message(role="tool", content="-", tool_call_id=answer.tool_calls[0].id, name=answer.tool_calls[0].name)
        whole = chat.render(Asked([*messages[: place + 1], behind], tools)).parts
        rest = _behind(asked.parts, whole)
        ends = [at for at, part in enumerate(rest) if isinstance(part, Control) and part.token in chat.STOPS]
        return asked, rest[: ends[0]] if ends else rest
    whole = chat.render(Asked(messages[: place + 1], tools, continue_last=True)).parts
    return asked, _behind(asked.parts, whole)


def _prompt(chat: Format, messages: Sequence[Message], tools: Sequence[Tool], thinking: bool) -> Prompt:
    """What stands before an answer; with thoughts where the answer has some and the format lets one choose."""
    if thinking:
        try:
            return chat.render(Asked(messages, tools, thinking=True))
        except AskedWrong:
            return chat.render(Asked(messages, tools))
    return chat.render(Asked(messages, tools))


def _behind(before: Sequence[Part], whole: Sequence[Part]) -> list[Part]:
    """What a rendered conversation says behind its prompt.

    Raises:
        AskedWrong: the conversation does not begin with the prompt.
    """
    before, whole = joined(before), joined(whole)
    at = 0
    while at < len(before) and at < len(whole) and before[at] == whole[at]:
        at += 1
    if at == len(before):
        return list(whole[at:])
    last, found = before[at], whole[at] if at < len(whole) else ""
    if at == len(before) - 1 and isinstance(last, str) and isinstance(found, str) and found.startswith(last):
        return [part for part in (found[len(last) :], *whole[at + 1 :]) if part != ""]
    raise AskedWrong(
        "the chat format writes this answer otherwise than it asks for it, so it cannot be learned",
        hint="an answer with thoughts needs a format that thinks, and one without needs one that may go without",
    )


def _going_on(parts: Sequence[Part], before: Sequence[Part], tokenizer: Tokenizer) -> list[int]:
    """Ids of an answer's parts; text that goes on behind text of the prompt begins no sequence."""
    first, *others = [*parts, ""]
    if isinstance(first, str) and before and isinstance(before[-1], str):
        return [*tokenizer.encode(first, control=False, first=False), *ids_of(others, tokenizer)]
    return ids_of(parts, tokenizer)
