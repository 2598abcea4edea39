"""Units of work of SQLAlchemy on a real PostgreSQL: several connections, every isolation, commits that are lost."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from asynctag import Cache, Cause
from asynctag.backends.memory import MemoryBackend
from asynctag.integrations.sqlalchemy import UnitsOfWork
from asynctag.testing import FakeClock, assert_hit, fake_clock
from tests.postgres.servers import Server
from tests.shop import Base, Label, Node, Product

__all__ = ["fake_clock"]

pytestmark = pytest.mark.anyio

LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

Sessions = Any


@pytest.fixture
def cache(fake_clock: FakeClock) -> Cache:
    return Cache(MemoryBackend(clock=fake_clock), default_ttl=100)


@pytest.fixture(params=["asyncpg", "psycopg"])
async def engine(request: pytest.FixtureRequest, postgres: Server) -> AsyncIterator[AsyncEngine]:
    """With a few rows."""
    engine = create_async_engine(postgres.url_for(request.param), poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(sa.insert(Product), [{"id": 1, "kind": "plain", "price": 1}])
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(cache: Cache, engine: AsyncEngine) -> Sessions:
    return UnitsOfWork(cache, async_sessionmaker(engine), tag_reads=True)


@pytest.fixture
def price(cache: Cache, sessions: Sessions) -> Callable[[], Any]:
    """What somebody else reads: a cached function, with a session of its own."""

    async def compute() -> int:
        async with sessions() as session:
            return (await session.get_one(Product, 1)).price

    async def read() -> int:
        return await asyncio.create_task(cache.get_or_set("price", compute), context=Context())

    return read


async def cause(cache: Cache) -> Cause | None:
    """Why the cached price is no hit; None for a hit."""
    explained = await cache.explain("price")
    return None if explained.hit else explained.cause


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_readers_beside_a_writer(
    cache: Cache, engine: AsyncEngine, price: Callable[[], Any], level: str, end: str
) -> None:
    """Till the commit they read what is committed and store nothing; after it, nothing from before is served."""
    sessions = UnitsOfWork(cache, async_sessionmaker(engine.execution_options(isolation_level=level)))
    assert await price() == 1
    async with sessions() as session:
        (await session.get_one(Product, 1)).price = 7
        await session.flush()
        assert await price() == 1
        assert await cause(cache) is Cause.LEASED
        await getattr(session, end)()
        assert await price() == (7 if end == "commit" else 1)
    assert await cause(cache) is None


@pytest.mark.parametrize("level", LEVELS)
async def test_reads_inside_agree_with_the_snapshot(
    cache: Cache, engine: AsyncEngine, sessions: Sessions, price: Callable[[], Any], level: str
) -> None:
    """What was cached since the unit of work began is not served in it; serializable, nothing that is cached is."""
    inside = UnitsOfWork(cache, async_sessionmaker(engine.execution_options(isolation_level=level)))
    assert await price() == 1
    async with inside() as session:
        product = await session.get_one(Product, 1)
        assert product.price == 1
        found = await cache.lookup("price")
        assert hasattr(found, "value") is (level != "SERIALIZABLE")
        async with asyncio.TaskGroup() as group:
            group.create_task(_set_price(sessions, 7), context=Context())
        assert await price() == 7
        computed = await cache.get_or_set("price", lambda: _price_in(session))
        assert computed == 1
    assert await price() == 7
    assert await cause(cache) is None


async def _set_price(sessions: Sessions, price: int) -> None:
    async with sessions.begin() as session:
        (await session.get_one(Product, 1)).price = price


async def _price_in(session: AsyncSession) -> int:
    price: int = (await session.get_one(Product, 1)).price
    return price


async def test_two_writers_of_one_row(cache: Cache, sessions: Sessions, price: Callable[[], Any]) -> None:
    """Each holds for itself: the first one's commit does not let go of what the second has yet to commit."""
    await price()
    async with sessions() as first, sessions() as second:
        (await first.get_one(Product, 1)).price = 7
        await first.flush()
        second.add(Product(id=2))
        await second.flush()
        await first.commit()
        assert await price() == 7
        assert await cause(cache) is None  # it carries the row's tags
        assert list(cache._filling().backend._leases)  # type: ignore[attr-defined]
        await second.commit()
        assert not list(cache._filling().backend._leases)  # type: ignore[attr-defined]


# --- commits of which nobody knows -----------------------------------------------------------------------


async def halted(session: AsyncSession) -> int:
    """Halt the server's process that serves a session: what is sent to it now, it carries out later."""
    pid: int = (await session.execute(sa.text("select pg_backend_pid()"))).scalar_one()
    os.kill(pid, signal.SIGSTOP)
    return pid


