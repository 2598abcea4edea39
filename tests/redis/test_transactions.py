"""Transactions over a real server: their round trips, and what becomes of them where processes and servers die."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest

from asynctag import Cache, Cause
from asynctag.backends.redis import RedisBackend
from asynctag.names import key_name, tag_name
from tests.redis.servers import Server, end_leases, eventually
from tests.redis.watching import Seen, watching

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
MANY = [f"row:{number}" for number in range(300)]
LEASE = "{asynctag}lease:"


@pytest.fixture
async def backend(redis_server: Server) -> AsyncIterator[RedisBackend]:
    one = RedisBackend.from_url(redis_server.url)
    yield one
    await one.aclose()


@pytest.fixture
def cache(backend: RedisBackend) -> Cache:
    return Cache(backend, default_ttl=100)


@pytest.fixture
async def other(redis_server: Server) -> AsyncIterator[Cache]:
    """That of another process."""
    one = RedisBackend.from_url(redis_server.url)
    yield Cache(one, default_ttl=100)
    await one.aclose()


@pytest.fixture
def rows() -> dict[str, str]:
    return {"x": "x@0", "y": "y@0"}


async def read(cache: Cache, rows: dict[str, str], row: str = "x") -> str:
    async def compute() -> str:
        return rows[row]

    return await cache.get_or_set(row, compute, tags=[row])


async def outside(work: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    """What comes of `work`, run in a context of its own: as by somebody who has nothing to do with the caller."""
    return await asyncio.create_task(work(*args), context=Context())


async def cause(cache: Cache, key: str = "x") -> Cause | None:
    """Why what is stored under a key is no hit; None for a hit."""
    explained = await cache.explain(key)
    return None if explained.hit else explained.cause


# --- round trips -----------------------------------------------------------------------------------


def commands(seen: Seen) -> list[str]:
    """Without the question for the time, which a client asks once a second beside others."""
    return [command for command in seen.commands if command != "TIME"]


async def test_one_round_trip_a_call_and_one_at_the_end(
    cache: Cache, backend: RedisBackend, redis_server: Server
) -> None:
    """Whatever the number of tags; and nothing at all where nothing was invalidated."""
    await cache.get("warm")
    with watching(redis_server) as seen:
        async with cache.transaction():
            pass
        async with cache.transaction(replica_lag=8):
            async with cache.transaction(isolation="serializable"):
                pass
    assert commands(seen) == []
    with watching(redis_server) as seen:
        async with cache.transaction():
            await cache.invalidate(*MANY)
            await cache.invalidate("x", "y")
            async with cache.transaction():
                await cache.clear()
    assert commands(seen) == ["EVALSHA"] * 4
    assert seen.reads - ("TIME" in seen.commands) <= 4
    with watching(redis_server) as seen:
        async with cache.transaction(replica_lag=8):
            await cache.invalidate("x")
        await cache.invalidate("y", replica_lag=8)
    assert commands(seen) == ["EVALSHA"] * 3


async def test_a_hit_in_a_block_is_one_round_trip(
    cache: Cache, other: Cache, rows: dict[str, str], redis_server: Server
) -> None:
    """One more where the entry is newer than the block: whether its tags have changed since."""
    await read(cache, rows)
    await read(cache, rows)
    await read(other, rows)
    async with cache.transaction():
        with watching(redis_server) as seen:
            assert await read(cache, {}) == "x@0"
        assert commands(seen) == ["GETEX", "ZMSCORE"]
        await outside(other.invalidate, "z", "y")
        await outside(read, other, rows, "y")
        with watching(redis_server) as seen:
            assert await read(cache, {"y": "of the snapshot"}, "y") == "of the snapshot"
        assert commands(seen) == ["GETEX", "EVALSHA", "EVALSHA"]


async def test_what_was_kept_back_is_stored_in_one_round_trip(
    cache: Cache, rows: dict[str, str], redis_server: Server
) -> None:
    """All of it, at the end."""
    await cache.get("warm")
    async with cache.transaction():
        await read(cache, rows)
        await read(cache, rows, "y")
        end = watching(redis_server)
        seen = end.__enter__()
    end.__exit__(None, None, None)
    assert commands(seen) == ["SET", "EVALSHA"] * 2
    assert seen.reads - ("TIME" in seen.commands) <= 1


# --- several clients -------------------------------------------------------------------------------


async def test_another_process_is_served_nothing_meanwhile(cache: Cache, other: Cache, rows: dict[str, str]) -> None:
    """From before the commit till after it, by a hit as by a look-up by script; and its stores are refused."""
    await read(other, rows)
    await read(other, rows)
    async with cache.transaction():
        await cache.invalidate("x")
        assert await cause(other) is Cause.LEASED
        assert await outside(read, other, {"x": "computed"}) == "computed"
        rows["x"] = "x@1"
    assert await cause(other) is Cause.INVALIDATED
    assert await read(other, rows) == "x@1"
    assert await read(cache, {}) == "x@1"


async def test_a_snapshot_and_another_process(cache: Cache, other: Cache, rows: dict[str, str]) -> None:
    """What the other has stored since is served if its tags have not changed, and what has changed is computed."""
    await read(cache, rows)
    snapshot = dict(rows)
    async with cache.transaction():
        await outside(other.invalidate, "z")
        assert await outside(read, other, rows, "y") == "y@0"
        assert await read(cache, {"y": "from the row"}, "y") == "y@0"
        rows["x"] = "x@1"
        await outside(other.invalidate, "x")
        assert await outside(read, other, rows) == "x@1"
        assert await read(cache, snapshot) == "x@0"
    assert await read(other, {}) == "x@1"


@pytest.mark.parametrize("soft", [False, True])
async def test_a_snapshot_that_softens(cache: Cache, other: Cache, rows: dict[str, str], soft: bool) -> None:
    """A soft invalidation since the start counts as a hard one."""
    await cache.get("warm")
    async with cache.transaction():
        await outside(lambda: other.invalidate("x", soft=soft))
        await outside(read, other, rows)
        assert await read(cache, {"x": "of the snapshot"}) == "of the snapshot"


async def test_a_client_that_has_seen_nothing_yet(cache: Cache, other: Cache, rows: dict[str, str]) -> None:
    """It knows no stamp from before the block: it computes, and stores nothing."""
    await read(other, rows)
    async with cache.transaction():
        assert await read(cache, {"x": "from the row"}) == "from the row"
        assert await read(cache, rows, "y") == "y@0"
    assert await cause(other, "y") is Cause.ABSENT
    async with cache.transaction():
        assert await read(cache, {}) == "x@0"
        await read(cache, rows, "y")
    assert await cause(other, "y") is None


async def test_leaving_in_another_event_loop(cache: Cache, other: Cache, rows: dict[str, str]) -> None:
    """It lets go over the connection of that one."""
    await read(other, rows)
    transaction = cache.transaction()

    async def enter() -> None:
        await transaction.__aenter__()
        await cache.invalidate("x")

    async def leave() -> None:
        await transaction.__aexit__(None, None, None)
        await cache.aclose()

    await asyncio.create_task(enter())
    thread = threading.Thread(target=lambda: asyncio.run(leave()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert await cause(other) is Cause.INVALIDATED


async def test_a_block_that_is_cancelled_ends(
    cache: Cache, other: Cache, rows: dict[str, str], redis_server: Server
) -> None:
    """At whatever moment: what it held is held for the lease's time, since a COMMIT may have been under way."""
    for turns in range(12):
        rows[row := f"x{turns}"] = "x@0"
        await read(other, rows, row)

        async def block(row: str = row) -> None:
            async with cache.transaction():
                await cache.invalidate(row)

        task = asyncio.create_task(block())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await cause(other, row) in (None, Cause.LEASED, Cause.INVALIDATED)
        end_leases(redis_server)
        await read(other, rows, row)  # its store makes an invalidation of the lease
        await read(other, rows, row)
        assert await cause(other, row) is None


