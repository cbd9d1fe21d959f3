"""A ready model: everything that the engine needs and nothing that it could ask of a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from khola.nn import decoder, second_token

if TYPE_CHECKING:
    from khola.cards.card import Card
    from khola.nn.specs import Architecture
    from khola.ops.vocabulary import CacheSpec, Interpreter, Ops, Step, Value
    from khola.ops.weights import Tree
    from khola.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """Card, architecture, configuration, weights and tokenizer of one model, in one interpreter."""

    name: str
    card: Card | None
    """None for files that no card describes."""
    architecture: Architecture
    config: Any
    weights: Tree
    ops: Interpreter
    cache: CacheSpec
    tokenizer: Tokenizer
    context_tokens: int
    """Trained context."""
    vocab_tokens: int
    """Rows of the head; ids from `tokenizer.size` up to here are padding and are never chosen."""
    chat_format: str = ""
    """A module of `khola.chat.formats`; empty when none is known."""
    template: str = ""
    """The template that came with the files; runs only when the user trusts it."""
    stop_ids: frozenset[int] = frozenset()
    weight_bytes: int = 0
    """Memory that the weights take in this interpreter."""
    sampling: dict[str, float | int] = field(default_factory=dict)
    """What the lab recommends."""
    files: tuple[str, ...] = ()
    second_token: bool = False
    """Whether the layer that guesses the token after the next one was loaded, and has a plane of the cache."""

    def logits(self, ids_T: Value, step: Step, ops: Ops) -> Value:
        """Logits of the wanted rows, [R, V]; a forward pass for `Interpreter.compile`."""
        return decoder.logits(ids_T, self.architecture, self.weights, self.config, step, ops, keep=self.second_token)

    def hidden(self, ids_T: Value, step: Step, ops: Ops) -> Value:
        """Normed hidden states of the wanted rows, [R, D]; a forward pass for `Interpreter.compile`."""
        return decoder.hidden(ids_T, self.architecture, self.weights, self.config, step, ops)

    def further(self, ids_T: Value, step: Step, ops: Ops) -> Value:
        """Logits of the tokens after the next ones, [R, V]: ids are those behind the rows; a forward pass for `Interpreter.compile`."""
        return second_token.logits(ids_T, self.architecture, self.weights, self.config, step, ops)
