"""Verdicts about programs that nobody trusts: two confined processes a run, and a parent that believes neither.

Source   the design and the attacks that it answers: docs/sandbox.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from khola.errors import AskedWrong
from khola.evals.sandbox.limits import Limits
from khola.evals.sandbox.process import Child, Layers, Run, Server, Stopped, message
from khola.evals.sandbox.wire import MalformedError, decode, encode

Kind = Literal[
    "passed", "wrong", "raised", "malformed", "syntax", "import", "exited", "crashed", "timeout", "memory", "output", "threads", "broken"
]
_SYNTAX = frozenset({"SyntaxError", "IndentationError", "TabError"})
_MISSING = frozenset({"ImportError", "ModuleNotFoundError"})
_CPU_SIGNAL, _KILLED, _CRASHED = 24, 9, "crashed"


@dataclass(frozen=True, kw_only=True)
class Tests:
    """What a program must do."""

    __test__ = False  # a name that pytest would otherwise collect

    tests: tuple[str, ...]
    """Pieces of Python that run one after the other; each holds assertions."""
    before: tuple[str, ...] = ()
    """Pieces of Python for the judge alone: auxiliary functions of the task, never the solution."""
    names: tuple[str, ...] = ()
    """Names of the solution's that stand even where `before` made one of the same name."""
    changes: bool = False
    """Whether what a solution does to its arguments is done to the judge's as well. Then a test that computes what it expects from an
    argument after the call believes the solution; no test of HumanEval or MBPP needs it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one program."""

    kind: Kind
    """"passed"; "wrong": a test failed; "raised": the solution raised in a test; "malformed": a result was no plain value, or a message was
    forged; "syntax", "import", "exited", "crashed", "memory": it did not get to the tests, or not through them; "timeout", "output",
    "threads": a limit was met; "broken": the tests themselves do not compile."""
    why: str = ""
    """The error's name and words, up to 400 characters."""
    test: int = -1
    """Index of the test that failed; the number of tests when all passed; -1 before the first."""
    level: str = ""
    """The layers in force; results of different levels are not comparable where time decides."""
    wall_s: float = field(default=0.0, compare=False)
    """How long the run took, seconds."""

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.kind == "passed"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a whole program printed, or what one call gave."""

    kind: Kind
    """"passed" when it came to its end."""
    value: Any = None
    """Result of the call."""
    text: str = ""
    """What was printed, standard output and error together."""
    why: str = ""
    """The error's words."""
    level: str = ""
    wall_s: float = field(default=0.0, compare=False)


