"""A model without weights: its logits are a pure function of what the cache says, so a wrong page gives wrong tokens."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from khola.engine.engine import Engine
from khola.engine.request import Failed, Finished, Piece, Request
from khola.engine.runner import Part
from khola.loader.loaded import Loaded
from khola.ops.vocabulary import PAGE_TOKENS, CacheSpec, LayerCache, StateCache
from khola.ops.weights import Tree

VOCAB = 260
"""256 bytes, begin, end, one control token and one row of padding that no tokenizer names."""
BEGIN, END, MARK = 256, 257, 258
CONTROL = {BEGIN: "<begin>", END: "<end>", MARK: "<mark>"}
HIDDEN = 8


class Bytes:
    """A stream that decodes one byte a token; whole characters only."""

    def __init__(self, skip_control: bool = True) -> None:
        self._skip = skip_control
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        if token >= 256:
            return "" if self._skip else CONTROL[token]
        return self._decoder.decode(bytes([token]))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    """A token a byte."""

    size = VOCAB - 1
    bos_id = BEGIN
    end_ids = frozenset({END})
    adds_bos = False
    control_ids = frozenset({BEGIN, END, MARK})
    strips_space = False

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else CONTROL[token_id].encode()

    def encode(self, text: str, *, control: bool = False, first: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_control: bool = True) -> str:
        stream = Bytes(skip_control)
        return "".join(map(stream.push, ids)) + stream.finish()

    def stream(self, skip_control: bool = True, shown: Collection[int] = ()) -> Bytes:
        return Bytes(skip_control)

    def id_of(self, token: str) -> int | None:
        return {name: index for index, name in CONTROL.items()}.get(token)


class FakeRunner:
    """Keeps token and position of every cached row, and refuses to read what was never written.

    Logits are drawn from a generator seeded by the whole context as read back through the page table.
    """

    def __init__(self, num_pages: int, end_bias: float = 0.0) -> None:
        self.cache = np.full((num_pages * PAGE_TOKENS, 2), -1, np.int64)
        self.end_bias = end_bias
        self.steps: list[list[tuple[int, int]]] = []
        self.poison: set[int] = set()
        """Tokens that make every later logit of their sequence NaN."""
        self.faults: list[Exception | None] = []
        """Raised by the next calls, one each."""
        self.forbidden: int | None = None
        """A token that makes the whole call fail."""
        self.states: dict[int, list[int]] = {}
        """Slot -> the tokens that its state has seen."""

    def _contexts(self, parts: Sequence[Part]) -> list[NDArray[np.int64]]:
        self.steps.append([(part.first, len(part.ids)) for part in parts])
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        written: set[int] = set()
        for part in parts:
            for position, token in enumerate(part.ids, part.first):
                slot = part.pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
                assert slot not in written, "two sequences of one step write to one page"
                written.add(slot)
                self.cache[slot] = token, position
        contexts = []
        for part in parts:
            positions = np.arange(part.length)
            slots = np.asarray(part.pages)[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
            rows = self.cache[slots]
            assert (rows[:, 1] == positions).all(), "a page holds other positions than its sequence expects"
            contexts.append(rows[:, 0])
            self._go_on(part, rows[:, 0].tolist())
            if self.forbidden is not None and self.forbidden in rows[:, 0]:
                raise RuntimeError("this token cannot be computed")
        return contexts

    def _go_on(self, part: Part, context: list[int]) -> None:
        """Read one state and write the next."""
        if part.states is None:
            return
        read, write = part.states
        assert (read < 0) == (part.first == 0) and read != write, "a state is written that the step reads"
        assert read < 0 or self.states[read] == context[: part.first], "a state has seen other tokens than its sequence has"
        self.states[write] = context

    def logits(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        result = []
        for part, context in zip(parts, self._contexts(parts), strict=True):
            rows = [self._row(context[: part.first + row + 1]) for row in part.wanted]
            result.append(np.stack(rows) if rows else np.zeros((0, VOCAB), np.float32))
        return result

    def scores(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        return self.logits(parts)

    def hidden(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        result = []
        for part, context in zip(parts, self._contexts(parts), strict=True):
            rows = [self._row(context[: part.first + row + 1])[:HIDDEN] for row in part.wanted]
            result.append(np.stack(rows) if rows else np.zeros((0, HIDDEN), np.float32))
        return result

    def _row(self, context: NDArray[np.int64]) -> NDArray[np.float32]:
        if self.poison & set(context.tolist()):
            return np.full(VOCAB, np.nan, np.float32)
        seed = hashlib.sha256(context.astype("<i8").tobytes()).digest()
        row = np.random.Generator(np.random.PCG64(int.from_bytes(seed[:8], "little"))).normal(0, 3, VOCAB).astype(np.float32)
        row[END] += self.end_bias
        row[-1] = 50  # padding of the head must never be chosen
        return row


class Repeating(FakeRunner):
    """A model that mostly says what it said before: twelve letters in one order, now and then a whim of the whole context."""

    def __init__(self, num_pages: int, end_bias: float = 0.0, whim: int = 6) -> None:
        super().__init__(num_pages, end_bias)
        self.whim = whim
        self.guessed: dict[int, tuple[int, int]] = {}

    def _row(self, context: NDArray[np.int64]) -> NDArray[np.float32]:
        whole = crc32(context.tobytes())
        if whole % self.whim == 0:
            return super()._row(context)
        row = super()._row(context[-1:])
        row[97 + (int(context[-1]) - 97 + 5) % 12] += 18
        return row


def fake_loaded(context_tokens: int = 4096, states: bool = False, **changes: Any) -> Loaded:
    """A loaded model around nothing; the engine gets a `FakeRunner` beside it."""
    kept = (StateCache(1, 4, 4),) if states else ()
    fake = {
        "name": "fake",
        "token_bytes": lambda spec: 4 * spec.numbers_per_token(),
        "state_bytes": lambda spec: 64,
        "tells_answers": False,
    }
    facts: dict[str, Any] = {
        "name": "fake",
        "card": None,
        "architecture": SimpleNamespace(),
        "config": None,
        "weights": Tree(),
        "ops": SimpleNamespace(**fake),
        "cache": CacheSpec((LayerCache(1, 4, 4), *kept)),
        "tokenizer": ByteTokenizer(),
        "context_tokens": context_tokens,
        "vocab_tokens": VOCAB,
    }
    return Loaded(**{**facts, **changes})


def run(engine: Engine, *requests: Request, limit: int = 20_000) -> dict[Request, tuple[list[int], str, Finished | Failed]]:
    """Submit requests together and step until all have ended: ids, text and last event of each."""
    for request in requests:
        engine.submit(request)
    return drain(engine, requests, limit)


def drain(engine: Engine, requests: Sequence[Request], limit: int = 20_000) -> dict[Request, tuple[list[int], str, Finished | Failed]]:
    """Step until all requests have ended."""
    ids: dict[Request, list[int]] = {request: [] for request in requests}
    texts = dict.fromkeys(requests, "")
    ends: dict[Request, Finished | Failed] = {}
    for _ in range(limit):
        for event in engine.step():
            assert event.request not in ends, "an event after the last one"
            if isinstance(event, Piece):
                ids[event.request] += [token.id for token in event.tokens]
                texts[event.request] += event.text
            else:
                ends[event.request] = event
        if len(ends) == len(requests):
            return {request: (ids[request], texts[request], ends[request]) for request in requests}
    raise AssertionError(f"{len(requests) - len(ends)} requests made no progress")


def fake_engine(
    pages: int = 64, *, runner: FakeRunner | None = None, context_tokens: int | None = None, states: bool = False, **options: Any
) -> Engine:
    """An engine over a `FakeRunner`, of a model that keeps states or none."""
    return Engine(
        fake_loaded(states=states),
        cache_tokens=pages * PAGE_TOKENS,
        context_tokens=context_tokens,
        runner=runner or FakeRunner(pages),
        **{"clock": iter(range(1 << 40)).__next__, "draw_seed": lambda: 7, **options},
    )


def repeating_engine(pages: int = 64, whim: int = 6, end_bias: float = 0.0, **options: Any) -> Engine:
    """An engine over a model that repeats itself."""
    return fake_engine(pages, runner=Repeating(pages, end_bias, whim), **options)


def require_empty(engine: Engine) -> None:
    """No request holds anything."""
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pages_used, stats.states_used) == (0, 0, 0, 0), stats
