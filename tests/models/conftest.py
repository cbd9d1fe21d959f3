"""Gives every test of an architecture's contract all of its tiny configurations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.models.contract import Tiny
from tests.models.parity import Parity


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `tiny` by the `CONFIGS` of the test's class."""
    if "tiny" in metafunc.fixturenames and metafunc.cls is not None:
        metafunc.parametrize("tiny", metafunc.cls.CONFIGS, indirect=True)


@pytest.fixture
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """A tiny random model, made once."""
    return Tiny.made(request.cls, request.param)


@pytest.fixture(scope="session")
def parity(request: pytest.FixtureRequest) -> Iterator[Parity]:
    """What was measured before, and is now."""
    found = Parity(record=request.config.getoption("--record-parity"))
    yield found
    found.close()
