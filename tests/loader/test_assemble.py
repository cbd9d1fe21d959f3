"""Weights that do not fit their architecture: every tensor of tiny models, wrong in every way, is named before anything is taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from khola.errors import MissingTensor, UnexpectedTensor, WrongShape
from khola.loader.assemble import assemble
from khola.models import architecture
from khola.nn.specs import parse_config
from khola.ops.numpy_ops import NumpyOps
from khola.ops.vocabulary import Stored, Weight
from tests.models.stored import Plain

SIZES = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES},
    "llama with biases": {"model_type": "llama", **SIZES, "attention_bias": True, "mlp_bias": True},
    "llama, tied": {"model_type": "llama", **SIZES, "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", **SIZES},
    "qwen3": {"model_type": "qwen3", **SIZES, "head_dim": 6},
    "glm": {"model_type": "glm", **SIZES},
    "glm4": {"model_type": "glm4", **SIZES, "attention_bias": False},
    "qwen3_next": {
        "model_type": "qwen3_next",
        **SIZES,
        "head_dim": 8,
        "full_attention_interval": 2,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 6,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 5,
        "shared_expert_intermediate_size": 3,
    },
    "minimax": {"model_type": "minimax", **SIZES, "attn_type_list": [0, 1], "num_local_experts": 2, "num_experts_per_tok": 1},
    "ernie4_5": {"model_type": "ernie4_5", **SIZES, "head_dim": 4, "tie_word_embeddings": False},
}


class Idle(NumpyOps):
    """An interpreter that must not be asked for anything."""

    def take(self, stored: Stored, bias: Stored | None = None, *, exact_bias: bool = False) -> Weight:
        raise AssertionError("taken before everything was checked")


class Model:
    """One tiny checkpoint."""

    def __init__(self, name: str) -> None:
        self.architecture = architecture(CONFIGS[name]["model_type"])
        self.config = parse_config(self.architecture, CONFIGS[name])
        rng = np.random.default_rng(0)
        self.arrays = {key: rng.standard_normal(shape) for key, shape in self.architecture.tensors(self.config).items()}

    def assemble(self, arrays: dict[str, Any], ops: NumpyOps | None = None, told: list[Any] | None = None) -> Any:
        """The tree of these arrays."""
        tensors = {name: Plain(name, array) for name, array in arrays.items()}
        tell = None if told is None else (lambda text, **facts: told.append(text.format(**facts)))
        return assemble(self.architecture, self.config, tensors, ops or Idle(), file="tiny", tell=tell)


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Model:
    """Every kind of checkpoint."""
    return Model(request.param)


def misshapen(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array with one size off by one, transposed, with an axis more and one less."""
    for axis in range(array.ndim):
        yield np.concatenate([array, array.take([0], axis)], axis)
        yield array.take(range(array.shape[axis] - 1), axis)
    if array.ndim == 2 and array.shape[0] != array.shape[1]:
        yield array.T
    yield array[None]
    yield array[..., None]
    yield array[0] if array.ndim > 1 else array[:, None]


def test_every_wrong_shape_is_named(model: Model) -> None:
    for name, array in model.arrays.items():
        for wrong in misshapen(array):
            with pytest.raises(WrongShape) as error:
                model.assemble({**model.arrays, name: wrong})
            told = str(error.value)
            assert name in told and str(list(np.shape(wrong))) in told and str(list(array.shape)) in told and "tiny" in told


def test_every_missing_tensor_is_named(model: Model) -> None:
    for name in model.arrays:
        with pytest.raises(MissingTensor) as error:
            model.assemble({key: array for key, array in model.arrays.items() if key != name})
        assert name in str(error.value) and error.value.hint()


def test_every_extra_or_renamed_tensor_is_named(model: Model) -> None:
    for name, array in model.arrays.items():
        for other in (f"{name}_", f"x{name}", name.replace("weight", "scale") + "s", "model.layers.2.mlp.up_proj.weight"):
            with pytest.raises(UnexpectedTensor) as extra:
                model.assemble({**model.arrays, other: array})
            assert other in str(extra.value)
            with pytest.raises(MissingTensor, match=name.replace(".", r"\.")):
                model.assemble({key if key != name else other: array for key, array in model.arrays.items()})


def test_a_tensor_that_all_layers_miss_is_counted() -> None:
    model = Model("qwen2")
    arrays = {name: array for name, array in model.arrays.items() if not name.endswith("q_proj.bias")}
    with pytest.raises(MissingTensor, match=r"layers\.0\.self_attn\.q_proj\.bias is missing \(2 of 2 like it; 2 missing in all\)"):
        model.assemble(arrays)


def test_biases_are_paired_with_their_weights() -> None:
    model = Model("llama with biases")
    tree = model.assemble(model.arrays, NumpyOps())
    projection = tree.model.layers[1].self_attn.o_proj
    assert projection.name == "model.layers.1.self_attn.o_proj"
    assert np.array_equal(projection.bias, model.arrays["model.layers.1.self_attn.o_proj.bias"].astype(np.float32))
    assert tree.model.layers[0].input_layernorm.bias is None


def test_saved_frequencies_are_left_out() -> None:
    model = Model("llama")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2), "rope_freqs.weight": np.ones(2)}
    assert model.assemble({**model.arrays, **extra}, NumpyOps()).lm_head.data.shape == (11, 8)


def test_tied_models_that_ship_a_head() -> None:
    model, told = Model("llama, tied"), []
    table = model.arrays["model.embed_tokens.weight"]
    tree = model.assemble({**model.arrays, "lm_head.weight": table}, NumpyOps(), told)
    assert not told and len(tree) == 1
    model.assemble({**model.arrays, "lm_head.weight": table + 1}, NumpyOps(), told)
    assert len(told) == 1 and "lm_head.weight" in told[0]


def test_an_untied_model_without_a_head_is_told_what_to_look_at() -> None:
    model = Model("llama")
    with pytest.raises(MissingTensor) as error:
        model.assemble({name: array for name, array in model.arrays.items() if name != "lm_head.weight"})
    assert "tie_word_embeddings" in error.value.hint()
