"""Chats: what is asked becomes jobs, and pieces become what OpenAI's clients read."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import regex
from asking import COST, Client, Scripted, data_of, joined, user

from khola.chat.message import ToolCall
from khola.errors import NonFinite, TooMany
from khola.serve.access.limits import Limits
from khola.serve.backend import ChatJob, Piece, Token
from khola.serve.dialects.openai import chat_body

CHAT = "/v1/chat/completions"
ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
}
END = Piece(finish_reason="stop", cost=COST)


def job(**fields: Any) -> ChatJob:
    """The one job of a body."""
    (found,) = chat_body.asked({"model": "m", "messages": user("hi"), **fields}, Limits()).jobs
    return found


def test_sampling_reaches_the_engine() -> None:
    found = job(
        temperature=0, top_p=0, presence_penalty=-1, frequency_penalty=1.5, seed=-5, stop="x", logit_bias={"7": -100}, logprobs=True,
        top_logprobs=3, max_completion_tokens=9, top_k=4, min_p=0.1, repetition_penalty=1.1,
    )  # fmt: skip
    assert found.sampling == {
        "temperature": 0, "top_p": 1e-9, "presence_penalty": -1, "frequency_penalty": 1.5, "seed": -5, "stop": ["x"],
        "logit_bias": {7: -100}, "logprobs": 3, "max_tokens": 9, "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1,
    }  # fmt: skip
    assert job(temperature=None, stop=None).sampling == {}


def test_answers_of_one_seed_differ() -> None:
    asked = chat_body.asked({"model": "m", "messages": user("hi"), "n": 3, "seed": 2**63 - 1}, Limits())
    assert [one.sampling["seed"] for one in asked.jobs] == [2**63 - 1, -(2**63), -(2**63) + 1]


def test_turns_of_clients_are_understood() -> None:
    call = {"id": "c1", "type": "function", "index": 0, "function": {"name": "add", "arguments": '{"a":1}'}}
    found = job(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
            {"role": "user", "content": "1+1?", "name": "u"},
            {"role": "assistant", "content": None, "reasoning": "hm", "reasoning_content": "hm", "refusal": None, "tool_calls": [call]},
            {"role": "tool", "content": "2", "tool_call_id": "c1"},
        ]
    ).messages
    assert [turn.role for turn in found] == ["system", "user", "assistant", "tool"]
    assert (found[0].content, found[2].thinking, found[2].tool_calls) == (
        "Be kind.", "hm", (ToolCall(name="add", arguments={"a": 1}, id="c1"),),
    )  # fmt: skip
    assert job(messages=[*user("x"), {"role": "assistant", "content": "", "tool_calls": [call]}]).messages[1].content == ""


@pytest.mark.parametrize(
    ("choice", "tools", "wanted"),
    [
        (None, ["add"], "auto"),
        ("none", [], None),
        ("required", ["add"], "required"),
        ({"type": "function", "function": {"name": "add"}}, ["add"], "add"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "name": "add"}]}},
            ["add"],
            "required",
        ),
    ],
)
def test_choice_of_tools(choice: Any, tools: list[str], wanted: str | None) -> None:
    found = job(tools=[ADD], tool_choice=choice)
    assert ([tool.name for tool in found.tools], found.tool_choice) == (tools, wanted)


def test_a_form_and_tools_stand_side_by_side() -> None:
    found = job(tools=[ADD], response_format={"type": "json_object"}, parallel_tool_calls=False)
    assert (found.form, [tool.name for tool in found.tools], found.tool_choice, found.one_call) == (
        {"json_object": True},
        ["add"],
        "auto",
        True,
    )
    assert job(tools=[ADD]).one_call is False
    strict = {"type": "function", "function": {**ADD["function"], "name": "sub", "strict": True}}
    assert [tool.strict for tool in job(tools=[ADD, strict]).tools] == [False, True]


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"type": "text"}, {}),
        ({"type": "json_object"}, {"json_object": True}),
        (
            {"type": "json_schema", "json_schema": {"name": "q", "strict": True, "schema": {"type": "object"}}},
            {"schema": {"type": "object"}},
        ),
        ({"type": "json_object", "schema": {"type": "array"}}, {"schema": {"type": "array"}}),
    ],
)
def test_form(given: dict[str, Any], form: dict[str, Any]) -> None:
    assert job(response_format=given).form == form


@pytest.mark.parametrize(
    ("fields", "thinking", "tokens"),
    [
        ({"reasoning_effort": "none"}, False, None),
        ({"reasoning_effort": "low"}, True, 1024),
        ({"reasoning_effort": "max"}, True, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False, None),
        ({"chat_template_kwargs": {"thinking_budget": 7}}, None, 7),
    ],
)
def test_thinking(fields: dict[str, Any], thinking: bool | None, tokens: int | None) -> None:
    assert (job(**fields).thinking, job(**fields).thinking_tokens) == (thinking, tokens)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{}]}, "functions"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 9}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"foo": 0}}, "logit_bias"),
        ({"logit_bias": {"٣": 0}}, "logit_bias"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"tools": [ADD, ADD]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "q", "schema": {"type": 7}}}}, "response_format"),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"}, "chat_template_kwargs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "reasoning": "a", "reasoning_content": "b"}]}, "messages[0]"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = Client().refused(CHAT, **{"model": "m", "messages": user("hi"), **fields})
    assert (error["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)


def test_a_bad_schema_is_named_as_langchain_looks_for_it() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "q", "schema": {"type": "object", "if": {}}}}
    assert (
        "Invalid schema for response_format 'q'" in Client().refused(CHAT, model="m", messages=user("x"), response_format=form)["message"]
    )


def test_a_long_prompt_says_both_numbers() -> None:
    error = Client().refused(CHAT, model="m", messages=user("x " * 131_072 + "x"))
    assert error["code"] == "context_length_exceeded" and "maximum context length" in error["message"]
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (131_073, 131_072)


def test_harmless_fields_are_told() -> None:
    for stream in (False, True):
        answer = Client().ask("POST", CHAT, {"model": "m", "messages": user("x"), "user": "u", "store": True, "stream": stream})
        assert answer.headers["x-khola-ignored"] == "user, store"


def test_an_answer() -> None:
    pieces = (Piece(thinking="hm"), Piece(text="hello"), Piece(tool_calls=(ToolCall(name="add", arguments={"a": 1}),)), END)
    told = Client(Scripted(*pieces)).post(CHAT, model="m", messages=user("x"), tools=[ADD])
    (choice,) = told["choices"]
    message = choice["message"]
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("hello", "hm", "hm")
    assert message["refusal"] is None and choice["logprobs"] is None and choice["finish_reason"] == "tool_calls"
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a":1}'} and call["id"].startswith("call_")
    assert told["usage"] == {
        "prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }  # fmt: skip


def test_a_call_alone_has_no_content() -> None:
    told = Client(Scripted(Piece(tool_calls=(ToolCall(name="f", arguments={}, id="c9"),)), END)).post(CHAT, model="m", messages=user("x"))
    assert told["choices"][0]["message"]["content"] is None and told["choices"][0]["message"]["tool_calls"][0]["id"] == "c9"


def test_one_call_at_most() -> None:
    calls = Piece(tool_calls=(ToolCall(name="a", arguments={}), ToolCall(name="b", arguments={})))
    for fields, names in (({}, ["a", "b"]), ({"parallel_tool_calls": False}, ["a"])):
        client = Client(Scripted(calls, calls, END))
        told = client.post(CHAT, model="m", messages=user("x"), **fields)
        found = [call["function"]["name"] for call in told["choices"][0]["message"]["tool_calls"]]
        assert found == (names if fields else names * 2)
        chunks = client.events(CHAT, model="m", messages=user("x"), **fields)[:-1]
        begun = [call["id"] for chunk in chunks for one in chunk["choices"] for call in one["delta"].get("tool_calls", ()) if "id" in call]
        assert len(begun) == len(found)


def test_a_stream() -> None:
    pieces = (Piece(thinking="hm"), Piece(text="কি"), Piece(text=" হলো"), END)
    client = Client(Scripted(*pieces))
    *chunks, done = client.events(CHAT, model="m", messages=user("x"), stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert joined(chunks, "content") == "কি হলো" and joined(chunks, "reasoning") == joined(chunks, "reasoning_content") == "hm"
    assert chunks[-2]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] == 8
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert client.backend.open == 0
    assert not any("usage" in chunk for chunk in client.events(CHAT, model="m", messages=user("x"))[:-1])


def test_calls_of_a_stream_have_the_form_that_clients_join() -> None:
    first = Piece(tool_calls=(ToolCall(name="a", arguments={"x": 'ক"'}, id="c0"), ToolCall(name="b", arguments={}, id="c1")))
    chunks = Client(Scripted(first, Piece(tool_calls=(ToolCall(name="c", arguments={}, id="c2"),)), END)).events(
        CHAT, model="m", messages=user("x")
    )[:-1]
    deltas = [call for chunk in chunks for choice in chunk["choices"] for call in choice["delta"].get("tool_calls", ())]
    assert [delta["index"] for delta in deltas] == [0, 0, 1, 1, 2, 2]
    for begun, rest in zip(deltas[::2], deltas[1::2], strict=True):
        assert set(begun) == {"index", "id", "type", "function"} and begun["function"]["arguments"] == ""
        assert set(rest) == {"index", "function"} and set(rest["function"]) == {"arguments"}
    assert json.loads(deltas[1]["function"]["arguments"]) == {"x": 'ক"'}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_failure_on_the_way_is_an_event_and_no_end() -> None:
    client = Client(Scripted(Piece(text="a"), NonFinite("a logit is not finite")))
    *chunks, last = client.events(CHAT, model="m", messages=user("x"))
    assert last["error"]["code"] == "non_finite"
    assert not any(choice["finish_reason"] for chunk in chunks for choice in chunk["choices"])
    assert client.backend.open == 0


@pytest.mark.parametrize("n", [1, 3])
def test_an_answer_that_somebody_else_stopped_is_no_answer(n: int) -> None:
    client = Client(Scripted(Piece(text="a"), Piece(finish_reason="cancelled", cost=COST)))
    assert client.refused(CHAT, model="m", messages=user("x"), n=n)["status"] == 503
    assert client.events(CHAT, model="m", messages=user("x"), n=n)[-1]["error"]["type"] == "unavailable_error"
    assert client.backend.open == 0


def test_one_that_cannot_begin_stops_the_others() -> None:
    class Full(Scripted):
        async def start(self, job: Any, model: str) -> Any:
            if len(self.jobs) == 2:
                raise TooMany("the queue is full")
            return await super().start(job, model)

    client = Client(Full(Piece(text="a"), END))
    error = client.refused(CHAT, model="m", messages=user("x"), n=3)
    assert (error["status"], error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert client.backend.open == 0


def test_logprobs_spell_the_text_and_nothing_else() -> None:
    ko, rest = "ক".encode()[:2], "ক".encode()[2:]
    pieces = (
        Piece(thinking="hm", tokens=(Token(1, b"hm", -1.0),)),
        Piece(tokens=(Token(2, b"</think>", -0.1),)),
        Piece(text="\u0995!", tokens=(Token(3, b"\n\n", -0.1), Token(4, ko, -0.5), Token(5, rest, -math.inf), Token(6, b"!", -0.5))),
        Piece(text=" ok", tokens=(Token(7, b" ok", -0.5, ((7, b" ok", -0.5), (8, ko, -math.inf))),)),
        END,
    )
    asked = {"model": "m", "messages": user("x"), "logprobs": True, "top_logprobs": 2}
    client = Client(Scripted(*pieces))
    content = client.post(CHAT, **asked)["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == "ক! ok"
    assert set(content[0]) == {"token", "bytes", "logprob", "top_logprobs"} and content[0]["token"] == "bytes:\\xe0\\xa6"
    assert content[1]["logprob"] == -9999.0 and content[3]["top_logprobs"][1]["bytes"] == list(ko)
    chunks = client.events(CHAT, **asked)[:-1]
    streamed = [one for chunk in chunks for choice in chunk["choices"] for one in (choice["logprobs"] or {"content": []})["content"]]
    assert streamed == content


def test_several_answers_come_side_by_side() -> None:
    chunks = Client().events(CHAT, model="m", messages=user("a b c"), n=3)[:-1]
    for index in range(3):
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "a b c" and mine[-1]["finish_reason"] == "stop"


def test_bengali_streams_by_grapheme_and_no_cut_of_bytes_loses_any() -> None:
    text = "আমি বাংলায় গান গাই, ক্ষ্যাপা শ্রাবণ ছুটে এলো আকাশে 👨‍👩‍👧!"
    graphemes = regex.findall(r"\X", text)
    answer = Client(Scripted(*(Piece(text=one) for one in graphemes), END)).ask(
        "POST", CHAT, {"model": "m", "messages": user("x"), "stream": True}
    )
    assert answer.content.isascii()
    chunks = data_of(answer.content)[:-1]
    told = [choice["delta"]["content"] for chunk in chunks for choice in chunk["choices"] if choice["delta"].get("content")]
    assert told == graphemes
    made, whole = random.Random(5), incremental([answer.content])
    assert [json.loads(line) for line in whole[:-1]] == chunks and whole[-1] == "[DONE]"
    for _ in range(10_000):
        cut = made.randrange(len(answer.content) + 1)
        assert incremental([answer.content[:cut], answer.content[cut:]]) == whole


def incremental(parts: Sequence[bytes]) -> list[str]:
    """The data of events, read in parts, each decoded on its own as careless clients do."""
    held, found = "", []
    for part in parts:
        held += part.decode("utf-8", "replace")
        *events, held = held.split("\n\n")
        found += [event.removeprefix("data: ") for event in events]
    assert not held
    return found
