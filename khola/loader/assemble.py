"""Files meet architecture: stored tensors, checked name by name and shape by shape, become a tree of weights.

Nothing is taken, and so nothing is allocated, before every name and every shape is known to be right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from khola.errors import MissingTensor, UnexpectedTensor, WrongShape
from khola.nn import second_token
from khola.nn.specs import Architecture
from khola.ops.rows import Rows
from khola.ops.stack import Stack
from khola.ops.vocabulary import Interpreter, Stored
from khola.ops.weights import Tree, tree_of

BUFFERS = re.compile(r"(^|\.)rotary_emb\.inv_freq$|^rope_freqs\.weight$|\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)$")
"""Tables of rotary frequencies and of decays that tools saved; the configuration says the same."""

MTP = re.compile(r"(model\.)?mtp[._].+")
"""Layers that predict a second token, as ERNIE and Qwen name them: a forward pass does not read them."""

CORRECTION = re.compile(r"(.+?)(?:\.gate|\.moe_statics)?\.e_score_correction_bias")
"""The bias that only helps a router to choose, beside the router or in a part of its own."""

FURTHER = re.compile(r"^mtp\.")
"""Layers that guess the token after the next one, as Qwen3-Next and Qwen3.5 ship them: nothing here asks them."""

EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(.+)")
"""Names of the tensors of one expert, which an architecture lists in order of the experts."""

Tell = Callable[..., None]
"""Called with a sentence and its facts when something unusual, but harmless, was found."""


def assemble(
    architecture: Architecture,
    config: Any,
    stored: Mapping[str, Stored],
    ops: Interpreter,
    *,
    file: str = "model",
    tell: Tell | None = None,
    further: bool = False,
) -> Tree:
    """All weights of a model in one interpreter.

    Args:
        architecture: the module whose `tensors` says what must be there.
        config: its checked configuration.
        stored: tensors by the names of the lab's checkpoint.
        ops: keeps each weight in the form it computes with.
        file: named in errors.
        tell: hears about a tied model that ships another output table all the same, and about layers that are left out.
        further: also take the layer that guesses the token after the next one.
    Raises:
        MissingTensor: the architecture needs one that is not there.
        UnexpectedTensor: one is there that the architecture does not know.
        WrongShape: a tensor has another shape than the configuration says.
    """
    wanted = second_token.tensors(architecture, config) if further else architecture.tensors(config)
    found = {name: tensor for name, tensor in stored.items() if not BUFFERS.search(name)}
    _leave_further(wanted, found, file, tell)
    _leave_tied_head(wanted, found, file, tell)
    _leave_second_token(wanted, found, config.spare, file, tell)
    _check_names(wanted, found, file)
    _check_shapes(wanted, found, file)
    found |= _moved(architecture, second_token.with_layer(config) if further else config, found)
    biases = {weight: bias for bias in wanted if (weight := _biased(bias)) in wanted}
    inside = set(biases.values())
    return tree_of(
        ops.take(tensor, found.get(biases.get(name, "")), exact=bool(CORRECTION.fullmatch(biases.get(name, ""))))
        for name, tensor in _stacked(wanted, found).items()
        if name not in inside
    )


def _biased(name: str) -> str:
    """Name of the matrix whose bias this would be."""
    router = CORRECTION.fullmatch(name)
    return f"{router[1]}.gate.weight" if router else f"{name.removesuffix('.bias')}.weight"


def _moved(architecture: Architecture, config: Any, found: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors whose rows lie in an order of their own, with these moved to where every interpreter wants them."""
    moved = architecture.pairs(config)
    return {name: Rows(name, found[name], one.order(found[name].shape[0])) for name, one in moved.items()}


