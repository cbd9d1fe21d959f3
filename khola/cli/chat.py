"""`khola chat`: one question, or a conversation."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from khola.cli import options as o
from khola.cli.talk import Talk, stdin_is_terminal
from khola.errors import AskedWrong, UnknownModel
from khola.fetch.places import on_disk

if TYPE_CHECKING:
    from khola.api import Model
    from khola.cli.conversation import Conversation
    from khola.cli.remote import Remote

# One word of these letters may be a model; anything else that stands alone is a question.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=-]*|(\.{0,2}|~)/\S*")

FirstWord = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        autocompletion=o.model_names,
        show_default=False,
        help="Name, path or source of a model; may be left out, also before a prompt of several words. Default: the small default model.",
    ),
]
PromptText = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", show_default=False, help="The question; piped text is added to it. Without one, a conversation."),
]


def chat(
    command: typer.Context,
    model: FirstWord = None,
    prompt: PromptText = None,
    system: o.System = None,
    thinking: o.Thinking = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    presence_penalty: o.PresencePenalty = None,
    frequency_penalty: o.FrequencyPenalty = None,
    seed: o.Seed = None,
    max_tokens: o.MaxTokens = None,
    stop: o.Stop = None,
    logprobs: o.Logprobs = None,
    speculate: o.Speculate = "auto",
    schema: o.SchemaFile = None,
    json_object: o.JsonObject = False,
    regex: o.Regex = None,
    choice: o.Choice = None,
    grammar: o.GrammarFile = None,
    thinking_tokens: o.ThinkingTokens = None,
    context: o.Context = None,
    interpreter: o.Interpreter = "auto",
    cache: o.Cache = "auto",
    stream: o.Stream = False,
    second_token: o.SecondToken = False,
    precise: o.Precise = False,
    trust_template: o.TrustTemplate = False,
    server: o.Server = None,
    stats: o.Stats = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
    offline: o.Off = False,
    yes: o.Yes = False,
) -> None:
    """Talk with a model; the options of sampling and form are read from `command.params` by their names.

    Raises:
        AskedWrong: there is no prompt and no terminal to ask for one.
        UnknownModel, NotPulled, BadFiles, NoRoom: from loading the model.
        NoSource: the server does not answer.
    """
    from khola.cli.conversation import Conversation
    from khola.cli.terminal import read_prompt

    talk = o.talk_of(json=json, quiet=quiet, lang=lang, offline=offline)
    name, given = model_and_prompt(model, prompt)
    text = read_prompt(given, talk)
    if logprobs is not None and not json:
        raise AskedWrong("--logprobs needs --json")
    if not text and (json or not stdin_is_terminal() or not sys.stdout.isatty()):
        raise AskedWrong("there is no prompt", hint='khola chat {model} "your question", or pipe it in', model=name)
    try:
        with _speaker(name, name == model, talk, command.params) as (ready, recommended, load_s):
            conversation = Conversation(system=system or "")
            sampling = o.sampling_from(recommended, command.params)
            how = {"sampling": sampling, "thinking": None if thinking is None else thinking == "on", **o.form_from(command.params)}
            if text:
                _ask_once(ready, talk, text, conversation, how, stats, load_s)
            else:
                _converse(ready, talk, conversation, how, stats, load_s)
    except UnknownModel:
        if prompt is None and model is not None:
            talk.say('{word} alone was taken for a model; to ask it: khola chat {model} "{word}"', word=model, model=o.DEFAULT_MODEL)
        raise


@contextmanager
def _speaker(
    name: str, named: bool, talk: Talk, parameters: Mapping[str, Any]
) -> Iterator[tuple[Model | Remote, Mapping[str, float | int], float]]:
    """Who answers, a model of this program's or one of a server; how its lab recommends to sample, and the seconds until it was there."""
    if parameters["server"] is not None:
        from khola.cli.remote import reached

        with reached(parameters["server"], name if named else "", talk.settings, parameters) as (remote, seconds):
            yield remote, {}, seconds
        return
    from khola.cli.ready import ready_model

    names = ("context", "interpreter", "cache", "stream", "second_token", "precise", "trust_template")
    loading = {option: parameters[option] for option in names}
    with ready_model(name, talk, yes=parameters["yes"], **loading) as (model, load_s):
        yield model, model.loaded.sampling, load_s


def model_and_prompt(first: str | None, second: str | None) -> tuple[str, str | None]:
    """Which model is meant and what it is asked, from the words after `khola chat`.

    Two words are a model and a prompt. One is a model if it has the form of a name (a single word of ASCII letters, digits and
    `. _ : @ / + = -`) or is the path of something on this disk; any other is a prompt for the default model. Which models exist
    plays no part, so that a misspelt name is an error and never a question.
    """
    if first is None:
        return o.DEFAULT_MODEL, second
    if second is not None or _NAME.fullmatch(first) or on_disk(first):
        return first, second
    return o.DEFAULT_MODEL, first


def _ask_once(
    model: Model | Remote,
    talk: Talk,
    text: str,
    conversation: Conversation,
    how: dict[str, Any],
    stats: bool,
    load_s: float,
) -> None:
    """One answer: streamed, or as one JSON object; `how` is given to the model."""
    from contextlib import closing

    from khola.chat.message import Message
    from khola.cli.figures import answer_data, print_stats
    from khola.cli.ready import hint_better, hint_language, say_header
    from khola.cli.terminal import Shown, Stopped, print_stream

    conversation.turns.append(Message(role="user", content=text))
    hint_language(model, text, talk)
    if talk.json:
        answer = model.chat(conversation.messages(), **how)
        talk.data(answer_data(model, answer, load_s))
        return
    say_header(model, talk, load_s)
    shown = Shown()
    with closing(model.stream(conversation.messages(), **how)) as deltas:
        print_stream(deltas, talk, shown, Stopped())
    if stats and shown.usage is not None:
        print_stats(shown.usage, talk)
    hint_better(model, talk)


def _converse(model: Model | Remote, talk: Talk, conversation: Conversation, how: dict[str, Any], stats: bool, load_s: float) -> None:
    from khola.cli.ready import say_header
    from khola.cli.repl import Repl, ask_on_terminal

    say_header(model, talk, load_s)
    ask = ask_on_terminal(talk)
    Repl(model, talk, ask, conversation=conversation, stats=stats, **how).run()
