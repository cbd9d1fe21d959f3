"""What callers ask of the form of an answer, made into what the engine takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from khola.chat.message import Prompt, Tool
from khola.chat.parsing import Parser
from khola.chat.thinking import END, START
from khola.engine import grammar as grammars
from khola.engine.grammar import Grammar
from khola.engine.json_schema import SCHEMA_BYTES
from khola.engine.openings import Openings
from khola.engine.request import Sampling, Thought
from khola.errors import AskedWrong, UnknownOption


class Form(TypedDict, total=False):
    """The form of an answer; at most one of these."""

    schema: Mapping[str, Any] | str | Path | None
    """A JSON Schema: a mapping, JSON text (it begins with a brace), or the path of a file."""
    regex: str | None
    """A regular expression that the whole answer matches."""
    choice: Sequence[str] | None
    """Texts, one of which is the answer."""
    grammar: str | Path | None
    """A grammar in Lark's or GBNF's notation, or the path of its file."""
    json_object: bool
    """Any JSON object."""


class Asking(Form, total=False):
    """What may be asked of a conversation; see `khola.api.Model.prepared`."""

    sampling: Sampling | Mapping[str, Any] | None
    tools: Sequence[Tool | Mapping[str, Any]]
    thinking: bool | None
    continue_last: bool
    thinking_tokens: int | None
    tool_choice: str | None
    one_call: bool
    tenant: str


class Completing(Form, total=False):
    """What may be asked of a text that goes on; see `khola.api.Model.prepared_text`."""

    sampling: Sampling | Mapping[str, Any] | None
    control: bool
    prompt_logprobs: int | None
    tenant: str


def grammar_of(form: Form) -> Grammar | None:
    """The grammar of a form; None when the answer is free.

    Raises:
        UnknownOption: there is no such form, or two are asked for.
        BadGrammar, BadSchema: it is too large or wrong.
        AskedWrong: its file cannot be read.
    """
    unknown = [name for name in form if name not in Form.__annotations__]
    if unknown:
        raise UnknownOption("there is no option {name!r}", name=unknown[0])
    given = [name for name, value in form.items() if value is not None and value is not False]
    if len(given) > 1:
        raise UnknownOption("an answer has one form, and {first} and {second} were asked for", first=given[0], second=given[1])
    schema, grammar = form.get("schema"), form.get("grammar")
    if schema is not None:
        text = isinstance(schema, str) and schema.lstrip().startswith("{")
        return grammars.json_schema(schema if text or isinstance(schema, Mapping) else _read(Path(schema)))  # type: ignore[arg-type]
    if (pattern := form.get("regex")) is not None:
        return grammars.regex(pattern)
    if (texts := form.get("choice")) is not None:
        return grammars.choice(texts)
    if grammar is not None:
        return grammars.notation(_read(grammar) if isinstance(grammar, Path) else grammar)
    return grammars.json_object() if form.get("json_object") else None


def thought_of(
    prompt: Prompt, parser: Parser, *, thinking: bool | None, goes_on: bool, most_tokens: int | None, model: str
) -> Thought | None:
    """How the answer to a prompt may think.

    Args:
        prompt, parser: of the chat format.
        thinking: what the caller asked for.
        goes_on: the answer continues a turn, so no thought begins in it.
        most_tokens: tokens of the thought at most.
        model: its name, for messages.
    Raises:
        AskedWrong: the thought of a model that does not think was bounded, or the bound is below 0.
    """
    if most_tokens is not None and most_tokens < 0:
        raise AskedWrong("thinking_tokens is {found}; expected 0 or more", found=most_tokens)
    if not (parser.thinks or prompt.thinking_open):
        if most_tokens is not None:
            raise AskedWrong("{model} does not think", model=model)
        return None
    may_open = not prompt.thinking_open and not goes_on and thinking is not False
    return Thought(start=START, end=END, opened=prompt.thinking_open, may_open=may_open, most_tokens=most_tokens)


def held(
    tools: Sequence[Tool], parser: Parser, tool_choice: str | None, form: Grammar | None, *, one_call: bool = False
) -> tuple[Grammar | None, Openings | None]:
    """What an answer that may call tools is held to from its beginning, or from the opening of a call on.

    Args:
        tools: that are offered.
        parser: of the chat format.
        tool_choice: "auto" or None, "required", or the name of a tool.
        form: of an answer that calls none.
        one_call: whether it may call one at most.
    Raises:
        AskedWrong: there is no such tool, or the chat format has no way to call one.
        BadGrammar: the form cannot stand beside tools.
        BadSchema: the arguments of a tool have a schema that cannot be used.
    """
    must = tool_choice not in (None, "auto")
    wanted = [tool for tool in tools if not must or tool_choice in ("required", tool.name)]
    if must and not wanted:
        raise AskedWrong("tool_choice is {found}; expected auto, required or the name of a tool", found=tool_choice)
    if not wanted or (parser.call_form is None and not must):
        return form, None
    if parser.call_form is None:
        raise AskedWrong("the chat format of this model has no form for calls that khola could require")
    signatures = [(tool.name, tool.parameters) for tool in wanted]
    if must:
        return grammars.calls(signatures, parser.call_form), None
    loose = [tool.name for tool in wanted if not tool.strict]
    found = grammars.calls(signatures, parser.call_form, many=not one_call, text=form, loose=loose)
    names = tuple(tool.name for tool in wanted)
    if form is None:
        return None, Openings(parser.call_form, names, found, many=not one_call)
    beside = Openings(parser.call_form, names, found, many=not one_call, beside=True)
    return found, beside if beside.patterns else None


def _read(path: Path) -> str:
    """A file of a user's, bounded."""
    try:
        with path.open("rb") as file:
            raw = file.read(SCHEMA_BYTES + 1)
    except OSError as error:
        raise AskedWrong("{file} cannot be read: {why}", file=str(path), why=error.strerror) from error
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise AskedWrong("{file} is not UTF-8: byte {at}", file=str(path), at=error.start) from None
