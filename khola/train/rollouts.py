"""Where batches come from when a model learns from its own answers: prompts, groups of answers, rewards.

A round samples a group of answers to each of some prompts with the weights of now, and rewards them; `reuse` steps learn from it. An
answer that does not end within its tokens counts as it is, or, with `partial`, waits in a buffer and goes on in the next round: what it
said before was drawn from other weights and is learned from no more. State is plain JSON: a round that was begun is taken up again answer
by answer.

Sources  Groups that are all right or all wrong teach nothing and are drawn again: DAPO, arXiv:2503.14476 section 3.2. Prompts by how often
         they fail, easy ones first, partial answers: Kimi k1.5, arXiv:2501.12599 sections 2.3.4 and 2.6.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, final

import msgspec
import numpy as np
import torch
from msgspec import Meta

from khola.data.packing import Batch, Sample, packed
from khola.data.rows import Row, read_rows, sample_seed
from khola.errors import AskedWrong, BadRow, KholaError, NonFinite
from khola.settings import from_environment
from khola.train.config import Positive, Share, Strict
from khola.train.dialogue import before_answer, continued, end_id, messages_of
from khola.train.methods import Setup
from khola.train.model import Trainee
from khola.train.rewards.table import Rewards
from khola.train.sampler import Answer, Sampler, Wanted


class Sampling(Strict, frozen=True):
    """How answers are sampled; the fields that methods on-line share."""

    reward: dict[str, dict[str, Any]] = msgspec.field(default_factory=lambda: {"exact": {}})
    """Rewards of `khola.train.rewards` by name, each with its settings and a weight; they are added up."""
    group: Annotated[int, Meta(ge=2)] = 8
    """Answers to a prompt."""
    prompts: Positive = 8
    """Of a round."""
    answer_tokens: Positive = 128
    """Of an answer in one round at most."""
    temperature: Annotated[float, Meta(gt=0, le=10)] = 1.0
    reuse: Positive = 1
    """Steps that learn from a round."""
    choose: Literal["order", "failing"] = "order"
    """Prompts in shuffled order, or those more often that fail more often."""
    easy_first: Share = 0.0
    """Over this share of the steps, prompts come from the easy end of the file, from more and more of it: rows lie from easy to hard."""
    redraw: Annotated[int, Meta(ge=0, le=100)] = 0
    """How often prompts whose answers all got the same reward are replaced by others in a round; 0 keeps them."""
    partial: bool = False
    """Answers that did not end go on in the next round."""
    longest: Positive = 1024
    """Tokens of an answer in all, where it may go on."""
    precise: bool = False
    """Sample in the arithmetic of float32: slower, and nearly no gap to the model that learns."""
    gap_limit: Annotated[float, Meta(gt=0)] = 0.5
    """Mean distance of a token's log-probabilities in sampler and trainer that ends the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One answer that is learned from."""

    prompt: int
    """Which one."""
    before: tuple[int, ...] = ()
    """What was answered in earlier rounds."""
    ids: tuple[int, ...]
    sampled: tuple[float, ...]
    """Log-probabilities as the sampler gave them."""
    old: tuple[float, ...] = ()
    """What the model that learns gave them at the beginning of the round, at the temperature of sampling; empty where a round is one step,
    whose own are these."""
    plain: tuple[float, ...] = ()
    """The same without temperature, to be held against `sampled`."""
    ended: bool
    reward: float
    advantage: float = 0.0


Advantages = Callable[[Sequence[Rollout]], Sequence[float]]
"""From a group of answers to how much better each is than the group."""


def prompts(setup: Setup) -> list[Sample]:
    """All prompts; what is learned from them comes later.

    Raises:
        BadRow: a row is broken, or its prompt leaves no room for an answer.
        AskedWrong: there is no such reward.
    """
    rewards = Rewards(setup.config.reward)
    found: list[Sample] = []
    for row in read_rows(setup.files):
        try:
            rewards.require(row.value)
        except BadRow as problem:
            raise row.located(problem) from None
        try:
            ids = _prompt(row, setup)
        except BadRow:
            raise
        except KholaError as problem:
            raise row.located(problem) from None
        if len(ids) + setup.config.answer_tokens > setup.max_tokens:
            raise BadRow(
                "{file}, line {line}: a prompt of {tokens} tokens and an answer of {answer} are more than {limit}",
                hint="raise packing.length, or lower answer_tokens",
                **row.place,
                tokens=len(ids),
                answer=setup.config.answer_tokens,
                limit=setup.max_tokens,
            )
        # Nothing of a prompt is learned; the marks say that the row is of use.
        found.append(Sample(ids=ids, learned=np.ones(len(ids), np.bool_), where=f"{row.file}:{row.line}", extras=row.value))
    return found


