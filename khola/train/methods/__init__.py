"""Knows: training methods: a config and a loss each.

Does not know: loops and files.

A method is a module of this folder, found by its name, with

    NAME: str                                      of the method, and of its table in the TOML file
    class Config(Strict)                           what only this method decides; unknown keys raise
    def samples(setup) -> Sequence[Sample]         reads and checks all its data before anything is trained, or raises `BadRow`
    def source(samples, setup, model) -> Source    where batches come from: `Packed` for rows on disk, rollouts for methods on-line
    def loss(model, batch, config) -> Loss         a sum over what counts in one batch, with gradients

The loop owns everything else: accumulation, clipping, the optimiser, saving, figures. It divides the sum of a step's losses by the sum of
the `count`s of the step's batches, over all micro-batches and all processes, so that how a step is cut changes nothing. A batch says its
`count` before its loss is computed: target tokens by default; a method with another measure (pairs, answers) sets it when it packs.

What a method may ask of the model (`khola.train.model.Trainee`):

    model.log_probs(batch) -> [R]                  of the target of every trained row, with gradients; logits are never whole
    losses.per_row(model, batch, fn)               any function of each row's logits, chunk by chunk: (logits_CV, rows) -> [C, ...]
    with model.reference(): ...                    the model as it was before training; nothing in it has gradients

A source on-line (rollouts) keeps what it needs to go on in `state()`, plain JSON (Python writes floats exactly), and takes it back in
`restore`. It is asked for the batches of one step at a time, when the weights of the step before are in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from khola.errors import UnknownOption

if TYPE_CHECKING:
    from torch import Tensor

    from khola.data.packing import Batch, Sample
    from khola.settings import Settings
    from khola.train.model import Trainee

NAMES = ("sft", "dpo", "grpo", "k15", "distil")
"""Methods that there are; one module each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """What a batch gives."""

    sum: Tensor
    """Scalar, with gradients: summed over what the batch's `count` counts."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Further sums over the same, to be shown divided by the step's count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What a method may know of the run."""

    config: Any
    """Its own `Config`."""
    files: tuple[Path, ...]
    """Of data, as the user named them."""
    model: Trainee
    seed: int
    max_tokens: int
    """Of one sequence; longer ones are refused, cut or left out as `too_long` says."""
    too_long: str
    """"refuse", "cut" or "leave_out"."""
    batch_tokens: int
    """Of one micro-batch."""
    accumulate: int
    """Micro-batches of one step and process."""
    epochs: float
    steps: int | None
    """Of the whole run, where it was said."""
    rank: int = 0
    world: int = 1
    """Processes that train together, and which of them this is."""
    tell: Callable[..., None]
    """Hears what is unusual, but harmless."""
    settings: Settings | None = None
    """Where models lie, for methods that ask another one."""


class Source(Protocol):
    """Where the batches of a run come from."""

    @property
    def num_steps(self) -> int | None:
        """Steps until the data ends; None when it never does."""

    def next(self) -> Sequence[Batch]:
        """The micro-batches of the next step for this process: as many as every other process gets; empty at the end."""

    def state(self) -> dict[str, Any]:
        """Everything needed to go on from here, as JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


class Method(Protocol):
    """A module of this folder."""

    @property
    def NAME(self) -> str:
        """Of the method, and of its table in the TOML file."""

    @property
    def Config(self) -> type[Any]:
        """What only this method decides."""

    def samples(self, setup: Setup) -> Sequence[Sample]:
        """All its data, read and checked.

        Raises:
            BadRow: a row is broken, with its file and line.
        """

    def source(self, samples: Sequence[Sample], setup: Setup, model: Trainee) -> Source:
        """Where batches come from."""

    def loss(self, model: Trainee, batch: Batch, config: Any) -> Loss:
        """The loss of one batch."""


def method_named(name: str) -> Method:
    """The method of this name.

    Raises:
        UnknownOption: there is none.
    """
    if name not in NAMES:
        near = ", ".join(get_close_matches(name, NAMES, n=3, cutoff=0.0))
        raise UnknownOption("there is no training method {name!r}", hint="the nearest are: {near}", name=name, near=near)
    return cast(Method, import_module(f"{__name__}.{name}"))
