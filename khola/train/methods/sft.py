"""Supervised fine-tuning: the words of the assistant, or a text, are made more likely.

A row is one of

    {"messages": [{"role", "content", ...}, ...], "tools": [...]}     only what the assistant says is learned
    {"prompt": "...", "completion": "..."}                            only the completion is learned, with the token that ends a text
    {"text": "..."}                                                   all of it, with the token that ends a text
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import msgspec

from khola.chat.message import Tool
from khola.data.packing import Batch, Packed, Sample
from khola.data.rows import Row, read_rows
from khola.errors import BadRow, KholaError
from khola.train.config import Strict
from khola.train.dialogue import continued, messages_of, taught
from khola.train.methods import Loss, Setup
from khola.train.model import Trainee

NAME = "sft"


class Config(Strict, frozen=True):
    """The table [sft]."""

    turns: Literal["all", "last"] = "all"
    """Which answers of a conversation are learned."""


def samples(setup: Setup) -> list[Sample]:
    """All rows as sequences; errors as `collected`."""
    only_last = setup.config.turns == "last"
    return collected(setup, lambda row: sequences(row, setup, only_last=only_last))


def source(samples: Sequence[Sample], setup: Setup, model: Trainee) -> Packed:
    """Batches of whole sequences."""
    return batches_of(samples, setup)


def batches_of(samples: Sequence[Sample], setup: Setup, **more: Any) -> Packed:
    """Batches as the run wants them; `more` goes to `Packed`."""
    return Packed(
        samples,
        tokens=setup.batch_tokens,
        seed=setup.seed,
        epochs=setup.epochs,
        accumulate=setup.accumulate,
        rank=setup.rank,
        world=setup.world,
        **more,
    )


def loss(model: Trainee, batch: Batch, config: Config) -> Loss:
    """The sum of -log p over the learned tokens."""
    return Loss(sum=model.cross_entropy(batch))


def collected(setup: Setup, make: Callable[[Row], Sequence[Sample]], *, together: bool = False) -> list[Sample]:
    """The sequences of all rows, each with the place of its row.

    Args:
        setup: of the run.
        make: gives those of one row.
        together: where one sequence of a row is left out, the others are too.
    Raises:
        BadRow: a row is broken, teaches nothing, or is too long.
    """
    found: list[Sample] = []
    left: list[str] = []
    for row in read_rows(setup.files):
        place = f"{row.file}:{row.line}"
        try:
            made = [fit(sample, row, setup) for sample in make(row)]
        except BadRow:
            raise
        except KholaError as problem:
            raise row.located(problem) from None
        kept = [replace(sample, where=place) for sample in made if sample is not None]
        left += [place] * (len(made) - len(kept) if not together else len(kept) < len(made))
        found += kept if len(kept) == len(made) or not together else []
    if left:
        setup.tell(
            "{count} rows are longer than {limit} tokens and are left out: {places}",
            count=len(left),
            limit=setup.max_tokens,
            places=", ".join(left[:5]) + (", …" if len(left) > 5 else ""),
        )
    return found


def fit(sample: Sample, row: Row, setup: Setup) -> Sample | None:
    """A sequence of at most `max_tokens`; None where it is left out.

    Raises:
        BadRow: it is too long and nothing else was asked for, or nothing in it is learned.
    """
    if len(sample.ids) > setup.max_tokens:
        if setup.too_long == "leave_out":
            return None
        if setup.too_long == "refuse":
            raise BadRow(
                "{file}, line {line}: {tokens} tokens; at most {limit} are read",
                hint="raise packing.length, or let packing.too_long be cut or leave_out",
                **row.place,
                tokens=len(sample.ids),
                limit=setup.max_tokens,
            )
        sample = replace(sample, ids=sample.ids[: setup.max_tokens], learned=sample.learned[: setup.max_tokens])
    if not sample.learned[1:].any():
        raise BadRow("{file}, line {line}: no token of this row would be learned", **row.place)
    return sample


def sequences(row: Row, setup: Setup, *, only_last: bool) -> list[Sample]:
    """The sequences of one row.

    Args:
        row: as this module reads it.
        setup: of the run.
        only_last: of a conversation, learn the last answer only.
    Raises:
        BadRow: nobody reads such a row.
    """
    model, tokenizer = setup.model, setup.model.tokenizer
    if "messages" in row.value:
        row.only(("messages", "tools"))
        tools = _tools(row.value.get("tools") or [], row)
        return taught(model.format, tokenizer, messages_of(row.value["messages"]), tools, only_last=only_last)
    end = min(tokenizer.end_ids) if tokenizer.end_ids else None
    if "prompt" in row.value or "completion" in row.value:
        row.only(("prompt", "completion"))
        prompt = continued([], row.text("prompt"), tokenizer, None).ids.tolist()
        return [continued(prompt, row.text("completion"), tokenizer, end)]
    row.only(("text",))
    return [continued([], row.text("text"), tokenizer, end)]


def _tools(found: Any, row: Row) -> list[Tool]:
    try:
        return [msgspec.convert(one.get("function", one), Tool) for one in found]
    except (msgspec.ValidationError, AttributeError, TypeError) as problem:
        raise BadRow("{file}, line {line}: tools: {reason}", **row.place, reason=str(problem)) from None
