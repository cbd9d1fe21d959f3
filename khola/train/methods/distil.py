"""Distillation: a student learns from what a teacher of any vocabulary wrote, or says about texts.

Objectives
    sequence   the student learns texts that the teacher wrote
    alm        chunks of a text become as likely for the student as they are for the teacher; any two vocabularies (the default)
    logits     the student's distribution follows the teacher's best tokens; the same vocabulary only
    uld        sorted probabilities follow the teacher's; any two vocabularies
    onpolicy   the student writes, and every chunk of it is praised by how much likelier the teacher finds it

`khola distil` has the teacher answer beforehand and puts the folder of its answers into `cache`; on-policy it is asked on the way.
Sources: see `khola.train.likelihood` and `khola.train.divergence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from khola.data.align import boundary_tokens, vocabulary_hash
from khola.data.packing import Batch, Sample
from khola.data.rows import read_rows
from khola.errors import AskedWrong, BadRow, KholaError
from khola.tokens.tokenizer import Tokenizer
from khola.train import losses
from khola.train.config import Positive, Share, Strict
from khola.train.divergence import Rest, divergence_named, kept_outcomes
from khola.train.lessons import Lesson, lessons
from khola.train.likelihood import alm, alm_limit, chunk_credit, chunk_surprisals, debiased, policy_loss, token_scores, uld_kept
from khola.train.matching import chunk_match, token_match
from khola.train.methods import Loss, Setup, Source
from khola.train.methods.sft import fit
from khola.train.methods.sft import source as packed_source
from khola.train.model import Trainee
from khola.train.opinion import Opinion
from khola.train.teacher import Spoken, spoken
from khola.train.teacher_cache import TeacherCache

NAME = "distil"
Weight = Annotated[float, Meta(ge=0)]


class Config(Strict, frozen=True):
    """The table [distil]."""

    objective: Literal["sequence", "alm", "logits", "uld", "onpolicy"] = "alm"
    teacher: str = ""
    """A model of this machine, or one of `server`."""
    server: str = ""
    """Address of a server that speaks OpenAI's API; empty where the teacher runs here."""
    cache: str = ""
    """Folder of the teacher's answers; `khola distil` fills it."""
    sft: Weight = 1.0
    """Weight of the text's own cross-entropy beside alm, logits and uld."""
    weight: Weight = 1.0
    """Weight of what the teacher says."""
    temperature: Weight = 0.0
    """Of alm; 0 is the limit of infinite temperature, which needs none."""
    debias: Share = 0.1
    """Chunks of alm end only where the teacher gives a new word more than this mass, and both sides count it; 0 leaves that out."""
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    """Of logits."""
    beta: Share = 0.5
    """Of jsd: 0 is forward, 1 reverse."""
    rest: Rest = "tail"
    """What becomes of tokens that are not among the teacher's best."""
    top: Positive = 20
    """Tokens that logits and uld keep at every place."""
    answers: Positive = 1
    """Texts that the teacher writes for each prompt."""
    answer_tokens: Positive = 512
    """Longest text that the teacher, or on-policy the student, writes."""
    answer_temperature: Weight = 1.0
    """At which it writes."""
    prompts: Positive = 16
    """Prompts that the student answers for one step on-policy."""
    credit: Weight = 5.0
    """Praise or blame of a chunk on-policy, at most, in nats; 0 limits nothing."""

    @property
    def writes(self) -> bool:
        """Whether rows are prompts to be answered."""
        return self.objective in ("sequence", "onpolicy")


def samples(setup: Setup) -> list[Sample]:
    """All rows as sequences, with what the teacher says of them.

    Raises:
        BadRow: a row is broken, or teacher and student do not agree on its text.
        AskedWrong: the teacher was not asked about a row.
    """
    config: Config = setup.config
    asked = lessons(read_rows(setup.files), setup.model.tokenizer, config)
    if config.objective == "onpolicy":
        return [_prompt(lesson, setup) for lesson in asked]
    cache = _cache(config, setup.model.tokenizer)
    found: list[Sample] = []
    left, cut = 0, 0
    for lesson in asked:
        if lesson.tokens > setup.max_tokens and setup.too_long == "leave_out":
            left += 1
            continue
        opinion = cache.get(lesson.question)
        if opinion is None:
            raise BadRow("{file}, line {line}: the teacher was not asked about this row", hint="run khola distil again", **lesson.row.place)
        if config.objective == "sequence" and not (opinion.whole and opinion.text):
            cut += 1
            continue
        sample = _sample(lesson, opinion, setup)
        if sample is None:
            left += 1
        else:
            found.append(sample)
    if cut:
        setup.tell(
            "{count} answers of the teacher did not come to an end and are left out; distil.answer_tokens is {limit}",
            count=cut,
            limit=config.answer_tokens,
        )
    if left:
        setup.tell("{count} rows are longer than {limit} tokens and are left out", count=left, limit=setup.max_tokens)
    return found


