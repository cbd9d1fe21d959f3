"""One table between the names of GGUF files and the names of checkpoints, for tensors and for configurations.

Source   `gguf` package `constants.py` (names), llama.cpp `src/llama-model.cpp` (defaults, kind of rotary pairs), transformers'
         `configuration_*.py` (the keys that come out).
Add a family by adding a `Family` to `FAMILIES`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from khola.errors import BadConfig, MissingTensor, UnexpectedTensor, UnknownKey, UnsupportedFormat
from khola.store.gguf import GgufFile
from khola.store.latent_names import chosen_by_sigmoid, latent_attention_keys, stretched_scores
from khola.store.stored import StoredTensor, parts_of, permuted_pairs, some_rows

ROW = (".shared_expert_gate.weight", ".moe_statics.e_score_correction_bias")
"""Ends of the names of matrices of one row, which GGUF has as vectors."""
DIVISORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies: part of the configuration, though they lie in the file as a tensor."""
KEYS_UP, VALUES_UP = "self_attn.k_b_proj", "self_attn.v_b_proj"
"""The parts of `self_attn.kv_b_proj` that newer files hold apart: for every head, [latent, key] and [value, latent]."""

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FUSED = {**{name: module for name, module in _BLOCK.items() if name != "ffn_gate"}, "ffn_up": "mlp.gate_up_proj"}
_AFTER_BRANCHES = {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}
"""A star stands for every expert: GGUF keeps them in one tensor."""
_CORRECTION = "e_score_correction"
"""The bias that only helps a router to choose: checkpoints end its name in "_bias" where others end in ".bias"."""
_CORRECTED_SHARED = {
    "exp_probs_b": f"mlp.moe_statics.{_CORRECTION}",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_LATENT = {
    **{name: module for name, module in _BLOCK.items() if name not in ("attn_k", "attn_v")},
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": KEYS_UP,
    "attn_v_b": VALUES_UP,
    **{f"ffn_{name}_shexp": f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")},
}
_EXPERT_NUMBER = re.compile(r"(?<=\.experts\.)\d+(?=\.)")
_GGUF_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.([a-z0-9_]+)\.(weight|bias)")
_CHECKPOINT_BLOCK = re.compile(r"model\.layers\.(0|[1-9]\d{0,4})\.([a-z0-9_.*]+?)(?:\.|(?<=e_score_correction)_)(weight|bias)")
_EVERY_MIXTURE = ("expert_count", "expert_used_count", "expert_feed_forward_length")
_MAY_BE_NONE = ("expert_shared_count", "leading_dense_block_count")
_QWEN_KEYS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
_ERNIE_KEYS = {
    "expert_count": "moe_num_experts",
    "expert_used_count": "moe_k",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "moe_num_shared_experts",
    "leading_dense_block_count": "moe_layer_start_index",
    "interleave_moe_layer_step": "moe_layer_interval",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one `general.architecture` is written into GGUF files."""

    model_type: str
    """Of config.json."""
    top: Mapping[str, str] = field(default_factory=lambda: _TOP)
    """Whole names outside the blocks."""
    block: Mapping[str, str] = field(default_factory=lambda: _BLOCK)
    """Modules of a block."""
    adjacent_pairs: bool = False
    """Whether q and k rows were put into adjacent rotary pairs; otherwise they lie as in the lab's checkpoint."""
    partial: bool = False
    """Whether a part of each head is rotated; the whole head everywhere else."""
    bias_key: str = ""
    """The key of config.json that says whether q, k and v have biases, where that differs within the family."""
    joined_qkv: bool = False
    """Whether some files hold q, k and v as one tensor, their rows one after another."""
    experts: Mapping[str, Any] | None = None
    """Keys of config.json that every mixture of experts of this family has; None where there are no experts."""
    latent: bool = False
    """Whether it attends to latents, as DeepSeek-V3 does, and chooses experts in its way."""
    expert_keys: Mapping[str, str] = field(default_factory=lambda: _QWEN_KEYS)
    """Sizes of mixtures: what GGUF calls them, and config.json."""


FAMILIES: dict[str, Family] = {
    "llama": Family(model_type="llama", adjacent_pairs=True, bias_key="attention_bias"),
    "qwen2": Family(model_type="qwen2"),
    "qwen3": Family(model_type="qwen3", block=_BLOCK | _HEAD_NORMS),
    "chatglm": Family(model_type="glm", block=_FUSED, partial=True, bias_key="attention_bias", joined_qkv=True),
    "glm4": Family(model_type="glm4", block=_FUSED | _AFTER_BRANCHES, partial=True, bias_key="attention_bias"),
    "ernie4_5": Family(model_type="ernie4_5"),
    "deepseek2": Family(model_type="deepseek_v3", block=_LATENT | _EXPERTS | {"exp_probs_b": f"mlp.gate.{_CORRECTION}"}, latent=True),
    "ernie4_5-moe": Family(model_type="ernie4_5_moe", block=_BLOCK | _EXPERTS | _CORRECTED_SHARED, experts={}, expert_keys=_ERNIE_KEYS),
    "qwen2moe": Family(model_type="qwen2_moe", block=_BLOCK | _EXPERTS | _SHARED, experts={"norm_topk_prob": False}),
    "qwen3moe": Family(model_type="qwen3_moe", block=_BLOCK | _HEAD_NORMS | _EXPERTS, experts={"norm_topk_prob": True}),
}

_IGNORED = {
    "tensor_data_layout": "a note of early converters",
    "rope.scaling.finetuned": "how the model was made",
    "expert_used_count": "0 where expert_count is 0",
}
"""Keys below the architecture's own prefix that do not change the forward pass, each with the reason."""


def checkpoint_name(architecture: str, gguf_name: str) -> str | None:
    """Name of a tensor in the lab's checkpoint, a star in it for every expert; None if the family has no such tensor.

    Raises:
        UnsupportedFormat: khola does not know this architecture.
    """
    family = _family(architecture)
    if gguf_name in family.top:
        return family.top[gguf_name]
    found = _GGUF_BLOCK.fullmatch(gguf_name)
    module = family.block.get(found[2]) if found else None
    if not found or not module or (found[3] == "weight" and module.endswith(_CORRECTION)):
        return None
    return f"model.layers.{found[1]}.{module}{'_' if module.endswith(_CORRECTION) else '.'}{found[3]}"


def gguf_name(architecture: str, checkpoint_name: str) -> str | None:
    """Name of a tensor in GGUF files, the same for all experts of a layer; None if the family has no such tensor.

    Raises:
        UnsupportedFormat: khola does not know this architecture.
    """
    family = _family(architecture)
    checkpoint_name = _EXPERT_NUMBER.sub("*", checkpoint_name)
    for ours, theirs in family.top.items():
        if theirs == checkpoint_name:
            return ours
    found = _CHECKPOINT_BLOCK.fullmatch(checkpoint_name)
    if found:
        for ours, theirs in family.block.items():
            if theirs == found[2]:
                return f"blk.{found[1]}.{ours}.{found[3]}"
    return None


def checkpoint_tensors(file: GgufFile) -> dict[str, StoredTensor]:
    """All weights of a GGUF file as the lab's checkpoint has them: its names, rotary pairs half-split, each expert by itself.

    Raises:
        UnsupportedFormat: khola does not know this architecture.
        BadConfig: the numbers of heads are missing or impossible.
        UnexpectedTensor: the family has no such tensor.
        WrongShape: a query or key projection is not made of its heads.
    """
    keys = _Keys(file.path.name, file.metadata)
    family = _family(keys.architecture, keys.file)
    heads, key_heads = _heads(keys)
    found: dict[str, StoredTensor] = {}
    for name, stored in _apart(family, file.tensors, heads, key_heads):
        if name == DIVISORS:
            continue
        ours = as_in_checkpoint(keys.architecture, stored)
        if not ours:
            raise UnexpectedTensor(
                "{file}: tensor {tensor} is not known in the architecture {architecture}",
                file=keys.file,
                tensor=name,
                architecture=keys.architecture,
            )
        for one in ours:
            if family.adjacent_pairs and ".self_attn.q_proj." in one.name:
                found[one.name] = permuted_pairs(one, heads)
            elif family.adjacent_pairs and ".self_attn.k_proj." in one.name:
                found[one.name] = permuted_pairs(one, key_heads)
            else:
                found[one.name] = one
    return found


def _apart(family: Family, tensors: Mapping[str, StoredTensor], heads: int, key_heads: int) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a file with q, k and v apart."""
    for name, stored in tensors.items():
        if not family.joined_qkv or ".attn_qkv." not in name:
            yield name, stored
            continue
        rows = (stored.shape[0] if stored.shape else 0) // (heads + 2 * key_heads)
        first = 0
        for letter, count in zip("qkv", (heads, key_heads, key_heads), strict=True):
            part = name.replace("attn_qkv", f"attn_{letter}")
            yield part, some_rows(stored, part, first, first + count * rows)
            first += count * rows


def as_in_checkpoint(architecture: str, stored: StoredTensor) -> tuple[StoredTensor, ...]:
    """A tensor of a GGUF file under its name in the lab's checkpoint, and each expert by itself; empty if the family has no such tensor.

    Raises:
        UnsupportedFormat: khola does not know this architecture.
    """
    name = checkpoint_name(architecture, stored.name)
    if name is None:
        return ()
    if "*" in name:
        return tuple(part.renamed(name.replace("*", str(expert))) for expert, part in enumerate(parts_of(stored)))
    one = stored.renamed(name)
    return (replace(one, shape=(1, *one.shape)) if name.endswith(ROW) and len(one.shape) == 1 else one,)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor], *, file: str = "GGUF") -> dict[str, Any]:
    """Metadata as the keys of config.json that shape the forward pass.

    Args:
        metadata: of the file.
        tensors: of the file, by their GGUF names; embedding, head and frequency divisors are looked at.
        file: its name, for messages.
    Raises:
        UnsupportedFormat: khola does not know this architecture, or a feature that its file asks for.
        BadConfig: a key is missing, of a wrong type or out of its range; the message names it.
        UnknownKey: a key below the architecture's prefix is not known.
        MissingTensor: there is no embedding.
    """
    keys = _Keys(file, metadata)
    family = _family(keys.architecture, file)
    heads, key_heads = _heads(keys)
    hidden = keys.whole("embedding_length", 1, 1 << 20)
    if family.latent:
        attention = latent_attention_keys(keys)
        head_dim = rotated = attention["qk_rope_head_dim"]
    else:
        head_dim, rotated = _head_dim(keys, hidden, heads, family.partial)
        attention = {"num_key_value_heads": key_heads, "head_dim": head_dim}
    config: dict[str, Any] = {
        **attention,
        "model_type": family.model_type,
        "hidden_size": hidden,
        "num_hidden_layers": keys.whole("block_count", 1, 4096),
        "num_attention_heads": heads,
        "intermediate_size": keys.whole("feed_forward_length", 1, 1 << 22),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon", 1e-12, 0.1),
        "rope_theta": keys.number("rope.freq_base", 1.0, 1e12, default=10_000.0),
        "max_position_embeddings": keys.whole("context_length", 1, 1 << 27),
        "vocab_size": _vocabulary(keys, tensors),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    scaling = _rope_scaling(keys, tensors.get(DIVISORS), rotated, config["max_position_embeddings"])
    if scaling:
        config["rope_scaling"] = scaling | (stretched_scores(keys) if family.latent and scaling["rope_type"] == "yarn" else {})
    if family.partial:
        config["partial_rotary_factor"] = rotated / head_dim
    if family.bias_key:
        config[family.bias_key] = bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & tensors.keys())
    if family.latent:
        config |= chosen_by_sigmoid(keys)
    elif family.experts is not None:
        config |= _experts(keys, family)
    elif keys.whole("expert_count", 0, 1 << 16, default=0):
        raise UnsupportedFormat(
            "{file}: {key} asks for a mixture of experts, which {architecture} does not have here", **keys.facts("expert_count")
        )
    keys.nothing_left()
    return config


def _family(architecture: str, file: str = "GGUF") -> Family:
    if architecture not in FAMILIES:
        raise UnsupportedFormat(
            "{file}: the architecture {architecture} is not known; known are {known}",
            file=file,
            architecture=repr(architecture[:80]),
            known=", ".join(FAMILIES),
        )
    return FAMILIES[architecture]


def _heads(keys: _Keys) -> tuple[int, int]:
    """Query heads and key heads."""
    heads = keys.whole("attention.head_count", 1, 4096)
    key_heads = keys.whole("attention.head_count_kv", 1, 4096, default=heads)
    if heads % key_heads:
        raise BadConfig(
            "{file}: {key} is {found}; expected a divisor of {whole}", **keys.facts("attention.head_count_kv", key_heads), whole=heads
        )
    return heads, key_heads


def _head_dim(keys: _Keys, hidden: int, heads: int, partial: bool) -> tuple[int, int]:
    """Width of a head, which keys and values must both have, and how much of it is rotated: all of it unless the family is `partial`."""
    if "attention.key_length" not in keys and hidden % heads:
        raise BadConfig(
            "{file}: {key} is {found}; expected a divisor of {whole}", **keys.facts("attention.head_count", heads), whole=hidden
        )
    head_dim = keys.whole("attention.key_length", 2, 1 << 16, default=hidden // heads)
    value = keys.whole("attention.value_length", 1, 1 << 16, default=head_dim)
    rotated = keys.whole("rope.dimension_count", 1, 1 << 16, default=head_dim)
    if partial and rotated < head_dim:
        whole = [("attention.value_length", value)]
    else:
        whole = [("attention.value_length", value), ("rope.dimension_count", rotated)]
    for key, found in whole:
        if found != head_dim:
            raise BadConfig("{file}: {key} is {found}; expected the head size {size}", **keys.facts(key, found), size=head_dim)
    if head_dim % 2:
        raise BadConfig("{file}: {key} is {found}; expected an even number", **keys.facts("attention.key_length", head_dim))
    return head_dim, rotated


def _experts(keys: _Keys, family: Family) -> dict[str, Any]:
    """Sizes of a mixture of experts; the width of the shared ones may be told as their number, and then again as it is."""
    config = dict(family.experts or {})
    for ours, theirs in family.expert_keys.items():
        if ours in keys or ours in _EVERY_MIXTURE:
            config[theirs] = keys.whole(ours, 0 if ours in _MAY_BE_NONE else 1, 1 << 22)
    number, width = "expert_shared_count", "expert_shared_feed_forward_length"
    if number in family.expert_keys and width in keys:
        expected = config.get(family.expert_keys[number], 0) * config[family.expert_keys["expert_feed_forward_length"]]
        if expected and keys.whole(width, 1, 1 << 22) != expected:
            raise BadConfig(
                "{file}: {key} is {found}; expected {expected}", **keys.facts(width, keys.whole(width, 1, 1 << 22)), expected=expected
            )
    return config


def _vocabulary(keys: _Keys, tensors: Mapping[str, StoredTensor]) -> int:
    """Rows of the embedding."""
    table = tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise MissingTensor("{file}: tensor {tensor} is missing", file=keys.file, tensor="token_embd.weight")
    rows = table.shape[0]
    found = keys.whole("vocab_size", 1, 1 << 31, default=rows)
    if found != rows:
        raise BadConfig("{file}: {key} is {found}; token_embd.weight has {rows} rows", **keys.facts("vocab_size", found), rows=rows)
    return rows


def _rope_scaling(keys: _Keys, divisors: StoredTensor | None, rotated: int, context: int) -> dict[str, Any] | None:
    """How rotary frequencies are stretched: by a table of divisors, evenly, or by YaRN."""
    kind = keys.text("rope.scaling.type", ("none", "linear", "yarn"), default="linear")
    factor = keys.number("rope.scaling.factor", 1e-3, 1e6, default=keys.number("rope.scale_linear", 1e-3, 1e6, default=1.0))
    original = keys.whole("rope.scaling.original_context_length", 1, 1 << 27, default=context)
    share = keys.number("rope.scaling.attn_factor", 1e-6, 1e6, default=1.0)
    fast = keys.number("rope.scaling.yarn_beta_fast", 0.0, 1e6, default=32.0)
    slow = keys.number("rope.scaling.yarn_beta_slow", 0.0, 1e6, default=1.0)
    stretched = kind != "none" and (factor != 1.0 or kind == "yarn")
    if divisors is not None:
        if stretched:
            raise UnsupportedFormat(
                "{file}: {key} and the tensor rope_freqs.weight both stretch the frequencies", **keys.facts("rope.scaling.type")
            )
        return {"rope_type": "divisors", "divisors": _divisors(keys.file, divisors, rotated)}
    if not stretched:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    # The file's share multiplies the usual 0.1 ln(factor) + 1; config.json names the product.
    usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, "beta_fast": fast, "beta_slow": slow}
    return scaling | ({"attention_factor": share * usual} if share != 1.0 else {})


def _divisors(file: str, stored: StoredTensor, rotated: int) -> list[float]:
    """One positive divisor a rotary pair."""
    if stored.shape != (rotated // 2,):
        raise BadConfig(
            "{file}: tensor {tensor} has shape {found}; expected {expected}",
            file=file,
            tensor=DIVISORS,
            found=list(stored.shape),
            expected=[rotated // 2],
        )
    values: list[float] = stored.float32().tolist()
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise BadConfig("{file}: tensor {tensor} holds divisors that are not positive numbers", file=file, tensor=DIVISORS)
    return values


class _Keys:
    """The keys of one architecture, read by type and range; remembers which were asked for."""

    def __init__(self, file: str, values: Mapping[str, Any]) -> None:
        self.file = file
        self.values = values
        self.asked: set[str] = set()
        found = values.get("general.architecture")
        if not isinstance(found, str):
            raise BadConfig("{file}: {key} is {found}; expected a name", file=file, key="general.architecture", found=repr(found)[:80])
        self.architecture = found

    def __contains__(self, key: str) -> bool:
        return self.full(key) in self.values

    def full(self, key: str) -> str:
        """A key with the architecture's prefix."""
        return f"{self.architecture}.{key}"

    def facts(self, key: str, found: object = None) -> dict[str, str]:
        """Facts for a message about a key and its value."""
        return {"file": self.file, "key": self.full(key), "found": repr(found)[:80], "architecture": self.architecture}

    def whole(self, key: str, low: int, high: int, *, default: int | None = None) -> int:
        """A whole number; truth values and floats are none."""
        found = self._value(key, default)
        if type(found) is not int or not low <= found <= high:
            raise BadConfig(
                "{file}: {key} is {found}; expected a whole number from {low} to {high}", **self.facts(key, found), low=low, high=high
            )
        return found

    def number(self, key: str, low: float, high: float, *, default: float | None = None) -> float:
        """A finite number."""
        found = self._value(key, default)
        if type(found) is not float or not low <= found <= high:
            raise BadConfig(
                "{file}: {key} is {found}; expected a number from {low:g} to {high:g}", **self.facts(key, found), low=low, high=high
            )
        return found

    def truth(self, key: str) -> bool:
        """A truth value."""
        found = self._value(key, None)
        if type(found) is not bool:
            raise BadConfig("{file}: {key} is {found}; expected true or false", **self.facts(key, found))
        return found

    def text(self, key: str, allowed: tuple[str, ...], *, default: str) -> str:
        """One of a few words."""
        found = self._value(key, default)
        if found not in allowed:
            raise BadConfig("{file}: {key} is {found}; expected one of {allowed}", **self.facts(key, found), allowed=", ".join(allowed))
        return str(found)

    def _value(self, key: str, default: object) -> Any:
        self.asked.add(self.full(key))
        found = self.values.get(self.full(key), default)
        if found is None:
            raise BadConfig("{file}: {key} is missing", file=self.file, key=self.full(key))
        return found

    def nothing_left(self) -> None:
        """Refuse keys of the architecture that nobody asked for: they would change what the model computes."""
        for key in self.values:
            if (
                key.startswith(f"{self.architecture}.")
                and key not in self.asked
                and key.removeprefix(f"{self.architecture}.") not in _IGNORED
            ):
                raise UnknownKey(
                    "{file}: {key} is not known for the architecture {architecture}",
                    file=self.file,
                    key=key,
                    architecture=self.architecture,
                )
