"""DeepSeek-V3.1: thoughts can be switched on; tools are for when they are not.

Source: the chat template and the card in the lab's files (deepseek-ai/DeepSeek-V3.1).
"""

from __future__ import annotations

from khola.chat.deepseek import STOPS, DeepSeek

NAME = "deepseek_v3_1"
_FORMAT = DeepSeek(name=NAME, thinks="optional")
render, parser = _FORMAT.render, _FORMAT.parser

__all__ = ["NAME", "STOPS", "parser", "render"]
