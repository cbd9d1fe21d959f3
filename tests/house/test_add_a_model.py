"""The walkthrough shows what is there: its blocks are lines of the files that it names, or they run."""

from __future__ import annotations

import re
import textwrap

import pytest
import source

PAGES = [source.ROOT / "docs" / "add-a-model.md", source.ROOT / "docs" / "bn" / "add-a-model.md"]
BLOCK = re.compile(r"(?:^`([\w./-]+)`:\n\n)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: int) -> list[tuple[str, str, str]]:
    """File, language and text of every fenced block."""
    found = BLOCK.findall(PAGES[page].read_text(encoding="utf-8"))
    assert len(found) >= 10
    return found


@pytest.mark.parametrize("page", [0, 1])
def test_blocks_are_lines_of_their_files(page: int) -> None:
    for file, _, text in blocks(page):
        if file:
            lines = text.splitlines()
            whole = (source.ROOT / file).read_text(encoding="utf-8").splitlines()
            places = [at for at in range(len(whole)) if textwrap.dedent("\n".join(whole[at : at + len(lines)])).splitlines() == lines]
            assert len(places) == 1, f"{file} does not have, once:\n{text}"


def test_the_others_run_or_name_what_exists() -> None:
    others = [(language, text) for file, language, text in blocks(0) if not file]
    assert [language for language, _ in others] == ["python", ""]
    exec(compile(others[0][1], str(PAGES[0]), "exec"), {})
    for line in others[1][1].splitlines():
        for word in line.split():
            assert "/" not in word or (source.ROOT / word).exists(), word
    assert re.search(r"^models-page:", (source.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_files_that_the_text_names_exist() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        named = set(re.findall(r"`((?:khola|tests|docs|scripts)/[\w./-]+)`", text))
        assert named
        assert not [name for name in named if not (source.ROOT / name).exists()]


def test_both_languages_show_the_same_code() -> None:
    assert [block for block in blocks(0) if block[0]] == [block for block in blocks(1) if block[0]]
