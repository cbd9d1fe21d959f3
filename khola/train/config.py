"""What a run is asked to do: defaults, a TOML file over them, `--set a.b=c` over both; unknown names raise."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from khola.errors import AskedWrong, UnknownOption
from khola.train.methods import method_named

Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(gt=0, lt=1)]
TARGETS = r"\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj$"


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of tables: types and ranges are checked, unknown keys raise."""


class Packing(Strict, frozen=True):
    """How rows become batches."""

    length: Positive = 1024
    """Tokens of one sequence at most."""
    too_long: Literal["refuse", "cut", "leave_out"] = "refuse"
    """What happens to longer ones."""
    tokens: Positive = 2048
    """Of one micro-batch at most."""
    accumulate: Positive = 4
    """Micro-batches of one step."""


class Optimiser(Strict, frozen=True):
    """How weights move."""

    name: Literal["adamw", "muon"] = "adamw"
    """Muon moves matrices of blocks, AdamW everything else beside it."""
    lr: Rate | None = None
    """Peak rate; None is 2e-5, or 2e-4 with adapters."""
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.95
    """Of Muon."""
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    """Of matrices; vectors are never decayed."""
    clip: Annotated[float, Meta(ge=0)] = 1.0
    """Longest gradient; 0 never clips."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """How the rate falls after its warm-up; wsd stays, then falls over the last part."""
    warmup: Share = 0.03
    """Share of the steps over which the rate rises."""
    decay: Share = 0.2
    """Share of the steps over which wsd falls."""
    floor: Share = 0.0
    """Share of the peak that it falls to."""


class Lora(Strict, frozen=True):
    """Adapters."""

    rank: Positive = 16
    alpha: Annotated[float, Meta(gt=0)] = 32.0
    stabilised: bool = False
    """Scale is alpha / sqrt(rank) instead of alpha / rank."""
    dora: bool = False
    """Lengths of rows learn too."""
    targets: str = TARGETS
    """A regular expression that finds the names of adapted matrices."""
    base: Literal["dense", "int8", "int4"] = "dense"
    """How the adapted matrices lie while they are frozen."""

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.stabilised else self.rank)


class Saving(Strict, frozen=True):
    """Checkpoints."""

    every: Positive = 100
    """Steps between two."""
    keep: Positive = 2
    """How many stay."""


class Run(Strict, frozen=True, kw_only=True):
    """A whole run."""

    method: str = "sft"
    model: str
    """A path, a card's name, or a name in the library of this disk."""
    data: tuple[str, ...] = ()
    """Files of rows."""
    out: str
    """Folder of everything that the run writes."""
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    epochs: Annotated[float, Meta(gt=0)] = 1.0
    """How often the data is read."""
    steps: Positive | None = None
    """Steps at most; methods on-line need it."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float64"] = "bfloat16"
    """Numbers of the forward pass; master weights are float32 (float64 with float64)."""
    recompute: bool = False
    """Blocks are computed again for their gradients: less memory, a third more work."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every process keeps all weights, or a share of them."""
    chat: str = ""
    """A chat format; empty is the model's own."""
    result: Literal["BF16", "F32", "F16"] = "BF16"
    """Number format of the finished model's matrices."""
    packing: Packing = Packing()
    optimiser: Optimiser = Optimiser()
    save: Saving = Saving()
    lora: Lora | None = None
    options: Any = None
    """The method's own table, under its name in TOML."""

    @property
    def lr(self) -> float:
        """The peak rate."""
        return self.optimiser.lr if self.optimiser.lr is not None else 2e-5 if self.lora is None else 2e-4

    def table(self) -> dict[str, Any]:
        """Everything that was decided, defaults included, as a TOML file says it."""
        found = {key: value for key, value in msgspec.to_builtins(self).items() if value is not None}
        options = found.pop("options", None)
        return _without_none(found | ({self.method: options} if options else {}))

    def fingerprint(self) -> str:
        """SHA-256 of what decides the numbers: where they are written, and how often, does not."""
        table = {key: value for key, value in self.table().items() if key not in ("out", "save", "result")}
        return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def resolve(file: Path | None, given: Mapping[str, Any], settings: Sequence[str] = ()) -> Run:
    """A run from a TOML file, options and `a.b=c` settings, each over the one before.

    Raises:
        UnknownOption: a key that nobody reads.
        AskedWrong: the file cannot be read, or a value has another type or lies out of its range.
    """
    table: dict[str, Any] = _read(file) if file is not None else {}
    table |= {key: value for key, value in given.items() if value is not None}
    for setting in settings:
        _put(table, setting)
    method = method_named(str(table.get("method", "sft")))
    options = table.pop(method.NAME, {})
    run: Run = _checked({**table, "options": None}, Run)
    return msgspec.structs.replace(run, options=_checked(options, method.Config, f"{method.NAME}."))


def toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """A table as TOML: plain values first, then the tables inside."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items() if not isinstance(value, Mapping)]
    inner = [f"\n[{prefix}{key}]\n{toml(value, f'{prefix}{key}.')}" for key, value in table.items() if isinstance(value, Mapping) and value]
    return "\n".join([*lines, *inner])


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in table.items() if value is not None}


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise AskedWrong("{file} cannot be read: {why}", file=str(file), why=problem.strerror or str(problem)) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise AskedWrong("{file} is not TOML: {reason}", file=str(file), reason=str(problem)) from None


def _put(table: dict[str, Any], setting: str) -> None:
    """One `a.b=c`; the value is TOML, or else a text."""
    name, equals, text = setting.partition("=")
    if not equals or not name:
        raise AskedWrong("--set {setting}: expected NAME=VALUE", setting=setting)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = name.split(".")
    for key in path:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise AskedWrong("--set {setting}: {key} is no table", setting=setting, key=key)
        table = inner
    table[last] = value


def _checked(table: Any, shape: type[Any], prefix: str = "") -> Any:
    """A table in its form.

    Raises:
        UnknownOption: a key that nobody reads.
        AskedWrong: a value has another type or lies out of its range.
    """
    _known(table, shape, prefix)
    try:
        return msgspec.convert(table, shape)
    except msgspec.ValidationError as wrong:
        why, _, place = str(wrong).partition(" - at `$.")
        raise AskedWrong("{key}: {why}", key=prefix + place.rstrip("`") if place else prefix.rstrip(".") or "run", why=why) from None


def _known(table: Any, shape: type[Any], prefix: str) -> None:
    if not isinstance(table, Mapping):
        return
    fields = get_type_hints(shape)
    for key, value in table.items():
        if key not in fields:
            near = _nearest(key, fields)
            raise UnknownOption("there is no setting {key}", hint="the nearest is {near}", key=f"{prefix}{key}", near=f"{prefix}{near}")
        inner = next((one for one in _choices(fields[key]) if isinstance(one, type) and issubclass(one, Strict)), None)
        if inner is not None:
            _known(value, inner, f"{prefix}{key}.")


def _choices(kind: Any) -> Iterable[Any]:
    return getattr(kind, "__args__", None) or (kind,)


def _nearest(key: str, known: Iterable[str]) -> str:
    return next(iter(get_close_matches(key, list(known), n=1, cutoff=0.0)), "")
