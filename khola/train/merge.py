"""Merging checkpoints of one shape into a new one, tensor by tensor, in float32; no gradient, no torch.

Methods  linear     sum w_i W_i / sum w_i (Kimi k1.5's long2short average: arXiv:2501.12599 section 2.4)
         slerp      along the arc between two tensors taken as vectors: Shoemake, SIGGRAPH 1985, section 3.3
         task       W_0 + sum a_i (W_i - W_0): arXiv:2212.04089 section 2
         ties       trim to the largest, elect a sign, mean of those that agree: arXiv:2306.01708 algorithm 1, trimmed in each tensor
         dare       drop with probability p, rescale by 1 / (1 - p), then as task: arXiv:2311.03099 section 3
         dare-ties  drop and rescale, then elect and mean as ties
Shapes   every array has the shape of the tensor that is merged; the result does not depend on it.
Memory   one tensor of each checkpoint at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from khola.errors import AskedWrong, MissingTensor, NonFinite, UnexpectedTensor, WrongShape
from khola.fetch.progress import unheard
from khola.loader.exported import FolderParts, as_folder
from khola.store.kinds import bytes_of
from khola.store.quantise import quantise
from khola.store.stored import StoredTensor
from khola.store.strict_json import load_json

Method = Literal["linear", "slerp", "task", "ties", "dare", "dare-ties"]
METHODS: tuple[Method, ...] = ("linear", "slerp", "task", "ties", "dare", "dare-ties")
ON_BASE = ("task", "ties", "dare", "dare-ties")
"""Methods that add differences to a base."""
PARALLEL = 0.9995
"""Cosine above which the arc is a straight line, and its formula divides by nearly nothing."""
FULL = ("F32", "BF16", "F16")
TOKENIZER_BYTES = 64 << 20
SHAPING = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "rms_norm_eps", "rope_theta", "rope_scaling", "tie_word_embeddings",
)  # fmt: skip
"""Keys of config.json that must agree: with another value the same weights would compute something else."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How checkpoints become one."""

    method: Method
    coefficients: tuple[float, ...]
    """One a checkpoint, without the base: weights of `linear`, multipliers of differences; for `slerp` the second is t."""
    density: float = 0.2
    """`ties`: the share of a difference that is kept, the largest."""
    drop: float = 0.5
    """`dare`: the share of a difference that is dropped by chance."""
    scale: float = 1.0
    """`ties`, `dare-ties`: what the elected mean is multiplied by."""
    seed: int = 0

    def recipe(self) -> dict[str, Any]:
        """The plan for a record, without what its method does not read."""
        unread = {"density": self.method != "ties", "drop": "dare" not in self.method, "scale": "ties" not in self.method}
        unread["seed"] = unread["drop"]
        return {name: value for name, value in asdict(self).items() if not unread.get(name)} | {"computed_in": "float32"}


def checked(plan: Plan, num_checkpoints: int, has_base: bool) -> Plan:
    """The plan, if it can be meant.

    Raises:
        AskedWrong: the method does not take so many checkpoints, needs a base or has none, or a number is out of its range.
    """
    facts = {"method": plan.method}
    if plan.method not in METHODS:
        raise AskedWrong("there is no method {method}; expected one of {known}", known=", ".join(METHODS), **facts)
    if num_checkpoints != len(plan.coefficients) or num_checkpoints < (1 if plan.method in ON_BASE else 2):
        raise AskedWrong("{method}: {found} checkpoints; a merge needs at least two, base included", found=num_checkpoints, **facts)
    if plan.method == "slerp" and num_checkpoints != 2:
        raise AskedWrong("slerp: {found} checkpoints; an arc has two ends", found=num_checkpoints)
    if has_base != (plan.method in ON_BASE):
        raise AskedWrong(
            "{method} adds differences to a base, and there is none" if not has_base else "{method} has no base",
            hint="name it with --base" if not has_base else "leave --base out",
            **facts,
        )
    numbers = (*plan.coefficients, plan.density, plan.drop, plan.scale)
    ranges = 0 < plan.density <= 1 and 0 <= plan.drop < 1 and (plan.method != "slerp" or 0 <= plan.coefficients[1] <= 1)
    if not all(np.isfinite(numbers)) or not ranges:
        raise AskedWrong("{method}: density must lie in (0, 1], drop in [0, 1), t of slerp in [0, 1]", **facts)
    if plan.method == "linear" and sum(plan.coefficients) == 0:
        raise AskedWrong("linear: the weights add up to 0; they are divided by their sum")
    return plan


