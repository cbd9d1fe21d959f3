"""Anthropic's and Ollama's clients as they meet the server."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx2
import pytest
import regex

from khola.errors import NoRoom, OurFault
from khola.serve.backend import ChatJob, Piece
from tests.serve.others.pieces import last
from tests.serve.others.server import Scripted, ask, events, service

BENGALI = "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি। চিরদিন তোমার আকাশ, তোমার বাতাস, আমার প্রাণে বাজায় বাঁশি॥ ক্ষুদ্র শ্রদ্ধা ঊর্ধ্ব 👩‍👩‍👧"
GRAPHEMES = regex.findall(r"\X", BENGALI)
ASKED = [{"role": "user", "content": "hi"}]
ANTHROPIC = {"model": "m", "max_tokens": 100, "messages": ASKED}
OLLAMA = {"model": "m", "messages": ASKED}


def bengali(**more: Any) -> Any:
    return service(Scripted([*(Piece(text=letter) for letter in GRAPHEMES), last()]), **more)


def anthropic_texts(raw: str) -> list[str]:
    return [data["delta"]["text"] for name, data in events(raw) if name == "content_block_delta"]


def chat_texts(raw: str) -> list[str]:
    return [json.loads(line)["message"]["content"] for line in raw.splitlines()][:-1]


def generate_texts(raw: str) -> list[str]:
    return [json.loads(line)["response"] for line in raw.splitlines()][:-1]


ROADS = [
    ("/v1/messages", {**ANTHROPIC, "stream": True}, anthropic_texts),
    ("/api/chat", OLLAMA, chat_texts),
    ("/api/generate", {"model": "m", "prompt": "hi"}, generate_texts),
]


@pytest.mark.parametrize(("path", "body", "texts"), ROADS)
@pytest.mark.parametrize("raw_utf8", [False, True])
def test_bengali_comes_letter_by_letter(path: str, body: Any, texts: Any, raw_utf8: bool) -> None:
    assert texts(ask(bengali(raw_utf8=raw_utf8), path, body).text) == GRAPHEMES


@pytest.mark.parametrize(("path", "body", "texts"), ROADS)
def test_no_cut_of_the_bytes_loses_a_letter(path: str, body: Any, texts: Any) -> None:
    """Even for a client that decodes every part that it receives on its own, as many do."""
    raw, chance = ask(bengali(), path, body).content, random.Random(7)
    for _ in range(500):
        cuts = sorted(chance.sample(range(len(raw)), 20))
        parts = [raw[a:b].decode("utf-8") for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        assert "".join(parts).encode() == raw
    assert "".join(texts(raw.decode("ascii"))) == BENGALI


def test_a_message() -> None:
    answer = ask(service(), "/v1/messages", {**ANTHROPIC, "metadata": {"user_id": "u"}})
    body = answer.json()
    assert (answer.status_code, body["content"], body["stop_reason"]) == (200, [{"type": "text", "text": "hi"}], "end_turn")
    assert body["id"].startswith("msg_") and body["usage"]["output_tokens"] == 1
    assert answer.headers["x-khola-ignored"] == "metadata"


def test_message_events_are_named_and_ignored_keys_told() -> None:
    answer = ask(service(), "/v1/messages", {**ANTHROPIC, "stream": True, "service_tier": "auto"})
    assert [name for name, _ in events(answer.text)] == [
        "message_start", "ping", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-khola-ignored"] == "service_tier"


def test_a_tool_that_must_be_called() -> None:
    tool = {"name": "weather", "input_schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}
    body = ask(service(), "/v1/messages", {**ANTHROPIC, "tools": [tool], "tool_choice": {"type": "any"}}).json()
    (block,) = body["content"]
    assert (block["type"], block["name"], block["input"], body["stop_reason"]) == ("tool_use", "weather", {"n": 0}, "tool_use")


def test_a_stop_sequence_is_named() -> None:
    asked = {**ANTHROPIC, "messages": [{"role": "user", "content": "one two three"}], "stop_sequences": ["three", "two"]}
    body = ask(service(), "/v1/messages", asked).json()
    assert (body["content"][0]["text"].strip(), body["stop_reason"], body["stop_sequence"]) == ("one", "stop_sequence", "two")


def test_tokens_are_counted() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "one two three"}], "system": "four"}
    assert ask(service(), "/v1/messages/count_tokens", asked).json() == {"input_tokens": 4}


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [("/v1/messages", {**ANTHROPIC, "stream": True}, "text/event-stream"), ("/api/chat", OLLAMA, "application/x-ndjson")],
)
def test_errors_before_and_behind_the_first_piece(path: str, body: Any, kind: str) -> None:
    early = ask(service(Scripted([NoRoom("full")])), "/api/chat", OLLAMA)
    assert (early.status_code, early.json(), early.headers["retry-after"]) == (503, {"error": "full"}, "2")
    backend = Scripted([Piece(text="a"), OurFault("a secret path")])
    late = ask(service(backend), path, body)
    assert late.status_code == 200 and late.headers["content-type"].startswith(kind)
    end = events(late.text)[-1][1] if "event" in kind else json.loads(late.text.splitlines()[-1])
    assert "error" in end and "secret" not in late.text and backend.given[0].closed


def test_a_refused_body_has_the_shape_of_its_dialect() -> None:
    answer = ask(service(), "/v1/messages", {"model": "m", "messages": []})
    told = answer.json()
    assert (answer.status_code, told["type"], told["error"]["type"]) == (400, "error", "invalid_request_error")
    assert told["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    assert list(ask(service(), "/api/chat", {"model": 1}).json()) == ["error"]


def lines(answer: httpx2.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_ollama_whole_and_in_lines() -> None:
    whole = ask(service(), "/api/chat", {**OLLAMA, "stream": False}).json()
    assert whole["message"] == {"role": "assistant", "content": "hi"} and whole["done"] and whole["eval_count"] == 1
    told = lines(ask(service(), "/api/generate", {"model": "m:latest", "prompt": "a b"}))
    assert "".join(line["response"] for line in told) == "a b" and told[-1]["done_reason"] == "stop"
    assert {line["model"] for line in told} == {"m"}


def test_a_request_without_a_prompt_loads_and_unloads() -> None:
    served = service()
    (told,) = lines(ask(served, "/api/generate", {"model": "echo", "keep_alive": 0}))
    assert (told["done"], told["done_reason"]) == (True, "unload")
    assert ask(served, "/api/ps", method="GET").json() == {"models": []}
    whole = ask(served, "/api/chat", {"model": "echo", "messages": [], "stream": False}).json()
    assert (whole["done_reason"], whole["message"]["content"]) == ("load", "")
    (running,) = ask(served, "/api/ps", method="GET").json()["models"]
    assert (running["name"], running["context_length"]) == ("echo", 131_072)


def test_without_an_administrators_key_nothing_is_unloaded_or_pulled() -> None:
    served, plain = service(), {"authorization": ""}
    answer = ask(served, "/api/chat", {**OLLAMA, "model": "echo", "keep_alive": 0}, headers=plain)
    assert answer.status_code == 403 and "administrator" in answer.json()["error"]
    assert ask(served, "/api/pull", {"model": "m"}, headers=plain).status_code == 401
    assert len(ask(served, "/api/ps", method="GET", headers=plain).json()["models"]) == 1


def test_num_ctx_bounds_the_answer_or_is_refused() -> None:
    backend = Scripted([last()])
    asked = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
    for options, most in [({"num_ctx": 10}, 7), ({"num_ctx": 10, "num_predict": 2}, 2)]:
        assert ask(service(backend), "/api/chat", {**asked, "options": options}).status_code == 200
        job = backend.jobs[-1]
        assert isinstance(job, ChatJob) and job.sampling["max_tokens"] == most
    for window, words in [(3, "3"), (200_000, "131072")]:
        answer = ask(service(backend), "/api/chat", {**asked, "options": {"num_ctx": window}})
        assert answer.status_code == 400 and "maximum context length" in answer.json()["error"] and words in answer.json()["error"]


def test_vectors_have_length_one() -> None:
    body = ask(service(), "/api/embed", {"model": "m", "input": ["a", "b"], "dimensions": 5}).json()
    assert [len(vector) for vector in body["embeddings"]] == [5, 5]
    assert all(abs(sum(number * number for number in vector) - 1) < 1e-12 for vector in body["embeddings"])
    assert body["prompt_eval_count"] == 2
    assert len(ask(service(), "/api/embeddings", {"model": "m", "prompt": "a"}).json()["embedding"]) == 64


def test_models_are_listed_and_shown() -> None:
    (model,) = ask(service(), "/api/tags", method="GET").json()["models"]
    assert (model["name"], model["modified_at"]) == ("echo", "2026-01-01T00:00:00.000000Z")
    shown = ask(service(), "/api/show", {"model": "echo:latest"}).json()
    assert shown["model_info"]["khola.context_length"] == 131_072 and shown["capabilities"] == ["completion"]
    assert ask(service(), "/api/show", {"model": "other"}).status_code == 404
    assert "version" in ask(service(), "/api/version", method="GET").json()


def test_what_a_card_tells() -> None:
    from khola.serve.engines.echo import Echo

    shown = ask(service(Echo(offered=["qwen3-0.6b"])), "/api/show", {"model": "qwen3-0.6b"}).json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["details"]["parameter_size"] and shown["details"]["family"] == "qwen3" and "Apache" in shown["license"]


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/api/delete"), ("POST", "/api/copy"), ("POST", "/api/create"), ("POST", "/api/push")]
)
def test_what_khola_does_not_do_is_refused_with_the_reason(method: str, path: str) -> None:
    answer = ask(service(), path, {"model": "m"}, method=method)
    assert answer.status_code == 403 and "khola" in answer.json()["error"]
