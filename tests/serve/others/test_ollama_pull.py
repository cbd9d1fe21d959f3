"""A pull over HTTP: lines of progress, errors on the way, a reader that leaves."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from khola.api import library
from khola.errors import Cancelled, NoSource
from khola.fetch.progress import Progress
from khola.serve.dialects.ollama.library import pull_lines
from tests.serve.others.server import NOWHERE, ask, service

KNOWN, OTHER = "smollm2-135m-instruct", "qwen2.5-0.5b-instruct"
"""Of the catalogue."""


def look(done: int) -> Progress:
    return Progress(file="m.gguf", stage="fetch", done=done, total=9, speed=1.0, left_s=None)


def test_progress_comes_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, *, settings: Any, progress: Any) -> None:
        assert name == KNOWN
        for done in (0, 9):
            progress(look(done))

    monkeypatch.setattr(library, "pull", pull)
    lines = [json.loads(line) for line in ask(service(), "/api/pull", {"model": f"{KNOWN}:latest"}).text.splitlines()]
    assert [(line["status"], line.get("completed"), line.get("total")) for line in lines] == [
        ("pulling m.gguf", 0, 9), ("pulling m.gguf", 9, 9), ("success", None, None),
    ]  # fmt: skip
    assert ask(service(), "/api/pull", {"name": KNOWN, "stream": False}).json() == {"status": "success"}


def test_an_error_has_a_status_before_the_first_line_and_is_a_line_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, *, settings: Any, progress: Any) -> None:
        if name == OTHER:
            progress(look(1))
        raise NoSource("gone")

    monkeypatch.setattr(library, "pull", pull)
    early, late = ask(service(), "/api/pull", {"model": KNOWN}), ask(service(), "/api/pull", {"model": OTHER})
    assert (early.status_code, early.json()) == (502, {"error": "gone"})
    assert (late.status_code, json.loads(late.text.splitlines()[-1])) == (200, {"error": "gone"})


def test_a_path_tells_nothing_and_an_address_is_not_asked(tmp_path: Path) -> None:
    """Whether a file is there makes no difference to the answer."""
    there = tmp_path / "model.gguf"
    there.write_bytes(b"GGUF")
    kitchen = service(settings=replace(NOWHERE, offline=True))
    found, lacking = (ask(kitchen, "/api/pull", {"model": str(path)}) for path in (there, tmp_path / "model.gguh"))
    assert (found.status_code, lacking.status_code) == (404, 404)
    assert found.text == lacking.text.replace("model.gguh", "model.gguf")
    for address in ("https://models.example/a.gguf", "http://127.0.0.1:9/a.gguf", "http://localhost/a.gguf"):
        assert ask(kitchen, "/api/pull", {"model": address}).status_code == 403
    hub = ask(kitchen, "/api/pull", {"model": "hf:org/name"})
    assert (hub.status_code, "switched off" in hub.text) == (403, True)


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
        lines = pull_lines(service(), KNOWN)
        await anext(lines)
        await lines.aclose()
        left.set()
        assert await asyncio.to_thread(ended.wait, 5)

    asyncio.run(road())
