"""The rules by which entries end: numbers in, times out."""

from datetime import timedelta
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag import ConfigurationError
from asynctag.expiry import EARLY_WINDOW, Expiry, fraction, renews_early, seconds, strength

NOW = 1_000.0


def times(expiry: Expiry, took: float = 0, fresh_limit: float = inf, limit: float = inf, dice: float = 0) -> Any:
    return expiry.times(NOW, took, fresh_limit, limit, lambda: dice)


@pytest.mark.parametrize(
    ("value", "number"), [(1, 1), (0.5, 0.5), (0, 0), (timedelta(minutes=1), 60), (timedelta(0), 0)]
)
def test_seconds(value: Any, number: float) -> None:
    """A number or a timedelta."""
    assert seconds(value, "ttl") == number
    assert isinstance(seconds(value, "ttl"), float)


@pytest.mark.parametrize("value", [-1, -0.1, inf, -inf, nan, "1", None, True, [], timedelta(seconds=-1), 1j, 10**400])
def test_seconds_that_cannot_be_meant(value: Any) -> None:
    """Refused by name; 0 where it makes no sense."""
    with pytest.raises(ConfigurationError, match="ttl="):
        seconds(value, "ttl")
    for zero in (0, 0.0, timedelta(0)):
        with pytest.raises(ConfigurationError, match="above 0"):
            seconds(zero, "ttl", zero=False)


def test_fractions_and_strengths() -> None:
    """A fraction is below 1, a strength is finite; a truth value is neither."""
    assert [fraction(one, "jitter") for one in (0, 0.1, 0.999)] == [0, 0.1, 0.999]
    assert [strength(one, "early") for one in (0, 0.5, 10)] == [0, 0.5, 10]
    for value in (1, 1.5, -0.1, nan, inf, "0.1", None, False):
        with pytest.raises(ConfigurationError, match="jitter="):
            fraction(value, "jitter")
    for value in (-0.1, nan, inf, "1", None, True):
        with pytest.raises(ConfigurationError, match="early="):
            strength(value, "early")


def test_periods_follow_each_other() -> None:
    """Fresh, then stale; kept for errors past the freshness, not past the stale period."""
    assert times(Expiry(60)) == (NOW + 60,) * 4
    assert times(Expiry(60, stale_while_revalidate=10)) == (NOW + 60, NOW + 60, NOW + 70, NOW + 70)
    assert times(Expiry(60, stale_if_error=10)) == (NOW + 60, NOW + 60, NOW + 60, NOW + 70)
    assert times(Expiry(60, 10, 30)) == (NOW + 60, NOW + 60, NOW + 70, NOW + 90)
    assert times(Expiry(60, 30, 10)) == (NOW + 60, NOW + 60, NOW + 90, NOW + 90)


def test_jitter_shortens() -> None:
    """By up to its fraction, and never lengthens."""
    assert [times(Expiry(60, jitter=0.1), dice=dice)[1] for dice in (0, 0.5, 1)] == [NOW + 60, NOW + 57, NOW + 54]


def test_limits_of_what_it_was_built_from() -> None:
    """It ends with them, its stale periods too; `inherit_ttl=False` says otherwise."""
    assert times(Expiry(60, 30), fresh_limit=NOW + 5) == (NOW + 5, NOW + 5, NOW + 35, NOW + 35)
    assert times(Expiry(60, 30), fresh_limit=NOW + 5, limit=NOW + 10) == (NOW + 5, NOW + 5, NOW + 10, NOW + 10)
    assert times(Expiry(60, 30), fresh_limit=NOW - 5, limit=NOW + 10)[1:] == (NOW - 5, NOW + 10, NOW + 10)
    assert times(Expiry(60, inherit_ttl=False), 0, NOW + 5, NOW + 5) == (NOW + 60,) * 4


@given(
    st.floats(0.1, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 0.99), st.floats(0, 10), st.floats(0, 1e3),
    st.floats(0, 2e3) | st.just(inf), st.floats(0, 2e3), st.floats(0, 1),
)  # fmt: skip
def test_the_times_are_in_order(
    ttl: float, swr: float, sie: float, jitter: float, early: float, took: float, fresh: float, more: float, dice: float
) -> None:
    """Renewed from, fresh until, stale until, expires: never the other way round, nor past the limits."""
    expiry = Expiry(ttl, swr, sie, jitter, early)
    renew_from, fresh_until, stale_until, expires = times(expiry, took, fresh, fresh + more, dice)
    assert renew_from <= fresh_until <= stale_until <= expires
    assert fresh_until <= min(NOW + ttl, fresh)
    assert expires <= fresh + more


def test_early_renewal_begins_with_what_it_took() -> None:
    """Off unless asked for; the longer the computation took, the sooner."""
    assert times(Expiry(60), took=5)[0] == NOW + 60
    assert times(Expiry(60, early=1), took=0)[0] == NOW + 60
    assert times(Expiry(60, early=1), took=2)[0] == NOW + 60 - 2 * EARLY_WINDOW
    assert times(Expiry(60, early=2), took=2)[0] == NOW + 60 - 4 * EARLY_WINDOW


def test_early_renewal_grows_likelier() -> None:
    """Hardly ever at the beginning of the window, always at its end."""
    start, end = 100.0, 200.0
    draws = [(one + 0.5) / 10_000 for one in range(10_000)]

    def share(now: float) -> float:
        return sum(renews_early(now, start, end, lambda one=one: one) for one in draws) / len(draws)  # type: ignore[misc]

    shares = [share(now) for now in (100, 150, 180, 190, 199, 200)]
    assert shares == sorted(shares)
    assert shares[0] < 0.001
    assert 0.3 < shares[3] < 0.4  # one mean before the end: 1 / e
    assert shares[-1] == 1
    assert not renews_early(150, 200, 200, lambda: 0.9999)
