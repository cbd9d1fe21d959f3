"""`khola export`: a model for other programs, checked by a round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from khola.cli import options as o
from khola.cli.talk import Talk

Form = Annotated[Literal["safetensors", "gguf"], typer.Option("--form", help="A folder as labs publish it, or a GGUF file.")]
To = Annotated[
    str,
    typer.Option("--to", metavar="FORMAT", help="As of quantise; default: the model's own full format, or bf16.", show_default=False),
]
Adapter = Annotated[
    Path | None, typer.Option("--adapter", metavar="FOLDER", parser=Path, help="Adapters (LoRA, DoRA) that are merged into it first.")
]
Name = Annotated[str, typer.Option("--name", metavar="NAME", help="What to call it here.", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("--output", metavar="PATH", parser=Path, help="Write this file or folder instead of a model of the library.")
]
Shard = Annotated[float, typer.Option("--shard-gb", metavar="N", help="Largest safetensors file, in GB.")]
NoGate = Annotated[bool, typer.Option("--no-gate", help="Do not compare the new file with its source.")]


def export(
    model: o.ModelName,
    form: Form = "safetensors",
    to: To = "",
    adapter: Adapter = None,
    name: Name = "",
    output: Output = None,
    shard_gb: Shard = 5.0,
    no_gate: NoGate = False,
    interpreter: o.Interpreter = "numpy",
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
) -> None:
    """Write a model for other programs; its path is printed when the round trip has passed."""
    from dataclasses import asdict

    from khola.cli.bars import Bar
    from khola.cli.quantise import print_made
    from khola.train.export import export as make

    talk = o.talk_of(json=json, quiet=quiet, lang=lang)
    with Bar(talk) as bar:
        done = make(
            model, into=form, settings=talk.settings, to=to, adapter=adapter, name=name, output=output, shard_bytes=int(shard_gb * 1e9),
            interpreter=interpreter, gated=not no_gate, progress=bar.draw, say=bar.say,
        )  # fmt: skip
    if json:
        gate = asdict(done.gate) if done.gate else None
        talk.data({"name": done.made.name, "path": str(done.made.path), "format": done.made.recipe, "bytes": done.made.bytes, "gate": gate})
        return
    talk.line(str(done.made.path))
    print_made(done.made, talk)
    _print_gate(done.gate, talk)


def _print_gate(gate: Any, talk: Talk) -> None:
    if gate is None:
        talk.say("not compared with its source")
        return
    talk.say(
        "round trip: {same} of {count} greedy tokens are the same, log-probabilities differ by up to {difference}",
        same=gate.same,
        count=len(gate.tokens),
        difference=f"{gate.difference:.5f}",
    )
