"""An engine process as the server sees it: started, asked, drained, and mourned when it dies.

Everything here runs on one event loop, which is also the thread whose end would end the processes (`khola.serve.engines.alone`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, final

from khola.errors import Cancelled, EngineDied, KholaError, NoRoom
from khola.serve.backend import ChatJob, Job, Piece
from khola.serve.engines import wire
from khola.settings import Settings, bare_environment

BUFFER_BYTES = 1 << 20
"""Of an answer that nobody reads, what is kept before it is cancelled; table 5.2 of the limits."""
LAST_LINES = 20
LINE_CHARACTERS = 400
LAST_S = 2.0
"""How long a process whose socket has ended may take to end itself."""
LAST_WORDS_S = 0.2
"""How long the end of its standard error may come behind its own."""
_POLL_S = 0.002

Tell = Callable[..., None]


class Channel:
    """Pieces of one answer between the process that makes them and the task that reads them."""

    __slots__ = ("accepted", "error", "held", "over", "pieces", "waiter")

    def __init__(self, accepted: asyncio.Future[None]) -> None:
        self.accepted = accepted
        self.pieces: deque[Piece] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.error: KholaError | None = None
        self.held = 0
        """About how many bytes wait."""
        self.over = False
        """The last piece has come, or the error that came instead."""

    def push(self, piece: Piece) -> None:
        """One more piece."""
        self.pieces.append(piece)
        self.over = piece.finish_reason is not None
        if not self.accepted.done():
            self.accepted.set_result(None)
        if self.waiter is None:
            self.held += weight(piece)
        self._wake()

    def fail(self, error: KholaError) -> None:
        """No piece will come any more."""
        self.error, self.over = error, True
        if not self.accepted.done():
            self.accepted.set_exception(error)
            # Whoever began the answer may be gone by now.
            self.accepted.exception()
        self._wake()

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


@final
class Answer:
    """The pieces of one answer: `khola.serve.backend.Pieces`. Letting it go unread stops it, too."""

    def __init__(self, channel: Channel, cancel: Callable[[], None]) -> None:
        self._channel = channel
        self._cancel = cancel
        self._over = False
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> Answer:
        """Itself."""
        return self

    async def __anext__(self) -> Piece:
        """The next piece.

        Raises:
            EngineDied: the process ended before the answer.
            Cancelled: the reader was so slow that more than `BUFFER_BYTES` waited, or the server stops.
            KholaError: the answer failed.
        """
        channel = self._channel
        while not self._over:
            if channel.pieces:
                piece = channel.pieces.popleft()
                channel.held = max(0, channel.held - weight(piece)) if channel.pieces else 0
                self._over = piece.finish_reason is not None
                return piece
            if channel.error is not None:
                self._over = True
                raise channel.error
            channel.waiter = self._loop.create_future()
            try:
                await channel.waiter
            finally:
                channel.waiter = None
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop; does nothing when the answer has ended."""
        self._stop()

    def _stop(self) -> None:
        if not self._over:
            self._over = True
            self._channel.pieces.clear()
            if not self._channel.over:
                self._cancel()

    def __del__(self) -> None:
        """Stop what nobody reads any more; garbage may be collected on any thread."""
        if not self._over and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop)


