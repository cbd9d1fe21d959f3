"""What Ollama's own client does with khola; run by `run_other_clients.py` in an environment that has the client."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import ollama
import pytest

ADDRESS, MODEL = os.environ["KHOLA_ADDRESS"], os.environ["KHOLA_MODEL"]
ECHO = MODEL == "echo"
BENGALI = "আমি তোমায় ভালোবাসি"
CLIENT = ollama.Client(host=ADDRESS)
FEW: Any = {"num_predict": 24, "temperature": 0}


def turns(text: str = BENGALI) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_chat_whole_and_streamed() -> None:
    whole = CLIENT.chat(MODEL, turns(), options=FEW)
    lines = list(CLIENT.chat(MODEL, turns(), options=FEW, stream=True))
    assert whole.done and whole.done_reason in ("stop", "length") and whole.total_duration >= whole.eval_duration >= 0
    assert "".join(line.message.content or "" for line in lines) == whole.message.content
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True] and len(lines) > 2
    assert lines[-1].eval_count == whole.eval_count > 0 and lines[-1].prompt_eval_count > 0
    if ECHO:
        assert whole.message.content == BENGALI


def test_generate_whole_streamed_and_raw() -> None:
    whole = CLIENT.generate(MODEL, "Say hello.", system="Answer briefly.", options=FEW)
    lines = list(CLIENT.generate(MODEL, "Say hello.", system="Answer briefly.", options=FEW, stream=True))
    assert "".join(line.response for line in lines) == whole.response and whole.done
    assert CLIENT.generate(MODEL, "Once upon", raw=True, options=FEW).response


@pytest.mark.parametrize("form", ["json", {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}])
def test_forms(form: Any) -> None:
    answer = CLIENT.chat(MODEL, turns("A number as JSON?"), format=form, options={**FEW, "num_predict": 64})
    assert answer.message.content.lstrip().startswith("{")


def test_a_tool_is_offered_and_a_result_taken() -> None:
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name
        """
        return city

    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Dhaka"}}}]}
    told = [*turns("Weather in Dhaka?"), called, {"role": "tool", "tool_name": "weather", "content": "sunny"}]
    try:
        answer = CLIENT.chat(MODEL, told, tools=[weather], options=FEW)
    except ollama.ResponseError as refused:
        pytest.skip(f"the model calls no tools: {refused.error}")
    assert answer.done


def test_models_are_listed_shown_and_loaded() -> None:
    assert MODEL in [model.model for model in CLIENT.list().models]
    shown = CLIENT.show(MODEL)
    assert "completion" in shown.capabilities and shown.modelinfo
    CLIENT.chat(MODEL, turns(), options=FEW)
    assert MODEL in [model.model for model in CLIENT.ps().models]


def test_vectors() -> None:
    found = CLIENT.embed(MODEL, ["one", "two"])
    assert len(found.embeddings) == 2 and abs(sum(number**2 for number in found.embeddings[0]) - 1) < 1e-5
    assert len(CLIENT.embeddings(MODEL, "one").embedding) == len(found.embeddings[0])


@pytest.mark.parametrize(
    ("ask", "status", "words"),
    [
        (lambda: CLIENT.chat(MODEL, turns(), options={"mirostat": 2}), 400, "mirostat"),
        (lambda: CLIENT.chat(MODEL, turns(), options={"num_ctx": 1}), 400, "num_ctx"),
        (lambda: list(CLIENT.chat(MODEL, turns(), options={"num_ctx": 1}, stream=True)), 400, "num_ctx"),
        (lambda: CLIENT.show("no-such-model"), 404, "no-such-model"),
        (lambda: CLIENT.copy(MODEL, "other"), 403, "one name"),
        (lambda: CLIENT.delete(MODEL), 403, "deletes no files"),
        (lambda: CLIENT.pull("anything"), 401, "key"),
    ],
)
def test_refusals_are_response_errors(ask: Any, status: int, words: str) -> None:
    with pytest.raises(ollama.ResponseError) as wrong:
        ask()
    assert wrong.value.status_code == status and words in wrong.value.error


def test_the_asynchronous_client() -> None:
    async def road() -> str:
        lines = await ollama.AsyncClient(host=ADDRESS).chat(MODEL, turns(), stream=True, options=FEW)
        return "".join([line.message.content or "" async for line in lines])

    assert asyncio.run(road())
