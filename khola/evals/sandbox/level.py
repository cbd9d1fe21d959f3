"""What this machine's sandbox can do: its layers, a test of each from inside, and the choice among them.

Nothing is taken on trust: a level is used only after twelve small attacks, run inside it, have failed.
"""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from khola.errors import KholaError, NoSandbox
from khola.evals.sandbox import kernel
from khola.evals.sandbox.limits import Limits
from khola.evals.sandbox.process import Layers
from khola.evals.sandbox.run import Outcome, Sandbox

_LIMITS = Limits(cpu_s=1, wall_s=2.0, memory_bytes=256 << 20)
_SHORT = Limits(cpu_s=1, wall_s=0.3)
_LATE_S = 0.5
_SECRET = "a secret of the sandbox's self-test"  # noqa: S105 - a word to look for, which protects nothing
_ATTACKS = """
import ctypes, os, socket, sys, time
libc = ctypes.CDLL(None)
def read(path): return open(path).read()
def write(path): return open(path, "w").write("x")
def tcp(port): return socket.create_connection(("127.0.0.1", port), 1).fileno()
def udp(port): return socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port))
def unix(path):
    socket.socket(socket.AF_UNIX).connect(path)
    return 1
def fork():
    child = os.fork()
    if not child: os._exit(0)
    return child
def run(program): os.execv(program, [program])
def kill(_): return os.kill(os.getppid(), 0) or 1
def trace(_): return 1 if libc.ptrace(16, os.getppid(), None, None) == 0 else 0
def survive(_):
    child = libc.syscall(57 if os.uname().machine == "x86_64" else 1079)
    if child == 0: os._exit(0)
    return max(0, child)
def memory(size): return len(bytearray(size))
def spin(_):
    while True: pass
"""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One attack of the self-test."""

    name: str
    held: bool
    """Whether the sandbox stopped it."""
    said: str
    """What became of it."""


@cache
def chosen() -> Layers:
    """The strongest layers that pass their self-test on this machine.

    Raises:
        NoSandbox: none do.
    """
    told = ""
    for layers in candidates():
        lost = [probe.name for probe in probed(layers) if not probe.held]
        if not lost:
            return layers
        told = f"{layers.name}: {', '.join(lost)}"
    raise NoSandbox(
        "nothing on this machine can hold a program: {why}",
        hint="use Linux on x86-64 or ARM with seccomp; `khola doctor` says what was found",
        why=told or ("no seccomp filters" if sys.platform.startswith("linux") else f"{sys.platform} is not Linux"),
    )


def layers_here() -> dict[str, str]:
    """What the kernel and this machine offer, in words: seccomp, landlock (its version), bubblewrap (its path); "-" for what is missing."""
    version = kernel.landlock_version()
    filters = "+" if kernel.has_seccomp() else "-"
    return {"seccomp": filters, "landlock": str(version) if version else "-", "bubblewrap": shutil.which("bwrap") or "-"}


def candidates() -> tuple[Layers, ...]:
    """Levels that this machine seems to have, the strongest first; all of them filter calls, for without that nothing else holds."""
    if not kernel.has_seccomp():
        return ()
    landlock = kernel.landlock_version() > 0
    bubblewrap = shutil.which("bwrap") or ""
    found = [Layers(seccomp=True, landlock=landlock, bubblewrap=bubblewrap)] if bubblewrap else []
    if landlock:
        found.append(Layers(seccomp=True, landlock=True))
    return (*found, Layers(seccomp=True))


@cache
def probed(layers: Layers) -> tuple[Probe, ...]:
    """The twelve attacks, run inside these layers; one that cannot be started counts as not held."""
    try:
        with Sandbox(layers, _LIMITS) as sandbox:
            return tuple(_attacks(sandbox))
    except KholaError as error:
        return (Probe(name="start", held=False, said=str(error)),)


def _attacks(sandbox: Sandbox) -> Iterator[Probe]:
    with ExitStack() as held, tempfile.TemporaryDirectory() as folder:
        secret, place = Path(folder, "secret"), Path(folder, "socket")
        secret.write_text(_SECRET)
        listening = [held.enter_context(socket.socket(kind, how)) for kind, how in _LISTENERS]
        for one in listening[:2]:
            one.bind(("127.0.0.1", 0))
        listening[2].bind(str(place))
        for one in (listening[0], listening[2]):
            one.listen()
        tcp, udp = (one.getsockname()[1] for one in listening[:2])
        for name, argument in (
            ("read", str(secret)),
            ("write", str(secret)),
            ("tcp", tcp),
            ("udp", udp),
            ("unix", str(place)),
            ("run", "/bin/true"),
            ("kill", 0),
            ("trace", 0),
            ("survive", 0),
            ("memory", 4 << 30),
        ):
            yield _probe(name, sandbox.called(_ATTACKS, name, argument), _stopped)
            if name == "write" and secret.read_text() != _SECRET:
                yield Probe(name="written", held=False, said="the file was changed")
        yield _probe("fork", sandbox.called(_ATTACKS, "fork"), _stopped)
        yield _probe("time", sandbox.called(_ATTACKS, "spin", 0, limits=_SHORT), _in_time)


_LISTENERS = ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_STREAM))


def _probe(name: str, outcome: Outcome, holds: Callable[[Outcome], bool]) -> Probe:
    said = outcome.why or (f"{outcome.value!r}" if outcome.kind == "passed" else outcome.kind)
    return Probe(name=name, held=holds(outcome), said=said)


def _stopped(outcome: Outcome) -> bool:
    """An error that Python raised, or an attack that says itself that it got nothing."""
    return outcome.kind in ("raised", "memory") or (outcome.kind == "passed" and outcome.value == 0)


def _in_time(outcome: Outcome) -> bool:
    return outcome.kind == "timeout" and outcome.wall_s <= _SHORT.wall_s + _LATE_S
