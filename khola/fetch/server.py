"""A server that answers over HTTP: reached, asked and understood; khola's own and others that speak the same dialects."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from khola.errors import AskedWrong, BadText, Busy, Forbidden, KholaError, NoKey, NoSource, TooMany, UnknownModel
from khola.fetch.web import refuse_offline

if TYPE_CHECKING:
    import httpx2

    from khola.settings import Settings

CONNECT_S, READ_S = 5.0, 60.0
"""A server that lives says so every ten seconds."""
LONGEST_LINE = 16 << 20
_KINDS: dict[int, type[KholaError]] = {400: AskedWrong, 401: NoKey, 403: Forbidden, 404: UnknownModel, 429: TooMany, 503: Busy}


@contextmanager
def connected(server: str, settings: Settings, read_s: float = READ_S) -> Iterator[httpx2.Client]:
    """A client of a server; the key goes there and nowhere else.

    Args:
        server: its address.
        settings: whose key is shown, and whether the network may be used.
        read_s: longest silence.
    Raises:
        AskedWrong: that is no address.
        Offline: it is another machine, and the network is switched off.
    """
    import httpx2

    address = (server if "://" in server else f"http://{server}").rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(address)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise AskedWrong("{server} is no address of a server", hint="expected one like http://127.0.0.1:11500", server=server)
    here = _is_here(parts.hostname or "")
    if not here:
        refuse_offline(settings.offline, address)
    key = {"authorization": f"Bearer {settings.server_key}"} if settings.server_key else {}
    timeout = httpx2.Timeout(read_s, connect=CONNECT_S)
    with httpx2.Client(base_url=address, headers=key, timeout=timeout, trust_env=not here) as client:
        yield client


def object_of(text: str, server: str) -> dict[str, Any]:
    """A JSON object that a server sent.

    Raises:
        BadText: it is something else.
    """
    try:
        found = json.loads(text) if len(text) <= LONGEST_LINE else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadText("{server} sent something that is no JSON object; is it a khola server?", server=server)
    return found


def silent(server: str, wrong: Exception) -> NoSource:
    """What to raise when a server does not answer."""
    why = str(wrong) or type(wrong).__name__
    return NoSource(
        "{server} does not answer: {why}", hint="`khola serve` starts a server; --server says where it is", server=server, why=why
    )


def refused(server: str, status: int, raw: bytes) -> KholaError:
    """What to raise when a server refuses, in its own words."""
    told = object_of(raw.decode("utf-8", "replace"), server).get("error")
    message = told.get("message") if isinstance(told, dict) else told
    if status == 401:
        return NoKey("{server} refused: {why}", hint="put the key into KHOLA_KEY", server=server, why=message)
    return _KINDS.get(status, NoSource)("{server} refused: {why}", server=server, why=message)


def _is_here(host: str) -> bool:
    """Whether a host is this machine: no network is needed, and no proxy asked."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
