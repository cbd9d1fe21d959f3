"""One model asked over a socket: what comes is prepared, submitted, stepped and told.

```
reading thread   frames in; cancels at once, hands everything else on
four threads     render, tokenise, compile grammars, submit: a long prompt holds up neither running answers nor short prompts
stepping thread  steps the engine; everything that one step said leaves in one frame
```
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from khola.api.model import Model
from khola.api.stream import Prepared
from khola.engine.engine import typed
from khola.engine.request import Event, Failed, Finished, Request
from khola.errors import Busy, KholaError, OurFault
from khola.serve.engines import wire
from khola.serve.engines.answering import Answer, Embeddings, joined, prepared_chat, prepared_text, rendered

PREPARING = 2
"""Threads that make requests ready, and as many for those that take long: with forms to compile, or long texts to cut into tokens."""
LONG_BYTES = 1 << 16
"""Of a message whose texts take long."""
MOST_PREPARING = 256
"""Messages that may wait for them; one of a tenant that has none there is taken all the same."""
FAULT_EXIT = 70
"""Exit status after a fault of the thread that steps."""


class Link:
    """The socket; any thread may send."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._turn = threading.Lock()
        self.frames = self._receive()
        """What comes, frame by frame, until the other side is gone; raises `OurFault` when it is not frames."""

    def send(self, message: wire.Told) -> None:
        """One message; waits while the other side does not read. Nothing happens when it is gone: the reading thread sees that."""
        data = wire.framed(message)
        with self._turn:
            try:
                self._socket.sendall(data)
            except OSError:
                return

    def _receive(self) -> Iterator[bytes]:
        frames = wire.Frames()
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                return
            if not data:
                return
            yield from frames.feed(data)


