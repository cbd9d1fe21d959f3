"""DeepSeek-R1-0528 and its distilled Qwen3-8B: V3-0324's turns; the model begins every answer with a thought by itself.

Thoughts are left out of the history.
Source: the chat template in the lab's files (deepseek-ai/DeepSeek-R1-0528-Qwen3-8B).
"""

from __future__ import annotations

from khola.chat.deepseek import STOPS, DeepSeek

NAME = "deepseek_r1_0528"
_FORMAT = DeepSeek(name=NAME, thinks="always")
render, parser = _FORMAT.render, _FORMAT.parser

__all__ = ["NAME", "STOPS", "parser", "render"]