@final
class EngineProcess(asyncio.Protocol):
    """One process and what was asked of it. Made by `started`.

    Args:
        name: of its model, as it is offered.
        ended: called once, when it has ended.
        tell: hears sentences for whoever runs the server.
    """

    def __init__(self, name: str, ended: Callable[[EngineProcess], None], tell: Tell) -> None:
        self.name = name
        self.answered = 0
        """Answers that came to their end."""
        self.how = ""
        """How it ended; empty while it runs."""
        self.ready: wire.Ready | None = None
        self._ended = ended
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._frames = wire.Frames()
        self._channels: dict[int, Channel] = {}
        self._calls: dict[int, asyncio.Future[wire.Told]] = {}
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._said_all = asyncio.Event()
        self._farewell: KholaError | None = None
        self._burial: asyncio.Task[None] | None = None
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Done when the process has ended and everybody has been told."""

    @classmethod
    async def started(
        cls,
        name: str,
        *,
        source: str,
        settings: Settings,
        options: Mapping[str, Any],
        ended: Callable[[EngineProcess], None],
        tell: Tell,
    ) -> EngineProcess:
        """A process that has loaded its model.

        Args:
            source: what `khola.api.load` calls the model.
            options: of `khola.api.load`.
        Raises:
            EngineDied: it ended while it loaded.
            KholaError: the model cannot be loaded.
        """
        engine = cls(name, ended, tell)
        try:
            await engine._start()
            number = next(engine._numbers)
            answer = await engine._call(wire.Open(number, source, sent(settings), dict(options)), number)
            assert isinstance(answer, wire.Ready)
            engine.ready = answer
        except BaseException as error:
            engine.kill(None if isinstance(error, EngineDied) else Cancelled("{model} was unloaded", model=name))
            if engine._process is not None:
                await asyncio.shield(engine.gone)
            raise
        return engine

    @property
    def serves(self) -> bool:
        """Whether it can be asked."""
        return self.ready is not None and not self.how and self._farewell is None and self._transport is not None

    @property
    def expected(self) -> bool:
        """Whether it was to end."""
        return self._farewell is not None

    @property
    def busy(self) -> bool:
        """Whether anything is asked of it."""
        return bool(self._channels or self._calls)

    @property
    def pid(self) -> int:
        """Of the process."""
        return 0 if self._process is None else self._process.pid

    @property
    def last_lines(self) -> tuple[str, ...]:
        """What it wrote to its standard error last."""
        return tuple(self._lines)

    async def answer(self, job: Job) -> Answer:
        """Begin an answer; returns when the model has accepted the job.

        Raises:
            KholaError: it has not, or the process died meanwhile.
        """
        number = next(self._numbers)
        channel = Channel(self._loop.create_future())
        self._channels[number] = channel
        try:
            self._send(wire.Chat(number, job) if isinstance(job, ChatJob) else wire.Continue(number, job))
            await channel.accepted
        except BaseException:
            self._cancel(number)
            raise
        return Answer(channel, lambda: self._cancel(number))

    async def call(self, make: Callable[[int], wire.Ask]) -> wire.Told:
        """Ask a question and give its answer.

        Args:
            make: the message, given its number.
        Raises:
            KholaError: it cannot be answered, or the process died meanwhile.
        """
        number = next(self._numbers)
        return await self._call(make(number), number)

    async def drain(self) -> None:
        """Refuse what is new, let running answers end, then end the process."""
        if self.serves:
            try:
                await self.call(wire.Drain)
            except EngineDied:
                pass
            else:
                self.kill(Cancelled("{model} was unloaded", model=self.name), softly=True)
        await asyncio.shield(self.gone)

    def kill(self, farewell: KholaError | None = None, *, softly: bool = False) -> None:
        """End the process at once.

        Args:
            farewell: what its running answers are told; by default that it ended.
            softly: close its socket only, at which it ends by itself.
        """
        self._farewell = self._farewell or farewell
        if self._transport is not None:
            self._transport.abort()
        if self._process is not None and not softly:
            self._process.kill()

    def data_received(self, data: bytes) -> None:
        """Bytes of the process; whatever is wrong with them is its end, not the server's."""
        try:
            for frame in self._frames.feed(data):
                self._take(wire.told(frame))
        except Exception as error:
            self._lines.append(f"{type(error).__name__}: {error}"[:LINE_CHARACTERS])
            self.kill()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ready."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """The process has ended, or its socket was closed."""
        self._transport = None
        if self._burial is None:
            self._burial = self._loop.create_task(self._bury())

    async def _start(self) -> None:
        """Start the program with one end of a socket pair as its standard input."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "khola.serve.engines.worker"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=environment(),
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise NoRoom("no process can be started for {model}: {why}", model=self.name, why=str(error)) from error
        assert self._process.stderr is not None
        await self._loop.connect_read_pipe(lambda: _Lines(self._lines, self._said_all), self._process.stderr)
        await self._loop.create_unix_connection(lambda: self, sock=ours)

    def _send(self, message: wire.Ask) -> None:
        if self._transport is None or self.how:
            raise self._death()
        self._transport.write(wire.framed(message))

    async def _call(self, message: wire.Ask, number: int) -> wire.Told:
        future: asyncio.Future[wire.Told] = self._loop.create_future()
        self._calls[number] = future
        try:
            self._send(message)
            return await future
        except asyncio.CancelledError:
            self._cancel(number)
            raise
        finally:
            self._calls.pop(number, None)

    def _cancel(self, number: int) -> None:
        if (channel := self._channels.pop(number, None)) is not None:
            channel.accepted.cancel()
        if self._transport is not None and not self.how:
            self._transport.write(wire.framed(wire.Cancel(number)))

    def _take(self, message: wire.Told) -> None:
        if isinstance(message, wire.Step):
            for said in message.said:
                self._deliver(said)
        elif isinstance(message, wire.Note):
            self._tell(message.text, **message.facts)
        elif isinstance(message, wire.Accepted):
            channel = self._channels.get(message.number)
            if channel is not None and not channel.accepted.done():
                channel.accepted.set_result(None)
        elif isinstance(message, wire.Wrong):
            error = message.error()
            if (channel := self._channels.pop(message.number, None)) is not None:
                channel.fail(error)
            elif (call := self._calls.get(message.number)) is not None and not call.done():
                call.set_exception(error)
            else:
                self._lines.append(error.told()[:LINE_CHARACTERS])
        elif (call := self._calls.get(message.number)) is not None and not call.done():
            call.set_result(message)

    def _deliver(self, said: wire.Said) -> None:
        channel = self._channels.get(said.number)
        if channel is None:
            return
        channel.push(said.piece())
        if channel.over:
            self.answered += 1
            del self._channels[said.number]
        elif channel.held > BUFFER_BYTES:
            channel.pieces.clear()
            self._cancel(said.number)
            channel.fail(
                Cancelled(
                    "the answer was stopped: {bytes} bytes of it waited for their reader",
                    hint="read answers while they are made, or ask for shorter ones",
                    bytes=channel.held,
                )
            )

    async def _bury(self) -> None:
        """Learn how the process ended, and tell everybody who waits."""
        process = self._process
        assert process is not None
        until = self._loop.time() + LAST_S
        while process.poll() is None:
            if self._loop.time() > until:
                process.kill()
            await asyncio.sleep(_POLL_S)
        self.how = _how(process.returncode)
        with suppress(TimeoutError):
            # A program that it started may live on with the same standard error.
            await asyncio.wait_for(self._said_all.wait(), LAST_WORDS_S)
        error = self._farewell or self._death()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.fail(error)
        for call in list(self._calls.values()):
            if not call.done():
                call.set_exception(error)
        self._ended(self)
        self.gone.set_result(None)

    def _death(self) -> EngineDied:
        return EngineDied(
            "the engine of {model} ended: {how}",
            hint="ask again: a new one is started for the next request",
            model=self.name,
            how=self.how or "its socket was closed",
        )


