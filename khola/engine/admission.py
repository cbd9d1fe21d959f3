"""What must be true of a request, and of the memory, before anything is computed."""

from __future__ import annotations

from khola.engine.request import Request
from khola.engine.sampler import checked
from khola.errors import AskedWrong, ContextOverflow, EmptyPrompt, NoMemory, UnknownOption
from khola.ops.vocabulary import PAGE_TOKENS

DEFAULT_CONTEXT_TOKENS = 8192
"""Prompt and answer together, and the cache that holds them, when nobody asks for another number and the memory is there."""


def require_memory(num_pages: int, available_bytes: int | None, token_bytes: int, states_bytes: int = 0) -> int:
    """Memory of a cache, in bytes.

    Args:
        num_pages: pages of the cache.
        available_bytes: memory that may be used; None when it is not known.
        token_bytes: memory of one cached token in the interpreter.
        states_bytes: memory of all slots for states of sequences.
    Raises:
        NoMemory: the cache does not fit.
    """
    needed = states_bytes + token_bytes * num_pages * PAGE_TOKENS
    if available_bytes is not None and needed > available_bytes:
        raise NoMemory(
            "a cache of {tokens} tokens needs {needed_mb} MB, and {available_mb} MB are free",
            hint="ask for a shorter context: at most {fitting} tokens fit here",
            tokens=num_pages * PAGE_TOKENS,
            needed_mb=-(-needed // 1_000_000),
            available_mb=max(0, available_bytes) // 1_000_000,
            fitting=max(0, available_bytes) // token_bytes // PAGE_TOKENS * PAGE_TOKENS,
        )
    return needed


def require_context(context_tokens: int, trained_tokens: int, cache_tokens: int) -> int:
    """A context that the model was trained for and the cache can hold.

    Raises:
        AskedWrong: it is not a positive number.
        ContextOverflow: it is longer than either.
    """
    if context_tokens < 1:
        raise AskedWrong("a context of {context_tokens} tokens holds nothing", context_tokens=context_tokens)
    if context_tokens > trained_tokens:
        raise ContextOverflow(
            "a context of {context_tokens} tokens is longer than the {trained_tokens} that the model was trained for",
            hint="ask for at most {trained_tokens} tokens",
            context_tokens=context_tokens,
            trained_tokens=trained_tokens,
        )
    if context_tokens > cache_tokens:
        raise ContextOverflow(
            "a context of {context_tokens} tokens does not fit into a cache of {cache_tokens}",
            hint="ask for a larger cache or a shorter context",
            context_tokens=context_tokens,
            cache_tokens=cache_tokens,
        )
    return context_tokens


def accept(request: Request, context_tokens: int, trained_tokens: int, num_tokens: int) -> None:
    """Check a request; nothing of it is ever cut off or corrected.

    Args:
        request: as it was submitted.
        context_tokens: prompt and answer together may be so long.
        trained_tokens: the longest context that the model could have.
        num_tokens: ids of the vocabulary.
    Raises:
        EmptyPrompt: there is no token to start from.
        ContextOverflow: the prompt leaves no room for an answer.
        UnknownOption: a sampling value lies outside its range.
        AskedWrong: an id is not in the vocabulary, or two answers are asked for that exclude each other.
    """
    prompt = request.prompt
    if not prompt:
        raise EmptyPrompt("the prompt is empty", hint="give at least one character or token")
    checked(request.sampling, num_tokens)
    if not 0 <= request.prompt_top <= 100:
        raise UnknownOption(
            "{name} is {value!r}; expected a number from 0 to {limit}", name="prompt_top", value=request.prompt_top, limit=100
        )
    if request.embedding and request.prompt_logprobs:
        raise AskedWrong("one request cannot ask for an embedding and for log-probabilities", hint="make two requests")
    if request.grammar is not None and (request.embedding or request.prompt_logprobs or request.sampling.max_tokens == 0):
        raise AskedWrong("a grammar is for an answer, and this request makes none", hint="leave the grammar out")
    if request.grammar is not None and request.sampling.ignore_end:
        raise AskedWrong("an answer with a grammar ends with its grammar; ignore_end cannot be followed", hint="leave one of them out")
    reads_only = request.embedding or request.sampling.max_tokens == 0
    longest = context_tokens if reads_only else context_tokens - 1
    if len(prompt) > longest:
        raise ContextOverflow(
            "the prompt has {prompt_tokens} tokens; the maximum context length is {context_tokens}, prompt and answer together",
            hint=(
                "shorten the prompt, or load the model with a longer context: it was trained for {trained_tokens} tokens"
                if context_tokens < trained_tokens
                else "shorten the prompt, or use a model with a longer context"
            ),
            prompt_tokens=len(prompt),
            context_tokens=context_tokens,
            trained_tokens=trained_tokens,
        )
    if min(prompt) < 0 or max(prompt) >= num_tokens:
        bad = next(token for token in prompt if not 0 <= token < num_tokens)
        raise AskedWrong("the prompt names token {token}; ids go from 0 to {last}", token=bad, last=num_tokens - 1)
