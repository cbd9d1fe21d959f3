"""What crosses the socket between the server and an engine process.

Frame    a length (four bytes, big end first) and that many bytes of MessagePack: one message.
Trust    Each side takes the other for possibly broken: a frame that is no message is an error of that connection, never more.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from khola.chat.message import ToolCall
from khola.errors import AskedWrong, KholaError, OurFault, remade
from khola.serve.backend import ChatJob, Cost, FinishReason, Piece, TextJob, Token

FRAME_BYTES = 64 << 20
"""Longest frame."""
_LENGTH = struct.Struct(">I")


class Open(msgspec.Struct, frozen=True, tag=True):
    """The first message: which model to load, and how; `Ready` or `Wrong` answers."""

    number: int
    name: str
    settings: dict[str, Any]
    options: dict[str, Any]


class Chat(msgspec.Struct, frozen=True, tag=True):
    """Begin an answer; `Accepted` or `Wrong` answers, then come `Said`s of this number."""

    number: int
    job: ChatJob


class Continue(msgspec.Struct, frozen=True, tag=True):
    """Let a text go on; answered like `Chat`."""

    number: int
    job: TextJob


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Stop whatever has this number; nothing answers."""

    number: int


class Embed(msgspec.Struct, frozen=True, tag=True):
    """Vectors of texts; `Vectors` or `Wrong` answers."""

    number: int
    texts: tuple[str | tuple[int, ...], ...]
    tenant: str


class Encode(msgspec.Struct, frozen=True, tag=True):
    """Ids of a text; `Ids` or `Wrong` answers."""

    number: int
    text: str
    special: bool


class Spell(msgspec.Struct, frozen=True, tag=True):
    """What ids spell; `Text` or `Wrong` answers."""

    number: int
    ids: tuple[int, ...]


class Render(msgspec.Struct, frozen=True, tag=True):
    """The prompt of a conversation; `Rendered` or `Wrong` answers."""

    number: int
    job: ChatJob


class Look(msgspec.Struct, frozen=True, tag=True):
    """Counters and levels; `Figures` answers."""

    number: int


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Refuse what is new; `Drained` answers when nothing runs any more."""

    number: int


Ask = Open | Chat | Continue | Cancel | Embed | Encode | Spell | Render | Look | Drain
"""From the server to an engine process."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded."""

    number: int
    context_tokens: int
    memory_bytes: int
    network: bool
    """Whether the process can still reach a network."""
    begins_with: str = ""
    ends_with: str = ""
    """See `khola.serve.backend.ModelState`."""


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """The answer waits for its turn."""

    number: int


