"""A backend that takes what answers cost from the accounts of those who asked, before they begin; see `khola.serve.access.quota`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import final

from khola.serve.access.quota import Account, Accounts
from khola.serve.backend import Backend, ChatJob, Job, Piece, Pieces

LETTERS = 4
"""Of ASCII text that are counted as a token before it is known how many it has."""
MESSAGE_TOKENS = 4
"""What the chat format adds to a message."""


@final
class Metered:
    """A `Backend` before a backend.

    Args:
        backend: that answers.
        accounts: of those whose use is limited.
        clock: seconds.
    """

    def __init__(self, backend: Backend, accounts: Accounts, clock: Callable[[], float]) -> None:
        self._backend, self._accounts, self._clock = backend, accounts, clock
        self.tokens, self.text, self.rendered, self.models = backend.tokens, backend.text, backend.rendered, backend.models
        self.load, self.unload, self.figures, self.close = backend.load, backend.unload, backend.figures, backend.close

    async def start(self, job: Job, model: str) -> Pieces:
        """Begin an answer; see `Backend.start`.

        Raises:
            TooMany, TooLarge: whose job it is has not so many tokens left.
        """
        account = self._accounts.of(job.tenant)
        if account is None:
            return await self._backend.start(job, model)
        bill = _Bill(account, prompt_tokens(job), int(job.sampling.get("max_tokens") or 0), self._clock)
        try:
            return _Pieces(await self._backend.start(job, model), bill)
        except BaseException:
            bill.pay(0)
            raise

    async def embed(self, texts: Sequence[str | tuple[int, ...]], model: str, tenant: str = "") -> tuple[list[list[float]], int]:
        """A vector for each text, and the tokens of all of them; errors as in `start`."""
        account = self._accounts.of(tenant)
        if account is None:
            return await self._backend.embed(texts, model, tenant)
        bill = _Bill(account, sum(map(text_tokens, texts)), 0, self._clock)
        try:
            vectors, tokens = await self._backend.embed(texts, model, tenant)
        except BaseException:
            bill.pay(0)
            raise
        bill.pay(tokens)
        return vectors, tokens


class _Bill:
    """What one answer costs: reserved in the beginning, paid once."""

    def __init__(self, account: Account, prompt: int, answer: int, clock: Callable[[], float]) -> None:
        self._account, self._clock = account, clock
        self.prompt, self._reserved = prompt, prompt + answer
        self._paid = False
        account.reserve(self._reserved, clock())

    def pay(self, used: int) -> None:
        """Say what it was; does nothing when that was said."""
        if not self._paid:
            self._paid = True
            self._account.settle(self._reserved, used, self._clock())


class _Pieces:
    """An answer whose cost is paid when it ends. One that is stopped before costs its prompt, and a token for each of its pieces."""

    def __init__(self, pieces: Pieces, bill: _Bill) -> None:
        self._pieces, self._bill = pieces, bill
        self._count = 0

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        piece = await anext(self._pieces)
        self._count += 1
        if piece.cost is not None:
            self._bill.pay(piece.cost.prompt_tokens + piece.cost.answer_tokens)
        return piece

    async def aclose(self) -> None:
        """Stop."""
        self._bill.pay(self._bill.prompt + self._count)
        await self._pieces.aclose()


def prompt_tokens(job: Job) -> int:
    """About how many tokens a job's prompt has; how many, the engine says when it has read it."""
    if not isinstance(job, ChatJob):
        return text_tokens(job.prompt)
    return sum(text_tokens(message.content) + MESSAGE_TOKENS for message in job.messages)


def text_tokens(text: str | tuple[int, ...]) -> int:
    """About how many tokens a text has: at least one."""
    return max(1, len(text.encode()) // LETTERS if isinstance(text, str) else len(text))
