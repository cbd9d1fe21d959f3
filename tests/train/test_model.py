"""A model that learns: its numbers, its gradients, its adapters, and the way back to disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from khola.data.packing import Batch, Sample, packed
from khola.errors import AskedWrong
from khola.loader import find, load_model
from khola.store.quantise import dequantise
from khola.store.quantisers import quantise_well
from khola.store.safetensors import read_safetensors
from khola.train.config import Lora
from khola.train.lora import KINDS, grouped
from khola.train.model import Trainee
from tests.loader.whole_models import CONFIG, write_file, write_folder
from tests.train.runs import settings

GLM = {key: value for key, value in CONFIG.items() if key not in ("model_type", "rope_theta")} | {
    "model_type": "glm4", "head_dim": 8, "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "attention_bias": True,
}  # fmt: skip
MOE = CONFIG | {
    "model_type": "qwen3_moe", "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
TIED = CONFIG | {"tie_word_embeddings": True}
QWEN = CONFIG | {"model_type": "qwen2"}
CONFIGS = {"llama": CONFIG, "tied": TIED, "biases": QWEN, "adjacent pairs": GLM, "experts": MOE}
WIDE = CONFIG | {"hidden_size": 64, "intermediate_size": 128}
"""Whose rows are whole groups of 64."""


def sequences(count: int = 5, seed: int = 0) -> list[Sample]:
    """Random ids of several lengths, most of them learned."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        ids = rng.integers(0, 256, 6 + 3 * number).astype(np.int32)
        made.append(Sample(ids=ids, learned=rng.random(len(ids)) < 0.8))
    return made


def trainee(place: Path, config: dict[str, Any] = CONFIG, **options: Any) -> Trainee:
    """A tiny model in float64, where it does not say otherwise."""
    folder = place / "model"
    if not folder.exists():
        write_folder(folder, config)
    return Trainee(find(str(folder), settings(place)), **{"dtype": "float64", **options})


def gradients(model: Trainee, batches: list[Batch]) -> tuple[float, dict[str, Tensor]]:
    """Loss over all batches together, and its gradients."""
    count = sum(batch.count for batch in batches)
    for parameter in model.parameters.values():
        parameter.grad = None
    total = 0.0
    for batch in batches:
        loss = model.cross_entropy(batch) / count
        loss.backward()
        total += float(loss.detach())
    return total, {name: one.grad.clone() for name, one in model.parameters.items() if one.grad is not None}


def same(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]], within: float = 1e-9) -> None:
    """Equal losses and gradients."""
    assert one[0] == pytest.approx(other[0], rel=within)
    assert one[1].keys() == other[1].keys() and one[1]
    for name, values in one[1].items():
        torch.testing.assert_close(values, other[1][name], rtol=within, atol=within)


