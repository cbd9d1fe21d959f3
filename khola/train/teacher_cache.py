"""Answers of a teacher on disk: a few bytes a token, found again by a hash of all that was asked.

```
FOLDER/<hash of the header>/header.json           teacher, its files' hashes, options: everything that an answer depends on
                           /000001-<random>.safetensors   some answers; written whole under another name, then renamed
```

A shard is never changed. Whoever stops between two shards loses what is not in one yet, and nothing else; two processes may write at once.
A shard's own hash and the header's are in its metadata, and both are checked before anything of it is believed.

Shapes   Q answers of a shard, N pieces of all of them, K alternatives, B bytes of texts.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from khola.errors import BadFiles, HashMismatch, MissingFile
from khola.store.atomic import atomic_file
from khola.store.safetensors import SafetensorsFile, read_safetensors, write_safetensors
from khola.store.strict_json import load_object
from khola.train.opinion import Opinion, Question

FORMAT = "khola-teacher-1"
SHARD = 256
"""Answers that are kept in memory before they are written, unless `flush` comes first."""
_NUMBERS: dict[str, type[Any]] = {
    "keys": np.uint8, "pieces": np.int32, "bytes": np.int32, "whole": np.uint8, "lengths": np.uint16, "logprobs": np.float16,
    "masses": np.float16, "top_ids": np.int32, "top": np.float16, "texts": np.uint8,
}  # fmt: skip

Arrays = dict[str, NDArray[Any]]


@final
class TeacherCache:
    """Answers by question.

    Args:
        folder: of all caches; this one has a folder of its own in it.
        header: everything that an answer depends on besides the question; JSON.
    Raises:
        BadFiles: a file of the cache is damaged, or belongs to another one.
        HashMismatch: a file's bytes are not those that were written.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.header = dict(header)
        """What the answers depend on besides the question."""
        told = json.dumps({"format": FORMAT, **header}, sort_keys=True, ensure_ascii=False, indent=1)
        self._digest = hashlib.sha256(told.encode()).hexdigest()
        self.folder = folder / self._digest[:16]
        self._known: dict[bytes, tuple[Arrays, int, int, int]] = {}
        self._waiting: dict[bytes, tuple[Question, Opinion]] = {}
        self._shards = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        head = self.folder / "header.json"
        if not head.exists():
            with atomic_file(head) as out:
                out.write(told.encode())
        elif head.read_bytes() != told.encode():
            raise BadFiles("{file} tells of another teacher than its folder is named after", hint="remove the folder", file=str(head))
        for path in sorted(self.folder.glob("*.safetensors")):
            self._take(path)

    @classmethod
    def opened(cls, folder: Path) -> TeacherCache:
        """The cache that lies in a folder of its own; errors as for a new one.

        Raises:
            MissingFile: there is none.
        """
        head = folder / "header.json"
        if not head.is_file():
            raise MissingFile("{folder} holds no answers of a teacher", hint="run khola distil again", folder=str(folder))
        told = load_object(head)
        found = cls(folder.parent, {name: value for name, value in told.items() if name != "format"})
        if found.folder != folder:
            raise BadFiles("{file} tells of another teacher than its folder is named after", hint="remove the folder", file=str(head))
        return found

    def __len__(self) -> int:
        return len(self._known) + len(self._waiting)

    def __contains__(self, question: Question) -> bool:
        key = question.key()
        return key in self._known or key in self._waiting

    def get(self, question: Question) -> Opinion | None:
        """The answer, if it is known."""
        key = question.key()
        if key in self._waiting:
            return self._waiting[key][1]
        if key not in self._known:
            return None
        arrays, row, piece, byte = self._known[key]
        pieces = slice(piece, piece + int(arrays["pieces"][row]))
        said, thought = (int(size) for size in arrays["bytes"][row])
        texts = arrays["texts"][byte : byte + said + thought].tobytes()
        return Opinion(
            text=texts[:said].decode() if said else question.text,
            thinking=texts[said:].decode(),
            lengths_N=arrays["lengths"][pieces],
            logprobs_N=arrays["logprobs"][pieces],
            masses_N=arrays["masses"][pieces] if len(arrays["masses"]) else arrays["masses"],
            top_ids_NK=arrays["top_ids"][pieces],
            top_NK=arrays["top"][pieces],
            whole=bool(arrays["whole"][row]),
        )

    def put(self, question: Question, opinion: Opinion) -> None:
        """Keep an answer; on the disk after the next `flush`, or when `SHARD` of them wait.

        Raises:
            NoRoom: the disk is full.
        """
        if question not in self:
            self._waiting[question.key()] = (question, opinion)
        if len(self._waiting) >= SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            NoRoom: the disk is full.
        """
        if not self._waiting:
            return
        arrays = _packed(self._waiting)
        path = self.folder / f"{self._shards + 1:06d}-{secrets.token_hex(4)}.safetensors"
        write_safetensors(path, arrays, {"format": FORMAT, "header": self._digest, "sha256": _digest(arrays)})
        self._waiting = {}
        self._add(arrays)

    def _take(self, path: Path) -> None:
        """Check a shard and learn what is in it."""
        with read_safetensors(path) as file:
            if file.metadata.get("format") != FORMAT or file.metadata.get("header") != self._digest:
                raise BadFiles("{file} belongs to another teacher's cache", hint="take it out of the folder", file=str(path))
            arrays = _arrays(file, path)
            if _digest(arrays) != file.metadata.get("sha256"):
                raise HashMismatch("{file} is damaged: its bytes are not those that were written", hint="remove it", file=str(path))
        self._add(arrays)

    def _add(self, arrays: Arrays) -> None:
        pieces, texts = (np.concatenate([[0], np.cumsum(sizes)]) for sizes in (arrays["pieces"], arrays["bytes"].sum(-1)))
        for row, key in enumerate(arrays["keys"]):
            self._known.setdefault(key.tobytes(), (arrays, row, int(pieces[row]), int(texts[row])))
        self._shards += 1


def _packed(answers: Mapping[bytes, tuple[Question, Opinion]]) -> Arrays:
    """Answers one after another; a text that the teacher read as it was asked is not written again."""
    opinions = [opinion for _, opinion in answers.values()]
    texts = [b"" if opinion.text == question.text else opinion.text.encode() for question, opinion in answers.values()]
    thoughts = [opinion.thinking.encode() for opinion in opinions]
    found = {
        "keys": np.frombuffer(b"".join(answers), np.uint8).reshape(-1, 32),
        "pieces": np.array([len(opinion.lengths_N) for opinion in opinions]),
        "bytes": np.array([list(map(len, both)) for both in zip(texts, thoughts, strict=True)]),
        "whole": np.array([opinion.whole for opinion in opinions]),
        "lengths": np.concatenate([opinion.lengths_N for opinion in opinions]),
        "logprobs": np.concatenate([opinion.logprobs_N for opinion in opinions]),
        "masses": np.concatenate([opinion.masses_N for opinion in opinions]),
        "top_ids": np.concatenate([opinion.top_ids_NK for opinion in opinions]),
        "top": np.concatenate([opinion.top_NK for opinion in opinions]),
        "texts": np.frombuffer(b"".join(part for both in zip(texts, thoughts, strict=True) for part in both), np.uint8),
    }
    return {name: array.astype(_NUMBERS[name]) for name, array in found.items()}


def _arrays(file: SafetensorsFile, path: Path) -> Arrays:
    """The arrays of a shard, in memory."""
    if sorted(file.tensors) != sorted(_NUMBERS):
        raise BadFiles("{file} is no shard of a teacher's cache", hint="take it out of the folder", file=str(path))
    return {name: np.frombuffer(bytes(file.tensors[name].raw()), kind).reshape(file.tensors[name].shape) for name, kind in _NUMBERS.items()}


def _digest(arrays: Arrays) -> str:
    """SHA-256 of names, shapes and bytes."""
    found = hashlib.sha256()
    for name in _NUMBERS:
        found.update(f"{name}{arrays[name].shape}".encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()
