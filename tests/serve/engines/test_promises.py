"""Promises about engine processes, by their numbers in docs/promises.md: the few of every run, the many of `make soak`."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
import signal
import time
from pathlib import Path
from statistics import quantiles

import pytest

from khola.errors import Cancelled, ContextOverflow, EngineDied, KholaError, NoMemory
from khola.serve.backend import Piece
from khola.serve.engines.pool import Engines
from tests.needs import needs_library
from tests.serve.engines.rig import CONTEXT, FOUR, direct, engines_of, going_on, read, settled, text_of

pytestmark = needs_library


def many(*few: object, soak: tuple[object, ...]) -> list[object]:
    """Sizes of a test: those of every run, and those of the longest runs."""
    return [few, pytest.param(*soak, marks=pytest.mark.soak)]


def resident(pid: int) -> int:
    """Memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held(pid: int) -> tuple[int, int]:
    """Files that this process and another have open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()), sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


async def reader(engines: Engines, number: int) -> None:
    """One stream: cut on its way or before its first piece, dropped, left unread, or read to its end."""
    rng = random.Random(number)
    job = going_on(f"reader {number % 7} " + "x" * rng.randrange(60), rng.randint(5, 60))
    kind = rng.random()
    if kind < 0.1:
        task = asyncio.create_task(engines.start(job, "one"))
        await asyncio.sleep(rng.random() / 100)
        task.cancel()
        if isinstance(found := (await asyncio.gather(task, return_exceptions=True))[0], Piece):
            raise AssertionError(found)
        return
    answer = await engines.start(job, "one")
    if kind < 0.5:
        for _ in range(rng.randint(1, 4)):
            await anext(answer, None)
        await answer.aclose()
    elif kind < 0.6:
        del answer
    elif kind < 0.7:
        await asyncio.sleep(rng.random() / 10)
        await answer.aclose()
    else:
        assert (await read(answer))[-1].finish_reason == "length"


@pytest.mark.parametrize(("streams", "rounds"), many(100, 1, soak=(1000, 10)))
def test_p15_pages_never_leak(tmp_path: Path, streams: int, rounds: int) -> None:
    async def served() -> None:
        async with engines_of(tmp_path, options={"rows": 32, "cache_tokens": 4096}) as engines:
            await read(await engines.start(going_on(), "one"))
            pid = engines.process_id("one")
            # Threads that do the work are there when they were needed once.
            await asyncio.gather(*[reader(engines, number) for number in range(50)])
            await settled(engines)
            gc.collect()  # what earlier tests left open must not be closed in between
            tasks, files, sizes = len(asyncio.all_tasks()), held(pid), []
            for turn in range(rounds):
                for first in range(0, streams, 200):
                    numbers = range(turn * streams + first, turn * streams + min(first + 200, streams))
                    await asyncio.gather(*[reader(engines, number) for number in numbers])
                gc.collect()
                figures = await settled(engines)
                assert (figures["running"], figures["waiting"], figures["pages_used"]) == (0, 0, 0)
                sizes.append(resident(pid))
            assert len(asyncio.all_tasks()) == tasks
            assert all(now <= before for now, before in zip(held(pid), files, strict=True)), "files are left open"
            engine = engines._slots["one"].process
            assert engine is not None
            assert not engine._channels
            assert not engine._calls
            assert sizes[-1] <= 1.02 * sizes[0]

    asyncio.run(served())


@pytest.mark.parametrize(("aborts",), many(15, soak=(2000,)))
def test_p16_cancelling_frees_work_fast(tmp_path: Path, aborts: int) -> None:
    """Queued, while the prompt is read, or while the answer is made; seen by the next question behind the cancellation."""

    async def served() -> None:
        async with engines_of(tmp_path, options={"rows": 4, "cache_tokens": 4096}) as engines:
            await engines.load("one")
            rng = random.Random(0)
            times = []
            for _ in range(aborts):
                jobs = [going_on("y" * rng.randrange(1, 400), 100) for _ in range(rng.choice([1, 8]))]
                answers = await asyncio.gather(*[engines.start(job, "one") for job in jobs])
                if rng.random() < 0.7:
                    await anext(answers[0])
                await asyncio.sleep(rng.random() / 50)
                began = time.perf_counter()
                await asyncio.gather(*[answer.aclose() for answer in answers])
                while (figures := (await engines.figures())["one"])["running"] or figures["waiting"] or figures["pages_used"]:
                    await asyncio.sleep(0.001)
                times.append(time.perf_counter() - began)
            step_s = figures["step_s"] / figures["steps"]
            assert quantiles(times, n=100)[98] <= max(2 * step_s, 0.25)

    asyncio.run(served())


@pytest.mark.slow
@pytest.mark.parametrize(("operations",), many(40, soak=(1000,)))
def test_p20_loading_and_unloading_under_traffic(tmp_path: Path, operations: int) -> None:
    prompts = ("a", "text", "খোলা", "three words here")
    golden: dict[tuple[str, str], str] = {}
    for name in FOUR:
        with direct(tmp_path, name, cache_tokens=1024) as model:
            for prompt in prompts:
                golden[name, prompt] = model.complete(prompt, sampling={"temperature": 0, "max_tokens": 12, "ignore_end": True}).text
    assert len(set(golden.values())) > len(golden) // 2
    done: list[str] = []

    async def one(engines: Engines, number: int) -> None:
        rng = random.Random(number)
        name, prompt, kind = rng.choice(FOUR), rng.choice(prompts), rng.random()
        await asyncio.sleep(rng.random() * operations / 40)
        try:
            if kind < 0.15:
                await engines.load(name)
            elif kind < 0.3:
                await engines.unload(name)
            else:
                pieces = await read(await engines.start(going_on(prompt, 12), name))
                assert text_of(pieces) == golden[name, prompt]
                done.append(name)
        except KholaError as error:
            assert error.code in ("busy", "no_memory"), error

    async def served() -> None:
        async with engines_of(tmp_path, *FOUR, options={"cache_tokens": 1024}, budget_bytes=650_000_000) as engines:
            await engines.load("one")
            before = resident(os.getpid())
            await asyncio.gather(*[one(engines, number) for number in range(operations)])
            assert len(done) > operations / 10
            assert resident(os.getpid()) <= 1.05 * before + 20e6
            assert text_of(await read(await engines.start(going_on("a", 12), "four"))) == golden["four", "a"]

    asyncio.run(served())


@pytest.mark.slow
@pytest.mark.parametrize(("rooms_mb",), many((4096, 200, 16), soak=((4096, 200, 16, 2048, 1024, 512, 256, 128, 96, 64, 32, 8, 1) * 4,)))
def test_p21_out_of_addresses_is_an_answer(tmp_path: Path, rooms_mb: tuple[int, ...]) -> None:
    """Texts of digits take the most memory to cut; the library that cuts them would end the process where there is none."""
    refused: dict[int, int] = {}

    async def ask(engines: Engines, kind: str, letters: int, room_mb: int) -> None:
        text = "1" * letters
        try:
            if kind == "tokens":
                assert len(await engines.tokens(text, "one")) == letters
            elif kind == "embed":
                await engines.embed([text], "one")
            else:
                await read(await engines.start(going_on(text, 10), "one"))
        except ContextOverflow:
            assert letters > CONTEXT
        except NoMemory as error:
            assert error.http_status == 503
            refused[room_mb] = refused.get(room_mb, 0) + 1

    async def served() -> None:
        async with engines_of(tmp_path, options={"rows": 8, "cache_tokens": 4096}) as engines:
            expected = text_of(await read(await engines.start(going_on("golden", 400), "one")))
            pid = engines.process_id("one")
            for room_mb in rooms_mb:
                neighbours = [asyncio.create_task(read(await engines.start(going_on("golden", 400), "one"))) for _ in range(3)]
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
                resource.prlimit(pid, resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + (room_mb << 20), resource.RLIM_INFINITY))
                for letters in (10, 10_000, 1_000_000):
                    await asyncio.gather(*[ask(engines, kind, letters, room_mb) for kind in ("tokens", "start", "embed", "tokens")])
                assert [text_of(pieces) for pieces in await asyncio.gather(*neighbours)] == [expected] * 3
                assert engines.process_id("one") == pid
                resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert text_of(await read(await engines.start(going_on("golden", 400), "one"))) == expected

    asyncio.run(served())
    # Nothing is refused where there is enough, the long texts where there is little, and everything where there is next to nothing.
    assert [refused.get(room_mb, 0) / rooms_mb.count(room_mb) for room_mb in (4096, 200, 16)] == [0, 4, 12]


@pytest.mark.slow
@pytest.mark.parametrize(("deaths",), many(3, soak=(50,)))
def test_p22_death_is_visible_and_short(tmp_path: Path, deaths: int) -> None:
    async def served() -> None:
        async with engines_of(tmp_path) as engines:
            expected = text_of(await read(await engines.start(going_on("golden"), "one")))
            for _ in range(deaths):
                running = [await engines.start(going_on(f"n {number}", 400), "one") for number in range(16)]
                reading = [asyncio.create_task(read(answer)) for answer in running]
                os.kill(engines.process_id("one"), signal.SIGKILL)
                began = time.perf_counter()
                ends = await asyncio.gather(*reading, return_exceptions=True)
                assert time.perf_counter() - began <= 1
                assert all(isinstance(end, EngineDied) or end[-1].finish_reason for end in ends)
                assert any(isinstance(end, EngineDied) for end in ends)
                assert text_of(await read(await engines.start(going_on("golden"), "one"))) == expected
                assert time.perf_counter() - began <= 5

    asyncio.run(served())


@pytest.mark.slow
@pytest.mark.parametrize(("rounds",), many(1, soak=(100,)))
def test_p23_closing_loses_no_accepted_work(tmp_path: Path, rounds: int) -> None:
    async def served(grace_s: float) -> None:
        async with engines_of(tmp_path) as engines:
            running = [await engines.start(going_on(f"n {number}", 100 + number), "one") for number in range(20)]
            pid = engines.process_id("one")
            if not grace_s:
                os.kill(pid, signal.SIGSTOP)
            reading = [asyncio.create_task(read(answer)) for answer in running]
            await engines.close(grace_s)
            ends = await asyncio.gather(*reading, return_exceptions=True)
            if grace_s:
                counts = [end[-1].cost.answer_tokens for end in ends if isinstance(end, list) and end[-1].cost is not None]
                assert counts == [100 + number for number in range(20)]
            else:
                # What was done before the process was stopped is done.
                assert all(isinstance(end, Cancelled) or end[-1].finish_reason for end in ends)
                assert any(isinstance(end, Cancelled) for end in ends)
            assert not Path(f"/proc/{pid}").exists()

    for turn in range(rounds):
        asyncio.run(served(0.0 if turn % 2 else 30.0))
        if rounds == 1:
            asyncio.run(served(0.0))


def test_p24_nothing_is_cut_in_silence(tmp_path: Path) -> None:
    async def served() -> None:
        async with engines_of(tmp_path) as engines:
            for length in (CONTEXT, CONTEXT + 1, 10 * CONTEXT):
                with pytest.raises(ContextOverflow, match=f"has {length} tokens; the maximum context length is {CONTEXT}"):
                    await engines.start(going_on((97,) * length), "one")
            for length in (CONTEXT - 1, CONTEXT - 30):
                pieces = await read(await engines.start(going_on((97,) * length, 400), "one"))
                last = pieces[-1]
                assert last.cost is not None
                assert (last.finish_reason, last.cost.answer_tokens) == ("length", CONTEXT - length)

    asyncio.run(served())
