"""Real models: greedy continuations equal to those that transformers recorded (`golden/record.py`), in English, Python, Bengali, Chinese.

All prompts are read in one step and continued together, one row each, through the paged cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from khola.loader.assemble import assemble
from khola.models import architecture
from khola.nn.decoder import logits
from khola.nn.specs import parse_config
from khola.ops.numpy_ops import NumpyOps
from khola.ops.vocabulary import PAGE_TOKENS, Interpreter, Step
from tests.models.gguf_reference import read
from tests.tolerances import TIE

pytestmark = [pytest.mark.slow, pytest.mark.parity]

MODELS = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")


@pytest.mark.parametrize("name", MODELS)
def test_greedy_continuations_are_transformers(name: str, real_model: Callable[[str], Path]) -> None:
    golden = json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    rows = golden["rows"]
    assert len(rows) == 20 and {row["language"] for row in rows} == {"english", "python", "bengali", "chinese"}
    found = continued(real_model(name), NumpyOps(), [row["ids"] for row in rows], len(rows[0]["tokens"]))
    ties = []
    for row, tokens in zip(rows, found, strict=True):
        where = next((at for at, (got, want) in enumerate(zip(tokens, row["tokens"], strict=True)) if got != want), None)
        if where is None:
            continue
        gap = row["gaps"][where]
        assert gap < TIE, (
            f"{row['prompt']!r}: token {where} is {tokens[where]}, expected {row['tokens'][where]}; the reference's gap is {gap}"
        )
        ties.append(f"{row['prompt']!r} from token {where} on, where the reference's two best logits are {gap} apart")
    print(f"{name}: {len(rows) - len(ties)} of {len(rows)} continuations equal" + "".join(f"\nnot compared: {tie}" for tie in ties))
    assert len(ties) <= 2, f"too many ties: {ties}"


def continued(path: Path, ops: Interpreter, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """Greedy tokens of every prompt."""
    raw, tensors = read(path)
    here = architecture(raw["model_type"])
    c = parse_config(here, raw)
    weights = assemble(here, c, tensors, ops)
    tensors.clear()
    lengths = np.array([len(ids) for ids in prompts], np.int32)
    most = -(-(int(lengths.max()) + num_tokens) // PAGE_TOKENS)
    pages = np.random.default_rng(0).permutation(len(prompts) * most).reshape(len(prompts), most).astype(np.int32)
    cache = ops.new_cache(here.cache(c), pages.size)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    step = Step(np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]), starts, lengths, starts[1:] - 1, pages, cache)
    ids: Any = np.concatenate(prompts)
    found: list[list[int]] = [[] for _ in prompts]
    every = np.arange(len(prompts) + 1, dtype=np.int32)
    for _ in range(num_tokens):
        ids = logits(ids, here, weights, c, step, ops).argmax(-1)
        for tokens, token in zip(found, ids.tolist(), strict=True):
            tokens.append(token)
        step = Step(lengths, every, lengths + 1, every[:-1], pages, cache)
        lengths = lengths + 1
    return found


@pytest.mark.parametrize("name", MODELS)
def test_khola_reads_the_same_weights_as_the_gguf_package(name: str, real_model: Callable[[str], Path]) -> None:
    """Names, shapes, every number and every key: khola's own reader beside a second one."""
    from khola.store.gguf import read_gguf
    from khola.store.names import checkpoint_tensors, config_from_gguf

    path = real_model(name)
    raw, wanted = read(path)
    with read_gguf(path) as file:
        found = checkpoint_tensors(file)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert np.array_equal(found[key].float32(), tensor.float32()), key
        here = architecture(raw["model_type"])
        ours = parse_config(here, config_from_gguf(file.metadata, file.tensors, file=path.name), path.name)
    theirs = parse_config(here, raw)
    assert here.tensors(ours) == here.tensors(theirs)
    assert (ours.rope, ours.rms_norm_eps, ours.attentions) == (theirs.rope, theirs.rms_norm_eps, theirs.attentions)
