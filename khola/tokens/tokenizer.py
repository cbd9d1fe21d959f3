"""Text to ids and back, for every vocabulary that khola reads.

The `tokenizers` library does the work; this class decides which of its pipelines runs, so that text from a user can never become a control
token, and turns ids back into bytes and text by itself, so that streaming and whole decoding are one rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, final

from khola.errors import BadText
from khola.tokens import gguf_vocab, json_vocab
from khola.tokens.pipeline import ALPHABET, Pipelines, spelled_bytes
from khola.tokens.room import ROOM
from khola.tokens.stream import DecodeStream
from khola.tokens.tables import Spelling, Tables


@final
class Tokenizer:
    """A vocabulary, and how text becomes ids of it.

    No method adds or removes a beginning-of-text token by itself; `adds_bos` says whether the model wants `bos_id` first.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._pipelines = Pipelines(tables)
        self._pieces = dict(zip(tables.vocab.values(), tables.vocab, strict=True))
        self._bytes: dict[int, bytes] = {}
        self._added = {token.id: token for token in tables.added}
        self.size = tables.size
        """Ids run from 0 up to here; rows of the model's head beyond it are padding."""
        self.bos_id = tables.bos_id
        self.end_ids = tables.end_ids
        """Any of these ends an answer."""
        self.adds_bos = tables.adds_bos
        self.control_ids = frozenset(self._added)
        """Every added token, special or not: what plain text never becomes."""
        self.special_ids = frozenset(token.id for token in tables.added if token.special)
        """Those of `control_ids` that mark structure and are left out of decoded text (`<|im_end|>` is, `<think>` is not)."""
        self.strips_space = tables.strips_space
        """Decoding drops one leading space: the one that encoding put in front."""

    @classmethod
    def from_json(cls, path: Path, settings: Mapping[str, Any] | None = None) -> Tokenizer:
        """The vocabulary of a tokenizer.json, with the settings files beside it.

        Args:
            path: the file.
            settings: keys of tokenizer_config.json and generation_config.json that go before those of these files.
        Raises:
            BadTokenizer: the tables contradict themselves.
            UnsupportedFormat: a kind of vocabulary, or a step of cutting text, that khola does not run.
        """
        return cls(json_vocab.read_vocabulary(Path(path), settings))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], file: str = "GGUF") -> Tokenizer:
        """The vocabulary in the metadata of a GGUF file.

        Args:
            metadata: all keys of the file; arrays may be lazy sequences.
            file: what error messages call the file.
        Raises:
            BadTokenizer: the tables contradict themselves.
            UnsupportedFormat: a kind of vocabulary that khola does not know.
        """
        return cls(gguf_vocab.read_vocabulary(metadata, file))

    def keep_nothing(self) -> None:
        """Forget the words of texts, and remember none from now on: how long a text takes then tells nothing of the texts before it.

        Texts of rare words take as long as at first ever after, about 1.3 times as long as others.
        """
        self._pipelines.keep_nothing()

    def encode(self, text: str, *, control: bool = False, first: bool = True) -> list[int]:
        """Ids of a text; time and memory grow linearly with its length.

        Args:
            text: any Unicode text, NUL included. Bytes of `missing_bytes` are dropped, as the reference does.
            control: read added tokens in the text, as the reference tokenizer does. Without it no id of `control_ids` comes out; only a
                vocabulary without byte tokens still says "unknown" for letters it lacks.
            first: the text begins a sequence or follows a control token, where SentencePiece vocabularies put a space in front.
        Raises:
            BadText: the text has half of a surrogate pair.
            NoMemory: there may be too little memory for it.
        """
        size = len(text) if text.isascii() else check_text(text)
        with ROOM.taken(size):
            ids: list[int] = self._pipelines.get(control=control, first=first).encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int], *, skip_control: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: any ids of the vocabulary.
            skip_control: leave out special tokens; added tokens that are not special (`<think>`) stay.
        Raises:
            BadText: an id is outside the vocabulary.
        """
        skipped = self.special_ids if skip_control else frozenset()
        text = b"".join([self.token_bytes(i) for i in ids if i not in skipped]).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_space else text

    def stream(self, skip_control: bool = True, shown: Collection[int] = ()) -> DecodeStream:
        """Decodes ids one at a time; the pieces joined equal `decode` of all.

        Args:
            skip_control: leave out special tokens.
            shown: those that are part of the text all the same.
        """
        return DecodeStream(self, skip_control=skip_control, shown=shown)

    @property
    def missing_bytes(self) -> frozenset[int]:
        """Bytes that the vocabulary cannot write; some published ones lack a few ASCII control codes."""
        if self._tables.spelling is Spelling.SPACES:
            return frozenset()
        return frozenset(byte for letter, byte in ALPHABET.items() if letter not in self._tables.vocab)

    def id_of(self, token: str) -> int | None:
        """Id of a piece as the vocabulary spells it (`<|im_start|>`, `Ġthe`, `▁the`), or None."""
        return self._tables.vocab.get(token)

    def token(self, token_id: int) -> str:
        """The piece of an id as the vocabulary spells it.

        Raises:
            BadText: the id is outside the vocabulary.
        """
        try:
            return self._pieces[token_id]
        except KeyError:
            raise BadText("token {id} is not in the vocabulary, which has ids from 0 to {last}", id=token_id, last=self.size - 1) from None

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; one token may hold part of a character.

        Raises:
            BadText: the id is outside the vocabulary.
        """
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._spell(token_id)
        return found

    def _spell(self, token_id: int) -> bytes:
        piece = self.token(token_id)
        if token_id in self._tables.byte_ids:
            return bytes.fromhex(piece[3:5])
        if token_id in self._added and self._tables.spelling is Spelling.BYTES:
            return piece.encode()
        return spelled_bytes(piece, self._tables.spelling)


def check_text(text: str) -> int:
    """Check that a text is Unicode; gives its length in bytes of UTF-8.

    Raises:
        BadText: it has half of a surrogate pair.
    """
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise BadText(
            "the text has half of a surrogate pair at character {position}; that is not Unicode text",
            hint="decode the bytes with errors='replace' before asking",
            position=error.start,
        ) from None
