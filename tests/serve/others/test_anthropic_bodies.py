"""What is asked in Anthropic's form, and what is told: without any HTTP."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from khola.chat.message import Message, ToolCall
from khola.errors import AskedWrong, Cancelled, KholaError, NoRoom, UnknownModel, UnknownOption, WrongModality
from khola.serve.backend import Piece
from khola.serve.dialects.anthropic.asked import asked
from khola.serve.dialects.anthropic.told import Telling, error_body, signature
from tests.serve.others.pieces import call, last

WEATHER = {"name": "weather", "description": "says it", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}


def body(*content: Any, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": part} if isinstance(part, str | list) else part for part in content or ("hi",)]
    return {"model": "m", "max_tokens": 100, "messages": turns, **more}


def messages(*content: Any, **more: Any) -> tuple[Message, ...]:
    return asked(body(*content, **more)).job.messages


def refused(kind: type[KholaError], given: dict[str, Any]) -> str:
    with pytest.raises(kind) as wrong:
        asked(given)
    assert type(wrong.value) is kind
    wrong.value.hint()
    return str(wrong.value.facts["param"]) + ": " + wrong.value.told()


def test_a_question() -> None:
    wanted = asked(body("কেমন আছ?", system="be brief", temperature=0.5, top_k=3, stop_sequences=["\n"], stream=True), tenant="t")
    assert wanted.job.messages == (Message(role="system", content="be brief"), Message(role="user", content="কেমন আছ?"))
    assert wanted.job.sampling == {"temperature": 0.5, "top_k": 3, "max_tokens": 100, "stop": ("\n",)}
    assert (wanted.model, wanted.stream, wanted.job.tenant, wanted.ignored) == ("m", True, "t", ())
    assert wanted.job.thinking is None and wanted.job.thinking_tokens is None and wanted.job.tool_choice is None


def test_turns_of_one_speaker_are_joined_and_an_answer_that_was_begun_goes_on() -> None:
    begun = {"role": "assistant", "content": [{"type": "text", "text": "The"}, {"type": "text", "text": " sky"}]}
    job = asked(body("one", [{"type": "text", "text": "two"}], begun)).job
    assert job.messages == (Message(role="user", content="one\n\ntwo"), Message(role="assistant", content="The sky"))
    assert job.continue_last and not asked(body("one")).job.continue_last


def test_calls_and_results() -> None:
    answer = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "ঢাকা"}},
        {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no city", "is_error": True},
        {"type": "text", "text": "So?"},
    ]
    given = messages("weather?", {"role": "assistant", "content": answer}, results, tools=[WEATHER])
    calls = (ToolCall(name="weather", arguments={"city": "ঢাকা"}, id="toolu_1"), ToolCall(name="weather", arguments={}, id="toolu_2"))
    assert given[1:] == (
        Message(role="assistant", content="I look.", thinking="hm", tool_calls=calls),
        Message(role="tool", content="rain", tool_call_id="toolu_1", name="weather"),
        Message(role="tool", content="Error: no city", tool_call_id="toolu_2", name="weather"),
        Message(role="user", content="So?"),
    )


@pytest.mark.parametrize(
    ("choice", "tools", "expected"),
    [
        (None, 1, "auto"), ({"type": "auto"}, 1, "auto"), ({"type": "any"}, 1, "required"),
        ({"type": "tool", "name": "weather"}, 1, "weather"), ({"type": "none"}, 0, None),
    ],
)  # fmt: skip
def test_tool_choice(choice: dict[str, str] | None, tools: int, expected: str | None) -> None:
    job = asked(body(tools=[WEATHER], **({"tool_choice": choice} if choice else {}))).job
    assert (job.tool_choice, len(job.tools)) == (expected, tools)


def test_thinking() -> None:
    job = asked(body(thinking={"type": "enabled", "budget_tokens": 60})).job
    assert (job.thinking, job.thinking_tokens) == (True, 60)
    assert asked(body(thinking={"type": "disabled"})).job.thinking is False
    assert asked(body(thinking={"type": "adaptive"})).job.thinking is True


def test_a_form() -> None:
    schema = {"type": "object"}
    assert asked(body(output_config={"format": {"type": "json_schema", "schema": schema}})).job.form == {"schema": schema}


def test_strict_tools_and_a_form_stand_side_by_side() -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    job = asked(body(tools=[{**WEATHER, "strict": True}], tool_choice=choice, output_config=form)).job
    assert (job.form, job.tool_choice, job.one_call) == ({"schema": {"type": "object"}}, "auto", True)
    assert [tool.strict for tool in (*job.tools, *asked(body(tools=[WEATHER])).job.tools)] == [True, False]


def test_what_has_no_effect_is_told() -> None:
    mark = {"type": "ephemeral"}
    given = body([{"type": "text", "text": "hi", "cache_control": mark}], metadata={"user_id": "u"}, service_tier="auto")
    assert asked(given).ignored == ("metadata", "service_tier", "cache_control")
    assert asked(body(tools=[{**WEATHER, "cache_control": mark}])).ignored == ("cache_control",)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "x"}


@pytest.mark.parametrize(
    ("kind", "given", "where"),
    [
        (WrongModality, body([IMAGE]), "messages[0].content[0]"),
        (WrongModality, body([{"type": "document", "source": {}}]), "messages[0].content[0]"),
        (AskedWrong, body([RESULT]), "messages[0].content[0].tool_use_id"),
        (AskedWrong, body({"role": "assistant", "content": [RESULT]}), "messages[0].content[0]"),
        (AskedWrong, body({"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}), "messages[0].content[0]"),
        (AskedWrong, body([{"type": "tool_use", "id": "a", "name": "b", "input": {}}]), "messages[0].content[0]"),
        (AskedWrong, {"model": "m", "messages": [{"role": "user", "content": "x"}]}, "max_tokens"),
        (AskedWrong, body(max_tokens=0), "max_tokens"),
        (AskedWrong, body(max_tokens=True), "max_tokens"),
        (AskedWrong, body(temperature=-1), "temperature"),
        (AskedWrong, body(thinking={"type": "enabled"}), "thinking.budget_tokens"),
        (AskedWrong, body(thinking={"type": "enabled", "budget_tokens": 100}), "thinking.budget_tokens"),
        (AskedWrong, body(thinking={"type": "disabled", "budget_tokens": 10}), "thinking"),
        (AskedWrong, body(tool_choice={"type": "any"}), "tool_choice"),
        (AskedWrong, body(tools=[WEATHER], tool_choice={"type": "tool", "name": "other"}), "tool_choice"),
        (AskedWrong, body(tools=[{"type": "web_search_20250305", "name": "web_search", "input_schema": {}}]), "tools[0].type"),
        (UnknownOption, body(top_q=1), "top_q"),
        (UnknownOption, body([{"type": "text", "text": "a", "colour": 1}]), "messages[0].content[0].colour"),
    ],
)
def test_refusals_name_the_place(kind: type[KholaError], given: dict[str, Any], where: str) -> None:
    assert refused(kind, given).startswith(where + ": ")


def events_of(*pieces: Piece, **options: Any) -> list[dict[str, Any]]:
    numbers = count(1)
    telling = Telling("m", lambda: str(next(numbers)), **options)
    events = telling.start() + [event for piece in pieces for event in telling.take(piece)]
    assert all(event.name == event.data["type"] for event in events)
    assert rebuilt([event.data for event in events]) == telling.message(), "a client that follows the events has another message"
    return [event.data for event in events]


def rebuilt(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client builds from events, as Anthropic's description has it."""
    message: dict[str, Any] = json.loads(json.dumps(events[0]["message"]))
    arguments = ""
    for event in events[1:]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(dict(event["content_block"]))
                arguments = ""
            case "content_block_delta":
                assert event["index"] == len(message["content"]) - 1
                block, delta = message["content"][-1], event["delta"]
                match delta["type"]:
                    case "text_delta":
                        block["text"] += delta["text"]
                    case "thinking_delta":
                        block["thinking"] += delta["thinking"]
                    case "signature_delta":
                        block["signature"] = delta["signature"]
                    case "input_json_delta":
                        arguments += delta["partial_json"]
                        block["input"] = json.loads(arguments)
            case "message_delta":
                message |= {**event["delta"], "usage": event["usage"]}
    return message


