"""What Anthropic's own client does with khola; run by `run_other_clients.py` in an environment that has the client."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import anthropic
import pytest

ADDRESS, MODEL = os.environ["KHOLA_ADDRESS"], os.environ["KHOLA_MODEL"]
ECHO = MODEL == "echo"
BENGALI = "আমি তোমায় ভালোবাসি"
CLIENT = anthropic.Anthropic(base_url=ADDRESS, api_key="none", max_retries=0)
GREEDY = {"temperature": 0, "top_k": 1}
"""This client has no arguments for these any more; the route takes them."""
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["days"]},
}


def asked(text: str = "Say hello.", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 48, "messages": [{"role": "user", "content": text}], **more}


def test_a_message() -> None:
    message = CLIENT.messages.create(**asked(BENGALI, system="Answer briefly."))
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert message.stop_reason in ("end_turn", "max_tokens") and message.usage.output_tokens > 0
    if ECHO:
        assert message.content[0].text == BENGALI


@pytest.mark.parametrize("text", ["Count to three.", BENGALI])
def test_a_stream_builds_the_message_that_a_plain_request_gives(text: str) -> None:
    plain = CLIENT.messages.create(**asked(text, extra_body=GREEDY))
    with CLIENT.messages.stream(**asked(text, extra_body=GREEDY)) as stream:
        parts = list(stream.text_stream)
        built = stream.get_final_message()
    assert [block.model_dump() for block in built.content] == [block.model_dump() for block in plain.content]
    assert built.stop_reason == plain.stop_reason and built.usage.output_tokens == plain.usage.output_tokens
    total = plain.usage.input_tokens + (plain.usage.cache_read_input_tokens or 0)
    assert built.usage.input_tokens + (built.usage.cache_read_input_tokens or 0) == total
    assert "".join(parts) == "".join(block.text for block in built.content if block.type == "text") and len(parts) > 1


def test_events_come_in_order() -> None:
    names = [event.type for event in CLIENT.messages.create(**asked(), stream=True)]
    assert names[0] == "message_start" and names[-2:] == ["message_delta", "message_stop"]
    assert names.count("content_block_start") == names.count("content_block_stop") > 0


def test_a_call_that_must_come_and_its_result() -> None:
    question = asked("How will the weather be?", tools=[WEATHER], max_tokens=128)
    try:
        message = CLIENT.messages.create(**question, tool_choice={"type": "any"})
    except anthropic.BadRequestError as refused:
        pytest.skip(f"the model calls no tools: {refused.message}")
    (call,) = [block for block in message.content if block.type == "tool_use"][:1]
    assert message.stop_reason == "tool_use" and call.name == "weather" and isinstance(call.input["days"], int)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    question["messages"] += [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert CLIENT.messages.create(**question).stop_reason in ("end_turn", "max_tokens", "tool_use")


def test_a_streamed_call() -> None:
    try:
        with CLIENT.messages.stream(**asked("Weather?", tools=[WEATHER], tool_choice={"type": "tool", "name": "weather"})) as stream:
            message = stream.get_final_message()
    except anthropic.BadRequestError as refused:
        pytest.skip(f"the model calls no tools: {refused.message}")
    assert [block.name for block in message.content if block.type == "tool_use"] == ["weather"]


def test_a_stop_sequence_is_told() -> None:
    """Whatever the model says of itself: the same again, but with a part of it that ends the answer."""
    said = CLIENT.messages.create(**asked("Count: one two three four", extra_body=GREEDY)).content[0].text
    stop = said[len(said) // 2 :][:6]
    message = CLIENT.messages.create(**asked("Count: one two three four", stop_sequences=[stop], extra_body=GREEDY))
    told = "".join(block.text for block in message.content)
    assert (told, message.stop_reason, message.stop_sequence) == (said[: said.index(stop)], "stop_sequence", stop)


def test_a_form() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    message = CLIENT.messages.create(**asked("A number?", output_config={"format": {"type": "json_schema", "schema": schema}}))
    text = "".join(block.text for block in message.content if block.type == "text")
    assert text.lstrip().startswith("{") and '"n"' in text


def test_tokens_are_counted() -> None:
    counted = CLIENT.messages.count_tokens(model=MODEL, messages=asked()["messages"]).input_tokens
    usage = CLIENT.messages.create(**asked()).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0) > 0


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (anthropic.BadRequestError, {"max_tokens": 0}),
        (anthropic.BadRequestError, {"messages": []}),
        (anthropic.BadRequestError, {"extra_body": {"colour": 1}}),
        (anthropic.BadRequestError, {"extra_body": {"temperature": -1.0}}),
    ],
)
def test_errors_have_their_classes(kind: type[anthropic.APIStatusError], more: dict[str, Any]) -> None:
    with pytest.raises(kind) as wrong:
        CLIENT.messages.create(**{**asked(), **more})
    assert wrong.value.body["type"] == "error" and wrong.value.request_id
    if not ECHO:
        with pytest.raises(anthropic.NotFoundError):
            CLIENT.messages.create(**{**asked(), "model": "no-such-model"})


def test_the_asynchronous_client() -> None:
    async def road() -> str:
        client = anthropic.AsyncAnthropic(base_url=ADDRESS, api_key="none")
        async with client, client.messages.stream(**asked(BENGALI)) as stream:
            return "".join([part async for part in stream.text_stream])

    said = asyncio.run(road())
    assert said == BENGALI if ECHO else said
