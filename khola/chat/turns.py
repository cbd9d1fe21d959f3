"""What formats share: checks of a conversation, and joining of parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from khola.chat.conversation import role_order
from khola.chat.message import IMAGE, Asked, Message, Part, Tool
from khola.chat.thinking import without_thoughts
from khola.errors import AskedWrong, WrongModality


def check_turns(asked: Asked, images: Sequence[str] = ()) -> None:
    """Refuse what no format can write.

    Args:
        asked: the turns, and whether the last one goes on.
        images: roles whose turns may have images.
    Raises:
        AskedWrong: there is no message, or the last one cannot be continued.
        WrongModality: a turn has an image where the format has no place for one.
    """
    messages = asked.messages
    if not messages:
        raise AskedWrong("the conversation is empty", hint="give at least one message")
    for index, message in enumerate(messages):
        if message.role not in images and isinstance(message.content, str) and IMAGE in message.content:
            raise WrongModality(
                "message {index}: this chat format has no place for an image in a turn of {role}", index=index, role=message.role
            )
    if asked.continue_last and (messages[-1].role != "assistant" or messages[-1].tool_calls):
        raise AskedWrong("only an assistant's turn of plain text can be continued; the roles are: {roles}", roles=role_order(messages))


def check_thinking(name: str, thinking: bool | None, thinks: Literal["never", "always", "optional"] = "never") -> None:
    """Refuse to switch thoughts on or off where the model cannot.

    Raises:
        AskedWrong: the format never thinks aloud, or always does.
    """
    if thinks == "always" and thinking is False:
        raise AskedWrong("{name}: this model always thinks before it answers; its thoughts cannot be switched off", name=name)
    if thinks == "never" and thinking:
        raise AskedWrong("{name}: this model was not trained to think aloud", hint="leave thinking unset", name=name)


def check_no_tools(name: str, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
    """Refuse tools where the model was not trained to call any.

    Raises:
        AskedWrong: tools are offered, called or answered.
    """
    if tools or any(message.role == "tool" or message.tool_calls for message in messages):
        raise AskedWrong("{name}: this model was not trained to call tools", hint="choose a model that calls tools", name=name)


def check_bare_calls(name: str, message: Message) -> None:
    """Refuse text (thoughts aside) beside a call where the lab's template would drop one of them.

    Raises:
        AskedWrong: an assistant's turn has both.
    """
    if without_thoughts(message.content).strip():
        raise AskedWrong(
            "{name}: this chat format cannot write text beside a call in one turn",
            hint="leave out the text, or make it a turn of its own",
            name=name,
        )


def imaged(text: str, mark: Sequence[Part]) -> list[Part]:
    """A text with a format's own mark in the place of every image."""
    first, *others = text.split(IMAGE)
    return [first, *(part for other in others for part in (*mark, other))]


def joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The same prompt with neighbouring texts made one and empty ones left out."""
    made: list[Part] = []
    for part in parts:
        if isinstance(part, str) and made and isinstance(made[-1], str):
            made[-1] += part
        elif part != "":
            made.append(part)
    return tuple(made)