def _stacked(wanted: Mapping[str, Any], found: Mapping[str, Stored]) -> dict[str, Stored]:
    """The wanted tensors in order; those that the experts of a layer have each are one, under a name without the expert's number."""
    whole: dict[str, Stored] = {}
    parts: dict[str, list[Stored]] = {}
    for name in wanted:
        expert = EXPERT.fullmatch(name)
        if expert is None:
            whole[name] = found[name]
            continue
        stack = f"{expert[1]}.{expert[3]}"
        parts.setdefault(stack, []).append(found[name])
        whole[stack] = found[name]
    return whole | {name: Stack(name, tuple(experts)) for name, experts in parts.items()}


def _leave_further(wanted: Mapping[str, Any], found: dict[str, Stored], file: str, aside: Tell | None) -> None:
    """Layers that guess further tokens stay where they are."""
    further = [name for name in found if FURTHER.search(name) and name not in wanted]
    for name in further:
        del found[name]
    if further and aside is not None:
        aside("{file}: {count} tensors of layers that guess further tokens are left out", file=file, count=len(further))


def _leave_tied_head(wanted: Mapping[str, Any], found: dict[str, Stored], file: str, aside: Tell | None) -> None:
    """A tied model computes with its embedding table, even where the file repeats it; the flag of the configuration decides."""
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    if head in wanted or head not in found or table not in found:
        return
    same = _equal(found[head], found[table])
    del found[head]
    if aside is not None and not same:
        aside(
            "{file}: {tensor} differs from the embedding table, but the configuration ties them; the embedding table is used",
            file=file,
            tensor=head,
        )


def _leave_second_token(wanted: Mapping[str, Any], found: dict[str, Stored], spare: tuple[str, ...], file: str, aside: Tell | None) -> None:
    """Tensors of layers that predict a second token stay in the file, where the architecture does not name them."""
    left = [name for name in found if name not in wanted and (MTP.fullmatch(name) or name.startswith(spare))]
    for name in left:
        del found[name]
    if left and aside is not None:
        aside("{file}: {count} tensors of the layer that predicts a second token are left out", file=file, count=len(left))


def _equal(one: Stored, other: Stored) -> bool:
    """The same numbers, whatever format they lie in."""
    if one.shape != other.shape:
        return False
    if one.kind == other.kind:
        return bool(one.raw() == other.raw())
    return bool(np.array_equal(one.float32(), other.float32()))


def _check_names(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Stored], file: str) -> None:
    """Every wanted name is there, and no other."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    if missing == ["lm_head.weight"]:
        raise MissingTensor(
            "{file}: the output table {tensor} is missing",
            hint="if the output table is the embedding table, the configuration must say tie_word_embeddings",
            file=file,
            tensor=missing[0],
        )
    if missing:
        like = _siblings_of(missing[0])
        raise MissingTensor(
            "{file}: tensor {tensor} is missing ({count} of {total} like it; {all_missing} missing in all)",
            hint="the file may be cut short, be one of several parts, or use other names ({unexpected})",
            file=file,
            tensor=missing[0],
            count=sum(map(bool, map(like, missing))),
            total=sum(map(bool, map(like, wanted))),
            all_missing=len(missing),
            unexpected=", ".join(unexpected[:3]) or "-",
        )
    if unexpected:
        raise UnexpectedTensor(
            "{file}: tensor {tensor} is not part of this architecture ({count} such tensors)",
            hint="the checkpoint may be of another architecture: compare model_type, or the biases and ties in its configuration",
            file=file,
            tensor=unexpected[0],
            count=len(unexpected),
            tensors=unexpected,
        )


def _check_shapes(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Stored], file: str) -> None:
    """Every tensor has the shape that the configuration says."""
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape:
            raise WrongShape(
                "{file}: tensor {tensor} has shape {found}; the configuration says {expected}",
                file=file,
                tensor=name,
                found=list(found[name].shape),
                expected=list(shape),
            )


def _siblings_of(name: str) -> Callable[[str], object]:
    """Says of another name whether it differs from this one in its layer number only."""
    return re.compile(re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name))).fullmatch
