"""`khola merge`: several models of one shape into a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from khola.cli import options as o
from khola.cli.licence import Declared, pairs_of, split_keys

Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL[=COEFFICIENT]…", autocompletion=o.model_names, show_default=False, help="Models and their shares."),
]
Method = Annotated[
    Literal["linear", "slerp", "task", "ties", "dare", "dare-ties"],
    typer.Option("--method", help="How: an average, an arc, or differences from a base that are added, elected or dropped by chance."),
]
Base = Annotated[str, typer.Option("--base", metavar="MODEL", help="The model whose differences are added.", show_default=False)]
Angle = Annotated[float, typer.Option("--t", metavar="T", help="slerp: how far from the first to the second, 0 to 1.")]
Density = Annotated[float, typer.Option("--density", metavar="P", help="ties: the share of each difference that is kept, the largest.")]
Drop = Annotated[float, typer.Option("--drop", metavar="P", help="dare: the share of each difference that is dropped by chance.")]
Scale = Annotated[float, typer.Option("--scale", metavar="X", help="ties, dare-ties: what the elected mean is multiplied by.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="dare: the same seed drops the same numbers.")]
To = Annotated[
    str, typer.Option("--to", metavar="FORMAT", help="f32, bf16 or f16; default: that of the models, else bf16.", show_default=False)
]
Name = Annotated[str, typer.Option("--name", metavar="NAME", help="What to call it here.", show_default=False)]
Output = Annotated[Path | None, typer.Option("--output", metavar="FOLDER", parser=Path, help="Write this folder instead.")]


def merge(
    models: Models,
    method: Method = "linear",
    base: Base = "",
    t: Angle = 0.5,
    density: Density = 0.2,
    drop: Drop = 0.5,
    scale: Scale = 1.0,
    seed: Seed = 0,
    to: To = "",
    name: Name = "",
    output: Output = None,
    declared: Declared = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
) -> None:
    """Merge models into a checkpoint's folder, whose path is printed."""
    from khola.cli.bars import Bar
    from khola.cli.licence import verdict_data
    from khola.cli.tables import size
    from khola.train.made import Order
    from khola.train.made import merge as make
    from khola.train.merge import Plan

    talk = o.talk_of(json=json, quiet=quiet, lang=lang)
    names, shares = zip(*map(shared, models), strict=True)
    coefficients = (1 - t, t) if method == "slerp" and len(names) == 2 else shares
    plan = Plan(method=method, coefficients=coefficients, density=density, drop=drop, scale=scale, seed=seed)
    licences = {model: split_keys(keys) for model, keys in pairs_of(declared or [], "--licence").items()}
    order = Order(plan=plan, base=base, name=name, output=output, kind=to, licences=licences)
    with Bar(talk) as bar:
        made = make(names, order, settings=talk.settings, progress=bar.draw, say=bar.say)
    if json:
        data = {"name": made.name, "path": str(made.path), "format": made.kind, "tensors": made.tensors, "bytes": made.bytes}
        talk.data({**data, "recipe": made.record.recipe, "record": made.record.sha256, "verdict": verdict_data(made.verdict)})
        return
    talk.line(str(made.path))
    talk.say("{name}: {tensors} tensors in {format}, {size}", name=made.name, tensors=made.tensors, format=made.kind, size=size(made.bytes))
    talk.say("what its licences ask: khola licence {name}", name=made.name if output is None else str(made.path))


def shared(text: str) -> tuple[str, float]:
    """A model and its share; 1 where none is given."""
    model, sign, share = text.rpartition("=")
    try:
        return (model, float(share)) if sign and model else (text, 1.0)
    except ValueError:
        return text, 1.0
