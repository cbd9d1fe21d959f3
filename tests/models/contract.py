"""What every text architecture must pass, whichever it is; its test file gives only tiny configurations.

A tiny model has random weights, biases and norms included, because initialisers leave those 0 and 1. Its reference is the lab's class in
transformers, in float32, with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from khola.engine.runner import in_turn
from khola.loader.assemble import CORRECTION, EXPERT, assemble
from khola.models import architecture
from khola.nn.decoder import logits
from khola.nn.shapes import shaped
from khola.nn.specs import Architecture, parse_config
from khola.ops.native_ops import NativeOps
from khola.ops.numpy_ops import NumpyOps
from khola.ops.vocabulary import PAGE_TOKENS, Interpreter, Rope, Step, Stored, Weight, whole_sequences
from tests.models.parity import Parity
from tests.models.stored import Quantised, as_on_disk, kept_tensors, stored
from tests.native.rig import rounded
from tests.needs import needs_library
from tests.tolerances import BFLOAT16_SHARE, CACHED, FLOAT32_FLOAT64, GRADIENT, LOGITS, NATIVE_LOGITS, QUANTISED

LENGTH = 75
"""Tokens of the prompt: more than two pages, and more than the original context of the scaled models."""
VOCABULARY = 99
CHOICE_NOISE = 0.6
"""Of the bias that helps a router to choose: experts so far apart that rounding seldom sends a token to another one."""

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


@dataclass(eq=False)
class Tiny:
    """A random model: its reference, its configuration and its weights."""

    reference: Any
    raw: dict[str, Any]
    arrays: dict[str, NDArray[np.float32]]
    on_disk: Callable[[str], str] = str
    """What checkpoints call a tensor of the reference."""
    ids: NDArray[np.int64] = field(default_factory=lambda: np.random.default_rng(1).integers(0, VOCABULARY, LENGTH))
    name: str = ""
    """Of its configuration."""

    @staticmethod
    @cache
    def made(contract: type[Contract], name: str) -> Tiny:
        """The model of one named configuration."""
        import torch

        config = contract.config_class()(**{**BASE, **contract.CONFIGS[name]}, attn_implementation="eager")
        model = contract.model_class()(config).eval()
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for key, parameter in kept_tensors(model):
                noise = torch.randn(parameter.shape, generator=generator)
                if "norm" in key:
                    parameter.add_(0.2 * noise)  # to 1, or to 0 where norms multiply by 1 + weight
                elif key.endswith("A_log"):
                    parameter.copy_(-3 + 0.5 * noise)
                elif "embed_tokens" in key:
                    parameter.copy_(0.05 * noise)
                else:
                    vector = CHOICE_NOISE if CORRECTION.fullmatch(key) else 0.2
                    parameter.copy_(
                        noise * (vector if parameter.dim() == 1 else parameter.shape[-1] ** -0.5) * (0.5 if "lm_head" in key else 1)
                    )
        arrays = {key: tensor.detach().numpy() for key, tensor in as_on_disk(kept_tensors(model), contract.on_disk).items()}
        return Tiny(model, config.to_dict(), arrays, contract.on_disk, name=name)

    @cached_property
    def architecture(self) -> Architecture:
        """The module under test."""
        return architecture(self.raw["model_type"])

    @cached_property
    def config(self) -> Any:
        """The configuration as khola reads it from the lab's own keys."""
        return parse_config(self.architecture, self.raw)

    def weights(self, ops: Interpreter, arrays: dict[str, Stored] | None = None) -> Any:
        """The tree of weights in an interpreter."""
        return assemble(self.architecture, self.config, arrays or stored(self.arrays), ops)

    def logits(self, ops: Interpreter, step: Step | None = None, ids: Any = None, weights: Any = None, config: Any = None) -> NDArray[Any]:
        """Logits of a step, by default of the whole prompt."""
        weights = weights if weights is not None else self.weights(ops)
        ids = self.ids if ids is None else ids
        out = logits(ids, self.architecture, weights, config or self.config, step or whole_sequences([len(ids)]), ops)
        return ops.to_numpy(out) if ops.name == "torch" else out

    def layers(self, ops: Interpreter, weights: Any) -> list[NDArray[Any]]:
        """Hidden states before the first layer and after each, the last one normed."""
        here, c, step = self.architecture, self.config, whole_sequences([LENGTH])
        x_TD = here.embed(self.ids, weights, c, ops)
        found = [x_TD]
        blocks = weights.below(here.LAYERS)
        for layer in range(len(blocks)):
            x_TD = here.block(x_TD, blocks[layer], layer, step, c, ops)
            found.append(x_TD)
        return [ops.to_numpy(x) for x in (*found[:-1], here.norm(x_TD, weights, c, ops))]

    @cached_property
    def wanted(self) -> tuple[list[NDArray[Any]], NDArray[Any]]:
        """The reference's hidden states and logits."""
        import torch

        with torch.no_grad():
            out = self.reference(torch.tensor(self.ids)[None], output_hidden_states=True)
        return [x[0].numpy() for x in out.hidden_states], out.logits[0].numpy()