def test_events_come_in_order() -> None:
    events = events_of(Piece(thinking="h"), Piece(thinking="m"), Piece(text="বাং"), Piece(text="লা"), call(city="ঢাকা"), last())
    assert [event["type"] for event in events] == [
        *("message_start", "ping"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert events[5]["delta"] == {"type": "signature_delta", "signature": signature("hm")}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"] == {
        "input_tokens": 8, "output_tokens": 7, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("end", "reason", "stop"),
    [(last(), "end_turn", None), (last("length"), "max_tokens", None), (last(stopped_by="\nUser:"), "stop_sequence", "\nUser:")],
)
def test_why_it_ended(end: Piece, reason: str, stop: str | None) -> None:
    assert events_of(Piece(text="a"), end)[-2]["delta"] == {"stop_reason": reason, "stop_sequence": stop}


def test_an_answer_of_nothing_and_one_in_the_last_piece() -> None:
    assert [event["type"] for event in events_of(last())] == ["message_start", "ping", "message_delta", "message_stop"]
    assert rebuilt(events_of(last(text="x")))["content"] == [{"type": "text", "text": "x"}]


def test_one_call_and_hidden_thoughts() -> None:
    told = rebuilt(
        events_of(Piece(thinking="a"), Piece(thinking="b"), call(city="x"), call(city="y"), last(), one_call=True, shows_thought=False)
    )
    assert [block["type"] for block in told["content"]] == ["thinking", "tool_use"]
    assert told["content"][0] == {"type": "thinking", "thinking": "", "signature": signature("ab")}


def test_an_answer_that_somebody_else_ended_is_an_error() -> None:
    with pytest.raises(Cancelled):
        events_of(Piece(text="half"), last("cancelled"))


def test_errors_have_anthropics_shape() -> None:
    told = error_body(UnknownModel("no model is called {name!r}", hint="did you mean {nearest}?", name="x", nearest="y"), "req_1")
    assert told == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "no model is called 'x'; did you mean y?"},
        "request_id": "req_1",
    }
    assert error_body(NoRoom("full"), "")["error"]["type"] == "overloaded_error"
    assert error_body(KholaError("a fault"), "")["error"]["type"] == "api_error"