def source(samples: Sequence[Sample], setup: Setup, model: Trainee) -> Source:
    """Batches of rows on disk, or of what the student writes."""
    if setup.config.objective == "onpolicy":
        from khola.train.on_policy import OnPolicy

        return OnPolicy(samples, setup, model)
    return packed_source(samples, setup, model)


def loss(model: Trainee, batch: Batch, config: Config) -> Loss:
    """What a batch's rows cost, summed over its learned tokens."""
    if config.objective == "sequence" or not len(batch.rows_R):
        return Loss(sum=model.cross_entropy(batch))
    if config.objective in ("logits", "uld"):
        return _of_tokens(model, batch, config)
    return _of_chunks(model, batch, config)


def _sample(lesson: Lesson, opinion: Opinion, setup: Setup) -> Sample | None:
    """One sequence; None where it is left out."""
    config, row = setup.config, lesson.row
    chat = setup.model.format if lesson.question.messages else None
    try:
        said = spoken(lesson.question, setup.model.tokenizer, chat, text=opinion.text, thinking=opinion.thinking)
        learned = np.arange(len(said.ids_T)) >= max(1, said.first)
        sample = fit(Sample(ids=said.ids_T, learned=learned, where=f"{row.file}:{row.line}"), row, setup)
        if sample is None or config.objective == "sequence":
            return sample
        said = _shortened(said, len(sample.ids), setup.model.tokenizer)
        if config.objective == "alm":
            return replace(sample, extras=chunk_match(said, opinion, config.debias))
        return replace(sample, extras=token_match(said, opinion, same=config.objective == "logits"))
    except BadRow:
        raise
    except KholaError as problem:
        raise row.located(problem) from None


def _prompt(lesson: Lesson, setup: Setup) -> Sample:
    """A prompt that the student will answer; the loop wants to see a token that is learned, which the answer's first one is."""
    chat = setup.model.format if lesson.question.messages else None
    said = spoken(lesson.question, setup.model.tokenizer, chat, text="a")
    ids = said.ids_T[: said.first + 1]
    learned = np.arange(len(ids)) >= said.first
    extras = {"question": lesson.question, "end": int(said.ids_T[-1]) if said.closed else -1}
    return Sample(ids=ids, learned=learned, where=f"{lesson.row.file}:{lesson.row.line}", extras=extras)


def _shortened(said: Spoken, tokens: int, tokenizer: Tokenizer) -> Spoken:
    """The first tokens of a sequence that was cut."""
    if tokens == len(said.ids_T):
        return said
    lengths = said.lengths[: tokens - said.first]
    return replace(said, ids_T=said.ids_T[:tokens], lengths=lengths, closed=False)


def _cache(config: Config, student: Tokenizer) -> TeacherCache:
    """The teacher's answers.

    Raises:
        AskedWrong: there is none, or the teacher's vocabulary is another one where it must not be.
    """
    if not config.cache:
        raise AskedWrong(
            "the teacher has not been asked yet",
            hint="khola distil --teacher MODEL --student MODEL --data FILE --out DIR asks it first",
        )
    cache = TeacherCache.opened(Path(config.cache))
    theirs = cache.header.get("vocabulary")
    if config.objective == "logits" and theirs and theirs != vocabulary_hash(student):
        raise AskedWrong(
            "teacher and student have different vocabularies, so their logits cannot be compared",
            hint="set distil.objective to alm or uld",
        )
    return cache


