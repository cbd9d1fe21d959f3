"""Distillation as runs: every objective learns, equals its formula, and goes on to the same bits after it was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from khola.data.align import align
from khola.data.packing import packed
from khola.errors import AskedWrong, BadRow, MissingFile
from khola.train.config import Run
from khola.train.loop import Prepared, prepare
from khola.train.matching import chunk_match, token_match
from khola.train.opinion import Opinion, scored
from khola.train.teacher import Spoken
from khola.train.teacher_cache import TeacherCache
from tests.train import distil_references as formulas
from tests.train.distil_runs import ascii_student, distil_rows, distil_run, other_teacher, same_teacher
from tests.train.runs import done, last, same_runs, settings, write_rows

EXACT = ("dtype=float64", "packing.length=200", "packing.tokens=400")


def said_of(ends: Sequence[int], first: int = 3, text: str = "") -> Spoken:
    """A student's tokens by where they end."""
    lengths = tuple(int(x) for x in np.diff([0, *ends]))
    return Spoken(ids_T=np.zeros(first + len(ends), np.int32), first=first, closed=True, text=text or "x" * (ends[-1] - 1), lengths=lengths)


def opinion_of(ends: Sequence[int], surprisals: Sequence[float], masses: Sequence[float] | None = None) -> Opinion:
    """A teacher's scores by where its tokens end."""
    told = None if masses is None else np.array(masses)
    return scored("x" * (ends[-1] - 1), np.diff([0, *ends]).tolist(), -np.array(surprisals), told)


def test_chunks_that_both_sides_score() -> None:
    found = chunk_match(said_of([2, 3, 6, 8, 9]), opinion_of([3, 5, 8, 9], [1.0, 2.0, 4.0, 8.0]))
    assert found["chunk_r"].tolist() == [0, 0, 1, 1, 2]
    assert found["teacher_C"].tolist() == [1.0, 6.0, 8.0]
    assert found["behind_C"].tolist() == [2, 4, -1]
    assert found["mass_C"].tolist() == [0.0, 0.0, 0.0]


def test_what_nothing_stands_before_is_not_scored() -> None:
    # The student's first token has no row, the teacher's first two have no score: chunks with them are none.
    found = chunk_match(said_of([1, 2, 4, 5], first=0), opinion_of([1, 2, 4, 5], [np.nan, np.nan, 2.0, 3.0]))
    assert found["chunk_r"].tolist() == [-1, 0, 1]
    assert found["teacher_C"].tolist() == [2.0, 3.0]
    assert found["behind_C"].tolist() == [2, -1]


def test_ends_inside_words_are_merged() -> None:
    opinion = opinion_of([1, 2, 4, 5], [1.0, 2.0, 4.0, 8.0], [0.05, 0.9, 0.5, 1.0])
    found = chunk_match(said_of([1, 2, 4, 5]), opinion, debias=0.1)
    assert found["chunk_r"].tolist() == [0, 0, 1, 2]
    assert found["teacher_C"].tolist() == [3.0, 4.0, 8.0]
    np.testing.assert_allclose(found["mass_C"], np.log([0.9, 0.5, 1.0]), rtol=2e-3)
    assert found["behind_C"].tolist() == [2, 3, -1]


def test_a_text_cut_short() -> None:
    said = said_of([2, 4], text="x" * 4)
    found = chunk_match(Spoken(ids_T=said.ids_T, first=3, closed=False, text="x" * 4, lengths=(2, 2)), opinion_of([2, 3, 6, 7], [1.0] * 4))
    assert found["chunk_r"].tolist() == [0, -1]


def test_pairs_by_number() -> None:
    top = np.array([[-1, -1], [5, 6], [7, 8]]), np.array([[-np.inf, -np.inf], [-0.5, -1.5], [-0.25, -2.0]])
    opinion = scored("xxx", [1, 2, 1], np.array([np.nan, -1.0, -2.0]), None, *top)
    found = token_match(said_of([1, 2, 3, 4], first=0), opinion, same=False)
    assert found["ids_rK"].tolist() == [[5, 6], [7, 8], [-1, -1]]
    assert found["scored_r"].tolist() == [True, True, False]


def whole(prepared: Prepared) -> tuple[Tensor, list[Tensor], float]:
    """Loss of all samples as one batch, gradients of it, and the naive sum of cross-entropies."""
    batch = packed(prepared.samples, range(len(prepared.samples)))
    model = prepared.model
    loss = prepared.method.loss(model, batch, prepared.run.options)
    gradients = torch.autograd.grad(loss.sum, list(model.parameters.values()), allow_unused=True)
    logits = model.head(model.hidden(batch))
    plain = -logits.log_softmax(-1)[torch.arange(len(logits)), torch.as_tensor(batch.targets_R).long()].sum()
    return loss.sum, [one for one in gradients if one is not None], float(plain.detach())