class _Lines(asyncio.Protocol):
    """Keeps the last lines of a stream."""

    def __init__(self, lines: deque[str], ended: asyncio.Event) -> None:
        self._lines = lines
        self._ended = ended
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-LINE_CHARACTERS:]
        self._keep(lines)

    def connection_lost(self, error: Exception | None) -> None:
        self._keep([self._rest] if self._rest else [])
        self._ended.set()

    def _keep(self, lines: list[bytes]) -> None:
        self._lines.extend(line.decode("utf-8", "replace")[:LINE_CHARACTERS] for line in lines)


def weight(piece: Piece) -> int:
    """About how many bytes a piece takes while it waits; a prompt that is told does not count: it comes once, and was asked for."""
    return 4 * (len(piece.text) + len(piece.thinking)) + sum(64 + 64 * len(token.top) for token in piece.tokens) + 256


def sent(settings: Settings) -> dict[str, Any]:
    """Settings as an engine process gets them: paths as text, and no secret."""
    left_out = ("hub_token", "caches", "home", "user_home")
    plain = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in left_out}
    return {**plain, "home": str(settings.home), "user_home": str(settings.user_home), "offline": True}


def environment() -> dict[str, str]:
    """Of an engine process: nothing secret, and the way to this khola where it is not installed."""
    import khola

    root = Path(khola.__file__).resolve().parents[1]
    bare = bare_environment()
    if root.name not in ("site-packages", "dist-packages"):
        bare["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), bare.get("PYTHONPATH"))))
    return bare


def _how(status: int) -> str:
    """How a process ended, by its exit status."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
