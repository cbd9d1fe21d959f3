"""Qwen3.5 0.8B and 2B: the format of the larger ones, but answers begin inside a thought only where that is switched on.

Source: the chat template in the lab's files (Qwen/Qwen3.5-2B).
"""

from __future__ import annotations

from khola.chat.chatml import STOPS
from khola.chat.qwen_xml import Hybrid

NAME = "qwen3_5_small"
_FORMAT = Hybrid(NAME, thinks=False)
render, parser = _FORMAT.render, _FORMAT.parser

__all__ = ["NAME", "STOPS", "parser", "render"]