def logits_of(prepared: Prepared, number: int) -> np.ndarray:
    """Log-probabilities of every learned token's row of one sample, [r, V]."""
    batch = packed(prepared.samples, [number])
    with torch.no_grad():
        return prepared.model.head(prepared.model.hidden(batch)).log_softmax(-1).numpy()


def opinions(run: Run) -> list[Opinion]:
    """The teacher's, in the order of rows."""
    from khola.data.rows import read_rows
    from khola.loader import tokenizer_of
    from khola.train.lessons import lessons

    cache = TeacherCache.opened(Path(run.options.cache))
    asked = lessons(read_rows([Path(name) for name in run.data]), tokenizer_of(Path(run.model)), run.options)
    found = [cache.get(lesson.question) for lesson in asked]
    return [one for one in found if one is not None]


@pytest.mark.parametrize(
    "options",
    [
        ("distil.debias=0.002",),
        pytest.param(("distil.debias=0",), marks=pytest.mark.slow),
        pytest.param(("distil.debias=0", "distil.temperature=3"), marks=pytest.mark.slow),
    ],
)
def test_alm_of_a_batch_is_its_formula(tmp_path: Path, options: tuple[str, ...]) -> None:
    run = distil_run(tmp_path, other_teacher(tmp_path), options=[*EXACT, "distil.sft=0.5", *options])
    prepared = prepare(run, settings(tmp_path), lambda *_, **__: None)
    total, gradients, plain = whole(prepared)
    tokenizer, boundary = prepared.model.tokenizer, [9, 10, 11, 12, 13, 32]
    starts = [
        tokenizer.token_bytes(token)[:1] in [bytes([b]) for b in boundary] or token in tokenizer.control_ids
        for token in range(tokenizer.size)
    ]
    expected, chunks = 0.5 * plain, 0
    debias, temperature = run.options.debias, run.options.temperature
    for number, (sample, opinion) in enumerate(zip(prepared.samples, opinions(run), strict=True)):
        rows = logits_of(prepared, number)
        ids = sample.ids[len(sample.ids) - len(rows) :].tolist()
        skipped = int(not sample.learned[0] and len(rows) == len(sample.ids) - 1)
        pieces = [tokenizer.token_bytes(token) for token in sample.ids[len(sample.ids) - len(rows) - skipped : -1].tolist()]
        ends = np.cumsum([*map(len, pieces), 1])
        found = align(opinion.ends, ends)
        before_t, before_s = 0, 0
        for chunk in range(len(found)):
            last_t, last_s = int(found.teacher[chunk + 1]), int(found.student[chunk + 1])
            mass = float(opinion.masses_N[last_t - 1]) if debias else 1.0
            if mass <= debias:
                continue
            a = -opinion.logprobs_N[before_t:last_t].astype(float).sum() - (np.log(mass) if debias else 0)
            b = -sum(rows[at - skipped, ids[at - skipped]] for at in range(before_s, last_s) if at >= skipped)
            if debias and last_s < len(pieces) + 1:
                b -= np.log(np.exp(rows[last_s - skipped][: tokenizer.size][starts]).sum())
            scorable = not np.isnan(a) and before_s >= skipped
            before_t, before_s = last_t, last_s
            if not scorable:
                continue
            chunks += 1
            limit = b - a + a * np.log(a / b)
            expected += temperature * formulas.alm(np.exp([-a]), np.exp([-b]), temperature)[0] if temperature else limit
    assert chunks > 50
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert all(bool(torch.isfinite(one).all()) for one in gradients)


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("reverse", "tail"),
        *(pytest.param(*both, marks=pytest.mark.slow) for both in (("forward", "tail"), ("reverse", "renormalise"), ("jsd", "tail"))),
    ],
)
def test_logits_of_a_batch_are_their_formula(tmp_path: Path, name: str, rest: str) -> None:
    options = ["distil.objective=logits", f"distil.divergence={name}", f"distil.rest={rest}", "distil.top=6", "distil.sft=0"]
    run = distil_run(tmp_path, same_teacher(tmp_path), options=[*EXACT, *options])
    prepared = prepare(run, settings(tmp_path), lambda *_, **__: None)
    total, _, _ = whole(prepared)
    expected = 0.0
    for number, opinion in enumerate(opinions(run)):
        q = np.exp(logits_of(prepared, number))
        skipped = len(opinion.lengths_N) - len(q)
        ids, p = opinion.top_ids_NK[skipped:].astype(np.int64), np.exp(opinion.top_NK[skipped:].astype(float))
        kept = np.take_along_axis(q, ids, -1)
        if rest == "tail":
            p, kept = (np.concatenate([one, 1 - one.sum(-1, keepdims=True)], -1) for one in (p, kept))
        p, kept = (one / one.sum(-1, keepdims=True) for one in (p, kept))
        both = {"forward": formulas.kl(p, kept), "reverse": formulas.kl(kept, p), "jsd": formulas.jsd(p, kept, 0.5)}
        expected += both[name].sum()
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_universal_logits_of_a_batch_are_their_formula(tmp_path: Path) -> None:
    options = ["distil.objective=uld", "distil.top=6", "distil.sft=0", "distil.weight=2"]
    run = distil_run(tmp_path, other_teacher(tmp_path), options=[*EXACT, *options])
    prepared = prepare(run, settings(tmp_path), lambda *_, **__: None)
    total, _, _ = whole(prepared)
    expected = 0.0
    for number, (sample, opinion) in enumerate(zip(prepared.samples, opinions(run), strict=True)):
        q = -np.sort(-np.exp(logits_of(prepared, number)), -1)
        skipped = int(len(q) == len(sample.ids) - 1)
        p = np.exp(opinion.top_NK[skipped:].astype(float))[: len(q)]
        q = q[: len(p)]
        expected += 2 * (np.abs(p - q[:, :6]).sum() + np.abs((1 - p.sum(-1)) - (1 - q[:, :6].sum(-1))).sum())
    assert total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_teacher_that_is_the_student_teaches_nothing(tmp_path: Path) -> None:
    for objective in ("alm", "logits", "uld"):
        options = [*EXACT, f"distil.objective={objective}", "distil.sft=0", "distil.top=6", "distil.debias=0"]
        same = distil_run(tmp_path, tmp_path / "tiny", options=options, out=objective)
        other = distil_run(tmp_path, same_teacher(tmp_path), options=options)
        losses = []
        for run in (same, other):
            total, gradients, _ = whole(prepare(run, settings(tmp_path), lambda *_, **__: None))
            losses.append((total.item(), sum(float(one.square().sum()) for one in gradients) ** 0.5))
        # What is left are the halves of the cache, and the rounding of the engine that the teacher runs on.
        assert losses[0][0] < 0.05 * losses[1][0], objective
        if objective != "uld":
            assert losses[0][1] < 0.1 * losses[1][1], objective


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["alm", "logits", "uld"])
def test_students_come_nearer_to_their_teachers(tmp_path: Path, objective: str) -> None:
    teacher = same_teacher(tmp_path) if objective == "logits" else other_teacher(tmp_path)
    run = distil_run(tmp_path, teacher, options=[f"distil.objective={objective}", "distil.sft=0", "epochs=6"])
    assert done(run, tmp_path) is not None
    history = [figure[objective] for figure in last(run).state["history"]]
    assert np.mean(history[-3:]) < 0.97 * np.mean(history[:3]), history


