"""Options that several commands share, each with one meaning everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from khola.cli.talk import Talk
from khola.errors import UnknownOption
from khola.settings import Settings, from_environment

if TYPE_CHECKING:
    from khola.engine.request import Sampling

DEFAULT_MODEL = "smollm2-135m-instruct"
LANGUAGES = ("en", "bn")


def model_names(incomplete: str) -> list[str]:
    """Names for shell completion: cards and pulled models, from file names alone."""
    cards = (entry.name for entry in files("khola.cards").iterdir())
    names = {name.removesuffix(".toml") for name in cards if name.endswith(".toml") and name != "licences.toml"}
    models = from_environment().models
    if models.is_dir():
        names.update(folder.name for folder in models.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    return sorted(name for name in names if name.startswith(incomplete))


Json = Annotated[bool, typer.Option("--json", help="Print data as JSON; errors too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Lang = Annotated[Literal["en", "bn"] | None, typer.Option("--lang", help="Language of messages; default: that of the locale.")]
Off = Annotated[bool, typer.Option("--offline", help="Never open the network.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer yes to every question.")]

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", autocompletion=model_names, show_default=False, help="Name, path or source of a model.")
]

Temperature = Annotated[
    float | None,
    typer.Option("--temperature", "--temp", metavar="T", help="0 takes the most likely token; default: what the model's card recommends."),
]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="K", help="Keep the K most likely tokens; 0 keeps all.")]
TopP = Annotated[
    float | None, typer.Option("--top-p", metavar="P", help="Keep the most likely tokens until their probabilities add up to P.")
]
MinP = Annotated[float | None, typer.Option("--min-p", metavar="P", help="Drop tokens less likely than this share of the most likely one.")]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", metavar="X", help="Above 1, makes tokens of prompt and answer less likely.")
]
PresencePenalty = Annotated[
    float | None, typer.Option("--presence-penalty", metavar="X", help="Subtracted once from tokens of the answer.")
]
FrequencyPenalty = Annotated[
    float | None, typer.Option("--frequency-penalty", metavar="X", help="Subtracted for every occurrence of a token in the answer.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="The same seed gives the same answer.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="Longest answer; default: up to the end of the context.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before this text; may be given several times.")
]
Logprobs = Annotated[
    int | None, typer.Option("--logprobs", metavar="N", help="With --json: log-probabilities and this many alternatives a token.")
]
Speculate = Annotated[
    Literal["on", "off", "auto"],
    typer.Option("--speculate", help="Guess tokens from earlier text and check many at once: always, never, or when it is quicker."),
]

Context = Annotated[
    int | None,
    typer.Option(
        "--context", metavar="N", help="Tokens of prompt and answer; default: 8192, the trained length or what fits, the least of them."
    ),
]
Interpreter = Annotated[
    Literal["auto", "native", "numpy", "torch"],
    typer.Option("--interpreter", help="What computes the model; auto is native where this machine can, else numpy."),
]
Cache = Annotated[
    Literal["auto", "bf16", "int8"],
    typer.Option("--cache", help="Numbers of the cache; int8 takes half the memory of bf16, which is what auto is for native."),
]
Stream = Annotated[bool, typer.Option("--stream", help="Weights that do not fit into memory are read from the disk as they are needed.")]
SecondToken = Annotated[
    bool, typer.Option("--second-token", help="Load the layer that guesses the token after the next one, where the model has it.")
]
Precise = Annotated[
    bool,
    typer.Option(
        "--precise", help="Native numbers stay float32, as in numpy and torch: prompts take 4 to 7 times as long, answers 1.5 to 6 times."
    ),
]
TrustTemplate = Annotated[bool, typer.Option("--trust-template", help="Run the chat template inside the model's files, in a sandbox.")]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="What the model is told before the conversation.")]
Thinking = Annotated[Literal["on", "off"] | None, typer.Option("--thinking", help="Whether the model thinks before it answers.")]
SchemaFile = Annotated[
    Path | None, typer.Option("--schema", metavar="FILE", parser=Path, help="The answer is JSON that is valid under this JSON Schema.")
]
JsonObject = Annotated[bool, typer.Option("--json-object", help="The answer is a JSON object.")]
Regex = Annotated[str | None, typer.Option("--regex", metavar="PATTERN", help="The whole answer matches this regular expression.")]
Choice = Annotated[
    list[str] | None, typer.Option("--choice", metavar="TEXT", help="The answer is one of these texts; give it several times.")
]
GrammarFile = Annotated[
    Path | None, typer.Option("--grammar", metavar="FILE", parser=Path, help="The answer follows this grammar, in Lark or GBNF.")
]
ThinkingTokens = Annotated[
    int | None, typer.Option("--thinking-tokens", metavar="N", help="Longest thought, in tokens; then the model has to answer.")
]
Server = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="Ask a running khola server; its key is read from KHOLA_KEY.", show_default=False),
]
Stats = Annotated[bool, typer.Option("--stats", help="Print speed and token counts after the answer.")]


def asked_language(arguments: Sequence[str], settings: Settings) -> str:
    """Language of `--lang` before anything is parsed, since help and errors of parsing are told in it too."""
    said = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for place, argument in enumerate(said):
        value = said[place + 1] if argument == "--lang" and place + 1 < len(said) else argument.removeprefix("--lang=")
        if argument.startswith("--lang") and value in LANGUAGES:
            return value
    return settings.language


def talk_of(*, json: bool = False, quiet: bool = False, lang: str | None = None, offline: bool = False) -> Talk:
    """The voices of one command: settings of the environment with this command's options over them.

    Raises:
        UnknownOption: an environment variable of khola's has a value that it cannot have.
    """
    settings = from_environment()
    settings = replace(settings, language=lang or settings.language, offline=offline or settings.offline)
    return Talk(settings=settings, json=json, quiet=quiet)


def sampling_from(recommended: Mapping[str, float | int], parameters: Mapping[str, Any]) -> Sampling:
    """What the model's card recommends, with the options given on the command line over it.

    Raises:
        UnknownOption: a value is out of its range.
    """
    import msgspec

    from khola.engine.request import Sampling

    given = {name: parameters.get(name) for name in Sampling.__struct_fields__}
    given["speculate"] = {"on": True, "off": False}.get(parameters.get("speculate", "auto"))
    asked = {**recommended, **{name: value for name, value in given.items() if value is not None and value != []}}
    try:
        return msgspec.convert(asked, Sampling)
    except msgspec.ValidationError as error:
        name = (re.findall(r"\$\.(\w+)", str(error)) or ["sampling"])[0]
        option = "--" + name.replace("_", "-")
        why = str(error).split(" - at")[0]
        raise UnknownOption("{option} is {value}: {why}", option=option, value=asked.get(name), why=why) from error


def form_from(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The form of the answer that the command line asks for, as arguments of `Model.stream`; empty when it is free."""
    given = {name: parameters.get(name) for name in ("schema", "regex", "grammar", "thinking_tokens")}
    given |= {name: parameters.get(name) or None for name in ("choice", "json_object")}
    return {name: value for name, value in given.items() if value is not None}


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like this one; empty when none does."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, list(known), n=1, cutoff=0.5)), "")
