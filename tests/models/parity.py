"""What the contract measured: the largest difference of a logit from the reference, kept so that it gets no worse and the docs can say it.

`pytest tests/models -k equal_to_the_reference --record-parity` writes the file anew; architectures it does not run stay as they are.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.tolerances import PARITY_LEAST, PARITY_SLACK

FILE = Path(__file__).with_name("parity.json")


class Parity:
    """The record of one session.

    Args:
        record: keep what is measured instead of comparing.
    """

    def __init__(self, *, record: bool) -> None:
        self._record = record
        self._known: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
        self._fresh: dict[str, dict[str, float]] = {}

    def measured(self, architecture: str, config: str, error: float) -> None:
        """Compare with what was recorded, where something was, or keep."""
        fresh = self._fresh.setdefault(architecture, {})
        fresh[config] = max(fresh.get(config, 0.0), float(f"{error:.1e}"))
        known = self._known["logits"].get(architecture, {}).get(config)
        if not self._record and known is not None:
            worst = max(PARITY_LEAST, PARITY_SLACK * known)
            assert error <= worst, f"{architecture}, {config}: {error:.1e} from the reference; recorded was {known:.1e}"

    def close(self) -> None:
        """Write the file, if this session records."""
        if self._record:
            reference = f"transformers {version('transformers')}"
            logits = {**self._known["logits"], **self._fresh}
            text = json.dumps({"reference": reference, "logits": dict(sorted(logits.items()))}, indent=1, sort_keys=False)
            FILE.write_text(text + "\n", encoding="utf-8")
