"""A backend without a model, which clients are tested with: it says again what it was told, and the same answer every time.

It accepts any model name. A conversation is answered with the text of its last turn; a text goes on with itself. A word with its space is a
token. A call is made where a tool is asked for, with arguments that fit its schema; an answer that must have a form gets the smallest
that has it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import regex

from khola.chat.message import ToolCall
from khola.errors import Busy, ContextOverflow, EmptyPrompt
from khola.serve.backend import ChatJob, Cost, FinishReason, Job, ModelState, Piece, State, Token

CONTEXT = 131_072
"""Tokens that a conversation may have."""
WIDTH = 64
"""Numbers of an embedding."""
BORN = 1_767_225_600
"""When its models were made: the first second of 2026."""

_TOKEN = regex.compile(r"\s*\S+|\s+")
_KEPT = 1 << 16


class Echo:
    """Answers without a model.

    Args:
        delay_s: time between tokens, so that tests can meet an answer on its way.
        offered: names that are listed; any other is answered to as well.
        context: tokens of prompt and answer together.
    """

    def __init__(self, *, delay_s: float = 0.0, offered: Sequence[str] = ("echo",), context: int = CONTEXT) -> None:
        self._delay_s = delay_s
        self._context = context
        self._states: dict[str, State] = dict.fromkeys(offered, "loaded")
        self._words: dict[int, str] = {}
        self.running: set[EchoPieces] = set()
        """Answers that have neither ended nor been closed."""
        self.started = 0
        self._closed = False

    async def start(self, job: Job, model: str) -> EchoPieces:
        """Begin an answer."""
        if self._closed:
            raise Busy("the server is stopping")
        prompt = self._prompt(job)
        ids = [self._id(word) for word in _TOKEN.findall(prompt)]
        if not ids:
            raise EmptyPrompt("the prompt has no tokens", param="messages" if isinstance(job, ChatJob) else "prompt")
        room = self._context - len(ids)
        if room < 1:
            raise ContextOverflow(
                "this model's maximum context length is {limit} tokens; the prompt has {found}",
                limit=self._context,
                found=len(ids),
                n_prompt_tokens=len(ids),
                n_ctx=self._context,
            )
        self.started += 1
        pieces = EchoPieces(self, job, ids, room, self._delay_s)
        self.running.add(pieces)
        return pieces

    def _prompt(self, job: Job) -> str:
        if isinstance(job, ChatJob):
            return "\n".join(message.content for message in job.messages)
        return job.prompt if isinstance(job.prompt, str) else "".join(self._words.get(word, f" {word}") for word in job.prompt)

    def _id(self, word: str) -> int:
        """A number for a word, the same in every run; what it spells is remembered for a while."""
        number = zlib.crc32(word.encode()) % 1_000_000
        while self._words.get(number, word) != word:
            number += 1
        if len(self._words) >= _KEPT:
            self._words.clear()
        self._words[number] = word
        return number

    def token(self, word: str, alternatives: int) -> Token:
        """A word as a token; its probability is a half, and every alternative's half of the one before."""
        number = self._id(word)
        others = ((number + step, f" {step}".encode(), -math.log(2) * (step + 1)) for step in range(1, alternatives))
        return Token(number, word.encode(), -math.log(2), ((number, word.encode(), -math.log(2)), *others)[:alternatives])

    async def embed(self, texts: Sequence[str | tuple[int, ...]], model: str, tenant: str = "") -> tuple[list[list[float]], int]:
        """A unit vector that depends on the text alone."""
        vectors, tokens = [], 0
        for text in texts:
            spelt = text if isinstance(text, str) else " ".join(map(str, text))
            tokens += len(_TOKEN.findall(spelt)) or 1
            digest = hashlib.shake_128(spelt.encode()).digest(WIDTH)
            length = math.sqrt(sum((byte - 127.5) ** 2 for byte in digest))
            vectors.append([(byte - 127.5) / length for byte in digest])
        return vectors, tokens

    async def tokens(self, text: str, model: str, *, special: bool = True) -> list[int]:
        """A number for every word."""
        return [self._id(word) for word in _TOKEN.findall(text)]

    async def text(self, ids: Sequence[int], model: str) -> str:
        """Words by their numbers."""
        return "".join(self._words.get(number, f" {number}") for number in ids)

    async def rendered(self, job: ChatJob, model: str) -> tuple[str, list[int]]:
        """Turns between newlines."""
        prompt = self._prompt(job)
        return prompt, await self.tokens(prompt, model)

    async def models(self) -> list[ModelState]:
        """Those that were offered."""
        return [self._state(name) for name in self._states]

    async def load(self, model: str) -> ModelState:
        """Call it loaded."""
        self._states[model] = "loaded"
        return self._state(model)

    async def unload(self, model: str) -> ModelState:
        """Call it unloaded."""
        if model in self._states:
            self._states[model] = "unloaded"
        return self._state(model)

    def _state(self, name: str) -> ModelState:
        state = self._states.get(name, "unloaded")
        return ModelState(name=name, state=state, created=BORN, lab="khola", context_tokens=self._context)

    async def figures(self) -> dict[str, dict[str, float]]:
        """How many answers run, and how many were begun."""
        return {"echo": {"running": float(len(self.running)), "started": float(self.started)}}

    async def close(self, grace_s: float = 30.0) -> None:
        """Refuse new jobs, and let running ones end."""
        self._closed = True
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_s
        while self.running and loop.time() < end:
            await asyncio.sleep(0.01)


