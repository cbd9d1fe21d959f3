"""DeepSeek-V3 of December 2024 and of March 2025: no default system turn, no thoughts.

Conversations are written as the template of March has it; that of December prints the same where turns alternate and no tool is called.
Source: the chat template in the lab's files (deepseek-ai/DeepSeek-V3-0324).
"""

from __future__ import annotations

from khola.chat.deepseek import STOPS, DeepSeek

NAME = "deepseek_v3"
_FORMAT = DeepSeek(name=NAME, thinks="never")
render, parser = _FORMAT.render, _FORMAT.parser

__all__ = ["NAME", "STOPS", "parser", "render"]
