"""Conversations as callers give them, made into messages or refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from khola.chat.message import IMAGE, Message, Role, ToolCall
from khola.errors import AskedWrong, UnknownOption, WrongModality

ROLES = get_args(Role)
_KEYS = ("role", "content", "thinking", "reasoning_content", "tool_calls", "tool_call_id", "name")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_TEXT_KEYS = ("thinking", "tool_call_id", "name")


def conversation(given: str | Sequence[Message | Mapping[str, Any]], *, images: bool = False) -> tuple[Message, ...]:
    """Messages out of whatever a caller gave.

    Args:
        given: a text, which is one user turn; or turns, each a `Message` or a mapping with the keys of OpenAI's chat messages.
        images: whether the model sees; its images then stand in the texts as `IMAGE`, in the order in which they were given.
    Raises:
        AskedWrong: no turn at all, a role that does not exist, a value of a wrong type.
        UnknownOption: a key that khola does not know.
        WrongModality: an image, sound or anything else that is not text.
    """
    if isinstance(given, str):
        return (_checked(Message(role="user", content=_unmarked(given, 0)), 0),)
    if isinstance(given, Mapping | bytes) or not isinstance(given, Sequence):
        raise AskedWrong("a conversation is a text or a list of messages, not {kind}", kind=type(given).__name__)
    if not given:
        raise AskedWrong("the conversation is empty", hint="give at least one message")
    made = (item if isinstance(item, Message) else _message(item, index, images) for index, item in enumerate(given))
    return tuple(_checked(message, index, images) for index, message in enumerate(made))


def role_order(messages: Sequence[Message]) -> str:
    """The roles in their order, for messages to people."""
    roles = [message.role for message in messages]
    return ", ".join(roles if len(roles) <= 12 else [*roles[:6], "…", *roles[-5:]])


def _message(item: object, index: int, images: bool) -> Message:
    """One message from a mapping."""
    if not isinstance(item, Mapping):
        raise AskedWrong("message {index} is {kind}; expected a mapping with role and content", index=index, kind=type(item).__name__)
    unknown = [key for key in item if key not in _KEYS]
    if unknown:
        known = ", ".join(_KEYS)
        raise UnknownOption(
            "message {index} has the unknown key {key!r}", hint="known keys: {known}", index=index, key=unknown[0], known=known
        )
    values = {key: _text(item.get(key), key, index) for key in _TEXT_KEYS}
    values["thinking"] = values["thinking"] or _text(item.get("reasoning_content"), "reasoning_content", index)
    calls = item.get("tool_calls")
    if calls is not None and (isinstance(calls, str | bytes | Mapping) or not isinstance(calls, Sequence)):
        raise _wrong("tool_calls", "a list", calls, index)
    return Message(
        role=_role(item.get("role"), index),
        content=_content(item.get("content"), index, images),
        tool_calls=tuple(_call(call, index) for call in calls or ()),
        **values,
    )


def _role(role: object, index: int) -> Role:
    """One of the four roles."""
    for known in ROLES:
        if role == known:
            return known  # type: ignore[no-any-return]
    raise AskedWrong("message {index} has the role {role!r}", hint="roles: {known}", index=index, role=role, known=", ".join(ROLES))


def _content(content: object, index: int, images: bool) -> str:
    """Text, from a string or a list of parts."""
    if content is None or isinstance(content, str):
        return _unmarked(content or "", index)
    if isinstance(content, bytes | Mapping) or not isinstance(content, Sequence):
        raise _wrong("content", "a text or a list of parts", content, index)
    pieces = []
    for part in content:
        if not isinstance(part, Mapping):
            raise _wrong("a part of content", "a mapping with type and text", part, index)
        if images and part.get("type") in _IMAGE_PARTS:
            pieces.append(IMAGE)
            continue
        if part.get("type") != "text":
            raise WrongModality(
                "message {index} has a part of type {kind!r}; this model reads text only", index=index, kind=part.get("type")
            )
        if not isinstance(part.get("text"), str):
            raise _wrong("the text of a part", "a text", part.get("text"), index)
        pieces.append(_unmarked(part["text"], index))
    return "".join(pieces)


def _unmarked(text: str, index: int) -> str:
    """A text without the mark of an image, which only a part that is one may give."""
    if IMAGE in text:
        raise AskedWrong("message {index} has the character U+FDD3, which is no letter of any script", index=index)
    return text


def _call(call: object, index: int) -> ToolCall:
    """One tool call, in OpenAI's form or flat; arguments may be JSON text."""
    if isinstance(call, ToolCall):
        return call
    if not isinstance(call, Mapping):
        raise _wrong("a tool call", "a mapping", call, index)
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _wrong("a tool call", "a mapping with a name", function, index)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise _wrong("the arguments of a tool call", "a JSON object", arguments, index) from None
    if not isinstance(arguments, dict):
        raise _wrong("the arguments of a tool call", "a JSON object", arguments, index)
    return ToolCall(name=function["name"], arguments=arguments, id=_text(call.get("id"), "id", index))


def _text(value: object, key: str, index: int) -> str:
    """An optional text."""
    if value is None or isinstance(value, str):
        return value or ""
    raise _wrong(key, "a text", value, index)


def _checked(message: Message, index: int, images: bool = False) -> Message:
    """A message whose fields fit its role and whose texts are Unicode."""
    if message.role not in ROLES:
        _role(message.role, index)
    if message.role != "assistant" and (message.tool_calls or message.thinking):
        raise AskedWrong(
            "message {index}: only an assistant's turn has thoughts and tool calls, not {role}", index=index, role=message.role
        )
    for key in ("content", "thinking", "tool_call_id", "name"):
        value = getattr(message, key)
        if not isinstance(value, str):
            raise _wrong(key, "a text", value, index)
        if IMAGE in value and not (images and key == "content"):
            _unmarked(value, index)
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise AskedWrong(
                "message {index}: {key} has half a character (a lone surrogate) at {at}", index=index, key=key, at=error.start
            ) from None
    return message


def _wrong(what: str, expected: str, found: object, index: int) -> AskedWrong:
    """A value of a wrong type."""
    kind = type(found).__name__
    return AskedWrong("message {index}: {what} is {kind}; expected {expected}", index=index, what=what, kind=kind, expected=expected)