class EchoPieces:
    """One answer of `Echo`."""

    def __init__(self, echo: Echo, job: Job, prompt: list[int], room: int, delay_s: float) -> None:
        self._echo = echo
        self._job = job
        self._prompt = prompt
        self._room = room
        self._delay_s = delay_s
        self._steps = self._pieces()

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        try:
            return await anext(self._steps)
        except BaseException:
            self._echo.running.discard(self)
            raise

    async def aclose(self) -> None:
        """Stop."""
        self._echo.running.discard(self)
        await self._steps.aclose()

    async def _pieces(self) -> Any:
        job = self._job
        alternatives = job.sampling.get("logprobs")
        limit = min(job.sampling.get("max_tokens") or self._room, self._room)
        if job.sampling.get("max_tokens") == 0:
            limit = 0
        calls = called(job) if isinstance(job, ChatJob) else ()
        words = [] if calls else _TOKEN.findall(self._answer())
        words, finish, stopped_by = _stopped(words, job.sampling.get("stop", ()), limit)
        if not isinstance(job, ChatJob) and job.prompt_logprobs is not None:
            yield Piece(prompt=self._prompt_tokens(job.prompt_logprobs))
        for word in words:
            await asyncio.sleep(self._delay_s)
            yield Piece(text=word, tokens=(self._echo.token(word, alternatives),) if alternatives is not None else ())
        if calls:
            yield Piece(tool_calls=calls)
        cost = Cost(prompt_tokens=len(self._prompt), cached_tokens=0, answer_tokens=len(words) + len(calls))
        yield Piece(finish_reason=finish, cost=cost, complete=True if job.form else None, stopped_by=stopped_by)

    def _answer(self) -> str:
        job = self._job
        if job.form:
            return formed(job.form)
        if not isinstance(job, ChatJob):
            return self._echo._prompt(job)
        return next((turn.content for turn in reversed(job.messages) if turn.content), "")

    def _prompt_tokens(self, alternatives: int) -> tuple[Token, ...]:
        words = [self._echo._words.get(number, f" {number}") for number in self._prompt]
        told = [self._echo.token(word, alternatives) for word in words]
        return (Token(told[0].id, told[0].spells), *told[1:])


def _stopped(words: list[str], stops: Sequence[str], limit: int) -> tuple[list[str], FinishReason, str]:
    """The words up to a stop string or the limit, which of both it was, and the stop string."""
    text = "".join(words)
    at, found = min(((place, stop) for stop in stops if (place := text.find(stop)) >= 0), default=(len(text), ""))
    words = _TOKEN.findall(text[:at]) if found else words
    return (words[:limit], "length", "") if len(words) > limit else (words, "stop", found)


def called(job: ChatJob) -> tuple[ToolCall, ...]:
    """The call that a conversation asks for: of the tool it names, or the first where one is required."""
    if job.tool_choice in (None, "auto", "none") or not job.tools:
        return ()
    wanted = [tool for tool in job.tools if job.tool_choice in ("required", tool.name)]
    return tuple(ToolCall(name=tool.name, arguments=smallest(tool.parameters) or {}) for tool in wanted[:1])


def formed(form: dict[str, Any]) -> str:
    """The smallest answer of a form."""
    if form.get("choice"):
        return str(form["choice"][0])
    if form.get("schema"):
        schema = form["schema"]
        return json.dumps(smallest(json.loads(schema) if isinstance(schema, str) else schema))
    return "{}" if form.get("json_object") else "echo"


def smallest(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """A value that the usual words of a JSON Schema allow: required members only, the lower bound of numbers."""
    root = root if root is not None else schema
    if not isinstance(schema, dict) or depth > 32:
        return None
    if "const" in schema or schema.get("enum"):
        return schema["const"] if "const" in schema else schema["enum"][0]
    if isinstance(schema.get("$ref"), str):
        target = root
        for part in schema["$ref"].removeprefix("#").strip("/").split("/"):
            target = target.get(part, {}) if isinstance(target, dict) else {}
        return smallest(target, root, depth + 1)
    for word in ("anyOf", "oneOf", "allOf"):
        if schema.get(word):
            return smallest(schema[word][0], root, depth + 1)
    kinds = schema.get("type", "object" if "properties" in schema else "null")
    kind = kinds[0] if isinstance(kinds, list) else kinds
    if kind == "object":
        known = schema.get("properties", {})
        return {name: smallest(known.get(name, {}), root, depth + 1) for name in schema.get("required", ())}
    if kind == "array":
        return [smallest(schema.get("items", {}), root, depth + 1) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return "x" * schema.get("minLength", 0)
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return False if kind == "boolean" else None
