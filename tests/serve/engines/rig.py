"""Engine processes of tiny models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from khola.api import Model, load
from khola.serve.backend import Piece, Pieces, TextJob
from khola.serve.engines.pool import Engines
from khola.settings import Settings
from tests.loader.tiny_gguf import LAYERS, tiny_gguf

CONTEXT = 512
"""Of the tiny models."""
FOUR = ("one", "two", "three", "four")


def settings_of(folder: Path) -> Settings:
    return Settings(home=folder / "khola", user_home=folder, offline=True, threads=1)


def tiny_models(folder: Path, *names: str, layers: int = LAYERS) -> list[str]:
    """Files of models of different weights; their paths."""
    return [str(tiny_gguf(folder / f"{name}.gguf", seed=FOUR.index(name), layers=layers)) for name in names]


@asynccontextmanager
async def engines_of(folder: Path, *names: str, layers: int = LAYERS, **more: Any) -> AsyncIterator[Engines]:
    """Engines that offer tiny models; closed at the end."""
    engines = Engines(settings_of(folder), tiny_models(folder, *(names or ("one",)), layers=layers), **more)
    try:
        yield engines
    finally:
        await engines.close(5)


def direct(folder: Path, name: str, **more: Any) -> Model:
    """The same model in this process."""
    return load(tiny_models(folder, name)[0], settings=settings_of(folder), **more)


def going_on(prompt: str | tuple[int, ...] = "hello", tokens: int = 20, **more: Any) -> TextJob:
    """A text that goes on for so many tokens."""
    sampling = {"temperature": 0, "max_tokens": tokens, "ignore_end": True}
    return TextJob(prompt=prompt, sampling=sampling | more.pop("sampling", {}), **more)


async def read(pieces: Pieces) -> list[Piece]:
    """All pieces."""
    return [piece async for piece in pieces]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def settled(engines: Engines, name: str = "one", wait_s: float = 2.0) -> dict[str, float]:
    """Figures once nothing runs; the last ones when that does not come."""
    for _ in range(round(wait_s / 0.02)):
        figures = (await engines.figures())[name]
        if not (figures["running"] or figures["waiting"] or figures["pages_used"]):
            break
        await asyncio.sleep(0.02)
    return figures
