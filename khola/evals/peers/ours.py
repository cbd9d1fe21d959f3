"""khola as a contestant: like every peer, in processes of its own."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from khola import __version__
from khola.evals.bench.figures import names_of
from khola.evals.bench.process import Outcome, late, readings_of, run_process
from khola.evals.bench.race import Task, Turn
from khola.evals.bench.worker import Orders, command
from khola.evals.peers.judge import START_PROMPT, START_TOKENS, judged, started


@dataclass(frozen=True, kw_only=True)
class Khola:
    """One model in one interpreter.

    Args:
        model: a name or a path, as `khola chat` takes it.
        interpreter: "numpy", "torch" or another that `khola.loader` knows.
        start_context: tokens of the context when a start is timed.
        cache: how the cache keeps numbers.
        precise: whether the native one rounds nothing but sums.
    """

    model: str
    interpreter: str
    start_context: int
    cache: str = "auto"
    precise: bool = False
    name: str = "khola"

    @property
    def version(self) -> str:
        """Of khola, and what computes."""
        cache = "" if self.cache == "auto" else f", cache {self.cache}"
        return f"{__version__} ({self.interpreter}{cache}{', precise' if self.precise else ''})"

    def run(self, task: Task) -> Turn:
        """Measure one group in a new process; see `Contestant`."""
        if task.group == "start":
            return started(self._start_command(task), task)
        scores = task.scratch / f"{self.name}.npy"
        outcome = self._work(task, scores)
        if task.group == "quality" and outcome.code == 0:
            return Turn(judged(task, scores))
        readings = late(names_of(task.group, task.work), readings_of(outcome), outcome)
        return Turn(readings, "" if outcome.code == 0 else outcome.detail)

    def reference(self, task: Task, path: Path) -> Outcome:
        """Write this model's log-probabilities as those that all others are compared with."""
        return self._work(task, path)

    def _work(self, task: Task, scores: Path) -> Outcome:
        orders = Orders(
            group=task.group,
            model=self.model,
            interpreter=self.interpreter,
            cache=self.cache,
            precise=self.precise,
            threads=task.threads,
            seed=task.seed,
            work=task.work,
            windows=task.windows,
            logprobs=str(scores),
        )
        return run_process(command(orders), task.timeout_s)

    def _start_command(self, task: Task) -> list[str]:
        options = ["--max-tokens", str(START_TOKENS), "--temperature", "0", "--context", str(self.start_context)]
        options += ["--interpreter", self.interpreter, "--cache", self.cache, "--quiet", "--offline"]
        options += ["--precise"] if self.precise else []
        return [sys.executable, "-m", "khola", "complete", self.model, START_PROMPT, *options]
