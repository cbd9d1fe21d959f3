"""Grammars against a vocabulary: which tokens may come next, one request at a time.

```
Grammar -> bounded process (may it be compiled?) -> llguidance, with the bytes of every token -> Matcher, a copy for every request
```

Shapes   V vocabulary, W words of 32 ids.
Source   llguidance, https://github.com/guidance-ai/llguidance: derivatives of regular expressions under an Earley parser.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from khola.engine.calls import call_grammars, marks_of
from khola.engine.grammar import WHITESPACE, Grammar
from khola.engine.grammar_worker import COMPILE_S, LIMITS, told
from khola.engine.widened import widened
from khola.errors import BadGrammar, BadSchema, OurFault

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Logits = NDArray[np.float32]
Bits = NDArray[np.uint32]

WORD = 32
KEPT = 32
"""Compiled grammars that an engine keeps."""
STRING_PARTS = [r'[^"\\\x00-\x1F\x7F]{1,30}', r'[^"\\\x00-\x1F\x7F]+']
"""Sets of tokens worked out once, because most places of JSON strings allow all of them."""
_SHARES = (*[None] * 6, 0.5, 1.0, 1.0)
"""How calls are widened until they compile: six times where a part of a schema fails, then so many of the tools as a whole."""
_WAIT_S = 30.0
"""For the process that compiles first, its start on a busy machine included; its own clock is `COMPILE_S`."""


class Vocabulary(Protocol):
    """What grammars need of a tokenizer; see `khola.tokens`."""

    @property
    def size(self) -> int:
        """Ids run from 0 up to here."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Any of these ends an answer."""

    @property
    def control_ids(self) -> frozenset[int]:
        """What plain text never becomes."""

    @property
    def strips_space(self) -> bool:
        """Decoding drops one leading space of the whole text."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""

    def id_of(self, token: str) -> int | None:
        """Id of a token, or None."""

    def encode(self, text: str, *, control: bool = False, first: bool = True) -> list[int]:
        """Ids of a text."""


class Grammars:
    """Compiled grammars of one vocabulary. Threads may share it and wait for each other.

    The vocabulary is handed to llguidance when the first grammar comes: a second for 150,000 tokens, which requests without one never pay.

    Args:
        vocabulary: of the model.
        stop_ids: tokens that end its turn, besides those of the vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, stop_ids: Iterable[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._stop_ids = frozenset(stop_ids)
        self._turn = threading.Lock()
        self._shelf = threading.Lock()
        self._bridge: Bridge | None = None
        self._kept: OrderedDict[tuple[Grammar, bool], LLMatcher] = OrderedDict()
        self._usable: OrderedDict[Grammar, Grammar] = OrderedDict()

    def matcher(self, grammar: Grammar, *, begins_text: bool, is_part: bool = False) -> Matcher:
        """What a request with this grammar follows.

        Args:
            grammar: of the answer.
            begins_text: nothing stands in the answer before; where decoding drops a leading space, one is then put in front.
            is_part: it is part of one that was compiled, and needs no process that tries it first.
        Raises:
            BadGrammar, BadSchema: it cannot be compiled within its bounds, or matches nothing.
        """
        key = (grammar, begins_text and self._vocabulary.strips_space)
        state = self._copied(key)
        if state is None:
            # What is compiled while answers are made waits for no stranger's grammar.
            with nullcontext() if is_part else self._turn:
                state = self._copied(key) or self._keep(key, self._compiled(*key, is_part))
        assert self._bridge is not None
        return Matcher(state, self._bridge, self._bridge.mark_ids(grammar))

    def usable(self, grammar: Grammar) -> Grammar:
        """A grammar of calls that compiles: itself, or one that holds tools to less where it may; its parts need no process then.

        Raises:
            BadGrammar, BadSchema: there is none.
        """
        found = self._known(grammar)
        if found is None:
            with self._turn:
                found = self._known(grammar) or self._widened(grammar)
            with self._shelf:
                self._usable[grammar] = found
                if len(self._usable) > KEPT:
                    self._usable.popitem(last=False)
        return found

    def _known(self, grammar: Grammar) -> Grammar | None:
        """What was found of late to be usable."""
        with self._shelf:
            if grammar in self._usable:
                self._usable.move_to_end(grammar)
            return self._usable.get(grammar)

    def _widened(self, grammar: Grammar) -> Grammar:
        """A grammar of calls as wide as it must be."""
        for share in _SHARES:
            check = Check()
            try:
                answer = check.answer(grammar)
            finally:
                check.close()
            if "error" not in answer:
                return grammar
            failures = answer.get("failures", []) if share is None else []
            wider = widened(grammar, failures, share or 0.5)
            if wider is None:
                break
            grammar = wider
        raise refused(grammar, answer["error"], answer.get("path", ""), answer.get("part", ""))

    def _copied(self, key: tuple[Grammar, bool]) -> LLMatcher | None:
        """The start of a grammar that was compiled lately."""
        with self._shelf:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key].deep_copy()

    def _keep(self, key: tuple[Grammar, bool], state: LLMatcher) -> LLMatcher:
        """Remember a compiled grammar."""
        with self._shelf:
            self._kept[key] = state
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return state.deep_copy()

    def _compiled(self, grammar: Grammar, spaced: bool, is_part: bool) -> LLMatcher:
        """A grammar compiled for the vocabulary, after a process of its own has compiled it for bytes."""
        from llguidance import LLMatcher, LLParserLimits

        check = None if is_part or grammar.kind in ("choice", "json_object") else Check()
        try:
            if self._bridge is None:
                self._bridge = Bridge(self._vocabulary, self._stop_ids)
            if check is None:
                grammars = assembled(grammar, self._bridge)
            else:
                passed = check.passed(grammar)
                grammars = passed if grammar.kind == "gbnf" else assembled(grammar, self._bridge)
        finally:
            if check is not None:
                check.close()
        if spaced:
            grammars = [{"lark_grammar": 'start: " " @answer'}, {**grammars[0], "name": "answer"}, *grammars[1:]]
        source = json.dumps({"grammars": grammars})
        found = LLMatcher(self._bridge.tokenizer, source, log_level=0, limits=LLParserLimits(**LIMITS))
        if found.is_error():
            raise refused(grammar, told(found.get_error()))
        return found


