"""`khola quantise`: a model in fewer bits, and what that cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from khola.cli import options as o
from khola.cli.talk import Talk
from khola.errors import KholaError

if TYPE_CHECKING:
    from khola.api.quality import Report
    from khola.api.quantise import Quantised

To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_1 or q4_0 (a GGUF file), int8g64, int4g64_m or int4g64 (a folder for khola alone).",
        show_default=False,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="REGEX=FORMAT", help="A format for the tensors whose names match; may be given several times."),
]
Name = Annotated[str, typer.Option("--name", help="What to call it here; default: its own name and the format.", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("--output", metavar="PATH", parser=Path, help="Write this file or folder instead of a model of the library.")
]
NoReport = Annotated[bool, typer.Option("--no-report", help="Do not run the models to compare them.")]


def quantise(
    model: o.ModelName,
    to: To,
    keep: Keep = None,
    name: Name = "",
    output: Output = None,
    no_report: NoReport = False,
    interpreter: o.Interpreter = "numpy",
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
) -> None:
    """Write a model in fewer bits, and say what that cost."""
    from khola.api.quantise import quantise as make
    from khola.cli.bars import Bar

    talk = o.talk_of(json=json, quiet=quiet, lang=lang)
    with Bar(talk) as bar:
        made = make(model, to=to, settings=talk.settings, keep=keep or (), new_name=name, output=output, progress=bar.draw, say=bar.say)
    if not json:
        talk.line(str(made.path))
        print_made(made, talk)
    report = None if no_report else _report(model, made, interpreter, talk)
    if json:
        talk.data(_data(made, report))
    elif report is not None:
        _print_report(report, talk)
    if made.entry is not None:
        talk.aside("try it: khola chat {name}", name=made.name)


def _report(model: str, made: Quantised, interpreter: str, talk: Talk) -> Report | None:
    """Both models on the same texts; the new files stay where they are when one of the two cannot be run."""
    from khola.api.quality import compare

    talk.say("running both models on the same texts, to see what it cost; --no-report leaves this out")
    try:
        return compare(model, str(made.path), settings=talk.settings, interpreter=interpreter, say=talk.say)
    except KholaError as problem:
        talk.say("the models were not compared: {reason}", reason=problem.told(talk.language))
        return None


def print_made(made: Quantised, talk: Talk) -> None:
    """Size, formats, and what the licence asks of whoever passes it on."""
    from khola.cards.catalogue import licence
    from khola.cli.tables import size
    from khola.lineage.sentences import licence_sentences

    talk.say(
        "{name}: {size}, {bits} bits a weight ({kinds})",
        name=made.name,
        size=size(made.bytes),
        bits=f"{made.bits_per_weight:.2f}",
        kinds=", ".join(f"{count} {kind.lower()}" for kind, count in made.kinds.items()),
    )
    if not made.licences:
        talk.say("no card describes the source; its licence holds for this model too")
    for key in made.licences:
        record = licence(key)
        talk.say("it inherits the licence {name}: {address}", name=record.name, address=record.url)
        if not talk.quiet:
            for sentence in licence_sentences(record, talk.language):
                print(f"- {sentence}", file=talk.err)


def _data(made: Quantised, report: Report | None) -> dict[str, Any]:
    """What `--json` prints."""
    from dataclasses import asdict

    return {
        "name": made.name,
        "path": str(made.path),
        "format": made.recipe,
        "bytes": made.bytes,
        "weights": made.weights,
        "bits_per_weight": round(made.bits_per_weight, 4),
        "kinds": {kind.lower(): count for kind, count in made.kinds.items()},
        "parent": made.source.name,
        "licences": list(made.licences),
        "report": None if report is None else asdict(report),
    }


def _print_report(report: Report, talk: Talk) -> None:
    """Before and after in one table, then each text."""
    from khola.cli.tables import print_table, size

    before, after = report.before, report.after
    rows = [
        [talk.words("size"), size(before.bytes), size(after.bytes)],
        [talk.words("bits a weight"), f"{before.bits_per_weight:.2f}", f"{after.bits_per_weight:.2f}"],
        [talk.words("perplexity"), f"{before.perplexity:.3f}", f"{after.perplexity:.3f}"],
        [talk.words("tokens/s"), f"{before.tokens_per_s:.1f}", f"{after.tokens_per_s:.1f}"],
        [talk.words("KL divergence"), "", f"{report.kl:.5f}"],
        [talk.words("KL, 99 %"), "", f"{report.kl_99:.5f}"],
        [talk.words("same best token"), "", f"{100 * report.top_1:.1f} %"],
    ]
    print_table(talk, ["", talk.words("before"), talk.words("after")], rows, right=(1, 2))
    talk.line()
    head = [
        talk.words("text"), talk.words("tokens"), talk.words("perplexity"), talk.words("after"), talk.words("KL divergence"),
        talk.words("same best token"),
    ]  # fmt: skip
    names = {"english": talk.words("English"), "code": talk.words("code"), "bengali": talk.words("Bengali")}
    lines = [
        [
            names.get(text.text, text.text),
            str(text.tokens),
            f"{text.perplexity_before:.3f}",
            f"{text.perplexity_after:.3f}",
            f"{text.kl:.5f}",
            f"{100 * text.top_1:.1f} %",
        ]
        for text in report.texts
    ]
    print_table(talk, head, lines, right=(1, 2, 3, 4, 5))
