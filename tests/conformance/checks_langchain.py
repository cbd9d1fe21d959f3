"""What LangChain's chat models for Anthropic and Ollama do with khola; run by `run_other_clients.py` in an environment that has them."""

from __future__ import annotations

import os
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings

ADDRESS, MODEL = os.environ["KHOLA_ADDRESS"], os.environ["KHOLA_MODEL"]
ECHO = MODEL == "echo"
BENGALI = "আমি তোমায় ভালোবাসি"


def anthropic(**more: Any) -> ChatAnthropic:
    return ChatAnthropic(model=MODEL, base_url=ADDRESS, api_key="none", max_tokens=48, max_retries=0, **more)


def ollama(**more: Any) -> ChatOllama:
    return ChatOllama(model=MODEL, base_url=ADDRESS, num_predict=48, temperature=0, **more)


@pytest.mark.parametrize("model", [anthropic, ollama])
def test_whole_and_streamed(model: Any) -> None:
    whole = model().invoke([("system", "Answer briefly."), ("human", BENGALI)])
    assert whole.usage_metadata["output_tokens"] > 0 and whole.usage_metadata["input_tokens"] > 0
    parts = list(model().stream(BENGALI))
    assert len(parts) > 2
    if ECHO:
        joined = parts[0]
        for part in parts[1:]:
            joined += part
        assert whole.text == joined.text == BENGALI


@tool
def weather(days: int) -> str:
    """The weather of so many days."""
    return f"sunny for {days}"


@pytest.mark.skipif(MODEL.startswith("smollm2"), reason="SmolLM2's chat format has no tools, and the server says so")
def test_a_tool_that_must_be_called() -> None:
    answer = anthropic().bind_tools([weather], tool_choice="weather").invoke("How is the weather?")
    (call,) = answer.tool_calls
    assert call["name"] == "weather" and isinstance(call["args"]["days"], int)
    assert not ECHO or call["args"] == {"days": 0}


def test_vectors() -> None:
    assert len(OllamaEmbeddings(model=MODEL, base_url=ADDRESS).embed_query("one")) > 1