def merged(plan: Plan, name: str, tensors: Sequence[Floats], base: Floats | None = None) -> Floats:
    """One merged tensor.

    Args:
        plan: checked.
        name: of the tensor; what `dare` drops depends on it, on the seed and on nothing else.
        tensors: one a checkpoint, all of one shape.
        base: of the same shape, for methods that have one.
    """
    weights = [np.float32(value) for value in plan.coefficients]
    if plan.method == "slerp":
        return slerp(tensors[0], tensors[1], plan.coefficients[1])
    if base is None:
        total = np.float32(sum(plan.coefficients))
        return _summed(tensors, [weight / total for weight in weights])
    deltas = [tensor - base for tensor in tensors]
    if plan.method == "ties":
        deltas = [trimmed(delta, plan.density) for delta in deltas]
    if plan.method.startswith("dare"):
        deltas = [dropped(delta, plan.drop, generator(plan.seed, place, name)) for place, delta in enumerate(deltas)]
    if "ties" in plan.method:
        return base + np.float32(plan.scale) * elected_mean(deltas, weights)
    return base + _summed(deltas, weights)


def slerp(first: Floats, second: Floats, t: float) -> Floats:
    """The point at share `t` of the arc from one tensor to the other, both taken as vectors; a straight line where there is no angle."""
    a, b = first.reshape(-1), second.reshape(-1)
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    cosine = float(np.clip(np.dot(a, b) / lengths, -1, 1)) if lengths > 0 else 1.0
    if abs(cosine) > PARALLEL:
        return np.float32(1 - t) * first + np.float32(t) * second
    angle = np.arccos(cosine)
    one, other = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    return np.float32(one) * first + np.float32(other) * second


def trimmed(delta: Floats, density: float) -> Floats:
    """The largest share `density` of a difference by magnitude, at least one number, the rest 0; of equals, the first ones."""
    count = max(1, round(density * delta.size))
    if count >= delta.size:
        return delta
    flat = delta.reshape(-1)
    size = np.abs(flat)
    least = np.partition(size, delta.size - count)[delta.size - count]
    kept = size > least
    kept[np.flatnonzero(size == least)[: count - int(np.count_nonzero(kept))]] = True
    return np.where(kept, flat, np.float32(0)).reshape(delta.shape)


def elected_mean(deltas: Sequence[Floats], weights: Sequence[np.float32]) -> Floats:
    """The weighted mean of those differences whose sign is that of the weighted sum; 0 where none has it."""
    sign = np.sign(_summed(deltas, weights))
    total, counted = np.zeros_like(deltas[0]), np.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        agrees = (np.sign(weight * delta) == sign) & (delta != 0)
        total += np.where(agrees, weight * delta, np.float32(0))
        counted += np.where(agrees, abs(weight), np.float32(0))
    return np.divide(total, counted, out=np.zeros_like(total), where=counted > 0)


def dropped(delta: Floats, drop: float, rng: np.random.Generator) -> Floats:
    """Each number stays with probability 1 - `drop` and is then divided by that probability."""
    kept = rng.random(delta.shape, np.float32) >= drop
    return np.where(kept, delta / np.float32(1 - drop), np.float32(0))


