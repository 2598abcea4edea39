"""How to test code that caches: `pytest testing_example.py`.

The first half stands for the code under test, the second for its tests.
"""

from collections.abc import Iterator

import pytest

from asynctag import Cache
from asynctag.backends.memory import MemoryBackend
from asynctag.testing import FakeClock, assert_hit, assert_miss, assert_tags

# --- the code ------------------------------------------------------------------------------------------

cache = Cache()
STOCK = {"kettle": 3, "toaster": 0}  # stands for a database


@cache.cached(ttl=60, tags=["stock:{product}"])
async def in_stock(product: str) -> int:
    return STOCK[product]


@cache.cached(ttl=600)
async def sold_out() -> list[str]:
    return [product for product in STOCK if await in_stock(product) == 0]


async def sell(product: str) -> None:
    STOCK[product] -= 1
    await cache.invalidate(f"stock:{product}")


# --- its tests -----------------------------------------------------------------------------------------

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClock]:
    """Every test begins with an empty cache, in which time stands still. (`asynctag.testing` ships such fixtures.)"""
    monkeypatch.setitem(STOCK, "kettle", 3)
    clock = FakeClock()
    with cache.override(MemoryBackend(clock=clock)):
        yield clock


async def test_the_list_depends_on_every_product() -> None:
    """Also on those that are not in it: one that is sold has to appear."""
    await sold_out()
    await assert_tags(sold_out, tags={"stock:kettle", "stock:toaster"})


async def test_a_sale_shows() -> None:
    """The list goes with what was sold; what was not sold stays."""
    assert await sold_out() == ["toaster"]
    for _ in range(3):
        await sell("kettle")
    await assert_miss(sold_out)
    await assert_hit(in_stock, "toaster")
    assert await sold_out() == ["kettle", "toaster"]


async def test_the_list_lives_no_longer_than_what_it_is_built_from(clock: FakeClock) -> None:
    """A parent's time ends with its children's: after 60 seconds, not 600."""
    await sold_out()
    clock.advance(59)
    await assert_hit(sold_out)
    clock.advance(1)
    await assert_miss(sold_out)


async def test_nothing_is_cached_where_the_cache_is_off() -> None:
    """`disabled` computes everything, for tests that are not about caching."""
    with cache.disabled():
        await sold_out()
    await assert_miss(sold_out)
