"""Completions, embeddings, models and tokens, as OpenAI's clients and lm-evaluation-harness ask for them."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import pytest
from asking import COST, Client, Scripted

from khola.serve.access.limits import Limits
from khola.serve.backend import Piece, TextJob, Token
from khola.serve.dialects.openai import completions

TEXT = "/v1/completions"


def asked(**fields: Any) -> completions.Asked:
    return completions.asked({"model": "m", "prompt": "a", **fields}, Limits())


@pytest.mark.parametrize(
    ("prompt", "jobs"),
    [("a b", ["a b"]), (["a", "b"], ["a", "b"]), ([1, 2], [(1, 2)]), ([[1], [2, 3]], [(1,), (2, 3)]), ("", [""])],
)
def test_prompts(prompt: Any, jobs: list[Any]) -> None:
    assert [job.prompt for job in asked(prompt=prompt).jobs] == jobs


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"best_of": 9}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = Client().refused(TEXT, **{"model": "m", "prompt": "a", **fields})
    assert (error["status"], error["param"]) == (400, param)


def test_lengths_and_scores_reach_the_engine() -> None:
    (job,) = asked(echo=True, logprobs=2, max_tokens=0).jobs
    assert isinstance(job, TextJob) and job.prompt_logprobs == 2 and job.sampling == {"max_tokens": 0, "logprobs": 2}
    (job,) = asked().jobs
    assert job.prompt_logprobs is None and job.sampling == {"max_tokens": 16}


def test_who_scores_a_prompt_gets_one_token_even_where_the_text_ends() -> None:
    (job,) = asked(echo=True, logprobs=1, max_tokens=1, temperature=0).jobs
    assert job.sampling["ignore_end"] is True
    assert "ignore_end" not in asked(echo=True, logprobs=1, max_tokens=2).jobs[0].sampling


def test_echo_with_the_prompts_logprobs() -> None:
    ko = "ক".encode()
    pieces = (
        Piece(
            prompt=(
                Token(9, b""),
                Token(1, ko[:2], -1.0, ((1, ko[:2], -1.0), (2, b"x", -2.0))),
                Token(3, ko[2:], -0.5, ((4, b"y", -0.25),)),
            )
        ),
        Piece(text="!", tokens=(Token(5, b"!", -0.125, ((5, b"!", -0.125),)),)),
        Piece(finish_reason="length", cost=COST),
    )
    client = Client(Scripted(*pieces))
    (choice,) = client.post(TEXT, model="m", prompt="ক", echo=True, logprobs=1, max_tokens=1)["choices"]
    assert choice["text"] == "ক!" and choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "tokens": ["", "bytes:\\xe0\\xa6", "bytes:\\x95", "!"],
        "token_logprobs": [None, -1.0, -0.5, -0.125],
        "top_logprobs": [None, {"bytes:\\xe0\\xa6": -1.0}, {"y": -0.25, "bytes:\\x95": -0.5}, {"!": -0.125}],
        "text_offset": [0, 0, 0, 1],
    }
    chunks = client.events(TEXT, model="m", prompt="ক", echo=True, logprobs=1, max_tokens=1)[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "ক!"
    for name, values in choice["logprobs"].items():
        assert [value for chunk in chunks for value in chunk["choices"][0]["logprobs"][name]] == values
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_several_prompts_and_answers_keep_their_order() -> None:
    told = Client().post(TEXT, model="m", prompt=["a b", "c"], n=2, echo=True)
    assert [(choice["index"], choice["text"]) for choice in told["choices"]] == [(0, "a ba b"), (1, "a ba b"), (2, "cc"), (3, "cc")]
    assert told["usage"]["prompt_tokens"] == 3 and told["usage"]["completion_tokens"] == 6
    assert told["object"] == "text_completion" and told["id"].startswith("cmpl-")


def test_the_best_of_several() -> None:
    class Luck(Scripted):
        async def start(self, job: Any, model: str) -> Any:
            luck = len(self.jobs)
            self.pieces = (Piece(text=str(luck), tokens=(Token(1, b"x", -abs(luck - 2.0)),)), Piece(finish_reason="stop", cost=COST))
            return await super().start(job, model)

    backend = Luck()
    told = Client(backend).post(TEXT, model="m", prompt="a", n=2, best_of=4)
    assert [choice["text"] for choice in told["choices"]] in (["2", "1"], ["2", "3"])
    assert [choice["logprobs"] for choice in told["choices"]] == [None, None] and len(backend.jobs) == 4
    assert told["usage"]["completion_tokens"] == 4 * COST.answer_tokens


def test_embeddings() -> None:
    client = Client()
    floats = client.post("/v1/embeddings", model="m", input=["a", "b c"])
    coded = client.post("/v1/embeddings", model="m", input=["a", "b c"], encoding_format="base64")
    assert [one["index"] for one in floats["data"]] == [0, 1] and floats["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    for plain, packed in zip(floats["data"], coded["data"], strict=True):
        raw = base64.b64decode(packed["embedding"])
        assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(plain["embedding"], rel=1e-6)
    assert client.post("/v1/embeddings", model="m", input=[1, 2], dimensions=64)["data"][0]["embedding"]
    for fields, param in (({"dimensions": 8}, "dimensions"), ({"encoding_format": "int8"}, "encoding_format"), ({"input": []}, "input")):
        assert client.refused("/v1/embeddings", **{"model": "m", "input": "a", **fields})["param"] == param


def test_models() -> None:
    client = Client()
    (model,) = client.ask("GET", "/v1/models").json()["data"]
    assert {"id", "object", "created", "owned_by"} <= set(model) and model["owned_by"] != "ollama"
    assert client.ask("GET", f"/v1/models/{model['id']}").json() == model
    missing = client.ask("GET", "/v1/models/hf.co/org/name:tag")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


def test_tokens_there_and_back() -> None:
    client = Client()
    assert client.ask("GET", "/tokenizer_info").json().keys() == {"bos_token", "eos_token", "pad_token", "chat_template"}
    told = client.post("/tokenize", prompt="a b", add_special_tokens=False)
    assert told["count"] == 2 and client.post("/tokenize", content="a b")["tokens"] == told["tokens"]
    assert client.post("/detokenize", tokens=told["tokens"]) == {"prompt": "a b", "content": "a b"}
    for body in ({}, {"prompt": "a", "content": "b"}):
        assert client.refused("/tokenize", **body)["param"] == "prompt"


@pytest.mark.parametrize("path", [TEXT, "/v1/chat/completions", "/v1/responses", "/v1/responses/input_tokens", "/v1/embeddings"])
def test_a_request_without_a_body_is_refused_and_not_waited_for(path: str) -> None:
    async def run() -> int:
        left, statuses = [{"type": "http.request", "body": b"", "more_body": False}], []

        async def receive() -> dict[str, Any]:
            return left.pop() if left else await asyncio.get_running_loop().create_future()  # the client waits

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        headers = [(b"host", b"127.0.0.1:11500")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
        async with asyncio.timeout(2):
            await Client().app({**scope, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 11500), "scheme": "http"}, receive, send)
        return statuses[0]

    assert asyncio.run(run()) == 400
