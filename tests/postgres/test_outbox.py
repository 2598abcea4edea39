"""The outbox on a real PostgreSQL, with the cache on a real server: order, several relays, and processes that die."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from anyio.lowlevel import checkpoint
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from asynctag import Cache, Cause, InvalidationError
from asynctag.backends.memory import MemoryBackend
from asynctag.backends.redis import RedisBackend
from asynctag.integrations import outbox as outbox_module
from asynctag.integrations.outbox import Outbox
from asynctag.integrations.sqlalchemy import UnitsOfWork, row_tags
from tests.postgres.servers import Server
from tests.redis import servers as redis_servers
from tests.redis.proxy import Proxy
from tests.redis.servers import HOST, end_leases, eventually

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
metadata = sa.MetaData()
outbox = Outbox(metadata)
shop = sa.Table("shop", metadata, sa.Column("price", sa.Integer))


class Base(DeclarativeBase):
    metadata = metadata


class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]


@pytest.fixture(scope="module")
def valkey_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_servers.Server]:
    binaries = redis_servers.binaries()
    if not binaries:
        pytest.skip("there is no Valkey and no Redis")
    binary = next(iter(binaries.values()))
    with redis_servers.Server.start(binary, tmp_path_factory.mktemp("valkey")) as started:
        yield started


@pytest.fixture
def valkey(valkey_of_the_module: redis_servers.Server) -> redis_servers.Server:
    valkey_of_the_module.reset()
    return valkey_of_the_module


@pytest.fixture
async def engine_for(postgres: Server) -> AsyncIterator[Callable[..., Any]]:
    """Makes engines: `engine_for("asyncpg", isolation_level="SERIALIZABLE")`. "sync" is psycopg without asyncio."""
    async with AsyncExitStack() as stack:

        def make(driver: str = "asyncpg", **options: Any) -> Any:
            if driver == "sync":
                plain = sa.create_engine(postgres.url_for("psycopg"), **options)
                stack.callback(plain.dispose)
                return plain
            made = create_async_engine(postgres.url_for(driver), **options)
            stack.push_async_callback(made.dispose)
            return made

        async with make().begin() as connection:
            await connection.run_sync(metadata.create_all)
            await connection.execute(sa.insert(shop).values(price=1))
        yield make


@pytest.fixture
def engine(engine_for: Callable[..., AsyncEngine]) -> AsyncEngine:
    return engine_for()


@pytest.fixture
async def cache_at() -> AsyncIterator[Callable[[str], Cache]]:
    """Makes caches on a server of their own client: each stands for another process."""
    async with AsyncExitStack() as stack:

        def make(url: str) -> Cache:
            backend = RedisBackend.from_url(url)
            stack.push_async_callback(backend.aclose)
            return Cache(backend, default_ttl=100)

        yield make


class Slow(MemoryBackend):
    """A backend on which a test can wait. `written` are the tags that were invalidated, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []
        self.pause: Callable[[], Any] = checkpoint

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        names = list(tags)
        await self.pause()
        await super().invalidate(names, soft=soft)
        self.written += [name.rpartition("|")[2] for name in names]


async def put(engine: AsyncEngine, *tags: str) -> None:
    async with AsyncSession(engine) as session:
        for tag in tags:
            outbox.add(session, tag)
        await session.commit()


def rows(postgres: Server) -> list[str]:
    return [tags for (tags,) in postgres.run("SELECT tags FROM asynctag_outbox ORDER BY id")]


async def price(cache: Cache, engine: AsyncEngine) -> int:
    async def compute() -> int:
        async with engine.connect() as connection:
            found: int | None = await connection.scalar(sa.select(shop.c.price))
            assert found is not None
            return found

    return await cache.get_or_set("price", compute, tags=["price"])


# --- order, and several relays -----------------------------------------------------------------------------


