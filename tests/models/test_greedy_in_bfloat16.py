"""Weights in bfloat16: the greedy text of twenty prompts, natively and with torch.

Torch need not write the texts itself: shown the native one, it would have written the same if its best token is the text's at every place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from khola.api.model import Model
from khola.api.quantise import quantise
from khola.engine.request import Finished, Request, Sampling
from khola.loader.load import load_model
from khola.ops.vocabulary import whole_sequences
from khola.settings import Settings
from tests.needs import needs_library
from tests.tolerances import BFLOAT16_GAP

pytestmark = [pytest.mark.slow, pytest.mark.parity, needs_library]

NUM_TOKENS = 48
MODELS = {"qwen2.5-coder-0.5b-instruct": 18, "smollm2-135m-instruct": 12}
"""Texts that are equal at least where products round their inputs, and the cache what it keeps."""


@dataclass(frozen=True)
class Prompts:
    """Weights in bfloat16, and what is asked."""

    path: Path
    asked: list[tuple[int, ...]]
    settings: Settings


@pytest.fixture
def prompts(name: str, real_model: Callable[[str], Path], tmp_path: Path) -> Prompts:
    """Twenty, of one model."""
    golden = json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    settings = Settings(home=tmp_path, user_home=tmp_path)
    path = tmp_path / "bfloat16.gguf"
    quantise(str(real_model(name)), to="bf16", settings=settings, output=path)
    asked = [tuple(row["ids"]) for row in golden["rows"]]
    assert len(asked) == 20
    return Prompts(path, asked, settings)


@pytest.mark.parametrize(("name", "equal_at_least"), MODELS.items())
def test_native_text_is_that_of_torch(name: str, equal_at_least: int, prompts: Prompts) -> None:
    """As many texts as torch's own arithmetic in bfloat16 leaves as they are in float32, and more; the others differ at near ties."""
    texts = native_texts(prompts)
    exact = torch_rows(prompts, texts, "float32")
    gaps = [behind(rows, text) for rows, text in zip(exact, texts, strict=True)]
    equal = sum(not gap.any() for gap in gaps)
    rounded = torch_rows(prompts, texts, "bfloat16")
    torch_equal = sum(np.array_equal(a.argmax(1), b.argmax(1)) for a, b in zip(exact, rounded, strict=True))
    most = [round(float(gap.max()), 4) for gap in gaps if gap.any()]
    print(f"{name}: {equal} of {len(texts)} texts equal, torch in bfloat16 {torch_equal}; tokens lie behind torch's best by at most {most}")
    assert equal >= max(equal_at_least, torch_equal)
    assert max(most, default=0) < BFLOAT16_GAP


@pytest.mark.parametrize("name", MODELS)
def test_precise_text_is_that_of_torch(name: str, prompts: Prompts) -> None:
    """All of it: the logits of both differ by at most 0.0002, and torch's two best are nowhere closer than 0.0005."""
    texts = native_texts(prompts, precise=True)
    exact = torch_rows(prompts, texts, "float32")
    closest = min(float((rows.max(1) - np.partition(rows, -2)[:, -2]).min()) for rows in exact)
    equal = sum(not behind(rows, text).any() for rows, text in zip(exact, texts, strict=True))
    print(f"{name}: {equal} of {len(texts)} texts equal; torch's two best logits are never closer than {closest:.5f}")
    assert equal == len(texts)


def native_texts(prompts: Prompts, *, precise: bool = False) -> list[list[int]]:
    """Greedy tokens of every prompt, all in one batch."""
    sampling = Sampling(temperature=0, max_tokens=NUM_TOKENS, ignore_end=True)
    loaded = load_model(str(prompts.path), settings=prompts.settings, interpreter="native", precise=precise)
    with Model(loaded, cache_tokens=8192) as model:
        streams = [model.engine.stream(Request(prompt=prompt, sampling=sampling)) for prompt in prompts.asked]
        return [[token.id for event in stream if not isinstance(event, Finished) for token in event.tokens] for stream in streams]


def torch_rows(prompts: Prompts, texts: list[list[int]], dtype: str) -> list[np.ndarray]:
    """Logits that every token of a text is chosen from."""
    loaded = load_model(str(prompts.path), settings=prompts.settings, interpreter="torch", dtype=dtype)
    lengths = [len(prompt) + NUM_TOKENS - 1 for prompt in prompts.asked]
    program = loaded.ops.compile(loaded.logits, loaded.cache, max(lengths), max(lengths))
    found = []
    for prompt, text, length in zip(prompts.asked, texts, lengths, strict=True):
        ids = np.array((*prompt, *text[:-1]), np.int32)
        found.append(program(ids, whole_sequences([length], range(len(prompt) - 1, length))))
    return found


def behind(logits: np.ndarray, text: list[int]) -> np.ndarray:
    """How far each token of a text lies behind the best one."""
    return logits.max(axis=1) - logits[np.arange(len(text)), text]
