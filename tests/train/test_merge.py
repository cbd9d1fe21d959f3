"""Merging: every formula against a float64 reading of its paper, and whole checkpoints of both containers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.api.quantise import quantise
from khola.errors import AskedWrong, LicenceForbids, MissingTensor, NonFinite, UnknownLicence, WrongShape
from khola.fetch.library import Library
from khola.lineage.compose import verify
from khola.lineage.record import record_beside
from khola.settings import Settings
from khola.store.safetensors import read_checkpoint, write_safetensors
from khola.train.made import Order
from khola.train.made import merge as merge_models
from khola.train.merge import Plan, checked, encoded, generator, merged, merging
from tests.api.small_models import folder_model, settings_in

Exact = NDArray[np.float64]
SHAPES = [(1,), (63,), (7, 33)]


def arrays(shape: tuple[int, ...], count: int) -> list[Any]:
    """Different float32 tensors."""
    rng = np.random.default_rng(5)
    return [rng.normal(0, 1, shape).astype(np.float32) for _ in range(count)]


def linear(plan: Plan, tensors: list[Exact], base: Exact) -> Exact:
    weights = np.array(plan.coefficients, np.float64)
    return np.asarray(sum(w * x for w, x in zip(weights / weights.sum(), tensors, strict=True)))


def slerp(plan: Plan, tensors: list[Exact], base: Exact) -> Exact:
    p, q = (tensor.ravel() for tensor in tensors)
    t = plan.coefficients[1]
    omega = math.acos(max(-1.0, min(1.0, float(p @ q) / math.sqrt(float(p @ p) * float(q @ q)))))
    if abs(math.cos(omega)) > 0.9995:
        return np.asarray((1 - t) * tensors[0] + t * tensors[1])
    return np.asarray((math.sin((1 - t) * omega) * tensors[0] + math.sin(t * omega) * tensors[1]) / math.sin(omega))


def task(plan: Plan, tensors: list[Exact], base: Exact) -> Exact:
    return np.asarray(base + sum(a * (x - base) for a, x in zip(plan.coefficients, tensors, strict=True)))


def elected(deltas: list[list[float]], coefficients: tuple[float, ...], scale: float) -> list[float]:
    """Algorithm 1, steps 2 and 3, a parameter at a time."""
    result = []
    for values in zip(*deltas, strict=True):
        total = sum(a * v for a, v in zip(coefficients, values, strict=True))
        agreeing = [(a, v) for a, v in zip(coefficients, values, strict=True) if v and (a * v > 0) == (total > 0) and total]
        result.append(scale * sum(a * v for a, v in agreeing) / sum(abs(a) for a, _ in agreeing) if agreeing else 0.0)
    return result


def ties(plan: Plan, tensors: list[Exact], base: Exact) -> Exact:
    deltas = []
    for tensor in tensors:
        delta = (tensor - base).ravel().tolist()
        keep = set(sorted(range(len(delta)), key=lambda at: -abs(delta[at]))[: max(1, round(plan.density * len(delta)))])
        deltas.append([value if at in keep else 0.0 for at, value in enumerate(delta)])
    return base + np.array(elected(deltas, plan.coefficients, plan.scale)).reshape(base.shape)


def kept(plan: Plan, tensors: list[Exact], base: Exact) -> list[Exact]:
    """What chance leaves of the differences; the same draws as the code that is tested."""
    draws = [generator(plan.seed, place, "w").random(base.shape, np.float32) for place in range(len(tensors))]
    return [(x - base) * (draw >= plan.drop) / (1 - plan.drop) for x, draw in zip(tensors, draws, strict=True)]


def dare(plan: Plan, tensors: list[Exact], base: Exact) -> Exact:
    return np.asarray(base + sum(a * delta for a, delta in zip(plan.coefficients, kept(plan, tensors, base), strict=True)))


def dare_ties(plan: Plan, tensors: list[Exact], base: Exact) -> Exact:
    deltas = [delta.ravel().tolist() for delta in kept(plan, tensors, base)]
    return base + np.array(elected(deltas, plan.coefficients, plan.scale)).reshape(base.shape)


PAPERS: dict[str, Callable[[Plan, list[Exact], Exact], Exact]] = {
    "linear": linear, "slerp": slerp, "task": task, "ties": ties, "dare": dare, "dare-ties": dare_ties,
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", PAPERS)
@pytest.mark.parametrize("coefficients", [(1.0, 1.0), (0.7, 0.3), (1.5, -0.5), (0.4, 0.4, 0.9)], ids=str)
def test_the_formula_is_the_papers(method: Any, coefficients: tuple[float, ...], shape: tuple[int, ...]) -> None:
    if method == "slerp":
        coefficients = (1 - abs(coefficients[1]), abs(coefficients[1]))
    plan = Plan(method=method, coefficients=coefficients, density=0.3, drop=0.6, scale=0.8, seed=3)
    base, *tensors = arrays(shape, 1 + len(coefficients))
    on_base = method not in ("linear", "slerp")
    found = merged(checked(plan, len(tensors), on_base), "w", tensors, base if on_base else None)
    expected = PAPERS[method](plan, [tensor.astype(np.float64) for tensor in tensors], base.astype(np.float64))
    assert found.dtype == np.float32 and found.shape == shape
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_an_arc_keeps_its_length_and_its_ends() -> None:
    a, b = arrays((400,), 2)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    for t in (0.0, 0.3, 1.0):
        assert np.linalg.norm(merged(Plan(method="slerp", coefficients=(1 - t, t)), "w", [a, b])) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(merged(Plan(method="slerp", coefficients=(1, 0)), "w", [a, b]), a, atol=1e-7)
    np.testing.assert_array_equal(merged(Plan(method="slerp", coefficients=(0.5, 0.5)), "w", [a * 0, a * 0]), a * 0)
    np.testing.assert_allclose(merged(Plan(method="slerp", coefficients=(0.5, 0.5)), "w", [a, a]), a, atol=1e-7)


def test_chance_is_fair_and_fixed() -> None:
    """Seeds and names decide what is dropped; on average nothing is lost."""
    base, tensor = np.zeros(200_000, np.float32), np.ones(200_000, np.float32)
    plan = Plan(method="dare", coefficients=(1.0,), drop=0.9, seed=1)
    one = merged(plan, "w", [tensor], base)
    assert one.mean() == pytest.approx(1, abs=0.03) and set(np.unique(one)) == {np.float32(0), np.float32(1) / np.float32(1 - 0.9)}
    np.testing.assert_array_equal(one, merged(plan, "w", [tensor], base))
    other = merged(Plan(method="dare", coefficients=(1.0,), drop=0.9, seed=2), "w", [tensor], base)
    assert (one != other).any() and (one != merged(plan, "v", [tensor], base)).any()


WRONG: dict[str, tuple[dict[str, Any], int, bool]] = {
    "one checkpoint": ({"method": "linear", "coefficients": (1,)}, 1, False),
    "an arc of three": ({"method": "slerp", "coefficients": (1, 1, 1)}, 3, False),
    "no base": ({"method": "ties", "coefficients": (1, 1)}, 2, False),
    "a base too many": ({"method": "linear", "coefficients": (1, 1)}, 2, True),
    "density 0": ({"method": "ties", "coefficients": (1, 1), "density": 0.0}, 2, True),
    "drop 1": ({"method": "dare", "coefficients": (1, 1), "drop": 1.0}, 2, True),
    "t above 1": ({"method": "slerp", "coefficients": (-1, 2)}, 2, False),
    "NaN": ({"method": "linear", "coefficients": (1, math.nan)}, 2, False),
    "weights that cancel": ({"method": "linear", "coefficients": (1, -1)}, 2, False),
    "an unknown method": ({"method": "soup", "coefficients": (1, 1)}, 2, False),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_plan_that_cannot_be_meant(case: str) -> None:
    fields, count, has_base = WRONG[case]
    with pytest.raises(AskedWrong):
        checked(Plan(**fields), count, has_base)


@pytest.mark.parametrize(("value", "kind"), [(math.nan, "F32"), (math.inf, "BF16"), (70_000.0, "F16"), (3.4e38, "BF16")])
def test_numbers_that_a_file_cannot_hold(value: float, kind: str) -> None:
    with pytest.raises(NonFinite):
        encoded("w", np.array([1.0, value], np.float32), kind)


def shifted(folder: Path, by: float, **changes: Any) -> Path:
    """The small model with other weights."""
    folder_model(folder, **changes)
    with read_checkpoint(folder) as checkpoint:
        rng = np.random.default_rng(int(by * 100))
        tensors = {name: one.float32() + rng.normal(0, by, one.shape).astype(np.float32) for name, one in checkpoint.tensors.items()}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An empty home."""
    return settings_in(tmp_path)


