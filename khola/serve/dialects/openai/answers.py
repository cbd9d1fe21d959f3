"""Several answers at once: begun together, read in the order in which their pieces come, and stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from khola.errors import Busy
from khola.serve.backend import Backend, Cost, Job, Piece, Pieces

IN_HAND = 4
"""Pieces of an answer that wait to be read, where several are read at once."""


@asynccontextmanager
async def running(backend: Backend, jobs: Sequence[Job], model: str) -> AsyncIterator[list[Pieces]]:
    """All answers, begun; they are stopped at the end.

    Raises:
        KholaError: one of them could not begin.
    """
    found = await asyncio.gather(*(backend.start(job, model) for job in jobs), return_exceptions=True)
    answers = [one for one in found if not isinstance(one, BaseException)]
    try:
        for wrong in found:
            if isinstance(wrong, BaseException):
                raise wrong
        yield answers
    finally:
        await asyncio.gather(*(answer.aclose() for answer in answers))


async def merged(answers: Sequence[Pieces]) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of all answers as they come, each with the number of its answer.

    Raises:
        KholaError: one of them failed, or was stopped by somebody else.
    """
    if len(answers) == 1:
        async for piece in answers[0]:
            yield 0, _whole(piece)
        return
    queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue(IN_HAND * len(answers))

    async def read(index: int, answer: Pieces) -> None:
        try:
            async for piece in answer:
                await queue.put((index, piece))
            await queue.put((index, None))
        except Exception as error:
            await queue.put((index, error))

    tasks = [asyncio.create_task(read(index, answer)) for index, answer in enumerate(answers)]
    try:
        running = len(tasks)
        while running:
            index, told = await queue.get()
            if isinstance(told, BaseException):
                raise told
            if told is None:
                running -= 1
            else:
                yield index, _whole(told)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _whole(piece: Piece) -> Piece:
    """The piece, unless it is the end of an answer that somebody else stopped.

    Raises:
        Busy: it is; an unload or the server's end did it.
    """
    if piece.finish_reason == "cancelled":
        raise Busy("the answer was stopped before its end")
    return piece


async def whole(backend: Backend, jobs: Sequence[Job], model: str) -> list[list[Piece]]:
    """The pieces of each answer, to the end.

    Raises:
        KholaError: one of them failed.
    """
    found: list[list[Piece]] = [[] for _ in jobs]
    async with running(backend, jobs, model) as answers, aclosing(merged(answers)) as pieces:
        async for index, piece in pieces:
            found[index].append(piece)
    return found


def usage(costs: Sequence[Cost], prompts: int = 1) -> dict[str, Any]:
    """What answers cost together.

    Args:
        costs: of each answer, those to one prompt next to each other.
        prompts: how many different prompts there were; each is counted once.
    """
    firsts = costs[:: len(costs) // prompts] if prompts else []
    prompt_tokens = sum(cost.prompt_tokens for cost in firsts)
    answer_tokens = sum(cost.answer_tokens for cost in costs)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer_tokens,
        "total_tokens": prompt_tokens + answer_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(cost.cached_tokens for cost in firsts)},
        "completion_tokens_details": {"reasoning_tokens": sum(cost.thinking_tokens for cost in costs)},
    }


def timings(cost: Cost) -> dict[str, float]:
    """How long an answer took, under the names that llama.cpp's server gives."""
    read = cost.prompt_tokens - cost.cached_tokens
    return {
        "prompt_n": read,
        "prompt_ms": cost.prefill_s * 1e3,
        "cache_n": cost.cached_tokens,
        "predicted_n": cost.answer_tokens,
        "predicted_ms": cost.decode_s * 1e3,
        "predicted_per_second": cost.answer_tokens / cost.decode_s if cost.decode_s else 0.0,
    }
