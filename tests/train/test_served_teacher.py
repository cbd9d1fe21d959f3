"""A teacher behind a server: khola's own tells what the model itself would, and others are understood or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from khola.chat.message import Message
from khola.errors import AskedWrong, BadText, Busy, NoSource
from khola.fetch.server import connected
from khola.train.opinion import Question
from khola.train.served_teacher import ServedTeacher
from khola.train.teacher import LocalTeacher, Wanted
from tests.conformance.serving import served
from tests.serve.engines.rig import direct, settings_of, tiny_models

Told = dict[str, Any]
QUESTION = Question(prompt="It ", text="is so.")


def asked_of(answer: Callable[[str, Told], tuple[int, Told]], **wanted: Any) -> ServedTeacher:
    """A teacher whose server is a function of route and body."""

    def respond(request: httpx2.Request) -> httpx2.Response:
        status, body = answer(request.url.path, json.loads(request.content))
        return httpx2.Response(status, json=body)

    client = httpx2.Client(base_url="http://127.0.0.1:1", transport=httpx2.MockTransport(respond))
    return ServedTeacher(client, "big", Wanted(**wanted), Letters(), wait_s=0.001)


class Letters:
    """A student of three tokens; two of them look alike."""

    size = 4

    def token_bytes(self, token_id: int) -> bytes:
        return [b"is", b" so", b"twin", b"twin"][token_id]


def scores(tokens: list[str], logprobs: list[float | None], top: list[Told | None] | None = None) -> tuple[int, Told]:
    return 200, {"choices": [{"logprobs": {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top or [None] * len(tokens)}}]}


def test_tokens_of_the_text_alone() -> None:
    bodies: list[Told] = []

    def answer(route: str, body: Told) -> tuple[int, Told]:
        bodies.append({"route": route, **body})
        best = [None, None, {"is": -0.5, "twin": -1.0, "x": -2.0}, {" so": -0.25}, None, None]
        return scores(["<s>", "It ", "is", " so", ".", "!"], [None, -1.0, -0.5, -0.25, -2.0, -3.0], best)

    teacher = asked_of(answer, top=2)
    (opinion,) = teacher.answers([QUESTION])
    assert bodies == [
        {"route": "/v1/completions", "model": "big", "prompt": "It is so.", "echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}
    ]
    assert opinion.text == "is so."
    assert opinion.lengths_N.tolist() == [2, 3, 1]
    assert opinion.logprobs_N.tolist() == [-0.5, -0.25, -2.0]
    # Of two tokens that look alike nobody knows which one was meant.
    assert opinion.top_ids_NK.tolist() == [[0, -1], [1, -1], [-1, -1]]
    assert opinion.top_NK[0].tolist() == [-0.5, -1.0]


def test_a_token_across_prompt_and_text() -> None:
    teacher = asked_of(lambda route, body: scores(["It i", "s so", "."], [None, -1.0, -2.0]))
    (opinion,) = teacher.answers([QUESTION])
    assert opinion.lengths_N.tolist() == [1, 4, 1]
    assert np.isnan(opinion.logprobs_N[0])


def test_bytes_of_letters_and_a_normal_form() -> None:
    # The server reads U+09DF as two letters, in tokens that end inside them.
    tokens = ["bytes:\\xe0\\xa6", "bytes:\\xaf\\xe0\\xa6\\xbc", "!"]
    teacher = asked_of(lambda route, body: scores(tokens, [None, -1.0, -2.0]))
    (opinion,) = teacher.answers([Question(text="\u09df!")])
    assert opinion.text == "\u09af\u09bc!"
    assert opinion.lengths_N.tolist() == [2, 4, 1]


def test_tokens_that_spell_something_else() -> None:
    teacher = asked_of(lambda route, body: scores(["It ", "\ufffd", "\ufffd"], [None, -1.0, -2.0]))
    with pytest.raises(BadText, match="do not spell the text"):
        teacher.answers([QUESTION])


def test_a_server_that_tells_nothing() -> None:
    with pytest.raises(BadText, match="does not tell the log-probabilities"):
        asked_of(lambda route, body: (200, {"choices": [{"text": "!", "logprobs": None}]})).answers([QUESTION])
    with pytest.raises(BadText, match="an answer without choices"):
        asked_of(lambda route, body: (200, {"object": "error"})).answers([QUESTION])


def test_what_a_server_cannot_be_asked() -> None:
    with pytest.raises(AskedWrong, match="how likely a word is to end"):
        asked_of(lambda route, body: (200, {}), boundary=True)
    turns = (Message(role="user", content="?"),)
    with pytest.raises(AskedWrong, match="only it knows how the conversation is written"):
        asked_of(lambda route, body: (200, {})).answers([Question(messages=turns, text="!")])


def test_answers_and_thoughts() -> None:
    def answer(route: str, body: Told) -> tuple[int, Told]:
        if route == "/v1/completions":
            return 200, {"choices": [{"text": body["prompt"] + "!", "finish_reason": "length"}]}
        said = body["messages"][-1]["content"] + str(body["seed"]) + str(body["temperature"])
        return 200, {"choices": [{"message": {"content": said, "reasoning_content": "hm"}, "finish_reason": "stop"}]}

    teacher = asked_of(answer, sampling={"temperature": 0.5})
    turns = (Message(role="user", content="?"),)
    one, two = teacher.answers([Question(messages=turns, seed=7), Question(prompt="x")])
    assert (one.text, one.thinking, one.whole) == ("?70.5", "hm", True)
    assert (two.text, two.thinking, two.whole) == ("x!", "", False)


def test_a_busy_server_is_asked_again() -> None:
    tries: list[int] = []

    def answer(route: str, body: Told) -> tuple[int, Told]:
        tries.append(1)
        return (503, {"error": {"message": "full"}}) if len(tries) < 3 else scores(["It ", "is so."], [None, -1.0])

    (opinion,) = asked_of(answer).answers([QUESTION])
    assert len(tries) == 3
    assert opinion.logprobs_N.tolist() == [-1.0]
    with pytest.raises(Busy, match="full"):
        asked_of(lambda route, body: (503, {"error": {"message": "full"}})).answers([QUESTION])


def test_a_server_that_is_not_there() -> None:
    def answer(route: str, body: Told) -> tuple[int, Told]:
        raise httpx2.ConnectError("refused")

    with pytest.raises(NoSource, match="does not answer: refused"):
        asked_of(answer).answers([QUESTION])


@pytest.mark.slow
def test_kholas_server_tells_what_the_model_does(tmp_path: Path) -> None:
    texts = ["about a cab: ab\n\t", "আব, বাড়ি", "a"]
    (file,) = tiny_models(tmp_path, "one")
    with served(file, home=str(tmp_path / "khola")) as address, connected(address, settings_of(tmp_path)) as client:
        there = ServedTeacher(client, "one", Wanted(sampling={"max_tokens": 5, "temperature": 0.0}))
        questions = [Question(prompt="It is ", text=text) for text in texts]
        told = there.answers([*questions, Question(prompt="ab")])
    with direct(tmp_path, "one") as model:
        here = LocalTeacher(model, Wanted(sampling={"max_tokens": 5, "temperature": 0.0})).answers([*questions, Question(prompt="ab")])
    for left, right in zip(told[:-1], here[:-1], strict=True):
        # The end of a text is known here only: a server is not asked for it.
        assert left.lengths_N.tolist() == right.lengths_N[:-1].tolist()
        np.testing.assert_allclose(left.logprobs_N.astype(float), right.logprobs_N[:-1].astype(float), rtol=0.02, atol=0.02)
    assert told[-1].text == here[-1].text
    assert told[-1].whole == here[-1].whole
