"""Who may ask at all: the shape of a request, the host that it names, the site that it comes from, the key that it shows.

Everything is refused that is not allowed: an address without a rule of its own needs a key wherever keys are needed. Browsers cannot be
told from programs by what they say of themselves, but by `Origin` and `Sec-Fetch-Site`, which pages cannot change.

Source   https://www.w3.org/TR/fetch-metadata/, https://fetch.spec.whatwg.org/#http-cors-protocol, RFC 9110 section 7.2 (Host)
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from khola.errors import AskedWrong, Forbidden, Misdirected, NoKey, TooLarge, TooMany, WrongType
from khola.serve.access.keys import Failures, Key, Keys, looks_like_one, made, matching
from khola.serve.access.limits import Limits
from khola.serve.operation import Caller, Operation

Auth = Literal["keys", "local", "none"]
"""Every request needs a key; those that only read or infer need none; none needs any."""

READING = ("GET", "HEAD")
CSRF = "x-khola-csrf"
ALLOWED_HEADERS = re.compile(
    r"authorization|content-type|accept|x-api-key|anthropic-[a-z-]{1,40}|openai-[a-z-]{1,40}|x-stainless-[a-z-]{1,40}|x-request-id"
    r"|x-conversation-id|x-khola-csrf|idempotency-key|last-event-id|user-agent"
)
_HOST = re.compile(r"(?P<name>\[[0-9a-f:]{2,39}\]|[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?)(:(?P<port>[0-9]{1,5}))?")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Headers(msgspec.Struct, frozen=True):
    """The headers that decide; others are counted and not looked at."""

    host: str
    origin: str | None
    site: str
    """`Sec-Fetch-Site`; empty when no browser says it."""
    mode: str
    """`Sec-Fetch-Mode`."""
    credentials: frozenset[str]
    csrf: str
    asked_method: str
    """`Access-Control-Request-Method`, by which a browser asks before it sends for another site; else empty."""
    asked_headers: str
    kind: str
    """Media type of the body, without its parameters."""
    body: bool
    """Whether a body follows."""

    @property
    def from_page(self) -> bool:
        """Whether a browser sent the request for a page, so that another site may be behind it."""
        return self.origin is not None or self.site not in ("", "none")


@dataclass(kw_only=True)
class Guard:
    """What one server allows."""

    auth: Auth = "local"
    keys: Keys | None = None
    port: int = 0
    """That the server listens on; 0 lets every port of an allowed host pass, for tests without a socket."""
    hosts: tuple[str, ...] = ()
    """Names beside those of the loopback by which the server may be called, with a port where it is not the server's own."""
    origins: tuple[str, ...] = ()
    """Sites whose pages may ask, exactly as browsers write them."""
    limits: Limits = field(default_factory=Limits)
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    """What the page sends with everything that it changes; pages of other sites cannot read it."""
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """Hides the ids of keys in the names of tenants."""

    def __post_init__(self) -> None:
        self._failures = Failures(self.limits.failures)
        key, self.page_key = made(("infer", "admin"), note="page")
        self._page = {key.id: key}
        self.listens_on(self.port)

    def listens_on(self, port: int) -> None:
        """Take the port that a socket got."""
        self.port = port
        given = [host.lower() for host in self.hosts]
        self._bare = frozenset(name for name in (*_LOOPBACK, *given) if not _has_port(name))
        # A proxy before the server may hand on the name alone; on the loopback only a browser at port 80 would leave the port out.
        self._hosts = frozenset([*given, *(f"{name}:{port}" for name in self._bare), *(_LOOPBACK if port == 80 else ())])

    def headers(self, raw: list[tuple[bytes, bytes]], raw_path: bytes) -> Headers:
        """Read the headers that decide.

        Raises:
            TooLarge: there are more, or larger ones, than are read.
            AskedWrong: one that decides is there twice, or the body is compressed.
        """
        limits = self.limits
        if len(raw) > limits.headers or sum(len(name) + len(value) + 4 for name, value in raw) > limits.header_bytes:
            raise TooLarge("more headers than {count}, or than {limit} bytes", count=limits.headers, limit=limits.header_bytes)
        if len(raw_path) > limits.line_bytes or not raw_path.startswith(b"/"):
            raise AskedWrong("the address must be a path of at most {limit} bytes", limit=limits.line_bytes)
        found: dict[bytes, list[str]] = {}
        for name, value in raw:
            found.setdefault(name.lower(), []).append(value.decode("latin-1").strip())
        for name in (b"host", b"origin", b"content-length", b"content-type", b"authorization", b"x-api-key", b"sec-fetch-site"):
            if len(found.get(name, ())) > 1:
                raise AskedWrong("the header {name} stands twice", name=name.decode())
        if b"content-length" in found and b"transfer-encoding" in found:
            raise AskedWrong("the request says in two ways how long its body is")
        if b"content-encoding" in found and found[b"content-encoding"] != ["identity"]:
            raise AskedWrong("bodies are read as they are; this one is compressed")
        one = {name.decode("latin-1"): values[0] for name, values in found.items()}
        return Headers(
            host=one.get("host", "").lower(),
            origin=one.get("origin"),
            site=one.get("sec-fetch-site", "").lower(),
            mode=one.get("sec-fetch-mode", "").lower(),
            credentials=frozenset(_credentials(one)),
            csrf=one.get(CSRF, ""),
            asked_method=one.get("access-control-request-method", ""),
            asked_headers=one.get("access-control-request-headers", ""),
            kind=one.get("content-type", "").partition(";")[0].strip().lower(),
            body="transfer-encoding" in one or one.get("content-length", "0") != "0",
        )

    def check_host(self, headers: Headers) -> None:
        """Let only those pass that call this server by its own name: a page that had its name lead here does not know it.

        Raises:
            Misdirected: the request names another host, or none.
        """
        shape = _HOST.fullmatch(headers.host)
        known = shape is not None and (headers.host in self._hosts if self.port else shape["name"] in self._bare)
        if not known:
            raise Misdirected(
                "this server is not {host}",
                hint="start it with --allow-host and that name, if it is reached by it",
                host=headers.host[:100] or "without a name",
            )

    def check_site(self, headers: Headers, method: str, operation: Operation | None) -> None:
        """Refuse what a page of another site had the browser send.

        Raises:
            Forbidden: the request comes from a page that is not the server's own.
        """
        if headers.origin in self.origins:
            return
        link = operation is not None and operation.document and method in READING
        ours = headers.origin is None or headers.origin in (f"http://{headers.host}", f"https://{headers.host}")
        near = headers.site in ("", "none", "same-origin") or (link and headers.mode == "navigate")
        if not near or not (ours or link):
            raise Forbidden(
                "pages of {origin} may not ask this server",
                hint="start it with --cors-origin and that origin, if they shall",
                origin=(headers.origin or headers.site)[:100],
            )

    @staticmethod
    def check_kind(headers: Headers, method: str, operation: Operation) -> None:
        """Refuse bodies of another media type than the operation reads: what a form of a page sends is never JSON.

        Raises:
            WrongType: the body is of another type, or of none.
        """
        if headers.body and method not in READING and headers.kind not in operation.types:
            raise WrongType(
                "the body is {found}; expected {known}", found=headers.kind[:80] or "of no type", known=", ".join(operation.types)
            )

    def caller(self, headers: Headers, method: str, operation: Operation | None, address: str, now: float) -> Caller:
        """Who asks, if they may ask this.

        Args:
            operation: what is asked; None for an address that is not there, which only those learn who have a key.
            address: of the client.
            now: seconds since 1970.
        Raises:
            NoKey, Forbidden: a key is needed, wrong, or not for this.
            TooMany: this address showed too many wrong ones.
        """
        key = self._key(headers, address, now)
        if key is None:
            self._without_key(headers, method, operation)
            scopes = {"infer", "admin"} if self.auth == "none" else {"infer"} if self.auth == "local" else set()
            return Caller(name="local", scopes=frozenset(scopes))
        if operation is not None and operation.scope not in ("open", *key.scopes):
            raise Forbidden("this key is not for {scope}", hint="`khola key new --scope` makes one that is", scope=operation.scope)
        return Caller(name="local", scopes=frozenset(key.scopes)) if key.id in self._page else self._owner(key)

    def known(self, name: str, now: float) -> Caller | None:
        """Who asked, by the id of their key, when nobody is there to show it; None once it was revoked, has expired, or never was one."""
        found = [key for key in self.keys.all() if key.id == name and not key.over(now)] if self.keys is not None else []
        return self._owner(found[0]) if found else None

    def _owner(self, key: Key) -> Caller:
        tenant = hmac.new(self.salt, key.id.encode(), hashlib.sha256).hexdigest()[:24]
        return Caller(name=key.id, scopes=frozenset(key.scopes), tenant=tenant, quota=key.quota)

    def _key(self, headers: Headers, address: str, now: float) -> Key | None:
        """The key that was shown; None where none was, or none is needed."""
        if self.auth == "none":
            return None
        shown = [one for one in headers.credentials if self.auth == "keys" or looks_like_one(one)]
        if len(headers.credentials) > 1 and shown:
            raise AskedWrong("the request shows two different keys")
        if not shown:
            return None
        if wait_s := self._failures.wait_s(address, now):
            raise TooMany("too many wrong keys from this address", retry_after=int(wait_s) + 1)
        found = matching(shown[0], self._page, now) or (self.keys.find(shown[0], now) if self.keys is not None else None)
        if found is None:
            self._failures.note(address, now)
            raise NoKey("this key is unknown, expired or revoked")
        return found

    def _without_key(self, headers: Headers, method: str, operation: Operation | None) -> None:
        if operation is not None and operation.scope == "open":
            return
        writes = method not in READING
        needed = self.auth == "keys" or (self.auth == "local" and writes and operation is not None and operation.scope == "admin")
        if needed:
            raise NoKey("this needs a key", hint="`khola key new` makes one; send it as `Authorization: Bearer kh_...`")
        if writes and headers.from_page and headers.origin not in self.origins and not hmac.compare_digest(headers.csrf, self.csrf):
            raise Forbidden("the header {name} is missing or wrong", hint="reload the page", name=CSRF)

    def cross_origin(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Headers that let an allowed site's page read an answer; none for any other."""
        if not self.origins:
            return []
        vary = [(b"vary", b"Origin")]
        if headers.origin not in self.origins or headers.origin is None:
            return vary
        exposed = b"x-request-id, retry-after, x-khola-ignored, x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens"
        return [*vary, (b"access-control-allow-origin", headers.origin.encode()), (b"access-control-expose-headers", exposed)]

    def preflight(self, headers: Headers) -> dict[str, str]:
        """What a browser may send for an allowed site, when it asks before it does.

        Raises:
            Forbidden: the site is not allowed.
        """
        self.check_site(headers, "OPTIONS", None)
        names, method = [name.strip().lower() for name in headers.asked_headers.split(",")], headers.asked_method
        return {
            "access-control-allow-methods": method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") else "GET",
            "access-control-allow-headers": ", ".join(name for name in names if ALLOWED_HEADERS.fullmatch(name)),
            "access-control-max-age": "600",
            "access-control-allow-private-network": "true",
        }


def _credentials(one: dict[str, str]) -> list[str]:
    """What was shown as a key, in either of the headers that clients use."""
    kind, _, bearer = one.get("authorization", "").partition(" ")
    shown = [bearer.strip() if kind.lower() == "bearer" else one.get("authorization", ""), one.get("x-api-key", "")]
    return [credential for credential in shown if credential]


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]
