"""How long an entry lives: its TTL, the periods in which it may be served stale, and when it is renewed early."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypedDict

from asynctag.errors import ConfigurationError

if TYPE_CHECKING:
    from asynctag.leased import HowLeased, WhileLeased

Seconds = float | timedelta

#: Early renewal draws from an exponential distribution: beyond this many times its mean (1 in 20,000) nothing is drawn.
EARLY_WINDOW = 10.0
MAX_EARLY = 100


def seconds(value: object, name: str, *, zero: bool = True) -> float:
    """`value` (seconds or a `timedelta`) as seconds; refuses what is negative or not finite, and 0 unless allowed."""
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = _float(value)
    else:
        raise ConfigurationError(f"{name}={value!r}: give seconds as a number, or a timedelta")
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ConfigurationError(f"{name}={value!r}: give a finite number of seconds {'from' if zero else 'above'} 0")
    return number


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an int beyond all floats
        return math.inf


def fraction(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigurationError(f"{name}={value!r}: give a fraction from 0 to below 1, such as {name}=0.1")
    return float(value)


def strength(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= _float(value) <= MAX_EARLY:
        raise ConfigurationError(f"{name}={value!r}: give a number from 0 (off) to {MAX_EARLY}; 1 is usual")
    return float(value)


def yes_or_no(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}={value!r}: give True or False")
    return value


class ExpiryOptions(TypedDict, total=False):
    """What may be said of a function's entries; `None` is the cache's default. See `Cache`."""

    ttl: Seconds | None
    stale_while_revalidate: Seconds | None
    stale_if_error: Seconds | None
    jitter: float | None
    early: float | None
    inherit_ttl: bool | None
    while_leased: "HowLeased | None"


@dataclass(frozen=True, slots=True)
class Expiry:
    """The rules by which a function's entries end, and are served. All periods in seconds.

    `kept`: how long past its freshness an entry stays, not to be served, but to be looked at. `while_leased`: what is
    done while a transaction holds a tag of it; None: it is computed.
    """

    ttl: float
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    jitter: float = 0.0
    early: float = 0.0
    inherit_ttl: bool = True
    kept: float = 0.0
    while_leased: "WhileLeased | None" = None

    def times(
        self, now: float, took: float, fresh_limit: float, limit: float, dice: Callable[[], float] = random.random
    ) -> tuple[float, float, float, float]:
        """`(renew_from, fresh_until, stale_until, expires)` of an entry stored at `now`.

        `took` is the duration of its computation; `fresh_limit` and `limit` are the soonest ends
        among what it was built from, which it does not outlive unless `inherit_ttl` is off.

        Early renewal after Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache
        Stampede Prevention", VLDB 2015: an entry that takes long to compute is renewed sooner.
        """
        ttl = self.ttl * (1.0 - self.jitter * dice()) if self.jitter else self.ttl
        fresh = now + ttl
        if self.inherit_ttl and fresh_limit < fresh:
            fresh = fresh_limit
        stale = fresh + self.stale_while_revalidate if self.stale_while_revalidate else fresh
        expires = max(stale, fresh + self.stale_if_error, fresh + self.kept)
        if self.inherit_ttl and limit < expires:
            expires = limit
            stale = min(stale, limit)
        renew_from = fresh - EARLY_WINDOW * self.early * took if self.early else fresh
        return renew_from, fresh, stale, expires


def renews_early(now: float, renew_from: float, fresh_until: float, dice: Callable[[], float] = random.random) -> bool:
    """Whether this caller, of all that come before the entry's end, is the one who renews it."""
    mean = (fresh_until - renew_from) / EARLY_WINDOW
    return now - mean * math.log(1.0 - dice()) >= fresh_until
