"""While a transaction holds a tag, over a real server: what was there before, and the wait for the end."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from asynctag import Cache, Cause, Wait
from asynctag.backends.redis import RedisBackend
from asynctag.cache import Miss
from tests.redis.servers import Server, end_leases
from tests.redis.test_transactions import LEASE, MANY, cause, commands, outside, read
from tests.redis.watching import watching

pytestmark = pytest.mark.anyio

JOURNAL = "{asynctag}journal"


@pytest.fixture
async def cache(redis_server: Server) -> AsyncIterator[Cache]:
    backend = RedisBackend.from_url(redis_server.url)
    yield Cache(backend, default_ttl=100)
    await backend.aclose()


@pytest.fixture
async def served(redis_server: Server) -> AsyncIterator[Cache]:
    """That of another process, whose readers are served what was there before."""
    backend = RedisBackend.from_url(redis_server.url)
    yield Cache(backend, default_ttl=100, while_leased="serve_stale")
    await backend.aclose()


@pytest.fixture
def rows() -> dict[str, str]:
    return {"x": "x@0", "y": "y@0"}


async def test_another_process_is_served_until_the_end(cache: Cache, served: Cache, rows: dict[str, str]) -> None:
    """Before the commit and after it; from the block's end on, what is new."""
    await read(cache, rows)
    for _ in range(2):
        async with cache.transaction():
            await cache.invalidate("x", "z")
            rows["x"] = f"{rows['x']}'"
            for _ in range(2):
                assert await outside(read, served, rows) == rows["x"][:-1]
        assert await read(served, rows) == rows["x"]
        assert await cause(served) is None


async def test_one_question_more_and_none_for_others(
    cache: Cache, served: Cache, rows: dict[str, str], redis_server: Server
) -> None:
    """A hit asks what it has always asked; what is leased takes one round trip more, many keys too."""
    await read(served, rows)
    await read(served, rows, "y")
    with watching(redis_server) as seen:
        await read(served, rows, "y")
    assert commands(seen) == ["GETEX", "ZMSCORE"]
    async with cache.transaction():
        await cache.invalidate("x", "y")
        with watching(redis_server) as seen:
            await outside(read, served, rows)
        assert commands(seen) == ["GETEX", "ZMSCORE", "GETEX", "EVALSHA"]
        assert seen.reads - ("TIME" in seen.commands) <= 2

        async def build(keys: list[str]) -> dict[str, str]:
            raise AssertionError(keys)

        with watching(redis_server) as seen:
            many = await outside(served.get_or_set_many, ["x", "y"], build)
        assert many == {"x": "x@0", "y": "y@0"}
        assert commands(seen) == ["GETEX", "ZMSCORE"] * 2 + ["GETEX", "EVALSHA"] * 2
        assert seen.reads - ("TIME" in seen.commands) <= 2


async def test_from_the_end_of_a_lease_nothing_is_served(
    cache: Cache, served: Cache, rows: dict[str, str], redis_server: Server
) -> None:
    """By the server's clock: the holder may have died after its commit."""
    await read(served, rows)
    await cache._filling().backend.lease(["|t|x"], "dies", 60)
    rows["x"] = "x@1"
    assert await read(served, rows) == "x@0"
    assert end_leases(redis_server) == 1
    assert await read(served, rows) == "x@1"


async def test_many_tags_are_held(cache: Cache, served: Cache) -> None:
    """Invalidated while they are held, in however many chunks, none of them is from before."""
    tags = [f"{tag}:{number}" for tag in MANY for number in range(5)]

    async def compute() -> str:
        return "computed"

    async def ask(key: str, tag: str) -> str:
        value: str = await served.get_or_set(key, compute, tags=[tag])
        return value

    for tag in (tags[0], tags[-1]):
        await served.set(tag, "before", tags=[tag], since=_miss(await served.lookup(tag)))
    async with cache.transaction():
        await cache.invalidate(*tags)
        assert [await outside(ask, tag, tag) for tag in (tags[0], tags[-1])] == ["before"] * 2
        await outside(cache.invalidate, *tags[1:])
        assert [await outside(ask, tag, tag) for tag in (tags[0], tags[-1])] == ["before", "computed"]


def _miss(found: object) -> Miss:
    assert isinstance(found, Miss)
    return found


