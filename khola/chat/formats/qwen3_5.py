"""Qwen3.5 from 4B on: ChatML, calls in tags; answers begin inside a thought unless that is switched off.

Source: the chat template in the lab's files (Qwen/Qwen3.5-4B).
"""

from __future__ import annotations

from khola.chat.chatml import STOPS
from khola.chat.qwen_xml import Hybrid

NAME = "qwen3_5"
_FORMAT = Hybrid(NAME)
render, parser = _FORMAT.render, _FORMAT.parser

__all__ = ["NAME", "STOPS", "parser", "render"]
