"""Names of what a page holds: a chain of digests over the tokens from the first to the last of the page.

Two pages with one digest hold the same keys and values, bit for bit, because these depend on nothing but the tokens up to them, and on
which of them are tokens of an answer where an interpreter rounds those otherwise (`Step.answers_T`). The digest is BLAKE2b of 256 bits
(RFC 7693), so that nobody can make two prompts meet; the chain starts at a salt, so that tenants never meet either.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from khola.ops.vocabulary import PAGE_TOKENS

DIGEST_BYTES = 32
ANSWER = 1 << 31
"""Added to the id of a token of an answer where those are told from tokens of prompts: ids are smaller."""


def root(salt: str = "", further: bool = False) -> bytes:
    """Where the chain of a tenant starts.

    Args:
        salt: what keeps sequences apart: tenant, adapter. Equal salts share pages.
        further: whether pages also hold what the layer for second tokens keeps.
    """
    return blake2b(
        salt.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, person=b"khola root 2" if further else b"khola root"
    ).digest()


def named(tokens: Sequence[int], answers: bytes) -> tuple[int, ...]:
    """Tokens by what their keys and values depend on.

    Args:
        tokens: ids.
        answers: 1 for every token of an answer, 0 for the others.
    """
    return tuple(token + ANSWER * answer for token, answer in zip(tokens, answers, strict=True))


def extend(digests: list[bytes], start: bytes, tokens: list[int], pages: int, answers: bytes = b"") -> None:
    """Add digests until the first `pages` pages of `tokens` have one.

    Args:
        digests: of the pages so far; grows in place.
        start: the chain's root.
        tokens: at least 32 x pages ids.
        pages: number of full pages that shall be named.
        answers: 1 for every token of an answer, 0 for the others; by default nothing tells them apart.
    """
    for page in range(len(digests), pages):
        parent = digests[page - 1] if page else start
        here = slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)
        ids = np.asarray(tokens[here], "<i4").view("<u4")
        if answers:
            ids = ids ^ (np.frombuffer(answers[here], np.uint8) * np.uint32(ANSWER))
        digests.append(blake2b(parent + ids.tobytes(), digest_size=DIGEST_BYTES, person=b"khola page").digest())
