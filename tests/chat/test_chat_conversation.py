"""What callers give becomes messages, or is refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from khola.chat.conversation import conversation, role_order
from khola.chat.message import IMAGE, Message, ToolCall
from khola.errors import AskedWrong, KholaError, UnknownOption, WrongModality


def test_a_text_is_one_user_turn() -> None:
    assert conversation("নমস্কার") == (Message(role="user", content="নমস্কার"),)


def test_mappings_and_messages_mix() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "ঢাকা"}'}}
    made = conversation(
        [
            Message(role="system", content="s"),
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "content": "31", "tool_call_id": "c1", "name": "weather"},
            {"role": "assistant", "content": "31", "thinking": "ok", "tool_calls": None},
        ]
    )
    assert [message.role for message in made] == ["system", "user", "assistant", "tool", "assistant"]
    assert made[1].content == "ab"
    assert made[2] == Message(role="assistant", thinking="hm", tool_calls=(ToolCall(name="weather", arguments={"place": "ঢাকা"}, id="c1"),))
    assert (made[3].tool_call_id, made[3].name) == ("c1", "weather")
    assert made[4].thinking == "ok"


def test_images_keep_their_place_where_the_model_sees() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "b"},
        {"type": "image"},
    ]
    assert conversation([{"role": "user", "content": parts}], images=True)[0].content == f"a{IMAGE}b{IMAGE}"
    assert conversation([Message(role="user", content=IMAGE)], images=True)[0].content == IMAGE
    for forged in (IMAGE, [Message(role="user", content=IMAGE)], [{"role": "user", "content": IMAGE}]):
        with pytest.raises(AskedWrong, match=r"U\+FDD3"):
            conversation(forged)
    with pytest.raises(AskedWrong, match=r"U\+FDD3"):
        conversation([{"role": "user", "content": [{"type": "text", "text": IMAGE}]}], images=True)


def test_flat_calls_and_ready_calls() -> None:
    ready = ToolCall(name="clock", arguments={})
    made = conversation([{"role": "assistant", "tool_calls": [ready, {"name": "clock"}, {"name": "clock", "arguments": ""}]}])
    assert made[0].tool_calls == (ready, ready, ready)


WRONG: list[tuple[Any, type[KholaError], str]] = [
    ([], AskedWrong, "the conversation is empty"),
    (3, AskedWrong, "a conversation is a text or a list of messages, not int"),
    (b"x", AskedWrong, "not bytes"),
    ({"role": "user"}, AskedWrong, "not dict"),
    (["x"], AskedWrong, "message 0 is str"),
    ([{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}], AskedWrong, "message 1 has the role 'robot'"),
    ([{"content": "a"}], AskedWrong, "message 0 has the role None"),
    ([{"role": "user", "contents": "a"}], UnknownOption, "message 0 has the unknown key 'contents'"),
    ([{"role": "user", "content": 3}], AskedWrong, "message 0: content is int; expected a text or a list of parts"),
    ([{"role": "user", "content": {"type": "text"}}], AskedWrong, "content is dict"),
    ([{"role": "user", "content": ["a"]}], AskedWrong, "a part of content is str"),
    ([{"role": "user", "content": [{"type": "text", "text": 3}]}], AskedWrong, "the text of a part is int"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], WrongModality, "a part of type 'image_url'"),
    ([{"role": "user", "content": [{"text": "a"}]}], WrongModality, "a part of type None"),
    ([{"role": "user", "content": "a", "name": 3}], AskedWrong, "message 0: name is int"),
    ([{"role": "user", "content": "\ud800"}], AskedWrong, "half a character"),
    (["\ud800"], AskedWrong, "message 0 is str"),
    ("a\udc00", AskedWrong, "content has half a character .* at 1"),
    ([{"role": "user", "content": "a", "thinking": "b"}], AskedWrong, "only an assistant's turn has thoughts"),
    ([Message(role="tool", content="a", tool_calls=(ToolCall(name="x", arguments={}),))], AskedWrong, "not tool"),
    ([Message(role="boss", content="a")], AskedWrong, "the role 'boss'"),  # type: ignore[arg-type]
    ([Message(role="user", content=None)], AskedWrong, "content is NoneType"),  # type: ignore[arg-type]
    ([{"role": "assistant", "tool_calls": {}}], AskedWrong, "tool_calls is dict; expected a list"),
    ([{"role": "assistant", "tool_calls": "x"}], AskedWrong, "tool_calls is str"),
    ([{"role": "assistant", "tool_calls": [3]}], AskedWrong, "a tool call is int"),
    ([{"role": "assistant", "tool_calls": [{"function": {}}]}], AskedWrong, "a tool call is dict; expected a mapping with a name"),
    ([{"role": "assistant", "tool_calls": [{"name": "a", "arguments": "{"}]}], AskedWrong, "expected a JSON object"),
    ([{"role": "assistant", "tool_calls": [{"name": "a", "arguments": "[1]"}]}], AskedWrong, "is list; expected a JSON object"),
    ([{"role": "assistant", "tool_calls": [{"name": "a", "arguments": "[" * 99_999}]}], AskedWrong, "expected a JSON object"),
    ([{"role": "assistant", "tool_calls": [{"name": "a", "id": 3}]}], AskedWrong, "id is int"),
]


@pytest.mark.parametrize(("given", "kind", "says"), WRONG, ids=range(len(WRONG)))
def test_refuses(given: Any, kind: type[KholaError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        conversation(given)
    assert type(caught.value) is kind
    assert caught.value.told("bn") != caught.value.told("en")


def test_long_role_orders_are_shortened() -> None:
    turns = [Message(role=("user", "assistant")[index % 2]) for index in range(40)]  # type: ignore[arg-type]
    assert role_order(turns[:2]) == "user, assistant"
    assert role_order(turns).count(",") == 11