def generator(seed: int, place: int, name: str) -> np.random.Generator:
    """Random numbers of one tensor of one checkpoint, the same in whatever order tensors are merged."""
    digest = hashlib.sha256(f"{seed} {place} {name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def _summed(tensors: Sequence[Floats], weights: Sequence[np.float32]) -> Floats:
    total = weights[0] * tensors[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total += weight * tensor
    return total


@contextmanager
def merging(
    paths: Sequence[Path], plan: Plan, base: Path | None, kind: str = "", say: Callable[..., None] = unheard
) -> Iterator[FolderParts]:
    """A merged checkpoint, ready to be written; a tensor is computed when its bytes are asked for.

    Args:
        paths: GGUF files or checkpoints' folders; configuration and vocabulary are those of the base, else of the first.
        plan: how.
        base: of the methods that have one.
        kind: "F32", "BF16" or "F16"; by default what all sources have, or BF16 where they differ or are quantised.
        say: hears of sources that are quantised.
    Raises:
        AskedWrong: the plan cannot be meant, or they are no models of one kind.
        MissingTensor, UnexpectedTensor, WrongShape: their tensors are not the same.
        BadFiles: a source is damaged.
    """
    checked(plan, len(paths), base is not None)
    with ExitStack() as closing:
        opened: list[FolderParts] = []
        for path in (*([base] if base else []), *paths):
            opened.append(as_folder(path))
            closing.callback(opened[-1].close)
        for path, parts in zip([*([base] if base else []), *paths], opened, strict=True):
            agree(opened[0], parts, path.name)
        tables = [dict(parts.tensors) for parts in opened]
        kinds = {stored.kind for table in tables for stored in table.values() if len(stored.shape) > 1}
        kind = kind or (next(iter(kinds)) if len(kinds) == 1 and kinds <= set(FULL) else "BF16")
        if kinds - {*FULL, "F64"}:
            text = "warning: sources are quantised ({kinds}); what that lost does not come back"
            say(text, kinds=", ".join(sorted(one.lower() for one in kinds - {*FULL, "F64"})))
        forget = [parts.forget for parts in opened]

        def lazy(name: str, shape: tuple[int, ...]) -> StoredTensor:
            def load() -> memoryview:
                arrays = [table[name].float32() for table in tables]
                for release in forget:
                    release()
                found = merged(plan, name, arrays[1:], arrays[0]) if base else merged(plan, name, arrays)
                return encoded(name, found, kind)

            return StoredTensor(name, shape, kind, bytes_of(kind, shape, file="memory", tensor=name), load)

        tensors = tuple((name, lazy(name, stored.shape)) for name, stored in opened[0].tensors)
        yield FolderParts(
            config=opened[0].config, documents=opened[0].documents, tensors=tensors, close=lambda: None, forget=lambda: None
        )  # fmt: skip


def encoded(name: str, values: Floats, kind: str) -> memoryview:
    """Numbers in their format in a file.

    Raises:
        NonFinite: one is NaN or infinite, or becomes so in this format.
    """
    limit = 65504 if kind == "F16" else 3.3895e38
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > limit:
        raise NonFinite("tensor {tensor}: the result has a number that {kind} cannot hold", tensor=name, kind=kind)
    return memoryview(quantise(kind, values))


def agree(first: FolderParts, other: FolderParts, file: str) -> None:
    """Two models can be merged: one architecture, one vocabulary, the same tensors.

    Raises:
        AskedWrong: their configurations or vocabularies differ; the message names the key.
        MissingTensor, UnexpectedTensor, WrongShape: their tensors differ.
    """
    for key in SHAPING:
        ours, theirs = _said(first.config, key), _said(other.config, key)
        if not _same(ours, theirs):
            text = "{file}: {key} is {found}; the first model has {expected}; only models of one shape can be merged"
            raise AskedWrong(text, file=file, key=key, found=repr(theirs)[:80], expected=repr(ours)[:80])
    if _vocabulary(first) != _vocabulary(other):
        raise AskedWrong(
            "{file}: its tokenizer has other tokens than that of the first model",
            hint="rows of the embeddings would be mixed that mean different tokens",
            file=file,
        )
    ours_by, theirs_by = dict(first.tensors), dict(other.tensors)
    for name, stored in ours_by.items():
        if name not in theirs_by:
            raise MissingTensor("{file}: tensor {tensor} is missing", file=file, tensor=name)
        if theirs_by[name].shape != stored.shape:
            raise WrongShape(
                "{file}: tensor {tensor} is {found}; the first model has {expected}",
                file=file,
                tensor=name,
                found=list(theirs_by[name].shape),
                expected=list(stored.shape),
            )
    extra = next((name for name in theirs_by if name not in ours_by), None)
    if extra is not None:
        raise UnexpectedTensor("{file}: tensor {tensor} is not in the first model", file=file, tensor=extra)


def _same(first: Any, other: Any) -> bool:
    """Equal, but for what a number loses in GGUF, which has float32."""
    if isinstance(first, float) and isinstance(other, int | float):
        return abs(first - other) <= 1e-6 * abs(first)
    if isinstance(first, dict) and isinstance(other, dict):
        return first.keys() == other.keys() and all(_same(first[key], other[key]) for key in first)
    return bool(first == other)


def _said(config: Mapping[str, Any], key: str) -> Any:
    """A value of a configuration, or what it means to leave it out."""
    if key == "head_dim":
        return config.get(key) or config["hidden_size"] // config["num_attention_heads"]
    if key == "num_key_value_heads":
        return config.get(key) or config["num_attention_heads"]
    return config.get(key, {"tie_word_embeddings": False, "rope_theta": 10000.0}.get(key))


def _vocabulary(parts: FolderParts) -> Any:
    """What gives tokens their ids; the file itself where that is not JSON."""
    raw = parts.documents.get("tokenizer.json")
    if raw is None:
        return parts.documents.get("tokenizer.model")
    found = load_json(raw, file="tokenizer.json", max_bytes=TOKENIZER_BYTES, max_items=1 << 23)
    tokens = dict(found["model"]["vocab"]) | {token["content"]: token["id"] for token in found.get("added_tokens", ())}
    return {text: index for text, index in tokens.items() if not text.startswith("[PAD")}
