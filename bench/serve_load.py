"""Many streams at once against `khola serve`, and the same load against llama-server, in turns: `python -m bench.serve_load --help`.

Every stream asks again as soon as its answer ends, with a prompt that no other had, so that neither server finds it in its cache. Both are
asked for as many tokens and do not stop at the end of a turn. Tokens are those that the servers count themselves; gaps are the times
between the pieces of text of one stream. Both servers run all the time; the one that is not asked sleeps.

With `--overhead` one stream is timed in turns over HTTP and in this process, as `khola bench` times it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ADDRESS = re.compile(r"http://([\d.]+):(\d+)/v1")


@dataclass
class Heard:
    """What one server said in one turn."""

    seconds: float = 0.0
    tokens: int = 0
    answers: int = 0
    errors: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    """Seconds from a request to its first text."""


@dataclass(frozen=True)
class Server:
    """Where one answers, and which model."""

    name: str
    host: str
    port: int
    model: str


def prompt(number: int) -> str:
    """About fifty tokens that begin unlike any other prompt."""
    word = "".join(LETTERS[number // 26**at % 26] for at in range(5))
    return (
        f"{word} {number}: continue this list of things that travellers need on a long journey through mountains, deserts and cities, " * 2
    )


async def answer(server: Server, number: int, tokens: int, heard: Heard) -> None:
    """One streamed answer, read to its end."""
    asked = {"model": server.model, "prompt": prompt(number), "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    body = json.dumps({**asked, "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection(server.host, server.port, limit=1 << 20)
    try:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        )
        begun = last = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status = (await reader.readline()).decode()
        said, ended = False, False
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                ended = True
                break
            event = json.loads(line[6:])
            now = time.perf_counter()
            if "error" in event:
                heard.errors.append(str(event["error"])[:200])
            for choice in event.get("choices", ()):
                if choice.get("text"):
                    (heard.gaps if said else heard.first).append(now - last if said else now - begun)
                    said, last = True, now
            if event.get("usage"):
                heard.tokens += event["usage"]["completion_tokens"]
        if not ended:
            heard.errors.append(f"no end: {status.strip()}")
        heard.answers += 1
    finally:
        writer.close()


async def load(server: Server, streams: int, tokens: int, seconds: float, first: int) -> Heard:
    """A turn: so many streams for so long, and then until their answers end; only whole answers begun in time count."""
    heard, until = Heard(), time.perf_counter() + seconds
    numbers = iter(range(first, first + 10_000_000))

    async def go_on() -> None:
        while time.perf_counter() < until:
            try:
                await answer(server, next(numbers), tokens, heard)
            except (OSError, ValueError) as wrong:
                heard.errors.append(repr(wrong)[:200])
                await asyncio.sleep(0.1)

    begun = time.perf_counter()
    await asyncio.gather(*(go_on() for _ in range(streams)))
    heard.seconds = time.perf_counter() - begun
    return heard


@contextmanager
def khola(model: str) -> Iterator[Server]:
    """`khola serve` with this model alone."""
    command = [sys.executable, "-m", "khola", "serve", model, "--port", "0", "--lang", "en", "--idle", "0", "--log", "/dev/null"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            found = next(found for line in server.stderr if (found := ADDRESS.search(line)))
            host, port = found[1], int(found[2])
            with urllib.request.urlopen(f"http://{host}:{port}/v1/models") as answer:
                name = json.load(answer)["data"][0]["id"]
            yield Server("khola", host, port, name)
        finally:
            server.terminate()


@contextmanager
def llama(binary: Path, file: Path, streams: int, tokens: int, port: int) -> Iterator[Server]:
    """llama-server with a slot for every stream and flash attention."""
    context = streams * (tokens + 192)
    command = [
        str(binary), "-m", str(file), "--port", str(port), "-np", str(streams), "-c", str(context), "-t", "2", "-fa", "on", "--no-webui",
        "--cache-ram", "0",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as health:
                        if health.status == 200:
                            break
                except OSError:
                    time.sleep(0.1)
            yield Server("llama-server", "127.0.0.1", port, "model")
        finally:
            server.terminate()


def figures(server: Server) -> dict[str, float]:
    """Levels of khola's engine, by name."""
    with urllib.request.urlopen(f"http://{server.host}:{server.port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {
        line.split("{")[0].split()[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith(("khola_engine_running", "khola_engine_waiting", "khola_engine_pages"))
    }


def quantile(values: list[float], share: float) -> float:
    """Of some times, in milliseconds."""
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def told(name: str, turns: list[Heard]) -> dict[str, Any]:
    """What a server reached in all its turns."""
    gaps = [gap for turn in turns for gap in turn.gaps]
    return {
        "server": name,
        "seconds": round(sum(turn.seconds for turn in turns)),
        "answers": sum(turn.answers for turn in turns),
        "errors": [error for turn in turns for error in turn.errors][:5],
        "tokens_s": [round(turn.tokens / turn.seconds, 1) for turn in turns],
        "gap_p50_ms": round(quantile(gaps, 0.5), 1),
        "gap_p99_ms": round(quantile(gaps, 0.99), 1),
        "first_p50_ms": round(quantile([first for turn in turns for first in turn.first], 0.5), 1),
    }


def overhead(server: Server, model: str, rounds: int, tokens: int) -> None:
    """One stream over HTTP and in this process, in turns: seconds from the first text of an answer to its last."""
    from khola.api import load as load_here

    ratios = []
    with load_here(model) as here:
        for number in range(rounds):
            over = Heard()
            asyncio.run(answer(server, 5_000_000 + number, tokens, over))
            sampling = {"temperature": 0, "max_tokens": tokens, "ignore_end": True}
            times = []
            with here.stream_complete(prompt(5_000_000 + number), sampling=sampling) as pieces:
                times = [time.perf_counter() for piece in pieces if piece.text]
            ratios.append(sum(over.gaps) / (times[-1] - times[0]))
    print(json.dumps({"overhead_p50": round(statistics.median(ratios[1:]), 3), "rounds": [round(ratio, 3) for ratio in ratios]}))


def main() -> None:
    """Run the turns and print a line of JSON for each server."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", help="a GGUF file, or a name of the library")
    arguments.add_argument("--llama-server", type=Path, help="the peer's program; it runs the same file, or that of --peer-file")
    arguments.add_argument("--peer-file", type=Path)
    arguments.add_argument("--streams", type=int, default=64)
    arguments.add_argument("--tokens", type=int, default=128)
    arguments.add_argument("--turns", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=150, help="of a turn of khola's; the peer has --peer-seconds")
    arguments.add_argument("--peer-seconds", type=float, default=60)
    arguments.add_argument("--overhead", type=int, default=0, help="rounds of one stream over HTTP and without")
    asked = arguments.parse_args()
    with ExitStack() as running:
        ours = running.enter_context(khola(asked.model))
        asyncio.run(load(ours, 1, 8, 0.1, 7_000_000))  # loads the model
        if asked.overhead:
            overhead(ours, asked.model, asked.overhead, asked.tokens)
        servers = [(ours, asked.seconds)]
        if asked.llama_server:
            file = asked.peer_file or Path(asked.model)
            servers.append((running.enter_context(llama(asked.llama_server, file, asked.streams, asked.tokens, 18977)), asked.peer_seconds))
        turns: dict[str, list[Heard]] = {server.name: [] for server, _ in servers}
        for turn in range(asked.turns):
            for server, seconds in servers:
                turns[server.name].append(asyncio.run(load(server, asked.streams, asked.tokens, seconds, 100_000 * (turn + 1))))
        for server, _ in servers:
            print(json.dumps(told(server.name, turns[server.name])))
        print(json.dumps(figures(ours)))


if __name__ == "__main__":
    main()
