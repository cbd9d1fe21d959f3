"""A GGUF file of a small random model, complete with a vocabulary of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from khola.store.gguf import write_gguf
from khola.store.stored import in_memory

HIDDEN, INNER, LAYERS, HEADS, KEY_HEADS, SIZE = 64, 96, 2, 2, 1, 32


def letters() -> list[str]:
    """The 256 letters in which byte-level vocabularies write bytes (GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def tiny_gguf(path: Path, seed: int = 0, kind: str = "Q8_0", layers: int = LAYERS) -> Path:
    """Write a model; another seed is another model of the same size, more layers one that takes longer."""
    rng = np.random.default_rng(seed)
    tokens = [*letters(), "<|end|>"]
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.context_length": 512,
        "llama.embedding_length": HIDDEN,
        "llama.block_count": layers,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KEY_HEADS,
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "llama.rope.freq_base": np.float32(10000.0),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * 256 + [3], np.int32),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": np.uint32(256),
    }
    metadata["tokenizer.ggml.tokens"] = [*tokens, "ab"]
    metadata["tokenizer.ggml.token_type"] = np.array([1] * 256 + [3, 1], np.int32)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (258, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(layers):
        here = f"blk.{layer}."
        shapes |= {f"{here}{norm}.weight": (HIDDEN,) for norm in ("attn_norm", "ffn_norm")}
        shapes |= {f"{here}attn_q.weight": (HEADS * SIZE, HIDDEN), f"{here}attn_output.weight": (HIDDEN, HEADS * SIZE)}
        shapes |= {f"{here}attn_{name}.weight": (KEY_HEADS * SIZE, HIDDEN) for name in "kv"}
        shapes |= {f"{here}ffn_{name}.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        shapes[f"{here}ffn_down.weight"] = (HIDDEN, INNER)
    stored = []
    for name, shape in shapes.items():
        flat = len(shape) == 1
        values = rng.uniform(0.8, 1.2, shape) if flat else rng.normal(0, 0.2, shape)
        stored.append(in_memory(name, values.astype(np.float32), "F32" if flat else kind))
    write_gguf(path, metadata, stored)
    return path