async def committed(postgres: Server) -> None:
    """Wait until others see what was under way."""
    with anyio.fail_after(20):
        while postgres.run("SELECT price FROM product WHERE id = 1") != [(7,)]:  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def gives_up_on_the_commit(session: AsyncSession) -> int:
    """Commit, and be cancelled in the midst of it."""
    pid = await halted(session)
    with anyio.move_on_after(0.3) as scope:
        await session.commit()
    assert scope.cancelled_caught
    return pid


@pytest.mark.parametrize("way", ["unit", "block", "told"])
async def test_a_commit_that_lands_after_the_end(
    cache: Cache,
    engine: AsyncEngine,
    sessions: Sessions,
    postgres: Server,
    fake_clock: FakeClock,
    price: Callable[[], Any],
    way: str,
) -> None:
    """Its caller was cancelled, and has ended its block. Who reads the old row meanwhile must not store it."""
    assert await price() == 1
    pids: list[int] = []
    maker = async_sessionmaker(engine)
    with anyio.CancelScope() as outer:
        if way == "unit":
            async with sessions() as session:
                (await session.get_one(Product, 1)).price = 7
                await session.flush()
                pids.append(await gives_up_on_the_commit(session))
        else:
            async with cache.transaction() as transaction:
                await cache.invalidate("product:1")
                async with maker() as session:
                    (await session.get_one(Product, 1)).price = 7
                    await session.flush()
                    pids.append(await gives_up_on_the_commit(session))
                if way == "told":
                    transaction.in_doubt()
                else:
                    outer.cancel()
                    await anyio.lowlevel.checkpoint()
    assert await price() == 1  # not there yet: this must not be stored
    os.kill(pids[0], signal.SIGCONT)
    await committed(postgres)
    assert await price() == 7
    assert await cause(cache) is Cause.LEASED
    fake_clock.advance(31)
    assert [await price(), await price()] == [7, 7]
    await assert_hit(cache, "price")


async def test_a_commit_whose_connection_is_lost(
    cache: Cache, sessions: Sessions, postgres: Server, price: Callable[[], Any]
) -> None:
    """Nobody has answered: what was changed is held."""
    await price()

    async def work() -> None:
        async with sessions() as session:
            (await session.get_one(Product, 1)).price = 7
            await session.flush()
            pid = await halted(session)
            commit = asyncio.ensure_future(session.commit())
            await anyio.wait_all_tasks_blocked()
            postgres.run("SELECT pg_terminate_backend(%s)", pid)
            os.kill(pid, signal.SIGCONT)
            await commit

    with pytest.raises(sa.exc.DBAPIError):
        await work()
    assert await price() in (1, 7)
    assert await cause(cache) is Cause.LEASED


@pytest.mark.parametrize("how", ["deferred", "serialization", "flush", "cancelled before"])
async def test_a_transaction_that_is_known_to_have_failed(
    cache: Cache, engine: AsyncEngine, postgres: Server, price: Callable[[], Any], how: str
) -> None:
    """The server has said so, or a COMMIT was never sent: it lets go at once."""
    postgres.run("ALTER TABLE node DROP CONSTRAINT node_parent_id_fkey")
    postgres.run("ALTER TABLE node ADD FOREIGN KEY (parent_id) REFERENCES node DEFERRABLE INITIALLY DEFERRED")
    sessions = UnitsOfWork(cache, async_sessionmaker(engine.execution_options(isolation_level="SERIALIZABLE")))
    await price()
    with anyio.CancelScope() as scope:
        try:
            async with sessions() as session:
                (await session.get_one(Product, 1)).price = 7
                await session.flush()
                if how == "deferred":
                    session.add(Node(id=1, parent_id=9))
                elif how == "serialization":
                    await session.scalar(sa.select(sa.func.count()).select_from(Label))
                    async with AsyncSession(engine.execution_options(isolation_level="SERIALIZABLE")) as other:
                        await other.get(Product, 1)
                        other.add(Label(id=1))
                        await other.commit()
                elif how == "flush":
                    session.add(Product(id=1))
                else:
                    scope.cancel()
                    await anyio.sleep_forever()
                await session.commit()
        except sa.exc.DBAPIError:
            assert how != "cancelled before"
        else:
            assert how == "cancelled before"
    assert await price() == 1
    assert await cause(cache) is None


async def test_a_prepared_transaction_that_was_not_committed(cache: Cache, postgres: Server) -> None:
    """Another may do so: what it has changed is held for the lease's time."""
    engine = create_async_engine(postgres.url_for("psycopg"), poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions = UnitsOfWork(cache, async_sessionmaker(engine, twophase=True))

    async def nothing() -> None:
        return None

    async def work() -> None:
        async with sessions() as session:
            session.add(Label(id=1))
            await session.run_sync(lambda one: one.prepare())
            assert postgres.run("SELECT count(*) FROM pg_prepared_xacts") == [(1,)]
            raise ConnectionError

    await cache.get_or_set("price", nothing, tags=["label:1"])
    with pytest.raises(ConnectionError):
        await work()
    assert await cause(cache) is Cause.LEASED
    await engine.dispose()
