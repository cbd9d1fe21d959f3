"""An answer as plain data, and its figures in one line."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from khola.cli.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from khola.api import Model
    from khola.api.answer import Answer
    from khola.cli.remote import Remote
    from khola.engine.request import TokenInfo, Usage


def answer_data(model: Model | Remote, answer: Answer, load_s: float) -> dict[str, Any]:
    """What `--json` prints: the answer, what it cost, how long each part took in seconds."""
    usage = asdict(answer.usage)
    counts = {name: value for name, value in usage.items() if name.endswith("_tokens")}
    times = {name: round(value, 6) for name, value in usage.items() if name.endswith("_s")}
    data: dict[str, Any] = {
        "model": model.name,
        "answer": answer.text,
        "thinking": answer.thinking,
        "finish_reason": answer.finish_reason,
        "usage": counts,
        "timings": {"load_s": round(load_s, 6), **times, "tokens_per_s": round(tokens_per_s(answer.usage), 3)},
    }
    if answer.complete is not None:
        data["complete"] = answer.complete
    if answer.is_json:
        data["parsed"] = answer.parsed
    if any(token.logprob is not None for token in answer.tokens):  # a server tells none
        data["tokens"] = tokens_data(cast("Model", model), answer.tokens)
    return data


def tokens_data(model: Model, tokens: Iterable[TokenInfo]) -> list[dict[str, Any]]:
    """Chosen tokens with their text, natural log-probability and alternatives."""
    return [
        {
            **token_data(model, token.id, token.logprob),
            "top": [token_data(model, token_id, logprob) for token_id, logprob in token.top],
        }
        for token in tokens
    ]


def token_data(model: Model, token_id: int, logprob: float | None) -> dict[str, Any]:
    """One token; its bytes stand beside its text because a token may hold a part of a character."""
    raw = model.loaded.tokenizer.token_bytes(token_id)
    return {"id": token_id, "token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": logprob}


def print_stats(usage: Usage, talk: Talk) -> None:
    """Print figures on stderr: one line, and another when tokens were guessed."""
    talk.say(
        "[{tokens} tokens, {speed} tokens/s, first token after {first} s, {cached} of {prompt} prompt tokens from the cache]",
        tokens=usage.answer_tokens,
        speed=f"{tokens_per_s(usage):.1f}",
        first=f"{usage.wait_s + usage.prefill_s:.2f}",
        cached=usage.cached_tokens,
        prompt=usage.prompt_tokens,
    )
    if usage.drafted_tokens:
        talk.say(
            "[{accepted} of {drafted} guessed tokens were right, and took no step of their own]",
            accepted=usage.accepted_tokens,
            drafted=usage.drafted_tokens,
        )


def tokens_per_s(usage: Usage) -> float:
    """Speed of decoding: tokens after the first, by the time between first and last; 0 when there was one token."""
    return (usage.answer_tokens - 1) / usage.decode_s if usage.decode_s > 0 and usage.answer_tokens > 1 else 0.0
