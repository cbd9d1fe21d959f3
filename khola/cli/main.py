"""The `khola` command: its subcommands are light modules that import what they need when they run."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from khola import __version__
from khola.cli import (
    bench,
    chat,
    complete,
    distil,
    doctor,
    export,
    fit,
    import_,
    key,
    licence,
    lineage,
    list_,
    merge,
    pull,
    quantise,
    serve,
    show,
    train,
)
from khola.cli.options import Lang, asked_language
from khola.cli.refused import refused
from khola.cli.talk import Talk
from khola.errors import KholaError, NoMemory, NoRoom, OurFault
from khola.settings import Settings, from_environment
from khola.words import say

INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 141  # 128 + SIGPIPE
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)


def main() -> None:
    """Entry point of the `khola` program."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; errors become words on stderr and the exit code that is returned."""
    _lossless_output()
    debug = "--debug" in arguments[:1]
    said = list(arguments[1:] if debug else arguments) or ["--help"]
    talk = Talk(settings=_settings(), json="--json" in said)
    try:
        talk = Talk(settings=_in_language(said, from_environment()), json=talk.json)
        return _answered(said, talk)
    except KholaError as error:
        if debug:
            raise
        return talk.error(error)
    except MemoryError:
        return talk.error(
            NoMemory("memory is full", hint="try a shorter --context or a smaller model; `khola fit` says what a model needs")
        )
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return talk.error(_our_fault(error))


def build_app(language: str = "en") -> Any:
    """The tree of commands with its help in one language."""
    app = typer.Typer(
        name="khola",
        help="Run, serve, make, judge and trace open-weights models.",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich and markdown take 0.1 s of the 0.3 s that help may take
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(_root)
    _add(app, "chat", chat.chat, "Talk with a model, or ask it one question.")
    _add(app, "complete", complete.complete, "Continue a text as it stands, without a chat format.")
    _add(app, "serve", serve.serve, "Answer programs and the page over HTTP.")
    keys = typer.Typer(help="Make, list and revoke keys of the server.", short_help="Make, list and revoke keys of the server.")
    _add(keys, "new", key.new, "Make a key and print it: the only time that it is shown.")
    _add(keys, "list", key.list_keys, "List the keys, without what opens anything.")
    _add(keys, "revoke", key.revoke, "Take a key away; a running server refuses it from its next request on.")
    app.add_typer(keys, name="key")
    _add(app, "pull", pull.pull, "Bring a model to this disk; what is here and right is not fetched again.")
    _add(app, "list", list_.list_models, "List the models on this disk.")
    _add(app, "import", import_.import_model, "Take a model that is on this disk already; files are linked, not copied.")
    _add(app, "show", show.show, "Say what is published about a model, or what a model file holds.")
    _add(app, "fit", fit.fit, "Say what a model would take on this machine, before anything is fetched.")
    _add(app, "quantise", quantise.quantise, "Write a model in fewer bits, and say what that cost.")
    _add(app, "train", train.train, "Make a new model out of one and rows of data.")
    _add(app, "distil", distil.distil, "Make a new model: a student learns from a teacher, once the licences allow it.")
    _add(app, "merge", merge.merge, "Merge models of one shape into a new one.")
    _add(app, "export", export.export, "Write a model for other programs, and check that it still says the same.")
    _add(app, "licence", licence.licence, "Say what licences ask, and whether a model may be made from others.")
    _add(app, "lineage", lineage.lineage, "Say who a model was made from, and check its record.")
    _add(app, "bench", bench.bench, "Say how fast and how good a model is here, beside other engines.")
    _add(app, "doctor", doctor.doctor, "Say what was found on this machine, and what to do about what is missing.")
    tree = get_command(app)
    if language != "en":
        _translate(tree, language)
    return tree


def _add(app: Any, name: str, function: Callable[..., None], sentence: str) -> None:
    """Add a command. The list of commands shows a short help whole, and clips a help that has no short form."""
    app.command(name, help=sentence, short_help=sentence)(_piped(function))


def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    lang: Lang = None,
    debug: Annotated[bool, typer.Option("--debug", help="As the first option: show where an error comes from.")] = False,
) -> None:
    """Options before the command; `--lang` is read by `asked_language`, `--debug` and `--version` by `run`."""


def _answered(said: list[str], talk: Talk) -> int:
    """Parse and run; the exit code."""
    if said[0] == "--version":
        talk.line(f"khola {__version__}")
        return 0
    tree = build_app(talk.language)
    try:
        code = tree.main(said, prog_name="khola", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        raise refused(error, said, list(tree.commands)) from error
    return code if isinstance(code, int) else 0


def _in_language(said: Sequence[str], settings: Settings) -> Settings:
    from dataclasses import replace

    return replace(settings, language=asked_language(said, settings))


def _settings() -> Settings:
    """Settings to tell errors with when those of the environment are themselves wrong."""
    try:
        return from_environment()
    except KholaError:
        return Settings(home=Path(), user_home=Path())


def _our_fault(error: Exception) -> OurFault:
    return OurFault(
        "khola stopped on an error of its own: {kind}: {what}",
        hint="please report it to the project, with what `khola doctor --json` and `khola --debug …` print",
        kind=type(error).__name__,
        what=str(error),
    )


def _piped(function: Callable[..., None]) -> Callable[..., None]:
    """The command, ending quietly when whoever reads its output has left."""

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> None:
        try:
            function(*args, **options)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_output()
            raise typer.Exit(BROKEN_PIPE) from None
        except OSError as error:
            if error.filename is not None or error.errno not in UNWRITABLE:
                raise
            _drop_output()
            raise NoRoom("standard output cannot be written: {reason}", reason=error.strerror) from error

    return command


def _drop_output() -> None:
    """Let nothing more reach standard output: what is still buffered would raise again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lossless_output() -> None:
    """Characters that the terminal's encoding lacks are escaped, not refused; a closed stream is a null device."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _translate(tree: Any, language: str) -> None:
    """Put the help of a command, its options and its subcommands into another language, in place."""
    tree.help = say(tree.help, language) if tree.help else tree.help
    tree.short_help = say(tree.short_help, language) if tree.short_help else tree.short_help
    for parameter in tree.params:
        if parameter.help:
            parameter.help = say(parameter.help, language)
    for command in getattr(tree, "commands", {}).values():
        _translate(command, language)
