"""The best logits of a row: found through block maxima, made exact where the head was read half, changed as the sampler says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from khola.engine.request import Sampling
from khola.engine.sampler import Chooser
from khola.errors import NonFinite
from khola.native.pack import Packed, pack
from khola.ops.native_scores import Arrays, Firsts, Handle, NativeRow, NativeScores
from khola.ops.scores import Changes
from tests.native.made_blocks import made
from tests.native.rig import Raw, Rig, rounded, splits
from tests.needs import needs_library

pytestmark = needs_library

Array = NDArray[Any]
NONE = Changes({})


class Heads:
    """A program that is only a head, and its rows."""

    def __init__(self, packed: Packed, x: Array, isa: str = "", threads: int = 1) -> None:
        self.n, self.k, self.rows = packed.form.n, packed.form.k, len(x)
        self.rig = Rig(isa, threads=threads, max_rows=self.rows, max_context=self.rows)
        from_x = self.rig.feed(x)
        wanted = self.rig.op("rows", [from_x], self.k, wanted=True)
        self.rig.op("linear", [wanted], self.n, w0=self.rig.weight(packed), flags=["head"], wanted=True)
        self.rig.build()
        # The model is freed with the last who looks at its scores.
        self.rig.owned = False
        self._handle = Handle(self.rig.model)

    def scores(self, best: int) -> tuple[NativeScores, Array]:
        """Scores, and the margins of their blocks; 0: all exact."""
        arrays = Arrays(self.rows, self.n, self.k)
        blocks = -(-self.n // 32)
        # Views of the memory that the library is told of.
        parts = np.split(arrays._memory, np.cumsum([self.rows * blocks, self.rows * blocks]))
        arrays._memory[:] = arrays.logits_RV[:] = np.nan
        more = {"margins": parts[1], "inputs": parts[2], "best": np.full(self.rows, best, np.int32)} if best else {}
        kinds = np.ones(self.rows, np.uint8)
        answer = self.rig.step(range(self.rows), logits=arrays.logits_RV, block_max=parts[0], answers=kinds, **more)
        assert answer in (0, 1)
        return NativeScores(self._handle, arrays, answer == 1, range(self.rows)), parts[1].reshape(self.rows, blocks)


def sorted_best(row: Array, most: int) -> list[int]:
    """By sorting everything."""
    return np.lexsort((np.arange(len(row)), -row.astype(np.float64)))[:most].tolist()


def random_head(n: int = 3000, k: int = 256, rows: int = 3, seed: int = 0) -> tuple[Raw, Array]:
    """A head as models have them: values spread evenly over the codes, rows with some large inputs, and one token that stands out."""
    random = np.random.default_rng(seed)
    raw = made("Q8_0", n, k, seed)
    x = random.standard_normal((rows, k)) * np.exp(random.standard_normal((rows, k)))
    likely = raw.float32()[random.integers(0, n, rows)]
    x += likely * (np.linalg.norm(x, axis=1) / np.linalg.norm(likely, axis=1))[:, None] / 3
    return raw, rounded(x)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_rough_rows_give_the_best_of_whole_ones(rows: int, isa: str) -> None:
    """Bit for bit, on every number of threads; most of the head is read half, and the margins hold for what was not made exact."""
    if not splits(isa):
        pytest.skip("splits no head")
    raw, x = random_head(rows=rows)
    packed = pack([raw], head=True)
    assert packed.form.split
    whole = Heads(packed, x, isa).scores(0)[0].whole()
    for best, threads in ((1, 1), (1, 2), (20, 2), (40, 3)):
        scores, margins = Heads(packed, x, isa, threads).scores(best)
        assert scores.rough
        off = np.abs(scores.whole() - whole)
        bound = np.repeat(margins, 32, axis=1)[:, : whole.shape[1]]
        assert (off <= bound).all()
        assert 1.5 * off.max() > bound.max() / 8, "the margins are eight deviations, not eighty"
        assert best > 1 or (margins > 0).mean() > 0.5, "most of the head was read again"
        for at in range(rows):
            for most in (best, 2 * best, 100):
                ids, logits = scores.row(at).best(most, packed.form.n, NONE) or pytest.fail("not finite")
                assert ids.tolist() == sorted_best(whole[at], most)
                np.testing.assert_array_equal(logits, whole[at][ids])


def test_a_rough_row_is_the_same_whoever_is_beside_it(isa: str) -> None:
    if not splits(isa):
        pytest.skip("splits no head")
    raw, x = random_head(rows=4)
    packed = pack([raw], head=True)
    together = Heads(packed, x, isa).scores(5)[0]
    for at in (0, 3):
        alone = Heads(packed, x[at : at + 1], isa).scores(5)[0]
        for row in (together.row(at).best(5, packed.form.n, NONE), alone.row(0).best(5, packed.form.n, NONE)):
            assert row is not None
        np.testing.assert_array_equal(together.row(at).best(5, 3000, NONE)[1], alone.row(0).best(5, 3000, NONE)[1])


def test_a_margin_that_is_too_narrow_is_noticed() -> None:
    """With a tenth of the margins the approximations decide, and a logit that is among the best is missed somewhere."""
    if not splits(""):
        pytest.skip("splits no head")
    missed = 0
    for seed in range(4):
        raw, x = random_head(seed=seed)
        packed = pack([raw], head=True)
        spreads = packed.data[-packed.form.n_pad // 32 * packed.form.k_pad // 32 * 4 :].view(np.float32)
        whole = Heads(packed, x).scores(0)[0].whole()
        spreads *= 1e-4
        scores, _ = Heads(packed, x).scores(1)
        missed += sum((scores.row(at).best(40, 3000, NONE) or ([],))[0].tolist() != sorted_best(whole[at], 40) for at in range(3))
    assert missed


def chosen_head(values: Array) -> tuple[Packed, Array]:
    """A head that gives exactly these logits, [R, V]: bfloat16 rows times unit rows."""
    rows, n = values.shape
    return pack([Raw("F32", (n, 64), np.pad(values.T, ((0, 0), (0, 64 - rows))).astype(np.float32).tobytes())]), np.eye(rows, 64)


LOGITS = st.sampled_from([-90.0, -3.0, -1.5, -0.0, 0.0, 0.25, 1.0, 2.0, 7.5, 7.53125])


@settings(deadline=None, max_examples=60)
@given(data=st.data(), n=st.integers(1, 300), seed=st.integers(0, 1000), position=st.integers(0, 5))
def test_searched_tokens_are_those_of_the_numpy_sampler(data: st.DataObject, n: int, seed: int, position: int) -> None:
    """Every sampling, ties and penalties included, over an answer that grows."""
    values = np.random.default_rng(seed).choice([-90, -3, -1.5, -0.0, 0, 0.25, 1, 2, 7.5, 7.53125], (2, n))
    packed, x = chosen_head(values)
    scores, _ = Heads(packed, x).scores(0)
    tokens = data.draw(st.integers(1, n))
    sampling = Sampling(
        temperature=data.draw(st.sampled_from([0.0, 0.3, 1.0, 2.5])),
        top_k=data.draw(st.sampled_from([1, 2, 5, 40, 256])),
        top_p=data.draw(st.sampled_from([1.0, 0.9, 0.5, 1e-6])),
        min_p=data.draw(st.sampled_from([0.0, 0.01, 0.3])),
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.3, 0.7])),
        presence_penalty=data.draw(st.sampled_from([0.0, 0.5, -0.5])),
        frequency_penalty=data.draw(st.sampled_from([0.0, 0.25, 100.0])),
        logit_bias=data.draw(st.dictionaries(st.integers(0, tokens - 1), st.sampled_from([-100.0, -1.0, 0.5, 100.0]), max_size=3)),
    )
    prompt = data.draw(st.lists(st.integers(0, tokens - 1), max_size=5))
    searched, sorted_out = (Chooser(sampling, seed, prompt, tokens) for _ in range(2))
    assert bool(searched.num_best) == (sampling.temperature == 0 or sampling.top_k < tokens)
    for at in range(6):
        row = scores.row(at % 2)
        assert searched.choose(row, position + at).id == sorted_out.choose(row.whole(), position + at).id


def test_penalties_bring_up_what_was_rough() -> None:
    """All that a step made exact may be penalised away: the search goes on through approximations, exactly."""
    raw, x = random_head(rows=2)
    packed = pack([raw], head=True)
    whole = Heads(packed, x).scores(0)[0].whole()
    scores, _ = Heads(packed, x).scores(1)
    for at in range(2):
        worst = np.argsort(whole[at])[:50].tolist()
        best = sorted_best(whole[at], 300)
        bias = dict.fromkeys(best, -60.0) | dict.fromkeys(worst, 35.0)
        sampling = Sampling(temperature=0, logit_bias=bias, repetition_penalty=1.5)
        searched, sorted_out = (Chooser(sampling, 1, best[:20], 3000) for _ in range(2))
        for position in range(60):
            assert searched.choose(scores.row(at), position).id == sorted_out.choose(whole[at], position).id


def test_least_and_padding(isa: str) -> None:
    values = np.array([[0, 3, 1, 3, 3, -1, 9, 9]], np.float32)
    packed, x = chosen_head(values)
    row = Heads(packed, x, isa).scores(0)[0].row(0)
    for most, tokens, least, expected in (
        (8, 6, -np.inf, [1, 3, 4, 2, 0, 5]),
        (2, 6, -np.inf, [1, 3]),
        (8, 6, 1.0, [1, 3, 4, 2]),
        (1, 8, 0, [6]),
    ):
        ids, _ = row.best(most, tokens, NONE, least) or pytest.fail("not finite")
        assert ids.tolist() == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 40, 63, 64, 69])
def test_a_logit_that_is_not_finite_is_found(bad: float, place: int, isa: str) -> None:
    """Wherever it stands, unless it is padding."""
    values = np.random.default_rng(2).standard_normal((1, 80)).astype(np.float32)
    packed, x = chosen_head(values)
    heads = Heads(packed, x, isa)
    # A bias is the one thing that can make a single logit of a head so.
    bias = np.zeros(96, np.float32)
    bias[place] = bad
    packed.form.bias = bias.ctypes.data
    heads = Heads(packed, x, isa)
    row = heads.scores(0)[0].row(0)
    assert row.best(1, 80, NONE) is None
    assert row.best(1, 70, NONE) is None
    with pytest.raises(NonFinite) as caught:
        Chooser(Sampling(temperature=0), 1, [], 80).choose(row, 12)
    assert caught.value.facts == {"count": 1, "position": 12}
    if place >= 64:
        assert row.best(1, 64, NONE) is not None
        assert row.best(1, place, NONE) is not None


def test_a_row_that_is_no_number_is_refused_when_rough() -> None:
    raw, x = random_head(rows=2)
    x[1, 5] = np.nan
    scores, _ = Heads(pack([raw], head=True), x).scores(3)
    assert scores.row(1).best(3, 3000, NONE) is None
    assert scores.row(0).best(3, 3000, NONE) is not None


def test_memory_of_scores_is_free_when_nobody_sees_it() -> None:
    from khola.ops.native_program import NativeProgram

    program = NativeProgram.__new__(NativeProgram)
    program.width, program._inputs, program._rooms = 64, 8, []
    first = program._room(2)
    address = first.logits
    view = first.logits_RV[0]
    del first
    assert program._room(1).logits != address, "a view of it is alive"
    del view
    rooms = {program._room(1).logits for _ in range(3)}
    assert len(rooms) == 1
    held = [NativeRow(NativeScores(Handle(0), program._room(2), False, range(2)), 0) for _ in range(3)]
    assert len({row.scores.arrays.logits for row in held}) == 3


@pytest.mark.parametrize(("width", "num_tokens"), [(96, 96), (96, 70), (70, 70), (33, 32), (20, 20), (64, 3)])
def test_the_first_of_all_rows_is_found_at_once(width: int, num_tokens: int) -> None:
    """Equal logits by id, ids behind the last token left out, and rows that are no numbers told from the others."""
    random = np.random.default_rng(width + num_tokens)
    arrays = Arrays(40, width, 8)
    logits = arrays.logits_RV[:30]
    logits[:] = np.round(random.standard_normal((30, width)) * 2)
    logits[3, num_tokens - 1], logits[4, 0], logits[5, num_tokens // 2] = np.nan, np.inf, -np.inf
    blocks = np.pad(logits, ((0, 0), (0, -width % 32)), constant_values=-1e9).reshape(30, -1, 32)
    arrays.maxima_RB[:30] = np.where(np.isfinite(blocks).all(axis=2), blocks.max(axis=2), np.nan)
    scores = NativeScores(Handle(0), arrays, False, range(30), Firsts(arrays, 30))
    for place in random.permutation(30):
        found = scores[place : place + 1].row(0).best(1, num_tokens, Changes({}))
        if place in (3, 4, 5):
            assert found is None
            continue
        assert found is not None and found[0].tolist() == sorted_best(logits[place, :num_tokens], 1)
        assert found[1][0] == logits[place, :num_tokens].max()
