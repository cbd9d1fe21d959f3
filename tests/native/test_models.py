"""Whole tiny models: the native program against the numpy interpreter on the same packed values, in every instruction set."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.loader.assemble import assemble
from khola.models import architecture
from khola.native.lib import choose_isa
from khola.nn import decoder
from khola.nn.specs import parse_config
from khola.ops.native_ops import CacheForm, NativeOps
from khola.ops.numpy_ops import NumpyOps
from khola.ops.vocabulary import PAGE_TOKENS, Step, whole_sequences
from khola.store.quantise import quantise
from tests.native.rig import Raw, nmse, rounded
from tests.needs import needs_library

pytestmark = needs_library

Array = NDArray[Any]
VOCABULARY = 99
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "llama tied, three key heads": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "hidden_size": 144,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
}
BASE = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
}  # fmt: skip
LIMITS = {"F32": 2e-3, "Q8_0": 2e-3, "Q4_0": 2e-3}
"""NMSE of logits between the native program, which rounds inputs of products to 8 bits or bfloat16, and numpy on the same stored values.
Measured: at most 6e-4."""
PROMPT = 75


class Made:
    """A model with random weights in one number format."""

    def __init__(self, name: str, kind: str) -> None:
        raw = {**BASE, **CONFIGS[name]}
        self.architecture = architecture(raw["model_type"])
        self.config = parse_config(self.architecture, raw)
        self.stored = {key: _stored(key, shape, kind) for key, shape in _shapes(raw).items()}
        self.ids = np.random.default_rng(1).integers(0, VOCABULARY, PROMPT).astype(np.int32)

    def numpy(self, ids: Array) -> Array:
        """Logits of every token of a prompt."""
        ops = NumpyOps()
        weights = assemble(self.architecture, self.config, self.stored, ops)
        out = decoder.logits(ids, self.architecture, weights, self.config, whole_sequences([len(ids)]), ops)
        return np.asarray(out)

    def native(self, isa: str, threads: int = 2, kept: CacheForm = "bf16") -> tuple[Any, Any]:
        """A program and a cache of eight pages."""
        choose_isa(isa)
        ops = NativeOps(threads=threads, cache=kept)
        weights = assemble(self.architecture, self.config, self.stored, ops)
        spec = self.architecture.cache(self.config)
        program = ops.compile(
            lambda ids, step, ops: decoder.logits(ids, self.architecture, weights, self.config, step, ops), spec, 256, 128
        )
        choose_isa("")
        return program, ops.new_cache(spec, 8)


def _shapes(raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = raw["hidden_size"], raw["intermediate_size"]
    keys = hidden // raw["num_attention_heads"] * raw["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    if not raw["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCABULARY, hidden)
    for layer in range(raw["num_hidden_layers"]):
        here = f"model.layers.{layer}."
        shapes |= {f"{here}{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for name, width in (("q", hidden), ("k", keys), ("v", keys)):
            shapes[f"{here}self_attn.{name}_proj.weight"] = (width, hidden)
            if raw["model_type"] == "qwen2":
                shapes[f"{here}self_attn.{name}_proj.bias"] = (width,)
        shapes |= {f"{here}self_attn.o_proj.weight": (hidden, hidden), f"{here}mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{here}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    return shapes


def _stored(name: str, shape: tuple[int, ...], kind: str) -> Any:
    random = np.random.default_rng(list(name.encode()))
    noise = random.standard_normal(shape).astype(np.float32)
    values = 1 + 0.2 * noise if "norm" in name else noise * (0.2 if len(shape) == 1 else shape[-1] ** -0.5)
    # What the native engine would round is rounded for numpy as well.
    values = rounded(values) if len(shape) == 2 else values.astype(np.float32)
    kind = kind if len(shape) == 2 and shape[1] % 32 == 0 else "F32"
    stored = Raw(kind, shape, quantise(kind, values))
    stored.name = name
    return stored


@cache
def made(name: str, kind: str) -> Made:
    """Made once."""
    return Made(name, kind)


@cache
def reference(name: str, kind: str) -> Array:
    """Numpy's logits of the prompt."""
    return made(name, kind).numpy(made(name, kind).ids)


