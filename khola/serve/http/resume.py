"""Streams that outlive their connection: what was sent is kept, and a reader that was cut off goes on where it was.

A client that sends `X-Conversation-Id` with a request that is answered by a stream has that stream kept: the answer is made to its end
whether somebody reads or not, and `GET /v1/stream?conv_id=…&from=…` reads from any byte that is still there. The names are llama-server's,
so that one client works with both; the bytes are exactly those of the first answer, in whatever dialect it was.

Source   https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README-dev.md, "Resumable streaming"
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from khola.errors import AskedWrong, NotFound, TooMany

HEADER = "x-conversation-id"
TAPE_BYTES = 4 << 20
"""Of one stream; when there are more, the first ones go."""
ALL_BYTES = 64 << 20
"""Of all streams; when there are more, those that ended first go."""
OWNER_TAPES = 16
"""Streams of one owner that are kept, running ones and ended ones together."""
KEPT_S = 300.0
"""How long a stream is kept behind its end."""
ID_LETTERS = 256


class Tape:
    """The bytes of one stream, as far as they are kept."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.began = clock()
        self.ended: float | None = None
        self.dropped = 0
        """Bytes of the beginning that are gone."""
        self.headers: list[tuple[bytes, bytes]] = []
        self._kept = bytearray()
        self._clock = clock
        self._changed = asyncio.Event()
        self._made: asyncio.Task[None] | None = None

    @property
    def total(self) -> int:
        """Bytes that were sent, kept or not."""
        return self.dropped + len(self._kept)

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return len(self._kept)

    def record(self, answer: ASGIApp, scope: Scope) -> None:
        """Let an answer be made, for as long as it takes, whoever reads."""
        self._made = asyncio.create_task(self._make(answer, scope))

    async def _make(self, answer: ASGIApp, scope: Scope) -> None:
        try:
            await answer(scope, _nobody_leaves, self._take)
        finally:
            self.ended = self._clock()
            self._changed.set()

    async def _take(self, message: Any) -> None:
        """What the answer would send."""
        if message["type"] == "http.response.start":
            self.headers = list(message.get("headers", ()))
            return
        self._kept += message.get("body", b"")
        if (more := len(self._kept) - TAPE_BYTES) > 0:
            del self._kept[:more]
            self.dropped += more
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self, place: int) -> bytes:
        """The bytes behind a place; waits while there are none, and is empty at the end.

        Raises:
            AskedWrong: they are not kept any more.
        """
        while True:
            if place < self.dropped:
                raise AskedWrong(
                    "the stream is kept from byte {first}; {found} is gone", hint="ask again from the start", param="from",
                    first=self.dropped, found=place,
                )  # fmt: skip
            if place < self.total or self.ended is not None:
                return bytes(self._kept[place - self.dropped :])
            await self._changed.wait()

    async def stop(self) -> None:
        """End the answer."""
        if self._made is not None and not self._made.done():
            self._made.cancel()
            await asyncio.wait({self._made})


class Player:
    """A stream from one of its bytes on, as an ASGI application; its reader may leave at any time."""

    def __init__(self, tape: Tape, place: int) -> None:
        self._tape, self._place = tape, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        place = self._place
        part = await self._tape.read(place)
        await send({"type": "http.response.start", "status": 200, "headers": self._tape.headers})
        while part:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            place += len(part)
            part = await self._tape.read(place)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Tapes:
    """The streams that are kept, each under its owner and the name that the owner gave it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._tapes: dict[tuple[str, str], Tape] = {}

    async def keep(self, owner: str, name: str, answer: ASGIApp, scope: Scope) -> Player:
        """Record an answer and read it from its start; an earlier one of the same name is stopped.

        Raises:
            AskedWrong: the name is empty, too long, or has letters that a header cannot have.
            TooMany: the owner has as many streams running as may be.
        """
        _checked(name)
        await self.forget(owner, name)
        self._make_room(owner)
        tape = Tape(self._clock)
        self._tapes[owner, name] = tape
        tape.record(answer, scope)
        return Player(tape, 0)

    def find(self, owner: str, name: str) -> Tape:
        """A stream of this owner's.

        Raises:
            NotFound: there is none, or it is somebody else's, which is the same to whoever asks.
        """
        self._forget_old()
        tape = self._tapes.get((owner, name))
        if tape is None:
            raise NotFound("no stream of this name is kept", hint="streams are kept for {seconds} s behind their end", seconds=int(KEPT_S))
        return tape

    def play(self, owner: str, name: str, place: int) -> Player:
        """A stream from a byte on.

        Raises:
            NotFound: as `find`.
            AskedWrong: the byte is not kept any more, or was never sent.
        """
        tape = self.find(owner, name)
        if not tape.dropped <= place <= tape.total:
            raise AskedWrong(
                "from is {found}; the stream is kept from byte {first} to {total}",
                param="from",
                found=place,
                first=tape.dropped,
                total=tape.total,
            )
        return Player(tape, place)

    async def forget(self, owner: str, name: str) -> None:
        """Stop a stream and drop what is kept of it; does nothing where there is none."""
        if tape := self._tapes.pop((owner, name), None):
            await tape.stop()

    async def close(self) -> None:
        """Stop all streams."""
        for owner, name in list(self._tapes):
            await self.forget(owner, name)

    def _forget_old(self) -> None:
        now = self._clock()
        for key, tape in list(self._tapes.items()):
            if tape.ended is not None and now - tape.ended > KEPT_S:
                del self._tapes[key]

    def _make_room(self, owner: str) -> None:
        """Drop ended streams, first the old ones, then as many as are too many."""
        self._forget_old()
        ended = sorted((tape.ended, key) for key, tape in self._tapes.items() if tape.ended is not None)
        for _, key in ended:
            if sum(tape.size for tape in self._tapes.values()) > ALL_BYTES - TAPE_BYTES or (
                key[0] == owner and self._owned(owner) >= OWNER_TAPES
            ):
                del self._tapes[key]
        if self._owned(owner) >= OWNER_TAPES or sum(tape.size for tape in self._tapes.values()) > ALL_BYTES - TAPE_BYTES:
            raise TooMany(
                "{found} streams of yours are running and kept", hint="end one: DELETE /v1/stream?conv_id=…", found=self._owned(owner)
            )

    def _owned(self, owner: str) -> int:
        return sum(key[0] == owner for key in self._tapes)


def _checked(name: str) -> None:
    if not (0 < len(name) <= ID_LETTERS and name.isascii() and name.isprintable()):
        raise AskedWrong(
            "X-Conversation-Id has {found} letters; expected 1 to {limit} of ASCII", param="conv_id", found=len(name), limit=ID_LETTERS
        )


async def _nobody_leaves() -> Any:
    """What a recorded answer hears of its client: nothing."""
    await asyncio.Event().wait()
