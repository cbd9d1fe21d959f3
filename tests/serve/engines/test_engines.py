"""Engine processes: what they answer, when they come and go, what they give up."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from khola.chat.message import Message
from khola.errors import BadFiles, Busy, Cancelled, EngineDied, KholaError, NoMemory, NoTemplate, NotPulled, UnknownModel, UnknownOption
from khola.serve.backend import ChatJob
from khola.serve.engines import process
from khola.serve.engines.pool import Engines
from tests.loader.tiny_gguf import tiny_gguf
from tests.needs import needs_library
from tests.serve.engines.rig import direct, engines_of, going_on, read, settings_of, settled, text_of, tiny_models

pytestmark = needs_library


def test_answers_are_those_of_the_model_itself(tmp_path: Path) -> None:
    async def served() -> None:
        async with engines_of(tmp_path) as engines:
            states = await engines.models()
            assert [(state.name, state.state) for state in states] == [("one", "unloaded")]
            jobs = [going_on(f"text {number}", 10 + number, tenant=f"t{number % 2}") for number in range(8)]
            answers = await asyncio.gather(*[engines.start(job, "one") for job in jobs])
            told = await asyncio.gather(*map(read, answers))
            assert [text_of(pieces) for pieces in told] == [answer.text for answer in expected]
            for pieces, answer in zip(told, expected, strict=True):
                last = pieces[-1]
                assert last.cost is not None
                assert (last.finish_reason, last.cost.answer_tokens) == ("length", answer.usage.answer_tokens)
                assert not any(piece.finish_reason or piece.tokens for piece in pieces[:-1])
            vectors, tokens = await engines.embed(["a text", (104, 105)], "one")
            np.testing.assert_array_equal(np.asarray(vectors, np.float32), embedded)
            assert tokens == 8
            assert await engines.tokens("hi ab", "one") == model.ids("hi ab")
            assert await engines.text([*b"hi", 256], "one") == "hi<|end|>"
            (state,) = await engines.models()
            assert (state.state, state.context_tokens) == ("loaded", 512)
            assert state.memory_bytes > 0
            with pytest.raises(NoTemplate, match="one has no chat format"):
                await engines.start(ChatJob(messages=(Message(role="user", content="hi"),)), "one")
            with pytest.raises(UnknownOption, match="sampling has no option 'temprature'"):
                await engines.start(going_on(sampling={"temprature": 1}), "one")
            for form in ({"schema": "/etc/passwd"}, {"grammar": 7}, {"path": "x"}):
                with pytest.raises(UnknownOption):
                    await engines.start(going_on(form=form), "one")
            with pytest.raises(UnknownModel, match="'two'"):
                await engines.start(going_on(), "two")

    with direct(tmp_path, "one") as model:
        sampling = {"temperature": 0, "ignore_end": True}
        expected = [model.complete(f"text {number}", sampling={**sampling, "max_tokens": 10 + number}) for number in range(8)]
        embedded = model.embed(["a text", [104, 105]])
    asyncio.run(served())


def test_prompt_logprobs_are_the_scores(tmp_path: Path) -> None:
    async def served() -> None:
        async with engines_of(tmp_path) as engines:
            job = going_on(text, 1, prompt_logprobs=2, sampling={"logprobs": 1})
            first, *_ = pieces = await read(await engines.start(job, "one"))
            assert tuple(token.id for token in first.prompt) == score.tokens
            assert tuple(token.logprob for token in first.prompt) == (None, *score.logprobs)
            assert b"".join(token.spells for token in first.prompt).decode() == text
            for token in first.prompt[1:]:
                (best, spells, most), (_, _, less) = token.top
                assert token.logprob is not None
                assert token.logprob <= most >= less
                assert (token.id == best) == (token.logprob == most)
                assert spells in (bytes([best]) if best < 256 else b"", b"ab")
            (answer,) = [token for piece in pieces for token in piece.tokens]
            assert answer.logprob == answer.top[0][2]
            reading = await read(await engines.start(going_on(text, 0, prompt_logprobs=0), "one"))
            assert [(token.logprob, token.top) for piece in reading for token in piece.prompt[1:]] == [(s, ()) for s in score.logprobs]
            with pytest.raises(UnknownOption, match="prompt_top is 101"):
                await engines.start(going_on(prompt_logprobs=101), "one")

    text = "খোলা ab, open"
    with direct(tmp_path, "one") as model:
        score = model.score(text)
    asyncio.run(served())


def test_one_loads_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    start = process.EngineProcess._start

    async def counted(self: process.EngineProcess) -> None:
        starts.append(self.name)
        await start(self)

    monkeypatch.setattr(process.EngineProcess, "_start", counted)

    async def served() -> None:
        async with engines_of(tmp_path) as engines:
            first = asyncio.create_task(engines.start(going_on(), "one"))
            others = [asyncio.create_task(engines.tokens("x", "one")) for _ in range(5)]
            await asyncio.sleep(0.05)
            # Whoever asked first may go: loading goes on for the others.
            first.cancel()
            assert await asyncio.gather(*others) == [[120]] * 5
            assert starts == ["one"]

    asyncio.run(served())


@pytest.mark.slow
def test_idle_models_make_room_and_busy_or_pinned_ones_stay(tmp_path: Path) -> None:
    async def served() -> None:
        async with engines_of(tmp_path, "one", "two", "three", budget_bytes=470_000_000, pinned=["one"]) as engines:
            answers = []
            for name in ("one", "two"):
                await engines.load(name)
                os.kill(engines.process_id(name), signal.SIGSTOP)
                answers.append(asyncio.create_task(engines.start(going_on("a", 400), name)))
            await asyncio.sleep(0.01)
            with pytest.raises(NoMemory, match=r"three needs \d+ MB"):
                await engines.load("three")
            for name in ("one", "two"):
                os.kill(engines.process_id(name), signal.SIGCONT)
            await asyncio.gather(*[read(answer) for answer in await asyncio.gather(*answers)])
            await engines.tokens("x", "two")
            await engines.load("three")
            assert {state.name: state.state for state in await engines.models()} == {"one": "loaded", "two": "unloaded", "three": "loaded"}
            # What a model takes is known once it was loaded: less than its files made fear.
            await engines.load("two")
            assert {state.state for state in await engines.models()} == {"loaded"}

    asyncio.run(served())


def test_unloading_waits_for_answers_and_idle_models_go(tmp_path: Path) -> None:
    async def served() -> None:
        async with engines_of(tmp_path, idle_s=0.1) as engines:
            running = await engines.start(going_on("a", 300), "one")
            pid, engine = engines.process_id("one"), engines._slots["one"].process
            unloading = asyncio.create_task(engines.unload("one"))
            await asyncio.sleep(0)
            with pytest.raises(Busy, match="one is being unloaded"):
                await engines.start(going_on(), "one")
            assert (await read(running))[-1].finish_reason == "length"
            assert (await unloading).state == "unloaded"
            assert not Path(f"/proc/{pid}").exists()
            assert engine is not None
            assert engine.how == "exit status 0"
            await read(await engines.start(going_on(), "one"))
            for _ in range(100):
                if engines.process_id("one") == 0:
                    break
                await asyncio.sleep(0.02)
            assert engines.process_id("one") == 0

    asyncio.run(served())


def test_what_is_not_here_is_not_offered(tmp_path: Path) -> None:
    async def made() -> None:
        for name, error in (("nonsense", UnknownModel), ("qwen3-0.6b", NotPulled)):
            with pytest.raises(error, match=name):
                Engines(settings_of(tmp_path), [name])
        (file,) = tiny_models(tmp_path, "one")
        with pytest.raises(UnknownOption, match="two of the offered models would be called one"):
            Engines(settings_of(tmp_path), [file, file])
        with pytest.raises(UnknownOption, match="two is to be pinned"):
            Engines(settings_of(tmp_path), [file], pinned=["two"])
        # Without names, all of the library is offered, and what comes to it later.
        engines = Engines(settings_of(tmp_path))
        assert await engines.models() == []
        models = settings_of(tmp_path).models
        models.mkdir(parents=True)
        tiny_gguf(models / "late.gguf")
        (state,) = await engines.models()
        assert (state.name, state.state, state.file_bytes) == ("late", "unloaded", (models / "late.gguf").stat().st_size)
        assert await engines.tokens("x", "late") == [120]
        with pytest.raises(UnknownModel):
            await engines.tokens("x", "../late")
        await engines.close(1)

    asyncio.run(made())


def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(60))

    async def served() -> None:
        heard: list[str] = []
        engines = Engines(
            settings_of(tmp_path), [str(tmp_path / "bad.gguf")], tell=lambda text, **facts: heard.append(text.format(**facts))
        )
        for _ in range(2):
            with pytest.raises(BadFiles) as told:
                await engines.start(going_on(), "bad")
        # The second request did not try again, so soon after the first.
        assert heard == [f"bad cannot be loaded: {told.value}"]
        with pytest.raises(BadFiles) as found:
            await engines.load("bad")
        assert found.value.facts["stderr"] == []
        await engines.close(1)
        with pytest.raises(Busy, match="the server is being stopped"):
            await engines.start(going_on(), "bad")

    asyncio.run(served())


@pytest.mark.slow
def test_a_process_that_dies_again_and_again_is_given_time(tmp_path: Path) -> None:
    now = 0.0
    heard = []

    async def served() -> None:
        nonlocal now
        async with engines_of(tmp_path, clock=lambda: now, tell=lambda text, **facts: heard.append(text.format(**facts))) as engines:
            for _ in range(3):
                answer = await engines.start(going_on("a", 400), "one")
                os.kill(engines.process_id("one"), signal.SIGSEGV)
                with pytest.raises(EngineDied, match="SIGSEGV") as found:
                    await read(answer)
                assert "stderr" not in found.value.facts
            with pytest.raises(EngineDied, match="3 times in a row"):
                await engines.start(going_on(), "one")
            now = 1.0
            assert (await read(await engines.start(going_on(), "one")))[-1].finish_reason == "length"
            os.kill(engines.process_id("one"), signal.SIGKILL)
            while engines.process_id("one"):
                await asyncio.sleep(0.005)
            await read(await engines.start(going_on(), "one"))
        assert heard[:1] == ["the engine of one ended: SIGSEGV"]

    asyncio.run(served())


def test_a_reader_that_stalls_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "BUFFER_BYTES", 20_000)

    async def served() -> None:
        async with engines_of(tmp_path) as engines:
            stalled = await engines.start(going_on("a", 400), "one")
            figures = await settled(engines, wait_s=10)
            with pytest.raises(Cancelled, match="waited for their reader"):
                await read(stalled)
            assert 0 < figures["answer_tokens"] < 400

    asyncio.run(served())


def test_an_engine_process_has_no_network_no_secret_and_no_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    async def served() -> None:
        async with engines_of(tmp_path) as engines:
            engines._settings = replace(engines._settings, hub_token="hf_secret")
            await engines.load("one")
            proc = Path(f"/proc/{engines.process_id('one')}")
            assert b"secret" not in (proc / "environ").read_bytes()
            assert "secret" not in str(process.sent(engines._settings))
            status = (proc / "status").read_text()
            assert "Umask:\t0077" in status
            assert "NoNewPrivs:\t1" in status
            (core,) = [line for line in (proc / "limits").read_text().splitlines() if line.startswith("Max core")]
            assert core.split()[4:6] == ["0", "0"]
            engine = engines._slots["one"].process
            assert engine is not None and engine.ready is not None
            if not engine.ready.network:
                assert (proc / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
                names = {line.split(":")[0].strip() for line in (proc / "net/dev").read_text().splitlines()[2:]}
                assert names <= {"lo", *(name for name in names if name.endswith("0"))}
                assert (proc / "net/route").read_text().count("\n") <= 1

    asyncio.run(served())


PARENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from khola.serve.engines.pool import Engines
from tests.serve.engines.rig import settings_of

async def main():
    engines = Engines(settings_of(Path(sys.argv[2])), [sys.argv[3]])
    await engines.load("one")
    print(engines.process_id("one"), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_engines_do_not_outlive_a_server_that_is_killed(tmp_path: Path) -> None:
    (file,) = tiny_models(tmp_path, "one")
    root = str(Path(__file__).resolve().parents[3])
    with subprocess.Popen([sys.executable, "-c", PARENT, root, str(tmp_path), file], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    until = time.monotonic() + 2
    while _lives(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has buried yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (OSError, KholaError):
        return False
