"""Rewards as a configuration names them: `{"maths": {"boxed": true}, "length": {"most": 400, "weight": 0.2}}`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cached_property
from typing import Any, final

import msgspec

from khola.errors import AskedWrong, UnknownOption
from khola.evals.sandbox.pool import Pool
from khola.train.rewards.code import Code, code
from khola.train.rewards.exact import Exact, exact
from khola.train.rewards.form import Form, Length, Script, form, length, script
from khola.train.rewards.maths import Maths, maths
from khola.train.rewards.reward import Reward, Row, scored
from khola.train.rewards.schema import Schema, schema

Alone: dict[str, tuple[type[Any], Callable[[Any], Reward]]] = {
    "exact": (Exact, exact),
    "form": (Form, form),
    "length": (Length, length),
    "schema": (Schema, schema),
    "script": (Script, script),
}
"""Rewards that look at text."""
Boxed: dict[str, tuple[type[Any], Callable[[Any, Pool], Reward]]] = {"code": (Code, code), "maths": (Maths, maths)}
"""Rewards that run programs."""
RANDOM = "random"
"""Heads or tails, whatever the answer says: the control of an experiment, with which nothing may be learned."""


@final
class Rewards:
    """The sum of some rewards, each times its weight.

    Args:
        table: settings of each by its name; `weight` is 1 where it is not named.
    Raises:
        UnknownOption: there is no such reward, or no such setting of it.
        AskedWrong: none is named, or a setting has another type or lies out of its range.
        NoSandbox: a reward runs programs, and nothing on this machine can hold one.
    """

    def __init__(self, table: Mapping[str, Mapping[str, Any]]) -> None:
        if not table:
            raise AskedWrong("no reward is named", hint="--set grpo.reward.exact.key=answer names one")
        self._parts: list[tuple[Reward, float]] = []
        self._coins: list[float] = []
        for name, settings in table.items():
            given = dict(settings)
            weight = given.pop("weight", 1.0)
            if not isinstance(weight, int | float) or isinstance(weight, bool):
                raise AskedWrong("{key}: {why}", key=f"reward.{name}.weight", why=f"expected a number, got {type(weight).__name__}")
            if name == RANDOM:
                _settings(name, given, _Coin)
                self._coins.append(float(weight))
            else:
                self._parts.append((self._made(name, given), float(weight)))

    def __call__(self, prompt: str, answers: Sequence[str], row: Row, drawn: int = 0) -> list[float]:
        """The worth of some answers to one prompt, in order.

        Args:
            prompt, answers: as text.
            row: where the prompt comes from.
            drawn: answers that there were before: decides what is random.
        Raises:
            BadRow: the row lacks what answers are judged by.
        """
        count = len(answers)
        sums = [0.0] * count
        for reward, weight in self._parts:
            found = scored(reward, [prompt] * count, answers, [row] * count)
            sums = [before + weight * one for before, one in zip(sums, found, strict=True)]
        heads = random.Random(drawn)
        return [before + sum(weight * heads.randrange(2) for weight in self._coins) for before in sums]

    def require(self, row: Row) -> None:
        """Refuse a row that answers cannot be judged by.

        Raises:
            BadRow: what is missing.
        """
        for reward, _ in self._parts:
            reward("", "", row)

    def _made(self, name: str, given: Mapping[str, Any]) -> Reward:
        if name in Alone:
            shape, make = Alone[name]
            return make(_settings(name, given, shape))
        if name in Boxed:
            boxed, build = Boxed[name]
            return build(_settings(name, given, boxed), self._pool)
        known = (*Alone, *Boxed, RANDOM)
        near = ", ".join(get_close_matches(name, known, n=3, cutoff=0.0))
        raise UnknownOption("there is no reward {name!r}", hint="the nearest are: {near}", name=name, near=near)

    @cached_property
    def _pool(self) -> Pool:
        return Pool()


class _Coin(msgspec.Struct, frozen=True):
    """Nothing can be said about a coin."""


def _settings(name: str, given: Mapping[str, Any], shape: type[Any]) -> Any:
    """Settings in their form; unknown ones raise."""
    known = [one.name for one in (msgspec.structs.fields(shape) if issubclass(shape, msgspec.Struct) else fields(shape))]
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise UnknownOption(
                "there is no setting {key}", hint="the nearest is {near}", key=f"reward.{name}.{key}", near=f"reward.{name}.{near}"
            )
    try:
        return msgspec.convert(dict(given), shape)
    except msgspec.ValidationError as wrong:
        raise AskedWrong("{key}: {why}", key=f"reward.{name}", why=str(wrong)) from None
