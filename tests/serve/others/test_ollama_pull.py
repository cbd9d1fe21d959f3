"""A pull over HTTP: lines of progress, errors on the way, a reader that leaves."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from khola.api import library
from khola.errors import Cancelled, NoSource
from khola.fetch.progress import Progress
from khola.serve.dialects.ollama.library import pull_lines
from tests.serve.others.server import ask, service


def look(done: int) -> Progress:
    return Progress(file="m.gguf", stage="fetch", done=done, total=9, speed=1.0, left_s=None)


def test_progress_comes_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, *, settings: Any, progress: Any) -> None:
        assert name == "tiny"
        for done in (0, 9):
            progress(look(done))

    monkeypatch.setattr(library, "pull", pull)
    lines = [json.loads(line) for line in ask(service(), "/api/pull", {"model": "tiny:latest"}).text.splitlines()]
    assert [(line["status"], line.get("completed"), line.get("total")) for line in lines] == [
        ("pulling m.gguf", 0, 9), ("pulling m.gguf", 9, 9), ("success", None, None),
    ]  # fmt: skip
    assert ask(service(), "/api/pull", {"name": "tiny", "stream": False}).json() == {"status": "success"}


def test_an_error_has_a_status_before_the_first_line_and_is_a_line_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, *, settings: Any, progress: Any) -> None:
        if name == "late":
            progress(look(1))
        raise NoSource("gone")

    monkeypatch.setattr(library, "pull", pull)
    early, late = ask(service(), "/api/pull", {"model": "early"}), ask(service(), "/api/pull", {"model": "late"})
    assert (early.status_code, early.json()) == (502, {"error": "gone"})
    assert (late.status_code, json.loads(late.text.splitlines()[-1])) == (200, {"error": "gone"})


def test_a_reader_that_leaves_ends_the_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    left, ended = threading.Event(), threading.Event()

    def pull(name: str, *, settings: Any, progress: Any) -> None:
        progress(look(1))
        assert left.wait(5)
        try:
            progress(look(2))
        except Cancelled:
            ended.set()
            raise

    monkeypatch.setattr(library, "pull", pull)

    async def road() -> None:
        lines = pull_lines(service(), "tiny")
        await anext(lines)
        await lines.aclose()
        left.set()
        assert await asyncio.to_thread(ended.wait, 5)

    asyncio.run(road())
