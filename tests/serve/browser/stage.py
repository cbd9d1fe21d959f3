"""A server for the browser tests: the real one, with a backend that plays what a test asks it to.

Run as a program it prints its address with the key, and answers until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from xss import PAYLOADS

from khola.chat.message import ToolCall
from khola.errors import Busy
from khola.fetch.progress import Progress
from khola.serve.access.guard import Guard
from khola.serve.backend import ChatJob, Cost, Job, ModelState, Piece
from khola.serve.dialects.page import catalogue
from khola.serve.engines.echo import Echo
from khola.serve.pulls import Fetch
from khola.serve.run import listen, serve
from khola.serve.service import Service
from khola.settings import Settings

EVIL = '<img src=x onerror="window.hacked=1">'
NAMES = ("echo", "mirror", "smollm2-135m-instruct", EVIL)


class Played:
    """The pieces of one answer."""

    def __init__(self, pieces: AsyncGenerator[Piece, None]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> Played:
        return self

    async def __anext__(self) -> Piece:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Stop."""
        await self._pieces.aclose()


class Actor(Echo):
    """Says again what it hears, but plays a part where the first word of the question asks for one."""

    async def start(self, job: Job, model: str) -> Any:
        """Begin an answer."""
        question = job.messages[-1].content if isinstance(job, ChatJob) else ""
        part = PARTS.get(question.split(" ", 1)[0])
        if isinstance(job, ChatJob) and job.messages[-1].role == "tool":
            part = _after_tool
        return Played(part(job)) if part and isinstance(job, ChatJob) else await super().start(job, model)

    async def models(self) -> list[ModelState]:
        """Four of them, one with a name that means harm."""
        return [
            ModelState(name=name, state=self._states.get(name, "loaded"), created=1, context_tokens=8192, file_bytes=98_000_000,
                       memory_bytes=250_000_000, card=name if name.startswith("smollm2") else "")
            for name in NAMES
        ]  # fmt: skip

    async def figures(self) -> dict[str, dict[str, float]]:
        """Numbers that grow."""
        now = time.monotonic()
        return {
            "echo": {"running": 2, "waiting": 1, "answer_tokens": now * 40, "computed_tokens": now * 90, "pages": 100, "pages_used": 40,
                     "prompt_tokens": now * 50, "cached_tokens": now * 20, "cache_bytes": 5e8, "preemptions": 0}
        }  # fmt: skip


def _end(tokens: int, thinking: int = 0) -> Piece:
    return Piece(finish_reason="stop", cost=Cost(prompt_tokens=12, cached_tokens=0, answer_tokens=tokens, thinking_tokens=thinking))


async def _slow(job: ChatJob) -> AsyncGenerator[Piece, None]:
    for number in range(200):
        await asyncio.sleep(0.05)
        yield Piece(text=f"word{number} ")
    yield _end(200)


async def _think(job: ChatJob) -> AsyncGenerator[Piece, None]:
    for word in ("First ", "I ", "weigh ", "it."):
        await asyncio.sleep(0.02)
        yield Piece(thinking=word)
    yield Piece(text="The answer is **42**.")
    yield _end(9, 4)


async def _tool(job: ChatJob) -> AsyncGenerator[Piece, None]:
    if job.tools:
        yield Piece(tool_calls=(ToolCall(name="calculate", arguments={"expression": "6*7"}, id="call_1"),))
    else:
        yield Piece(text="There are no tools here.")
    yield _end(5)


async def _after_tool(job: ChatJob) -> AsyncGenerator[Piece, None]:
    yield Piece(text=f"The tool said {job.messages[-1].content}")
    yield _end(6)


async def _xss(job: ChatJob) -> AsyncGenerator[Piece, None]:
    for payload in PAYLOADS:
        yield Piece(text=f"{payload}\n\n", thinking=payload)
    yield _end(300)


async def _break(job: ChatJob) -> AsyncGenerator[Piece, None]:
    yield Piece(text="so far ")
    await asyncio.sleep(0.1)
    raise Busy("another process holds {file}", file="it")


async def _long(job: ChatJob) -> AsyncGenerator[Piece, None]:
    yield Piece(text=EXAMPLE)
    yield _end(120)


EXAMPLE = """## নদী ও নৌকা

পদ্মা *একটি* **বড়** নদী। See [the map](https://example.org/map) or `code`.

1. প্রথম
2. দ্বিতীয়
   - ভেতরে
   - inside

> A quoted line

| নাম | দৈর্ঘ্য |
| --- | ---: |
| পদ্মা | ৩৬৬ কিমি |

```python
print("নমস্কার")
```
"""
PARTS: dict[str, Callable[[ChatJob], AsyncGenerator[Piece, None]]] = {
    "slow": _slow, "think": _think, "tool": _tool, "xss": _xss, "break": _break, "long": _long,
}  # fmt: skip


def slow_fetch(settings: Settings) -> Fetch:
    """A pull of two seconds."""

    def fetch(model: str, tell: Callable[[Progress], None]) -> None:
        for step in range(20):
            tell(
                Progress(file=f"{model}.gguf", stage="fetch", done=step * 5_000_000, total=100_000_000, speed=5e7, left_s=(20 - step) / 10)
            )
            time.sleep(0.1)

    return fetch


def main(home: Path) -> None:
    """Answer until ended."""
    patch.object(catalogue, "fetcher", slow_fetch).start()  # the network is not there
    sockets = listen("127.0.0.1", 0)
    guard = Guard()
    guard.listens_on(sockets[0].getsockname()[1])
    service = Service(backend=Actor(offered=NAMES), settings=Settings(home=home, user_home=home), guard=guard)
    ready: Callable[[Any], None] = lambda stop: print(f"http://127.0.0.1:{guard.port}/#key={guard.page_key}", flush=True)  # noqa: E731
    asyncio.run(serve(service, sockets, ready=ready))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
