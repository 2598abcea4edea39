"""Replicas of a PostgreSQL that lag behind: what is filled from one is gone once it has caught up; who tells when."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from asynctag import Cache, Cause, ConfigurationError
from asynctag.backends.memory import MemoryBackend
from asynctag.integrations.postgres import ReplicasCaughtUp, Run, of_engine, of_psycopg
from asynctag.testing import FakeClock, assert_hit, fake_clock
from tests.postgres.servers import Replica, Server
from tests.redis.servers import eventually

__all__ = ["fake_clock"]

pytestmark = pytest.mark.anyio

LAG = 8.0


class Asked:
    """A server that is asked by a probe: its answers in their order, and how it is asked."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.answers: list[object] = []
        self._answered = asyncio.Condition()

    async def __call__(self, statement: str) -> object:
        answer = await self._run(statement)
        async with self._answered:
            self.answers.append(answer)
            self._answered.notify_all()
        return answer

    async def until(self, count: int) -> None:
        """Till it has answered so many times more."""
        async with self._answered:
            goal = len(self.answers) + count
            await self._answered.wait_for(lambda: len(self.answers) >= goal)


@pytest.fixture(params=["asyncpg", "psycopg", "SQLAlchemy"])
async def run(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[Server], Awaitable[Run]]]:
    """How statements are run on a server, by each of the clients."""
    closing: list[Callable[[], Awaitable[object]]] = []

    async def connected(server: Server) -> Run:
        if request.param == "SQLAlchemy":
            engine = create_async_engine(server.url_for("asyncpg"))
            closing.append(engine.dispose)
            return of_engine(engine)
        if request.param == "psycopg":
            return of_psycopg(lambda: _Opened(server.url))
        pool = await asyncpg.create_pool(server.url, min_size=1, max_size=2)
        closing.append(pool.close)
        fetch: Run = pool.fetchval
        return fetch

    yield connected
    for close in closing:
        await close()


class _Opened:
    """A connection of psycopg for each statement; psycopg_pool's `pool.connection` keeps them."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> "psycopg.AsyncConnection[Any]":
        self._connection = await psycopg.AsyncConnection.connect(self._url)
        return await self._connection.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._connection.__aexit__(*error)


@pytest.fixture
def primary(postgres: Server, postgres_replica: Replica) -> Server:
    """With one price, which the replica has too, and is about to miss the next change of."""
    postgres.run("CREATE TABLE price (value int)")
    postgres.run("INSERT INTO price VALUES (40)")
    postgres_replica.catch_up()
    postgres_replica.pause_replay()
    return postgres


class Ending(MemoryBackend):
    """A memory that tells when a lag is ended."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.ended = asyncio.Event()

    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        await super().release(tags, holder, lag=lag, serve=serve)
        if not lag:
            self.ended.set()


@pytest.fixture
def backend(fake_clock: FakeClock) -> Ending:
    return Ending(fake_clock)


def reading(cache: Cache, replica: Replica) -> Callable[[], Awaitable[int]]:
    """Reads the price through the cache, from the replica."""

    async def compute() -> int:
        return int(replica.run("SELECT value FROM price")[0][0])

    async def read() -> int:
        price: int = await cache.get_or_set("price", compute, tags=["price"])
        return price

    return read


async def change(cache: Cache, primary: Server) -> None:
    async with cache.transaction():
        await cache.invalidate("price")
        primary.run("UPDATE price SET value = 35")


# --- the lag -----------------------------------------------------------------------------------------


async def test_without_a_lag_the_old_value_stays(
    backend: Ending, primary: Server, postgres_replica: Replica, fake_clock: FakeClock
) -> None:
    """The danger: it is read from the replica after the end, and nothing drops it when the replica has caught up."""
    cache = Cache(backend, default_ttl=100)
    read = reading(cache, postgres_replica)
    await change(cache, primary)
    assert await read() == 40
    postgres_replica.resume_replay()
    postgres_replica.catch_up()
    fake_clock.advance(LAG)
    assert await read() == 40
    assert postgres_replica.run("SELECT value FROM price") == [(35,)]


@pytest.mark.parametrize("during_lag", ["bypass", "serve"])
async def test_what_is_filled_from_a_replica_is_gone_once_it_has_caught_up(
    backend: Ending, primary: Server, postgres_replica: Replica, fake_clock: FakeClock, during_lag: Any
) -> None:
    """With a lag: readers compute until then, or are served what ends with it."""
    cache = Cache(backend, default_ttl=100, replica_lag=LAG, during_lag=during_lag)
    read = reading(cache, postgres_replica)
    await read()
    await change(cache, primary)
    assert await read() == 40
    explained = await cache.explain("price")
    assert explained.hit if during_lag == "serve" else explained.cause is Cause.LEASED
    fake_clock.advance(LAG - 1)
    assert await read() == 40
    postgres_replica.resume_replay()
    postgres_replica.catch_up()
    fake_clock.advance(1)
    for _ in range(2):  # the first store makes an invalidation of the lag
        assert await read() == 35
    await assert_hit(cache, "price")


