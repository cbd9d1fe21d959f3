"""Qwen3.6: the format of Qwen3.5, but calls in the history have the words of JSON: true, false, null.

Source: the chat template in the lab's files (Qwen/Qwen3.6-27B).
"""

from __future__ import annotations

from khola.chat.chatml import STOPS
from khola.chat.qwen_xml import Hybrid

NAME = "qwen3_6"
_FORMAT = Hybrid(NAME, json_words=True)
render, parser = _FORMAT.render, _FORMAT.parser

__all__ = ["NAME", "STOPS", "parser", "render"]
