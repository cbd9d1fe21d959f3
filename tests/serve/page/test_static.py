"""The page's files: small enough, whole, in both languages, and without what could turn text into HTML."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
import string
from pathlib import Path

import httpx2
import pytest

from khola.serve.app import app
from khola.serve.dialects.page.static import page_files
from khola.serve.engines.echo import Echo
from khola.serve.service import Service
from khola.settings import Settings

PAGE = Path(__file__).parents[3] / "khola" / "serve" / "page"
OWN = sorted(PAGE.glob("*.js"))
WORDS = json.loads((PAGE / "words.json").read_text(encoding="utf-8"))
SCRIPT_BYTES, FONT_BYTES = 150_000, 140_000
"""Promised in docs/serve/page.md: scripts as they travel compressed, fonts as they are."""
LONGEST = 500
CODED = {
    "error.", "finish.", "live.", "nav.", "state.", "pull.", "kind.", "field.", "fit.", "models.only.", "thinking.", "export.", "engine.",
    "stat.", "tree.",
}  # fmt: skip
"""Keys that are put together from the value of something else."""


def source() -> dict[str, str]:
    """Our own scripts by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in OWN}


def test_scripts_and_fonts_keep_their_budget() -> None:
    scripts = [path for path in PAGE.rglob("*") if path.suffix in (".js", ".mjs")]
    assert len(scripts) > 20
    assert sum(len(gzip.compress(path.read_bytes(), 6)) for path in scripts) <= SCRIPT_BYTES
    assert sum(path.stat().st_size for path in PAGE.rglob("*.woff2")) <= FONT_BYTES


def test_vendored_files_are_what_was_written_down() -> None:
    rows = [line.split("  ") for line in (PAGE / "VENDORED.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    told = {row[0]: row[4] for row in rows}
    there = [path for folder in ("vendor", "fonts") for path in (PAGE / folder).iterdir()]
    assert {path.relative_to(PAGE).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in there} == told
    for name in ("preact", "htm", "uplot"):
        assert f"vendor/{name}.LICENSE" in told
    assert "SIL OPEN FONT LICENSE" in (PAGE / "fonts" / "OFL.txt").read_text(encoding="utf-8")


def test_every_file_is_served_with_a_type() -> None:
    on_disk = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()}
    assert set(page_files()) == on_disk


def test_every_string_stands_in_both_languages() -> None:
    def facts(text: str) -> set[str | None]:
        return {name for _, name, _, _ in string.Formatter().parse(text.replace("{{", "").replace("}}", "")) if name}

    for key, said in WORDS.items():
        assert set(said) == {"en", "bn"} and all(said.values()), key
        assert facts(said["en"]) == facts(said["bn"]), key
        letters = re.sub(r"\{\w+\}", "", said["bn"])
        assert re.search("[ঀ-৿]", letters) or not re.search(r"[A-Za-z]{2}", re.sub(r"\{\w+\}", "", said["en"])), key


def test_every_string_that_is_said_stands_in_the_catalogue_and_none_is_idle() -> None:
    text = "\n".join(source().values())
    asked = set(re.findall(r"""\bt\(["']([a-z0-9_.]+)["']""", text))
    assert len(asked) > 100
    assert asked <= set(WORDS), sorted(asked - set(WORDS))
    named = asked | set(re.findall(r"""["']([a-z]+\.[a-z0-9_.]+)["']""", text))
    prefixes = set(re.findall(r"""t\(`([a-z.]+\.)\$\{""", text))
    assert prefixes <= CODED, prefixes - CODED
    idle = [key for key in WORDS if key not in named and not any(key.startswith(prefix) for prefix in prefixes)]
    assert not idle, idle


def templates(text: str, place: int = 0, *, inside: bool = False) -> tuple[list[str], int]:
    """What stands in the html templates of a script, with a mark for every expression; nested ones by themselves."""
    found: list[str] = []
    depth = 0
    while place < len(text):
        letter = text[place]
        if letter == "`":
            inner, place = template(text, place + 1, found, html=text[:place].endswith("html"))
            found += [inner] if inner else []
            continue
        if letter in "\"'":
            end = place + 1
            while text[end] != letter and text[end] != "\n":
                end += 2 if text[end] == "\\" else 1
            place = end
        elif text.startswith("//", place) and text[place - 1] in " \n":
            place = text.find("\n", place)
        depth += (letter == "{") - (letter == "}")
        place += 1
        if inside and depth < 0:
            break
    return found, place


def template(text: str, place: int, found: list[str], *, html: bool) -> tuple[str, int]:
    """One template from behind its opening mark to behind its closing one."""
    said = ""
    while text[place] != "`":
        if text.startswith("${", place):
            inner, place = templates(text, place + 2, inside=True)
            found += inner
            said += "\0"
        else:
            said += text[place]
            place += 1
    return said if html else "", place + 1


def shown(text: str) -> list[str]:
    """Words that a script shows without asking the catalogue."""
    found: list[str] = []
    # Regular expressions that hold a mark of templates are taken out first.
    bare = re.sub(r"(?:(?<=[=|] )|(?<=\())/(?![/*])(?:[^/\\\n]|\\.)*`(?:[^/\\\n]|\\.)*/[gimu]*", "0", text)
    for said in templates(bare)[0]:
        found += [words.strip() for words in re.findall(r"(?:^|>)([^<>]*)(?=<|$)", said) if re.search("[A-Za-z]{3,}", words)]
        found += re.findall(r'(?:aria-label|title|placeholder|alt)="([A-Za-z][^"]*)"', said)
    return found


def test_no_text_stands_outside_the_catalogue() -> None:
    assert {words for text in source().values() for words in shown(text)} <= {"khola"}


@pytest.mark.parametrize("words", ["<p>Hello ${x}</p>", "<b>${y && html`<i>Hello</i>`}</b>", '<a title="Hello">${z}</a>', "Hello"])
def test_the_search_for_text_finds_it(words: str) -> None:
    assert [found.strip("\0 ") for found in shown(f"const x = `a${{b}}`;\nreturn html`{words}`;")] == ["Hello"]


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_nothing_turns_text_into_html_or_leads_elsewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|javascript:", text)
    assert not re.search(r"https?://(?!\S*\\)\w", text.replace("https?:\\/\\/", "")), "the page asks its own server alone"
    assert len(text.splitlines()) <= LONGEST and text.startswith("// "), "each script says what it is for"


def test_the_document_has_no_inline_script_or_style() -> None:
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    assert all(address.startswith("/page/static/") for address in re.findall(r'(?:src|href)="([^"]+)"', text))


def test_the_page_forbids_everything_but_itself() -> None:
    async def ask() -> tuple[httpx2.Response, httpx2.Response, httpx2.Response]:
        service = Service(backend=Echo(), settings=Settings(home=Path("none"), user_home=Path("none")))
        transport = httpx2.ASGITransport(app(service))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:11500") as client:
            first = await client.get("/")
            again = await client.get("/", headers={"if-none-match": first.headers["etag"]})
            return first, again, await client.get("/page/static/../history.py")

    first, again, outside = asyncio.run(ask())
    policy = ", ".join(first.headers.get_list("content-security-policy"))
    assert "unsafe" not in policy and "default-src 'none'" in policy and "require-trusted-types-for 'script'" in policy
    assert (first.status_code, again.status_code, again.content, outside.status_code) == (200, 304, b"", 404)
    assert first.headers["x-content-type-options"] == "nosniff" and first.headers["referrer-policy"] == "no-referrer"
