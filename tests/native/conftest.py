"""Kernels are tested in every instruction set that this processor has; without a built library there is nothing to test.

Plain C++ takes as long as all the others together, and AVX-VNNI is the source of AVX2 with other options: both wait for the slow tests.
"""

from __future__ import annotations

import pytest

from khola.native.lib import library_path

LATER = ("scalar", "avxvnni")
"""Among the slow tests, where there are others."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `isa`."""
    if "isa" in metafunc.fixturenames:
        from tests.native.rig import available

        found = available() if library_path() else ()
        quick = [isa for isa in found if isa not in LATER] or list(found)
        marks = {isa: () if isa in quick else (pytest.mark.slow,) for isa in found}
        metafunc.parametrize("isa", [pytest.param(isa, marks=marks[isa]) for isa in found])