def free(*paths: Path | str) -> dict[str, tuple[str, ...]]:
    """All of them under MIT, because we say so."""
    return {str(path): ("MIT",) for path in paths}


def weights(path: Path) -> dict[str, Any]:
    """All tensors of a checkpoint's folder."""
    with read_checkpoint(path) as checkpoint:
        return {name: stored.float32() for name, stored in checkpoint.tensors.items()}


def test_two_checkpoints_become_one(tmp_path: Path, settings: Settings) -> None:
    one, two = shifted(tmp_path / "one", 0.01), shifted(tmp_path / "two", 0.02)
    plan = Plan(method="linear", coefficients=(3.0, 1.0))
    made = merge_models([str(one), str(two)], Order(plan=plan, name="both", licences=free(one, two)), settings=settings)
    first, second, found = weights(one), weights(two), weights(made.path)
    assert found.keys() == first.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, 0.75 * first[name] + 0.25 * second[name], rtol=1e-6, atol=1e-7)
    entry = Library(settings).find("both")
    assert entry is not None and entry.verified and entry.licences == ("MIT",) and [p.how for p in entry.parents] == ["merged", "merged"]
    record = record_beside(made.path)
    assert record is not None and [(p.name, p.role, p.coefficient) for p in record.parents] == [
        ("one", "merge-term", 3.0),
        ("two", "merge-term", 1.0),
    ]
    assert record.recipe == {"method": "linear", "coefficients": [3.0, 1.0], "computed_in": "float32"}
    assert not list(verify(made.path, settings, lambda *_, **__: None))
    assert (made.path / "LICENSE").is_file() and json.loads((made.path / "config.json").read_text())["torch_dtype"] == "float32"


