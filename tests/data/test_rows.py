"""Bad data gives an error that names file and line, before anything is trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from khola.data.rows import hashes, read_rows, sample_seed
from khola.errors import BadRow, MissingFile

GOOD = b'{"text": "fine"}\n'
BAD = {
    "broken JSON": (b'{"text": "fine"\n', "not JSON"),
    "an empty line": (b"\n", "the line is empty"),
    "an empty row": (b"{}\n", "the row is empty"),
    "no object": (b"[1]\n", "expected an object, found list"),
    "NaN": (b'{"text": NaN}\n', "not finite"),
    "infinity by overflow": (b'{"x": 1e999}\n', "not finite"),
    "not UTF-8": (b'{"text": "\xff"}\n', "not UTF-8"),
    "half a letter": (b'{"text": "\\ud800"}\n', "surrogate"),
    "a key twice": (b'{"text": "a", "text": "b"}\n', "twice"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("line", [1, 5000])
def test_a_bad_row_is_named(tmp_path: Path, kind: str, line: int) -> None:
    raw, said = BAD[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD * (line - 1) + raw + GOOD)
    with pytest.raises(BadRow, match=said) as caught:
        read_rows([path])
    assert caught.value.facts["line"] == line
    assert caught.value.facts["file"] == str(path)
    assert f"{path}, line {line}: " in caught.value.told()


def test_a_half_written_last_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD * 3 + GOOD[:8])
    with pytest.raises(BadRow) as caught:
        read_rows([path])
    assert caught.value.facts["line"] == 4


def test_rows_of_several_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD + b'{"text": "last, without a newline"}')
    (tmp_path / "b.json").write_text(json.dumps([{"text": "x"}, {"text": "y"}]))
    rows = read_rows([tmp_path / "a.jsonl", tmp_path / "b.json"])
    assert [(Path(row.file).name, row.line, row.text("text")) for row in rows] == [
        ("a.jsonl", 1, "fine"), ("a.jsonl", 2, "last, without a newline"), ("b.json", 1, "x"), ("b.json", 2, "y"),
    ]  # fmt: skip


def test_a_file_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.json").write_bytes(b"[]")
    (tmp_path / "c.json").write_bytes(b'{"text": "x"}')
    for name in "a.jsonl", "b.json", "c.json":
        with pytest.raises(BadRow, match=name):
            read_rows([tmp_path / name])
    with pytest.raises(MissingFile):
        read_rows([tmp_path / "d.jsonl"])


def test_texts_and_keys(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "", "n": 3, "other": 1}\n')
    (row,) = read_rows([tmp_path / "a.jsonl"])
    with pytest.raises(BadRow, match="text is empty"):
        row.text("text")
    with pytest.raises(BadRow, match="n is int"):
        row.text("n")
    with pytest.raises(BadRow, match="missing is NoneType"):
        row.text("missing")
    with pytest.raises(BadRow, match="nothing reads the key 'other'"):
        row.only(("text", "n"))


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    assert hashes([tmp_path / "a.jsonl"]) == {str(tmp_path / "a.jsonl"): hashlib.sha256(GOOD).hexdigest()}


def test_seeds_of_samples_depend_on_nothing_else() -> None:
    assert sample_seed(1, 2, 3) == sample_seed(1, 2, 3)
    assert len({sample_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}) == 125
