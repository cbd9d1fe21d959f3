"""The record of parity errors: what got worse fails, what is new is taken as it is, and only a session that records writes."""

from __future__ import annotations

import json

import pytest

from tests.models.parity import FILE, Parity
from tests.tolerances import PARITY_LEAST, PARITY_SLACK


def test_only_what_got_worse_fails() -> None:
    before = FILE.read_bytes()
    recorded = json.loads(before)["logits"]["qwen3_moe"]["normalised"]
    parity = Parity(record=False)
    parity.measured("qwen3_moe", "normalised", recorded)
    parity.measured("qwen3_moe", "normalised", PARITY_SLACK * recorded * 0.99)
    parity.measured("qwen3_moe", "a new configuration", 1.0)
    with pytest.raises(AssertionError, match=r"qwen3_moe, normalised: .* from the reference"):
        parity.measured("qwen3_moe", "normalised", 1e-5)
    parity.close()
    assert FILE.read_bytes() == before
    assert PARITY_LEAST < 1e-5
