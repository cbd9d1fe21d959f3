"""Fields that several of OpenAI's bodies have, and how fields that khola does not follow are treated.

A field that changes nothing here is left out and its name told in a header; one that would change the answer is refused by its name; a
field that nobody knows is refused when the body is read. null is what a client writes for a field that it leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from khola.errors import AskedWrong, UnknownOption
from khola.serve.access.limits import Limits

HARMLESS = frozenset((
    "user", "safety_identifier",  # who asks, for the provider's own statistics
    "metadata", "store",  # what OpenAI keeps for its dashboard
    "service_tier",  # what OpenAI bills
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",  # the cache here finds beginnings by itself
    "verbosity",  # a wish that no model here was trained to follow
))  # fmt: skip
"""Fields that are taken and have no effect on an answer."""

LEAST_TOP_P = 1e-9
"""Stands for 0, which keeps the most likely token alone."""

Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
TopP = Annotated[float, msgspec.Meta(ge=0, le=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream says besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Padding against listeners who measure lengths; nothing is padded here."""


class SamplingFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen, in chats and completions."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, Annotated[float, msgspec.Meta(ge=-100, le=100)]] | None = None
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: Count | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None

    def sampling(self, limits: Limits) -> dict[str, Any]:
        """What the engine takes; without lengths and log-probabilities, which every body names differently.

        Raises:
            AskedWrong: stop strings or biases cannot be meant, or there are too many answers.
        """
        if self.stream_options is not None and not self.stream:
            raise AskedWrong("{param} is for streams only", hint="ask for stream too", param="stream_options")
        at_most("n", self.n or 1, limits.answers)
        found: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": None if self.top_p is None else max(self.top_p, LEAST_TOP_P),
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "stop": stops(self.stop, limits),
            "logit_bias": biases(self.logit_bias, limits),
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "ignore_end": self.ignore_eos,
        }
        return {name: value for name, value in found.items() if value is not None}


def kept(
    body: Mapping[str, Any], *, neutral: Mapping[str, Sequence[Any]], harmless: frozenset[str] = HARMLESS
) -> tuple[dict[str, Any], list[str]]:
    """A body without the fields that change nothing, and the names of those that were left out.

    Args:
        body: as it came.
        neutral: fields that khola does not follow, with the values that ask for nothing.
        harmless: fields that have no effect, whatever they say.
    Raises:
        UnknownOption: a field that khola does not follow asks for something.
    """
    fields, ignored = {}, []
    for name, value in body.items():
        if value is None:
            continue
        if name in harmless:
            ignored.append(name)
        elif name not in neutral:
            fields[name] = value
        elif value not in neutral[name]:
            raise UnknownOption("{param} is not supported here", hint="leave it out", param=name)
    return fields, ignored


def at_most(param: str, found: int, limit: int) -> None:
    """Refuse more than the server allows.

    Raises:
        AskedWrong: it is more.
    """
    if found > limit:
        raise AskedWrong("{param} asks for {found}; at most {limit} are allowed here", param=param, found=found, limit=limit)


def stops(given: str | Sequence[str] | None, limits: Limits) -> list[str] | None:
    """Stop strings as a list.

    Raises:
        AskedWrong: there are too many, or one is empty or too long.
    """
    if given is None:
        return None
    found = [given] if isinstance(given, str) else list(given)
    at_most("stop", len(found), limits.stops)
    if any(not 0 < len(text) <= limits.stop_letters for text in found):
        raise AskedWrong("a string of {param} is empty or longer than {limit} letters", param="stop", limit=limits.stop_letters)
    return found


def biases(given: Mapping[str, float] | None, limits: Limits) -> dict[int, float] | None:
    """What is added to logits, by token id.

    Raises:
        AskedWrong: there are too many, or a key is no token id.
    """
    if given is None:
        return None
    at_most("logit_bias", len(given), limits.logit_bias)
    wrong = [key for key in given if not (key.isascii() and key.isdigit() and len(key) < 10)]
    if wrong:
        raise AskedWrong("{param} has the key {key!r}; expected the id of a token", param="logit_bias", key=wrong[0][:40])
    return {int(key): value for key, value in given.items()}


def seeded(sampling: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The sampling of one of several answers: those of one seed would all be the same, so each has the next one."""
    seed = sampling.get("seed")
    return {**sampling} if seed is None or not index else {**sampling, "seed": (seed + index + 2**63) % 2**64 - 2**63}
