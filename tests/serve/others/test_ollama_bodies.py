"""What is asked in Ollama's form, and what is told: without any HTTP."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from khola.chat.message import Message, Tool, ToolCall
from khola.errors import AskedWrong, Cancelled, KholaError, UnknownOption, WrongModality
from khola.serve.backend import ChatJob, Piece, TextJob, Token
from khola.serve.dialects.ollama.asked import asked_chat, asked_embed, asked_embeddings, asked_generate
from khola.serve.dialects.ollama.told import Telling, moment
from tests.serve.others.pieces import call, last

NOW = 1_795_352_400.25
FUNCTION = {"name": "weather", "description": "says it", "parameters": {"type": "object"}}


def chat(*turns: Any, **more: Any) -> ChatJob:
    messages = [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in turns]
    job = asked_chat({"model": "m", "messages": messages, **more}, tenant="t").job
    assert isinstance(job, ChatJob)
    return job


def test_a_conversation() -> None:
    job = chat({"role": "system", "content": "be brief"}, "কেমন আছ?", think=True, format="json")
    assert job.messages == (Message(role="system", content="be brief"), Message(role="user", content="কেমন আছ?"))
    assert (job.thinking, job.form, job.tenant, job.sampling) == (True, {"json_object": True}, "t", {})
    assert chat("x", format={"type": "object"}).form == {"schema": {"type": "object"}}
    assert chat("x", {"role": "assistant", "content": "The"}).continue_last
    assert chat("x", think="high").thinking is True


def test_options_have_khola_names() -> None:
    given = {
        "temperature": 0,
        "repeat_penalty": 1.1,
        "num_predict": 5,
        "stop": "\n",
        "seed": -3,
        "top_p": 0.5,
        "num_gpu": 1,
        "typical_p": 1.0,
    }
    wanted = asked_chat({"model": "m", "messages": [{"role": "user", "content": "x"}], "options": given})
    assert wanted.job is not None
    assert wanted.job.sampling == {
        "temperature": 0, "repetition_penalty": 1.1, "max_tokens": 5, "stop": ("\n",), "seed": -3, "top_p": 0.5,
    }  # fmt: skip
    assert wanted.ignored == ("options.num_gpu",)
    assert chat("x", options={"num_predict": -1, "stop": ["a", "b"]}).sampling == {"stop": ("a", "b")}


def test_calls_and_results() -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "ঢাকা"}}}] * 2}
    result = {"role": "tool", "content": "rain", "tool_name": "weather"}
    job = chat("weather?", called, result, {"role": "tool", "content": "sun"}, tools=[{"type": "function", "function": FUNCTION}])
    assert job.tools == (Tool(name="weather", description="says it", parameters={"type": "object"}),)
    both = chat("weather?", tools=[{"type": "function", "function": FUNCTION}], format="json")
    assert (both.form, len(both.tools)) == ({"json_object": True}, 1)
    ids = [made.id for made in job.messages[1].tool_calls]
    assert len(set(ids)) == 2 and job.messages[1].tool_calls[0] == ToolCall(name="weather", arguments={"city": "ঢাকা"}, id=ids[0])
    assert [(turn.tool_call_id, turn.name, turn.content) for turn in job.messages[2:]] == [
        (ids[0], "weather", "rain"), (ids[1], "weather", "sun"),
    ]  # fmt: skip


def test_generate() -> None:
    wanted = asked_generate({"model": "m", "prompt": "hi", "system": "be brief", "stream": False, "options": {"num_ctx": 64}})
    assert isinstance(wanted.job, ChatJob) and [turn.role for turn in wanted.job.messages] == ["system", "user"]
    assert (wanted.stream, wanted.window) == (False, 64)
    raw = asked_generate({"model": "m", "prompt": "<|x|>", "raw": True}, tenant="t").job
    assert raw == TextJob(prompt="<|x|>", tenant="t")


@pytest.mark.parametrize(
    ("keep", "unloads", "ignored"),
    [(None, False, ()), (0, True, ()), ("0s", True, ()), ("0", True, ()), (-1, False, ("keep_alive",)), ("1h5m", False, ("keep_alive",))],
)
def test_keep_alive(keep: Any, unloads: bool, ignored: tuple[str, ...]) -> None:
    wanted = asked_chat({"model": "m", "messages": [], "keep_alive": keep})
    assert (wanted.job, wanted.unload, wanted.ignored) == (None, unloads, ignored)


def test_embeddings() -> None:
    assert asked_embed({"model": "m", "input": "a", "dimensions": 3}) == ("m", ["a"], 3, ())
    assert asked_embed({"model": "m", "input": ["a", "b"], "keep_alive": "5m"}) == ("m", ["a", "b"], None, ("keep_alive",))
    assert asked_embeddings({"model": "m", "prompt": "a", "options": {"num_ctx": 5}}) == ("m", "a", ("options.num_ctx",))


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("kind", "ask", "given", "where"),
    [
        (UnknownOption, asked_chat, {"options": {"temprature": 1}}, "options.temprature"),
        (UnknownOption, asked_chat, {"options": {"mirostat": 2}}, "options.mirostat"),
        (UnknownOption, asked_chat, {"options": {"repeat_last_n": 64}}, "options.repeat_last_n"),
        (AskedWrong, asked_chat, {"options": {"num_predict": -3}}, "options.num_predict"),
        (AskedWrong, asked_chat, {"options": {"top_k": 1.5}}, "options.top_k"),
        (AskedWrong, asked_chat, {"keep_alive": "soon"}, "keep_alive"),
        (AskedWrong, asked_chat, {"keep_alive": "1.2.3s"}, "keep_alive"),
        (AskedWrong, asked_chat, {"format": "xml"}, "format"),
        (AskedWrong, asked_chat, {"messages": [{"role": "user", "content": "x", "thinking": "y"}]}, "messages[0]"),
        (WrongModality, asked_chat, {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images"),
        (UnknownOption, asked_chat, {"truncate": True}, "truncate"),
        (UnknownOption, asked_chat, {"colour": 1}, "colour"),
        (UnknownOption, asked_generate, {"prompt": "a", "suffix": "b"}, "suffix"),
        (UnknownOption, asked_generate, {"prompt": "a", "template": "b"}, "template"),
        (UnknownOption, asked_generate, {"prompt": "a", "context": [1]}, "context"),
        (WrongModality, asked_generate, {"prompt": "a", "images": ["aGk="]}, "images"),
        (AskedWrong, asked_generate, {"prompt": "a", "raw": True, "system": "b"}, "system"),
        (AskedWrong, asked_generate, {"prompt": "a", "raw": True, "think": True}, "think"),
        (UnknownOption, asked_embed, {"input": "a", "truncate": True}, "truncate"),
        (AskedWrong, asked_embed, {"input": 1}, "input"),
    ],
)
def test_refusals_name_the_place(kind: type[KholaError], ask: Any, given: dict[str, Any], where: str) -> None:
    with pytest.raises(kind) as wrong:
        ask({"model": "m", **given})
    assert type(wrong.value) is kind and wrong.value.facts["param"] == where
    assert wrong.value.told() and wrong.value.hint() is not None


def lines_of(*pieces: Piece, key: Any = "message", logprobs: bool = False) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines, and the one object."""
    numbers, times = count(1), iter([NOW, *[NOW + 2.5] * 20])
    telling = Telling("m", key, clock=lambda: next(times), new_id=lambda: str(next(numbers)), logprobs=logprobs)
    return [event.data for piece in pieces for event in telling.take(piece)], telling.whole()


