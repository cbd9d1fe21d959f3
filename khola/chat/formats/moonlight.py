"""Moonlight-16B-A3B-Instruct: Moonshot's turns; no tools, no thoughts.

Source: the chat template in the lab's files (moonshotai/Moonlight-16B-A3B-Instruct).
"""

from __future__ import annotations

from khola.chat.kimi import STOPS, Kimi

NAME = "moonlight"
_FORMAT = Kimi(name=NAME, system="You are a helpful assistant")
render, parser = _FORMAT.render, _FORMAT.parser

__all__ = ["NAME", "STOPS", "parser", "render"]
