"""Small models as files: a llama and a qwen2 with a vocabulary of bytes, as a GGUF file or as a checkpoint's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from khola.models import architecture
from khola.nn import second_token
from khola.nn.specs import parse_config
from khola.settings import Settings
from khola.store.safetensors import write_safetensors
from khola.tokens.pipeline import ALPHABET

ROWS = 272
"""256 bytes, one merge, two control tokens, and padding."""
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def settings_in(home: Path) -> Settings:
    """Settings of a home that is empty."""
    return Settings(home=home / "khola", user_home=home, offline=True, threads=2)


def folder_model(folder: Path, **changes: Any) -> Path:
    """A checkpoint's folder of random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | changes
    found = architecture(config["model_type"])
    rng = np.random.default_rng(1)
    tensors = {}
    parsed = parse_config(found, config)
    shapes = second_token.tensors(found, parsed) if parsed.further_layers else found.tensors(parsed)
    for name, shape in shapes.items():
        values = rng.normal(0, (2 if "embed" in name or "head" in name else 1) / shape[-1] ** 0.5, shape)
        tensors[name] = (values if len(shape) > 1 else 1 + values).astype(np.float32)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    vocab = {letter: index for index, letter in enumerate(ALPHABET)} | {"th": 256, "<|endoftext|>": 257, "<|im_end|>": 258}
    added = [
        {"id": vocab[text], "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for text in ("<|endoftext|>", "<|im_end|>")
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocab, "merges": ["t h"]}
    tokenizer = {"version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level, "model": model}
    documents = {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "chat_template": TEMPLATE},
        "generation_config.json": {"eos_token_id": [257, 258]},
    }
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "LICENSE").write_text("Do as you like.", encoding="utf-8")
    return folder
