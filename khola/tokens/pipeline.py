"""Makes `tokenizers` objects from checked tables: one that reads control tokens in text, and one that cannot.

Two vocabularies stand behind them. Where no added token can come out of merging, both share one model in memory; where one could (a merge
spells it, or whole words are looked up first), plain text gets a model of its own, from which added tokens are gone.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Library
from tokenizers.models import BPE

from khola.errors import BadTokenizer
from khola.tokens.tables import Added, Spelling, Tables, check_merges_exist

Json = dict[str, Any]

KEPT_WORDS = 10_000
"""Words of texts that a merging model remembers with their tokens, so that it need not merge them again; the library's own choice."""
MAX_CUTS = 1 << 14
"""Places where added tokens could be cut, up to which trying all of them is quicker than going through all merges."""


class Pipelines:
    """The four ways to cut a text (with control tokens or without, at the start of a text or not), each made when first needed."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._shared = not _mergeable_added(tables)
        self._models: dict[bool, BPE] = {}
        self._kept = KEPT_WORDS
        self._made: dict[tuple[bool, bool], Library] = {}
        self.get(control=False, first=True)

    def get(self, *, control: bool, first: bool) -> Library:
        """The pipeline for one way.

        Args:
            control: added tokens in the text are read as such.
            first: the text begins a segment, so a vocabulary with a prefix space puts it.
        """
        key = (control, first or not _has_prefix(self._tables))
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    def keep_nothing(self) -> None:
        """Forget the words of texts, and remember none from now on."""
        self._kept = 0
        for model in self._models.values():
            model._resize_cache(0)

    def _make(self, control: bool, first: bool) -> Library:
        tables = self._tables
        normalizer, pre_tokenizer = tables.normalizer, tables.pre_tokenizer
        if not first:
            normalizer, pre_tokenizer = without_prefix(normalizer), without_prefix(pre_tokenizer)
        made = _frame(normalizer, pre_tokenizer, tables.file)
        made.model = self._model(control)
        if control:
            _add(made, tables.added)
        return made

    def _model(self, control: bool) -> BPE:
        key = control or self._shared
        if key not in self._models:
            self._models[key] = _model(self._tables, self._kept, with_added=key)
        return self._models[key]


def _frame(normalizer: Json | None, pre_tokenizer: Json | None, file: str) -> Library:
    """A pipeline without a vocabulary."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    try:
        return Library.from_str(json.dumps({"version": "1.0", "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": empty}))
    except Exception as error:  # the library raises bare Exception
        raise BadTokenizer("{file}: the pipeline cannot be built: {reason}", file=file, reason=str(error)[:200]) from None


def _model(tables: Tables, kept: int, *, with_added: bool) -> BPE:
    """The merging model, with added tokens as unreachable entries or without them."""
    vocab, merges, unknown = tables.vocab, tables.merges, tables.unknown
    if not with_added:
        hidden = {token.text for token in tables.added}
        unknown = _unknown_of_text(tables)
        vocab = {piece: index for piece, index in vocab.items() if piece not in hidden or piece == unknown}
        merges = [(left, right) for left, right in merges if not hidden & {left, right, left + right}]
    try:
        return BPE(
            vocab,
            merges,
            cache_capacity=kept,
            unk_token=unknown,
            fuse_unk=tables.fuse_unknown,
            byte_fallback=tables.byte_fallback,
            ignore_merges=tables.whole_words_first,
        )
    except Exception as error:  # the library raises bare Exception; most often a merge names an absent piece
        check_merges_exist(merges, vocab, tables.file, "merges")
        raise BadTokenizer("{file}: the vocabulary cannot be built: {reason}", file=tables.file, reason=str(error)[:200]) from None


def _unknown_of_text(tables: Tables) -> str | None:
    """What plain text may become where the vocabulary lacks a letter; a byte-level vocabulary drops the byte instead."""
    return tables.unknown if tables.spelling is Spelling.SPACES else None


def _mergeable_added(tables: Tables) -> bool:
    """Whether plain text could come out as an added token."""
    if tables.whole_words_first and tables.added:
        return True
    texts = {token.text for token in tables.added}
    if any(len(text) == 1 for text in texts) or tables.unknown != _unknown_of_text(tables):
        return True
    if sum(len(text) for text in texts) > MAX_CUTS:
        return any(left + right in texts for left, right in tables.merges)
    cuts = ((text[:i], text[i:]) for text in texts for i in range(1, len(text)))
    suspects = {(left, right) for left, right in cuts if left in tables.vocab and right in tables.vocab}
    return bool(suspects) and not suspects.isdisjoint(tables.merges)


def _add(made: Library, added: tuple[Added, ...]) -> None:
    """Teach a pipeline its added tokens; they are in the model already, so they keep their ids."""
    made.add_tokens(
        [
            AddedToken(
                token.text,
                special=token.special,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
            )
            for token in added
        ]
    )


def _has_prefix(tables: Tables) -> bool:
    return without_prefix(tables.normalizer) != tables.normalizer or without_prefix(tables.pre_tokenizer) != tables.pre_tokenizer


def without_prefix(step: Json | None) -> Json | None:
    """A normalizer or pre-tokenizer that puts no space in front of a text; everything else as it was."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        return {**step, key: [kept for part in step[key] if (kept := without_prefix(part)) is not None]}
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
        return {**step, "add_prefix_space": False}
    return step


def byte_alphabet() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies: printable Latin-1 as itself, the rest from U+0100 on.

    Source: GPT-2, which all byte-level vocabularies follow.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(rest)}


ALPHABET = byte_alphabet()


def spelled_bytes(piece: str, spelling: Spelling) -> bytes:
    """The bytes that an ordinary piece stands for."""
    if spelling is Spelling.SPACES:
        return piece.replace("\u2581", " ").encode()
    try:
        return bytes([ALPHABET[letter] for letter in piece])
    except KeyError:
        return piece.encode()