def test_a_gguf_file_and_a_folder(tmp_path: Path, settings: Settings) -> None:
    """Names, order of rows and vocabularies of both containers agree."""
    one, two, base = (shifted(tmp_path / name, by) for name, by in (("one", 0.01), ("two", 0.02), ("base", 0.0)))
    gguf = quantise(str(one), to="f32", settings=settings, output=tmp_path / "one.gguf", into="gguf").path
    plan = Plan(method="ties", coefficients=(1.0, 0.5), density=0.5)
    said = free(one, two, base, gguf)
    whole = merge_models([str(one), str(two)], Order(plan=plan, base=str(base), name="a", licences=said), settings=settings)
    mixed = merge_models([str(gguf), str(two)], Order(plan=plan, base=str(base), name="b", licences=said), settings=settings)
    first, second = weights(whole.path), weights(mixed.path)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert any((first[name] != value).any() for name, value in weights(base).items())


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, settings: Settings) -> None:
    one, base = shifted(tmp_path / "one", 0.01), shifted(tmp_path / "base", 0.0)

    def made(name: str, seed: int) -> bytes:
        plan = Plan(method="dare", coefficients=(1.0,), seed=seed)
        order = Order(plan=plan, base=str(base), name=name, licences=free(one, base), kind="bf16")
        return (merge_models([str(one)], order, settings=settings).path / "model.safetensors").read_bytes()

    assert made("a", 1) == made("b", 1) != made("c", 2)