def one(cache: Any, before: int, rows: int, wanted: list[int], *, answer: bool = False) -> Step:
    """A step of a single sequence on the first pages, of a prompt or of an answer."""
    pages = np.arange(-(-(before + rows) // PAGE_TOKENS), dtype=np.int32)[None]
    positions = np.arange(before, before + rows, dtype=np.int32)
    starts, lengths = np.array([0, rows], np.int32), np.array([before + rows], np.int32)
    kinds = [np.full(count, answer) for count in (rows, len(wanted))]
    return Step(positions, starts, lengths, np.array(wanted, np.int32), pages, cache, *kinds)


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name: str, kind: str, isa: str) -> None:
    """The whole prompt at once, in short steps, and as if it were an answer, which takes the other kind of product."""
    model, wanted = made(name, kind), reference(name, kind)
    program, cache = model.native(isa)
    assert nmse(program(model.ids, one(cache, 0, PROMPT, list(range(PROMPT)))), wanted) < LIMITS[kind]
    for answer in (False, True):
        for before in range(0, PROMPT, 11):
            ids = model.ids[before : before + 11]
            found = program(ids, one(cache, before, len(ids), list(range(len(ids))), answer=answer))
            assert nmse(found, wanted[before : before + len(ids)]) < LIMITS[kind], before


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens(name: str, isa: str) -> None:
    """Token by token the native program chooses as numpy does, wherever the choice is no near tie."""
    model = made(name, "Q8_0")
    program, cache = model.native(isa)
    ids = list(model.ids[:40])
    found = program(model.ids[:40], one(cache, 0, 40, [39]))[0]
    clear = 0
    for _ in range(12):
        wanted = model.numpy(np.array(ids, np.int32))[-1]
        best, second = np.sort(wanted)[[-1, -2]]
        if best - second > 0.1:
            clear += 1
            assert found.argmax() == wanted.argmax()
        ids.append(int(wanted.argmax()))
        found = program(np.array(ids[-1:], np.int32), one(cache, len(ids) - 1, 1, [0], answer=True))[0]
    assert clear > 5


@pytest.mark.parametrize("name", CONFIGS)
def test_threads_and_company_change_no_bit(name: str, isa: str) -> None:
    """A sequence gives the same logits with one thread or two, alone or beside others, decoded or verified some tokens at a time."""
    model = made(name, "Q4_0")
    steps = [(0, 20), (20, 1), (21, 1), (22, 1), (23, 4)]

    def run(threads: int, company: int) -> Array:
        program, cache = model.native(isa, threads)
        rows = []
        for before, count in steps:
            beside = company if count < 10 else 0
            ids = np.concatenate([model.ids[before : before + count], *[model.ids[:2]] * beside])
            positions = np.concatenate([np.arange(before, before + count), *[np.arange(2)] * beside]).astype(np.int32)
            starts = np.array([0, *(count + 2 * i for i in range(beside + 1))], np.int32)
            lengths = np.array([before + count, *[2] * beside], np.int32)
            pages = np.array([[0], *([1 + i] for i in range(beside))], np.int32)
            rows.append(program(ids, Step(positions, starts, lengths, np.arange(count, dtype=np.int32), pages, cache)))
        return np.concatenate(rows)

    alone = run(1, 0)
    for threads, company in ((2, 0), (1, 5), (2, 5)):
        np.testing.assert_array_equal(run(threads, company), alone, err_msg=f"{threads} threads, {company} beside")


def test_a_planted_fault_is_seen(isa: str) -> None:
    """The limit tells a model whose gate and up are exchanged from a right one."""
    wrong, wanted = Made("llama", "Q8_0"), reference("llama", "Q8_0")
    for layer in range(3):
        gate, up = (wrong.stored[f"model.layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up"))
        gate.blocks, up.blocks = up.blocks, gate.blocks
    program, cache = wrong.native(isa)
    assert nmse(program(wrong.ids, one(cache, 0, PROMPT, list(range(PROMPT)))), wanted) > LIMITS["Q8_0"]
