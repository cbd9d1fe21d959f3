"""What openai-python's helpers make of khola's streams, with every event checked against its types; run by `run_openai_python.py`.

Its own tests close streams before they read them.
"""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI
from pydantic import BaseModel

TEXT = "আমি বাংলায় গান গাই"
ADD: dict[str, Any] = {
    "name": "add", "strict": True, "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a", "b"],
        "additionalProperties": False,
    },
}  # fmt: skip


class Sum(BaseModel):
    """A form."""

    terms: list[int]
    total: int


def test_a_chat(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="echo", messages=[{"role": "user", "content": TEXT}], logprobs=True, top_logprobs=2, stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type for event in stream}
        found = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= kinds
    (choice,) = found.choices
    assert choice.message.content == TEXT and choice.finish_reason == "stop" and found.usage is not None
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert b"".join(bytes(token.bytes or []) for token in choice.logprobs.content).decode() == TEXT


def test_a_call_in_a_chat(client: OpenAI) -> None:
    tools: Any = [{"type": "function", "function": ADD}]
    with client.chat.completions.stream(
        model="echo", messages=[{"role": "user", "content": TEXT}], tools=tools, tool_choice="required"
    ) as stream:
        kinds = {event.type for event in stream}
        found = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds and found.choices[0].finish_reason == "tool_calls"
    (call,) = found.choices[0].message.tool_calls or []
    assert call.function.name == "add" and call.function.parsed_arguments == {"a": 0, "b": ""} and call.id


def test_a_form(client: OpenAI) -> None:
    found = client.chat.completions.parse(model="echo", messages=[{"role": "user", "content": TEXT}], response_format=Sum)
    assert found.choices[0].message.parsed == Sum(terms=[], total=0)
    told = client.responses.parse(model="echo", input=TEXT, text_format=Sum)
    assert told.output_parsed == Sum(terms=[], total=0)


def test_a_response(client: OpenAI) -> None:
    with client.responses.stream(model="echo", input=TEXT, metadata={"a": "b"}) as stream:
        events = list(stream)
        found = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert found.output_text == TEXT and found.status == "completed" and client.responses.retrieve(found.id).output_text == TEXT
    followed = client.responses.create(model="echo", input="more", previous_response_id=found.id)
    assert followed.output_text == "more" and followed.usage is not None and found.usage is not None
    assert followed.usage.input_tokens > found.usage.input_tokens


def test_a_call_in_a_response(client: OpenAI) -> None:
    with client.responses.stream(model="echo", input=TEXT, tools=[{"type": "function", **ADD}], tool_choice="required") as stream:
        kinds = [event.type for event in stream]
        found = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    (call,) = found.output
    assert call.type == "function_call" and call.arguments == '{"a":0,"b":""}'


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal(client: OpenAI, stream: bool) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x " * 131_073}], stream=stream)
    assert caught.value.code == "context_length_exceeded" and "maximum context length" in caught.value.message
