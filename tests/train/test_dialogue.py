"""Only the assistant's words are learned, and they stand where serving will ask for them."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import numpy as np
import pytest

from khola.chat.formats import NAMES, format_named
from khola.chat.message import Asked, Message, Tool, ToolCall
from khola.data.packing import Sample
from khola.errors import AskedWrong
from khola.train.dialogue import continued, end_id, messages_of, taught
from khola.train.preview import counts, shown
from tests.train.alphabet import Bytes

TALK = [
    Message(role="user", content="first question"),
    Message(role="assistant", content="first answer"),
    Message(role="user", content="second question"),
    Message(role="assistant", content="second answer"),
]


ALWAYS = {"deepseek_r1", "ernie4_5_thinking", "glm_z1", "qwq"}
"""Formats that ask for a thought before every answer."""


def learned(sample: Sample, tokenizer: Bytes) -> list[str]:
    """Runs of learned text."""
    runs, ids = [], sample.ids
    edges = np.flatnonzero(np.diff(np.concatenate([[False], sample.learned, [False]]).astype(int)))
    for first, last in edges.reshape(-1, 2):
        runs.append(tokenizer.text(ids[first:last]))
    return runs


@pytest.mark.parametrize("name", sorted(set(NAMES) - ALWAYS))
def test_every_format_learns_the_answers_and_their_ends(name: str) -> None:
    """Every answer is learned once, behind the prompt that serving gives, and up to the token that ends it."""
    runs, prompts = both(name, TALK)
    for run, answer in zip(runs, ("first answer", "second answer"), strict=True):
        assert run.removesuffix(answer).strip() in ("", "<think>\n\n</think>", "</think>"), run
    assert "question" in prompts


@pytest.mark.parametrize("name", sorted(ALWAYS))
def test_formats_that_always_think_learn_thoughts_too(name: str) -> None:
    talk = [msgspec.structs.replace(turn, thinking="a thought" if turn.role == "assistant" else "") for turn in TALK]
    runs, _ = both(name, talk)
    for run, answer in zip(runs, ("first answer", "second answer"), strict=True):
        assert "a thought" in run and run.endswith(answer)
    with pytest.raises(AskedWrong, match="otherwise than it asks"):
        both(name, TALK)


def both(name: str, talk: list[Message]) -> tuple[list[str], str]:
    """What is learned of a talk without the token that ends it, and everything that is read."""
    chat, tokenizer = format_named(name), Bytes()
    made = taught(chat, cast(Any, tokenizer), talk)
    end = tokenizer.text([end_id(chat, cast(Any, tokenizer))])
    assert end in chat.STOPS
    runs = [run for sample in made for run in learned(sample, tokenizer)]
    assert all(run.endswith(end) for run in runs)
    assert not any(sample.learned[0] for sample in made)
    for sample in made:
        first = int(sample.learned.argmax())
        place = 1 if "first answer" in tokenizer.text(sample.ids[first:]) else 3
        thinking = {"thinking": True} if talk[place].thinking and name not in ALWAYS else {}
        assert tokenizer.text(sample.ids[:first]) == tokenizer.prompt(chat.render(Asked(talk[:place], **thinking)))
    return [run.removesuffix(end) for run in runs], "".join(tokenizer.text(sample.ids) for sample in made)


def test_turns_share_a_sequence_where_the_format_repeats_itself() -> None:
    tokenizer = Bytes()
    (sample,) = taught(format_named("chatml"), cast(Any, tokenizer), TALK)
    assert tokenizer.text(sample.ids) == (
        "<|im_start|>user\nfirst question<|im_end|>\n<|im_start|>assistant\nfirst answer<|im_end|>\n"
        "<|im_start|>user\nsecond question<|im_end|>\n<|im_start|>assistant\nsecond answer<|im_end|>"
    )
    assert learned(sample, tokenizer) == ["first answer<|im_end|>", "second answer<|im_end|>"]


def test_only_the_last_answer() -> None:
    tokenizer = Bytes()
    (sample,) = taught(format_named("chatml"), cast(Any, tokenizer), TALK, only_last=True)
    assert learned(sample, tokenizer) == ["second answer<|im_end|>"]


def test_thoughts_are_learned_and_earlier_ones_are_not_read() -> None:
    """Qwen3 drops old thoughts, so each answer has a sequence of its own."""
    tokenizer = Bytes()
    talk = [
        TALK[0], Message(role="assistant", content="first answer", thinking="one"),
        TALK[2], Message(role="assistant", content="second answer", thinking="two"),
    ]  # fmt: skip
    first, second = taught(format_named("qwen3"), cast(Any, tokenizer), talk)
    assert learned(first, tokenizer) == ["<think>\none\n</think>\n\nfirst answer<|im_end|>"]
    assert learned(second, tokenizer) == ["<think>\ntwo\n</think>\n\nsecond answer<|im_end|>"]
    assert "one" not in tokenizer.text(second.ids)


def test_calls_are_learned_and_what_tools_say_is_not() -> None:
    tokenizer = Bytes()
    tools = [Tool(name="add", parameters={"type": "object"})]
    talk = [
        Message(role="user", content="1 + 2?"),
        Message(role="assistant", tool_calls=(ToolCall(name="add", arguments={"a": 1}, id="c"),)),
        Message(role="tool", content="3", tool_call_id="c", name="add"),
        Message(role="assistant", content="three"),
    ]
    runs = [run for sample in taught(format_named("qwen2_5"), cast(Any, tokenizer), talk, tools) for run in learned(sample, tokenizer)]
    assert len(runs) == 2
    assert '"name": "add"' in runs[0] and runs[0].endswith("</tool_call><|im_end|>")
    assert runs[1] == "three<|im_end|>"


def test_a_talk_without_an_answer_is_refused() -> None:
    for talk in (TALK[:1], [Message(role="assistant", content="hello")]):
        with pytest.raises(AskedWrong, match="nothing would be learned"):
            taught(format_named("chatml"), cast(Any, Bytes()), talk)
    with pytest.raises(AskedWrong):
        messages_of("text")


def test_a_text_goes_on_behind_a_prompt() -> None:
    sample = continued([5, 6], "ab", cast(Any, Bytes()), 256)
    assert sample.ids.tolist() == [5, 6, 97, 98, 256]
    assert sample.learned.tolist() == [False, False, True, True, True]
    alone = continued([], "ab", cast(Any, Bytes()), None)
    assert alone.learned.tolist() == [False, True]


def test_the_preview_shows_what_is_learned() -> None:
    tokenizer = Bytes()

    class Spelling:
        """Decodes as the tokenizer does."""

        def decode(self, ids: list[int], *, skip_control: bool) -> str:
            """Control tokens spelled."""
            assert not skip_control
            return tokenizer.text(ids)

    samples = taught(format_named("chatml"), cast(Any, tokenizer), TALK[:2])
    assert list(shown(samples[0], cast(Any, Spelling()))) == [
        ("<|im_start|>user\nfirst question<|im_end|>\n<|im_start|>assistant\n", False), ("first answer<|im_end|>", True),
    ]  # fmt: skip
    assert counts(samples) == (1, len(samples[0].ids), 13)
