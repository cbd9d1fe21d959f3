"""The layer behind the last one of DeepSeek-V3, against the formulas of its paper in float64, and what of it a checkpoint may hold."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from khola.errors import MissingTensor, OurFault
from khola.loader.assemble import assemble
from khola.models import architecture
from khola.nn import decoder, second_token
from khola.nn.specs import parse_config
from khola.ops.native_ops import NativeOps
from khola.ops.numpy_ops import NumpyOps
from khola.ops.vocabulary import PAGE_TOKENS, Step, whole_sequences
from tests.models.stored import stored
from tests.needs import needs_library
from tests.tolerances import LOGITS, NATIVE_LATENT

Array = NDArray[np.float64]
HERE = architecture("deepseek_v3")
RAW: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "q_lora_rank": 24,
    "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "n_routed_experts": 8, "n_group": 4,
    "topk_group": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "num_nextn_predict_layers": 1,
}  # fmt: skip
LENGTH = 40
IDS = np.random.default_rng(3).integers(0, 99, LENGTH)


@cache
def tensors() -> dict[str, NDArray[np.float32]]:
    """A random checkpoint, with the copies of embedding and head that labs put beside the layer."""
    rng = np.random.default_rng(5)
    found = {}
    for name, shape in second_token.tensors(HERE, parse_config(HERE, RAW)).items():
        values = 1 + 0.2 * rng.normal(size=shape) if len(shape) == 1 else rng.normal(size=shape) * shape[-1] ** -0.5
        found[name] = (values - ("bias" in name)).astype(np.float32)
    return found | {f"model.layers.2.{copy}.weight": found[f"{own}.weight"] for copy, own in COPIES.items()}


COPIES = {"embed_tokens": "model.embed_tokens", "shared_head.head": "lm_head"}


class Paper:
    """DeepSeek-V3 as arXiv:2412.19437 writes it, a token at a time; numbers in brackets are its equations."""

    def __init__(self) -> None:
        self.w = {name: values.astype(np.float64) for name, values in tensors().items()}

    def run(self) -> tuple[Array, Array]:
        """Logits of every token, and those of the second token behind each but the last."""
        h = np.stack([self.w["model.embed_tokens.weight"][token] for token in IDS])
        for layer in range(2):
            h = self.block(h, layer)
        joined = []
        for i in range(LENGTH - 1):  # (21): of the representation and the embedding of the next token; on disk, the embedding comes first
            embedding = self.norm(self.w["model.layers.2.embed_tokens.weight"][IDS[i + 1]], "model.layers.2.enorm")
            joined.append(self.w["model.layers.2.eh_proj.weight"] @ np.concatenate([embedding, self.norm(h[i], "model.layers.2.hnorm")]))
        second = self.norm(self.block(np.stack(joined), 2), "model.layers.2.shared_head.norm")  # (22)
        return self.norm(h, "model.norm") @ self.w["lm_head.weight"].T, second @ self.w["model.layers.2.shared_head.head.weight"].T  # (23)

    def norm(self, x: Array, name: str) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * self.w[f"{name}.weight"]

    def block(self, x: Array, layer: int) -> Array:
        here = f"model.layers.{layer}"
        x = x + self.attention(self.norm(x, f"{here}.input_layernorm"), f"{here}.self_attn")
        inner = self.norm(x, f"{here}.post_attention_layernorm")
        return x + np.stack([self.ffn(u, f"{here}.mlp") if layer == 0 else self.experts(u, f"{here}.mlp") for u in inner])

    def attention(self, x: Array, here: str) -> Array:
        """(1) to (11)."""
        kv = x @ self.w[f"{here}.kv_a_proj_with_mqa.weight"].T
        latent = self.norm(kv[:, :16], f"{here}.kv_a_layernorm")
        up = (latent @ self.w[f"{here}.kv_b_proj.weight"].T).reshape(-1, 4, 20)
        q = self.norm(x @ self.w[f"{here}.q_a_proj.weight"].T, f"{here}.q_a_layernorm") @ self.w[f"{here}.q_b_proj.weight"].T
        q = q.reshape(-1, 4, 12)
        out = np.zeros((len(x), 4, 12))
        for t in range(len(x)):
            for head in range(4):
                query = np.concatenate([q[t, head, :8], self.turned(q[t, head, 8:], t)])
                keys = [np.concatenate([up[j, head, :8], self.turned(kv[j, 16:], j)]) for j in range(t + 1)]
                scores = np.exp(np.array([query @ key for key in keys]) / np.sqrt(12))
                out[t, head] = scores / scores.sum() @ up[: t + 1, head, 8:]
        return out.reshape(len(x), -1) @ self.w[f"{here}.o_proj.weight"].T

    def turned(self, x: Array, position: int) -> Array:
        """Rotary pairs lie side by side on disk."""
        angles = position * 1e4 ** -(np.arange(2) / 2)
        pairs = (x[0::2] + 1j * x[1::2]) * np.exp(1j * angles)
        return np.stack([pairs.real, pairs.imag], -1).reshape(-1)

    def ffn(self, u: Array, here: str) -> Array:
        gate = self.w[f"{here}.gate_proj.weight"] @ u
        return self.w[f"{here}.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * (self.w[f"{here}.up_proj.weight"] @ u))

    def experts(self, u: Array, here: str) -> Array:
        """(12) to (16): two of four groups, three experts, and the shared one."""
        affinity = 1 / (1 + np.exp(-self.w[f"{here}.gate.weight"] @ u))
        choice = affinity + self.w[f"{here}.gate.e_score_correction_bias"]
        groups = np.argsort(-choice.reshape(4, 2).sum(1))[:2]
        chosen = sorted((e for e in range(8) if e // 2 in groups), key=lambda e: -choice[e])[:3]
        routed = sum(affinity[e] * self.ffn(u, f"{here}.experts.{e}") for e in chosen)
        return self.ffn(u, f"{here}.shared_experts") + 2.5 * routed / affinity[chosen].sum()


@cache
def paper() -> tuple[Array, Array]:
    return Paper().run()


def weights(ops: Any, arrays: dict[str, NDArray[np.float32]] | None = None) -> Any:
    return assemble(HERE, parse_config(HERE, RAW), stored(arrays or tensors()), ops, further=True)


def both(ops: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the decoder and the layer say, without a cache."""
    c, w, kept_TD = parse_config(HERE, RAW), weights(ops), np.zeros((LENGTH, 64), np.float32)
    step = replace(whole_sequences([LENGTH]), kept_TD=kept_TD)
    first = ops.to_numpy(decoder.logits(IDS, HERE, w, c, step, ops, keep=True))
    step = replace(whole_sequences([LENGTH - 1]), kept_TD=kept_TD[:-1])
    return first, ops.to_numpy(second_token.logits(IDS[1:], HERE, w, c, step, ops))