@pytest.mark.parametrize("kind", CONFIGS)
def test_its_log_probs_are_those_of_the_loaded_model(tmp_path: Path, kind: str) -> None:
    model = trainee(tmp_path, CONFIGS[kind], dtype="float32")
    batch = packed(sequences(), range(5))
    loaded = load_model(str(tmp_path / "model"), settings=settings(tmp_path), interpreter="numpy", dtype="float64")
    logits_RV = torch.from_numpy(np.asarray(loaded.logits(batch.ids_T, batch.step, loaded.ops)))
    expected_R = logits_RV.log_softmax(-1)[torch.arange(len(batch.rows_R)), torch.from_numpy(batch.targets_R).long()]
    found_R = model.log_probs(batch)
    torch.testing.assert_close(found_R.double(), expected_R, rtol=1e-4, atol=1e-4)
    assert model.cross_entropy(batch).item() == pytest.approx(-expected_R.sum().item(), rel=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_untrained_model_goes_back_as_it_came(tmp_path: Path, kind: str) -> None:
    model = trainee(tmp_path, CONFIGS[kind], dtype="float32")
    with read_safetensors(tmp_path / "model" / "model.safetensors") as file:
        expected = {name: stored.float32() for name, stored in file.tensors.items()}
    found = {stored.name: stored.float32() for stored in model.exported("F32")}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_sequences_do_not_see_each_other(tmp_path: Path, kind: str) -> None:
    """Loss and gradients of one batch of five equal those of five batches of one."""
    model, samples = trainee(tmp_path, CONFIGS[kind]), sequences()
    together = gradients(model, [packed(samples, range(5))])
    same(together, gradients(model, [packed(samples, [number]) for number in range(5)]))
    others = [replace(sample, ids=(sample.ids + 7) % 256) if number else sample for number, sample in enumerate(samples)]
    one, other = (model.log_probs(packed(made, range(5)))[: int(samples[0].learned[1:].sum())] for made in (samples, others))
    assert torch.equal(one, other)


def test_any_split_into_micro_batches_gives_the_same_gradient(tmp_path: Path) -> None:
    """Also where they have very different numbers of learned tokens: no mean of means."""
    model, samples = trainee(tmp_path), sequences(6)
    samples[0] = replace(samples[0], learned=np.arange(len(samples[0].ids)) == 3)
    whole = gradients(model, [packed(samples, range(6))])
    for split in ([[0], [1, 2, 3, 4, 5]], [[5, 0], [4, 1], [3, 2]], [[0, 1, 2], [3], [4], [5]]):
        same(whole, gradients(model, [packed(samples, numbers) for numbers in split]))


def test_computing_blocks_again_changes_nothing(tmp_path: Path) -> None:
    batch = packed(sequences(), range(5))
    plain, again = (gradients(trainee(tmp_path, recompute=recompute), [batch]) for recompute in (False, True))
    assert plain[0] == again[0]
    for name, values in plain[1].items():
        assert torch.equal(values, again[1][name]), name


def test_gradients_are_those_of_differences(tmp_path: Path) -> None:
    """Central differences of the loss along random directions."""
    model, batch = trainee(tmp_path, TIED), packed(sequences(), range(5))
    _, found = gradients(model, [batch])
    rng = torch.Generator().manual_seed(0)
    for name in (
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.norm.weight",
    ):
        way, losses = torch.randn(found[name].shape, generator=rng, dtype=torch.float64), []
        for sign in (1, -1, 0):
            with torch.no_grad():
                model.masters[name] += way * (1e-5 * sign if sign else 0)
                losses.append(float(model.cross_entropy(batch)) / batch.count)
                model.masters[name] -= way * (1e-5 * sign if sign else 0)
        slope = (losses[0] - losses[1]) / 2e-5
        assert slope == pytest.approx(float((found[name] * way).sum()), rel=1e-5), name


def test_master_weights_are_those_of_the_file(tmp_path: Path) -> None:
    """Not those rounded to bfloat16; the forward pass runs on rounded ones."""
    half, full = trainee(tmp_path, dtype="bfloat16"), trainee(tmp_path, dtype="float32")
    for name, master in full.masters.items():
        assert torch.equal(half.masters[name], master)
        assert half.parameters[name].dtype is torch.bfloat16
    with torch.no_grad():
        half.masters["model.norm.weight"].add_(1)
    half.publish()
    assert torch.equal(half.parameters["model.norm.weight"].detach(), (full.masters["model.norm.weight"] + 1).bfloat16())


@pytest.mark.parametrize("options", [Lora(rank=4), Lora(rank=4, dora=True), Lora(rank=2, stabilised=True, targets=r"\.o_proj$")])
def test_adapters_change_nothing_until_they_learn_and_merge_into_the_same(tmp_path: Path, options: Lora) -> None:
    plain, model, batch = trainee(tmp_path), trainee(tmp_path, lora=options), packed(sequences(), range(5))
    torch.testing.assert_close(model.log_probs(batch), plain.log_probs(batch), rtol=1e-9, atol=1e-9)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for master in model.masters.values():
            master.add_(0.1 * torch.randn(master.shape, generator=rng, dtype=torch.float64))
    changed = model.log_probs(batch).detach()
    assert (changed - plain.log_probs(batch)).abs().max() > 1e-3
    merged = write_folder(tmp_path / "merged", arrays={stored.name: stored.float32() for stored in model.exported("F32")})
    other = Trainee(find(str(merged), settings(tmp_path)), dtype="float64")
    torch.testing.assert_close(other.log_probs(batch).detach(), changed, rtol=1e-5, atol=1e-5)
    with model.reference() as before:
        torch.testing.assert_close(before.log_probs(batch), plain.log_probs(batch).detach(), rtol=1e-9, atol=1e-9)
    assert torch.equal(model.log_probs(batch), changed)


def test_the_reference_of_a_whole_model_stays_where_it_was(tmp_path: Path) -> None:
    model, batch = trainee(tmp_path), packed(sequences(), range(5))
    before = model.log_probs(batch).detach()
    with torch.no_grad():
        model.masters["model.norm.weight"] += 1
    with model.reference() as reference:
        found = reference.log_probs(batch)
    assert torch.equal(found, before) and not found.requires_grad
    assert not torch.equal(model.log_probs(batch), before)


@pytest.mark.parametrize("base", ["int8", "int4"])
def test_adapters_learn_beside_a_base_of_few_bits(tmp_path: Path, base: Any) -> None:
    """Frozen matrices take a quarter or less; numbers and gradients are those of a dense base with the same rounded values."""
    model, batch = trainee(tmp_path, WIDE, lora=Lora(rank=4, base=base)), packed(sequences(), range(5))
    rounded = {stored.name: stored.float32() for stored in model.exported("F32")}
    dense = Trainee(
        find(str(write_folder(tmp_path / "rounded", WIDE, arrays=rounded)), settings(tmp_path)), dtype="float64", lora=Lora(rank=4)
    )
    torch.testing.assert_close(model.log_probs(batch), dense.log_probs(batch), rtol=1e-6, atol=1e-6)
    one, other = gradients(model, [batch]), gradients(dense, [batch])
    for name in one[1]:
        if name.endswith("lora_b"):
            assert one[1][name].abs().max() > 0
            torch.testing.assert_close(one[1][name], other[1][name], rtol=1e-5, atol=1e-6)
    with read_safetensors(tmp_path / "model" / "model.safetensors") as file:
        name = "model.layers.0.self_attn.q_proj"
        stored = file.tensors[f"{name}.weight"]
        matrix = grouped(stored, base, torch.float32, torch.device("cpu"))
        raw = quantise_well(KINDS[base], stored.float32())
        np.testing.assert_array_equal(matrix.whole().numpy(), dequantise(KINDS[base], raw).reshape(64, 64))
        assert matrix.nbytes < stored.nbytes / 3.8
        again = grouped(replace(stored, kind=KINDS[base], load=lambda: memoryview(raw)), base, torch.float32, torch.device("cpu"))
        assert torch.equal(again.whole(), matrix.whole())


def test_a_gguf_file_learns_too(tmp_path: Path) -> None:
    path = write_file(tmp_path / "tiny.gguf", QWEN)
    model = Trainee(find(str(path), settings(tmp_path)), dtype="float64")
    batch = packed(sequences(), range(5))
    same(gradients(model, [batch]), gradients(trainee(tmp_path, QWEN), [batch]))
    assert "tokenizer.json" in model.origin.documents


def test_a_pattern_that_finds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AskedWrong, match="no matrix of model matches"):
        trainee(tmp_path, lora=Lora(targets="nothing"))