def _prompt(row: Row, setup: Setup) -> Any:
    """Ids of a row's prompt, up to where the answer begins."""
    if "messages" in row.value:
        return np.array(before_answer(setup.model.format, setup.model.tokenizer, messages_of(row.value["messages"])), np.int32)
    return continued([], row.text("prompt"), setup.model.tokenizer, None).ids


@dataclass(slots=True)
class _Round:
    """What is being learned from, and how far."""

    rollouts: list[Rollout] = field(default_factory=list)
    steps_left: int = 0


@final
class Rollouts:
    """Batches of a model's own answers; satisfies `khola.train.methods.Source`.

    Args:
        samples: the prompts.
        setup: of the run; its config holds the fields of `Sampling`.
        model: that learns and answers.
        advantages: of a group.
    """

    num_steps = None

    def __init__(self, samples: Sequence[Sample], setup: Setup, model: Trainee, advantages: Advantages) -> None:
        if setup.world > 1:
            raise AskedWrong("methods that learn from their own answers run in one process", hint="start it without torchrun")
        self._samples, self._setup, self._model, self._advantages = samples, setup, model, advantages
        self._config: Any = setup.config
        self._rewards = Rewards(self._config.reward)
        stops = _stops(setup)
        self._sampler = Sampler(model, from_environment(), stops, precise=self._config.precise)
        self._rounds = self._drawn = self._steps = 0
        self._tried = np.zeros(len(samples))
        self._right = np.zeros(len(samples))
        self._waiting: list[Rollout] = []
        self._now = _Round()

    def next(self) -> list[Batch]:
        """The batches of the next step: a all answers of this round."""
        if not self._now.steps_left:
            self._now = _Round(self._round(), self._config.reuse)
        self._now.steps_left -= 1
        self._steps += 1
        return self._batches(self._now.rollouts)

    def state(self) -> dict[str, Any]:
        """Counters, success of each prompt, answers that wait, and the round that is being learned from."""
        return {
            "rounds": self._rounds,
            "drawn": self._drawn,
            "steps": self._steps,
            "tried": self._tried.tolist(),
            "right": self._right.tolist(),
            "waiting": [asdict(one) for one in self._waiting],
            "rollouts": [asdict(one) for one in self._now.rollouts] if self._now.steps_left else [],
            "steps_left": self._now.steps_left,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._rounds, self._drawn, self._steps = state["rounds"], state["drawn"], state["steps"]
        self._tried, self._right = np.array(state["tried"]), np.array(state["right"])
        self._waiting = [_rollout(one) for one in state["waiting"]]
        self._now = _Round([_rollout(one) for one in state["rollouts"]], state["steps_left"])

    def _round(self) -> list[Rollout]:
        """Groups of answers with their advantages."""
        config = self._config
        kept: list[list[Rollout]] = []
        spare: list[list[Rollout]] = []
        tries = 0
        while len(kept) < config.prompts and (tries <= config.redraw or not (kept or spare)):
            groups = self._groups(self._choose(config.prompts - len(kept)))
            dull = [group for group in groups if config.redraw and len({one.reward for one in group}) == 1]
            kept += [group for group in groups if group not in dull]
            spare += dull
            tries += 1
        # Where nothing taught anything a step without a gradient is better than none.
        chosen = kept or spare[: config.prompts]
        self._rounds += 1
        return self._with_old([one for group in chosen for one in group])

    def _groups(self, numbers: Sequence[int]) -> list[list[Rollout]]:
        """Sample and reward a group of answers to each prompt; with `partial`, those that wait come first."""
        config = self._config
        waiting, self._waiting = self._waiting, []
        begun = [Rollout(prompt=number, ids=(), sampled=(), ended=False, reward=0.0) for number in numbers for _ in range(config.group)]
        # A group waits as a whole, for its answers are compared with each other; those that have ended say nothing more.
        places = [*waiting, *begun]
        going_on = [place for place, one in enumerate(places) if not one.ended]
        wanted = [self._wanted(places[place]) for place in going_on]
        for place, answer in zip(going_on, self._sampler.answers(wanted, config.temperature), strict=True):
            places[place] = _grown(places[place], answer)
        groups = [places[start : start + config.group] for start in range(0, len(places), config.group)]
        whole: list[list[Rollout]] = []
        for group in groups:
            if config.partial and any(self._goes_on(one) for one in group):
                self._waiting += [one if one.ended else _laid_down(one) for one in group]
            else:
                whole.append(group)
        return [self._rewarded(group) for group in whole]

    def _goes_on(self, one: Rollout) -> bool:
        room = self._setup.max_tokens - len(self._samples[one.prompt].ids)
        return not one.ended and len(one.before) + len(one.ids) < min(self._config.longest, room)

    def _wanted(self, one: Rollout) -> Wanted:
        """The seed counts every answer that was ever asked for, so that no two are alike by chance."""
        self._drawn += 1
        seed = sample_seed(self._setup.seed, self._drawn, 0) & ((1 << 53) - 1)
        prompt = (*self._samples[one.prompt].ids.tolist(), *one.before)
        room = self._setup.max_tokens - len(prompt)
        left = min(self._config.answer_tokens, room, self._config.longest - len(one.before) if self._config.partial else room)
        return Wanted(prompt, seed, left)

    def _rewarded(self, group: Sequence[Rollout]) -> list[Rollout]:
        """A group with rewards and advantages; how often the prompt succeeds is kept in mind."""
        sample, tokenizer = self._samples[group[0].prompt], self._model.tokenizer
        texts = [tokenizer.decode([*one.before, *one.ids]) for one in group]
        rewards = self._rewards(tokenizer.decode(sample.ids.tolist()), texts, sample.extras, self._drawn)
        found = [replace(one, reward=float(reward)) for one, reward in zip(group, rewards, strict=True)]
        self._tried[group[0].prompt] += len(group)
        self._right[group[0].prompt] += sum(reward > 0 for reward in rewards)
        return [replace(one, advantage=float(a)) for one, a in zip(found, self._advantages(found), strict=True)]

    def _choose(self, count: int) -> list[int]:
        """Prompts of a round; a function of the seed, the round and what succeeded so far."""
        config, total = self._config, len(self._samples)
        rng = np.random.default_rng([self._setup.seed, 0x5EED, self._rounds, self._drawn])
        known = total
        if config.easy_first and self._setup.steps:
            done = self._steps / (config.easy_first * self._setup.steps)
            known = min(total, max(count, round(total * min(1.0, 0.25 + 0.75 * done))))
        if config.choose == "failing":
            # A prompt that was never tried counts as one that fails half the time.
            fails = 1 - (self._right[:known] + 0.5) / (self._tried[:known] + 1)
            return [int(n) for n in rng.choice(known, size=min(count, known), replace=False, p=fails / fails.sum())]
        return [int(n) for n in rng.permutation(known)[:count]] if count <= known else [int(n) for n in rng.integers(known, size=count)]

    def _with_old(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Log-probabilities of the model as it is now, where more than one step learns from them."""
        if self._config.reuse == 1:
            return list(rollouts)
        found: list[Rollout] = []
        at = 0
        with torch.no_grad():
            for batch in self._batches(rollouts):
                values = tempered(self._model, batch, self._config.temperature).tolist()
                for _ in batch.lengths:
                    one = rollouts[at]
                    mine, values = values[: len(one.ids)], values[len(one.ids) :]
                    found.append(replace(one, old=tuple(old for old, _ in mine), plain=tuple(plain for _, plain in mine)))
                    at += 1
        return found

    def _batches(self, rollouts: Sequence[Rollout]) -> list[Batch]:
        """Answers in order, as many as fit into a micro-batch."""
        answers = [_sample(one, self._samples[one.prompt]) for one in rollouts]
        batches: list[list[int]] = [[]]
        room = self._setup.batch_tokens
        for number, answer in enumerate(answers):
            if batches[-1] and len(answer.ids) > room:
                batches.append([])
                room = self._setup.batch_tokens
            batches[-1].append(number)
            room -= len(answer.ids)
        counted = self._setup.config.counted
        return [
            replace(packed(answers, some, counted([rollouts[n] for n in some])), samples=tuple(rollouts[n].prompt for n in some))
            for some in batches
            if some
        ]


def tempered(model: Trainee, batch: Batch, temperature: float) -> torch.Tensor:
    """log p of every learned token, [R, 2]: as it was drawn, at a temperature; and as it is."""
    from khola.train.losses import per_row

    targets_R = torch.as_tensor(batch.targets_R, dtype=torch.long, device=model.device)

    def both(logits_CV: torch.Tensor, rows: slice) -> torch.Tensor:
        chosen_C1 = targets_R[rows, None]
        plain_C = logits_CV.gather(1, chosen_C1)[:, 0] - logits_CV.logsumexp(1)
        if temperature == 1.0:
            return torch.stack([plain_C, plain_C.detach()], 1)
        warm_CV = logits_CV / temperature
        return torch.stack([warm_CV.gather(1, chosen_C1)[:, 0] - warm_CV.logsumexp(1), plain_C.detach()], 1)

    return per_row(model, batch, both)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """What is known of the tokens of a batch of answers."""

    owners_R: torch.Tensor
    """Whose each token is."""
    sampled_R: torch.Tensor
    """Log-probabilities as the sampler gave them."""
    old_R: torch.Tensor
    """As the model gave them at the beginning of the round."""
    gap_R: torch.Tensor
    """How far sampler and model were apart then."""
    advantage_A: torch.Tensor
    reward: float
    """Mean over the answers."""
    length: float
    """Mean tokens of an answer in this round."""

    def by_token(self) -> torch.Tensor:
        """Advantage of each token's answer, [R]."""
        return self.advantage_A[self.owners_R]

    def figures(self, batch: Batch, means: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Means over tokens, with the gap, reward and length, as sums over what the batch counts."""
        shown = {key: float(values_R.float().mean()) for key, values_R in {**means, "gap": self.gap_R}.items()}
        return {key: value * batch.count for key, value in (shown | {"reward": self.reward, "length": self.length}).items()}


def learned(batch: Batch, both_R2: torch.Tensor, config: Any) -> Learned:
    """What is known of a batch's tokens, from their rollouts and what `tempered` says of them now.

    Raises:
        NonFinite: sampler and trainer disagree by more than the limit.
    """
    rollouts = [extras["rollout"] for extras in batch.extras]
    now_R2 = both_R2.detach()

    def flat(name: str) -> torch.Tensor:
        return torch.tensor([value for one in rollouts for value in getattr(one, name)], dtype=now_R2.dtype, device=now_R2.device)

    earlier = any(one.old for one in rollouts)
    sampled_R = flat("sampled")
    gap_R = ((flat("plain") if earlier else now_R2[:, 1]) - sampled_R).abs()
    _require_small(float(gap_R.mean()), config.gap_limit)
    return Learned(
        owners_R=torch.as_tensor(batch.owners, dtype=torch.long, device=now_R2.device),
        sampled_R=sampled_R,
        old_R=flat("old") if earlier else now_R2[:, 0],
        gap_R=gap_R,
        advantage_A=torch.tensor([one.advantage for one in rollouts], dtype=now_R2.dtype, device=now_R2.device),
        reward=sum(one.reward for one in rollouts) / len(rollouts),
        length=sum(len(one.ids) for one in rollouts) / len(rollouts),
    )


def _require_small(gap: float, limit: float) -> None:
    """Refuse to learn from answers that another model could have given.

    Raises:
        NonFinite: sampler and trainer disagree by more than the limit.
    """
    if not gap <= limit:
        raise NonFinite(
            "sampler and trainer give log-probabilities that are {gap:.3f} apart in the mean; at most {limit} is learned from",
            hint="precise=true samples in float32; gap_limit says what is borne",
            gap=gap,
            limit=limit,
        )


def _stops(setup: Setup) -> frozenset[int]:
    """Tokens that end an answer: that of the chat format where there is one, and those of the vocabulary."""
    tokenizer = setup.model.tokenizer
    ends = set(tokenizer.end_ids)
    try:
        ends.add(end_id(setup.model.format, tokenizer))
    except KholaError:
        if not ends:
            raise AskedWrong("nothing ends an answer: the model has no chat format and no token that ends a text") from None
    return frozenset(ends)


def _grown(one: Rollout, answer: Answer) -> Rollout:
    return replace(one, ids=answer.ids, sampled=answer.log_probs, ended=answer.ended)


def _laid_down(one: Rollout) -> Rollout:
    """An answer that goes on later: what it said so far is learned from no more."""
    return replace(one, before=(*one.before, *one.ids), ids=(), sampled=())


def _rollout(kept: Mapping[str, Any]) -> Rollout:
    return msgspec.convert(dict(kept), Rollout)


def _sample(one: Rollout, prompt: Sample) -> Sample:
    ids = np.concatenate([prompt.ids, np.array([*one.before, *one.ids], np.int32)])
    learned = np.zeros(len(ids), np.bool_)
    learned[len(ids) - len(one.ids) :] = bool(one.ids)
    if not one.ids:
        learned[:] = False
    return Sample(ids=ids, learned=learned, extras={"rollout": one})