class Bridge:
    """A vocabulary as llguidance knows it.

    Args:
        vocabulary: of the model.
        stop_ids: tokens that end an answer, besides the vocabulary's own.
    """

    eos_token_id: int
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, stop_ids: frozenset[int]) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self.vocabulary = vocabulary
        self.tokens: list[bytes] = [vocabulary.token_bytes(index) for index in range(vocabulary.size)]
        ends = sorted((vocabulary.end_ids | stop_ids) & set(range(vocabulary.size)))
        controls = {*vocabulary.control_ids, *ends}
        if not ends:
            # llguidance wants an end; this one is no token of the model, so it is never chosen.
            ends = [len(self.tokens)]
            self.tokens.append(b"<end>")
            controls.add(ends[0])
        self.eos_token_id = ends[0]
        self.special_token_ids = sorted(controls)
        self.tokenizer: LLTokenizer = LLTokenizer(TokenizerWrapper(self), eos_token=ends, slices=STRING_PARTS)
        self.plain_W = self._bits(controls, inside=False)
        self.ends_W = self._bits(ends, inside=True)

    def __call__(self, text: bytes | str) -> list[int]:
        """How the model would write a text that a grammar forces."""
        raw = text.encode() if isinstance(text, str) else text
        ids = self.vocabulary.encode(raw.decode("utf-8", "replace"), first=False)
        if b"".join(map(self.tokens.__getitem__, ids)) == raw:
            return ids
        # The vocabulary rewrites some letters (composed ones, for instance) when it reads text; the grammar wants them as they are.
        return self.tokenizer.greedy_tokenize(raw.decode("utf-8", "replace"))

    def mark_ids(self, grammar: Grammar) -> frozenset[int]:
        """Control tokens that are part of what a grammar allows: the marks around a call, where they are tokens."""
        marks = marks_of(json.loads(grammar.source)) if grammar.kind == "calls" else []
        return frozenset(found for mark in marks if (found := self.vocabulary.id_of(mark)) in self.vocabulary.control_ids)

    def spelled(self, mark: str) -> str:
        """A mark in Lark's notation: a token where it is one, else text."""
        found = self.vocabulary.id_of(mark)
        return f"<[{found}]>" if found in self.vocabulary.control_ids else spelled(mark)

    def _bits(self, ids: Iterable[int], *, inside: bool) -> Bits:
        """One bit a token, set for these ids or for all others."""
        flags = np.full(-(-len(self.tokens) // WORD) * WORD, not inside)
        flags[list(ids)] = inside
        return np.packbits(flags, bitorder="little").view(np.uint32)


class Matcher:
    """Follows one answer through its grammar.

    Args:
        state: at the start of the grammar; nobody else's.
        bridge: to the vocabulary.
        mark_ids: control tokens that may come where the grammar names them.
    """

    def __init__(self, state: LLMatcher, bridge: Bridge, mark_ids: frozenset[int] = frozenset()) -> None:
        self._state = state
        self._plain_W = bridge.plain_W.copy()
        for index in mark_ids:
            self._plain_W[index // WORD] |= np.uint32(1 << index % WORD)
        self._ends_W = bridge.ends_W
        self._tokenizer = bridge.tokenizer
        self._special = frozenset(bridge.special_token_ids) - mark_ids

    @property
    def ended(self) -> bool:
        """Nothing can follow."""
        return self._state.is_stopped()

    @property
    def accepting(self) -> bool:
        """What stands there is whole; it may still be able to go on."""
        return self._state.is_accepting()

    def allowed(self) -> Bits:
        """The tokens that may come next, [W]; those that end a turn exactly when the answer is whole.

        Raises:
            BadGrammar: none may, or working them out takes too long.
        """
        bits_W = np.zeros_like(self._plain_W)
        self._state.unsafe_compute_mask_ptr(bits_W.ctypes.data, bits_W.nbytes)
        bits_W &= self._plain_W | self._ends_W if self.accepting else self._plain_W
        if not bits_W.any():
            self._complain()
            raise BadGrammar("the vocabulary of this model has no token that the grammar allows next")
        return bits_W

    def push(self, token: int) -> None:
        """Take the next token.

        Raises:
            BadGrammar: it does not follow, or the grammar became too large on the way.
        """
        if not self._state.consume_token(token):
            self._complain()

    def takes(self, text: bytes) -> bool:
        """Whether text may come next; where its last letters begin a character, that counts too."""
        ids = self._tokenizer.tokenize_bytes(text)
        return bool(self._state.validate_tokens(ids) == len(ids))

    def write(self, text: bytes) -> None:
        """Take text that came within a token before the grammar held.

        Raises:
            BadGrammar: it does not follow.
        """
        for token in self._tokenizer.tokenize_bytes(text):
            self.push(token)

    def forced(self) -> list[int]:
        """The tokens that must come next, as the model would write them; empty where there is a choice. For speculation."""
        if self.ended:
            return []
        ids: list[int] = self._state.compute_ff_tokens()
        return next((ids[:count] for count, index in enumerate(ids) if index in self._special), ids)

    def _complain(self) -> None:
        """Say what went wrong, if something did."""
        if self._state.is_error():
            why = told(self._state.get_error())
            raise BadGrammar("the grammar cannot be followed: {why}", hint="make it smaller or less ambiguous", why=why)


class Check:
    """A process that compiles one grammar within bounds; it starts at once, so that its start may overlap with other work."""

    def __init__(self) -> None:
        spec = find_spec("llguidance")
        if spec is None or spec.origin is None:
            raise OurFault("the library llguidance is not installed", hint="pip install llguidance")
        program = str(Path(__file__).with_name("grammar_worker.py"))
        self._process = subprocess.Popen(  # noqa: S603 - our own program, and no word of it comes from outside
            [sys.executable, "-I", "-S", program, str(Path(spec.origin).parents[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=None if sys.platform == "win32" else {},
            start_new_session=True,
        )

    def passed(self, grammar: Grammar) -> list[dict[str, Any]]:
        """The grammar as llguidance takes it, once it has been compiled.

        Raises:
            BadGrammar, BadSchema: it was not, with the reason.
        """
        found = self.answer(grammar)
        if "error" in found:
            raise refused(grammar, found["error"], found.get("path", ""), found.get("part", ""))
        grammars: list[dict[str, Any]] = found["grammars"]
        return grammars

    def answer(self, grammar: Grammar) -> dict[str, Any]:
        """What the process says; see `grammar_worker`."""
        request = {"gbnf": grammar.source} if grammar.kind == "gbnf" else {"grammars": assembled(grammar)}
        try:
            answer, _ = self._process.communicate(json.dumps(request).encode(), timeout=_WAIT_S)
        except subprocess.TimeoutExpired:
            answer = b""
        if not answer:
            return {"error": f"compiling it takes more than {COMPILE_S:g} s of processor time, or more memory than it may"}
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """End the process; does nothing when it has ended."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def assembled(grammar: Grammar, bridge: Bridge | None = None) -> list[dict[str, Any]]:
    """A grammar in llguidance's form; marks of calls are text where no vocabulary is given."""
    if grammar.kind in ("json_schema", "json_object"):
        return [_json(json.loads(grammar.source))]
    if grammar.kind == "calls":
        told = json.loads(grammar.source)
        beside = [{**assembled(Grammar(**told["text"]))[0], "name": "text"}] if told["text"] and not told.get("opened") else []
        return call_grammars(told, bridge.spelled if bridge else spelled, _json) + beside
    if grammar.kind == "choice":
        return [{"lark_grammar": "start: " + " | ".join(map(json.dumps, json.loads(grammar.source)))}]
    if grammar.kind == "regex":
        from llguidance import LLMatcher

        found: list[dict[str, Any]] = json.loads(LLMatcher.grammar_from_regex(grammar.source))["grammars"]
        return found
    return [{"lark_grammar": grammar.source}]


def spelled(text: str) -> str:
    """A text in Lark's notation."""
    return json.dumps(text, ensure_ascii=False)


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with the whitespace that khola allows."""
    return {"json_schema": {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE, "lenient": False, "coerce_one_of": False}}}


def refused(grammar: Grammar, why: str, path: str = "", part: str = "") -> BadGrammar:
    """The error of a grammar that cannot be compiled.

    Args:
        grammar: that cannot be.
        why: what its compiler says.
        path: of the schema's part that it fails at.
        part: the name of the schema, where there are several: the kind of part, and the number of a tool.
    """
    number = re.match(r"(?:args|value)(\d+)", part)
    if number:
        tool = list(json.loads(grammar.source)["schemas"])[int(number[1])]
        return BadSchema("the schema cannot be used at {path}: {why}", path=tool + path.removeprefix("$"), why=why, param="tools")
    if path:
        return BadSchema("the schema cannot be used at {path}: {why}", path=path, why=why)
    if grammar.kind in ("json_schema", "calls"):
        return BadSchema("the schema cannot be used: {why}", why=why)
    return BadGrammar("the grammar cannot be used: {why}", why=why)


def only(logits_V: Logits, bits_W: Bits) -> Logits:
    """A copy of the logits in which tokens that may not come are -∞."""
    words = np.flatnonzero(bits_W)
    if len(words) * 8 > len(bits_W):
        forbidden_V = np.unpackbits((~bits_W).view(np.uint8), bitorder="little")[: len(logits_V)].view(bool)
        if len(forbidden_V) == len(logits_V):
            return np.where(forbidden_V, np.float32(-np.inf), logits_V)
    flags = np.unpackbits(bits_W[words].view(np.uint8), bitorder="little").reshape(-1, WORD).view(bool)
    ids = (words[:, None] * WORD + np.arange(WORD))[flags]
    ids = ids[ids < len(logits_V)]
    kept_V = np.full(len(logits_V), -np.inf, np.float32)
    kept_V[ids] = logits_V[ids]
    return kept_V


def ids_of(bits_W: Bits) -> Sequence[int]:
    """The ids whose bits are set."""
    found: list[int] = np.flatnonzero(np.unpackbits(bits_W.view(np.uint8), bitorder="little")).tolist()
    return found
