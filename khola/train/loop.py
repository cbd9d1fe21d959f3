"""The training loop: batches in, a model out, and at any moment a checkpoint from which it goes on to the same bits.

```
find -> model -> samples, all checked -> [ batches -> losses -> gradients -> clip -> move -> publish -> save ] -> result
```
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch

from khola import __version__
from khola.data.packing import Batch, Sample
from khola.data.rows import hashes
from khola.errors import AskedWrong, NonFinite
from khola.fetch.disk import sha256_of
from khola.fetch.locks import locked
from khola.loader import find
from khola.settings import Settings
from khola.store.strict_json import load_object
from khola.train import curves, distributed, result, save
from khola.train.config import Run, toml
from khola.train.distributed import Group
from khola.train.methods import Method, Setup, Source, method_named
from khola.train.model import Trainee
from khola.train.optim import Gradients, Optimiser, rate

MOST_BAD = 10
"""Steps in a row whose numbers are not finite before a run ends."""

Tell = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A step that is done."""

    step: int
    """From 1."""
    steps: int
    """Of the whole run."""
    figures: Mapping[str, float | None]
    """loss, lr, norm, tokens, tokens_per_s and what the method shows; None where a step was left out."""
    left_s: float
    """Seconds until the end, by the mean of the last steps."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that is done."""

    out: Path
    model: Path
    steps: int
    tokens: int
    loss: float | None
    """Of the last step."""
    first: bool = True
    """Whether this process is the one that talks."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A run before its first step."""

    run: Run
    method: Method
    model: Trainee
    setup: Setup
    samples: Sequence[Sample]


def prepare(run: Run, settings: Settings, tell: Tell, group: Group | None = None) -> Prepared:
    """Model and data, read and checked.

    Raises:
        UnknownModel, NotPulled, BadFiles: the model is not here, or damaged.
        BadRow: a row is broken; or nothing in the data would be learned.
    """
    group = group or Group()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    method = method_named(run.method)
    located = find(run.model, settings)
    model = Trainee(
        located, device=run.device, dtype=run.dtype, lora=run.lora, seed=run.seed, recompute=run.recompute, chat=run.chat, tell=tell
    )
    setup = Setup(
        config=run.options,
        files=tuple(Path(name).expanduser() for name in run.data),
        model=model,
        seed=run.seed,
        max_tokens=run.packing.length,
        too_long=run.packing.too_long,
        batch_tokens=max(run.packing.tokens, run.packing.length),
        accumulate=run.packing.accumulate,
        epochs=run.epochs,
        steps=run.steps,
        rank=group.rank,
        world=group.world,
        tell=tell,
        settings=settings,
    )
    samples = method.samples(setup)
    if not any(sample.learned[1:].any() for sample in samples):
        raise AskedWrong("nothing in the data would be learned", hint="`khola train … --preview` shows which tokens are")
    return Prepared(run=run, method=method, model=model, setup=setup, samples=samples)


def train(run: Run, settings: Settings, *, tell: Tell, progress: Callable[[Progress], None]) -> Finished:
    """A whole run; given again, it goes on from its last checkpoint.

    Args:
        run: what to do.
        settings: where models lie, and how many threads to use.
        tell: hears what is unusual, but harmless.
        progress: hears of every step.
    Raises:
        AskedWrong: the folder holds another run, or one that is done.
        BadFiles: model or data are damaged; `BadRow` names file and line.
        NonFinite: ten steps in a row gave numbers that are not finite.
        Busy: another process writes to the folder.
        NoDisk, NoRoom: a checkpoint cannot be written; the one before stays.
    """
    group = distributed.joined(run.parallel)
    out = Path(run.out).expanduser().absolute()
    try:
        with locked(out / ".lock") if group.first else nullcontext(), _quick_floats():
            hushed = tell if group.first else (lambda *_, **__: None)
            begin(run, settings, out, group)
            prepared = prepare(run, settings, hushed, group)
            loop = Loop(prepared, out, group, hushed, progress if group.first else (lambda _: None))
            loop.resume()
            loop.go()
            return loop.finish()
    finally:
        group.leave()


