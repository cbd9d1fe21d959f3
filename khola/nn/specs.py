"""What every text architecture gives: a configuration, four functions and two tables; and how a configuration is read.

Shapes   T packed tokens, R rows whose logits are wanted, D hidden, V vocabulary.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Protocol, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from khola.errors import BadConfig, UnknownKey
from khola.nn.pairs import Moved
from khola.ops.vocabulary import CacheSpec, Ops, Step, Value

FILE = "config.json"
"""What errors call a configuration until whoever read it says its file's name."""

Layers = Annotated[int, Meta(ge=1, le=4096)]
Heads = Annotated[int, Meta(ge=1, le=4096)]
HeadSize = Annotated[int, Meta(ge=2, le=4096, multiple_of=2)]
Width = Annotated[int, Meta(ge=1, le=1 << 20)]
Vocabulary = Annotated[int, Meta(ge=1, le=1 << 24)]
Positions = Annotated[int, Meta(ge=1, le=1 << 28)]
Epsilon = Annotated[float, Meta(gt=0, lt=1)]
Window = Annotated[int, Meta(ge=1, le=1 << 28)]

BOOKKEEPING: Mapping[str, str] = {
    "_name_or_path": "says where the lab kept it",
    "architectures": "the class in the lab's library; model_type says the same",
    "auto_map": "names code in the checkpoint, which never runs here",
    "attention_dropout": "training only",
    "initializer_range": "training only",
    "use_cache": "khola always keeps one",
    "output_attentions": "what the lab's library returns",
    "output_hidden_states": "what the lab's library returns",
    "return_dict": "what the lab's library returns",
    "return_dict_in_generate": "what the lab's library returns",
    "chunk_size_feed_forward": "how the lab's library saves memory; the result is the same",
    "pretraining_tp": "splits the same sums over devices",
    "is_encoder_decoder": "false for every decoder",
    "id2label": "for classification heads",
    "label2id": "for classification heads",
    "problem_type": "for classification heads",
    "bos_token_id": "the tokenizer knows it",
    "eos_token_id": "the tokenizer and the generation settings know it",
    "pad_token_id": "packed rows need no padding",
    "unk_token_id": "the tokenizer knows it",
    "torch_dtype": "the tensors say it themselves",
    "dtype": "the tensors say it themselves",
    "transformers_version": "who wrote the file",
    "transformers.js_config": "for browsers",
    "is_llama_config": "a training script's note",
    "unsloth_fixed": "a training tool's note",
    "unsloth_version": "a training tool's note",
    "model_type": "chose this architecture",
}
"""Keys that every lab's config.json may carry and no decoder's forward pass depends on."""


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Base of configurations: field names are keys of config.json, types and ranges are checked, unknown keys raise."""

    @property
    def spare(self) -> tuple[str, ...]:
        """How names of tensors begin that the checkpoint may hold and the forward pass does not read."""
        return ()

    @property
    def further_layers(self) -> int:
        """Layers behind the last one that guess further tokens, in the form that `khola.nn.second_token` knows."""
        return 0


class Architecture(Protocol):
    """A module of `khola.models.text`."""

    Config: type[Any]
    """A `Strict` structure."""
    IGNORED: Mapping[str, str]
    """Keys of config.json that do not change the forward pass, each with the reason."""
    LAYERS: str
    """Where the blocks stand in the tree of weights: "model.layers"."""

    def embed(self, ids_T: Value, w: Any, c: Any, ops: Ops) -> Value:
        """Token ids to hidden states, [T, D]; `w` is the whole tree."""

    def block(self, x_TD: Value, w: Any, layer: int, step: Step, c: Any, ops: Ops) -> Value:
        """One layer; `w` is the layer's own subtree."""

    def norm(self, x_RD: Value, w: Any, c: Any, ops: Ops) -> Value:
        """The final norm; `w` is the whole tree."""

    def head(self, x_RD: Value, w: Any, c: Any, ops: Ops) -> Value:
        """Normed hidden states to logits, [R, V]; `w` is the whole tree."""

    def tensors(self, c: Any) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the checkpoint, as on disk."""

    def pairs(self, c: Any) -> dict[str, Moved]:
        """Tensors whose rows are moved when they are loaded: their rotary pairs lie side by side, or several parts head by head."""

    def cache(self, c: Any) -> CacheSpec:
        """What the layers keep of every token."""


S = TypeVar("S", bound=msgspec.Struct)


def parse_config(architecture: Architecture, raw: Mapping[str, Any], file: str = FILE) -> Any:
    """A checked configuration of this architecture.

    Args:
        architecture: the module whose `Config` and `IGNORED` decide.
        raw: the file's own keys; the ignored ones are dropped, and `ignored_keys` lists them.
        file: named in errors.
    Raises:
        UnknownKey: a key that is neither read nor listed as harmless.
        BadConfig: a key is missing, has another type, lies out of its range or contradicts another.
    """
    known = {key: value for key, value in raw.items() if key not in architecture.IGNORED}
    try:
        return read_keys(known, architecture.Config)
    except BadConfig as wrong:
        wrong.facts["file"] = file
        raise


def ignored_keys(architecture: Architecture, raw: Mapping[str, Any]) -> dict[str, str]:
    """Keys of a file that this architecture leaves out, each with the reason."""
    return {key: architecture.IGNORED[key] for key in raw if key in architecture.IGNORED}


def read_keys(raw: Mapping[str, Any], shape: type[S], prefix: str = "", file: str = FILE) -> S:
    """The keys of one JSON object as a structure.

    Args:
        raw: the object.
        shape: a structure whose fields are the keys, with their types and ranges.
        prefix: where the object stands in the file, such as "rope_scaling.".
        file: named in errors.
    Raises:
        UnknownKey: a key that the structure does not have.
        BadConfig: a key is missing, has another type or lies out of its range.
    """
    fields = {field.encode_name: field for field in msgspec.structs.fields(shape)}
    unknown = [str(key) for key in raw if key not in fields]
    if unknown:
        raise UnknownKey(
            "{file}: {key} is not a key that this architecture knows; it may change what the model computes",
            hint="the nearest key that it knows is {near}",
            file=file,
            key=prefix + unknown[0],
            keys=[prefix + key for key in unknown],
            near=_nearest(unknown[0], fields),
        )
    for key, field in fields.items():
        if field.required and key not in raw:
            raise BadConfig("{file}: the configuration lacks {key}", file=file, key=prefix + key)
    for key, value in raw.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise _out_of_range(file, prefix + key, value, "a finite number")
    try:
        return msgspec.convert(dict(raw), shape)
    except msgspec.ValidationError as wrong:
        expected, _, path = str(wrong).partition(" - at `$")
        key = re.split(r"[.\[`]", path.removeprefix("."), maxsplit=1)[0]
        if expected.startswith("Invalid enum value"):
            expected = " or ".join(map(repr, _choices(fields[key].type)))
        raise _out_of_range(file, prefix + key, raw.get(key), expected.removeprefix("Expected ").replace("`", "")) from None


def _out_of_range(file: str, key: str, found: object, expected: str) -> BadConfig:
    """The error of a value of another type or out of its range."""
    return BadConfig("{file}: {key} is {found}; expected {expected}", file=file, key=key, found=repr(found)[:80], expected=expected)


def _choices(kind: Any) -> list[Any]:
    """Every value that a type lists by itself, wherever it stands inside."""
    return list(get_args(kind)) if get_origin(kind) is Literal else [value for part in get_args(kind) for value in _choices(part)]


def _nearest(key: str, known: Iterable[str]) -> str:
    """The known key that looks most like an unknown one."""
    return max(known, key=lambda candidate: difflib.SequenceMatcher(None, key, candidate).ratio())


def check_heads(hidden: int, heads: int, key_heads: int, head_size: int | None) -> None:
    """Sizes of attention must divide each other.

    Raises:
        BadConfig: queries cannot be shared by the key heads, or the hidden width by heads of an even size.
    """
    if heads % key_heads:
        raise BadConfig(
            "{file}: num_key_value_heads is {key_heads}; expected a divisor of num_attention_heads, {heads}",
            file=FILE,
            key="num_key_value_heads",
            key_heads=key_heads,
            heads=heads,
        )
    if head_size is None and (hidden % heads or hidden // heads % 2):
        raise BadConfig(
            "{file}: hidden_size is {hidden}; expected an even multiple of num_attention_heads, {heads}, or head_dim beside it",
            file=FILE,
            key="hidden_size",
            hidden=hidden,
            heads=heads,
        )
