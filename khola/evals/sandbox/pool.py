"""Many runs at once: a sandbox for every core, as no run is waited for by computing."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from khola.evals.sandbox.level import chosen
from khola.evals.sandbox.limits import Limits
from khola.evals.sandbox.process import Layers
from khola.evals.sandbox.run import Sandbox

Task = TypeVar("Task")
Result = TypeVar("Result")


class Pool:
    """Sandboxes of the same kind; close it, or use it as a context.

    Args:
        workers: how many run at once; 0 means one a core that this process may use. With more runs than
            cores, time on the clock decides more often.
        limits: what a run may take.
        layers: what stands around it; without a choice the best of this machine.
    Raises:
        NoSandbox: nothing on this machine can hold a program.
    """

    def __init__(self, workers: int = 0, limits: Limits | None = None, layers: Layers | None = None) -> None:
        held = layers if layers is not None else chosen()
        count = workers or len(os.sched_getaffinity(0))
        self._free: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()
        self._all: list[Sandbox] = []
        try:
            for _ in range(count):
                self._all.append(Sandbox(held, limits))
                self._free.put(self._all[-1])
        except BaseException:
            self.close()
            raise
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="sandbox")

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._threads.shutdown()

    def close(self) -> None:
        """End all of them."""
        for sandbox in self._all:
            sandbox.close()

    @contextmanager
    def borrowed(self) -> Iterator[Sandbox]:
        """A sandbox for one thread; waits until one is free."""
        sandbox = self._free.get()
        try:
            yield sandbox
        finally:
            self._free.put(sandbox)

    def map(self, act: Callable[[Sandbox, Task], Result], tasks: Iterable[Task]) -> list[Result]:
        """The results of an act for every task, in their order; an error of one ends all."""

        def one(task: Task) -> Result:
            with self.borrowed() as sandbox:
                return act(sandbox, task)

        return list(self._threads.map(one, tasks))