async def test_a_lower_number_may_be_committed_later(engine: AsyncEngine, postgres: Server) -> None:
    """Of two open transactions the second commits first: the first one's row is passed over by no relay."""
    backend = Slow()
    cache = Cache(backend)
    async with AsyncSession(engine) as first, AsyncSession(engine) as second:
        outbox.add(first, "first")
        await first.flush()
        outbox.add(second, "second")
        await second.flush()
        await second.commit()
        assert await outbox.deliver(cache, engine) == 1
        await first.commit()
    assert [number for (number,) in postgres.run("SELECT id FROM asynctag_outbox")] == [1]
    assert await outbox.deliver(cache, engine) == 1
    assert backend.written == ["second", "first"]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "sync"])
@pytest.mark.parametrize("level", [None, "REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"])
async def test_relays_do_not_hinder_each_other(
    engine_for: Callable[..., Any], engine: AsyncEngine, postgres: Server, driver: str, level: str | None
) -> None:
    """What one has at hand the other leaves to it, and waits for nothing; writers neither. At every level."""
    relaying = engine_for(driver, **({"isolation_level": level} if level else {}))
    told: list[str] = []

    @sa.event.listens_for(relaying if driver == "sync" else relaying.sync_engine, "after_cursor_execute")
    def executed(connection: sa.Connection, cursor: Any, statement: str, *rest: object) -> None:
        if statement.startswith("SELECT asynctag_outbox"):
            told.append(connection.get_isolation_level())

    backend = Slow()
    cache = Cache(backend)
    await put(engine, "a")
    counts: list[int] = []

    async def pause() -> None:
        backend.pause = checkpoint
        await put(engine, "b")
        counts.append(await outbox.deliver(cache, relaying))

    backend.pause = pause
    with anyio.fail_after(10):
        counts.append(await outbox.deliver(cache, relaying))
    assert counts == [1, 1]
    assert backend.written == ["b", "a"]
    assert rows(postgres) == []
    assert told == ["READ COMMITTED"] * 2


