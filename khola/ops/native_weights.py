"""The matrices of a model in packed form, by the names of the weights in them; all programs of a model share them.

A matrix is packed when a recorded program shows what it is joined with, and read from its file only then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from khola.errors import OurFault
from khola.native.pack import Packed, Plan, outputs_of, pack, plan
from khola.ops.vocabulary import Weight

RELEASE_BYTES = 16 << 20
"""Packed bytes after which what was read of a file may leave memory."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Weights that are one matrix in a program."""

    weights: tuple[Weight, ...]
    gated: bool
    """Two weights whose outputs alternate in strips."""
    head: bool = False
    """It gives logits in one of the programs."""

    @property
    def name(self) -> str:
        """The same for the same matrix in every program."""
        return ("~" if self.gated else "+").join(weight.name for weight in self.weights)


def joined(facts: Mapping[str, Any]) -> Joined:
    """The matrix of a recorded instruction."""
    return Joined(facts["weights"], bool(facts.get("gated")), bool(facts.get("head")))


def matrices_of(facts: Mapping[str, Any]) -> list[Joined]:
    """All matrices of a recorded instruction: a mixture of experts has a second one."""
    first = [joined(facts)] if "weights" in facts else []
    return first + ([Joined(facts["down"], False)] if "down" in facts else [])


def with_heads(matrices: Sequence[Joined]) -> list[Joined]:
    """The same, where a matrix that is a head in one place (and a table in another) is one everywhere."""
    heads = {matrix.name for matrix in matrices if matrix.head}
    return [replace(matrix, head=matrix.name in heads) for matrix in matrices]


class NativeWeights:
    """Packed matrices by name."""

    def __init__(self) -> None:
        self._packed: dict[str, Packed] = {}

    @property
    def matrices(self) -> Mapping[str, Packed]:
        """All that are packed."""
        return self._packed

    def adopt(self, wanted: Sequence[Joined], matrices: Mapping[str, Packed]) -> bool:
        """Take matrices that were packed before, unless one is missing or has another form than packing would give it now."""
        for matrix in wanted:
            found = matrices.get(matrix.name)
            if found is None or not found.has_form_of([weight.data for weight in matrix.weights], matrix.gated, matrix.head):
                return False
        self._packed.update({matrix.name: matrices[matrix.name] for matrix in wanted})
        return True

    def packed(self, matrix: Joined) -> Packed:
        """A matrix that is packed by now.

        Raises:
            OurFault: it is not.
        """
        found = self._packed.get(matrix.name)
        if found is None:
            raise OurFault("the matrix {name} was not settled before a program needed it", name=matrix.name)
        return found

    def settle(self, wanted: Sequence[Joined], threads: int, release: Callable[[], None]) -> None:
        """Pack what is not packed yet, and keep it in memory.

        Args:
            wanted: a name may stand there more than once.
            threads: that pack at once; the library does its work without Python's lock.
            release: called whenever some megabytes are packed.
        Raises:
            NoKernel: a number format that the packer does not know.
            NonFinite: a weight or a scale is NaN or infinite.
        """
        pack_all([matrix for matrix in wanted if matrix.name not in self._packed], threads, release, self._packed.__setitem__)


def plans(wanted: Sequence[Joined]) -> dict[str, Plan]:
    """What packing would give, by name.

    Raises:
        NoKernel: a number format that the packer does not know.
    """
    return {matrix.name: plan(**_parts(matrix)) for matrix in wanted}


def pack_all(wanted: Sequence[Joined], threads: int, release: Callable[[], None], put: Callable[[str, Packed], None]) -> None:
    """Pack matrices and hand each on as soon as it is packed, in any order and from several threads.

    Args:
        wanted: a name may stand there more than once.
        threads: that pack at once.
        release: called whenever some megabytes are packed.
        put: takes a name and what was packed.
    Raises:
        NoKernel: a number format that the packer does not know.
        NonFinite: a weight or a scale is NaN or infinite.
    """
    # The largest first: two threads end at about the same time.
    order = sorted({matrix.name: matrix for matrix in wanted}.values(), key=lambda matrix: -sum(outputs_of(w.data) for w in matrix.weights))
    since = 0

    def one(matrix: Joined) -> None:
        nonlocal since
        packed = pack(**_parts(matrix), release=release)
        put(matrix.name, packed)
        since += packed.nbytes
        if since >= RELEASE_BYTES:
            since = 0
            release()

    if threads == 1 or len(order) < 2:
        for matrix in order:
            one(matrix)
    else:
        _in_threads(threads, one, order)
    if order:
        release()


def _in_threads(threads: int, one: Callable[[Joined], None], order: Sequence[Joined]) -> None:
    """The call for each; after the first that fails no other begins."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(one, matrix) for matrix in order]
        try:
            for done in running:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _parts(matrix: Joined) -> dict[str, Any]:
    """What `pack` and `plan` take of a matrix."""
    return {
        "parts": [weight.data for weight in matrix.weights],
        "biases": [weight.bias for weight in matrix.weights],
        "alternate": matrix.gated,
        "head": matrix.head,
    }
