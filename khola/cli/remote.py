"""A model of a running server, with what `khola chat` needs of a `khola.api.Model`; spoken to by OpenAI's chat route."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from khola.api.answer import Answer, Delta
from khola.cards.catalogue import cards
from khola.chat.message import Message
from khola.engine.request import FinishReason, Sampling, Usage
from khola.errors import AskedWrong, NoSource, UnknownOption
from khola.fetch.server import connected, object_of, refused, silent

if TYPE_CHECKING:
    import httpx2

    from khola.settings import Settings

LOCAL = {
    "context": None, "interpreter": "auto", "cache": "auto", "stream": False, "second_token": False, "precise": False,
    "trust_template": False,
}  # fmt: skip
"""Options that say how to load a model, at the values that ask for nothing."""
UNTOLD = {"logprobs": None, "speculate": "auto", "regex": None, "choice": None}
"""Options that the chat route has no place for, at the values that ask for nothing."""
_ENDS: dict[str, FinishReason] = {"stop": "stop", "tool_calls": "stop", "length": "length"}


@contextmanager
def reached(server: str, name: str, settings: Settings, parameters: Mapping[str, Any]) -> Iterator[tuple[Remote, float]]:
    """A model of a server, and the seconds that it took to find it.

    Args:
        server: its address.
        name: of the model; empty takes the only one that it offers.
        parameters: of the command line.
    Raises:
        UnknownOption: an option that a server cannot be asked for.
        NoSource: the server does not answer.
        AskedWrong: the address is none, or no model is named and there are several.
    """
    for option, neutral in {**LOCAL, **UNTOLD}.items():
        if parameters.get(option) not in (neutral, None, [], ()):
            said = "--" + option.replace("_", "-")
            if option in LOCAL:
                raise UnknownOption("{option} is for models that this program loads", hint="give it to `khola serve`", option=said)
            raise UnknownOption("{option} cannot be asked of a server", hint="leave --server or {option} out", option=said)
    start = time.perf_counter()
    with connected(server, settings) as client:
        model = Remote(client, name or _only_model(client), parameters)
        yield model, time.perf_counter() - start


class Remote:
    """One model of a server.

    Args:
        client: of the server.
        name: of the model.
        parameters: of the command line; what it does not say is left to the server.
    """

    def __init__(self, client: httpx2.Client, name: str, parameters: Mapping[str, Any]) -> None:
        self._client, self.name = client, name
        self.card = cards().get(name)
        self.context_tokens = self.card.context if self.card else 0
        self._given = [field for field in Sampling.__struct_fields__ if parameters.get(field) not in (None, [], ()) and field not in UNTOLD]

    @property
    def server(self) -> str:
        """Its address."""
        return str(self._client.base_url).rstrip("/")

    def stream(self, messages: Sequence[Message], *, sampling: Sampling, thinking: bool | None = None, **form: Any) -> RemoteStream:
        """The answer to a conversation, piece by piece; arguments as those of `khola.api.Model.stream`.

        Raises:
            KholaError: what the server refuses; of the kind that its status says.
            NoSource: it does not answer.
        """
        body: dict[str, Any] = {"model": self.name, "stream": True, "stream_options": {"include_usage": True}}
        body["messages"] = [_turn(message) for message in messages]
        body |= {field: getattr(sampling, field) for field in self._given}
        wishes = {"enable_thinking": thinking, "thinking_budget": form.get("thinking_tokens")}
        if kept := {name: value for name, value in wishes.items() if value is not None}:
            body["chat_template_kwargs"] = kept
        body |= _form(form)
        return RemoteStream(self._client, body)

    def chat(self, messages: Sequence[Message], *, sampling: Sampling, thinking: bool | None = None, **form: Any) -> Answer:
        """The answer in one piece; arguments and errors as in `stream`."""
        stream = self.stream(messages, sampling=sampling, thinking=thinking, **form)
        try:
            deltas = list(stream)
        finally:
            stream.close()
        last = deltas[-1]
        assert last.finish_reason is not None and last.usage is not None
        is_json = bool(form.get("schema") or form.get("json_object"))
        return Answer(
            text="".join(delta.text for delta in deltas),
            thinking="".join(delta.thinking for delta in deltas),
            finish_reason=last.finish_reason,
            usage=last.usage,
            complete=last.finish_reason == "stop" if is_json else None,
            is_json=is_json,
        )


class RemoteStream(Iterator[Delta]):
    """Pieces of one answer; the last one has `finish_reason` and `usage`, whose times are those that were seen here."""

    def __init__(self, client: httpx2.Client, body: dict[str, Any]) -> None:
        import httpx2

        self._server = str(client.base_url).rstrip("/")
        self._began = time.perf_counter()
        self._first: float | None = None
        self._reason: FinishReason | None = None
        self._ended = False
        try:
            self._answer = client.send(client.build_request("POST", "/v1/chat/completions", json=body), stream=True)
            if self._answer.status_code != 200:
                self._answer.read()
        except httpx2.HTTPError as wrong:
            raise silent(self._server, wrong) from wrong
        if self._answer.status_code != 200:
            raise refused(self._server, self._answer.status_code, self._answer.content)
        self._lines = self._answer.iter_lines()

    def __next__(self) -> Delta:
        """The next piece that says something.

        Raises:
            KholaError: the server told of an error, or stopped before the end.
        """
        import httpx2

        if self._ended:
            raise StopIteration
        try:
            for line in self._lines:
                if line.startswith("data: ") and (delta := self._read(line.removeprefix("data: "))) is not None:
                    return delta
        except httpx2.HTTPError as wrong:
            raise silent(self._server, wrong) from wrong
        raise NoSource("{server} stopped before the answer was whole", hint="ask again", server=self._server)

    def _read(self, data: str) -> Delta | None:
        """What one event says; the last delta waits for the counts, which come in an event of their own."""
        if data == "[DONE]":
            return self._end({}) if self._reason else None
        event = object_of(data, self._server)
        if "error" in event:
            raise refused(self._server, 500, data.encode())
        if event.get("usage"):
            return self._end(event["usage"])
        choice: dict[str, Any] = next(iter(event.get("choices") or ()), {})
        self._reason = _ENDS.get(choice["finish_reason"], "stop") if choice.get("finish_reason") else self._reason
        delta = choice.get("delta") or {}
        text, thinking = delta.get("content") or "", delta.get("reasoning_content") or delta.get("reasoning") or ""
        if not (text or thinking):
            return None
        self._first = self._first or time.perf_counter()
        return Delta(text=text, thinking=thinking)

    def _end(self, counts: Mapping[str, Any]) -> Delta:
        self._ended = True
        now = time.perf_counter()
        first = self._first or now
        usage = Usage(
            prompt_tokens=counts.get("prompt_tokens", 0),
            cached_tokens=(counts.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            answer_tokens=counts.get("completion_tokens", 0),
            wait_s=0.0,
            prefill_s=first - self._began,
            decode_s=now - first,
        )
        return Delta(finish_reason=self._reason or "stop", usage=usage)

    def close(self) -> None:
        """Stop the answer; does nothing when it has ended."""
        self._answer.close()


def _only_model(client: httpx2.Client) -> str:
    """The model that a server offers, where it offers one."""
    import httpx2

    server = str(client.base_url).rstrip("/")
    try:
        answer = client.get("/v1/models")
    except httpx2.HTTPError as wrong:
        raise silent(server, wrong) from wrong
    if answer.status_code != 200:
        raise refused(server, answer.status_code, answer.content)
    found = [str(model["id"]) for model in object_of(answer.text, server).get("data") or ()]
    if len(found) != 1:
        known = ", ".join(found) or "-"
        raise AskedWrong("{server} offers {count} models", hint="name one of them: {known}", server=server, count=len(found), known=known)
    return found[0]


def _turn(message: Message) -> dict[str, Any]:
    thought = {"reasoning_content": message.thinking} if message.thinking else {}
    return {"role": message.role, "content": message.content, **thought}


def _form(form: Mapping[str, Any]) -> dict[str, Any]:
    """The form of an answer, as the chat route takes it."""
    if (schema := form.get("schema")) is not None:
        name = {"name": "answer", "schema": _schema(schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": name}}
    if (grammar := form.get("grammar")) is not None:
        return {"grammar": _text(grammar)}
    return {"response_format": {"type": "json_object"}} if form.get("json_object") else {}


def _schema(path: Path) -> Any:
    """A JSON Schema of the user's; whether it is one, the server says."""
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as wrong:
        raise AskedWrong("{file} is no JSON: {why}", file=str(path), why=str(wrong)) from None


def _text(path: Path) -> str:
    """A file of the user's."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as wrong:
        raise AskedWrong("{file} cannot be read: {why}", file=str(path), why=wrong.strerror) from wrong
    except UnicodeDecodeError as wrong:
        raise AskedWrong("{file} is not UTF-8: byte {at}", file=str(path), at=wrong.start) from None