# --- what is lost ----------------------------------------------------------------------------------


async def test_the_journal_is_lost_in_the_middle(
    cache: Cache, other: Cache, rows: dict[str, str], redis_server: Server
) -> None:
    """The lease with it: what is read until the commit is stored; the end invalidates it."""
    await read(other, rows)
    async with cache.transaction():
        await cache.invalidate("x")
        redis_server.run("FLUSHALL")
        for _ in range(2):
            assert await outside(read, other, rows) == "x@0"
        rows["x"] = "x@1"
    assert await read(other, rows) == "x@1"


async def test_a_holders_record_is_lost(cache: Cache, other: Cache, rows: dict[str, str], redis_server: Server) -> None:
    """It was evicted, and nobody can tell what else was: everything is a miss, once."""
    await read(other, rows)
    await read(other, rows, "y")
    async with cache.transaction():
        await cache.invalidate("x")
        assert redis_server.run("DEL", LEASE + tag_name("", "x")) == 1
    assert await cause(other, "y") is Cause.LOST
    assert await cause(other) is Cause.LOST


@pytest.mark.parametrize("meets", ["a store", "another lag"])
@pytest.mark.parametrize("during", ["bypass", "serve"])
async def test_the_record_of_a_lag_is_lost(
    cache: Cache, other: Cache, rows: dict[str, str], redis_server: Server, during: str, meets: str
) -> None:
    """The next who writes something with its tag begins a new epoch: nobody knows when the lag is over."""
    await read(other, rows, "y")
    lag = cache._lag.changed(60, during)
    await cache._invalidate([tag_name("", "x")], lag=lag)
    assert redis_server.run("DEL", *redis_server.run("KEYS", LEASE + "*")) == 1
    if meets == "a store":
        await read(other, rows)
    else:
        await other._invalidate([tag_name("", "x")], lag=lag)
    assert await cause(other, "y") is Cause.LOST