def same_layers(found: Sequence[NDArray[Any]], wanted: Sequence[NDArray[Any]]) -> None:
    """Fail at the first hidden state that differs, naming its layer."""
    assert len(found) == len(wanted)
    for layer, (got, want) in enumerate(zip(found, wanted, strict=True)):
        worst = float(np.abs(got - want).max())
        where = "the embedding" if layer == 0 else f"layer {layer - 1}"
        assert worst <= LOGITS, f"first difference after {where}: {worst:.2e} in row {int(np.abs(got - want).max(-1).argmax())}"


def far(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Largest difference."""
    assert np.isfinite(found).all()
    return float(np.abs(found - wanted).max())


def interpreters() -> list[Interpreter]:
    """Both, in float32."""
    from khola.ops.torch_ops import TorchOps

    return [NumpyOps(), TorchOps()]


class Paged:
    """Feeds sequences to a model in chunks, through a cache with shuffled pages and NaN in what was never written."""

    def __init__(self, tiny: Tiny, ops: Interpreter, num_sequences: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.tiny, self.ops, self.weights = tiny, ops, tiny.weights(ops)
        per_sequence = -(-LENGTH // PAGE_TOKENS)
        self.pages = rng.permutation(num_sequences * per_sequence).reshape(num_sequences, -1).astype(np.int32)
        self.cache = ops.new_cache(tiny.architecture.cache(tiny.config), self.pages.size, 2 * num_sequences)
        for plane in (*self.cache.keys, *self.cache.values, *self.cache.states.values(), *self.cache.tails.values()):
            plane[:] = float("nan")
        self.states = np.array([[-1, s] for s in rng.permutation(num_sequences)], np.int32)

    def feed(self, spans: dict[int, slice]) -> NDArray[Any]:
        """Logits of these positions of these sequences, all in one step; sequence s starts at token s of the prompt."""
        chosen = list(spans)
        positions = [np.arange(spans[s].start, spans[s].stop, dtype=np.int32) for s in chosen]
        used = np.where(np.arange(self.pages.shape[1]) * PAGE_TOKENS < np.array([[spans[s].stop] for s in chosen]), self.pages[chosen], -1)
        rows = sum(map(len, positions))
        step = Step(
            np.concatenate(positions),
            np.cumsum([0, *map(len, positions)]).astype(np.int32),
            np.array([spans[s].stop for s in chosen], np.int32),
            np.arange(rows, dtype=np.int32),
            used.astype(np.int32),
            self.cache,
            states_S2=self.states[chosen],
        )
        for s in chosen:
            count, slot = len(self.states), int(self.states[s, 1])
            self.states[s] = slot, (slot + count) % (2 * count)
        ids = np.concatenate([self.tiny.ids[s:][spans[s]] for s in chosen])
        return self.tiny.logits(self.ops, step, ids, self.weights)


def natively(tiny: Tiny, ops: NativeOps, arrays: dict[str, Any], exact: NDArray[Any]) -> list[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Logits of a prompt, then of tokens of an answer one by one, each with those that they should be."""
    here, length = tiny.architecture, 40
    weights, spec = tiny.weights(ops, stored(arrays)), here.cache(tiny.config)
    program = ops.compile(lambda ids, step, ops: logits(ids, here, weights, tiny.config, step, ops), spec, LENGTH, LENGTH)
    cache, pages, found = ops.new_cache(spec, 3, 2), np.array([[2, 0, 1]], np.int32), []
    for turn, (first, last) in enumerate(((0, length), *((at, at + 1) for at in range(length, LENGTH)))):
        rows = np.arange(last - first, dtype=np.int32)
        ends, answers = np.array([0, last - first], np.int32), np.full(last - first, first > 0)
        states = np.array([in_turn(turn)], np.int32)
        step = Step(rows + np.int32(first), ends, np.array([last], np.int32), rows, pages, cache, answers, states_S2=states)
        found.append(program(tiny.ids[first:last].astype(np.int32), step))
    return [("prompt", found[0], exact[:length]), ("answer", np.concatenate(found[1:]), exact[length:])]


@pytest.mark.parity
class Contract:
    """Tests of one architecture; a subclass gives the reference's classes and the configurations."""

    CONFIGS: ClassVar[dict[str, dict[str, Any]]]
    QUANTISED: ClassVar[dict[str, float]] = QUANTISED
    NATIVE: ClassVar[float] = NATIVE_LOGITS
    BFLOAT16: ClassVar[float] = BFLOAT16_SHARE
    ROUNDING: ClassVar[float] = CACHED
    """Largest difference of logits between two ways to compute the same."""
    config_class: ClassVar[Callable[[], type[Any]]]
    model_class: ClassVar[Callable[[], type[Any]]]

    @staticmethod
    def on_disk(name: str) -> str:
        """What checkpoints call a tensor of the reference."""
        return name

    def test_tables_name_every_tensor(self, tiny: Tiny) -> None:
        wanted = tiny.architecture.tensors(tiny.config)
        assert wanted == {name: array.shape for name, array in tiny.arrays.items()}

    def test_equal_to_the_reference_layer_by_layer(self, tiny: Tiny, parity: Parity) -> None:
        layers, wanted = tiny.wanted
        errors = []
        for ops in interpreters():
            weights = tiny.weights(ops)
            same_layers(tiny.layers(ops, weights), layers)
            errors.append(far(tiny.logits(ops, weights=weights), wanted))
        assert max(errors) <= LOGITS
        parity.measured(tiny.raw["model_type"], tiny.name, max(errors))

    def test_cached_token_by_token(self, tiny: Tiny) -> None:
        for ops in interpreters():
            paged = Paged(tiny, ops, 1, seed=2)
            found = np.concatenate([paged.feed({0: slice(at, at + 1)}) for at in range(LENGTH)])
            assert far(found, tiny.wanted[1]) <= LOGITS
            assert far(found, tiny.logits(ops)) <= self.ROUNDING

    def test_cached_in_random_chunks_beside_others(self, tiny: Tiny) -> None:
        """Three sequences, each starting one token later in the prompt, mixed in steps of chunks and single tokens."""
        rng = np.random.default_rng(4)
        lengths = (LENGTH, LENGTH - 20, LENGTH - 42)
        for ops in interpreters():
            paged, done = Paged(tiny, ops, 3, seed=5), [0, 0, 0]
            found: list[list[NDArray[Any]]] = [[], [], []]
            while any(at < n for at, n in zip(done, lengths, strict=True)):
                taken = [min(n - at, int(rng.choice([0, 1, 1, 7, 33]))) for at, n in zip(done, lengths, strict=True)]
                spans = {s: slice(done[s], done[s] + taken[s]) for s in range(3) if taken[s]}
                if not spans:
                    continue
                rows, first = paged.feed(spans), 0
                for s, span in spans.items():
                    found[s].append(rows[first : first + taken[s]])
                    first, done[s] = first + taken[s], span.stop
            for s, n in enumerate(lengths):
                alone = tiny.logits(ops, ids=tiny.ids[s : s + n])
                assert far(np.concatenate(found[s]), alone) <= self.ROUNDING

    def test_packed_is_one_by_one(self, tiny: Tiny) -> None:
        lengths, wanted_rows = [30, 1, 44], [0, 29, 30, 31, 74]
        for ops in interpreters():
            packed = tiny.logits(ops, whole_sequences(lengths, wanted_rows))
            parts = np.split(tiny.ids, np.cumsum(lengths)[:-1])
            alone = np.concatenate([tiny.logits(ops, ids=part) for part in parts])
            assert far(packed, alone[wanted_rows]) <= self.ROUNDING

    def test_saved_and_loaded_is_equal(self, tiny: Tiny, tmp_path: Path) -> None:
        from safetensors.numpy import load_file, save_file

        save_file(tiny.arrays, tmp_path / "model.safetensors")
        ops = NumpyOps()
        loaded = tiny.weights(ops, stored(load_file(tmp_path / "model.safetensors")))
        assert np.array_equal(tiny.logits(ops, weights=loaded), tiny.logits(ops))

    def test_numpy_is_torch(self, tiny: Tiny) -> None:
        numpy_ops, torch_ops = interpreters()
        assert far(tiny.logits(numpy_ops), tiny.logits(torch_ops)) <= LOGITS

    @needs_library
    def test_native_is_numpy(self, tiny: Tiny) -> None:
        """Natively, products round their inputs."""
        exact = tiny.logits(NumpyOps())
        for what, got, want in natively(tiny, NativeOps(threads=2), tiny.arrays, exact):
            error = float(np.square(got - want).sum() / np.square(want).sum())
            assert error <= self.NATIVE, f"{what}: NMSE {error:.1e}"

    @needs_library
    def test_precise_native_is_numpy(self, tiny: Tiny) -> None:
        """Of matrices in bfloat16, as they are packed, nothing is rounded but sums."""
        arrays = {name: rounded(array) if array.ndim > 1 else array for name, array in tiny.arrays.items()}
        ops = NumpyOps()
        exact = tiny.logits(ops, weights=tiny.weights(ops, stored(arrays)))
        for what, got, want in natively(tiny, NativeOps(threads=2, cache="float32"), arrays, exact):
            assert far(got, want) <= self.ROUNDING, what

    def test_float32_is_float64(self, tiny: Tiny) -> None:
        exact = tiny.logits(NumpyOps(dtype="float64"))
        assert exact.dtype == np.float64
        assert far(tiny.logits(NumpyOps()), exact) <= max(self.ROUNDING, FLOAT32_FLOAT64)

    def test_shapes_are_what_names_say(self, tiny: Tiny) -> None:
        """Every op and every function of the architecture, called with its arguments checked against their axes."""
        ops, here = Checked(NumpyOps()), tiny.architecture
        weights, c, step = tiny.weights(NumpyOps()), tiny.config, whole_sequences([30, 45], rows=[3, 74])
        x_TD = shaped(here.embed)(tiny.ids, weights, c, ops)
        for layer in range(c.num_hidden_layers):
            x_TD = shaped(here.block)(x_TD, weights.below(here.LAYERS)[layer], layer, step, c, ops)
        x_RD = shaped(here.norm)(ops.rows(x_TD, step), weights, c, ops)
        assert shaped(here.head)(x_RD, weights, c, ops).shape == (2, VOCABULARY)

    def test_nothing_leaves_the_device(self, tiny: Tiny) -> None:
        """On torch's device without memory, which refuses to meet any other, in the numbers that models have on a GPU."""
        from khola.ops.torch_ops import TorchOps

        ops = TorchOps(device="meta", dtype="bfloat16")
        weights, here = tiny.weights(ops), tiny.architecture
        pages = np.arange(6, dtype=np.int32).reshape(2, 3)
        cache = ops.new_cache(here.cache(tiny.config), 6, 4)
        one, states = np.arange(3, dtype=np.int32), np.array([[0, 1], [3, 2], [-1, 0]], np.int32)
        decoding = Step(np.array([40, 70], np.int32), one, np.array([41, 71], np.int32), one[:2], pages, cache, states_S2=states[:2])
        ends = np.array([0, 40], np.int32)
        chunk = Step(np.arange(40, dtype=np.int32), ends, ends[1:], one, pages[:1], cache, states_S2=states[2:])
        for step, rows in ((whole_sequences([30, 45]), 75), (decoding, 2), (chunk, 3)):
            out = logits(tiny.ids[: len(step.positions_T)], here, weights, tiny.config, step, ops)
            assert out.device.type == "meta" and out.shape == (rows, VOCABULARY)

    def test_bfloat16_is_as_good_as_the_references(self, tiny: Tiny) -> None:
        """Rounding to bfloat16 costs no more than in transformers, cached or not."""
        import copy

        import torch

        from khola.ops.torch_ops import TorchOps

        ops, exact = TorchOps(dtype="bfloat16"), tiny.wanted[1]
        with torch.no_grad():
            theirs = copy.deepcopy(tiny.reference).to(torch.bfloat16)(torch.tensor(tiny.ids)[None]).logits[0].float().numpy()
        paged = Paged(tiny, ops, 1, seed=6)
        cached = np.concatenate([paged.feed({0: slice(0, 40)}), *(paged.feed({0: slice(at, at + 1)}) for at in range(40, LENGTH))])
        for found in (tiny.logits(ops), cached):
            assert np.square(found - exact).sum() <= self.BFLOAT16 * np.square(theirs - exact).sum()

    def test_gradients_are_the_references(self, tiny: Tiny) -> None:
        import torch

        from khola.ops.torch_ops import TorchOps

        ops = TorchOps()
        weights = tiny.weights(ops)
        named = leaves(tiny, weights)
        for leaf, _ in named.values():
            leaf.requires_grad_()
        targets = torch.tensor(np.roll(tiny.ids, -1))
        ours = logits(tiny.ids, tiny.architecture, weights, tiny.config, whole_sequences([LENGTH]), ops)
        torch.nn.functional.cross_entropy(ours, targets).backward()
        tiny.reference.zero_grad()
        theirs = tiny.reference(torch.tensor(tiny.ids)[None]).logits[0]
        torch.nn.functional.cross_entropy(theirs, targets).backward()
        learnt = ((name, parameter.grad) for name, parameter in tiny.reference.named_parameters() if parameter.requires_grad)
        for name, expected in as_on_disk(learnt, tiny.on_disk).items():
            leaf, place = named[name]
            assert leaf.grad is not None and torch.isfinite(leaf.grad).all(), name
            got, want = leaf.grad[place], half_split(tiny, name, expected)
            if not want.any():  # an expert that no token chose
                assert not got.any(), name
                continue
            error = float((got - want).square().sum() / want.square().sum())
            assert error <= GRADIENT, f"{name}: NMSE {error:.1e}"

    @pytest.mark.parametrize("kind", QUANTISED)
    def test_quantised_within_tolerance(self, tiny: Tiny, kind: str) -> None:
        """All matrices of whole blocks in a GGUF type: close to the original, and exactly what their dequantised values give."""
        blocks: dict[str, Any] = dict(stored(tiny.arrays))
        blocks |= {name: Quantised(name, array, kind) for name, array in tiny.arrays.items() if array.ndim == 2 and not array.shape[1] % 32}
        ops = NumpyOps()
        found, exact = tiny.logits(ops, weights=tiny.weights(ops, blocks)), tiny.logits(ops)
        error = float(np.square(found - exact).sum() / np.square(exact).sum())
        assert 0 < error <= self.QUANTISED[kind], f"NMSE {error:.1e}"
        same = stored({name: block.float32() for name, block in blocks.items()})
        assert np.array_equal(found, tiny.logits(ops, weights=tiny.weights(ops, same)))

    @pytest.mark.parametrize("fault", ["rope base", "scale", "gate and up", "position", "epsilon"])
    def test_planted_faults_are_found(self, tiny: Tiny, fault: str) -> None:
        """The comparison with the reference fails when something small is wrong."""
        found = planted(tiny, fault)
        assert far(found, tiny.wanted[1]) > 2 * LOGITS, f"nobody would notice a wrong {fault}"

    def test_the_first_wrong_layer_is_named(self, tiny: Tiny) -> None:
        arrays = dict(tiny.arrays)
        swap_gate_and_up(arrays, 1)
        ops = NumpyOps()
        with pytest.raises(AssertionError, match="after layer 1:"):
            same_layers(tiny.layers(ops, tiny.weights(ops, stored(arrays))), tiny.wanted[0])


def leaves(tiny: Tiny, weights: Any) -> dict[str, tuple[Any, Any]]:
    """Every tensor of a tree, by its name in the checkpoint, and where in it that tensor lies: experts of a layer are one."""
    found = {}
    for name in tiny.arrays:
        path, _, ending = name.rpartition(".")
        expert, router = EXPERT.fullmatch(path), CORRECTION.fullmatch(name)
        if router:
            path = f"{router[1]}.gate"
        elif ending not in ("weight", "bias"):
            path = name
        elif expert:
            path = f"{expert[1]}.{expert[3]}"
        weight = weights.below(path)
        found[name] = (weight.bias if ending == "bias" or router else weight.data, int(expert[2]) if expert else ...)
    return found


def half_split(tiny: Tiny, name: str, rows: Any) -> Any:
    """Rows of a tensor of the checkpoint in the order that they have once they are loaded."""
    pairs = tiny.architecture.pairs(tiny.config)
    return rows[pairs[name].order(len(rows))] if name in pairs else rows


def swap_gate_and_up(arrays: dict[str, Any], layer: int) -> None:
    """Exchange them in every feed-forward part of a layer, wherever they lie."""
    both = f"model.layers.{layer}.mlp.gate_up_proj.weight"
    if both in arrays:
        arrays[both] = np.roll(arrays[both], len(arrays[both]) // 2, axis=0)
    for gate, up in (("gate_proj", "up_proj"), ("w1", "w3")):
        for name in [name for name in arrays if name.startswith(f"model.layers.{layer}.") and name.endswith(f".{gate}.weight")]:
            other = name.replace(f".{gate}.", f".{up}.")
            arrays[name], arrays[other] = arrays[other], arrays[name]


class Checked:
    """The words of an interpreter, their arguments checked against their names."""

    def __init__(self, ops: Interpreter) -> None:
        words = [
            "embed",
            "linear",
            "rms_norm",
            "heads",
            "flat",
            "split",
            "rotate",
            "attend",
            "decay_scan",
            "delta_scan",
            "log_decay",
            "causal_conv",
            "silu_mul",
            "sigmoid",
            "route",
            "experts",
            "rows",
            "attend_latent",
        ]
        for name in words:
            setattr(self, name, shaped(getattr(ops, name)))


class Unscaled(NumpyOps):
    """Forgets to divide scores by the root of the head size."""

    def attend(self, q_THE: Any, k_TKE: Any, v_TKE: Any, step: Step, layer: int, scale: float, window: int | None = None) -> Any:
        return super().attend(q_THE, k_TKE, v_TKE, step, layer, 1.0, window)

    def attend_latent(
        self, q_THN: Any, turned_THP: Any, latent_TL: Any, key_TP: Any, up: Weight, step: Step, layer: int, scale: float
    ) -> Any:
        return super().attend_latent(q_THN, turned_THP, latent_TL, key_TP, up, step, layer, 1.0)


class AnotherBase(NumpyOps):
    """Turns by frequencies of a base 5 % larger."""

    def rotate(self, x_THE: Any, step: Step, rope: Rope) -> Any:
        count = len(rope.frequencies)
        wrong = tuple(f * 1.05 ** (-pair / count) for pair, f in enumerate(rope.frequencies))
        return super().rotate(x_THE, step, Rope(wrong, rope.factor))


def planted(tiny: Tiny, fault: str) -> NDArray[Any]:
    """Logits of a model with one fault."""
    ops, config, arrays, step = NumpyOps(), tiny.config, dict(tiny.arrays), whole_sequences([LENGTH])
    if fault == "rope base":
        ops = AnotherBase()
    elif fault == "scale":
        ops = Unscaled()
    elif fault == "gate and up":
        swap_gate_and_up(arrays, 0)
    elif fault == "position":
        # A shift of all rows would change nothing: only differences of positions count.
        positions = step.positions_T + (np.arange(LENGTH) > 0).astype(np.int32)
        step = Step(positions, step.starts_S1, step.lengths_S, step.rows_R)
    else:
        config = msgspec.structs.replace(config, rms_norm_eps=config.rms_norm_eps * 2)
    return tiny.logits(ops, step, weights=tiny.weights(ops, stored(arrays)), config=config)
