"""The figures of a run as curves in one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, BELOW = 640, 200, 64, 24
POINTS = 2000
"""Of a curve at most; longer runs show every n-th step."""
_SHOWN = {"loss": "loss", "lr": "learning rate", "norm": "length of the gradient", "tokens_per_s": "tokens/s"}
_LEFT_OUT = ("step", "tokens", "seconds")


def page(title: str, history: Sequence[Mapping[str, Any]]) -> str:
    """Curves of every figure that the steps have.

    Args:
        title: of the page.
        history: one mapping a step, with "step" and figures; a figure that is None is a gap.
    """
    keys = [*_SHOWN, *sorted({key for one in history for key in one} - set(_SHOWN) - set(_LEFT_OUT))]
    drawn = "".join(_curve(_SHOWN.get(key, key), _points(history, key)) for key in keys if any(one.get(key) is not None for one in history))
    style = "body{font:14px sans-serif;max-width:720px;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    style += "svg{width:100%;height:auto}path{fill:none;stroke:#06c;stroke-width:1.5}text{font-size:11px;fill:#666}line{stroke:#ccc}"
    style += "@media(prefers-color-scheme:dark){body{color:#ddd;background:#111}text{fill:#999}line{stroke:#333}path{stroke:#6af}}"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    return f"<!doctype html><html>{head}<style>{style}</style><body><h1>{html.escape(title)}</h1>{drawn}</body></html>\n"


def _points(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    every = -(-len(history) // POINTS)
    return [(int(one["step"]), float(one[key])) for one in history[:: every or 1] if one.get(key) is not None]


def _curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    if not points:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    first, last = points[0][0], points[-1][0]
    wide, tall = WIDTH - LEFT - 8, HEIGHT - BELOW - 8

    def place(x: int, y: float) -> str:
        across = LEFT + wide * (x - first) / max(1, last - first)
        return f"{across:.1f},{8 + tall * (high - y) / ((high - low) or 1):.1f}"

    path = "M" + "L".join(place(x, y) for x, y in points)
    labels = f'<text x="{LEFT - 6}" y="16" text-anchor="end">{high:.4g}</text>'
    labels += f'<text x="{LEFT - 6}" y="{8 + tall}" text-anchor="end">{low:.4g}</text>'
    labels += f'<text x="{LEFT}" y="{HEIGHT - 6}">{first}</text><text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">{last}</text>'
    frame = f'<line x1="{LEFT}" y1="{8 + tall}" x2="{WIDTH - 8}" y2="{8 + tall}"/><line x1="{LEFT}" y1="8" x2="{LEFT}" y2="{8 + tall}"/>'
    seen = html.escape(name)
    return f'<h2>{seen}</h2><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{seen}">{frame}<path d="{path}"/>{labels}</svg>'
