"""Calls of tools as grammars: whole ones, what is left of one whose opening was read, and calls beside another form."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from khola.engine.tagged import Tagged

Spell = Callable[[str], str]
"""A mark or a text in Lark's notation."""

_SPACE = r"space: SPACE?" + "\n" + r"SPACE: /( |\r?\n[ \t]{0,40})/"
_COUNT = "COUNT: /(0|[1-9][0-9]{0,3})/"


def marks_of(told: dict[str, Any]) -> list[str]:
    """Marks and texts of a grammar of calls, some of which may be control tokens."""
    form = told["form"]
    return [mark for part in (form["before"], form["between"], form["after"], *form["section"]) for mark in part]


def call_grammars(told: dict[str, Any], spell: Spell, json_grammar: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls in llguidance's form.

    Args:
        told: the source of a grammar of calls.
        spell: marks, as the vocabulary has them.
        json_grammar: makes a grammar of a schema.
    """
    return _Calls(told, spell, json_grammar).assembled()


class _Calls:
    """The rules of one grammar. Arguments of tool N are `args` and N, the rest of its call behind its name `rest` and N."""

    def __init__(self, told: dict[str, Any], spell: Spell, json_grammar: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._form, self._many, self._opened = told["form"], told["many"], told.get("opened")
        self._beside = told["text"] is not None and self._opened is None
        self._names = list(told["schemas"])
        self._open = {name: told["open"].get(name, ()) if name in told["loose"] else None for name in self._names}
        self._json = json_grammar
        self._spell = spell
        self._lines: list[str] = []
        self._grammars: list[dict[str, Any]] = []
        self._args = [self._arguments(number, schema) for number, schema in enumerate(told["schemas"].values())]

    def assembled(self) -> list[dict[str, Any]]:
        """All rules; what is beside the calls comes from elsewhere, under the name `text`."""
        form = self._form
        begin, end = (self._spelled(part) for part in form["section"])
        more = f"({self._spelled(form['gap'])} later)*" if self._many else ""
        opened = self._opened or {"behind": "", "closes": True, "more": ""}
        number = self._names.index(opened["name"]) if opened.get("name") else 0
        first = {
            "": f"{begin} call",
            "section": f"{self._spelled(form['section'][0][1:])} call",
            "call": self._call(form["before"][1:] if form["before"] else (), later=False),
            "name": self._rest(number, later=False),
            "arguments": f"{self._args[number]} {self._ending()}",
        }[opened["behind"]]
        tail = f"{more} {end}" if opened["closes"] else ""
        last = json.dumps(opened["more"]) if opened["more"] else ""
        self._lines.append(f"calls: {first} {tail} {last}")
        self._lines.append(f"call: {self._call(form['before'], later=False)}")
        self._lines.append(f"later: {self._call(form['before'], later=True)}")
        start = "start: calls | @text" if self._beside else "start: calls"
        return [{"lark_grammar": "\n".join([start, *self._lines, _SPACE, _COUNT]) + "\n"}, *self._grammars]

    def _call(self, before: Sequence[str], *, later: bool) -> str:
        """A call behind what is left out of its beginning."""
        key = self._form["key"]
        ways = []
        for number, name in enumerate(self._names):
            quoted = json.dumps(json.dumps(name, ensure_ascii=False), ensure_ascii=False)
            named = f'"{{" space "\\"name\\"" space ":" space {quoted}' if key else json.dumps(name, ensure_ascii=False)
            ways.append(f"{named} {self._rest(number, later=later)}")
        return f"{self._spelled(before)} ({' | '.join(ways)})"

    def _rest(self, number: int, *, later: bool) -> str:
        """What follows the name."""
        form, key = self._form, self._form["key"]
        if key:
            between = f'space "," space {json.dumps(json.dumps(key))} space ":" space'
        elif later and form["counted"]:
            between = f'":" COUNT {self._spelled(form["between"][1:])}'
        else:
            between = self._spelled(form["between"])
        return f"{between} {self._args[number]} {self._ending()}"

    def _ending(self) -> str:
        """What follows the arguments."""
        return ('space "}" ' if self._form["key"] else "") + self._spelled(self._form["after"])

    def _arguments(self, number: int, schema: dict[str, Any]) -> str:
        """The name of what arguments are held to."""
        if not self._form["tags"]:
            self._grammars.append({**self._json(schema), "name": f"args{number}"})
            return f"@args{number}"
        name = self._names[number]
        lines, values = Tagged(self._form["tags"], schema, name, number, self._open[name]).rules()
        self._lines += lines
        self._grammars += [{**self._json(one["schema"]), "name": one["name"]} for one in values]
        return f"args{number}"

    def _spelled(self, parts: Sequence[str]) -> str:
        return " ".join(map(self._spell, parts))
