"""`khola distil`: a student learns from a teacher of any lab and any vocabulary, if their licences allow it."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated, Literal

import typer

from khola.cli import options as o
from khola.cli.licence import Declared, verdict_data
from khola.cli.train import Data, DataLicence, Line, LoraOption, Name, Out, Set, allowed, print_done, run_of
from khola.errors import AskedWrong

Teacher = Annotated[
    str,
    typer.Option(
        "--teacher",
        metavar="MODEL",
        autocompletion=o.model_names,
        help="The model to learn from: a name, a path, or what --server calls it.",
        show_default=False,
    ),
]
Student = Annotated[
    str,
    typer.Option(
        "--student", metavar="MODEL", autocompletion=o.model_names, help="The model that learns: a name or a path.", show_default=False
    ),
]
TeacherServer = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="The teacher answers there: a khola server, or another that speaks OpenAI's API.",
        show_default=False,
    ),
]
Objective = Annotated[
    Literal["alm", "sequence", "logits", "uld", "onpolicy"] | None,
    typer.Option(
        "--objective", help="What the teacher gives: how likely chunks of text are (alm), texts of its own, or one of the others."
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", parser=Path, help="A TOML file with settings; options go before it.")
]


def distil(
    teacher: Teacher = "",
    student: Student = "",
    data: Data = None,
    out: Out = None,
    server: TeacherServer = None,
    objective: Objective = None,
    config: Config = None,
    name: Name = "",
    declared: Declared = None,
    data_licence: DataLicence = "own",
    set_: Set = None,
    lora: LoraOption = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
) -> None:
    """Make a new model: a student learns from a teacher, once the licences allow it."""
    talk = o.talk_of(json=json, quiet=quiet, lang=lang)
    told = {"teacher": teacher, "server": server, "objective": objective}
    # Options go before --set, so that they stand over the file and under what is set by hand.
    given = [f"distil.{key}={json_.dumps(value)}" for key, value in told.items() if value]
    settings = [*([] if config is None else ["method=distil"]), *given, *(set_ or ())]
    missing = [option for option, value in (("--teacher", teacher), ("--student", student), ("--data", data), ("--out", out)) if not value]
    if config is None and missing:
        hint = "khola distil --teacher MODEL --student MODEL --data FILE --out DIR"
        raise AskedWrong("{name} is missing", hint=hint, name=missing[0])
    run = run_of("distil" if config is None else str(config), student or None, data, out, settings, lora, None)
    from khola.train.lessons import ask_teacher
    from khola.train.loop import train
    from khola.train.provenance import write_record_of

    verdict = allowed(run, name, declared, data_licence, talk)
    with Line(talk) as line:
        run = ask_teacher(
            run,
            talk.settings,
            lambda known, of: line.put(talk.words("the teacher has answered {known} of {of}", known=known, of=of), known == of),
        )
        done = train(run, talk.settings, tell=line.say, progress=line.draw)
    write_record_of(verdict, run, done, talk.settings, data_licence)
    print_done(done, talk, lineage=str(done.model / "lineage.json"), verdict=verdict_data(verdict))
