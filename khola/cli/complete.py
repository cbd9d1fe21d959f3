"""`khola complete`: a text goes on, without a chat format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from khola.cli import options as o
from khola.errors import AskedWrong

if TYPE_CHECKING:
    from khola.api import Model

Text = Annotated[str | None, typer.Argument(metavar="TEXT", show_default=False, help="The beginning; piped text is added to it.")]
Echo = Annotated[bool, typer.Option("--echo", help="Print the beginning too; with --logprobs, its log-probabilities.")]


def complete(
    command: typer.Context,
    model: o.ModelName,
    text: Text = None,
    echo: Echo = False,
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
    context: o.Context = None,
    interpreter: o.Interpreter = "auto",
    cache: o.Cache = "auto",
    stream: o.Stream = False,
    second_token: o.SecondToken = False,
    precise: o.Precise = False,
    stats: o.Stats = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
    offline: o.Off = False,
    yes: o.Yes = False,
) -> None:
    """Continue a text; the options of sampling and form are read from `command.params` by their names.

    Raises:
        AskedWrong: there is no text.
        UnknownModel, NotPulled, BadFiles, NoRoom: from loading the model.
    """
    from contextlib import closing

    from khola.cli.figures import answer_data, print_stats
    from khola.cli.ready import ready_model
    from khola.cli.terminal import Shown, Stopped, print_stream, printable, read_prompt

    talk = o.talk_of(json=json, quiet=quiet, lang=lang, offline=offline)
    start = read_prompt(text, talk, exact=True)
    if logprobs is not None and not json:
        raise AskedWrong("--logprobs needs --json")
    if not start:
        raise AskedWrong("there is no text to continue", hint='khola complete {model} "The text", or pipe it in', model=model)
    options = {"context": context, "interpreter": interpreter, "cache": cache, "stream": stream}
    options |= {"second_token": second_token, "precise": precise}
    with ready_model(model, talk, yes=yes, **options) as (ready, load_s):
        sampling = o.sampling_from(ready.loaded.sampling, command.params)
        form = o.form_from(command.params)
        if json:
            answer = ready.complete(start, sampling=sampling, **form)
            talk.data({**answer_data(ready, answer, load_s), **(_echoed(ready, start, logprobs is not None) if echo else {})})
            return
        if echo:
            print(printable(start, talk), end="", file=talk.out, flush=True)
        shown = Shown()
        with closing(ready.stream_complete(start, sampling=sampling, **form)) as deltas:
            print_stream(deltas, talk, shown, Stopped())
        if stats and shown.usage is not None:
            print_stats(shown.usage, talk)


def _echoed(model: Model, start: str, scored: bool) -> dict[str, Any]:
    """The beginning as data; scored, with the log-probability of each of its tokens given those before (the first has none)."""
    from khola.cli.figures import token_data

    if not scored:
        return {"text": start}
    score = model.score(start)
    tokens = [token_data(model, *pair) for pair in zip(score.tokens, (None, *score.logprobs), strict=True)]
    return {"text": start, "logprob": score.logprob, "perplexity": score.perplexity, "text_tokens": tokens}
