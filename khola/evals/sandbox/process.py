"""The parent's side of the fork server: starts it below the chosen layers, and runs confined processes without ever waiting for one."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import khola
from khola.errors import OurFault
from khola.evals.sandbox.kernel import readable
from khola.evals.sandbox.limits import Limits
from khola.evals.sandbox.wire import MalformedError, cut, frame, parse

_START_S = 30.0
_TICK_S = 0.25
_CHUNK = 1 << 16
_ENTER = "import sys; sys.path.insert(0, sys.argv[1]); from khola.evals.sandbox.server import main; main(sys.argv[2], sys.argv[3])"


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What stands around a confined process."""

    seccomp: bool = False
    """Calls of the kernel are filtered: no processes, no sockets, no signals; no file is changed, and without another layer none opened."""
    landlock: bool = False
    """Only the standard library and shared libraries can be read."""
    bubblewrap: str = ""
    """Path of `bwrap`: namespaces of its own, without a network, with a view of those same files."""

    @property
    def name(self) -> str:
        """Words for results: what is in force, or "none"."""
        parts = ("bubblewrap" if self.bubblewrap else "", "landlock" if self.landlock else "", "seccomp" if self.seccomp else "")
        return "+".join(part for part in parts if part) or "none"


class Stopped(Exception):
    """A run was ended by the parent; `kind` is the verdict that this makes."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(eq=False)
class Child:
    """One confined process, as its parent sees it."""

    process: int
    heard: int
    """Descriptor of what it says."""
    told: int
    """Descriptor of what it is told."""
    printed: int
    """Descriptor of what it prints."""
    text: bytearray = field(default_factory=bytearray)
    waiting: bytearray = field(default_factory=bytearray)
    arrived: bytearray = field(default_factory=bytearray)
    open: set[int] = field(default_factory=set)
    ended: dict[str, Any] | None = None
    """What the server told of its end."""

    def tell(self, message: Any) -> None:
        """Send a message when the process is ready to read it."""
        self.waiting += frame(message)


class Server:
    """A fork server and the processes of at most one run at a time; close it, or use it as a context."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        python = [os.path.realpath(sys.executable), "-X", "utf8", "-P", "-s", "-S", "-B", "-c", _ENTER]
        package = str(Path(khola.__file__).resolve().parents[1])
        command = [*_namespaces(layers.bubblewrap, python[0]), *python, package, str(its.fileno()), json.dumps(asdict(layers))]
        self._control = mine
        self._ended: dict[int, dict[str, Any]] = {}
        self._control.settimeout(_START_S)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program; what it runs is confined before it is read
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PYTHONHASHSEED": "0"},
                pass_fds=(its.fileno(),),
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            mine.close()
            raise OurFault("the sandbox's server does not start with {layers}: {why}", layers=layers.name, why=str(error)) from None
        finally:
            its.close()
        try:
            self._awaited("ready")
        except OSError as error:
            self.close()
            raise OurFault("the sandbox's server does not start with {layers}: {why}", layers=layers.name, why=str(error)) from None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server and everything that runs below it."""
        self._control.close()
        try:
            self._process.wait(_START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def run(self, limits: Limits, count: int) -> Iterator[Run]:
        """Start confined processes; they have ended when the context does.

        Raises:
            OurFault: the server has died.
        """
        run = Run(self, limits)
        try:
            run.children = [self._started(limits) for _ in range(count)]
            yield run
        except (OSError, json.JSONDecodeError) as error:
            raise OurFault("the sandbox's server has died: {why}", why=str(error)) from error
        finally:
            for child in run.children:
                self._end(child)

    def _started(self, limits: Limits) -> Child:
        pipes = [os.pipe() for _ in range(3)]
        (its_heard, told), (heard, its_said), (printed, its_printed) = pipes
        theirs = (its_heard, its_said, its_printed)
        try:
            order = json.dumps({"start": asdict(limits)}).encode()
            self._control.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", theirs))])
            process = self._awaited("started")["started"]
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        for descriptor in (told, heard, printed):
            os.set_blocking(descriptor, False)
        return Child(process, heard, told, printed, open={told, heard, printed})

    def _awaited(self, key: str) -> dict[str, Any]:
        """The next answer of one kind; ends of processes that come before it are noted."""
        while True:
            answer = self._next()
            if key in answer:
                return answer

    def _next(self) -> dict[str, Any]:
        body = self._control.recv(_CHUNK)
        if not body:
            raise OSError("it closed its socket")
        answer: dict[str, Any] = json.loads(body)
        if "ended" in answer:
            self._ended[answer["ended"]] = answer
        return answer

    def _end(self, child: Child) -> None:
        """Kill a process, wait until it is gone, and close what led to it."""
        for descriptor in child.open:
            os.close(descriptor)
        child.open.clear()
        with contextlib.suppress(OSError):
            self.status(child, kill=True)
        self._ended.pop(child.process, None)

    def status(self, child: Child, *, kill: bool = False) -> dict[str, Any]:
        """How a process ended; waits for it, and kills it first if asked."""
        if child.ended is None:
            if kill and child.process not in self._ended:
                self._control.send(json.dumps({"kill": child.process}).encode())
            while child.process not in self._ended:
                self._next()
            child.ended = self._ended.pop(child.process)
        return child.ended


class Run:
    """The processes of one run, read and written as they are ready, up to the end of its time."""

    def __init__(self, server: Server, limits: Limits) -> None:
        self._server = server
        self.limits = limits
        self._started_s = time.monotonic()
        self.children: list[Child] = []

    @property
    def wall_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started_s

    def frames(self) -> Iterator[tuple[Child, bytes | None]]:
        """Messages as they arrive, with their sender; None once a process says no more.

        Raises:
            Stopped: time is up, or a process printed or said too much.
        """
        while True:
            yield from self._turn()

    def _turn(self) -> Iterator[tuple[Child, bytes | None]]:
        """Wait until something can be read or written, at most a tick, and do that."""
        left = self.limits.wall_s - self.wall_s
        if left <= 0:
            raise Stopped("timeout")
        waiting = select.poll()
        for child in self.children:
            for descriptor in child.open:
                if descriptor != child.told or child.waiting:
                    waiting.register(descriptor, select.POLLOUT if descriptor == child.told else select.POLLIN)
        ready = {descriptor for descriptor, _ in waiting.poll(int(min(left, _TICK_S) * 1000) + 1)}
        for child in self.children:
            yield from ((child, body) for body in self._served(child, ready))

    def _served(self, child: Child, ready: set[int]) -> Iterator[bytes | None]:
        """Move what can be moved to and from one process."""
        if child.told in ready & child.open:
            self._give(child)
        if child.printed in ready & child.open:
            self._take(child, child.printed, child.text)
            if len(child.text) > self.limits.output_bytes:
                raise Stopped("output")
        if child.heard in ready & child.open:
            closed = self._take(child, child.heard, child.arrived)
            try:
                while (body := cut(child.arrived, self.limits.message_bytes)) is not None:
                    yield body
            except MalformedError:
                raise Stopped("output") from None
            if closed:
                yield None

    @staticmethod
    def _give(child: Child) -> None:
        try:
            del child.waiting[: os.write(child.told, child.waiting[:_CHUNK])]
        except BlockingIOError:
            return
        except BrokenPipeError:
            child.open.discard(child.told)
            os.close(child.told)

    @staticmethod
    def _take(child: Child, descriptor: int, into: bytearray) -> bool:
        """Read what is there; True when nothing more will come."""
        try:
            more = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        into += more
        if not more:
            child.open.discard(descriptor)
            os.close(descriptor)
        return not more

    def rest(self, child: Child) -> None:
        """Read what a process printed up to its end.

        Raises:
            Stopped: time is up, or it printed too much.
        """
        while child.printed in child.open:
            for _ in self._turn():
                continue

    def status(self, child: Child) -> Mapping[str, Any]:
        """How a process ended; it is killed if it has not."""
        return self._server.status(child, kill=True)


def message(body: bytes) -> dict[str, Any]:
    """A message that must be an object.

    Raises:
        MalformedError: it is none.
    """
    found = parse(body)
    if not isinstance(found, dict):
        raise MalformedError("no object")
    return found


def _namespaces(bubblewrap: str, python: str) -> list[str]:
    """The command before the interpreter's: new namespaces, no capabilities, a view of what an interpreter reads, and nothing writable.

    The server ends when its socket closes; bwrap's own --die-with-parent follows the thread that started it, which may end earlier.
    """
    if not bubblewrap:
        return []
    library = str(Path(os.__file__).resolve().parent)
    folders = [library, "/lib", "/usr/lib", "/lib64", "/usr/lib64", str(Path(khola.__file__).resolve().parent)]
    libraries = [path for path in readable() if path.startswith(str(Path(sys.base_prefix, "lib")) + "/lib")]
    views = [word for path in (python, *folders, *libraries) for word in ("--ro-bind-try", path, path)]
    alone = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    return [bubblewrap, *alone, "--new-session", "--cap-drop", "ALL", *views, "--proc", "/proc", "--dev", "/dev", "--chdir", "/", "--"]
