"""What a confined process does: it holds the solution (candidate), or the tests (judge), or runs a whole program (script).

The candidate never sees a test, only the arguments of one call at a time. The judge never sees the solution; in its place it has stand-ins
that ask the candidate, and what comes back are exact plain values, so that tests compare numbers and lists and nothing that could lie. What
is no plain value is a `Remote`: it may be called, and its attributes asked for and set, but it can be neither compared nor taken as true.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import hmac
import importlib
import io
import json
import os
import random
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

from khola.evals.sandbox.wire import MalformedError, decode, encode, read_frame, write_frame

LENDABLE = frozenset(
    (
        *("bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "json", "math"),
        *("operator", "random", "re", "statistics", "string", "typing"),
    )
)
"""Modules that a test may name without importing them; they are the judge's own."""
_WHY_CHARACTERS = 300
# The first two would end a loop of the test's as if there were no more items; the others take more than a text.
_MISTAKEN = (StopIteration, StopAsyncIteration, UnicodeError, BaseExceptionGroup)


def candidate(order: dict[str, Any], heard: int, said: int, most: int) -> None:
    """Run the solution, then answer calls until there are no more."""
    names: dict[str, Any] = {"__name__": "solution", "__builtins__": builtins}
    kept: list[Any] = []

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    sys.stdin = io.StringIO("")
    ready = _attempt(lambda: exec(compile(order["program"], "<solution>", "exec"), names))  # noqa: S102 - what this process is for
    write_frame(said, {"ready": True} if not ready[1] else ready[1])
    while True:
        try:
            asked = read_frame(heard, most)
        except EOFError:
            break
        write_frame(said, _answered(asked, names, kept, keep, most))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _answered(asked: dict[str, Any], names: dict[str, Any], kept: list[Any], keep: Callable[[Any], int], most: int) -> dict[str, Any]:
    """The answer to one question of the judge's."""

    def act() -> Any:
        subject = names[asked["name"]] if "name" in asked else kept[asked["handle"]]
        if "get" in asked:
            return encode(getattr(subject, asked["get"]), keep)
        if "set" in asked:
            setattr(subject, asked["set"], decode(asked["value"], kept.__getitem__))
            return None
        if "call" not in asked:
            return encode(subject, keep)
        args, named = decode(asked["call"], kept.__getitem__)
        result = encode(subject(*args, **named), keep)
        changed = args if asked["changes"] else ()
        return [result, [encode(arg, keep) if isinstance(arg, list | dict | set) else None for arg in changed]]

    value, raised = _attempt(act)
    answer = raised or {"value": value}
    return answer if len(json.dumps(answer)) < most else {"raised": "MalformedError", "why": "a result that is too large to be sent"}


def _attempt(act: Callable[[], Any]) -> tuple[Any, dict[str, Any] | None]:
    """What an act gives, or the name of what it raised."""
    try:
        return act(), None
    except BaseException as error:
        try:
            why = str(error)[:_WHY_CHARACTERS]
        except BaseException:
            why = ""
        return None, {"raised": type(error).__name__, "why": why}


class RaisedError(Exception):
    """The solution raised something that is no built-in exception."""


class Unusable(AssertionError):
    """A test looked at something that is no plain value."""


def _exception(name: str, why: str) -> Exception:
    """A built-in exception of this name that takes a text, else a `RaisedError`."""
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, _MISTAKEN):
        return RaisedError(why)
    return kind(why)


class _Line:
    """The judge's line to the candidate."""

    def __init__(self, heard: int, said: int, most: int, changes: bool) -> None:
        self._heard, self._said, self._most = heard, said, most
        self.changes = changes
        self.raised: BaseException | None = None
        """The last exception that came from the candidate."""

    def ask(self, question: dict[str, Any]) -> Any:
        """The candidate's value; what it raised is raised here."""
        try:
            write_frame(self._said, question)
            answer = read_frame(self._heard, self._most)
        except (EOFError, BrokenPipeError):
            os._exit(98)  # the candidate is gone, and the parent knows why
        if "raised" in answer:
            self.raised = _exception(str(answer["raised"]), str(answer.get("why", "")))
            raise self.raised
        return answer["value"]

    def value(self, tree: Any) -> Any:
        """A plain value, or a stand-in for what is none."""
        return decode(tree, lambda handle: Remote(self, {"handle": handle}))

    def encoded(self, value: Any) -> Any:
        """A value of the judge's as the candidate may read it; a stand-in travels as its handle."""
        return encode(value, _handle_of)


