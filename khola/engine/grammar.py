"""What form an answer must have: a JSON Schema, a regular expression, a list of choices, or a grammar in Lark's or GBNF's notation.

A `Grammar` is plain data, bounded when it is made. The llguidance library turns it into the tokens that may come next (`matcher.py`).

Source   JSON Schema 2020-12; Lark as llguidance reads it (its `docs/syntax.md`); GBNF as llama.cpp describes it (`grammars/README.md`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from khola.chat.call_form import CallForm
from khola.engine.json_schema import checked_schema, read_schema
from khola.engine.tagged import check_tagged
from khola.errors import BadGrammar, BadSchema

Kind = Literal["json_schema", "json_object", "regex", "choice", "lark", "gbnf", "calls"]

REGEX_CHARACTERS = 4 << 10
SOURCE_BYTES = 64 << 10
"""Of a grammar, or of all choices together."""
MAX_CHOICES = 1_000
MAX_RULES = 1_000
_JSON = ("json_schema", "json_object")
WHITESPACE = r"(?: |\r?\n[ \t]{0,40})"
"""What may stand between the parts of JSON: enough for one line or for an indented page, too little for a model to lose itself in."""

_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::?=?", re.MULTILINE)
_GBNF = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_OPTION = re.compile(r"^[ \t]*[\w-]+\[[^\]\n]*\b(capture|temperature|max_tokens|stop)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Grammar:
    """The form of an answer, checked as far as that is possible without a vocabulary. Make one with the functions of its kinds."""

    kind: Kind
    source: str
    """The notation of its kind; JSON for schemas and choices."""

    @property
    def is_json(self) -> bool:
        """Whether every text that it allows is one JSON value; calls beside it are no text."""
        if self.kind == "calls":
            return (json.loads(self.source)["text"] or {}).get("kind") in _JSON
        return self.kind in _JSON


def json_schema(schema: Mapping[str, Any] | str) -> Grammar:
    """JSON that is valid under a schema, with the properties in the schema's order.

    Args:
        schema: of JSON Schema 2020-12, as a mapping or as JSON text.
    Raises:
        BadSchema: it is too large or too deep, wrong, or uses a keyword that an answer cannot be held to.
    """
    return Grammar("json_schema", json.dumps(checked_schema(read_schema(schema)), ensure_ascii=False))


def json_object() -> Grammar:
    """Any JSON object."""
    return Grammar("json_object", '{"type": "object"}')


def regex(pattern: str) -> Grammar:
    """Text that matches a regular expression from its first letter to its last. No look-around and no back-references.

    Raises:
        BadGrammar: it is too long, or no Unicode text.
    """
    _bounded(pattern, "regex", REGEX_CHARACTERS)
    anchored = pattern.removeprefix("^")
    if re.search(r"(?<!\\)(?:\\\\)*\$\Z", anchored):
        anchored = anchored[:-1]
    return Grammar("regex", anchored)


def choice(texts: Sequence[str]) -> Grammar:
    """One of several texts.

    Raises:
        BadGrammar: there is none, they are too many or too long, or one is no text.
    """
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadGrammar("choices are a list of at least one text", hint="give a list of texts")
    if len(texts) > MAX_CHOICES:
        raise BadGrammar("there are {found} choices; at most {most} are taken", found=len(texts), most=MAX_CHOICES)
    source = json.dumps(list(dict.fromkeys(texts)), ensure_ascii=False)
    _bounded(source, "choice", SOURCE_BYTES)
    return Grammar("choice", source)


def notation(source: str) -> Grammar:
    """A grammar in GBNF's notation if a line of it has a rule `name ::= …`, else in Lark's.

    Raises:
        BadGrammar: it is too long, has too many rules, or a rule has an option that changes sampling.
    """
    _bounded(source, "grammar", SOURCE_BYTES)
    rules = len(_RULE.findall(source))
    if rules > MAX_RULES:
        raise BadGrammar("the grammar has {found} rules; at most {most} are taken", found=rules, most=MAX_RULES)
    if _GBNF.search(source):
        return Grammar("gbnf", source)
    option = _OPTION.search(source)
    if option:
        raise BadGrammar(
            "a rule has the option {option}, which khola does not follow", hint="give it with the request instead", option=option[1]
        )
    return Grammar("lark", source)


def calls(
    signatures: Sequence[tuple[str, Mapping[str, Any]]],
    form: CallForm,
    *,
    many: bool = False,
    text: Grammar | None = None,
    loose: Collection[str] = (),
) -> Grammar:
    """A call of one of several tools, as a chat format writes it.

    Args:
        signatures: names of tools and schemas of their arguments.
        form: of the chat format.
        many: further calls may follow, where the format has room for them.
        text: what may stand there instead; it is not in GBNF.
        loose: names of tools whose arguments are held to as much of their schema as can be; keywords that cannot be followed are left out.
    Raises:
        BadGrammar: the text is held to GBNF.
        BadSchema: a schema cannot be used; the path begins with the tool's name, and the fact `param` is "tools".
    """
    if text is not None and text.kind == "gbnf":
        raise BadGrammar("a grammar in GBNF cannot stand beside tools", hint="write it in Lark's notation")
    try:
        schemas = _schemas(signatures, loose)
        if form.tags:
            check_tagged(schemas, loose)
    except BadSchema as error:
        error.facts["param"] = "tools"
        raise
    told = {
        "form": asdict(form) | {"openings": ()},
        "schemas": schemas,
        "loose": [name for name in schemas if name in loose],
        "open": {},
        "many": many and form.gap is not None,
        "text": asdict(text) if text else None,
    }
    return Grammar("calls", json.dumps(told, ensure_ascii=False))


def _schemas(signatures: Sequence[tuple[str, Mapping[str, Any]]], loose: Collection[str]) -> dict[str, dict[str, Any]]:
    """The checked schemas of arguments, which are objects, by the names of their tools."""
    schemas: dict[str, dict[str, Any]] = {}
    for name, parameters in signatures:
        schema = checked_schema(read_schema(parameters), path=name, loose=name in loose)
        if schema.setdefault("type", "object") != "object":
            raise BadSchema(
                "{path} is {found}; expected {expected}", path=f"{name}.type", found=str(schema["type"])[:80], expected="object"
            )
        schemas[name] = schema
    return schemas


def _bounded(source: str, what: str, most: int) -> None:
    """Refuse what is too long before anything reads it."""
    try:
        found = len(source.encode())
    except UnicodeEncodeError:
        raise BadGrammar("{what} is no Unicode text: it has half of a surrogate pair", what=what) from None
    if found > most:
        raise BadGrammar("{what} has {found} bytes; at most {most} are taken", what=what, found=found, most=most)