class Sandbox:
    """Runs programs one after the other; threads need one each (see `khola.evals.sandbox.pool`).

    Args:
        layers: what stands around them; `khola.evals.sandbox.level.chosen` gives the best that passes its self-test here.
        limits: what a run may take.
    """

    def __init__(self, layers: Layers, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.layers = layers
        self._server = Server(self.layers)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server below."""
        self._server.close()

    def judged(self, program: str, tests: Tests, limits: Limits | None = None) -> Verdict:
        """Run the tests against a program.

        Args:
            program: the whole solution; it is run once, as a module that is not the main one.
            tests: what it must do.
            limits: other limits for this run.
        """
        nonce = secrets.token_bytes(32)
        with self._run(limits, 2) as run:
            candidate, judge = run.children
            candidate.tell({"role": "candidate", "program": _sendable(program)})
            judge.tell(
                {
                    "role": "judge",
                    "nonce": nonce.hex(),
                    "before": tests.before,
                    "tests": tests.tests,
                    "names": tests.names,
                    "changes": tests.changes,
                }
            )
            try:
                kind, why, test = _Exchange(run, candidate, judge, nonce).verdict()
            except Stopped as stopped:
                kind, why, test = stopped.kind, "", -1
            except MalformedError as error:
                kind, why, test = "malformed", str(error), -1
            return Verdict(kind=_kind(kind), why=why, test=test, level=self.layers.name, wall_s=run.wall_s)

    def called(self, program: str, name: str, *args: Any, limits: Limits | None = None) -> Outcome:
        """Run a program and call one function of it, with plain values.

        Raises:
            AskedWrong: an argument is no plain value.
        """
        try:
            sent = encode((args, {}))
        except MalformedError as error:
            raise AskedWrong("this cannot be handed to a confined program: {why}", why=str(error)) from error
        with self._run(limits, 1) as run:
            (child,) = run.children
            child.tell({"role": "candidate", "program": _sendable(program)})
            child.tell({"name": name, "call": sent, "changes": False})
            kind, found = self._single(run, child, answers=2)
            value = None
            if kind == "passed":
                try:
                    value = decode(found["value"][0])
                except (MalformedError, TypeError, KeyError, IndexError):
                    kind, found = "malformed", {}
            return self._outcome(run, child, kind, found, value=value)

    def printed(self, program: str, stdin: str = "", limits: Limits | None = None) -> Outcome:
        """Run a whole program with a text on its standard input."""
        with self._run(limits, 1) as run:
            (child,) = run.children
            child.tell({"role": "script", "program": _sendable(program), "stdin": _sendable(stdin)})
            kind, found = self._single(run, child, answers=1)
            if kind == "passed" or (kind == "exited" and not found and run.status(child)["code"] == 0):
                kind = "passed"
                try:
                    run.rest(child)
                except Stopped as stopped:
                    kind = stopped.kind
            return self._outcome(run, child, kind, found)

    @contextlib.contextmanager
    def _run(self, limits: Limits | None, count: int) -> Iterator[Run]:
        with self._server.run(limits or self.limits, count) as run:
            yield run

    def _outcome(self, run: Run, child: Child, kind: str, found: dict[str, Any], *, value: Any = None) -> Outcome:
        text = child.text.decode("utf-8", "replace")
        return Outcome(kind=_kind(kind), value=value, text=text, why=str(found.get("why", "")), level=self.layers.name, wall_s=run.wall_s)

    @staticmethod
    def _single(run: Run, child: Child, answers: int) -> tuple[str, dict[str, Any]]:
        """Read this many answers of a process that is alone; the kind of its end, and the last answer."""
        try:
            for _, body in run.frames():
                if body is None:
                    return _end_of(run, child), {}
                found = message(body)
                if "raised" in found:
                    return _kind_of_error(str(found["raised"])), {"why": _words(found)}
                answers -= 1
                if not answers:
                    return "passed", found
        except Stopped as stopped:
            return stopped.kind, {}
        except MalformedError as error:
            return "malformed", {"why": str(error)}
        return _CRASHED, {}


class _Exchange:
    """The talk of judge and candidate, through the parent."""

    def __init__(self, run: Run, candidate: Child, judge: Child, nonce: bytes) -> None:
        self._run = run
        self._candidate = candidate
        self._judge = judge
        self._nonce = nonce
        self._ready = False
        self._asked = 0

    def verdict(self) -> tuple[str, str, int]:
        """Kind, words and test of the verdict.

        Raises:
            Stopped, MalformedError: a limit was met, or somebody sent what nobody asked for.
        """
        judged: tuple[str, str, int] | None = None
        for child, body in self._run.frames():
            if child is self._candidate:
                if body is None:
                    return (_end_of(self._run, child), "", -1) if judged is None else judged
                failed = self._from_candidate(body)
                if failed:
                    return failed
            elif judged is not None:
                if body is not None:
                    raise MalformedError("the judge went on after its verdict")
                return judged
            elif body is None:
                return self._without_verdict()
            else:
                judged = self._from_judge(body)
                if judged is not None and judged[0] != "passed":
                    return judged
        raise AssertionError("frames end by an exception")

    def _from_candidate(self, body: bytes) -> tuple[str, str, int] | None:
        """Hand an answer on, if it was asked for; the verdict when the solution does not even load."""
        if not self._ready:
            found = message(body)
            self._ready = True
            if "raised" in found:
                return _kind_of_error(str(found["raised"])), _words(found), -1
            return None
        if not self._asked:
            raise MalformedError("an answer that nobody asked for")
        self._asked -= 1
        self._judge.waiting += len(body).to_bytes(4, "big") + body
        return None

    def _from_judge(self, body: bytes) -> tuple[str, str, int] | None:
        """Hand a question on, or check the verdict."""
        found = message(body)
        if "verdict" not in found:
            self._asked += 1
            self._candidate.waiting += len(body).to_bytes(4, "big") + body
            return None
        said = str(found["verdict"])
        if not hmac.compare_digest(hmac.new(self._nonce, said.encode(), hashlib.sha256).hexdigest(), str(found.get("mac"))):
            raise MalformedError("a verdict without the nonce")
        verdict = json.loads(said)
        if verdict["kind"] == "raised" and verdict["why"].startswith("MemoryError"):
            verdict["kind"] = "memory"
        return verdict["kind"], verdict["why"], verdict["test"]

    def _without_verdict(self) -> tuple[str, str, int]:
        """The judge ended and said nothing: the candidate's end tells why, else the tests met a limit."""
        found = self._run.status(self._judge)
        if found["code"] == -_CPU_SIGNAL or found["cpu_s"] >= self._run.limits.cpu_s:
            return "timeout", "the tests", -1
        return (_end_of(self._run, self._candidate), "", -1) if found["code"] == 98 else ("broken", "the tests ended without a verdict", -1)


def _end_of(run: Run, child: Child) -> str:
    """The verdict that a process's end makes, when it came before its last word."""
    found = run.status(child)
    if found["why"]:
        return str(found["why"])
    if found["code"] == -_CPU_SIGNAL or found["cpu_s"] >= run.limits.cpu_s:
        return "timeout"
    # Whoever closes its line has left, whether it ends by itself first or is killed for it.
    return "exited" if found["code"] >= 0 or found["code"] == -_KILLED else _CRASHED


def _kind_of_error(name: str) -> str:
    """The verdict of a solution that raises while it loads."""
    if name in _SYNTAX:
        return "syntax"
    if name in _MISSING:
        return "import"
    return {"MemoryError": "memory", "SystemExit": "exited", "MalformedError": "malformed"}.get(name, "raised")


def _words(found: Mapping[str, Any]) -> str:
    """Name and words of an error that a process told of."""
    return f"{found['raised']}: {found.get('why', '')}"[:400]


def _kind(found: str) -> Kind:
    """A kind that is known; what a process says of itself is not taken for one."""
    known: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
    return known.get(found, "malformed")


def _sendable(text: str) -> str:
    """A text as it travels; lone surrogates, which no file could hold, become question marks and fail to compile or do not matter."""
    return text.encode("utf-8", "replace").decode()