def begin(run: Run, settings: Settings, out: Path, group: Group) -> None:
    """Check that a folder may hold this run, and write down what the run is.

    Raises:
        AskedWrong: another run is there.
    """
    located = find(run.model, settings)
    files = sorted(located.path.glob("*.safetensors")) if located.path.is_dir() else [located.path]
    record = {
        "khola": __version__,
        "fingerprint": run.fingerprint(),
        "model": {"name": located.name, "files": {path.name: sha256_of(path) for path in files}},
        "data": hashes([Path(name).expanduser() for name in run.data]),
    }
    place = out / "run.json"
    if place.exists():
        before = load_object(place)
        for key, said in (("fingerprint", "settings"), ("model", "model"), ("data", "data")):
            if before.get(key) != record[key]:
                raise AskedWrong(
                    "{folder} holds another run: its {what} differs",
                    hint="give another --out; `config.toml` there says what that run is",
                    folder=str(out),
                    what=said,
                )
        return
    if group.first:
        result.write_text(out / "config.toml", toml(run.table()))
        result.write_json(place, record)


@final
class Loop:
    """One run in one process.

    Args:
        prepared: model and data.
        out: folder of the run.
        group: the processes that train together.
        tell, progress: as of `train`.
    """

    def __init__(self, prepared: Prepared, out: Path, group: Group, tell: Tell, progress: Callable[[Progress], None]) -> None:
        run, model = prepared.run, prepared.model
        torch.manual_seed(run.seed + group.rank)
        self._run, self._method, self._model, self._group = run, prepared.method, model, group
        self._out, self.tell, self._progress = out, tell, progress
        self._source: Source = prepared.method.source(prepared.samples, prepared.setup, model)
        self._samples = prepared.samples
        steps = [count for count in (run.steps, self._source.num_steps) if count is not None]
        if not steps:
            raise AskedWrong("the method {method} never ends by itself; say how many steps", method=run.method)
        self.steps = min(steps)
        distributed.shard(model, group)
        self._gradients = Gradients(model.masters, model.parameters, sharded=group.sharded)
        self._optimiser = Optimiser(model.masters, run.optimiser, run.lr, f"{model.architecture.LAYERS}.")
        if group.sharded and run.optimiser.name == "muon":
            raise AskedWrong("Muon needs whole matrices, and fsdp cuts them", hint="use parallel=ddp, or optimiser.name=adamw")
        self._state = _State()

    @property
    def _folder(self) -> Path:
        return self._out / "checkpoints"

    def resume(self) -> None:
        """Go on from the newest valid checkpoint, if there is one."""
        if self._group.first:
            save.tidy(self._folder)
        self._group.wait()
        saved = save.newest(self._folder, self.tell)
        if saved is None:
            return
        parameters = self._model.parameters
        with torch.no_grad():
            for name, values in saved.tensors["weights"].items():
                self._model.masters[name].copy_(distributed.share(values, parameters[name]))
            for name, values in saved.tensors["optimiser"].items():
                self._optimiser.moments[name].copy_(distributed.share(values, parameters[name[2:]]))
        self._model.publish()
        state = saved.state
        self._optimiser.steps = state["updates"]
        self._source.restore(state["source"][self._group.rank if len(state["source"]) > 1 else 0])
        torch.set_rng_state(torch.tensor(state["torch_rng"], dtype=torch.uint8))
        self._state = _State(step=saved.step, tokens=state["tokens"], bad=state["bad"], history=list(state["history"]))
        if state["bits"] != self._bits():
            self.tell("this machine or these libraries are not those of the checkpoint: the run goes on, but not to the same bits")
        self.tell("going on behind step {step} of {steps}", step=saved.step, steps=self.steps)

    def go(self) -> None:
        """All steps that are left."""
        while self._state.step < self.steps:
            batches = self._source.next()
            if not batches:
                break
            figures = self._step(batches)
            self._state.history.append(figures)
            self._progress(self._told(figures))
            if self._state.step % self._run.save.every == 0 or self._state.step == self.steps:
                self._save()

    def finish(self) -> Finished:
        """Write the model; the run is done."""
        distributed.unshard(self._model, self._group)
        model = self._out / "model"
        if self._group.first:
            result.write_model(self._model, model, self._run.result)
            if self._run.lora is not None:
                result.write_adapters(self._model.masters, self._run.lora, self._model.name, self._out / "adapter")
        self._group.wait()
        history = self._state.history
        loss = history[-1]["loss"] if history else None
        state, first = self._state, self._group.first
        return Finished(out=self._out, model=model, steps=state.step, tokens=state.tokens, loss=loss, first=first)

    def _step(self, batches: Sequence[Batch]) -> dict[str, Any]:
        """One update; weights stay as they are where a number is not finite."""
        begun, state, group = time.perf_counter(), self._state, self._group
        count = group.total(sum(batch.count for batch in batches))
        if not count:
            raise AskedWrong("no token of step {step} would be learned", step=state.step + 1)
        self._gradients.clear()
        loss, figures = 0.0, dict[str, float]()
        for batch in batches:
            part, shown = self._backward(batch, count)
            loss += part
            for key, value in shown.items():
                figures[key] = figures.get(key, 0.0) + value
        group.add_up(self._gradients.sums, self._model.masters)
        norm = math.sqrt(group.squares(self._gradients.squares()))
        loss = group.total(loss) / count
        share = rate(state.step, self.steps, self._run.optimiser)
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            clip = self._run.optimiser.clip
            self._gradients.scale(clip / norm if clip and norm > clip else 1.0)
            self._optimiser.move(self._gradients.sums, share)
            self._model.publish()
        self._gradients.clear()
        tokens = int(group.total(sum(len(batch.ids_T) for batch in batches)))
        self._count_bad(finite, batches)
        state.step += 1
        state.tokens += tokens
        seconds = time.perf_counter() - begun
        return {
            "step": state.step,
            "loss": loss if finite else None,
            "lr": self._run.lr * share,
            "norm": norm if finite else None,
            "tokens": tokens,
            "tokens_per_s": tokens / seconds,
            "seconds": seconds,
            **{key: group.total(value) / count for key, value in figures.items()},
        }

    def _backward(self, batch: Batch, count: float) -> tuple[float, Mapping[str, float]]:
        """Gradients of one batch into the sums; its loss, and what else is shown."""
        shown: dict[str, float] = {}

        def work() -> torch.Tensor:
            loss = self._method.loss(self._model, batch, self._run.options)
            shown.update(loss.figures)
            return loss.sum / count

        loss: torch.Tensor = self._model.whole(work)
        torch.autograd.backward(loss * self._group.factor)
        return float(loss.detach()) * count, shown

    def _count_bad(self, finite: bool, batches: Sequence[Batch]) -> None:
        """Count steps in a row that were left out.

        Raises:
            NonFinite: too many.
        """
        self._state.bad = 0 if finite else self._state.bad + 1
        if finite:
            return
        places = sorted({self._samples[n].where for batch in batches for n in batch.samples if n < len(self._samples)})
        self.tell("step {step} gave numbers that are not finite; the weights stay as they are", step=self._state.step + 1)
        if self._state.bad >= MOST_BAD:
            raise NonFinite(
                "{count} steps in a row gave numbers that are not finite; the last one read {places}",
                hint="lower optimiser.lr, or look at these rows",
                count=self._state.bad,
                places=", ".join(places[:8]),
            )

    def _told(self, figures: Mapping[str, Any]) -> Progress:
        recent = [one["seconds"] for one in self._state.history[-20:]]
        left = (self.steps - self._state.step) * sum(recent) / len(recent)
        return Progress(step=self._state.step, steps=self.steps, figures=figures, left_s=left)

    def _save(self) -> None:
        """A checkpoint and the curves; older checkpoints go."""
        model, group = self._model, self._group
        weights = {name: distributed.whole(one, model.parameters[name]) for name, one in model.masters.items()}
        moments = {name: distributed.whole(one, model.parameters[name[2:]]) for name, one in self._optimiser.moments.items()}
        sources = distributed.gathered(self._source.state(), group)
        if group.first:
            state = {
                "tokens": self._state.tokens,
                "bad": self._state.bad,
                "history": self._state.history,
                "updates": self._optimiser.steps,
                "source": sources,
                "torch_rng": torch.get_rng_state().tolist(),
                "bits": self._bits(),
            }
            save.write(self._folder, self._state.step, {"weights": weights, "optimiser": moments}, state)
            save.purge(self._folder, self._run.save.keep)
            result.write_text(self._out / "curves.html", curves.page(f"{self._model.name}: {self._run.method}", self._state.history))
        group.wait()

    def _bits(self) -> dict[str, Any]:
        """What else decides the last bit of a number."""
        return {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "processes": self._group.world,
        }


@dataclass(slots=True)
class _State:
    """How far a run is."""

    step: int = 0
    tokens: int = 0
    bad: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def _quick_floats() -> Iterator[None]:
    """Numbers too small for a normal float are zero: they are no use here, and slow a processor down many times."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
