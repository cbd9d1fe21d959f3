"""`khola doctor`: what was found on this machine, and what to do about what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from khola import __version__
from khola.cli import options as o
from khola.cli.talk import Talk

LIBRARIES = ("numpy", "tokenizers", "jinja2", "msgspec", "httpx2", "regex", "prompt-toolkit", "rich", "typer")
LITTLE_MEMORY = 1 << 30
LITTLE_DISK = 2 << 30
MARKS = {"ok": "✓", "warn": "!", "bad": "✗"}


Verify = Annotated[bool, typer.Option("--verify", help="Read every byte of the packed weights and compare it with its hash.")]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing looked at."""

    name: str
    found: str
    state: Literal["ok", "warn", "bad"] = "ok"
    next_step: str = ""
    """What to do about it; empty when nothing is to be done."""


def doctor(verify: Verify = False, json: o.Json = False, quiet: o.Quiet = False, lang: o.Lang = None, offline: o.Off = False) -> None:
    """Print every check; the exit code is 1 when one of them is bad.

    Raises:
        UnknownOption: an environment variable of khola's has a value that it cannot have.
    """
    talk = o.talk_of(json=json, quiet=quiet, lang=lang, offline=offline)
    checks = list(examine(talk, verify))
    if json:
        talk.data({"khola": __version__, "checks": [asdict(check) for check in checks]})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            talk.line(f"{_mark(check, talk)} {check.name:{width}}  {check.found}")
            if check.next_step:
                talk.line(f"  {'':{width}}  → {check.next_step}")
    if any(check.state == "bad" for check in checks):
        raise typer.Exit(1)


def _mark(check: Check, talk: Talk) -> str:
    """A sign of the state; letters where the terminal's encoding lacks the signs."""
    try:
        MARKS[check.state].encode(talk.out.encoding or "utf-8")
    except UnicodeEncodeError:
        return check.state
    return MARKS[check.state]


def examine(talk: Talk, verify: bool = False) -> Iterator[Check]:
    """All checks in the order in which they are read."""
    yield Check(name="khola", found=f"{__version__}, {Path(__file__).parents[1]}")
    yield Check(name="python", found=f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}")
    yield from _machine(talk)
    yield from _interpreters(talk, verify)
    yield _libraries(talk)
    yield from _folders(talk)
    yield from _models(talk)
    yield _network(talk)
    yield _sandbox(talk)
    yield _terminal(talk)


def _machine(talk: Talk) -> Iterator[Check]:
    from khola.native.probe import probe

    machine = probe(talk.settings.models)
    yield Check(name="system", found=f"{machine.system}, {machine.architecture}")
    sets = ", ".join(machine.instruction_sets) or talk.words("not known")
    yield Check(
        name="processor",
        found=talk.words("{cpu}; cores: {cores}; instruction sets: {sets}", cpu=machine.cpu, cores=machine.cores, sets=sets),
    )
    memory = talk.words(
        "{free} of {all} GB available, read at {speed} GB/s",
        free=f"{machine.available_bytes / 1e9:.1f}",
        all=f"{machine.memory_bytes / 1e9:.1f}",
        speed=f"{machine.read_bytes_s / 1e9:.1f}",
    )
    if machine.available_bytes < LITTLE_MEMORY:
        step = talk.words("close other programs; `khola fit MODEL` says what a model needs")
        yield Check(name="memory", found=memory, state="warn", next_step=step)
    else:
        yield Check(name="memory", found=memory)
    gpus = ", ".join(f"{gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB)" for gpu in machine.gpus)
    yield Check(name="gpu", found=gpus or talk.words("none found; none is needed"))


def _interpreters(talk: Talk, verify: bool) -> Iterator[Check]:
    """What computes models here, which one is the default, and why."""
    native = _native(talk)
    yield native
    if verify or native.state == "ok":
        yield _packed(talk, verify)
    if native.state == "ok":
        yield Check(name="numpy", found=talk.words("{version}: runs models with --interpreter numpy", version=_version("numpy")))
    else:
        yield Check(name="numpy", found=talk.words("{version}: runs models, because native cannot", version=_version("numpy")))
    if version := _version("torch"):
        yield Check(name="torch", found=talk.words("{version}: runs models with --interpreter torch", version=version))
    else:
        yield Check(name="torch", found=talk.words("not installed; nothing here needs it"))


def _native(talk: Talk) -> Check:
    """The native library: its instruction set, or what stands in its way."""
    from khola.errors import KholaError
    from khola.loader.interpreter import SLOW, instruction_set
    from khola.native.lib import available_isas, library_path

    try:
        used = instruction_set(talk.settings)
    except KholaError as wrong:
        return Check(name="native", found=wrong.told(talk.language), state="warn", next_step=wrong.hint(talk.language))
    known = ", ".join(available_isas())
    place = str(library_path())
    if talk.settings.isa:
        found = talk.words("{used}, which KHOLA_ISA asks for; this machine has {known}; {place}", used=used, known=known, place=place)
    else:
        found = talk.words("{used}, the best that library and processor share ({known}); {place}", used=used, known=known, place=place)
        found = _why_not_better(talk, used, found)
    if used == SLOW:
        step = talk.words("plain C++ is slower than numpy, so models run with numpy unless --interpreter native is given")
        return Check(name="native", found=found, state="warn", next_step=step)
    return Check(name="native", found=found)


