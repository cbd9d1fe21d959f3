"""What a model gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from khola.chat.message import ToolCall
from khola.engine.request import FinishReason, TokenInfo, Usage
from khola.errors import BadText


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of an answer while it is made; whole graphemes only."""

    text: str = ""
    thinking: str = ""
    tokens: tuple[TokenInfo, ...] = ()
    prompt: tuple[TokenInfo, ...] = ()
    """The prompt's tokens, in the first delta, where their log-probabilities were asked for."""
    finish_reason: FinishReason | None = None
    """Set on the last delta."""
    usage: Usage | None = None
    """Set on the last delta."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that became complete with this delta."""
    thinking_tokens: int = 0
    """Tokens of the thought, its marks included; set on the last delta."""
    complete: bool | None = None
    """Set on the last delta of an answer that was held to a form: whether it has it, or was cut short."""
    stopped_by: str = ""
    """Set on the last delta of an answer that a stop string ended: which one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer."""

    text: str
    thinking: str
    finish_reason: FinishReason
    usage: Usage
    tokens: tuple[TokenInfo, ...] = ()
    prompt: tuple[TokenInfo, ...] = ()
    """The prompt's tokens, where their log-probabilities were asked for."""
    tool_calls: tuple[ToolCall, ...] = ()
    thinking_tokens: int = 0
    """Of the answer's tokens, those of its thought, marks included."""
    complete: bool | None = None
    """Whether the text has the form that was asked for; False when it was cut short, None when it was free."""
    stopped_by: str = ""
    """The stop string that ended it; empty where it ended otherwise."""
    is_json: bool = False
    """The form that was asked for is JSON."""

    @property
    def parsed(self) -> Any:
        """The value of an answer that was held to be JSON; None when it was not, was cut short, or is a call.

        Raises:
            BadText: it is JSON that Python cannot hold: a number of thousands of digits, or a thousand lists within each other.
        """
        if not (self.is_json and self.complete) or self.tool_calls:
            return None
        from json import loads

        try:
            return loads(self.text)
        except (ValueError, RecursionError) as error:
            raise BadText("the answer is JSON that cannot be held: {why}", why=str(error)) from error

    def json(self) -> dict[str, Any]:
        """The answer as plain data."""
        from dataclasses import asdict

        data = {**asdict(self), "tool_calls": [{"name": c.name, "arguments": c.arguments} for c in self.tool_calls]}
        return {**data, "parsed": self.parsed} if data.pop("is_json") else data


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The log-probability of a given text."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of tokens 1, 2, … given those before, natural logarithms; the first token has none."""

    @property
    def logprob(self) -> float:
        """Of the whole text given its first token."""
        return sum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp(-mean log-probability)."""
        from math import exp

        return exp(-self.logprob / max(1, len(self.logprobs)))
