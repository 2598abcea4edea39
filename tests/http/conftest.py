"""Fixtures of the tests of the response cache."""

from collections.abc import Iterator

import pytest

from asynctag import Cache
from asynctag.testing import FakeClock
from tests.http.driver import watched


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock) -> Iterator[Cache]:
    """In memory, on `clock`. No flight may be left open."""
    yield from watched(clock)
