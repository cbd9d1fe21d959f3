"""The fork server: a clean interpreter that holds nothing worth reading, and gives a fresh confined process in a few milliseconds.

Run as a program of its own, never imported by what uses the sandbox: `python -P -s -S -B -c ... FOLDER SOCKET LAYERS`. It sees neither
programs nor tests: it forks first, and the new process reads its orders itself, after it has given up everything. Every order is a JSON
object with descriptors beside it; every answer is a JSON object.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import importlib
import json
import os
import random
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from khola.evals.sandbox import kernel
from khola.evals.sandbox.filters import filter_of, machine
from khola.evals.sandbox.roles import ROLES
from khola.evals.sandbox.wire import read_frame

HEARD, SAID = 3, 4
_LOOK_S = 0.02
_HIGH = 100
_PRELOADED = (
    *(
        "_strptime",
        "encodings.idna",
        "abc",
        "array",
        "ast",
        "base64",
        "binascii",
        "bisect",
        "calendar",
        "cmath",
        "collections",
        "collections.abc",
    ),
    *("contextlib", "copy", "dataclasses", "datetime", "decimal", "difflib", "enum", "fractions", "functools", "gc", "hashlib", "heapq"),
    *("hmac", "html", "inspect", "io", "itertools", "json", "keyword", "locale", "math", "numbers", "operator", "pprint"),
    *("queue", "random", "re", "secrets", "statistics", "string", "struct", "textwrap", "threading", "time", "timeit", "traceback"),
    *("types", "typing", "unicodedata", "uuid", "warnings", "weakref", "zlib"),
)


def main(place: str, layers: str) -> None:
    """Serve until the other end of the socket is closed.

    Args:
        place: number of the socket's descriptor.
        layers: JSON object of `Layers`.
    """
    sys.path[:] = [path for path in sys.path if path != sys.argv[1]]
    asked = json.loads(layers)
    with contextlib.suppress(ImportError):  # a Python that was built without some of them
        for name in _PRELOADED:
            importlib.import_module(name)
    server = _Server(socket.socket(fileno=int(place)), asked)
    server.answer({"ready": os.getpid()})
    server.serve()


class _Server:
    def __init__(self, control: socket.socket, asked: dict[str, Any]) -> None:
        os.chdir("/")
        self._control = control
        self._own = os.getpid()
        self._rules = kernel.landlock_rules(kernel.readable()) if asked["landlock"] else None
        numbers = machine() if asked["seccomp"] else None
        confined = bool(asked["landlock"] or asked["bubblewrap"])
        self._filter = filter_of(numbers, opening=confined) if numbers else None
        self._running: dict[int, tuple[int, int]] = {}

    def answer(self, told: dict[str, Any]) -> None:
        self._control.send(json.dumps(told).encode())

    def serve(self) -> None:
        while True:
            waiting = select.poll()
            waiting.register(self._control, select.POLLIN)
            for watched, _ in self._running.values():
                waiting.register(watched, select.POLLIN)
            ready = {place for place, _ in waiting.poll(int(_LOOK_S * 1000) if self._running else None)}
            for process, (watched, most) in list(self._running.items()):
                if watched in ready:
                    self._bury(process)
                elif _threads(process) > most:
                    self._bury(process, kill=True, why="threads")
            if self._control.fileno() in ready and not self._heed():
                break
        for process in list(self._running):
            os.killpg(process, signal.SIGKILL)

    def _heed(self) -> bool:
        """Follow one order; False when there will be no more."""
        body, beside, _, _ = self._control.recvmsg(1 << 16, socket.CMSG_SPACE(3 * 4))
        if not body:
            return False
        order = json.loads(body)
        if "kill" in order:
            if order["kill"] in self._running:
                self._bury(order["kill"], kill=True)
            return True
        descriptors = array.array("i")
        for _, _, held in beside:
            descriptors.frombytes(held)
        self._start(order["start"], list(descriptors))
        return True

    def _start(self, limits: dict[str, Any], descriptors: list[int]) -> None:
        process = os.fork()
        if not process:
            try:
                self._become(limits, descriptors)
            except BaseException:
                os._exit(99)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        self._running[process] = (os.pidfd_open(process), limits["threads"])
        self.answer({"started": process})

    def _bury(self, process: int, *, kill: bool = False, why: str = "") -> None:
        """Take note of a process that has ended, with all of its group; `kill` ends it."""
        watched, _ = self._running.pop(process)
        if kill:
            signal.pidfd_send_signal(watched, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process, signal.SIGKILL)
        _, status, used = os.wait4(process, 0)
        os.close(watched)
        self.answer({"ended": process, "code": os.waitstatus_to_exitcode(status), "why": why, "cpu_s": used.ru_utime + used.ru_stime})

    def _become(self, limits: dict[str, Any], descriptors: list[int]) -> None:
        """Turn this fresh process into one that has nothing, and then let it read what it is to do."""
        os.setsid()
        kernel.die_with_parent()
        if os.getppid() != self._own:  # it died before this process could be told to die with it
            os._exit(99)
        heard, said, printed = (fcntl.fcntl(descriptor, fcntl.F_DUPFD, _HIGH) for descriptor in descriptors)
        rules = None if self._rules is None else fcntl.fcntl(self._rules, fcntl.F_DUPFD, _HIGH)
        for source, target in ((printed, 1), (printed, 2), (heard, HEARD), (said, SAID)):
            os.dup2(source, target)
        _bound(limits)
        kernel.give_up_privileges()
        if rules is not None:
            kernel.restrict(rules)
        os.closerange(SAID + 1, 1 << 16)
        if self._filter is not None:
            kernel.install(self._filter)
        random.seed(0)
        order = read_frame(HEARD, limits["message_bytes"])
        self._running.clear()
        ROLES[order["role"]](order, HEARD, SAID, limits["message_bytes"])


def _bound(limits: dict[str, Any]) -> None:
    """Limits that cannot be raised again."""
    for name, soft, hard in (
        ("CPU", limits["cpu_s"], limits["cpu_s"] + 1),
        ("AS", limits["memory_bytes"], limits["memory_bytes"]),
        ("STACK", 64 << 20, 64 << 20),
        ("NOFILE", limits["open_files"], limits["open_files"]),
        ("FSIZE", 0, 0),
        ("CORE", 0, 0),
        ("MEMLOCK", 0, 0),
    ):
        kind = getattr(resource, f"RLIMIT_{name}")
        top = resource.getrlimit(kind)[1]
        least = hard if top == resource.RLIM_INFINITY else min(hard, top)
        resource.setrlimit(kind, (min(soft, least), least))


def _threads(process: int) -> int:
    """Threads of a process; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[17])
    except (OSError, IndexError, ValueError):
        return 0