def _of_chunks(model: Trainee, batch: Batch, config: Config) -> Loss:
    """ALM beside cross-entropy, or credit for what the student wrote."""
    debiases = config.objective == "alm" and config.debias > 0
    targets_R = _placed(batch.targets_R, model)
    boundary_V = _boundary(model.tokenizer, model.config.vocab_size).to(model.device) if debiases else None

    def scored(logits_CV: Tensor, rows: slice) -> Tensor:
        return torch.stack(token_scores(logits_CV, targets_R[rows], boundary_V), -1)

    scores_R2 = losses.per_row(model, batch, scored)
    taken_R = scores_R2[:, 0]
    chunk_R, teacher_C, mass_C, behind_C = (_placed(array, model) for array in _joined(batch))
    student_C = chunk_surprisals(taken_R, chunk_R, len(teacher_C))
    if config.objective == "onpolicy":
        credit_C = chunk_credit(teacher_C, student_C, config.credit)
        credit_R = torch.where(chunk_R >= 0, torch.cat([credit_C, credit_C.new_zeros(1)])[chunk_R], 0.0)
        sampled_R = _placed(np.concatenate([one["sampled_r"] for one in batch.extras]), model)
        gap = float((taken_R.detach() - sampled_R).nan_to_num().abs().sum())
        praise = float((student_C - teacher_C).detach().sum())
        return Loss(sum=policy_loss(taken_R, taken_R.detach(), credit_R).sum(), figures={"reverse_kl": -praise, "gap": gap})
    if debiases:
        mass_R = torch.cat([scores_R2[:, 1], scores_R2.new_zeros(1)])
        teacher_C, student_C = debiased(teacher_C, mass_C), debiased(student_C, mass_R[behind_C])
    if config.temperature:
        apart = config.temperature * alm(teacher_C, student_C, config.temperature).sum()
    else:
        apart = alm_limit(teacher_C, student_C).sum()
    return _both(-taken_R.sum(), apart, config, "alm")


def _of_tokens(model: Trainee, batch: Batch, config: Config) -> Loss:
    """A divergence from the teacher's best tokens, or from their sorted probabilities, beside cross-entropy."""
    targets_R = _placed(batch.targets_R, model)
    ids_RK, top_RK, scored_R = (
        _placed(np.concatenate([one[name] for one in batch.extras]), model) for name in ("ids_rK", "top_rK", "scored_r")
    )
    compared = divergence_named(config.divergence, config.beta)

    def both(logits_CV: Tensor, rows: slice) -> Tensor:
        if config.objective == "uld":
            apart_C = uld_kept(top_RK[rows], logits_CV)
        else:
            apart_C = compared(*kept_outcomes(logits_CV, ids_RK[rows], top_RK[rows], config.rest))
        taken_C, _ = token_scores(logits_CV, targets_R[rows])
        return torch.stack([apart_C.masked_fill(~scored_R[rows], 0.0), taken_C], -1)

    rows_R2 = losses.per_row(model, batch, both)
    return _both(-rows_R2[:, 1].sum(), rows_R2[:, 0].sum(), config, config.objective)


def _both(plain: Tensor, apart: Tensor, config: Config, name: str) -> Loss:
    """Cross-entropy and what the teacher says, weighed; each is shown by itself."""
    figures = {"cross_entropy": float(plain.detach()), name: float(apart.detach())}
    return Loss(sum=config.sft * plain + config.weight * apart, figures=figures)


def _joined(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Chunks of all sequences of a batch, numbered through; rows too."""
    chunk, behind = [], []
    rows, chunks = 0, 0
    for one in batch.extras:
        chunk.append(np.where(one["chunk_r"] >= 0, one["chunk_r"] + chunks, -1))
        behind.append(np.where(one["behind_C"] >= 0, one["behind_C"] + rows, -1))
        rows, chunks = rows + len(one["chunk_r"]), chunks + len(one["teacher_C"])
    teacher, mass = (np.concatenate([one[name] for one in batch.extras]) for name in ("teacher_C", "mass_C"))
    return np.concatenate(chunk), teacher, mass, np.concatenate(behind)


def _placed(array: Any, model: Trainee) -> Tensor:
    """An array on the model's device; ids as long integers."""
    tensor = torch.as_tensor(array, device=model.device)
    return tensor.long() if tensor.dtype in (torch.int32, torch.int64) else tensor


@lru_cache(maxsize=2)
def _boundary(tokenizer: Tokenizer, rows: int) -> Tensor:
    """Tokens that begin a word, for all rows of the head; those of padding begin nothing."""
    known = boundary_tokens(tokenizer)[:rows]
    return torch.from_numpy(np.pad(known, (0, rows - len(known))))
