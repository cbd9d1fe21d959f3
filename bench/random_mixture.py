"""Write a mixture of experts of ERNIE-4.5-21B-A3B's shape with random weights: `python -m bench.random_mixture FILE.gguf [--layers 8]`.

Speed depends on shapes, number formats and how evenly experts are chosen, and not on what a model knows. Matrices are Q4_0, the embedding
table, which is the head too, is Q8_0; 28 layers are 12 GB. Family "qwen3moe", which every engine that reads GGUF runs, has no shared
experts.

Source: the sizes of `baidu/ERNIE-4.5-21B-A3B-PT`'s config.json; for the family, see `khola.store.names`.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from khola.store.gguf import write_gguf
from khola.store.kinds import bytes_of
from khola.store.stored import StoredTensor, in_memory

HIDDEN, HEADS, KEY_HEADS, HEAD_SIZE, VOCABULARY = 2560, 20, 4, 128, 103_424
EXPERTS, CHOSEN, INNER = 64, 6, 1536
FAMILY = "qwen3moe"
CODES = {"Q4_0": 16, "Q8_0": 32}
"""Bytes of codes in a block of 32 numbers, behind its scale."""
SPREAD = {"Q4_0": 4.6, "Q8_0": 73.9}
"""Standard deviation of the codes, all of them equally likely."""


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(prog="python -m bench.random_mixture", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    asked = parser.parse_args()
    write_gguf(asked.file, metadata(asked.layers), list(tensors(asked.layers)))


def metadata(layers: int) -> dict[str, Any]:
    """Sizes, and a vocabulary in which every id is a word of its own."""
    words = [f"w{number}" for number in range(VOCABULARY - 256)]
    sizes: dict[str, Any] = {
        "context_length": 8192,
        "embedding_length": HIDDEN,
        "block_count": layers,
        "feed_forward_length": 12_288,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KEY_HEADS,
        "attention.key_length": HEAD_SIZE,
        "attention.value_length": HEAD_SIZE,
        "attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "rope.freq_base": np.float32(500_000),
        "expert_count": EXPERTS,
        "expert_used_count": CHOSEN,
        "expert_feed_forward_length": INNER,
    }
    return {
        "general.architecture": FAMILY,
        "general.name": f"random mixture, {layers} layers",
        **{f"{FAMILY}.{key}": value for key, value in sizes.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*sorted(ByteLevel.alphabet()), *words],
        "tokenizer.ggml.token_type": np.ones(VOCABULARY, np.int32),
        "tokenizer.ggml.merges": ["w 1"],
        "tokenizer.ggml.eos_token_id": np.uint32(VOCABULARY - 1),
    }


def tensors(layers: int) -> Iterator[StoredTensor]:
    """Every tensor, made when it is written."""
    wide, narrow = HEADS * HEAD_SIZE, KEY_HEADS * HEAD_SIZE
    yield random_tensor("token_embd.weight", (VOCABULARY, HIDDEN), "Q8_0")
    yield ones("output_norm.weight", HIDDEN)
    for layer in range(layers):
        here = f"blk.{layer}."
        for name, size in (("attn_norm", HIDDEN), ("ffn_norm", HIDDEN), ("attn_q_norm", HEAD_SIZE), ("attn_k_norm", HEAD_SIZE)):
            yield ones(f"{here}{name}.weight", size)
        for name, shape in (
            ("attn_q", (wide, HIDDEN)),
            ("attn_k", (narrow, HIDDEN)),
            ("attn_v", (narrow, HIDDEN)),
            ("attn_output", (HIDDEN, wide)),
        ):
            yield random_tensor(f"{here}{name}.weight", shape)
        router = np.random.default_rng(layer).standard_normal((EXPERTS, HIDDEN), np.float32) / np.float32(HIDDEN**0.5)
        yield in_memory(f"{here}ffn_gate_inp.weight", router)
        for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            yield random_tensor(f"{here}ffn_{name}_exps.weight", (EXPERTS, *shape))


def ones(name: str, size: int) -> StoredTensor:
    """The weight of a norm."""
    return in_memory(name, np.ones(size, np.float32))


def random_tensor(name: str, shape: tuple[int, ...], kind: str = "Q4_0") -> StoredTensor:
    """Random codes; products keep the size of their inputs."""
    return StoredTensor(name, shape, kind, bytes_of(kind, shape, file="memory", tensor=name), partial(random_blocks, name, shape, kind))


def random_blocks(name: str, shape: tuple[int, ...], kind: str) -> memoryview:
    """The tensor's bytes, the same at every call."""
    codes = CODES[kind]
    blocks = np.empty((int(np.prod(shape)) // 32, 2 + codes), np.uint8)
    scale = np.float16(1 / (SPREAD[kind] * shape[-1] ** 0.5))
    blocks[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    blocks[:, 2:] = np.frombuffer(np.random.default_rng(zlib.crc32(name.encode())).bytes(len(blocks) * codes), np.uint8).reshape(-1, codes)
    return memoryview(blocks.reshape(-1))


if __name__ == "__main__":
    main()
