"""A benchmark from what was asked to the report: find the peers, write the text, run the reference, let them race."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from khola import __version__
from khola.api.bench import FULL, Work, windows_of
from khola.api.header import read_header
from khola.errors import KholaError, NotInstalled
from khola.evals.bench.figures import GROUPS
from khola.evals.bench.machine import Watch, described, facts_of, multiply_rates
from khola.evals.bench.quality import WINDOW, fixed_text
from khola.evals.bench.race import Contestant, Results, Task, race
from khola.evals.bench.report import Entry, Missing, Report
from khola.evals.peers.judge import START_CONTEXT
from khola.evals.peers.known import PEERS, Find
from khola.evals.peers.ours import Khola
from khola.lineage.compose import commit
from khola.loader import tokenizer_of
from khola.loader.find import find
from khola.loader.interpreter import interpreter_named
from khola.native.probe import usable_cores
from khola.settings import Settings

REFERENCE = "reference"
"""What `tell` hears before the reference runs."""
REFERENCE_INTERPRETER = "numpy"
"""The specification: float32 arithmetic on dequantised weights."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be measured."""

    model: str
    """A name or a path, as `khola chat` takes it."""
    interpreter: str
    cache: str = "auto"
    """How khola's cache keeps numbers, as `khola chat` takes it."""
    precise: bool = False
    """Whether khola's own kernels round nothing but sums."""
    against: Sequence[str] = ()
    """Names of `PEERS`."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Where a peer is: a folder of programs or a Python, by the peer's name."""
    models: Mapping[str, str] = field(default_factory=dict)
    """What a peer runs, by its name; the same files as khola by default."""
    reference: str = ""
    """Model whose distribution is the reference; by default the measured one, in float32."""
    groups: Sequence[str] = GROUPS
    rounds: int = 3
    work: Work = FULL
    command: Sequence[str] = ()


Tell = Callable[[str, int, int, str], None]


def bench(
    asked: Asked,
    settings: Settings,
    *,
    tell: Tell = lambda *_: None,
    peers: Mapping[str, Find] = PEERS,
    watch: Watch | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Measure a model, and the peers that are here.

    "auto" is settled once, before the race: a kernel that is missing is then told as a failure, and no round falls back in silence.

    Args:
        tell: hears who is next: group, round, rounds, contestant.
        peers: what `against` may name.
        watch: looks at the machine.
        clock: seconds, for the time that everything took.
    Raises:
        UnknownModel, NotPulled: the name leads to no files here.
        BadFiles: the model's header cannot be read.
    """
    began, when = clock(), datetime.now(UTC).isoformat(timespec="seconds")
    path = find(asked.model, settings).path
    threads = settings.threads or usable_cores()
    watch = watch or Watch(threads=threads)
    found, missing = _contestants(asked, path, settings, peers)
    with tempfile.TemporaryDirectory(prefix="khola-bench-") as scratch:
        task_of = _tasks(asked, settings, threads, Path(scratch), tell)
        results = race(found, asked.groups, asked.rounds, task_of, tell=tell, before_round=watch.look)
    return Report(
        command=list(asked.command),
        khola=__version__,
        commit=commit(Path(__file__).resolve().parents[3]),
        when=when,
        took_s=clock() - began,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        machine=facts_of(described()),
        threads=threads,
        rounds=asked.rounds,
        work=asdict(asked.work),
        reference=(asked.reference or asked.model) if "quality" in asked.groups else "",
        bandwidth=watch.bandwidth(),
        rates=multiply_rates(threads),
        load=list(watch.busy),
        stolen_share=watch.stolen_share(),
        entries=[_entry(contestant, results, settings) for contestant in found],
        missing=missing,
    )


def _contestants(asked: Asked, path: Path, settings: Settings, peers: Mapping[str, Find]) -> tuple[list[Contestant], list[Missing]]:
    """khola, and the peers that are here; why the others are not."""
    trained = read_header(path).config.get("max_position_embeddings") or START_CONTEXT
    interpreter = interpreter_named(asked.interpreter, settings, cache=asked.cache, precise=asked.precise).name
    ours = Khola(
        model=asked.model,
        interpreter=interpreter,
        cache=asked.cache,
        precise=asked.precise and interpreter == "native",
        start_context=min(START_CONTEXT, int(trained)),
    )
    found: list[Contestant] = [ours]
    missing = []
    for name in asked.against:
        files = find(asked.models[name], settings).path if name in asked.models else path
        try:
            found.append(peers[name](files, asked.places.get(name, "")))
        except NotInstalled as error:
            missing.append(Missing(name=name, message=error.told(settings.language), next_step=error.hint(settings.language)))
    return found, missing


def _tasks(asked: Asked, settings: Settings, threads: int, scratch: Path, tell: Tell) -> Callable[[str, int], Task]:
    """What makes the tasks of the race; the text and the reference are made when they are first needed."""

    def task_of(group: str, number: int) -> Task:
        task = Task(group=group, work=asked.work, threads=threads, first=number == 0, seed=number, scratch=scratch)
        if group != "quality":
            return task
        text = scratch / "text.txt"
        text.write_text(fixed_text(), encoding="utf-8")
        tokenizer = tokenizer_of(find(asked.model, settings).path)
        windows = tuple(tuple(ids) for ids in windows_of(tokenizer, fixed_text(), WINDOW))
        task = replace(task, text=text, windows=windows)
        tell(REFERENCE, 1, 1, asked.reference or asked.model)
        judge = Khola(model=asked.reference or asked.model, interpreter=REFERENCE_INTERPRETER, start_context=START_CONTEXT)
        file = scratch / "reference.npy"
        outcome = judge.reference(task, file)
        return replace(task, reference=file) if outcome.code == 0 and file.is_file() else task

    return task_of


def _entry(contestant: Contestant, results: Results, settings: Settings) -> Entry:
    return Entry(
        name=contestant.name,
        version=contestant.version,
        model=contestant.model,
        model_bytes=_bytes(contestant.model, settings),
        figures=results.figures(contestant.name),
    )


def _bytes(model: str, settings: Settings) -> int:
    """Size of a model's weight files; 0 when they cannot be found."""
    try:
        path = find(model, settings).path
    except KholaError:
        path = Path(model)
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
