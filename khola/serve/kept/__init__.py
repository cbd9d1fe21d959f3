"""Knows: what outlives the server: conversations, characters, files and batches, each row with its owner.

Does not know: addresses and bodies; who may ask.
"""
