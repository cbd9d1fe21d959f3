"""The corpora of hostile programs, read from their text files, and the place that escapes try to reach."""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
SECRET = "the secret that no program may see"
PRELUDE = """
import asyncio, codecs, configparser, contextlib, ctypes, fcntl, fileinput, glob, http.client, importlib.machinery, io, linecache, mmap
import multiprocessing, os, pathlib, pty, pwd, py_compile, re, resource, runpy, signal, socket, struct, subprocess, sys, tempfile
import threading, time, tokenize
from multiprocessing import shared_memory
with contextlib.suppress(ImportError):
    import sqlite3
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    if os.uname().machine != "x86_64":
        raise OSError(38, "numbers of another processor")
    found = libc.syscall(number, *args)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
"""
_CONTROL = """
import json, os, signal, sys
given = json.load(sys.stdin)
exec(given["prelude"])
for body in given["bodies"]:
    for name in set(os.listdir(given["at"]["folder"])) - {"unix"}:
        path = os.path.join(given["at"]["folder"], name)
        os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    os.mkdir(given["at"]["folder"] + "/empty")
    with open(given["at"]["secret"], "w") as file:
        file.write(given["secret"])
    at = {**given["at"], "parent": os.getpid(), "control": True}
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(5)
        try:
            names = dict(globals())
            exec(body, names)
            os.write(writing, str(bool(names["attack"](at))).encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    print(json.dumps(os.read(reading, 999).decode()), flush=True)
    os.close(reading)
    os.waitpid(child, 0)
"""


class Section(NamedTuple):
    """One program of a corpus."""

    mark: str
    name: str
    body: str


def sections(name: str) -> list[Section]:
    """The programs of a file: a line of mark and name, then the program."""
    parts = re.split(r"^(=[=-]) (.+)\n", (FOLDER / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [Section(*parts[at : at + 3]) for at in range(1, len(parts), 3)]


def attack(section: Section) -> str:
    """An escape as a function."""
    return "def attack(at):\n" + textwrap.indent(section.body, "    ")


@contextmanager
def outside(folder: Path) -> Iterator[dict[str, Any]]:
    """Things that a program must not reach, with somebody who listens."""
    secret = folder / "secret"
    secret.write_text(SECRET)
    (folder / "empty").mkdir(exist_ok=True)
    names = {"abstract": f"khola-{os.getpid()}", "datagrams": f"khola-{os.getpid()}-datagrams"}
    with ExitStack() as held:
        tcp, udp = (held.enter_context(socket.socket(type=kind)) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))
        unix, abstract = (held.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        datagrams = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        for one in (tcp, udp):
            one.bind(("127.0.0.1", 0))
        unix.bind(str(folder / "unix"))
        abstract.bind("\0" + names["abstract"])
        datagrams.bind("\0" + names["datagrams"])
        for one in (tcp, unix, abstract):
            one.listen(200)
        for one in (tcp, udp, unix, abstract, datagrams):
            one.setblocking(False)
        at = {"secret": str(secret), "folder": str(folder), "unix": str(folder / "unix"), **names}
        yield {**at, "tcp": tcp.getsockname()[1], "udp": udp.getsockname()[1], "listening": (tcp, udp, unix, abstract, datagrams)}


def unconfined(programs: list[Section], at: dict[str, Any]) -> list[str]:
    """What the attacks give where nothing holds them: "True", or what went wrong."""
    plain = {key: value for key, value in at.items() if key != "listening"}
    given = json.dumps({"prelude": PRELUDE, "bodies": [attack(one) for one in programs], "at": plain, "secret": SECRET})
    done = subprocess.run([sys.executable, "-c", _CONTROL], input=given, capture_output=True, text=True, check=True, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('"')]


def reached(at: dict[str, Any]) -> list[str]:
    """What arrived at those who listen, and what was changed among the files."""
    found = []
    for one, name in zip(at["listening"], ("tcp", "udp", "unix", "abstract", "datagrams"), strict=True):
        try:
            if name in ("tcp", "unix", "abstract"):
                one.accept()[0].close()
            else:
                one.recv(9)
            found.append(name)
        except BlockingIOError:
            continue
    folder = Path(at["folder"])
    if {entry.name for entry in folder.iterdir()} != {"secret", "empty", "unix"}:
        found.append("the folder was changed")
    if (folder / "secret").read_text() != SECRET:
        found.append("the secret was changed")
    return found


@contextmanager
def adopting() -> Iterator[None]:
    """Make this process the parent of whatever its descendants leave behind, so that a census sees it."""
    library = ctypes.CDLL(None)
    library.prctl(36, 1, 0, 0, 0)
    try:
        yield
    finally:
        library.prctl(36, 0, 0, 0, 0)


def census() -> frozenset[int]:
    """Processes that this one started or adopted, and theirs."""
    import psutil

    return frozenset(child.pid for child in psutil.Process().children(recursive=True))
