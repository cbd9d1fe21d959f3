"""A real Chromium before a real server; skipped, with the reason, where one of the parts is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
AXE = Path(sys.prefix) / "axe.min.js"
"""Where `make browser` puts axe-core."""
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def _browser() -> str:
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), "")
    if find_spec("playwright") is None or not found:
        missing = "playwright" if find_spec("playwright") is None else "Chromium"
        pytest.skip(f"{missing} is not installed; `make browser` installs playwright and axe-core, Debian has the package chromium")
    return found


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running server, with the key of its page."""
    _browser()
    home = tmp_path_factory.mktemp("home")
    command = [sys.executable, str(HERE / "stage.py"), str(home)]
    paths = os.pathsep.join([str(HERE.parents[2]), *sys.path])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser."""
    path = _browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as drive:
        browser = drive.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


Opened = Callable[..., Any]


@pytest.fixture
def opened(chromium: Any, address: str) -> Iterator[Opened]:
    """Opens the page; whatever goes wrong inside of it, or leads elsewhere, fails the test."""
    contexts: list[Any] = []
    wrong: list[str] = []
    origin = address.split("/#", maxsplit=1)[0]
    own = (origin, "blob:", "data:")

    def watch(page: Any, allow: str) -> None:
        """Write down errors of scripts, lines of the console, requests to other sites, and questions."""
        page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" and not re.search(allow, line.text) else None)
        page.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(f"elsewhere: {asked.url}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def open_page(
        view: str = "chat", *, lang: str = "en-GB", width: int = 1280, height: int = 800, dark: bool = False, allow: str = "$^"
    ) -> Any:
        size, colours = {"width": width, "height": height}, "dark" if dark else "light"
        context = chromium.new_context(locale=lang, viewport=size, color_scheme=colours, reduced_motion="reduce")
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=origin)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        watch(page, allow)
        page.goto(address)
        page.wait_for_selector("nav.rail")
        page.evaluate("view => { location.hash = '#/' + view; }", view)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def shot(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any, str], None]:
    """Takes a picture into the folder that SCREENSHOTS names."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png")


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core."""
    if not AXE.is_file():
        pytest.skip("axe-core is not installed; `make browser` installs it")
    return AXE.read_text(encoding="utf-8")
