"""The slots that keep states of sequences, for models some of whose layers keep a state instead of every token.

A running sequence holds the slot of its state as of its last step, and another one that the step under way writes to: a step that broke off
can be made again, for what it reads is still there. A state cannot be shortened, so a prefix is found again only where somebody kept the
state behind it: a snapshot is the slot of such a state, held under the digest of its last page (`khola.engine.prefix`), which names all
tokens before. Snapshots are few; the one that was not used for longest makes room for a new one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

SNAPSHOTS = 8
"""Kept at most: states are as large as thousands of tokens in pages."""


def slots_for(max_rows: int) -> int:
    """Slots that never run out.

    Args:
        max_rows: sequences that run at once.
    """
    return 2 * max_rows + SNAPSHOTS


def rows_within(available_bytes: int | None, state_bytes: int, most: int) -> int:
    """Sequences that may run at once when nobody says how many: their slots take half of the memory at most, and one always may.

    Args:
        available_bytes: memory for slots and pages; None when it is not known.
        state_bytes: memory of one slot; 0 for models without states.
        most: rows where memory is no matter.
    """
    if available_bytes is None or not state_bytes:
        return most
    return min(most, max(1, (available_bytes // 2 // state_bytes - SNAPSHOTS) // 2))


@dataclass
class Held:
    """Slots of one sequence."""

    now: int = -1
    """Its state behind the tokens that are known; -1 before the first."""
    next: int = -1
    """What the next step writes to; -1 before it is planned."""
    kept: bytes | None = None
    """Digest of the snapshot inside its answer, which a later one replaces."""


class States:
    """The book of slots; the planes themselves belong to the interpreter.

    Args:
        max_rows: sequences that run at once.
    """

    def __init__(self, max_rows: int) -> None:
        self.total = slots_for(max_rows)
        self._holders = [0] * self.total
        # The last one first: slots that were used have memory already.
        self._free = list(reversed(range(self.total)))
        self._snapshots: OrderedDict[bytes, int] = OrderedDict()

    @property
    def used(self) -> int:
        """Slots that sequences hold."""
        held = list(self._holders)
        for slot in self._snapshots.values():
            held[slot] -= 1
        return sum(count > 0 for count in held)

    @property
    def kept(self) -> int:
        """Snapshots."""
        return len(self._snapshots)

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    def begin(self, held: Held) -> None:
        """Have a slot for the next step to write to."""
        if held.next < 0:
            held.next = self._free.pop()
            self._holders[held.next] = 1

    def advance(self, held: Held) -> None:
        """Go on from what the step has written."""
        self._release(held.now)
        held.now, held.next = held.next, -1

    def adopt(self, held: Held, digest: bytes) -> None:
        """Go on from a snapshot."""
        self._snapshots.move_to_end(digest)
        self._release(held.now)
        held.now = self._snapshots[digest]
        self._holders[held.now] += 1

    def leave(self, held: Held) -> None:
        """Let go of both slots."""
        self._release(held.now)
        self._release(held.next)
        held.now, held.next, held.kept = -1, -1, None

    def keep(self, held: Held, digest: bytes, in_answer: bool) -> None:
        """Make a snapshot of what a sequence has got to.

        Args:
            held: of the sequence.
            digest: of the page that ends there.
            in_answer: it replaces an earlier one inside the same answer.
        """
        if digest in self._snapshots:
            self._snapshots.move_to_end(digest)
            return
        if in_answer:
            if held.kept is not None:
                self.forget(held.kept)
            held.kept = digest
        while len(self._snapshots) >= SNAPSHOTS:
            self.forget(next(iter(self._snapshots)))
        self._snapshots[digest] = held.now
        self._holders[held.now] += 1

    def knows(self, digest: bytes) -> bool:
        """Whether there is a snapshot behind a page."""
        return digest in self._snapshots

    def forget(self, digest: bytes) -> None:
        """Drop a snapshot, if it is there."""
        self._release(self._snapshots.pop(digest, -1))

    def _release(self, slot: int) -> None:
        if slot < 0:
            return
        self._holders[slot] -= 1
        if not self._holders[slot]:
            self._free.append(slot)