async def test_the_server_is_away_at_the_end(
    new_server: Callable[..., Server], rows: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is raised over a commit; what could not be written is tried again, and counts in this process."""
    server = new_server()
    backend = RedisBackend.from_url(server.url, timeout=0.2, connect_timeout=0.2)
    cache = Cache(backend, default_ttl=100)
    await read(cache, rows)
    async with cache.transaction():
        await cache.invalidate("x")
        server.pause()
        rows["x"] = "x@1"
    assert "the end of a transaction could not be written" in caplog.text
    assert cache.queued_invalidations == ("x",)
    server.resume()
    assert await read(cache, rows) == "x@1"
    assert await cache.flush_invalidations()
    end_leases(server)
    await read(cache, rows)
    assert await read(cache, rows) == "x@1"
    assert await cause(cache) is None
    await cache.aclose()


async def test_many_tags_in_a_lag_that_is_served(cache: Cache, other: Cache, redis_server: Server) -> None:
    """More than a chunk of them, on one entry; the first end counts."""
    tags = [f"row:{number}" for number in range(2_500)]

    async def store() -> bool:
        return await other.set("k", "v", since=await other.lookup("k"), tags=tags, ttl=50)

    await cache._invalidate([tag_name("", "row:2400")], lag=cache._lag.changed(20, "serve"))
    await cache._invalidate([tag_name("", "row:7")], lag=cache._lag.changed(10, "serve"))
    assert await store()
    name = "{asynctag}entry:" + key_name("", "k")
    assert 9_000 < redis_server.run("PTTL", name) <= 10_000
    end_leases(redis_server)
    assert not await store()
    assert await cause(other, "k") is Cause.INVALIDATED
    assert await store()
    assert redis_server.run("PTTL", name) > 49_000
    assert redis_server.run("KEYS", LEASE + "*") == []


async def test_tags_that_are_added_during_a_lag(cache: Cache, backend: RedisBackend, rows: dict[str, str]) -> None:
    """An entry that lives longer than the lag does not get them: it goes."""
    await cache._invalidate([tag_name("", "z")], lag=cache._lag.changed(20, "serve"))
    await read(cache, rows)
    assert await backend.add_tags(key_name("", "x"), [tag_name("", "y")])
    assert not await backend.add_tags(key_name("", "x"), [tag_name("", "z")])
    assert await cause(cache) is Cause.ABSENT


# --- processes that are killed ---------------------------------------------------------------------

HOLDER = """
import asyncio, json, sys
from redis import Redis
from asynctag import Cache
from asynctag.backends.redis import RedisBackend

url, options = sys.argv[1], json.loads(sys.argv[2])
database = Redis.from_url(url)
cache = Cache(RedisBackend.from_url(url), default_ttl=100)

async def step(name):
    print(name, flush=True)
    await asyncio.to_thread(sys.stdin.readline)

async def main():
    async with cache:
        async with cache.transaction(**options):
            await step("entered")
            await cache.invalidate("x")
            await step("held")
            database.set("row:x", "x@1")
            await step("committed")
        await step("ended")

asyncio.run(main())
"""

STEPS = ["entered", "held", "committed", "ended"]


@contextmanager
def holder(server: Server, until: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process with a transaction, as far as a step, and killed there at the latest."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, server.url, json.dumps(options)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for step in STEPS:
                assert process.stdout.readline().strip() == step
                if step == until:
                    break
                process.stdin.write("\n")
                process.stdin.flush()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("options", [{}, {"replica_lag": 60}, {"replica_lag": 60, "during_lag": "serve"}])
@pytest.mark.parametrize("until", STEPS)
async def test_a_process_is_killed(other: Cache, redis_server: Server, until: str, options: dict[str, Any]) -> None:
    """At every step: its lease's end invalidates, and whoever reads afterwards has what is in the database."""
    redis_server.run("SET", "row:x", "x@0")

    async def row() -> str:
        return str(redis_server.run("GET", "row:x").decode())

    async def ask() -> str:
        return await other.get_or_set("x", row, tags=["x"])

    assert await ask() == "x@0"
    with holder(redis_server, until, **options):
        pass  # killed
    committed = await row()
    held = until in ("held", "committed") or (until == "ended" and bool(options))
    assert (await cause(other) is Cause.LEASED) is ((held and "during_lag" not in options) or until in STEPS[1:3])
    if until == "entered":
        assert await ask() == "x@0"
        return
    for _ in range(2):
        assert await ask() == committed
    assert end_leases(redis_server) == held
    if until == "ended" and "during_lag" in options:  # it has been stored, and ends with the lag
        place = "{asynctag}entry:" + key_name("", "x")
        assert redis_server.run("PTTL", place) <= 60_000
        redis_server.run("DEL", place)
    for _ in range(2):
        assert await ask() == committed
    assert await cause(other) is None
    assert redis_server.run("KEYS", LEASE + "*") == []


async def test_a_living_process_renews_its_lease(other: Cache, redis_server: Server) -> None:
    """Its end moves on, as long as it lives and the block is under way."""
    with holder(redis_server, "held", lease=0.3):
        ends = _ends(redis_server)
        assert len(ends) == 1
        eventually("the lease is renewed", lambda: _ends(redis_server) > ends)


def _ends(server: Server) -> list[int]:
    ends = [int(end) for name in server.run("KEYS", LEASE + "*") for end in server.run("HVALS", name)]
    return [end for end in ends if end > 0]  # beside them stands the tag's number, negative


async def test_two_processes_hold_a_tag_and_one_is_killed(
    cache: Cache, other: Cache, rows: dict[str, str], redis_server: Server
) -> None:
    """The end of the living one is not the dead one's, whose lease still ends."""
    await read(other, rows)
    async with cache.transaction():
        await cache.invalidate("x")
        with holder(redis_server, "committed"):
            pass
    assert await cause(other) is Cause.LEASED
    assert end_leases(redis_server) == 1
    await read(other, rows)
    assert await cause(other) is Cause.INVALIDATED


async def test_a_hot_tag_is_cached_between_its_writers(
    cache: Cache, other: Cache, rows: dict[str, str], redis_server: Server
) -> None:
    """A lease ends with its transaction, not with its time: readers between two writers are served."""
    hits = 0
    for number in range(20):
        async with cache.transaction():
            await cache.invalidate("x")
            rows["x"] = f"x@{number}"
        assert await read(other, rows) == f"x@{number}"
        assert await read(other, {}) == f"x@{number}"
        hits += await cause(other) is None
    assert hits == 20
