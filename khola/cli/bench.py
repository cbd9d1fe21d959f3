"""`khola bench`: how fast and how good a model is here, beside other engines that run it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from khola.cli import options as o
from khola.cli.talk import Talk
from khola.errors import UnknownOption

if TYPE_CHECKING:
    from khola.evals.bench.figures import Figure
    from khola.evals.bench.report import Entry, Report

PEER_NAMES = ("llama.cpp", "vllm", "openvino", "transformers")
GROUP_NAMES = ("prefill", "decode", "streams", "start", "quality")

Against = Annotated[
    str, typer.Option("--against", metavar="NAMES", help="Peers to run side by side: llama.cpp, vllm, openvino, transformers; with commas.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Two rounds of short measurements instead of three of usual ones.")]
Rounds = Annotated[int | None, typer.Option("--rounds", metavar="N", min=1, max=99, help="How often everybody takes a turn.")]
Only = Annotated[str, typer.Option("--only", metavar="GROUPS", help="Of prefill, decode, streams, start, quality; with commas.")]
Peer = Annotated[
    list[str] | None,
    typer.Option(
        "--peer", metavar="NAME=PLACE", help="Where a peer is: a folder of llama.cpp's programs, or the Python that has the library."
    ),
]
PeerModel = Annotated[
    list[str] | None, typer.Option("--peer-model", metavar="NAME=MODEL", help="What a peer runs; default: the same files.")
]
Reference = Annotated[
    str, typer.Option("--reference", metavar="MODEL", help="Judge quality by this model in float32; default: the measured one.")
]

GROUP_WORDS = {
    "prefill": "reading prompts, round {round} of {rounds}: {name}",
    "decode": "one answer, round {round} of {rounds}: {name}",
    "streams": "several answers, round {round} of {rounds}: {name}",
    "start": "starting, round {round} of {rounds}: {name}",
    "quality": "predicting a fixed text: {name}",
    "reference": "the reference in float32: {name}",
}
REASONS = {
    "context": "longer than the context",
    "too_long": "no time",
    "unsupported": "not measurable",
    "failed": "failed",
}
FIGURE_WORDS = {
    "prefill": "prefill {size} tokens, tokens/s",
    "decode": "decode at depth {size}, tokens/s",
    "streams": "streams: {size}, tokens/s in all",
    "start_s": "start to first token, s",
    "memory_bytes": "peak memory, MB",
    "perplexity": "perplexity",
    "kl": "KL from the reference, nats/token",
    "same_token": "same most likely token, %",
}
SCALES = {"memory_bytes": 1e-6, "same_token": 100.0}


def bench(
    model: o.ModelName,
    against: Against = "",
    quick: Quick = False,
    rounds: Rounds = None,
    only: Only = "prefill,decode,streams,start,quality",
    peer: Peer = None,
    peer_model: PeerModel = None,
    reference: Reference = "",
    interpreter: o.Interpreter = "auto",
    cache: o.Cache = "auto",
    precise: o.Precise = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
) -> None:
    """Measure, and print a table; what is not installed is one line and no error.

    Raises:
        UnknownModel, NotPulled: the name leads to no files here.
        UnknownOption: a peer or a group that does not exist.
        BadFiles: the model's files cannot be read.
    """
    from khola.api.bench import FULL, QUICK
    from khola.evals.bench.run import Asked
    from khola.evals.bench.run import bench as measure

    talk = o.talk_of(json=json, quiet=quiet, lang=lang)
    asked = Asked(
        model=model,
        interpreter=interpreter,
        cache=cache,
        precise=precise,
        against=_names(against, PEER_NAMES, "--against"),
        places=_pairs(peer, "--peer"),
        models=_pairs(peer_model, "--peer-model"),
        reference=reference,
        groups=_names(only, GROUP_NAMES, "--only"),
        rounds=rounds or (2 if quick else 3),
        work=QUICK if quick else FULL,
        command=["khola", *sys.argv[1:]],
    )

    def tell(group: str, number: int, count: int, name: str) -> None:
        talk.say(GROUP_WORDS[group], round=number, rounds=count, name=name)

    settings = replace(talk.settings, offline=True)
    report = measure(asked, settings, tell=tell)
    if json:
        talk.data(report.data())
        return
    print_report(report, talk)


def _names(given: str, known: Sequence[str], option: str) -> list[str]:
    """Names between commas, each once, in the order in which they were given.

    Raises:
        UnknownOption: one of them does not exist.
    """
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise UnknownOption(
                "{option}: there is no {name}; expected one of {known}",
                hint="the nearest is {near}",
                option=option,
                name=name,
                known=", ".join(known),
                near=o.nearest(name, known) or known[0],
            )
    return names


def _pairs(given: Sequence[str] | None, option: str) -> Mapping[str, str]:
    """NAME=VALUE options by their names.

    Raises:
        UnknownOption: a name that is no peer, or nothing after it.
    """
    pairs = {}
    for text in given or ():
        name, _, value = text.partition("=")
        if not value:
            raise UnknownOption("{option} {text}: expected NAME=VALUE", option=option, text=text)
        _names(name, PEER_NAMES, option)
        pairs[name] = str(Path(value).expanduser()) if value.startswith("~") else value  # shells leave it after "="
    return pairs


def print_report(report: Report, talk: Talk) -> None:
    """Print the machine, a table with one column a contestant, and what the figures mean."""
    from khola.cli.tables import print_pairs, print_table, size
    from khola.evals.bench.report import SILENT

    words, machine = talk.words, report.machine
    bandwidth = ", ".join(
        words("{speed} GB/s with {threads} threads", speed=_spread(figure, 1e-9), threads=threads)
        for threads, figure in report.bandwidth.items()
    )
    pairs = [
        (words("processor"), words("{cpu}, {threads} threads used", cpu=machine["cpu"], threads=report.threads)),
        (words("memory is read at"), bandwidth),
        (words("multiplications"), _rates(report, talk)),
        (
            words("others on the machine"),
            words(
                "load {low} to {high}, {stolen} % of the time stolen",
                low=f"{min(report.load, default=0):.1f}",
                high=f"{max(report.load, default=0):.1f}",
                stolen=f"{100 * report.stolen_share:.1f}",
            ),
        ),
    ]
    pairs += [
        ("", words("{name} {version}: {model}, {bytes}", name=e.name, version=e.version, model=e.model, bytes=size(e.model_bytes)))
        for e in report.entries
    ]
    print_pairs(talk, pairs)
    talk.line()
    names = [name for name in report.entries[0].figures if name not in SILENT]
    ours, *others = report.entries
    ratios = report.data()["ratios"]
    columns = [words("figure"), *(part for entry in report.entries for part in _headings(entry, ours, talk))]
    rows = []
    for name in names:
        cells = [_figure_words(name, talk), _cell(ours.figures[name], name, talk)]
        for other in others:
            found = other.figures.get(name)
            quotient = ratios[other.name].get(name)
            cells += [_cell(found, name, talk) if found else "-", f"{quotient:.2f}" if quotient is not None else "-"]
        rows.append(cells)
    rows.append(_share_row(words("of the read bandwidth, %"), report, report.bandwidth_efficiency))
    rows.append(_share_row(words("of the multiplications, %"), report, report.multiply_efficiency))
    print_table(talk, columns, rows, right=range(1, len(columns)))
    _print_notes(report, talk)


def _headings(entry: Entry, ours: Entry, talk: Talk) -> list[str]:
    return [entry.name] if entry is ours else [entry.name, talk.words("times better")]


def _share_row(heading: str, report: Report, share_of: Callable[[Entry], float | None]) -> list[str]:
    """How near every contestant comes to what the machine can give."""
    cells = [heading]
    for number, entry in enumerate(report.entries):
        share = share_of(entry)
        cells += [f"{100 * share:.0f}" if share is not None else "-", *(["-"] if number else [])]
    return cells


def _print_notes(report: Report, talk: Talk) -> None:
    """Who is missing and why, what failed, and how to read the table."""
    talk.line()
    for missing in report.missing:
        talk.line("; ".join(part for part in (f"{missing.name}: {missing.message}", missing.next_step) if part))
    for entry in report.entries:
        for name, figure in entry.figures.items():
            if figure.detail:
                talk.line(f"{entry.name}, {_figure_words(name, talk)}: {figure.detail}")
    talk.line(
        talk.words(
            "Medians of {rounds} rounds in turns, lowest and highest in brackets. A ratio above 1 says that khola is better.",
            rounds=report.rounds,
        )
    )


def _rates(report: Report, talk: Talk) -> str:
    if report.rates is None:
        return talk.words("not measured: no native library here times them")
    return ", ".join(f"{name} {rate / 1e9:,.0f} G/s" for name, rate in report.rates.items())


def _figure_words(name: str, talk: Talk) -> str:
    kind, _, number = name.partition("_")
    return talk.words(FIGURE_WORDS[name if name in FIGURE_WORDS else kind], size=number)


def _cell(figure: Figure, name: str, talk: Talk) -> str:
    """A median with its spread, or why there is none."""
    if figure.median is None:
        return talk.words(REASONS[figure.reason])
    return _spread(figure, SCALES.get(name, 1.0))


def _spread(figure: Figure, scale: float) -> str:
    """Median, lowest and highest; a single reading stands alone."""
    if figure.median is None or figure.low is None or figure.high is None:
        return "-"
    middle = _three(figure.median * scale)
    return middle if len(figure.values) < 2 else f"{middle} ({_three(figure.low * scale)}-{_three(figure.high * scale)})"


def _three(value: float) -> str:
    """Three figures."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"
