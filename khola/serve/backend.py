"""The seam between HTTP and models: what dialects ask, and what they get.

Dialects translate bodies into `ChatJob` and `TextJob`, and `Piece`s into what their clients expect. A `Backend` answers: engine processes
(`khola.serve.engines.pool`), or the deterministic stand-in that clients are tested with (`khola.serve.engines.echo`). Everything here is
plain data that crosses a socket as MessagePack.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, Protocol

import msgspec

from khola.chat.message import Message, Tool, ToolCall

State = Literal["unloaded", "loading", "loaded"]
FinishReason = Literal["stop", "length", "cancelled"]


class ChatJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A conversation that wants an answer; see `khola.api.Model.stream`."""

    messages: tuple[Message, ...]
    sampling: dict[str, Any] = {}
    """Fields of `khola.engine.request.Sampling`; they lie over what the model's lab recommends."""
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    """What `khola.api.Model.stream` takes: "auto", "required", or the name of a tool."""
    one_call: bool = False
    """Whether an answer may have one call at most."""
    thinking: bool | None = None
    thinking_tokens: int | None = None
    continue_last: bool = False
    form: dict[str, Any] = {}
    """One of `khola.api.form.Form`, never a path."""
    tenant: str = ""
    """Whose cache may be shared."""


class TextJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text that wants to go on, without a chat format."""

    prompt: str | tuple[int, ...]
    sampling: dict[str, Any] = {}
    form: dict[str, Any] = {}
    prompt_logprobs: int | None = None
    """Also tell the log-probability of every token of the prompt, and so many alternatives for each."""
    tenant: str = ""


Job = ChatJob | TextJob


class Token(msgspec.Struct, frozen=True):
    """A token by what it spells."""

    id: int
    spells: bytes
    """What it adds to the text; empty for control tokens."""
    logprob: float | None = None
    """Natural logarithm; None for the first token of a prompt, which nothing stands before."""
    top: tuple[tuple[int, bytes, float], ...] = ()
    """The most likely tokens here: id, bytes, log-probability; best first."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer cost."""

    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    thinking_tokens: int = 0
    """Of the answer's, those of its thought."""
    wait_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer: whole graphemes only."""

    text: str = ""
    thinking: str = ""
    tokens: tuple[Token, ...] = ()
    """Of this piece; only where log-probabilities were asked for."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that are complete by now and were not told before."""
    prompt: tuple[Token, ...] = ()
    """Of the prompt, in the first piece, where they were asked for."""
    finish_reason: FinishReason | None = None
    """Only in the last piece."""
    cost: Cost | None = None
    """Only in the last piece."""
    complete: bool | None = None
    """In the last piece of an answer that was held to a form: whether it has it."""
    stopped_by: str = ""
    """In the last piece of an answer that a stop string ended: which one."""


class Pieces(Protocol):
    """The pieces of one answer, in order; `aclose` stops it and frees what it holds."""

    def __aiter__(self) -> AsyncIterator[Piece]:
        """Itself."""

    async def __anext__(self) -> Piece:
        """The next piece.

        Raises:
            KholaError: the answer failed on the way.
        """

    async def aclose(self) -> None:
        """Stop; does nothing when the answer has ended."""


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """A model that this server offers."""

    name: str
    state: State
    created: int
    """Seconds since 1970: when its files came to this disk."""
    lab: str = ""
    card: str = ""
    """Name of its card; empty where none describes it."""
    file_bytes: int = 0
    """Of its files."""
    context_tokens: int = 0
    """Prompt and answer together; 0 while it is not known."""
    begins_with: str = ""
    """The token with which the model wants every text to begin; empty where there is none, and while it is not loaded."""
    ends_with: str = ""
    """The token with which its texts end; empty while it is not loaded."""
    used: float = 0.0
    """Seconds since 1970 of the last request."""
    memory_bytes: int = 0
    """That it takes now; 0 while it is not loaded."""
    pinned: bool = False
    """Never unloaded to make room."""


class Backend(Protocol):
    """What answers. All of it may be called from one event loop at once; every error is a `KholaError`."""

    async def start(self, job: Job, model: str) -> Pieces:
        """Begin an answer, once the model is loaded and has accepted the job; loads it where that is allowed.

        Raises:
            UnknownModel: the server does not offer it.
            NoMemory, Busy: it cannot be loaded, or its queue is full.
            AskedWrong: the job cannot be meant; the conversation does not fit (`ContextOverflow`).
        """

    async def embed(self, texts: Sequence[str | tuple[int, ...]], model: str, tenant: str = "") -> tuple[list[list[float]], int]:
        """A vector for each text, and the tokens of all of them."""

    async def tokens(self, text: str, model: str, *, special: bool = True) -> list[int]:
        """Ids of a text; with the token that the model wants in front, if `special`."""

    async def text(self, ids: Sequence[int], model: str) -> str:
        """What ids spell."""

    async def rendered(self, job: ChatJob, model: str) -> tuple[str, list[int]]:
        """The prompt that a conversation becomes, as text and ids."""

    async def models(self) -> list[ModelState]:
        """All that are offered."""

    async def load(self, model: str) -> ModelState:
        """Load a model, or wait until whoever loads it has done so."""

    async def unload(self, model: str) -> ModelState:
        """Let its running answers end, refuse new ones meanwhile, then give its memory back."""

    async def figures(self) -> dict[str, dict[str, float]]:
        """Counters and levels of each loaded model, as `khola.engine.stats.Stats` has them."""

    async def close(self, grace_s: float = 30.0) -> None:
        """Refuse new jobs, let running ones end for so long, then stop everything."""