def test_tensors_are_computed_one_after_another(tmp_path: Path) -> None:
    """Nothing is read before its bytes are asked for, and no source is read twice for a tensor."""
    one, two = shifted(tmp_path / "one", 0.01), shifted(tmp_path / "two", 0.02)
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        real = merged
        patch.setattr("khola.train.merge.merged", lambda plan, name, *rest: seen.append(name) or real(plan, name, *rest))
        with merging([one, two], Plan(method="linear", coefficients=(1, 1)), None) as parts:
            assert not seen
            for name, stored in parts.tensors[:3]:
                stored.raw()
                assert seen[-1] == name
    assert len(seen) == 3


def test_shards(tmp_path: Path, settings: Settings) -> None:
    one, two = shifted(tmp_path / "one", 0.01), shifted(tmp_path / "two", 0.02)
    said = {"plan": Plan(method="linear", coefficients=(1, 1)), "licences": free(one, two)}
    whole = merge_models([str(one), str(two)], Order(name="whole", **said), settings=settings)
    split = merge_models([str(one), str(two)], Order(name="split", shard_bytes=100_000, **said), settings=settings)
    index = json.loads((split.path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in split.path.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors" and set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == whole.bytes and not (split.path / "model.safetensors").exists()
    first, second = weights(whole.path), weights(split.path)
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_models_of_different_shapes(tmp_path: Path, settings: Settings) -> None:
    one = shifted(tmp_path / "one", 0.01)
    for place, (changes, key) in enumerate(
        [({"rope_theta": 1e6}, "rope_theta"), ({"num_hidden_layers": 3}, "num_hidden_layers"), ({"tie_word_embeddings": False}, "tie_word")]
    ):
        other = folder_model(tmp_path / f"other{place}", **changes)
        with pytest.raises(AskedWrong, match=key):
            attempt(settings, one, other)


def attempt(settings: Settings, one: Path, other: Path, **said: Any) -> None:
    """A plain average under MIT."""
    order = Order(plan=Plan(method="linear", coefficients=(1, 1)), name="x", **{"licences": free(one, other), **said})
    merge_models([str(one), str(other)], order, settings=settings)


def test_other_tokens_and_other_tensors(tmp_path: Path, settings: Settings) -> None:
    one, other = shifted(tmp_path / "one", 0.01), shifted(tmp_path / "other", 0.02)
    tensors = weights(other)
    victim = "model.layers.1.mlp.up_proj.weight"
    write_safetensors(other / "model.safetensors", {name: value for name, value in tensors.items() if name != victim})
    with pytest.raises(MissingTensor, match=victim):
        attempt(settings, one, other)
    write_safetensors(other / "model.safetensors", tensors | {victim: tensors[victim][:-1]})
    with pytest.raises(WrongShape, match=victim):
        attempt(settings, one, other)
    text = (other / "tokenizer.json").read_text(encoding="utf-8").replace('"th": 256', '"ht": 256').replace('"t h"', '"h t"')
    (other / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(AskedWrong, match="other tokens"):
        attempt(settings, one, other)
    assert Library(settings).entries() == []


def test_licences_are_asked_first(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = shifted(tmp_path / "one", 0.01), shifted(tmp_path / "two", 0.02)
    monkeypatch.setattr("khola.train.made.merging", lambda *_: pytest.fail("read"))
    with pytest.raises(UnknownLicence, match="one: nothing says"):
        attempt(settings, one, two, licences=free(two))
    with pytest.raises(LicenceForbids, match="must begin with 'Llama'"):
        attempt(settings, one, two, licences={str(one): ("llama-3.1",), str(two): ("MIT",)})
