"""From a name to a model that answers, with the words around it: what is missing, what was loaded, what would be better."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from khola.cli.options import DEFAULT_MODEL
from khola.cli.talk import Talk
from khola.errors import NotPulled

if TYPE_CHECKING:
    from khola.api import Model
    from khola.cli.remote import Remote

COMMERCIAL = {"yes": "yes", "no": "no", "conditions": "under conditions", "unknown": "unknown"}
_BENGALI = re.compile(r"[\u0980-\u09FF]")


@contextmanager
def ready_model(name: str, talk: Talk, *, yes: bool = False, **options: Any) -> Iterator[tuple[Model, float]]:
    """A loaded model and the seconds it took to load; closed at the end.

    A model of the catalogue that is not on this disk is fetched after a question on a terminal, or without one after `--yes`.

    Args:
        options: those of `khola.api.load`.
    Raises:
        NotPulled: the model is not here and nobody agreed to fetch it.
    """
    from khola.api import load
    from khola.api.garbage import uncollected

    def timed() -> tuple[Model, float]:
        start = time.perf_counter()
        with uncollected():
            return load(name, settings=talk.settings, tell=talk.say, **options), time.perf_counter() - start

    try:
        model, load_s = timed()
    except NotPulled:
        from khola.cli.pull import bring

        if talk.settings.offline or not (yes or talk.interactive):
            raise
        talk.say("{model} is not on this disk yet", model=name)
        bring(name, talk, yes=yes)
        model, load_s = timed()
    try:
        yield model, load_s
    finally:
        model.close()


def say_header(model: Model | Remote, talk: Talk, load_s: float) -> None:
    """One dim line on a terminal: what answers, under which licence, with how much context."""
    from khola.cli.remote import Remote

    if not talk.err.isatty():
        return
    if isinstance(model, Remote):
        talk.aside("{model} · at {server} · found in {seconds} s", model=model.name, server=model.server, seconds=f"{load_s:.1f}")
        return
    licence, commercial = "?", "unknown"
    if model.card is not None:
        from khola.cards.catalogue import licence as licence_of

        record = licence_of(model.card.licence)
        licence, commercial = record.name, record.commercial
    talk.aside(
        "{model} · {size} MB · {licence} (commercial use: {commercial}) · {interpreter} · context {context} tokens · ready in {seconds} s",
        model=model.name,
        size=f"{model.loaded.weight_bytes / 1e6:,.0f}",
        licence=licence,
        commercial=talk.words(COMMERCIAL[commercial]),
        interpreter=model.loaded.ops.name,
        context=f"{model.context_tokens:,}",
        seconds=f"{load_s:.1f}",
    )


def hint_language(model: Model | Remote, prompt: str, talk: Talk) -> None:
    """Say that a Bengali prompt goes to a model that its lab did not train for Bengali."""
    if not _BENGALI.search(prompt) or model.card is None or not model.card.languages or "bn" in model.card.languages:
        return
    talk.say("hint: {model} was not made for Bengali; it knows: {languages}", model=model.name, languages=", ".join(model.card.languages))
    if better := better_model(model, talk, "bn"):
        talk.say("hint: for Bengali: khola chat {model}", model=better)


def hint_better(model: Model | Remote, talk: Talk) -> None:
    """After the first answer of the small default model, name one that is wiser and fits into this machine."""
    if model.name == DEFAULT_MODEL and talk.err.isatty() and not talk.quiet and (better := better_model(model, talk)):
        talk.aside("this model is small and quick, not wise; a better one that fits here: khola chat {model}", model=better)


def better_model(model: Model | Remote, talk: Talk, language: str = "") -> str:
    """The chat model of the catalogue with most weights that fits here and knows a language; empty when there is none."""
    from khola.cli.remote import Remote

    if isinstance(model, Remote):
        return ""
    from khola.api.fit import wisest_that_fits
    from khola.native.probe import probe

    card = wisest_that_fits(probe(talk.settings.models, measure=False), language=language, interpreter=model.loaded.ops.name)
    return card.name if card is not None and card.name != DEFAULT_MODEL else ""
