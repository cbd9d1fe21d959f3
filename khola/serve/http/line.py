"""One request's line to its client: what comes too slowly, is not read, or is hung up on, ends the answer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from starlette.types import Message, Receive, Send

from khola.errors import Cancelled, TooSlow
from khola.serve.access.limits import Limits


class Line:
    """Receives and sends for one request, within the limits."""

    def __init__(self, receive: Receive, send: Send, limits: Limits) -> None:
        self._receive = receive
        self._send = send
        self._limits = limits
        self._begun = 0.0
        self._size = 0
        self._kept: deque[Message] = deque()
        self._late = False
        self._whole = asyncio.Event()
        self._gone = asyncio.Event()
        self.status = 0
        """Of the answer; 0 while none has begun."""
        self.sent_bytes = 0

    @property
    def whole(self) -> bool:
        """Whether the whole request has come in; where not, the connection cannot be used again."""
        return self._whole.is_set() and not self._late

    async def receive(self) -> Message:
        """The next part of the body; once the body is whole, nothing until the client hangs up.

        Raises:
            TooSlow: the body comes in more slowly than the limits say.
            Cancelled: the client hung up in the middle of the body.
        """
        if self._kept:
            return self._kept.popleft()
        if self._whole.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        limits, loop = self._limits, asyncio.get_running_loop()
        self._begun = self._begun or loop.time()
        paid_s = limits.body_grace_s + self._size / limits.body_rate
        try:
            async with asyncio.timeout_at(self._begun + min(paid_s, limits.body_s)):
                message = await self._receive()
        except TimeoutError:
            self._late = True
            self._whole.set()
            raise TooSlow("the body came in too slowly: {found} bytes in {seconds} s", found=self._size, seconds=round(paid_s, 1)) from None
        if message["type"] == "http.disconnect":
            self._whole.set()
            self._gone.set()
            raise Cancelled("the client hung up before its request was whole")
        self._size += len(message.get("body", b""))
        if not message.get("more_body", False):
            self._whole.set()
        return message

    async def expect_nothing(self) -> None:
        """Take the end of a body that does not exist, so that it is seen when the client hangs up; it is still there to be read."""
        self._kept.append(await self.receive())

    async def take_in(self, most_bytes: int) -> None:
        """Take the whole body in, or more of it than may be read; it is still there to be read.

        Raises:
            TooSlow, Cancelled: as in `receive`.
        """
        taken: list[Message] = []
        while not self._whole.is_set() and self._size <= most_bytes:
            taken.append(await self.receive())
        self._kept.extend(taken)

    async def gone(self) -> None:
        """Return when the client hangs up; the body is left to whoever reads it."""
        await self._whole.wait()
        while not self._gone.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone.set()

    async def send(self, message: Any) -> None:
        """Send a part of the answer.

        Raises:
            Cancelled: nobody read for as long as the limits allow.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.sent_bytes += len(message.get("body", b""))
        try:
            async with asyncio.timeout(self._limits.reader_s):
                await self._send(message)
        except TimeoutError:
            raise Cancelled("the client read nothing for {seconds} s", seconds=self._limits.reader_s) from None
