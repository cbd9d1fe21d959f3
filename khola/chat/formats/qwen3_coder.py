"""Qwen3-Coder: ChatML without a default system turn, tools and calls in tags; it never thinks aloud.

Source: the chat template in the lab's files (Qwen/Qwen3-Coder-30B-A3B-Instruct).
"""

from __future__ import annotations

from khola.chat.chatml import STOPS
from khola.chat.qwen_xml import Coder

NAME = Coder.name
_FORMAT = Coder()
render, parser = _FORMAT.render, _FORMAT.parser

__all__ = ["NAME", "STOPS", "parser", "render"]
