"""The layer that guesses is loaded where somebody asks for it and the files have it, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

import khola
from khola.errors import UnknownOption
from khola.loader import load_model
from tests.api.small_models import folder_model, settings_in
from tests.loader.test_latent_on_disk import CONFIG
from tests.needs import needs_library

WITH_LAYER = CONFIG | {"num_nextn_predict_layers": 1}
BLOCK, OWN = 2 + 7 + 2 + 3 * (8 + 1), 4
"""Tensors of the layer: norms, attention, router and experts; and what only this layer has."""


def test_it_is_left_in_the_file_unless_asked_for(tmp_path: Path) -> None:
    folder, told = folder_model(tmp_path / "model", **WITH_LAYER), []
    plain = load_model(str(folder), settings=settings_in(tmp_path), interpreter="numpy", tell=lambda text, **facts: told.append(facts))
    assert [facts["count"] for facts in told] == [BLOCK + OWN]
    assert len(plain.cache.layers) == 2 and not plain.second_token
    whole = load_model(str(folder), settings=settings_in(tmp_path), interpreter="numpy", second_token=True)
    assert len(whole.cache.layers) == 3 and whole.second_token
    assert whole.config == plain.config


@pytest.mark.parametrize("config", [{}, CONFIG], ids=["llama", "without the layer"])
def test_models_without_it_say_so(config: dict[str, object], tmp_path: Path) -> None:
    folder = folder_model(tmp_path / "model", **config)
    with pytest.raises(UnknownOption, match="no layer that guesses a second token"):
        load_model(str(folder), settings=settings_in(tmp_path), interpreter="numpy", second_token=True)


@needs_library
def test_natively_from_a_file_and_from_what_was_packed_of_it(tmp_path: Path) -> None:
    """With the layer, without it and with it again: the answers are one."""
    folder, answers = folder_model(tmp_path / "model", **WITH_LAYER), set()
    for second_token in (True, False, True):
        with khola.load(str(folder), settings=settings_in(tmp_path), interpreter="native", context=256, second_token=second_token) as model:
            answers.add(model.complete("the other", sampling={"temperature": 0, "max_tokens": 40, "speculate": True}).text)
            assert model.stats().drafted_tokens > 0 or not second_token
    assert len(answers) == 1