def test_lines_and_durations() -> None:
    lines, whole = lines_of(Piece(thinking="hm"), Piece(text="বাং"), Piece(text="লা"), call(city="ঢাকা"), last())
    called = {"id": "call_1", "function": {"index": 0, "name": "weather", "arguments": {"city": "ঢাকা"}}}
    assert [line["message"] for line in lines] == [
        {"role": "assistant", "content": "", "thinking": "hm"},
        {"role": "assistant", "content": "বাং"},
        {"role": "assistant", "content": "লা"},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "assistant", "content": ""},
    ]
    assert whole["message"] == {"role": "assistant", "content": "বাংলা", "thinking": "hm", "tool_calls": [called]}
    counts = {
        "done": True, "done_reason": "stop", "total_duration": 2_500_000_000, "load_duration": 750_000_000,
        "prompt_eval_count": 12, "prompt_eval_duration": 500_000_000, "eval_count": 7, "eval_duration": 1_250_000_000,
    }  # fmt: skip
    for body in (lines[-1], whole):
        assert {name: body[name] for name in counts} == counts
    assert [line["done"] for line in lines] == [False] * 4 + [True]
    assert lines[0]["created_at"] == moment(NOW + 2.5) == "2026-11-22T13:00:02.750000Z"


def test_generate_lines() -> None:
    lines, whole = lines_of(Piece(thinking="hm"), Piece(text="x"), last("length", text="y"), key="response")
    assert [(line["response"], line.get("thinking"), line["done"]) for line in lines] == [
        ("", "hm", False), ("x", None, False), ("y", None, False), ("", None, True),
    ]  # fmt: skip
    assert (whole["response"], whole["thinking"], whole["done_reason"]) == ("xy", "hm", "length")


def test_logprobs_and_half_letters() -> None:
    half = Token(7, "ব".encode()[:2], -0.5, ((7, "ব".encode()[:2], -0.5), (8, b"a", -1.5)))
    lines, whole = lines_of(Piece(tokens=(half,)), Piece(text="ব"), last(), logprobs=True)
    assert lines[0]["logprobs"] == whole["logprobs"]
    (told,) = lines[0]["logprobs"]
    assert (told["bytes"], told["logprob"], [top["token"] for top in told["top_logprobs"]]) == ([0xE0, 0xA6], -0.5, ["\ufffd", "a"])


def test_an_answer_that_somebody_else_ended_is_an_error() -> None:
    with pytest.raises(Cancelled):
        lines_of(Piece(text="half"), last("cancelled"))
