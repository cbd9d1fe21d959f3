"""Kimi-K2-Instruct: Moonshot's turns with tools.

Source: the chat template in the lab's files (moonshotai/Kimi-K2-Instruct).
"""

from __future__ import annotations

from khola.chat.kimi import STOPS, Kimi

NAME = "kimi_k2"
_FORMAT = Kimi(name=NAME, system="You are Kimi, an AI assistant created by Moonshot AI.", behind="\n", tools=True)
render, parser = _FORMAT.render, _FORMAT.parser

__all__ = ["NAME", "STOPS", "parser", "render"]
