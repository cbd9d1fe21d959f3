"""Rotary positions from a configuration: base, partial width and the ways to stretch them over longer texts.

Source   rotary positions, arXiv:2104.09864 section 3.2; linear, arXiv:2306.15595; YaRN, arXiv:2309.00071 sections 3.2 to 3.4;
         "llama3", the model code published with Llama 3.1; "divisors", the tensor `rope_freqs.weight` of GGUF files.

Everything is worked out in float64 and rounded once. Configurations say the same in several ways: `rope_scaling` or
`rope_parameters`, `type` or `rope_type`, `rope_theta` outside or inside of them; all are read, contradictions raise.
`attn_factor`, which DeepSeek-R1-0528-Qwen3-8B gives, multiplies YaRN's factor on cosines and sines, as in llama.cpp and vLLM;
transformers does not read it. That model's undoes the factor: what is left is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from khola.errors import BadConfig, UnknownKey
from khola.nn.specs import FILE, Positions, Strict, read_keys
from khola.ops.vocabulary import Rope

DEFAULT_THETA = 10000.0
"""What configurations without `rope_theta` mean; arXiv:2104.09864 section 3.2.2."""

Frequencies = NDArray[np.float64]
Factor = Annotated[float, Meta(gt=0, le=1e6)]
Theta = Annotated[float, Meta(gt=1, le=1e15)]
Share = Annotated[float, Meta(gt=0, le=1)]
"""Of the dimensions of a head, those that are rotated."""


class HasRope(Protocol):
    """What a configuration must tell about its rotary positions."""

    @property
    def head_size(self) -> int:
        """Dimensions of a head."""

    @property
    def rope_theta(self) -> float | None:
        """The base, if it stands outside of the other parameters."""

    @property
    def rope_scaling(self) -> Mapping[str, Any] | None:
        """Parameters in the older form."""

    @property
    def rope_parameters(self) -> Mapping[str, Any] | None:
        """Parameters in the newer form."""

    @property
    def max_position_embeddings(self) -> int:
        """Trained context."""


class Parameters(Strict, frozen=True):
    """All keys of `rope_scaling` and `rope_parameters`; which of them a kind reads stands in `_KINDS`."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Theta | None = None
    partial_rotary_factor: Share | None = None
    finetuned: bool | None = None
    factor: Factor | None = None
    original_max_position_embeddings: Positions | None = None
    low_freq_factor: Factor | None = None
    high_freq_factor: Factor | None = None
    attention_factor: Factor | None = None
    attn_factor: Factor | None = None
    beta_fast: Factor | None = None
    beta_slow: Factor | None = None
    mscale: Annotated[float, Meta(ge=0, le=1e3)] | None = None
    mscale_all_dim: Annotated[float, Meta(ge=0, le=1e3)] | None = None
    truncate: bool = True
    divisors: list[Factor] | None = None


def rope_from_config(c: HasRope, share: float = 1.0, theta: float = DEFAULT_THETA) -> Rope:
    """The rotary positions that a configuration describes.

    Args:
        c: the configuration.
        share: of a head that is rotated, where the parameters do not say so themselves.
        theta: the base, where the configuration has none.
    Raises:
        UnknownKey: a parameter that its kind of scaling does not read.
        BadConfig: an unknown kind, a missing, contradictory or impossible parameter.
    """
    if c.rope_scaling and c.rope_parameters and dict(c.rope_scaling) != dict(c.rope_parameters):
        raise BadConfig(
            "{file}: rope_scaling and rope_parameters contradict each other; expected one of them", file=FILE, key="rope_scaling"
        )
    key = "rope_scaling" if c.rope_scaling else "rope_parameters"
    raw = {name: value for name, value in (c.rope_scaling or c.rope_parameters or {}).items() if value is not None}
    p = read_keys(raw, Parameters, prefix=f"{key}.")
    kind = p.rope_type or p.type or "default"
    if p.type is not None and p.type != kind:
        raise BadConfig("{file}: {key}.type is {found} but {key}.rope_type is {kind}", file=FILE, key=key, found=p.type, kind=kind)
    if kind not in _KINDS:
        raise BadConfig(
            "{file}: {key}.rope_type is {found!r}; khola knows {known}", file=FILE, key=key, found=kind[:80], known=", ".join(_KINDS)
        )
    if c.rope_theta is not None and p.rope_theta not in (None, c.rope_theta):
        raise BadConfig(
            "{file}: {key}.rope_theta is {found} but rope_theta is {outer}", file=FILE, key=key, found=p.rope_theta, outer=c.rope_theta
        )
    theta = p.rope_theta or c.rope_theta or theta
    if p.partial_rotary_factor is not None:
        share = p.partial_rotary_factor
    width = int(c.head_size * share)
    if width < 2 or width % 2:
        raise BadConfig(
            "{file}: {key}.partial_rotary_factor is {found}; expected an even number of the {size} dimensions of a head",
            file=FILE,
            key=key,
            found=share,
            size=c.head_size,
        )
    if kind in ("llama3", "yarn") and p.original_max_position_embeddings is None:
        p = msgspec.structs.replace(p, original_max_position_embeddings=c.max_position_embeddings)
    _check_keys(raw, kind, key)
    frequencies = theta ** -(np.arange(0, width, 2) / width)
    scale, _, _ = _KINDS[kind]
    scaled, factor = scale(frequencies, _Scaling(p, theta, key, c.max_position_embeddings))
    return Rope(tuple(scaled.astype(np.float32).tolist()), factor)


