"""Knows: the labs' chat formats, one file each: how to write them and how to parse them.

Does not know: each other, and the engine.

A format is a module with the names of `Format`. A conversation becomes a `Prompt` of control tokens and plain text, byte for byte what
the lab's published template prints; text that a speaker wrote stays plain text whatever it spells.
"""

from __future__ import annotations

import hashlib
import tomllib
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Protocol, cast

from khola.chat.message import Asked, Prompt
from khola.chat.parsing import Parsed, Parser
from khola.errors import UnknownOption

__all__ = ["NAMES", "Format", "Parsed", "Parser", "format_named", "format_of_template"]

NAMES = (
    "chatml",
    "deepseek_r1",
    "deepseek_r1_0528",
    "deepseek_v3",
    "deepseek_v3_1",
    "ernie4_5",
    "ernie4_5_thinking",
    "glm4",
    "glm4_0414",
    "glm_z1",
    "kimi_k2",
    "llama2",
    "llama3",
    "llama3_1",
    "llama3_2",
    "minimax",
    "moonlight",
    "qwen1_5",
    "qwen2_5",
    "qwen2_5_math",
    "qwen3",
    "qwen3_5",
    "qwen3_5_small",
    "qwen3_6",
    "qwen3_coder",
    "qwen3_instruct",
    "qwen3_thinking",
    "qwq",
    "smollm2",
)


class Format(Protocol):
    """How one lab writes conversations."""

    @property
    def NAME(self) -> str:
        """Name of the format, which is its module's."""

    @property
    def STOPS(self) -> tuple[str, ...]:
        """Control tokens that end a turn of the assistant."""

    def render(self, asked: Asked) -> Prompt:
        """A conversation as the model was trained to read it, up to where the answer begins.

        Args:
            asked: the turns, and how they end.
        Raises:
            AskedWrong: the format cannot say this.
        """

    def parser(self, prompt: Prompt) -> Parser:
        """A reader of the answer to this prompt."""


def format_named(name: str) -> Format:
    """The format of this name.

    Raises:
        UnknownOption: there is none.
    """
    if name not in NAMES:
        near = ", ".join(get_close_matches(name, NAMES, n=3, cutoff=0.0))
        raise UnknownOption("no chat format is called {name!r}", hint="the nearest are: {near}", name=name, near=near)
    return cast(Format, import_module(f"{__name__}.{name}"))


def format_of_template(source: str) -> str | None:
    """The name of the format that a lab's published template stands for; None for a template that khola does not know."""
    return _known_templates().get(hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest())


@cache
def _known_templates() -> dict[str, str]:
    """SHA-256 of the UTF-8 bytes of a template -> name of a format."""
    table = tomllib.loads(files(__name__).joinpath("known_templates.toml").read_text(encoding="utf-8"))
    return {digest: name for name, digests in table.items() for digest in digests}


if TYPE_CHECKING:
    from khola.chat.formats import (
        chatml,
        deepseek_r1,
        deepseek_r1_0528,
        deepseek_v3,
        deepseek_v3_1,
        ernie4_5,
        ernie4_5_thinking,
        glm4,
        glm4_0414,
        glm_z1,
        kimi_k2,
        llama2,
        llama3,
        llama3_1,
        llama3_2,
        minimax,
        moonlight,
        qwen1_5,
        qwen2_5,
        qwen2_5_math,
        qwen3,
        qwen3_5,
        qwen3_5_small,
        qwen3_6,
        qwen3_coder,
        qwen3_instruct,
        qwen3_thinking,
        qwq,
        smollm2,
    )

    _CHECKED: tuple[Format, ...] = (
        *(chatml, deepseek_r1, deepseek_r1_0528, deepseek_v3, deepseek_v3_1, ernie4_5, ernie4_5_thinking, glm4, glm4_0414, glm_z1),
        *(kimi_k2, llama2, llama3, llama3_1, llama3_2, minimax, moonlight, qwen1_5, qwen2_5),
        *(qwen2_5_math, qwen3, qwen3_5, qwen3_5_small, qwen3_6, qwen3_coder, qwen3_instruct, qwen3_thinking, qwq, smollm2),
    )
