"""Knows: how requests come in and answers go out: connections, bodies, events, errors, streams that are picked up again.

Does not know: who asks, and what the answers mean.
"""
