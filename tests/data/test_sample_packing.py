"""Samples become batches: each exactly once an epoch, in an order that only the seed decides."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from khola.data.packing import Packed, Sample, packed, plan
from khola.errors import OurFault


def samples(count: int = 300, seed: int = 0) -> list[Sample]:
    """Of several lengths; the first half of each is not learned."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        length = int(rng.integers(2, 60))
        made.append(Sample(ids=np.full(length, number, np.int32), learned=np.arange(length) >= length // 2, where=f"row {number}"))
    return made


def source(**changes: object) -> Packed:
    """All of them, two micro-batches a step."""
    given = {"tokens": 128, "seed": 5, "epochs": 2, "accumulate": 2, **changes}
    return Packed(samples(), **given)


def census(batches: list[list[int]]) -> Counter[int]:
    """How often each sample stands in batches."""
    return Counter(number for batch in batches for number in batch)


def drained(packs: Packed) -> list[list[int]]:
    """Samples of every batch until the end."""
    found = []
    while batches := packs.next():
        found += [list(batch.samples) for batch in batches if batch.count]
    return found


def test_every_sample_stands_in_one_batch() -> None:
    lengths = [len(sample.ids) for sample in samples(2000)]
    bins = plan(lengths, 128, 0, 0)
    assert census(bins) == dict.fromkeys(range(2000), 1)
    assert all(sum(lengths[number] for number in one) <= 128 for one in bins)
    assert sum(lengths) / (128 * len(bins)) > 0.97


def test_the_order_is_one_of_seed_and_epoch() -> None:
    lengths = [len(sample.ids) for sample in samples()]
    assert plan(lengths, 128, 1, 2) == plan(lengths, 128, 1, 2)
    assert plan(lengths, 128, 1, 2) != plan(lengths, 128, 1, 3) != plan(lengths, 128, 2, 2)


def test_a_sample_that_is_longer_than_a_batch_is_alone() -> None:
    assert sorted(map(sorted, plan([500, 3, 4], 10, 0, 0))) == [[0], [1, 2]]


def test_a_batch_learns_the_next_token_and_never_across_sequences() -> None:
    both = [
        Sample(ids=np.array([1, 2, 3], np.int32), learned=np.array([True, False, True])),
        Sample(ids=np.array([4, 5], np.int32), learned=np.array([True, True])),
    ]
    batch = packed(both, [0, 1])
    assert batch.ids_T.tolist() == [1, 2, 3, 4, 5]
    assert batch.rows_R.tolist() == [1, 3]
    assert batch.targets_R.tolist() == [3, 5]
    assert batch.count == 2
    assert batch.owners.tolist() == [0, 1]
    assert batch.step.positions_T.tolist() == [0, 1, 2, 0, 1]
    assert batch.step.rows_R.tolist() == [1, 3]


def test_a_restart_skips_and_repeats_nothing() -> None:
    """At every step of two epochs, also at the edge between them."""
    whole = drained(source())
    assert census(whole) == dict.fromkeys(range(300), 2)
    for stop in range(source().num_steps):
        first = source()
        taken = [list(batch.samples) for _ in range(stop) for batch in first.next()]
        second = source()
        second.restore(first.state())
        assert taken + drained(second) == whole


def test_a_place_in_other_data_is_refused() -> None:
    with pytest.raises(OurFault):
        source().restore(source(tokens=64).state())


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches(world: int) -> None:
    parts = [source(rank=rank, world=world) for rank in range(world)]
    assert {part.num_steps for part in parts} == {source(accumulate=2 * world).num_steps}
    everything: list[list[int]] = []
    for _ in range(parts[0].num_steps):
        steps = [part.next() for part in parts]
        assert len({len(step) for step in steps}) == 1
        everything += [list(batch.samples) for step in steps for batch in step if batch.count]
    assert census(everything) == dict.fromkeys(range(300), 2)


def test_a_fraction_of_an_epoch() -> None:
    half = drained(source(epochs=0.5))
    assert half == drained(source(epochs=1))[: len(half)]
    assert len(half) == round(0.5 * len(drained(source(epochs=1))))


def test_groups_stay_together() -> None:
    pairs = [[number, number + 1] for number in range(0, 300, 2)]
    for batch in drained(source(groups=pairs)):
        assert all((number ^ 1) in batch for number in batch)