@pytest.mark.slow
def test_texts_of_the_teacher_are_learned(tmp_path: Path) -> None:
    options = ["distil.objective=sequence", "distil.answer_tokens=60", "distil.answers=2", "epochs=12", "optimiser.lr=0.01"]
    values = [{"prompt": f"the {number}", "completion": "is not read"} for number in range(24)]
    run = distil_run(tmp_path, other_teacher(tmp_path), options=options, values=values)
    told = opinions(run)
    ended = [one.text for one in told if one.whole and one.text]
    assert len(told) == 48 > len(ended) > 3
    said: list[str] = []
    prepared = prepare(run, settings(tmp_path), lambda text, **facts: said.append(text.format(**facts)))
    assert f"{48 - len(ended)} answers of the teacher did not come to an end and are left out; distil.answer_tokens is 60" in said
    tokenizer = prepared.model.tokenizer
    learned = [tokenizer.decode(sample.ids[sample.learned][:-1].tolist()) for sample in prepared.samples]
    assert learned == ended
    assert {int(sample.ids[-1]) for sample in prepared.samples} == set(tokenizer.end_ids)
    assert done(run, tmp_path) is not None
    losses = [figure["loss"] for figure in last(run).state["history"]]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_students_are_praised_for_what_the_teacher_likes(tmp_path: Path) -> None:
    ascii_student(tmp_path)
    options = [
        "distil.objective=onpolicy",
        "distil.answer_tokens=12",
        "distil.prompts=24",
        "optimiser.lr=0.01",
        "optimiser.schedule=constant",
    ]
    run = distil_run(tmp_path, other_teacher(tmp_path), options=[*options, "epochs=14"], values=[{"prompt": f"the {n}"} for n in range(24)])
    assert done(run, tmp_path) is not None
    history = last(run).state["history"]
    apart = [figure["reverse_kl"] for figure in history]
    assert np.mean(apart[-4:]) < 0.8 * np.mean(apart[:4]), apart
    # The sampler reads the very weights that learn.
    assert max(figure["gap"] for figure in history) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["alm", "onpolicy"])
