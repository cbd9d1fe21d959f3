"""P32: no program gets out of the sandbox, none survives it, and each ends in time."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from khola.errors import OurFault
from khola.evals.sandbox.level import chosen
from khola.evals.sandbox.limits import Limits
from khola.evals.sandbox.process import Layers
from khola.evals.sandbox.run import Sandbox
from tests.evals.sandbox.corpus import PRELUDE, SECRET, Section, adopting, attack, census, outside, reached, sections, unconfined
from tests.needs import needs, needs_landlock, needs_seccomp

ESCAPES = sections("escapes.txt")
LIMITS = Limits(cpu_s=1, wall_s=0.6, memory_bytes=512 << 20)
LATE_S = 0.5
# Errors of a program that never came to its attack.
STUMBLED = (
    "NameError",
    "SyntaxError",
    "IndentationError",
    "AttributeError",
    "ModuleNotFoundError",
    "ImportError",
    "TypeError",
    "UnboundLocalError",
)
LEVELS = {
    "bubblewrap": Layers(seccomp=True, landlock=True, bubblewrap=shutil.which("bwrap") or "bwrap"),
    "landlock": Layers(seccomp=True, landlock=True),
    "seccomp": Layers(seccomp=True),
}

ONLY = Layers(landlock=True)
pytestmark = needs_seccomp


@pytest.fixture
def at(tmp_path: Path) -> Iterator[dict[str, object]]:
    with outside(tmp_path) as found, adopting():
        yield found


def escaped(sandbox: Sandbox, section: Section, at: dict[str, object]) -> str:
    """What a program got, or how it broke a promise; empty when it was held."""
    before = census()
    program = PRELUDE + attack(section)
    given = {key: value for key, value in at.items() if key != "listening"}
    outcome = sandbox.called(program, "attack", {**given, "parent": os.getpid(), "control": False})
    if outcome.kind == "passed" and outcome.value:
        return f"got {outcome.value!r}"
    if SECRET in outcome.text or SECRET in outcome.why:
        return "told the secret"
    if outcome.why.startswith(STUMBLED):
        return f"never came to its attack: {outcome.why}"
    if outcome.wall_s > LIMITS.wall_s + LATE_S:
        return f"took {outcome.wall_s:.2f} s"
    if census() != before:
        return "left a process behind"
    found = reached(at)
    return f"reached {found}" if found else ""


@pytest.fixture(scope="module")
def alone() -> Iterator[Callable[[Layers], Sandbox]]:
    """A sandbox of some layers, which is started once."""
    with ExitStack() as held:
        yield cache(lambda layers: held.enter_context(Sandbox(layers, LIMITS)))


def held(layers: Layers, programs: list[Section], at: dict[str, object]) -> None:
    with Sandbox(layers, LIMITS) as sandbox:
        found = {section.name: what for section in programs if (what := escaped(sandbox, section, at))}
    assert not found


def test_there_are_150_attacks_with_names_of_their_own() -> None:
    assert len({section.name for section in ESCAPES}) == len(ESCAPES) >= 150


def test_a_sample_of_the_attacks_is_held_by_the_level_that_this_machine_chooses(at: dict[str, object]) -> None:
    quick = [section for section in ESCAPES if section.mark == "=="]
    held(chosen(), quick[::20], at)


@pytest.mark.slow
@pytest.mark.parametrize(
    "level",
    [
        pytest.param("landlock", marks=needs_landlock),
        pytest.param("bubblewrap", marks=[needs("bwrap"), pytest.mark.soak]),
        pytest.param("seccomp", marks=pytest.mark.soak),
    ],
)
def test_every_attack_is_held_by(level: str, at: dict[str, object]) -> None:
    held(LEVELS[level], ESCAPES, at)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="raw calls are those of x86-64")
def test_the_attacks_work_where_nothing_holds_them(at: dict[str, object]) -> None:
    programs = [section for section in ESCAPES if section.mark == "=="]
    given = unconfined(programs, at)
    failed = {section.name: said for section, said in zip(programs, given, strict=True) if said != "True"}
    assert len(failed) <= len(programs) // 10, failed
    assert reached(at), "an attack that works reaches somebody"


@pytest.mark.parametrize(
    ("layer", "layers", "name", "body"),
    [
        pytest.param("landlock", ONLY, "reading", "return open(at['secret']).read()", marks=needs_landlock),
        pytest.param("landlock", ONLY, "listing", "return os.listdir(at['folder'])", marks=needs_landlock),
        pytest.param("landlock", ONLY, "making a file", "return os.open(at['folder'] + '/made', 0o101) + 1", marks=needs_landlock),
        pytest.param("landlock", ONLY, "cutting a file", "return os.truncate(at['secret'], 0) or 1", marks=needs_landlock),
        ("seccomp", Layers(seccomp=True), "reading", "return open(at['secret']).read()"),
        ("seccomp", Layers(seccomp=True), "making a file", "return os.open(at['folder'] + '/made', 0o101) + 1"),
        ("seccomp", Layers(seccomp=True), "connecting", "return socket.create_connection(('127.0.0.1', at['tcp'])).fileno()"),
        ("seccomp", Layers(seccomp=True), "forking", "return os.fork()"),
        ("limits", Layers(), "writing into a file", "return os.write(os.open(at['secret'], os.O_RDWR), b'x')"),
        ("limits", Layers(), "raising a limit", "return resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30)) or 1"),
    ],
)  # fmt: skip
def test_a_layer_alone_stops(
    layer: str, layers: Layers, name: str, body: str, at: dict[str, object], alone: Callable[[Layers], Sandbox]
) -> None:
    assert not escaped(alone(layers), Section("==", name, body), at), layer


def test_what_no_layer_holds_gets_out(at: dict[str, object], alone: Callable[[Layers], Sandbox]) -> None:
    sandbox = alone(Layers())
    assert escaped(sandbox, Section("==", "reading", "return open(at['secret']).read()"), at) == f"got {SECRET!r}"
    assert sandbox.layers.name == "none"


def test_a_survivor_would_be_seen(at: dict[str, object], alone: Callable[[Layers], Sandbox]) -> None:
    body = "child = libc.fork()\nif child == 0:\n    libc.setsid()\n    time.sleep(60)\n    os._exit(0)"
    before = census()
    assert escaped(alone(Layers()), Section("==", "survive", body), at) == "left a process behind"
    for survivor in census() - before:
        os.kill(survivor, signal.SIGKILL)
        os.waitpid(survivor, 0)


@pytest.mark.slow
def test_processor_time_is_bounded_even_where_its_signal_is_ignored() -> None:
    program = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\ndef spin():\n    while True: pass"
    with Sandbox(chosen(), Limits(cpu_s=1, wall_s=60.0)) as sandbox:
        outcome = sandbox.called(program, "spin")
    assert outcome.kind == "timeout" and outcome.wall_s < 55


def test_nothing_stays_when_the_server_is_killed_in_the_middle_of_a_run() -> None:
    before = census()
    sandbox = Sandbox(chosen(), Limits(wall_s=30.0))
    told: list[str] = []

    def run() -> None:
        try:
            sandbox.called("import time\ntime.sleep(60)", "x")
        except OurFault as error:
            told.append(str(error))

    running = threading.Thread(target=run, daemon=True)
    running.start()
    while len(census() - before) < 2:
        time.sleep(0.01)
    os.kill(min(census() - before), signal.SIGKILL)
    running.join(20)
    sandbox.close()
    assert census() == before and not running.is_alive() and "died" in told[0]


@pytest.mark.slow
def test_the_server_sees_neither_programs_nor_tests() -> None:
    look = """
import gc
def look(half):
    word = half + "-program"
    seen = [one for one in gc.get_objects() if isinstance(one, dict | list | tuple)]
    return [str(one)[:300] for one in seen if one is not globals() and word in str(one)]
"""
    with Sandbox(chosen(), LIMITS) as sandbox:
        earlier = sandbox.called("MARK = 'an-earlier-program'\n" + look.replace("one is not globals() and ", ""), "look", "an-earlier")
        assert earlier.value, "the search finds what is there"
        assert sandbox.called(look, "look", "an-earlier").value == []
