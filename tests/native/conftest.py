"""Kernels are tested in every instruction set that this processor has; without a built library there is nothing to test.

Plain C++ takes as long as all the others together, and AVX-VNNI is the source of AVX2 with other options: both wait for the slow tests.
"""

from __future__ import annotations

import pytest

from khola.native.lib import library_path

LATER = ("scalar", "avxvnni")
"""Among the slow tests, where there are others."""


SAME = {"amx": "avx512", "avxvnni": "avx2", "dotprod": "neon"}
"""Their precise kernels are those of another."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Attention in float32 takes one instruction set in the quick tests: its kernels are the same loops, compiled several times."""
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if parameters.get("cache") == "float32" and parameters.get("isa") not in (None, "avx2", "neon"):
            item.add_marker(pytest.mark.slow)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `isa` and `precise_isa`."""
    for name, others in (("isa", {}), ("precise_isa", SAME)):
        if name not in metafunc.fixturenames:
            continue
        from tests.native.rig import available

        found = available() if library_path() else ()
        quick = [isa for isa in found if isa not in LATER] or list(found)
        marks = {isa: () if isa in quick else (pytest.mark.slow,) for isa in found}
        metafunc.parametrize(name, [pytest.param(isa, marks=marks[isa]) for isa in found if others.get(isa) not in found])
