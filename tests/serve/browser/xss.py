"""Texts that run a script, load a picture or lead elsewhere where a page takes text for HTML.

`xss.txt` has one a line; each is tried bare and inside of everything that Markdown has.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

RUN = "window.hacked=1"
WRAPS = (
    "{x}", "**{x}**", "`{x}`", "> {x}", "- {x}", "# {x}", "| a |\n| --- |\n| {x} |", "```html\n{x}\n```", "*{x}", "\"'>{x}",
    "</p></div>{x}", "\\{x}",
)  # fmt: skip
ODD = (
    "\u202e<script>1</script>", "\x00<script>1</script>", "{{constructor.constructor('window.hacked=1')()}}", "${window.hacked=1}", "]]>",
    "<!--",
)  # fmt: skip


def _all() -> list[str]:
    lines = (Path(__file__).parent / "xss.txt").read_text(encoding="utf-8").splitlines()
    texts = [line.replace("{run}", RUN).replace("\\t", "\t") for line in lines]
    return [*(wrap.replace("{x}", text) for wrap, text in product(WRAPS, texts)), *ODD]


PAYLOADS = _all()