async def test_what_is_under_way_as_the_lag_ends_is_not_stored(
    backend: Ending, primary: Server, postgres_replica: Replica, fake_clock: FakeClock
) -> None:
    """It has read the replica before it caught up."""
    cache = Cache(backend, default_ttl=100, replica_lag=LAG)
    has_read, may_store = asyncio.Event(), asyncio.Event()

    async def compute() -> int:
        price = int(postgres_replica.run("SELECT value FROM price")[0][0])
        has_read.set()
        await may_store.wait()
        return price

    await change(cache, primary)
    reader = asyncio.create_task(cache.get_or_set("price", compute, tags=["price"]))
    await has_read.wait()
    postgres_replica.resume_replay()
    postgres_replica.catch_up()
    fake_clock.advance(LAG)
    may_store.set()
    assert await reader == 40
    assert await reading(cache, postgres_replica)() == 35


# --- the probe ---------------------------------------------------------------------------------------


async def test_the_probe_ends_a_lag_as_soon_as_the_replica_has_replayed(
    backend: Ending, primary: Server, postgres_replica: Replica, run: Callable[[Server], Awaitable[Run]]
) -> None:
    """And not before: the clock of the backend stands still, so that nothing else ends it."""
    asked = Asked(await run(postgres_replica))
    probe = ReplicasCaughtUp(await run(primary), [asked])
    cache = Cache(backend, default_ttl=100, replica_lag=LAG, caught_up=probe)
    read = reading(cache, postgres_replica)
    async with cache:
        await read()
        await change(cache, primary)
        await asked.until(2)
        assert asked.answers == [False, False]
        assert await read() == 40
        assert (await cache.explain("price")).cause is Cause.LEASED
        assert not backend.ended.is_set()
        postgres_replica.resume_replay()
        await backend.ended.wait()
        assert asked.answers[-1] is True
    assert await read() == 35
    await assert_hit(cache, "price")


async def test_each_commit_waits_for_its_own_position(
    primary: Server, postgres_replica: Replica, new_pool: Callable[[Server], Awaitable[Run]]
) -> None:
    """Those that come later, and are not replayed yet, keep nobody waiting; and have to wait themselves."""
    asked = Asked(await new_pool(postgres_replica))
    probe = ReplicasCaughtUp(await new_pool(primary), [asked])
    primary.run("UPDATE price SET value = 35")
    first = asyncio.create_task(_answer(probe))
    await asked.until(1)
    postgres_replica.resume_replay()
    postgres_replica.catch_up()
    postgres_replica.pause_replay()
    primary.run("UPDATE price SET value = 36")
    second = asyncio.create_task(_answer(probe))
    assert await first is True
    await asked.until(2)
    assert not second.done()
    postgres_replica.resume_replay()
    assert await second is True


async def _answer(probe: ReplicasCaughtUp) -> bool:
    return await probe()


@pytest.fixture
async def new_pool() -> AsyncIterator[Callable[[Server], Awaitable[Run]]]:
    pools = []

    async def new(server: Server) -> Run:
        pool = await asyncpg.create_pool(server.url, min_size=1, max_size=2)
        pools.append(pool)
        fetch: Run = pool.fetchval
        return fetch

    yield new
    for pool in pools:
        await pool.close()