def torch_ops() -> Any:
    from khola.ops.torch_ops import TorchOps

    return TorchOps()


@pytest.mark.parametrize("made", [NumpyOps, pytest.param(torch_ops, marks=pytest.mark.parity)], ids=["numpy", "torch"])
def test_the_layer_is_that_of_the_paper(made: Any) -> None:
    for found, wanted in zip(both(made()), paper(), strict=True):
        assert np.abs(found - wanted).max() <= LOGITS


def test_what_is_kept_is_not_normed_yet() -> None:
    """The comparison has power: the final norm, which the layer must not see, would show."""
    c, ops = parse_config(HERE, RAW), NumpyOps()
    w, kept_TD = weights(ops), np.zeros((LENGTH, 64), np.float32)
    decoder.logits(IDS, HERE, w, c, replace(whole_sequences([LENGTH]), kept_TD=kept_TD), ops, keep=True)
    normed = HERE.norm(kept_TD, w, c, ops)[:-1]
    found = second_token.logits(IDS[1:], HERE, w, c, replace(whole_sequences([LENGTH - 1]), kept_TD=normed), ops)
    assert np.abs(found - paper()[1]).max() > 100 * LOGITS


@needs_library
def test_natively_over_a_cache_in_chunks() -> None:
    """Rows of a prompt, then of an answer, each program in its turn over planes of one cache."""
    ops, c = NativeOps(threads=2), parse_config(HERE, RAW)
    w, spec = weights(ops), HERE.cache(second_token.with_layer(c))
    decode = ops.compile(lambda ids, step, ops: decoder.logits(ids, HERE, w, c, step, ops, keep=True), spec, LENGTH, LENGTH)
    guess = ops.compile(lambda ids, step, ops: second_token.logits(ids, HERE, w, c, step, ops), spec, LENGTH, LENGTH)
    cache, pages, found = ops.new_cache(spec, 2), np.array([[1, 0]], np.int32), []
    for first, last in ((0, 20), (20, PAGE_TOKENS), *((at, at + 1) for at in range(PAGE_TOKENS, LENGTH - 1))):
        rows, kept_TD = np.arange(last - first, dtype=np.int32), np.full((last - first, 64), np.nan, np.float32)
        ends, answers = np.array([0, last - first], np.int32), np.full(last - first, first >= PAGE_TOKENS)
        used = np.where(np.arange(2) * PAGE_TOKENS < last, pages, -1).astype(np.int32)
        step = Step(rows + np.int32(first), ends, np.array([last], np.int32), rows, used, cache, answers, kept_TD=kept_TD)
        one = decode(IDS[first:last].astype(np.int32), step)
        found.append(np.stack([one, guess(IDS[first + 1 : last + 1].astype(np.int32), step)]))
    for kept_TD in (None, np.zeros((1, 63), np.float32), np.zeros((1, 64))):
        with pytest.raises(OurFault):
            guess(IDS[:1].astype(np.int32), replace(step, kept_TD=kept_TD))
    for got, wanted in zip(np.concatenate(found, axis=1), paper(), strict=True):
        error = np.square(got - wanted[: LENGTH - 1]).sum() / np.square(wanted[: LENGTH - 1]).sum()
        assert error <= NATIVE_LATENT


def test_a_checkpoint_without_the_layer_says_so() -> None:
    told: list[dict[str, Any]] = []
    arrays = tensors()
    assemble(HERE, parse_config(HERE, RAW), stored(arrays), NumpyOps(), further=True, tell=lambda _, **facts: told.append(facts))
    assert [facts["count"] for facts in told] == [len(COPIES)]
    less = {name: values for name, values in arrays.items() if not name.startswith("model.layers.2.")}
    with pytest.raises(MissingTensor, match=r"model\.layers\.2\."):
        weights(NumpyOps(), less)
    assemble(HERE, parse_config(HERE, RAW), stored(less), NumpyOps())