def test_a_stopped_distillation_goes_on_to_the_same_bits(tmp_path: Path, objective: str) -> None:
    shared = [f"distil.objective={objective}", "epochs=6", "steps=8", "save.every=2", "distil.answer_tokens=8", "distil.prompts=6"]
    values = distil_rows() if objective == "alm" else [{"prompt": f"the {number}"} for number in range(12)]
    ascii_student(tmp_path)
    straight = distil_run(tmp_path, other_teacher(tmp_path), options=shared, out="straight", values=values)
    assert done(straight, tmp_path) is not None
    stopped = distil_run(tmp_path, other_teacher(tmp_path), options=shared, out="stopped", values=values)
    assert done(stopped, tmp_path, until=5) is None
    assert last(stopped).step == 4
    assert done(stopped, tmp_path) is not None
    same_runs(last(straight), last(stopped))


def test_refusals(tmp_path: Path) -> None:
    def prepared(run: Run) -> None:
        prepare(run, settings(tmp_path), lambda *_, **__: None)

    teacher = other_teacher(tmp_path)
    with pytest.raises(AskedWrong, match="the teacher has not been asked yet"):
        prepared(distil_run(tmp_path, teacher, asks=False))
    with pytest.raises(AskedWrong, match="no teacher is named"):
        distil_run(tmp_path, Path(), options=["distil.teacher=''"])
    with pytest.raises(AskedWrong, match="different vocabularies"):
        prepared(distil_run(tmp_path, teacher, options=["distil.objective=logits"]))
    asked = distil_run(tmp_path, teacher)
    write_rows(tmp_path / "rows.jsonl", [*distil_rows(), {"text": "something new"}])
    with pytest.raises(BadRow, match="line 25: the teacher was not asked about this row"):
        prepared(asked)
    with pytest.raises(MissingFile, match="holds no answers of a teacher"):
        TeacherCache.opened(tmp_path)


@pytest.mark.parametrize(("too_long", "tokens"), [("leave_out", 0), ("cut", 96)])
def test_rows_that_are_too_long(tmp_path: Path, too_long: str, tokens: int) -> None:
    values = [{"text": "short"}, {"prompt": "a", "completion": "x" * 300}]
    run = distil_run(tmp_path, other_teacher(tmp_path), values=values, options=[f"packing.too_long={too_long}", "distil.debias=0"])
    told: list[str] = []
    samples = prepare(run, settings(tmp_path), lambda text, **facts: told.append(text.format(**facts))).samples
    assert [len(sample.ids) for sample in samples] == [6, tokens][: 1 + bool(tokens)]
    if tokens:
        # What is left of the long row is scored chunk by chunk as before; its end is not there.
        assert samples[1].extras["chunk_r"].tolist() == list(range(95))
    else:
        assert told == ["1 rows are longer than 96 tokens and are left out"]
        assert len(TeacherCache.opened(Path(run.options.cache))) == 1


@pytest.mark.parametrize(
    ("row", "objective", "words"),
    [
        ({"messages": [{"role": "user", "content": "?"}]}, "alm", "line 2: the last message is no plain answer"),
        ({"text": "a", "more": 1}, "alm", "nothing reads the key 'more'"),
        ({"text": "a"}, "sequence", "nothing reads the key 'text'"),
        ({"messages": [{"role": "assistant", "content": "!"}]}, "sequence", "there is no question that the teacher could answer"),
        ({"prompt": "a", "completion": "x" * 300}, "alm", "line 2: 300 tokens; at most 96 are read"),
    ],
)
def test_bad_rows_are_named_before_anything_is_trained(tmp_path: Path, row: object, objective: str, words: str) -> None:
    with pytest.raises(BadRow, match=words):
        run = distil_run(
            tmp_path, other_teacher(tmp_path), values=[{"prompt": "a", "completion": "b"}, row], options=[f"distil.objective={objective}"]
        )
        done(run, tmp_path)