async def test_many_relays_share_the_work(
    engine: AsyncEngine, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is invalidated by one of them."""
    monkeypatch.setattr(outbox_module, "BATCH", 5)
    backend = Slow()
    cache = Cache(backend)
    await put(engine, *(f"tag-{number}" for number in range(100)))
    counts = await asyncio.gather(*(outbox.deliver(cache, engine) for _ in range(4)))
    assert sum(counts) == len(backend.written) == len(set(backend.written)) == 100
    assert rows(postgres) == []


async def test_batches_go_by_number(engine: AsyncEngine, postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order the rows lie in the table: none is passed over by a batch that was read before."""
    monkeypatch.setattr(outbox_module, "BATCH", 1)
    for number in (3, 2, 1):
        postgres.run("INSERT INTO asynctag_outbox (id, tags) VALUES (%s, %s)", number, f'["{number}"]')
    backend = Slow()
    assert await outbox.deliver(Cache(backend), engine) == 3
    assert backend.written == ["1", "2", "3"]


async def test_junk_is_put_aside(engine: AsyncEngine, postgres: Server, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once."""
    backend = Slow()
    postgres.run("INSERT INTO asynctag_outbox (tags) VALUES ('é')")
    await put(engine, "a")
    with caplog.at_level(logging.INFO, "asynctag"):
        assert await outbox.deliver(Cache(backend), engine) == 1
        assert await outbox.deliver(Cache(backend), engine) == 0
    assert backend.written == ["a"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert postgres.run("SELECT id FROM asynctag_outbox WHERE problem LIKE 'Expecting value%'") == [(1,)]


# --- processes that die -------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from contextlib import nullcontext

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from asynctag import Cache
from asynctag.backends.redis import RedisBackend
from asynctag.integrations.outbox import Outbox

database, server, way = sys.argv[1:]
cache = Cache(RedisBackend.from_url(server), default_ttl=100)
outbox = Outbox(sa.MetaData())

async def step(name):
    print(name, flush=True)
    await asyncio.to_thread(sys.stdin.readline)

async def main():
    in_block = way == "in a block"
    engine = create_async_engine(database)
    async with cache:
        async with cache.transaction() if in_block else nullcontext():
            async with AsyncSession(engine) as session:
                await session.execute(sa.text("UPDATE shop SET price = 2"))
                await step("changed")
                if in_block:
                    await cache.invalidate("price")
                    await step("held")
                    outbox.add_held(session, cache)
                else:
                    await step("held")
                    outbox.add(session, "price")
                await session.flush()
                await step("written")
                await session.commit()
                await step("committed")
        if not in_block:
            await cache.invalidate("price")
        await step("invalidated")

asyncio.run(main())
"""

STEPS = ["changed", "held", "written", "committed", "invalidated"]

RELAY = """
import asyncio, sys

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from asynctag import Cache
from asynctag.backends.redis import RedisBackend
from asynctag.integrations.outbox import Outbox

database, server = sys.argv[1:]
cache = Cache(RedisBackend.from_url(server), default_ttl=100)

@cache.after_invalidation
async def told(tags):
    print("invalidated", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

asyncio.run(Outbox(sa.MetaData()).deliver(cache, create_async_engine(database)))
"""


@contextmanager
def process(program: str, *arguments: str, steps: list[str]) -> Iterator[None]:
    """A process that has gone so many steps, and is killed in the end."""
    started = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with started:
        assert started.stdin
        assert started.stdout
        try:
            for number, step in enumerate(steps, 1):
                assert started.stdout.readline().strip() == step
                if number < len(steps):
                    started.stdin.write("\n")
                    started.stdin.flush()
            yield
        finally:
            started.kill()


def nothing_is_open(postgres: Server) -> None:
    """Wait until the server has rolled back what a killed process had begun."""
    eventually(
        "the end of the killed process's transaction",
        lambda: not postgres.run("SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"),
    )


@pytest.mark.parametrize("way", ["in a block", "plainly"])
@pytest.mark.parametrize("until", STEPS)
async def test_the_writer_is_killed(
    engine: AsyncEngine,
    postgres: Server,
    valkey: redis_servers.Server,
    cache_at: Callable[[str], Cache],
    until: str,
    way: str,
) -> None:
    """At every step: once the relay has run, nobody is served what is no longer so; in a block not before either."""
    cache = cache_at(valkey.url)
    assert await price(cache, engine) == 1
    steps = STEPS[: STEPS.index(until) + 1]
    with process(WRITER, postgres.url_for("asyncpg"), valkey.url, way, steps=steps):
        pass
    nothing_is_open(postgres)
    committed = until in ("committed", "invalidated")
    truth = 2 if committed else 1
    if way == "plainly" and until == "committed":
        assert await price(cache, engine) == 1  # what the outbox is for
    else:
        for _ in range(2):
            assert await price(cache, engine) == truth
    assert await outbox.deliver(cache, engine) == committed
    assert rows(postgres) == []
    for _ in range(2):
        assert await price(cache, engine) == truth
    end_leases(valkey)
    for _ in range(2):
        assert await price(cache, engine) == truth
    assert (await cache.explain("price")).hit


async def test_a_writer_is_killed_whose_lease_is_lost(
    engine: AsyncEngine, postgres: Server, valkey: redis_servers.Server, cache_at: Callable[[str], Cache]
) -> None:
    """As by a failover to a server that had not heard of it: the relay is the only one left who knows."""
    cache = cache_at(valkey.url)
    assert await price(cache, engine) == 1
    steps = STEPS[: STEPS.index("committed") + 1]
    kept = {name: valkey.run("DUMP", name) for name in valkey.run("KEYS", "*")}
    with process(WRITER, postgres.url_for("asyncpg"), valkey.url, "in a block", steps=steps):
        pass
    for name in valkey.run("KEYS", "*"):
        valkey.run("DEL", name)
    for name, dump in kept.items():
        valkey.run("RESTORE", name, 0, dump)
    reader = cache_at(valkey.url)
    assert await price(reader, engine) == 1
    assert await outbox.deliver(reader, engine) == 1
    assert await price(reader, engine) == 2


async def test_the_relay_is_killed(
    engine: AsyncEngine, postgres: Server, valkey: redis_servers.Server, cache_at: Callable[[str], Cache]
) -> None:
    """Between the invalidation and the deletion: the row is there for the next one."""
    cache = cache_at(valkey.url)
    await price(cache, engine)
    await put(engine, "price")
    with process(RELAY, postgres.url_for("asyncpg"), valkey.url, steps=["invalidated"]):
        assert (await cache.explain("price")).cause is Cause.INVALIDATED
        assert await outbox.deliver(cache, engine) == 0
    nothing_is_open(postgres)
    assert await outbox.deliver(cache, engine) == 1
    assert rows(postgres) == []


# --- a backend that is down ----------------------------------------------------------------------------------


async def change(engine: AsyncEngine, cache: Cache) -> None:
    """Commit a new price, and find nobody to tell."""
    async with AsyncSession(engine) as session:
        await session.execute(sa.update(shop).values(price=2))
        outbox.add(session, "price")
        await session.commit()
    with pytest.raises(InvalidationError):
        await cache.invalidate("price")


async def test_the_writer_is_cut_off_from_the_backend(
    engine: AsyncEngine, postgres: Server, valkey: redis_servers.Server, cache_at: Callable[[str], Cache]
) -> None:
    """Others have what was, until the relay gets through: nothing is lost with the writer."""
    reader = cache_at(valkey.url)
    assert await price(reader, engine) == 1
    with Proxy(valkey.address) as proxy:
        proxy.turn_to((HOST, 1))
        await change(engine, cache_at(proxy.url))
        relaying = cache_at(proxy.url)
        with pytest.raises(InvalidationError):
            await outbox.deliver(relaying, engine)
        assert len(rows(postgres)) == 1
        assert await price(reader, engine) == 1
        proxy.turn_to(valkey.address)
        assert await outbox.deliver(relaying, engine) == 1
        assert await price(reader, engine) == 2
    assert rows(postgres) == []


async def test_the_backend_is_stopped_during_the_commit(
    engine: AsyncEngine, postgres: Server, valkey: redis_servers.Server, cache_at: Callable[[str], Cache]
) -> None:
    """Once it is back, with its data or without, the relay that has gone on trying gets through."""
    cache = cache_at(valkey.url)
    assert await price(cache, engine) == 1
    valkey.kill()
    try:
        await change(engine, cache)
        with anyio.fail_after(20):
            async with outbox.relay(cache, engine, every=0.01):
                assert await price(cache, engine) == 2
                assert len(rows(postgres)) == 1
                valkey.launch()
                while rows(postgres):
                    await checkpoint()
    finally:
        valkey.restart()
    for _ in range(2):
        assert await price(cache_at(valkey.url), engine) == 2


# --- units of work --------------------------------------------------------------------------------------------


A_ROW = '["|t|product","|t|product:1"]'


async def price_of_product(cache: Cache, engine: AsyncEngine) -> int | None:
    async def compute() -> int | None:
        async with AsyncSession(engine) as session:
            return await session.scalar(sa.select(Product.price).where(Product.id == 1))

    return await cache.get_or_set("price", compute, tags=row_tags(Product, 1))


@pytest.fixture
def product(postgres: Server, engine: AsyncEngine) -> None:
    """A row of its table."""
    postgres.run("INSERT INTO product (id, price) VALUES (1, 1)")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.usefixtures("product")
async def test_units_of_work_write_what_they_change(
    engine_for: Callable[..., Any], postgres: Server, driver: str, level: str
) -> None:
    """By a flush and by a statement, in the same transaction: others see it with the change, or not at all."""
    maker = async_sessionmaker(engine_for(driver, isolation_level=level))
    sessions = UnitsOfWork(Cache(MemoryBackend()), maker, outbox=outbox)
    for end in ("rollback", "commit"):
        async with sessions() as session:
            (await session.get_one(Product, 1)).price = 2
            await session.flush()
            await session.execute(sa.update(shop).values(price=2))
            assert rows(postgres) == []
            await getattr(session, end)()
        assert rows(postgres) == ([A_ROW, '["|t|shop","|t|shop:*"]'] if end == "commit" else [])


@pytest.mark.parametrize("of", ["session", "connection"])
@pytest.mark.usefixtures("product")
async def test_units_of_work_with_savepoints(engine: AsyncEngine, postgres: Server, of: str) -> None:
    """What was rolled back and is changed again is written again."""
    sessions = UnitsOfWork(Cache(MemoryBackend()), async_sessionmaker(engine), outbox=outbox)
    async with sessions() as session:
        savepoint = await (session if of == "session" else await session.connection()).begin_nested()
        await session.execute(sa.update(shop).values(price=2))
        await savepoint.rollback()
        await session.execute(sa.update(shop).values(price=3))
        async with session.begin_nested():
            session.add(Product(id=2, price=2))
        with pytest.raises(sa.exc.IntegrityError):
            async with session.begin_nested():
                await session.execute(sa.insert(Product).values(id=1, price=2))
        await session.commit()
    written = " ".join(rows(postgres))
    assert all(f'|t|{tag}"' in written for tag in ("shop", "shop:*", "product", "product:2"))


async def test_a_unit_of_work_that_is_prepared(engine_for: Callable[..., Any], postgres: Server) -> None:
    """The row is prepared with it."""
    sessions = UnitsOfWork(
        Cache(MemoryBackend()), async_sessionmaker(engine_for("psycopg"), twophase=True), outbox=outbox
    )
    async with sessions() as session:
        session.add(Product(id=1, price=1))
        await session.run_sync(lambda one: one.prepare())
        assert rows(postgres) == []
        await session.commit()
    assert rows(postgres) == [A_ROW]


@pytest.mark.usefixtures("product")
async def test_a_unit_of_work_is_cut_off_from_the_backend(
    engine: AsyncEngine, postgres: Server, valkey: redis_servers.Server, cache_at: Callable[[str], Cache]
) -> None:
    """In the midst of it. It commits; others have what was, until a relay that gets through has run."""
    reader = cache_at(valkey.url)
    assert await price_of_product(reader, engine) == 1
    with Proxy(valkey.address) as proxy:
        writer = cache_at(proxy.url)
        assert await price_of_product(writer, engine) == 1
        async with UnitsOfWork(writer, async_sessionmaker(engine), outbox=outbox)() as session:
            product = await session.get_one(Product, 1)
            proxy.turn_to((HOST, 1))
            product.price = 2
            await session.flush()
            assert writer.queued_invalidations == ("product", "product:1")
            await session.commit()
        assert await price_of_product(writer, engine) == 2
        assert await price_of_product(reader, engine) == 1
        assert rows(postgres) == [A_ROW]
        assert await outbox.deliver(reader, engine) == 1
        for _ in range(2):
            assert await price_of_product(reader, engine) == 2
    assert rows(postgres) == []


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.usefixtures("product")
async def test_the_backend_is_stopped_during_a_flush(
    engine_for: Callable[..., Any],
    engine: AsyncEngine,
    postgres: Server,
    valkey: redis_servers.Server,
    cache_at: Callable[[str], Cache],
    kind: str,
) -> None:
    """The commit goes through. Once the backend is back the relay gets through."""
    cache = cache_at(valkey.url)
    assert await price_of_product(cache, engine) == 1

    async def change() -> None:
        async with UnitsOfWork(cache, async_sessionmaker(engine), outbox=outbox).begin() as session:
            product = await session.get_one(Product, 1)
            valkey.kill()
            product.price = 2

    def change_in_thread() -> None:
        with UnitsOfWork(cache, sessionmaker(engine_for("sync")), outbox=outbox).begin() as session:
            product = session.get_one(Product, 1)
            valkey.kill()
            product.price = 2

    try:
        await (change() if kind == "async" else anyio.to_thread.run_sync(change_in_thread))
        assert rows(postgres) == [A_ROW]
        assert await price_of_product(cache, engine) == 2
        with anyio.fail_after(20):
            async with outbox.relay(cache, engine, every=0.01):
                valkey.launch()
                while rows(postgres):
                    await checkpoint()
    finally:
        valkey.restart()
    for _ in range(2):
        assert await price_of_product(cache_at(valkey.url), engine) == 2
