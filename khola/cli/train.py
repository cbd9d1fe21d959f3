"""`khola train`: a model made out of another one and rows of data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from khola.cli import options as o
from khola.cli.licence import Declared, pairs_of
from khola.cli.talk import Talk
from khola.errors import AskedWrong, NotInstalled

if TYPE_CHECKING:
    from khola.lineage.licence import Verdict
    from khola.train.config import Run
    from khola.train.loop import Finished, Progress

What = Annotated[
    str,
    typer.Argument(
        metavar="METHOD|FILE", show_default=False, help="A method (sft, dpo, grpo, k15, distil), or a TOML file that says everything."
    ),
]
Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", autocompletion=o.model_names, show_default=False, help="Name or path of the model to start from."),
]
Data = Annotated[list[str] | None, typer.Option("--data", metavar="FILE", help="Rows in JSONL or JSON; may be given several times.")]
Out = Annotated[
    str | None,
    typer.Option("--out", metavar="DIR", help="Folder for checkpoints, curves and the new model; the same command goes on there."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting, such as optimiser.lr=1e-5; may be given several times."),
]
LoraOption = Annotated[
    bool, typer.Option("--lora", help="Train low-rank adapters beside frozen weights; lora.rank and others are settings.")
]
Name = Annotated[
    str,
    typer.Option(
        "--name", help="What the new model is called; some licences ask for a word. Default: that of the folder.", show_default=False
    ),
]
DataLicence = Annotated[
    str, typer.Option("--data-licence", metavar="KEY", help="The licence of the data, a key of `khola licence`; own is nobody else's.")
]
Preview = Annotated[
    int | None,
    typer.Option(
        "--preview", metavar="N", help="Train nothing: print the first N sequences with what the model would learn between ⟦ and ⟧."
    ),
]
EVERY_S = 10.0
"""Between two lines of progress where no terminal is."""


def train(
    what: What,
    model: Model = None,
    data: Data = None,
    out: Out = None,
    set_: Set = None,
    lora: LoraOption = False,
    preview: Preview = None,
    name: Name = "",
    declared: Declared = None,
    data_licence: DataLicence = "own",
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
) -> None:
    """Make a new model out of one and rows of data."""
    talk = o.talk_of(json=json, quiet=quiet, lang=lang)
    run = run_of(what, model, data, out, list(set_ or ()), lora, preview)
    if preview is not None:
        _preview(run, preview, talk)
        return
    from khola.train.loop import train as go
    from khola.train.provenance import write_record_of

    verdict = allowed(run, name, declared, data_licence, talk)
    with Line(talk) as line:
        done = go(run, talk.settings, tell=line.say, progress=line.draw)
    if done.first:
        write_record_of(verdict, run, done, talk.settings, data_licence)
    print_done(done, talk, lineage=str(done.model / "lineage.json"))


def allowed(run: Run, name: str, declared: list[str] | None, data_licence: str, talk: Talk) -> Verdict:
    """What the licences of a run's models say, if they allow it; arguments as of the command.

    Raises:
        LicenceForbids, UnknownLicence: as `khola.train.provenance.judged`.
    """
    from khola.train.provenance import judged

    licences = {model: keys.split("+") for model, keys in pairs_of(declared or [], "--licence").items()}
    verdict = judged(run, name or Path(run.out).expanduser().resolve().name, talk.settings, licences, data_licence)
    talk.say("the licences allow it: {licences}", licences=", ".join(verdict.licences) or "-")
    return verdict


def print_done(done: Finished, talk: Talk, **more: Any) -> None:
    """Where the new model lies, and what it took; of several processes one says it."""
    if not done.first:
        return
    if talk.json:
        talk.data({"model": str(done.model), "out": str(done.out), "steps": done.steps, "tokens": done.tokens, "loss": done.loss, **more})
        return
    talk.line(str(done.model))
    talk.say("{steps} steps, {tokens} tokens; curves: {file}", steps=done.steps, tokens=done.tokens, file=str(done.out / "curves.html"))
    talk.aside("try it: khola chat {name}", name=done.model)


def run_of(
    what: str, model: str | None, data: list[str] | None, out: str | None, settings: list[str], lora: bool, preview: int | None
) -> Run:
    """What is asked for; the room of training needs torch."""
    from_file = what.endswith(".toml")
    given: dict[str, Any] = {"model": model, "data": tuple(data) if data else None, "out": out}
    if not from_file:
        given["method"] = what
        missing = [name for name, value in (("MODEL", model), ("--data", data), ("--out", out or preview)) if not value]
        if missing:
            raise AskedWrong("{name} is missing", hint="khola train sft MODEL --data FILE --out DIR", name=missing[0])
        given["out"] = out or "-"
    if lora and not any(setting.startswith("lora.") for setting in settings):
        settings = [*settings, "lora.rank=16"]
    try:
        from khola.train.config import resolve

        return resolve(Path(what).expanduser() if from_file else None, given, settings)
    except ImportError as problem:
        if problem.name is None or problem.name.split(".")[0] != "torch":
            raise
        raise NotInstalled("training needs torch, which is not installed", hint='pip install "khola[torch]"') from None


def _preview(run: Run, count: int, talk: Talk) -> None:
    """The first sequences, with what is learned marked."""
    from khola.train.loop import prepare
    from khola.train.preview import counts, shown

    prepared = prepare(run, talk.settings, talk.say)
    tokenizer = prepared.model.tokenizer
    for sample in prepared.samples[:count]:
        runs = list(shown(sample, tokenizer))
        if talk.json:
            talk.data({"where": sample.where, "runs": [{"text": text, "learned": learned} for text, learned in runs]})
        else:
            talk.line(f"--- {sample.where}")
            talk.line("".join(f"⟦{text}⟧" if learned else text for text, learned in runs))
    sequences, tokens, learned = counts(prepared.samples)
    talk.say("{sequences} sequences, {tokens} tokens, {learned} of them learned", sequences=sequences, tokens=tokens, learned=learned)


@final
class Line:
    """One line of progress that is written over on a terminal, and now and then a line where none is."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._terminal = talk.err.isatty() and not talk.json
        self._drawn = False
        self._last = 0.0

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def draw(self, progress: Progress) -> None:
        """Show a step."""
        text = self._talk.words(
            "step {step} of {steps}  loss {loss}  {speed} tokens/s  {left} left",
            step=progress.step,
            steps=progress.steps,
            loss=_number(progress.figures.get("loss")),
            speed=f"{progress.figures.get('tokens_per_s') or 0:,.0f}",
            left=_clock(progress.left_s),
        )
        self.put(text, progress.step in (1, progress.steps))

    def put(self, text: str, always: bool) -> None:
        """Show how far something is; where no terminal is, `always` or when some time has passed."""
        import time

        if self._talk.quiet:
            return
        now = time.monotonic()
        if not self._terminal and not always and now - self._last < EVERY_S:
            return
        self._last = now
        if self._terminal:
            self._talk.err.write(f"\r\x1b[2K{text}")
            self._talk.err.flush()
            self._drawn = True
        else:
            print(text, file=self._talk.err, flush=True)

    def say(self, text: str, **facts: Any) -> None:
        """Say a sentence above the line."""
        self._leave()
        self._talk.say(text, **facts)

    def _leave(self) -> None:
        if self._drawn:
            self._talk.err.write("\n")
            self._drawn = False


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