class Rest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What few pieces have."""

    tokens: tuple[Token, ...] = ()
    calls: str = ""
    """Tool calls as JSON: MessagePack could carry neither numbers of more than 64 bits nor broken surrogates."""
    prompt: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None
    cost: Cost | None = None
    complete: bool | None = None
    stopped_by: str = ""


class Said(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """A piece of the answer of this number."""

    number: int
    text: str = ""
    thinking: str = ""
    rest: Rest | None = None

    def piece(self) -> Piece:
        """As dialects get it."""
        rest = self.rest
        if rest is None:
            return Piece(text=self.text, thinking=self.thinking)
        return Piece(
            text=self.text,
            thinking=self.thinking,
            tokens=rest.tokens,
            tool_calls=calls_of(rest.calls),
            prompt=rest.prompt,
            finish_reason=rest.finish_reason,
            cost=rest.cost,
            complete=rest.complete,
            stopped_by=rest.stopped_by,
        )


class Step(msgspec.Struct, frozen=True, tag=True):
    """Everything that one step of the engine said."""

    said: tuple[Said, ...]


class Vectors(msgspec.Struct, frozen=True, tag=True):
    """One vector a text: float32, little end first; and the tokens of all texts."""

    number: int
    rows: tuple[bytes, ...]
    tokens: int


class Ids(msgspec.Struct, frozen=True, tag=True):
    """Ids of a text."""

    number: int
    ids: tuple[int, ...]


class Text(msgspec.Struct, frozen=True, tag=True):
    """What ids spell."""

    number: int
    text: str


class Rendered(msgspec.Struct, frozen=True, tag=True):
    """A prompt."""

    number: int
    text: str
    ids: tuple[int, ...]


class Figures(msgspec.Struct, frozen=True, tag=True):
    """Counters and levels."""

    number: int
    figures: dict[str, float]


class Drained(msgspec.Struct, frozen=True, tag=True):
    """Nothing runs any more, and nothing new is taken."""

    number: int


class Wrong(msgspec.Struct, frozen=True, tag=True):
    """What has this number failed."""

    number: int
    code: str
    text: str
    hint: str
    facts: dict[str, Any]

    def error(self) -> KholaError:
        """As it was raised; one that cannot be said becomes an `OurFault`."""
        made = remade(self.code, self.text, self.hint, self.facts)
        try:
            made.told(), made.hint()
        except (LookupError, ValueError, AttributeError, TypeError):
            return OurFault("an engine process sent an error that cannot be read: {code}", code=self.code)
        return made


class Note(msgspec.Struct, frozen=True, tag=True):
    """A sentence for whoever runs the server, as `tell` hears it."""

    text: str
    facts: dict[str, Any]


Told = Ready | Accepted | Step | Vectors | Ids | Text | Rendered | Figures | Drained | Wrong | Note
"""From an engine process to the server."""


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Frames that are whole by now, without their lengths.

        Raises:
            OurFault: a length is greater than any frame's.
        """
        self._held += data
        at = 0
        try:
            while len(self._held) - at >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(self._held, at)
                if size > FRAME_BYTES:
                    raise OurFault("a frame of {size} bytes was announced; expected at most {most}", size=size, most=FRAME_BYTES)
                end = at + _LENGTH.size + size
                if end > len(self._held):
                    return
                frame = bytes(memoryview(self._held)[at + _LENGTH.size : end])
                at = end
                yield frame
        finally:
            del self._held[:at]


def framed(message: Ask | Told) -> bytes:
    """A message as a frame.

    Raises:
        AskedWrong: it holds what no message can: a number of more than 64 bits, half a surrogate pair; or it is too long.
    """
    try:
        body = msgspec.msgpack.encode(message)
    except (OverflowError, UnicodeEncodeError, TypeError, RecursionError) as error:
        raise AskedWrong("the request holds what cannot be sent on: {why}", why=str(error)[:200]) from error
    if len(body) > FRAME_BYTES:
        raise AskedWrong("{found} bytes are too many for one message; expected at most {most}", found=len(body), most=FRAME_BYTES)
    return _LENGTH.pack(len(body)) + body


def asked(frame: bytes) -> Ask:
    """The message of a frame that came from the server.

    Raises:
        OurFault: it is none.
    """
    return _decoded(frame, _ASKED)


def told(frame: bytes) -> Told:
    """The message of a frame that came from an engine process.

    Raises:
        OurFault: it is none.
    """
    return _decoded(frame, _TOLD)


def wrong(number: int, error: KholaError) -> Wrong:
    """An error on its way; facts that are no plain data go as text."""
    return Wrong(number, error.code, error.text, error.hint_text, {name: plain(value) for name, value in error.facts.items()})


def plain(value: Any) -> Any:
    """A fact as MessagePack can carry it."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(plain(str(key))): plain(item) for key, item in value.items()}
    return plain(str(value))


def calls_as_json(calls: tuple[ToolCall, ...]) -> str:
    """Tool calls as `Rest.calls`."""
    return json.dumps([[call.name, call.arguments, call.id] for call in calls]) if calls else ""


def calls_of(text: str) -> tuple[ToolCall, ...]:
    """Tool calls from `Rest.calls`."""
    return tuple(ToolCall(name=name, arguments=arguments, id=known) for name, arguments, known in json.loads(text)) if text else ()


_ASKED: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(Ask)
_TOLD: msgspec.msgpack.Decoder[Told] = msgspec.msgpack.Decoder(Told)
Message = TypeVar("Message")


def _decoded(frame: bytes, decoder: msgspec.msgpack.Decoder[Message]) -> Message:
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise OurFault("a frame of {size} bytes is no message: {why}", size=len(frame), why=str(error)[:200]) from error
