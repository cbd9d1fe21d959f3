"""Knows: processes that hold a model each, what is said to them over a socket, and the stand-in without a model.

Does not know: HTTP, dialects, keys.
"""
