"""A teacher behind a server that speaks OpenAI's API: khola's own, or another.

Texts are scored by the completions route (`echo` with `logprobs`), answers written by the chat route. A server does not tell which files it
runs, so a cache of its answers is one of an address and a name.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from khola.errors import AskedWrong, BadText, Busy, NoSource, TooMany
from khola.fetch.server import object_of, refused, silent
from khola.train.opinion import UNKNOWN, Opinion, Question, scored, written
from khola.train.teacher import Wanted

if TYPE_CHECKING:
    import httpx2

AT_ONCE = 8
"""Questions that are with the server at the same time."""
TRIES = 5
WAIT_S = 0.5
"""Before the second try; doubled before each further one."""
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")


class Spelling(Protocol):
    """What is needed of the student's tokenizer to find its tokens by what they spell."""

    @property
    def size(self) -> int:
        """Ids run from 0 up to here."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""


class ServedTeacher:
    """One model of a server.

    Args:
        client: of the server.
        name: of the model there.
        wanted: what is told.
        student: whose tokens the alternatives are numbered by; needed where `wanted.top` is not 0.
        wait_s: before the second try of a question.
    Raises:
        AskedWrong: the mass of boundary tokens is wanted, which no server tells.
    """

    def __init__(self, client: httpx2.Client, name: str, wanted: Wanted, student: Spelling | None = None, wait_s: float = WAIT_S) -> None:
        if wanted.boundary:
            raise AskedWrong(
                "a server does not tell how likely a word is to end, so chunks cannot be debiased",
                hint="set distil.debias to 0, or run the teacher on this machine",
            )
        self._client, self._name, self._wanted, self._wait_s = client, name, wanted, wait_s
        self._ids = _by_spelling(student) if student is not None and wanted.top else {}
        self.at_once = AT_ONCE

    @property
    def server(self) -> str:
        """Its address."""
        return str(self._client.base_url).rstrip("/")

    def header(self) -> dict[str, Any]:
        """Address and name, and what is told."""
        return {"teacher": self._name, "server": self.server, "top": self._wanted.top, "sampling": dict(self._wanted.sampling)}

    def answers(self, questions: Sequence[Question]) -> list[Opinion]:
        """Asks for all of them side by side.

        Raises:
            NoSource: the server does not answer.
            BadText: its tokens do not spell the text.
            AskedWrong: it cannot be asked this.
            KholaError: what the server refuses; of the kind that its status says.
        """
        with ThreadPoolExecutor(min(AT_ONCE, max(1, len(questions)))) as threads:
            return list(threads.map(self._answer, questions))

    def _answer(self, question: Question) -> Opinion:
        if question.text:
            return self._score(question)
        body = {"model": self._name, **self._wanted.sampling, "seed": question.seed}
        if not question.messages:
            choice = self._choice("/v1/completions", {**body, "prompt": question.prompt})
            return written(str(choice.get("text") or ""), choice.get("finish_reason") == "stop")
        turns = [{"role": message.role, "content": message.content} for message in question.messages]
        choice = self._choice("/v1/chat/completions", {**body, "messages": turns})
        message = choice.get("message") or {}
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        return written(str(message.get("content") or ""), choice.get("finish_reason") == "stop", str(thought))

    def _score(self, question: Question) -> Opinion:
        if question.messages:
            raise AskedWrong(
                "a server cannot be asked how likely an answer in a conversation is: only it knows how the conversation is written",
                hint="give rows with text, or with prompt and completion, or run the teacher on this machine",
            )
        body = {"model": self._name, "prompt": question.prompt + question.text, "echo": True, "logprobs": self._wanted.top}
        # One token of an answer is the least that every server gives; it is cut off with all that lies behind the text.
        choice = self._choice("/v1/completions", {**body, "max_tokens": 1, "temperature": 0})
        told = choice.get("logprobs") or {}
        tokens, logprobs = told.get("tokens"), told.get("token_logprobs")
        if not isinstance(tokens, list) or not isinstance(logprobs, list) or len(tokens) != len(logprobs):
            raise BadText("{server} does not tell the log-probabilities of a prompt", hint="ask another server", server=self.server)
        first, lengths, text = _pieces(tokens, question, self.server)
        kept = slice(first, first + len(lengths))
        told_N = np.array([np.nan if one is None else one for one in logprobs[kept]], np.float64)
        ids_NK, top_NK = self._alternatives((told.get("top_logprobs") or [])[kept], len(lengths))
        return scored(text, lengths, told_N, None, ids_NK, top_NK)

    def _alternatives(self, told: Sequence[Mapping[str, float] | None], size: int) -> tuple[np.ndarray, np.ndarray]:
        """The best tokens of every place by the student's numbers, best first; -1 where it has none or several that look so."""
        ids_NK = np.full((size, self._wanted.top), UNKNOWN, np.int32)
        top_NK = np.full((size, self._wanted.top), -np.inf)
        for place, found in enumerate(told):
            best = sorted((found or {}).items(), key=lambda pair: -pair[1])[: self._wanted.top]
            for rank, (token, logprob) in enumerate(best):
                ids_NK[place, rank], top_NK[place, rank] = self._ids.get(_spelled(token), UNKNOWN), logprob
        return ids_NK, top_NK

    def _choice(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The first choice of an answer, asked for again where the server is busy or the connection breaks."""
        for attempt in range(TRIES):
            try:
                answer = self._asked(route, body)
                choices = answer.get("choices")
                if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
                    raise BadText("{server} sent an answer without choices", server=self.server)
                return choices[0]
            except (Busy, TooMany, NoSource):
                if attempt == TRIES - 1:
                    raise
            time.sleep(self._wait_s * 2**attempt)
        raise AssertionError("the last try returns or raises")

    def _asked(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        import httpx2

        try:
            answer = self._client.post(route, json=dict(body))
        except httpx2.HTTPError as wrong:
            raise silent(self.server, wrong) from wrong
        if answer.status_code != 200:
            raise refused(self.server, answer.status_code, answer.content)
        return object_of(answer.text, self.server)


def _pieces(tokens: Sequence[str], question: Question, server: str) -> tuple[int, list[int], str]:
    """The first token of the text, the bytes of each of its tokens, and the text as the server read it.

    Raises:
        BadText: the tokens spell something else, or do not tell their bytes.
    """
    spelled = [_spelled(token) for token in tokens]
    joined = b"".join(spelled)
    for form in (None, "NFC"):
        whole = question.prompt + question.text if form is None else unicodedata.normalize(form, question.prompt + question.text)
        text = question.text if form is None else unicodedata.normalize(form, question.text)
        raw = whole.encode()
        # A token for the beginning of a text is told by some servers, and spells nothing of it.
        for begin in range(min(2, len(spelled))):
            start = len(b"".join(spelled[:begin]))
            if joined[start:].startswith(raw) and whole.endswith(text):
                return _cut(spelled, begin, len(raw), len(raw) - len(text.encode()), text)
    raise BadText(
        "the tokens that {server} tells do not spell the text that it was asked about",
        hint="it may hide the bytes of tokens that end inside a letter; run the teacher on this machine",
        server=server,
    )


def _cut(spelled: Sequence[bytes], begin: int, size: int, before: int, text: str) -> tuple[int, list[int], str]:
    """Of tokens that spell a prompt and a text, those of the text; a token across both counts for the text with its part of it."""
    at, first, lengths = 0, begin, []
    for place in range(begin, len(spelled)):
        start, at = at, at + len(spelled[place])
        if start >= size:
            break
        if at <= before:
            first = place + 1
            continue
        lengths.append(min(at, size) - max(start, before))
    return first, lengths, text


def _spelled(token: str) -> bytes:
    """The bytes of a token as servers show it; one that ends inside a letter by the names of its bytes, the way OpenAI writes it."""
    if (found := _BYTES.fullmatch(token)) is not None:
        return bytes.fromhex(found[1].replace("\\x", ""))
    return token.encode("utf-8", "surrogatepass")


def _by_spelling(student: Spelling) -> dict[bytes, int]:
    """Ids of tokens by their bytes, without those that look alike."""
    found: dict[bytes, int] = {}
    twins: set[bytes] = set()
    for index in range(student.size):
        raw = student.token_bytes(index)
        if raw in found:
            twins.add(raw)
        found[raw] = index
    return {raw: index for raw, index in found.items() if raw not in twins}