class Worker:
    """Answers what comes over the link with one model.

    Args:
        link: to the server.
        model: loaded; the worker alone steps its engine.
    """

    def __init__(self, link: Link, model: Model) -> None:
        self._link = link
        self._model = model
        self._turn = threading.Lock()
        self._preparing: dict[int, str] = {}
        """Numbers of messages that are being read, with their tenants."""
        self._requests: dict[int, list[Request]] = {}
        self._members: dict[Request, Answer | Embeddings] = {}
        self._drain: int | None = None
        self._quick = ThreadPoolExecutor(PREPARING, thread_name_prefix="quick")
        self._slow = ThreadPoolExecutor(PREPARING, thread_name_prefix="slow")
        self._stepping = threading.Thread(target=self._steps, name="step", daemon=True)

    def run(self) -> None:
        """Answer until the server is gone.

        Raises:
            OurFault: what came was not frames.
        """
        self._stepping.start()
        try:
            for frame in self._link.frames:
                try:
                    self._take(wire.asked(frame), long=len(frame) > LONG_BYTES)
                except KholaError as error:
                    self._link.send(wire.wrong(0, error))
        finally:
            self._quick.shutdown(wait=False, cancel_futures=True)
            self._slow.shutdown(wait=False, cancel_futures=True)
            self._model.close()

    def _take(self, ask: wire.Ask, *, long: bool) -> None:
        """One message, on the reading thread."""
        if isinstance(ask, wire.Cancel):
            self._cancel(ask.number)
        elif isinstance(ask, wire.Drain):
            with self._turn:
                self._drain = ask.number
            self._tell_if_drained()
        else:
            with self._turn:
                tenant = tenant_of(ask)
                full = len(self._preparing) >= MOST_PREPARING and (not tenant or tenant in self._preparing.values())
                refused = full or self._drain is not None
                if not refused:
                    self._preparing[ask.number] = tenant
            if refused:
                self._link.send(wire.wrong(ask.number, _busy(full=full, most=MOST_PREPARING)))
            else:
                (self._slow if long or compiles(ask) else self._quick).submit(self._prepare, ask)

    def _prepare(self, ask: wire.Ask) -> None:
        """Answer one message, or make its requests and submit them; on a thread of the pool."""
        try:
            if ask.number in self._preparing:
                self._do(ask)
        except Exception as error:
            self._forget(ask.number)
            self._link.send(wire.wrong(ask.number, typed(error)))
        finally:
            with self._turn:
                self._preparing.pop(ask.number, None)
            self._tell_if_drained()

    def _do(self, ask: wire.Ask) -> None:
        model, number = self._model, ask.number
        if isinstance(ask, wire.Chat):
            self._begin(number, prepared_chat(model, ask.job))
        elif isinstance(ask, wire.Continue):
            self._begin(number, prepared_text(model, ask.job))
        elif isinstance(ask, wire.Embed):
            requests = [model.prepared_embedding(text, ask.tenant) for text in ask.texts]
            self._submit(number, requests, Embeddings(number, requests))
        elif isinstance(ask, wire.Encode):
            ids = model.ids(ask.text) if ask.special else model.loaded.tokenizer.encode(ask.text)
            self._link.send(wire.Ids(number, tuple(ids)))
        elif isinstance(ask, wire.Spell):
            self._link.send(wire.Text(number, model.loaded.tokenizer.decode(ask.ids, skip_control=False)))
        elif isinstance(ask, wire.Render):
            text, ids = rendered(model, ask.job)
            self._link.send(wire.Rendered(number, text, tuple(ids)))
        elif isinstance(ask, wire.Look):
            self._link.send(wire.Figures(number, {name: float(value) for name, value in asdict(model.stats()).items()}))
        else:
            raise OurFault("an engine process opens one model, and it is open")

    def _begin(self, number: int, prepared: Prepared) -> None:
        self._submit(number, [prepared.request], Answer(number, prepared, self._model.loaded.tokenizer))
        self._link.send(wire.Accepted(number))

    def _submit(self, number: int, requests: list[Request], member: Answer | Embeddings) -> None:
        """Give requests to the engine; when it refuses one, none stays."""
        with self._turn:
            if number not in self._preparing:
                return
            self._requests[number] = requests
            self._members.update(dict.fromkeys(requests, member))
        for request in requests:
            self._model.engine.submit(request)
        with self._turn:
            given_up = [request for request in requests if number not in self._requests]
        # Cancelled in between, when the engine did not know them yet; those that have ended by themselves are no harm.
        for request in given_up:
            self._model.engine.cancel(request)

    def _cancel(self, number: int) -> None:
        with self._turn:
            self._preparing.pop(number, None)
        self._forget(number)
        self._tell_if_drained()

    def _forget(self, number: int) -> None:
        """End what has this number; its events are no longer told."""
        with self._turn:
            requests = self._requests.pop(number, [])
            for request in requests:
                self._members.pop(request, None)
        for request in requests:
            self._model.engine.cancel(request)

    def _tell_if_drained(self) -> None:
        with self._turn:
            drained = self._drain is not None and not self._requests and not self._preparing
            number, self._drain = (self._drain, -1) if drained else (None, self._drain)
        if number is not None and number >= 0:
            self._link.send(wire.Drained(number))

    def _steps(self) -> None:
        """Step until the engine is closed. A fault ends the process, which everybody notices: without steps all would wait for ever."""
        try:
            self._step_on()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(FAULT_EXIT)

    def _step_on(self) -> None:
        engine = self._model.engine
        while not engine.closed:
            engine.wait()
            said: dict[int, wire.Said] = {}
            for event in engine.step():
                self._tell(event, said)
            if said:
                self._send(tuple(said.values()))
            if self._drain is not None:
                self._tell_if_drained()

    def _send(self, said: tuple[wire.Said, ...]) -> None:
        """What a step said, in one frame; where that is longer than a frame may be, one by one, and what alone is longer fails."""
        try:
            self._link.send(wire.Step(said))
        except KholaError as error:
            if len(said) > 1:
                for one in said:
                    self._send((one,))
            else:
                self._forget(said[0].number)
                self._link.send(wire.wrong(said[0].number, error))

    def _tell(self, event: Event, said: dict[int, wire.Said]) -> None:
        """Add what an event says to what the step has said."""
        member = self._members.get(event.request)
        if member is None:
            return
        try:
            if isinstance(member, Embeddings):
                if (vectors := member.take(event)) is not None:
                    self._end(member.number)
                    self._link.send(vectors)
                return
            more = member.said(event)
        except Exception as error:
            self._forget(member.number)
            if member.number in said:
                self._send((said.pop(member.number),))
            self._link.send(wire.wrong(member.number, typed(error)))
            return
        if more is not None:
            before = said.get(member.number)
            said[member.number] = more if before is None else joined(before, more)
        if isinstance(event, Finished | Failed):
            self._end(member.number)

    def _end(self, number: int) -> None:
        with self._turn:
            for request in self._requests.pop(number, []):
                self._members.pop(request, None)


def tenant_of(ask: wire.Ask) -> str:
    """Whose message it is; empty where that plays no part."""
    if isinstance(ask, wire.Chat | wire.Continue):
        return ask.job.tenant
    return ask.tenant if isinstance(ask, wire.Embed) else ""


def compiles(ask: wire.Ask) -> bool:
    """Whether a message asks for a form, or offers tools: both are compiled in a process of its own."""
    if isinstance(ask, wire.Chat):
        return bool(ask.job.form or ask.job.tools)
    return isinstance(ask, wire.Continue) and bool(ask.job.form)


def _busy(*, full: bool, most: int) -> Busy:
    if full:
        return Busy("{most} requests wait to be read", hint="ask again when some of them have been answered", most=most)
    return Busy("the model is being unloaded", hint="ask again in a moment")
