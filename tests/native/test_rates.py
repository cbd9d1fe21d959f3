"""How fast the processor multiplies: units of this processor, numbers that could be true, and more with more threads than nothing."""

from __future__ import annotations

import ctypes

import pytest

from khola.native import rates
from khola.native.lib import available_isas, library
from tests.needs import needs_library

pytestmark = needs_library
UNITS = {"amx": {"amx_bf16", "amx_int8"}, "avx512": {"avx512_bf16", "avx512_int8"}, "avx2": {"avx2_float32"}, "neon": {"neon_float32"}}


def test_units_of_this_processor_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "LONG_S", 0.002)
    found = rates.multiply_rates(2)
    for isa, units in UNITS.items():
        assert (units <= set(found)) == (isa in available_isas()), isa
    assert all(1e8 < rate < 1e15 for rate in found.values())


def test_work_grows_with_the_rounds_and_no_unit_lies_behind_the_last() -> None:
    name, few, many = ctypes.c_char_p(), ctypes.c_int64(), ctypes.c_int64()
    unit = 0
    while library().kh_multiply(unit, 10, ctypes.byref(name), ctypes.byref(few)) == 0:
        assert library().kh_multiply(unit, 30, ctypes.byref(name), ctypes.byref(many)) == 0
        assert name.value and many.value == 3 * few.value > 0
        unit += 1
    assert unit or available_isas() == ("scalar",)
    assert library().kh_multiply(-1, 1, ctypes.byref(name), ctypes.byref(few)) < 0
