"""What a key may use: requests and tokens a minute, tokens a day, answers at once.

A limit is a bucket that fills evenly, so that many small requests get no more through than few large ones, and nothing happens at the full
minute. Tokens are taken before an answer begins, as many as it may cost, and settled by what it did cost; an answer that says no bound of
its own may leave the bucket below zero, and then the key waits until it has filled again.
"""

from __future__ import annotations

from typing import Annotated, final

import msgspec

from khola.errors import TooLarge, TooMany

AtLeastOne = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
MINUTE_S, DAY_S = 60.0, 86_400.0
_HAIR = 1e-6
"""Of a token or request: what sums of fractions may lack."""


class Quota(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of one key; None where there is none."""

    requests_minute: AtLeastOne | None = None
    tokens_minute: AtLeastOne | None = None
    """Of prompts and answers together."""
    tokens_day: AtLeastOne | None = None
    at_once: AtLeastOne | None = None
    """Requests that wait or run; None is the server's own limit."""


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """How full a bucket is."""

    most: int
    left: int
    full_s: float
    """Seconds until it is full."""


@final
class Bucket:
    """So much in so many seconds.

    Args:
        most: that it holds.
        seconds: in which it fills.
        now: seconds of any clock; one that goes back fills nothing.
    """

    def __init__(self, most: int, seconds: float, now: float) -> None:
        self.most, self._rate = most, most / seconds
        self._left, self._at = float(most), now

    def take(self, amount: float, now: float) -> None:
        """Take out, or with a negative amount put back."""
        self._left = min(float(self.most), self.left(now) - amount)

    def left(self, now: float) -> float:
        """What is in it; less than nothing where more was taken."""
        self._left = min(float(self.most), self._left + max(0.0, now - self._at) * self._rate)
        self._at = now
        return self._left

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until so much is in it; 0 when it is now."""
        lacks = amount - self.left(now)
        return lacks / self._rate if lacks > _HAIR else 0.0

    def level(self, now: float) -> Level:
        """How full it is."""
        left = self.left(now)
        return Level(most=self.most, left=max(0, int(left + _HAIR)), full_s=(self.most - left) / self._rate)


@final
class Account:
    """What one key has used.

    Args:
        quota: its limits.
        now: seconds of a clock.
    """

    def __init__(self, quota: Quota, now: float) -> None:
        self.quota = quota
        self._requests = _bucket(quota.requests_minute, MINUTE_S, now)
        self._minute = _bucket(quota.tokens_minute, MINUTE_S, now)
        self._day = _bucket(quota.tokens_day, DAY_S, now)

    def request(self, now: float) -> None:
        """One more request.

        Raises:
            TooMany: there were as many in the last minute as there may be.
        """
        if self._requests is None:
            return
        if wait_s := self._requests.wait_s(1, now):
            raise TooMany("this key may ask {limit} times a minute", retry_after=_whole(wait_s), limit=self._requests.most)
        self._requests.take(1, now)

    def reserve(self, tokens: int, now: float) -> None:
        """Take what an answer may cost; all of it, or nothing.

        Raises:
            TooLarge: it is more than the key may ever use at once.
            TooMany: so much is not left now.
        """
        for bucket in (self._minute, self._day):
            if bucket is not None and tokens > bucket.most:
                raise TooLarge(
                    "this may cost {found} tokens; the key may use {limit}",
                    hint="ask with a shorter prompt, or for fewer tokens",
                    found=tokens,
                    limit=bucket.most,
                )
        _require(self._minute, tokens, now, "this key may use {limit} tokens a minute; {left} are left, and this may cost {found}")
        _require(self._day, tokens, now, "this key may use {limit} tokens a day; {left} are left, and this may cost {found}")
        self.settle(0, tokens, now)

    def settle(self, reserved: int, used: int, now: float) -> None:
        """Put back what was reserved and not used, or take what was used beyond it."""
        for bucket in (self._minute, self._day):
            if bucket is not None:
                bucket.take(used - reserved, now)

    def levels(self, now: float) -> dict[str, Level]:
        """Requests and tokens of the minute, where they are limited; of a day's tokens, what is left where that is less."""
        found = {"requests": self._requests, "tokens": self._minute or self._day}
        return {name: bucket.level(now) for name, bucket in found.items() if bucket is not None}


@final
class Accounts:
    """The accounts of all keys that have limits, by their tenants."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def of(self, tenant: str) -> Account | None:
        """The account of a tenant; None where it has no limits."""
        return self._accounts.get(tenant)

    def open(self, tenant: str, quota: Quota | None, now: float) -> Account | None:
        """The account of who asks, as full as they left it; a new one where their limits are others now."""
        if quota is None or not tenant:
            self._accounts.pop(tenant, None)
            return None
        account = self._accounts.get(tenant)
        if account is None or account.quota != quota:
            account = self._accounts[tenant] = Account(quota, now)
        return account


def _bucket(most: int | None, seconds: float, now: float) -> Bucket | None:
    return None if most is None else Bucket(most, seconds, now)


def _require(bucket: Bucket | None, tokens: int, now: float, text: str) -> None:
    if bucket is not None and (wait_s := bucket.wait_s(tokens, now)):
        raise TooMany(text, retry_after=_whole(wait_s), limit=bucket.most, left=bucket.level(now).left, found=tokens)


def _whole(seconds: float) -> int:
    """Seconds for `Retry-After`, never too few."""
    return max(1, -int(-seconds // 1))