async def test_a_commit_that_is_not_written_yet(
    new_postgres: Callable[..., Server], new_pool: Callable[[Server], Awaitable[Run]]
) -> None:
    """One with `synchronous_commit=off` is seen before it is in the log: the probe waits for it all the same."""
    primary = new_postgres(synchronous_commit="off")
    with primary.replica() as replica, ExitStack() as at_the_end:
        primary.run("CREATE TABLE price (value int)")
        primary.run("CHECKPOINT")
        replica.catch_up()
        [(pid,)] = primary.run("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
        os.kill(pid, signal.SIGSTOP)  # nobody else writes what was committed
        at_the_end.callback(os.kill, pid, signal.SIGCONT)
        primary.run("INSERT INTO price VALUES (40)")
        assert primary.run("SELECT pg_current_wal_lsn() < pg_current_wal_insert_lsn()") == [(True,)]
        [(written,)] = primary.run("SELECT pg_current_wal_lsn()")
        assert replica.run("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written) == [(True,)]
        assert replica.run("SELECT count(*) FROM price") == [(0,)]
        asked = Asked(await new_pool(replica))
        waiting = asyncio.create_task(_answer(ReplicasCaughtUp(await new_pool(primary), [asked])))
        await asked.until(1)
        assert asked.answers == [False]
        primary.run("SET synchronous_commit TO on")
        primary.run("INSERT INTO price VALUES (35)")  # is written at once, and what was before it
        assert await waiting is True
        assert replica.run("SELECT count(*) FROM price") == [(2,)]


async def test_a_replica_that_has_lost_its_primary_has_not_caught_up(
    postgres: Server, postgres_replica: Replica, new_pool: Callable[[Server], Awaitable[Run]]
) -> None:
    """The primary does not list it any more, and whoever reads from it is still answered."""
    postgres.run("CREATE TABLE price (value int)")
    postgres_replica.catch_up()
    asked = Asked(await new_pool(postgres_replica))
    primary = await new_pool(postgres)
    connected = postgres_replica.run("SHOW primary_conninfo")[0][0]
    try:
        postgres_replica.run("ALTER SYSTEM SET primary_conninfo TO ''")
        postgres_replica.run("SELECT pg_reload_conf()")
        eventually("a loss", lambda: not postgres.run("SELECT 1 FROM pg_stat_replication"))
        postgres.run("INSERT INTO price VALUES (35)")
        waiting = asyncio.create_task(_answer(ReplicasCaughtUp(primary, [asked])))
        await asked.until(2)
        assert asked.answers == [False, False]
        assert postgres_replica.run("SELECT count(*) FROM price") == [(0,)]
    finally:
        postgres_replica.run(f"ALTER SYSTEM SET primary_conninfo TO '{connected.replace(chr(39), chr(39) * 2)}'")
        postgres_replica.run("SELECT pg_reload_conf()")
    assert await waiting is True


@pytest.mark.parametrize("how", ["refuses", "hangs", "is the primary"])
async def test_a_replica_that_does_not_say(
    primary: Server,
    postgres_replica: Replica,
    new_pool: Callable[[Server], Awaitable[Run]],
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    """Has not caught up; a warning says so, once. A server that takes writes itself is no replica, and says so."""
    postgres_replica.resume_replay()
    fetch, fetch_primary = await new_pool(postgres_replica), await new_pool(primary)
    fails = True
    tries = 0
    tried = asyncio.Event()

    async def replica(statement: str) -> object:
        nonlocal tries
        tries += 1
        if tries == 2:
            tried.set()
        if not fails:
            return await fetch(statement)
        if how == "refuses":
            raise ConnectionRefusedError("nobody listens")
        if how == "hangs":
            await asyncio.Event().wait()
        return await fetch_primary(statement)

    waiting = asyncio.create_task(
        _answer(ReplicasCaughtUp(fetch_primary, [replica], timeout=0.05 if how == "hangs" else 5))
    )
    await tried.wait()
    assert not waiting.done()
    fails = False
    assert await waiting is True
    told = [record.message for record in caplog.records if record.name == "asynctag"]
    assert len(told) == (how != "is the primary")
    assert all(line.startswith("replicas[0] does not say whether it has caught up (n") for line in told)


async def test_what_the_primary_raises_is_raised(postgres: Server, new_pool: Callable[..., Awaitable[Run]]) -> None:
    """Then nothing is known; a lag asks again."""

    async def away(statement: str) -> object:
        raise ConnectionRefusedError("nobody listens")

    with pytest.raises(ConnectionRefusedError):
        await ReplicasCaughtUp(away, [await new_pool(postgres)])()


async def test_what_cannot_be_meant(primary: Server, new_pool: Callable[[Server], Awaitable[Run]]) -> None:
    """Is refused as it is written, or, where a function gives rows, as soon as that is seen."""
    fetch: Any = await new_pool(primary)

    async def row(statement: str) -> object:
        return (await fetch(statement),)

    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: ReplicasCaughtUp(None, [fetch]), "primary=None"),  # type: ignore[arg-type]
        (lambda: ReplicasCaughtUp(fetch, []), "name every replica"),
        (lambda: ReplicasCaughtUp(fetch, fetch), "give a list"),
        (lambda: ReplicasCaughtUp(fetch, "ab"), r"replicas\[0\]='a'"),  # type: ignore[arg-type]
        (lambda: ReplicasCaughtUp(fetch, [fetch], timeout=0), "timeout=0"),
    ]
    for made, message in refused:
        with pytest.raises(ConfigurationError, match=message):
            made()
    for probe in (ReplicasCaughtUp(row, [fetch]), ReplicasCaughtUp(fetch, [row])):
        with pytest.raises(ConfigurationError, match="the first value of the first row"):
            await probe()