def magnitude(factor: float, mscale: float = 1.0) -> float:
    """How much YaRN enlarges attention when positions are stretched by a factor; arXiv:2309.00071 section 3.4."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def score_factor(c: HasRope) -> float:
    """What YaRN multiplies scores with in models of DeepSeek's form, which give `mscale_all_dim`; 1 in others.

    Their cosines and sines are multiplied by less in exchange; see `Rope.factor`.

    Source: arXiv:2405.04434 section 3.1.4.
    """
    raw = c.rope_scaling or c.rope_parameters or {}
    share = raw.get("mscale_all_dim") or 0
    original = raw.get("original_max_position_embeddings") or c.max_position_embeddings
    return magnitude(raw.get("factor") or c.max_position_embeddings / original, share) ** 2 if share else 1.0


class _Scaling(msgspec.Struct, frozen=True):
    """What a kind of scaling may look at."""

    p: Parameters
    theta: float
    key: str
    context: int


def _check_keys(raw: Mapping[str, Any], kind: str, key: str) -> None:
    """Every key must be one that this kind of scaling reads, and none of those it needs may be missing."""
    _, needed, optional = _KINDS[kind]
    for name in raw:
        if name not in (*_COMMON, *needed, *optional):
            raise UnknownKey("{file}: {key} is not read by rotary scaling of type {kind}", file=FILE, key=f"{key}.{name}", kind=kind)
    for name in needed:
        if name not in raw:
            raise BadConfig("{file}: {key} is missing; rotary scaling of type {kind} needs it", file=FILE, key=f"{key}.{name}", kind=kind)


def _default(frequencies: Frequencies, s: _Scaling) -> tuple[Frequencies, float]:
    """As they are."""
    return frequencies, 1.0


def _linear(frequencies: Frequencies, s: _Scaling) -> tuple[Frequencies, float]:
    """Every position counts 1 / factor."""
    assert s.p.factor is not None
    return frequencies / s.p.factor, 1.0


def _llama3(frequencies: Frequencies, s: _Scaling) -> tuple[Frequencies, float]:
    """Long waves are stretched, short ones kept, those between blended by how often they turn in the original context."""
    low, high, factor, original = s.p.low_freq_factor, s.p.high_freq_factor, s.p.factor, s.p.original_max_position_embeddings
    assert low is not None and high is not None and factor is not None and original is not None
    if high <= low:
        raise BadConfig(
            "{file}: {key}.high_freq_factor is {high}; expected more than low_freq_factor, {low}", file=FILE, key=s.key, high=high, low=low
        )
    turns = original * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies, 1.0


def _yarn(frequencies: Frequencies, s: _Scaling) -> tuple[Frequencies, float]:
    """A ramp over the pairs from kept to stretched, and a factor on cosines and sines."""
    p, original = s.p, s.p.original_max_position_embeddings
    assert original is not None
    factor = p.factor or s.context / original
    fast, slow = p.beta_fast or 32.0, p.beta_slow or 1.0
    if fast < slow:
        raise BadConfig(
            "{file}: {key}.beta_fast is {fast}; expected at least beta_slow, {slow}", file=FILE, key=s.key, fast=fast, slow=slow
        )
    low, high = yarn_ramp(2 * len(frequencies), s.theta, original, fast, slow, p.truncate)
    stretched = np.clip((np.arange(len(frequencies)) - low) / (high - low), 0, 1)
    if p.attention_factor is not None:
        turned = p.attention_factor
    elif p.mscale and p.mscale_all_dim:
        turned = magnitude(factor, p.mscale) / magnitude(factor, p.mscale_all_dim)
    else:
        turned = magnitude(factor)
    if p.attn_factor is not None:
        if p.attention_factor is not None:
            raise BadConfig("{file}: {key} has attention_factor and attn_factor; expected one of them", file=FILE, key=s.key)
        turned *= p.attn_factor
    return stretched * frequencies / factor + (1 - stretched) * frequencies, turned


def yarn_ramp(width: int, theta: float, original: int, fast: float, slow: float, truncate: bool = True) -> tuple[float, float]:
    """Pairs between which YaRN goes from kept to stretched: those that turn `fast` and `slow` times in the original context.

    Returns:
        First and last index of the ramp; never equal. With `truncate` they are rounded outwards to whole pairs.
    """
    low, high = (width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    return (low, high + 0.001) if low == high else (low, high)


def _divisors(frequencies: Frequencies, s: _Scaling) -> tuple[Frequencies, float]:
    """Each frequency has a divisor of its own, worked out by whoever wrote the file."""
    divisors = s.p.divisors or []
    if len(divisors) != len(frequencies):
        raise BadConfig(
            "{file}: {key}.divisors has {found} numbers; expected {expected}, one for each rotated pair",
            file=FILE,
            key=s.key,
            found=len(divisors),
            expected=len(frequencies),
        )
    return frequencies / np.asarray(divisors), 1.0


_Kind = tuple[Callable[[Frequencies, _Scaling], tuple[Frequencies, float]], tuple[str, ...], tuple[str, ...]]
_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned")
_KINDS: Mapping[str, _Kind] = {
    "default": (_default, (), ()),
    "linear": (_linear, ("factor",), ()),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (
        _yarn,
        (),
        (
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "attn_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
    "divisors": (_divisors, ("divisors",), ()),
}
"""Each kind of scaling: its function, the keys it needs, the keys it may have."""
