"""Engine processes behind `Backend`: one process a loaded model, loaded when it is first asked for, gone when nobody asks any more.

Memory   What a model takes is estimated from its files until it has been loaded once. To make room, models that nobody uses are unloaded,
         the longest unused first; pinned ones stay.
Death    A process that dies takes its running answers with it, each of which ends with `EngineDied`. The next request starts a new one; one
         that dies again and again before it has finished an answer is started less and less often.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from struct import unpack
from typing import Any, final

from khola.cards.catalogue import card, cards
from khola.errors import BadFiles, Busy, Cancelled, EngineDied, KholaError, NoMemory, NotInstalled, NotPulled, UnknownModel, UnknownOption
from khola.fetch.library import Entry, Library
from khola.fetch.places import model_name_from, on_disk
from khola.serve.backend import ChatJob, Job, ModelState, Pieces
from khola.serve.engines import wire
from khola.serve.engines.offered import bytes_at, created, path_of
from khola.serve.engines.process import EngineProcess, Tell
from khola.settings import Settings

BESIDE_BYTES = 300_000_000
"""Beside its files, what a model that was never loaded is thought to take."""
FILE_SHARE = 1.15
"""Memory of a model's weights for each byte of its files, until it is known."""
EMBEDDED_AT_ONCE = 32
"""Texts in one message."""
FAILED_S = 2.0
"""How long files that cannot be loaded are not tried again."""
AT_ONCE = 3
"""Deaths in a row until the next start is put off."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
LOOKS_S = 5.0
"""Longest time between two looks for models that nobody uses."""


@dataclass(eq=False)
class Slot:
    """One model that is offered, and its process while it has one."""

    name: str
    source: str
    pinned: bool = False
    process: EngineProcess | None = None
    loading: asyncio.Task[EngineProcess] | None = None
    ending: asyncio.Task[None] | None = None
    refusing: bool = False
    """Somebody unloads it, and new requests must wait for their own turn."""
    holds: int = 0
    """Requests that are about to use the process."""
    memory_bytes: int = 0
    """That it takes, or took when it was loaded last; 0: never loaded."""
    used: float = 0.0
    idle_since: float = 0.0
    deaths: int = 0
    """In a row, no answer having been finished between them."""
    not_before: float = 0.0
    failed: KholaError | None = None
    retry_at: float = 0.0
    last_lines: tuple[str, ...] = field(default=())

    @property
    def idle(self) -> bool:
        """Loaded, and nobody uses it."""
        return self.process is not None and self.process.serves and not (self.holds or self.process.busy or self.ending)

    @property
    def taken_bytes(self) -> int:
        """Memory that is spent on it now."""
        return self.memory_bytes if self.process is not None or self.loading is not None else 0


@final
class Engines:
    """Engine processes: `khola.serve.backend.Backend`. To be made and used within one running event loop.

    Args:
        settings: where models lie, threads, language.
        offered: names, or paths, of the models that may be asked for; None offers all of the library, those that come later included.
        budget_bytes: memory that all of them together may take; None sets no bound but what each needs free when it is loaded.
        idle_s: seconds after which a model that nobody uses is unloaded; None keeps it.
        pinned: names of offered models that are never unloaded to make room, nor because they are idle.
        options: further arguments of `khola.api.load`: context, cache_tokens, cache, rows, interpreter …
        tell: hears sentences for whoever runs the server: what loading says, and how processes ended.
        clock: seconds, never going back.
    Raises:
        NotInstalled: this system has no Unix sockets.
        UnknownModel, NotPulled: one of them is not on this disk.
        UnknownOption: two models would have one name, or a pinned one is not offered.
    """

    def __init__(
        self,
        settings: Settings,
        offered: Sequence[str] | None = None,
        *,
        budget_bytes: int | None = None,
        idle_s: float | None = None,
        pinned: Iterable[str] = (),
        options: Mapping[str, Any] | None = None,
        tell: Tell | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if sys.platform == "win32":
            raise NotInstalled("engine processes need Unix sockets, which this system does not have", hint="use khola within WSL")
        self._settings = settings
        self._library = Library(settings)
        self._budget = budget_bytes
        self._idle_s = idle_s
        self._options = dict(options or {})
        self._tell = tell or _unheard
        self._clock = clock
        self._pinned = frozenset(pinned)
        self._open = offered is None
        self._slots: dict[str, Slot] = {}
        for source in offered or ():
            self._require_here(source)
            self._offer(source)
        if not self._open and (lost := sorted(self._pinned - set(self._slots))):
            raise UnknownOption("{model} is to be pinned, but it is not offered", model=lost[0])
        self._room = asyncio.Lock()
        self._closed = False
        self._watch: asyncio.Task[None] | None = None

    async def start(self, job: Job, model: str) -> Pieces:
        """Begin an answer; see `Backend.start`.

        Raises:
            EngineDied: the process ended before it accepted the job, or ends again and again.
            UnknownModel, NoMemory, Busy, AskedWrong, BadFiles: as there, and what loading raises.
        """
        async with self._engine(model) as engine:
            return await engine.answer(job)

    async def embed(self, texts: Sequence[str | tuple[int, ...]], model: str, tenant: str = "") -> tuple[list[list[float]], int]:
        """A vector for each text, and the tokens of all of them."""
        rows: list[list[float]] = []
        tokens = 0
        async with self._engine(model) as engine:
            for first in range(0, len(texts), EMBEDDED_AT_ONCE):
                told = await engine.call(partial(_embed, tuple(texts[first : first + EMBEDDED_AT_ONCE]), tenant))
                assert isinstance(told, wire.Vectors)
                rows += [list(unpack(f"<{len(row) // 4}f", row)) for row in told.rows]
                tokens += told.tokens
        return rows, tokens

    async def tokens(self, text: str, model: str, *, special: bool = True) -> list[int]:
        """Ids of a text; with the token that the model wants in front, if `special`."""
        async with self._engine(model) as engine:
            told = await engine.call(lambda number: wire.Encode(number, text, special))
        assert isinstance(told, wire.Ids)
        return list(told.ids)

    async def text(self, ids: Sequence[int], model: str) -> str:
        """What ids spell, control tokens included."""
        async with self._engine(model) as engine:
            told = await engine.call(lambda number: wire.Spell(number, tuple(ids)))
        assert isinstance(told, wire.Text)
        return told.text

    async def rendered(self, job: ChatJob, model: str) -> tuple[str, list[int]]:
        """The prompt that a conversation becomes, as text and ids."""
        async with self._engine(model) as engine:
            told = await engine.call(lambda number: wire.Render(number, job))
        assert isinstance(told, wire.Rendered)
        return told.text, list(told.ids)

    async def models(self) -> list[ModelState]:
        """All that are offered, by name."""
        entries = await asyncio.to_thread(self._library.entries)
        here = {entry.name: entry for entry in entries if entry.weights and not entry.missing}
        if self._open:
            for name in here.keys() - self._slots.keys():
                self._offer(name)
        names = sorted(name for name, slot in self._slots.items() if not self._open or name in here or slot.process is not None)
        return await asyncio.to_thread(lambda: [self._state(self._slots[name], here.get(name)) for name in names])

    async def load(self, model: str) -> ModelState:
        """Load a model, or wait until whoever loads it has done so. Errors carry what the process said last as the fact `stderr`.

        Raises:
            UnknownModel, NoMemory, Busy, BadFiles, EngineDied: it is not offered, or cannot be loaded.
        """
        slot = await self._slot(model)
        try:
            async with self._engine(model):
                pass
        except (EngineDied, BadFiles) as error:
            raise error.with_facts(stderr=list(slot.last_lines)) from error
        return await self._state_of(slot)

    async def unload(self, model: str) -> ModelState:
        """Let its running answers end, refuse new ones meanwhile, then give its memory back.

        Raises:
            UnknownModel: it is not offered.
        """
        slot = await self._slot(model)
        slot.refusing = True
        try:
            if slot.loading is not None:
                with suppress(KholaError):
                    await asyncio.shield(slot.loading)
            await self._end(slot)
        finally:
            slot.refusing = False
        return await self._state_of(slot)

    async def figures(self) -> dict[str, dict[str, float]]:
        """Counters and levels of each loaded model, as `khola.engine.stats.Stats` has them."""
        found: dict[str, dict[str, float]] = {}
        for slot in list(self._slots.values()):
            if slot.process is not None and slot.process.serves:
                with suppress(EngineDied, Cancelled):
                    told = await slot.process.call(wire.Look)
                    assert isinstance(told, wire.Figures)
                    found[slot.name] = told.figures
        return found

    async def close(self, grace_s: float = 30.0) -> None:
        """Refuse new jobs, let running ones end for so long, then stop everything."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
        slots = list(self._slots.values())
        ends: list[asyncio.Task[Any]] = [asyncio.create_task(self._end(slot)) for slot in slots if slot.process is not None]
        ends += [slot.loading for slot in slots if slot.loading is not None]
        if ends:
            await asyncio.wait(ends, timeout=grace_s)
        stopped = Cancelled("the server was stopped before the answer ended", hint="ask again when it runs")
        killed = [slot.process for slot in slots if slot.process is not None]
        for slot in slots:
            if slot.loading is not None:
                slot.loading.cancel()
        for process in killed:
            process.kill(stopped)
        await asyncio.gather(*ends, *(process.gone for process in killed), return_exceptions=True)

    def process_id(self, model: str) -> int:
        """Of the process that has loaded a model; 0 when none has."""
        slot = self._slots.get(model)
        return 0 if slot is None or slot.process is None else slot.process.pid

    def last_lines(self, model: str) -> tuple[str, ...]:
        """What the last process of a model that ended wrote to its standard error at the end; for those who run the server only."""
        slot = self._slots.get(model)
        return () if slot is None else slot.last_lines

    def _require_here(self, source: str) -> None:
        """Refuse what no request could have an answer from.

        Raises:
            UnknownModel, NotPulled: nothing here is called so.
        """
        if path_of(source) is None and self._library.find(source) is None:
            raise NotPulled("{name} is not on this disk", hint="khola pull {name}", name=card(source).name)

    def _offer(self, source: str) -> Slot:
        """Take a model into the list."""
        path = path_of(source)
        name = model_name_from(path.stem if path.is_file() else path.resolve().name) if path is not None else source
        if name in self._slots:
            raise UnknownOption("two of the offered models would be called {model}", model=name)
        self._slots[name] = slot = Slot(name=name, source=source, pinned=name in self._pinned)
        return slot

    async def _slot(self, model: str) -> Slot:
        """The offered model of this name.

        Raises:
            UnknownModel: there is none.
        """
        slot = self._slots.get(model)
        if slot is None and self._open:
            entry = await asyncio.to_thread(self._library.find, model)
            slot = self._slots.get(model) or (self._offer(model) if entry is not None and entry.weights else None)
        if slot is None:
            raise UnknownModel("this server does not offer the model {name!r}", hint="ask it for its list of models", name=model[:200])
        return slot

    @asynccontextmanager
    async def _engine(self, model: str) -> AsyncIterator[EngineProcess]:
        """The process of a model, which is not unloaded meanwhile unless somebody asks for that."""
        slot = await self._slot(model)
        slot.holds += 1
        try:
            engine = await self._loaded(slot)
            slot.used = time.time()
            yield engine
        finally:
            slot.holds -= 1
            slot.idle_since = self._clock()

    async def _loaded(self, slot: Slot) -> EngineProcess:
        while True:
            if self._closed:
                raise Busy("the server is being stopped")
            if slot.refusing:
                raise Busy("{model} is being unloaded", hint="ask again in a moment", model=slot.name)
            if slot.ending is not None:
                await asyncio.shield(slot.ending)
                continue
            if slot.process is not None:
                if slot.process.serves:
                    return slot.process
                await asyncio.shield(slot.process.gone)
                continue
            if slot.loading is None:
                self._require_patience(slot)
                slot.loading = asyncio.create_task(self._load(slot))
                slot.loading.add_done_callback(partial(_loaded, slot))
            return await asyncio.shield(slot.loading)

    def _require_patience(self, slot: Slot) -> None:
        """Refuse to start what has just failed.

        Raises:
            EngineDied: it died several times in a row, and it is too early for the next trial.
            KholaError: its files could not be loaded a moment ago.
        """
        now = self._clock()
        if slot.failed is not None and now < slot.retry_at:
            raise slot.failed
        if now < slot.not_before:
            raise EngineDied(
                "the engine of {model} ended {count} times in a row",
                hint="ask again in {wait_s} seconds; whoever runs the server finds the reason in its log",
                model=slot.name,
                count=slot.deaths,
                wait_s=max(1, round(slot.not_before - now)),
            )

    async def _load(self, slot: Slot) -> EngineProcess:
        """Make room and start a process."""
        async with self._room:
            known = slot.memory_bytes
            slot.memory_bytes = known or await asyncio.to_thread(self._estimate, slot)
            await self._make_room(slot, slot.memory_bytes)
        try:
            engine = await EngineProcess.started(
                slot.name,
                source=slot.source,
                settings=self._settings,
                options=self._options,
                ended=lambda process: self._mourn(slot, process),
                tell=self._tell,
            )
        except BaseException as error:
            slot.memory_bytes = known
            if isinstance(error, KholaError) and not isinstance(error, EngineDied):
                self._tell("{path} cannot be loaded: {reason}", path=slot.name, reason=error.told(self._settings.language))
            if isinstance(error, BadFiles):
                slot.failed, slot.retry_at = error, self._clock() + FAILED_S
            raise
        assert engine.ready is not None
        slot.process, slot.failed, slot.memory_bytes = engine, None, engine.ready.memory_bytes
        slot.used, slot.idle_since = time.time(), self._clock()
        try:
            async with self._room:
                await self._make_room(slot, slot.memory_bytes)
        except NoMemory:
            engine.kill(Cancelled("{model} was unloaded", model=slot.name), softly=True)
            raise
        if self._watch is None and self._idle_s is not None:
            self._watch = asyncio.create_task(self._unload_idle(self._idle_s))
        return engine

    def _estimate(self, slot: Slot) -> int:
        """Memory of a model that was never loaded."""
        entry = self._library.find(slot.source)
        size = sum(file.bytes for file in entry.weights) if entry is not None else bytes_at(Path(slot.source).expanduser())
        return int(FILE_SHARE * size) + BESIDE_BYTES

    async def _make_room(self, slot: Slot, needed: int) -> None:
        """Unload what nobody uses until a model fits into the budget; the caller holds the lock.

        Raises:
            NoMemory: it does not fit, or not while others answer.
        """
        if self._budget is None:
            return
        while (others := sum(other.taken_bytes for other in self._slots.values() if other is not slot)) + needed > self._budget:
            idle = [other for other in self._slots.values() if other is not slot and other.idle and not other.pinned]
            if not idle or needed > self._budget:
                raise NoMemory(
                    "{model} needs {needed_mb} MB, and {free_mb} of the server's {budget_mb} MB are free",
                    hint="unload another model, or start the server with a larger budget",
                    model=slot.name,
                    needed_mb=-(-needed // 1_000_000),
                    free_mb=max(0, self._budget - others) // 1_000_000,
                    budget_mb=self._budget // 1_000_000,
                )
            await self._end(min(idle, key=lambda other: other.idle_since))

    async def _end(self, slot: Slot) -> None:
        """Drain the process of a model, if it has one; whoever asks for the model meanwhile waits, then it is loaded anew."""
        if slot.ending is None and slot.process is not None:
            slot.ending = asyncio.create_task(slot.process.drain())
            slot.ending.add_done_callback(lambda _: setattr(slot, "ending", None))
        if slot.ending is not None:
            await asyncio.shield(slot.ending)

    async def _unload_idle(self, idle_s: float) -> None:
        """Unload models that nobody has used for so long."""
        while True:
            await asyncio.sleep(min(LOOKS_S, idle_s / 4))
            for slot in list(self._slots.values()):
                if slot.process is not None and slot.process.busy:
                    slot.idle_since = self._clock()
                elif slot.idle and not slot.pinned and self._clock() - slot.idle_since >= idle_s:
                    await self._end(slot)

    def _mourn(self, slot: Slot, process: EngineProcess) -> None:
        """A process has ended."""
        slot.last_lines = process.last_lines
        if slot.process is process:
            slot.process = None
        if process.expected:
            return
        slot.deaths = 1 if process.answered else slot.deaths + 1
        pause = 0.0 if slot.deaths < AT_ONCE else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (slot.deaths - AT_ONCE))
        slot.not_before = self._clock() + pause
        self._tell("the engine of {model} ended: {how}", model=slot.name, how=process.how)
        for line in slot.last_lines:
            self._tell("{model}: {line}", model=slot.name, line=line)

    async def _state_of(self, slot: Slot) -> ModelState:
        entry = await asyncio.to_thread(self._library.find, slot.name) if on_disk(slot.source) is None else None
        return await asyncio.to_thread(self._state, slot, entry)

    def _state(self, slot: Slot, entry: Entry | None) -> ModelState:
        """What is known of a model."""
        known = cards().get((entry.card or entry.name) if entry is not None else slot.name)
        process = slot.process if slot.process is not None and slot.process.serves else None
        ready = process.ready if process is not None else None
        return ModelState(
            name=slot.name,
            state="loaded" if process is not None else "loading" if slot.loading is not None else "unloaded",
            created=created(entry, Path(slot.source)),
            lab=known.lab if known is not None else "",
            card=known.name if known is not None else "",
            file_bytes=entry.bytes if entry is not None else bytes_at(Path(slot.source).expanduser()),
            context_tokens=ready.context_tokens if ready is not None else 0,
            begins_with=ready.begins_with if ready is not None else "",
            ends_with=ready.ends_with if ready is not None else "",
            used=slot.used,
            memory_bytes=slot.memory_bytes if process is not None else 0,
            pinned=slot.pinned,
        )


def _embed(texts: tuple[str | tuple[int, ...], ...], tenant: str, number: int) -> wire.Embed:
    return wire.Embed(number, texts, tenant)


def _loaded(slot: Slot, task: asyncio.Task[EngineProcess]) -> None:
    """Loading has ended; its error, if it has one, is known to those who waited."""
    slot.loading = None
    if not task.cancelled():
        task.exception()


def _unheard(text: str, **facts: Any) -> None:
    """Nobody listens."""