async def test_an_older_version_that_invalidates(
    cache: Cache, served: Cache, rows: dict[str, str], redis_server: Server
) -> None:
    """It leaves no number beside a lease. But it takes one: what is from before that is not served."""
    await read(served, rows)
    async with cache.transaction():
        await cache.invalidate("x")
        assert await outside(read, served, rows) == "x@0"
        redis_server.run("ZINCRBY", JOURNAL, -1, "seq")  # as it does, where a tag is held
        rows["x"] = "x@1"
        assert await outside(read, served, rows) == "x@1"
        await outside(cache.invalidate, "another")
        assert await outside(read, served, rows) == "x@1"
    await read(served, rows)
    async with cache.transaction():
        await cache.invalidate("x")
        rows["x"] = "x@2"
        assert await outside(read, served, rows) == "x@1"


async def test_a_journal_of_an_older_version(
    cache: Cache, served: Cache, rows: dict[str, str], redis_server: Server
) -> None:
    """What is older than its last number is not served while it is held; what is stored from then on is."""
    await read(served, rows)
    await cache.invalidate("another")
    redis_server.run("ZREM", JOURNAL, "noted", "unnoted")
    async with cache.transaction():
        await cache.invalidate("x")
        rows["x"] = "x@1"
        assert await outside(read, served, rows) == "x@1"
    await read(served, rows)
    async with cache.transaction():
        await cache.invalidate("x")
        rows["x"] = "x@2"
        assert await outside(read, served, rows) == "x@1"


@pytest.mark.parametrize("what", ["gone", "text", "-inf", "inf", "nan", "5", "-1.5", "no record"])
async def test_what_stands_beside_a_lease_is_not_trusted(
    cache: Cache, served: Cache, rows: dict[str, str], redis_server: Server, what: str
) -> None:
    """Where it is gone (an older version has let go of an ended lease), or no number, readers compute."""
    await read(served, rows)
    async with cache.transaction():
        await cache.invalidate("x")
        (name,) = redis_server.run("KEYS", LEASE + "*")
        if what == "gone":
            redis_server.run("HDEL", name, "|before")
        elif what == "no record":
            redis_server.run("SET", name, "a text")
        else:
            redis_server.run("HSET", name, "|before", what)
        rows["x"] = "x@1"
        assert await outside(read, served, rows) == "x@1"
    assert await read(served, rows) == "x@1"
    assert await cause(served) is None


async def test_a_holders_record_is_lost(
    cache: Cache, served: Cache, rows: dict[str, str], redis_server: Server
) -> None:
    """With only the number left, or nothing: nobody is served, and who invalidates begins a new epoch."""
    await read(served, rows)
    await read(served, rows, "y")
    async with cache.transaction():
        await cache.invalidate("x")
        (name,) = redis_server.run("KEYS", LEASE + "*")
        for holder in set(redis_server.run("HKEYS", name)) - {b"|before"}:
            redis_server.run("HDEL", name, holder)
        rows["x"] = "x@1"
        assert await outside(read, served, rows) == "x@1"
        await outside(cache.invalidate, "x")
        assert await cause(served, "y") is Cause.LOST


async def test_a_record_without_a_lease_is_none(cache: Cache, redis_server: Server) -> None:
    """The journal was lost, and with it who holds what; the holders' records may stay."""
    backend = cache._filling().backend
    await backend.lease(["|t|x"], "me", 60)
    redis_server.run("DEL", JOURNAL)
    assert not await backend.is_held("|t|x", (await backend.read("|k|x")).stamp)


async def test_waiting_for_another_process(cache: Cache, served: Cache, rows: dict[str, str]) -> None:
    """Its end is seen, and what it has committed is read; the next reader hits."""
    waiter = Cache(served._filling().backend, default_ttl=100, while_leased=Wait(30))
    asked, values = anyio.Event(), []
    is_held = served._filling().backend.is_held

    async def noting(*args: Any) -> bool:
        asked.set()
        return await is_held(*args)

    async def wait() -> None:
        values.append(await read(waiter, rows))

    waiter._filling().backend.is_held = noting  # type: ignore[method-assign]
    await read(waiter, rows)
    async with anyio.create_task_group() as group:
        async with cache.transaction():
            await cache.invalidate("x")
            group.start_soon(outside, wait)
            await asked.wait()
            rows["x"] = "x@1"
    assert values == ["x@1"]
    assert await cause(waiter) is None


async def test_a_lag_is_not_waited_for(cache: Cache, served: Cache, rows: dict[str, str], redis_server: Server) -> None:
    """It comes after the commit; readers compute at once."""
    waiter = Cache(served._filling().backend, default_ttl=100, while_leased=Wait(30))
    await read(waiter, rows)
    await cache.invalidate("x", replica_lag=30)
    rows["x"] = "x@1"
    with watching(redis_server) as seen:
        assert await read(waiter, rows) == "x@1"
    assert commands(seen).count("EVALSHA") <= 2  # the question in spite of the lease, and the store
