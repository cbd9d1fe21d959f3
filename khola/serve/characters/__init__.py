"""Knows: character cards, and how a character with a memory becomes the messages that a model is asked with.

Does not know: addresses; how the page looks.
"""
