"""Answers that are learned from: drawn from the weights of now, rewarded, kept in the state, and never from another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from khola.errors import AskedWrong, BadRow, NonFinite, UnknownOption
from khola.settings import from_environment
from khola.train.loop import Prepared, prepare
from khola.train.rewards.table import Rewards
from khola.train.rollouts import Rollouts, tempered
from khola.train.sampler import Sampler, Wanted
from tests.train.runs import asked, done, figures, last, settings, small_run


def prepared(place: Path, *options: str, method: str = "grpo", values: Any = None) -> Prepared:
    return prepare(small_run(place, method=method, options=["steps=4", *options], values=values), settings(place), lambda *_, **__: None)


def source_of(found: Prepared) -> Rollouts:
    source = found.method.source(found.samples, found.setup, found.model)
    assert isinstance(source, Rollouts)
    return source


def test_answers_are_those_of_the_model_that_learns(tmp_path: Path) -> None:
    """The engine's log-probabilities are the trainer's, up to the rounding of weights to bfloat16; and the end is among the tokens."""
    found = prepared(tmp_path, "grpo.precise=true")
    source = source_of(found)
    seen = 0
    for batch in source.next():
        said = [value for extras in batch.extras for value in extras["rollout"].sampled]
        now = tempered(found.model, batch, 1.0)[:, 1].tolist()
        assert len(now) == len(said)
        assert max(abs(one - other) for one, other in zip(now, said, strict=True)) < 0.1
        seen += len(said)
        for extras, length in zip(batch.extras, batch.lengths, strict=True):
            assert length <= found.setup.max_tokens
            assert extras["rollout"].ended == (extras["rollout"].ids[-1] in found.model.tokenizer.end_ids)
    assert seen


def test_the_same_seed_gives_the_same_answers_and_new_weights_others(tmp_path: Path) -> None:
    import torch

    model = prepared(tmp_path).model
    sampler = Sampler(model, from_environment(), frozenset(model.tokenizer.end_ids))
    wanted = [Wanted((5, 6, 7), seed, 8) for seed in (1, 2, 1)]
    first = sampler.answers(wanted, 1.0)
    assert first == sampler.answers(wanted, 1.0)
    assert first[0] == first[2] != first[1]
    with torch.no_grad():
        for values in model.masters.values():
            values.mul_(1.5)
    model.publish()
    assert sampler.answers(wanted, 1.0) != first


@pytest.mark.parametrize("reuse", [1, 3])
def test_a_round_that_is_restored_goes_on_as_it_would_have(tmp_path: Path, reuse: int) -> None:
    found = prepared(tmp_path, f"k15.reuse={reuse}", "k15.partial=true", "k15.longest=14", "k15.choose=failing", method="k15")
    source = source_of(found)
    source.next()
    source.next()
    state = json.loads(json.dumps(source.state()))
    assert (state["waiting"] != []) or (reuse > 1)
    other = source_of(found)
    other.restore(state)
    for _ in range(4):
        here, there = source.next(), other.next()
        assert [batch.extras for batch in here] == [batch.extras for batch in there]


def test_answers_that_wait_go_on_where_they_were(tmp_path: Path) -> None:
    found = prepared(tmp_path, "k15.partial=true", "k15.longest=14", method="k15")
    source = source_of(found)
    grown = [extras["rollout"] for _ in range(4) for batch in source.next() for extras in batch.extras]
    long = [one for one in grown if one.before]
    assert long, "some answer took more than one round"
    assert all(one.ended or len(one.before) + len(one.ids) == 14 for one in grown)
    assert len(grown) % 4 == 0, "groups stay whole"
    for batch in source.next():
        learned = sum(len(extras["rollout"].ids) for extras in batch.extras)
        assert len(batch.rows_R) == learned, "what was said in earlier rounds is learned from no more"


def test_groups_that_teach_nothing_are_drawn_again(tmp_path: Path) -> None:
    found = prepared(tmp_path, "grpo.redraw=6", "grpo.prompts=4")
    groups: dict[int, list[float]] = {}
    for batch in source_of(found).next():
        for extras in batch.extras:
            groups.setdefault(extras["rollout"].prompt, []).append(extras["rollout"].reward)
    assert groups
    assert all(len(set(rewards)) > 1 for rewards in groups.values())


def test_prompts_that_fail_come_more_often(tmp_path: Path) -> None:
    source = source_of(prepared(tmp_path, "grpo.choose=failing"))
    source._tried[:], source._right[:] = 100, 100
    source._right[3] = 0
    drawn = [number for source._drawn in range(300) for number in source._choose(1)]
    assert drawn.count(3) > 200
    assert len(set(drawn)) > 1


def test_easy_prompts_come_first(tmp_path: Path) -> None:
    source = source_of(prepared(tmp_path, "grpo.easy_first=0.5", "steps=100"))
    reach = []
    for source._steps in (0, 25, 50, 99):
        reach.append(max(number for source._drawn in range(40) for number in source._choose(2)))
    assert reach[0] <= 3 < reach[1] <= reach[2] == reach[3] == 11


@pytest.mark.slow
def test_a_model_learns_from_rewards_and_not_from_chance(tmp_path: Path) -> None:
    """The answer is rewarded for letters from the first half of the alphabet; the control is rewarded by coin."""
    reached = {}
    for name, reward in (("rule", "{form={pattern='[a-m ]*'}}"), ("coin", "{random={}}")):
        options = ["steps=30", f"grpo.reward={reward}", "grpo.answer_tokens=2", "grpo.group=8", "grpo.prompts=4", "optimiser.lr=0.01"]
        run = small_run(tmp_path, out=name, method="grpo", options=options)
        done(run, tmp_path)
        history = figures(last(run))
        reached[name] = [float.fromhex(one["reward"]) for one in history]
    first, end = sum(reached["rule"][:5]) / 5, sum(reached["rule"][-5:]) / 5
    assert end > first + 0.3, reached["rule"]
    assert abs(sum(reached["coin"][-5:]) / 5 - sum(reached["coin"][:5]) / 5) < 0.3, reached["coin"]


def test_sampler_and_trainer_that_disagree_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match="apart in the mean"):
        done(small_run(tmp_path, method="grpo", options=["steps=2", "grpo.gap_limit=1e-9"]), tmp_path)


def test_rows_that_no_reward_can_judge_are_named(tmp_path: Path) -> None:
    rows = [*asked(3), {"prompt": "the"}]
    with pytest.raises(BadRow, match=r"line 4: .*answer"):
        prepared(tmp_path, "grpo.reward={exact={}}", values=rows)
    with pytest.raises(BadRow, match=r"line 1: .* tokens"):
        prepared(tmp_path, "grpo.answer_tokens=95")


def test_rewards_are_named_and_weighed() -> None:
    both = Rewards({"exact": {"begun": 0.5}, "form": {"pattern": ".*!", "weight": 2.0}})
    assert both("", ["a b", "a c", "a b!"], {"answer": "a b"}) == pytest.approx([1.0, 0.5 / 3, 2.0 + 0.5 / 3])
    for table, wrong in (
        ({"exakt": {}}, UnknownOption),
        ({"exact": {"kee": "x"}}, UnknownOption),
        ({"exact": {"weight": "x"}}, AskedWrong),
    ):
        with pytest.raises(wrong):
            Rewards(table)
    with pytest.raises(AskedWrong):
        Rewards({})
    coin = Rewards({"random": {}})("", [str(n) for n in range(200)], {})
    assert 60 < sum(coin) < 140
