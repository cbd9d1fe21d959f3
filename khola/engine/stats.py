"""What an engine has done and holds: plain numbers for people and for metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts since the engine was made, and what it holds now."""

    running: int
    waiting: int
    pages: int
    """Pages of the cache."""
    pages_used: int
    """Pages that running requests hold."""
    pages_kept: int
    """Pages whose content can be found again, used or not."""
    states_used: int
    """Slots for states that running requests hold; 0 where the model keeps none."""
    states_kept: int
    """Snapshots of states, from which a prompt that begins alike can go on."""
    cache_bytes: int
    """Memory of the whole cache, states included."""
    steps: int
    step_s: float
    """Seconds spent in steps."""
    prompt_tokens: int
    """Of requests that have ended."""
    cached_tokens: int
    """Of these prompt tokens, how many were found in the cache."""
    answer_tokens: int
    """Made so far."""
    computed_tokens: int
    """Rows that went through the model: prompts, answers, guesses and what was computed again."""
    drafted_tokens: int
    """Tokens that were guessed and checked; see `khola.engine.speculate`."""
    accepted_tokens: int
    """Answer tokens that were guessed right and needed no step of their own."""
    preemptions: int
    """How often a request lost its pages."""

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that were found in the cache, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def acceptance(self) -> float:
        """Share of guessed tokens that became part of an answer, 0 to 1."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def answer_tokens_per_s(self) -> float:
        """Answer tokens of all requests for every second spent in steps."""
        return self.answer_tokens / self.step_s if self.step_s else 0.0

    @property
    def computed_tokens_per_s(self) -> float:
        """Rows, prompts included, for every second spent in steps."""
        return self.computed_tokens / self.step_s if self.step_s else 0.0
