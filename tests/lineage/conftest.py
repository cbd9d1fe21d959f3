"""A family of small models, made once and copied for every test that may change it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.api.small_models import settings_in
from tests.lineage.family import Family, family


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Family]:
    """Three generations and their home."""
    home = tmp_path_factory.mktemp("family")
    return home, family(home)


@pytest.fixture
def kin(made_once: tuple[Path, Family], tmp_path: Path) -> Family:
    """Three generations of this test's own."""
    old, found = made_once
    home = tmp_path / "home"
    shutil.copytree(old, home)
    places = {name: home / place.relative_to(old) for name, place in (("first", found.first), ("child", found.child))}
    return replace(found, settings=settings_in(home), grandchild=home / found.grandchild.relative_to(old), **places)