def _handle_of(value: Any) -> int:
    if type(value) is not Remote:
        raise MalformedError(f"a test hands over a {type(value).__name__}")
    where: dict[str, Any] = object.__getattribute__(value, "_where")
    if "handle" not in where:
        raise MalformedError("a test hands over a name")
    return int(where["handle"])


def _refused(*_: Any) -> Any:
    raise Unusable("the result is no plain value")


class Remote:
    """Stands for a name or an object of the candidate's."""

    __slots__ = ("_line", "_where")

    def __init__(self, line: _Line, where: dict[str, Any]) -> None:
        object.__setattr__(self, "_line", line)
        object.__setattr__(self, "_where", where)

    def __call__(self, *args: Any, **named: Any) -> Any:
        line: _Line = object.__getattribute__(self, "_line")
        where = object.__getattribute__(self, "_where")
        result, after = line.ask({**where, "call": line.encoded((args, named)), "changes": line.changes})
        for arg, tree in zip(args if line.changes else (), after, strict=True):
            if tree is not None:
                _overwrite(arg, line.value(tree))
        return line.value(result)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        line: _Line = object.__getattribute__(self, "_line")
        return line.value(line.ask({**object.__getattribute__(self, "_where"), "get": name}))

    def __setattr__(self, name: str, value: Any) -> None:
        line: _Line = object.__getattribute__(self, "_line")
        line.ask({**object.__getattribute__(self, "_where"), "set": name, "value": line.encoded(value)})

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refused
    __bool__ = __len__ = __iter__ = __contains__ = __getitem__ = __hash__ = __str__ = __repr__ = __format__ = _refused
    __int__ = __float__ = __index__ = __abs__ = __round__ = __reduce_ex__ = _refused


def _overwrite(held: Any, new: Any) -> None:
    """Do to an argument of the judge's what the solution did to its own copy."""
    if type(held) is not type(new):
        return
    if isinstance(held, list):
        held[:] = new
    elif isinstance(held, dict | set):
        held.clear()
        held.update(new)


def judge(order: dict[str, Any], heard: int, said: int, most: int) -> None:
    """Run the tests against the candidate and say the verdict, once."""
    nonce = bytes.fromhex(order.pop("nonce"))
    line = _Line(heard, said, most, order["changes"])
    sys.stdin = io.StringIO("")
    random.seed(0)
    verdict = _judged(order, line)
    body = json.dumps(verdict, sort_keys=True)
    write_frame(said, {"verdict": body, "mac": hmac.new(nonce, body.encode(), hashlib.sha256).hexdigest()})


def _judged(order: dict[str, Any], line: _Line) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    try:
        for source in order["before"]:
            exec(compile(source, "<before>", "exec"), names)  # noqa: S102 - the judge's own part of the task
        tests = [compile(source, f"<test {number}>", "exec") for number, source in enumerate(order["tests"])]
    except Exception as error:
        return {"kind": "broken", "why": f"{type(error).__name__}: {error}"[:_WHY_CHARACTERS], "test": -1}
    names.update((name, Remote(line, {"name": name})) for name in order["names"])
    _lend(names, tests, line)
    for number, test in enumerate(tests):
        try:
            exec(test, names)  # noqa: S102 - as above
        except BaseException as error:
            kind = "raised" if error is line.raised else "malformed" if isinstance(error, Unusable | MalformedError) else "wrong"
            return {"kind": kind, "why": f"{type(error).__name__}: {error}"[:_WHY_CHARACTERS], "test": number}
    return {"kind": "passed", "why": "", "test": len(tests)}


def _lend(names: dict[str, Any], tests: Iterable[types.CodeType], line: _Line) -> None:
    """Give the tests the names that they use and nobody made: modules of the judge's own, and stand-ins for names of the solution's."""
    for test in tests:
        for name in _names_of(test):
            if name in names or hasattr(builtins, name):
                continue
            with contextlib.suppress(ImportError):
                names[name] = importlib.import_module(name) if name in LENDABLE else Remote(line, {"name": name})


def _names_of(code: types.CodeType) -> Iterable[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names_of(inner)


def script(order: dict[str, Any], heard: int, said: int, most: int) -> None:
    """Run a whole program with a text on its standard input; what it prints goes to the parent."""
    sys.stdin = io.StringIO(order["stdin"])
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    _, raised = _attempt(lambda: exec(compile(order["program"], "<program>", "exec"), names))  # noqa: S102 - what this process is for
    if raised and raised["raised"] == "SystemExit" and raised["why"] in ("", "0", "None"):
        raised = None
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    write_frame(said, raised or {"ended": True})


ROLES: dict[str, Callable[[dict[str, Any], int, int, int], None]] = {"candidate": candidate, "judge": judge, "script": script}
