"""Knows: who may ask, how much, and for how long.

Does not know: what is asked: bodies, models, dialects.
"""
