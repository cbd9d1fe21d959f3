"""Every limit of the server, in one table; each is applied at the earliest layer that can, and before anything is allocated for it."""

from __future__ import annotations

import msgspec

KIB, MIB = 1 << 10, 1 << 20


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Times are in seconds, sizes in bytes."""

    line_bytes: int = 8 * KIB
    """Request line."""
    header_bytes: int = 16 * KIB
    """All headers together."""
    headers: int = 64
    header_s: float = 10.0
    """From the first byte of a connection, or of its next request, to the last header."""
    body_bytes: int = 4 * MIB
    """JSON without media."""
    media_bytes: int = 32 * MIB
    """JSON with images inside."""
    body_rate: float = 1024.0
    """Bytes a second that a body must come in with, after `body_grace_s`."""
    body_grace_s: float = 10.0
    body_s: float = 60.0
    json_depth: int = 64
    json_values: int = 100_000
    """Values of a JSON body; a list of token ids is many."""
    messages: int = 2048
    parts: int = 64
    """Of one message."""
    answers: int = 8
    """`n` of a request."""
    logprobs: int = 20
    logit_bias: int = 1024
    stops: int = 16
    stop_letters: int = 256
    tools: int = 128
    batch: int = 256
    """Texts of one embeddings or completions request."""
    queue: int = 256
    """Requests that wait or run, of all callers."""
    in_flight: int = 16
    """Requests that wait or run, of one caller."""
    connections: int = 1024
    deadline_s: float = 600.0
    """From a request's last header to the end of its answer."""
    ping_s: float = 10.0
    """Silence of a stream before a comment says that it lives; also how long an error can still have a status of its own."""
    reader_s: float = 30.0
    """How long a reader may not read before its answer is stopped."""
    drain_s: float = 30.0
    """How long running answers may take to end after SIGTERM."""
    failures: int = 10
    """Wrong keys from one address in a minute."""
