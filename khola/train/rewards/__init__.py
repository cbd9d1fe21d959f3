"""Knows: what an answer is worth, by rules that can be checked: maths, code, schemas, length, form.

Does not know: how answers are made, or what becomes of their worth.
"""