def _why_not_better(talk: Talk, used: str, found: str) -> str:
    """What was found, and what keeps a better instruction set from being used."""
    from khola.native import probe
    from khola.native.lib import just_missed

    missed = just_missed(used, probe.instruction_sets())
    if missed is None:
        return found
    better, lacking = missed
    if lacking:
        return talk.words("{found}; {better} would need {lacking} too", found=found, better=better, lacking=", ".join(lacking))
    return talk.words("{found}; the processor has {better}, but this build or this system does not", found=found, better=better)


def _packed(talk: Talk, verify: bool) -> Check:
    """Packed weights on the disk; every byte of them is read when the user asks for it."""
    from khola.loader.packed_cache import packed_files
    from khola.native.packed_file import is_whole

    files = [(path, state.st_size) for path, state in packed_files(talk.settings.packed)]
    found = talk.words(
        "{count} files, {size} GB of at most {limit} GB",
        count=len(files),
        size=f"{sum(size for _, size in files) / 1e9:.1f}",
        limit=f"{talk.settings.packed_bytes / 1e9:.0f}",
    )
    damaged = [path.name for path, _ in files if verify and not is_whole(path, os.cpu_count() or 1)]
    if damaged:
        step = talk.words("delete {files}; the next start packs anew", files=", ".join(damaged))
        return Check(
            name="packed", found=talk.words("{found}; damaged: {files}", found=found, files=", ".join(damaged)), state="bad", next_step=step
        )
    return Check(name="packed", found=talk.words("{found}, every byte checked", found=found) if verify else found)


def _version(library: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _libraries(talk: Talk) -> Check:
    versions = {library: _version(library) for library in LIBRARIES}
    missing = [library for library, version in versions.items() if not version]
    found = ", ".join(f"{library} {version}" for library, version in versions.items() if version)
    if missing:
        step = talk.words("missing: {libraries}; run `pip install khola` again", libraries=", ".join(missing))
        return Check(name="libraries", found=found, state="bad", next_step=step)
    return Check(name="libraries", found=found)


def _folders(talk: Talk) -> Iterator[Check]:
    """The folder of models: whether it can be written to, and what is free on its disk."""
    home = talk.settings.home
    existing = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        step = talk.words("set KHOLA_HOME to a folder that you may write to")
        yield Check(name="folder", found=talk.words("{folder}: not writable", folder=str(home)), state="bad", next_step=step)
        return
    free = shutil.disk_usage(existing).free
    found = talk.words("{folder}, {free} GB free", folder=str(home), free=f"{free / 1e9:.1f}")
    if free < LITTLE_DISK:
        step = talk.words("free some disk, or set KHOLA_HOME to a folder on another one")
        yield Check(name="folder", found=found, state="warn", next_step=step)
    else:
        yield Check(name="folder", found=found)


def _models(talk: Talk) -> Iterator[Check]:
    """Models of this library, and what other programs have that could be linked."""
    from khola.api.library import listed, problems

    entries = listed(talk.settings)
    if entries:
        yield Check(name="models", found=", ".join(entry.name for entry in entries))
    else:
        step = talk.words("khola pull {model}", model=o.DEFAULT_MODEL)
        yield Check(name="models", found=talk.words("none yet"), state="warn", next_step=step)
    for problem in problems(talk.settings):
        yield Check(name="models", found=problem.told(talk.language), state="bad", next_step=problem.hint(talk.language))
    others = [f"{program}: {folder}" for program, folder in talk.settings.caches.items() if _has_entries(folder)]
    if others:
        step = talk.words("`khola import` links the models in them, without a copy")
        yield Check(name="caches", found=", ".join(others), next_step=step)


def _has_entries(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def _network(talk: Talk) -> Check:
    if talk.settings.offline:
        return Check(name="network", found=talk.words("switched off"))
    return Check(name="network", found=talk.words("used by `khola pull` alone; hub: {hub}", hub=talk.settings.hub))


def _sandbox(talk: Talk) -> Check:
    """What can hold a program that nobody trusts: every layer, and how many of the attacks of its self-test it stopped."""
    from khola.evals.sandbox.level import candidates, layers_here, probed

    told = talk.words("seccomp: {seccomp}; Landlock: {landlock}; bubblewrap: {bubblewrap}", **layers_here())
    for layers in candidates():
        probes = probed(layers)
        lost = [probe.name for probe in probes if not probe.held]
        if lost:
            told = talk.words("{told}; {level} does not stop {lost}", told=told, level=layers.name, lost=", ".join(lost))
            continue
        found = talk.words("{told}; {level} is used, {count} of {count} attacks stopped", told=told, level=layers.name, count=len(probes))
        return Check(name="sandbox", found=found)
    step = talk.words("code is not run here; Linux on x86-64 or ARM with seccomp can hold it")
    return Check(name="sandbox", found=told, state="warn", next_step=step)


def _terminal(talk: Talk) -> Check:
    encoding = (talk.out.encoding or "?").lower()
    found = talk.words("{encoding}, messages in {language}", encoding=encoding, language=talk.language)
    if encoding.replace("-", "") != "utf8":
        step = talk.words("Bengali and other letters need UTF-8: set LANG=C.UTF-8 or PYTHONUTF8=1")
        return Check(name="terminal", found=found, state="warn", next_step=step)
    return Check(name="terminal", found=found)
