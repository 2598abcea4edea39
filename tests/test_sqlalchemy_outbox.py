"""Units of work of SQLAlchemy with an outbox, on SQLite: what they change is in it, in the same transaction."""

import json
import logging
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import StaticPool

from asynctag import Cache, Cause, ConfigurationError, InvalidationError
from asynctag import pending as pending_module
from asynctag.integrations.outbox import Outbox
from asynctag.integrations.sqlalchemy import UnitsOfWork, unit_of_work
from asynctag.integrations.sqlalchemy import reads as reads_module
from asynctag.testing import fake_clock
from tests.told import Told, backend, cache

__all__ = ["backend", "cache", "fake_clock"]

pytestmark = pytest.mark.anyio

Sessions = Any


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int] = mapped_column(default=1)


outbox = Outbox(Base)

A_ROW = ["product", "product:1"]


@pytest.fixture
def anyio_backend() -> str:
    """SQLAlchemy's async sessions are for asyncio."""
    return "asyncio"


def begins_by_itself(engine: sa.Engine) -> None:
    """The driver leaves it to the first change, after a savepoint."""

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")


@pytest.fixture
async def engine() -> AsyncIterator[AsyncEngine]:
    """With two rows, on one connection."""
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    begins_by_itself(engine.sync_engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(sa.insert(Product), [{"id": 1}, {"id": 2}])
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(cache: Cache, engine: AsyncEngine) -> Sessions:
    return UnitsOfWork(cache, async_sessionmaker(engine), outbox=outbox)


def texts(packed: Iterable[str]) -> list[list[str]]:
    """The tags of each row."""
    return [[name.removeprefix("|t|") for name in json.loads(one)] for one in packed]


IN_OUTBOX = sa.select(outbox.table.c.tags).where(outbox.table.c.namespace.is_(None)).order_by(outbox.table.c.id)


async def rows(engine: AsyncEngine) -> list[list[str]]:
    async with engine.connect() as connection:
        return texts(await connection.scalars(IN_OUTBOX))


async def store(cache: Cache, tag: str) -> None:
    """An entry that carries a tag."""

    async def nothing() -> None:
        return None

    await cache.get_or_set(tag, nothing, tags=[tag])


async def cause(cache: Cache, tag: str) -> Cause | None:
    explained = await cache.explain(tag)
    return None if explained.hit else explained.cause


# --- what is in it -------------------------------------------------------------------------------------


async def test_what_a_flush_has_changed(engine: AsyncEngine, sessions: Sessions, backend: Told) -> None:
    """All of it, once, and committed with it. The outbox is no table that anything is held for."""
    async with sessions() as session:
        product = await session.get_one(Product, 1)
        for price in (7, 8):
            product.price = price
            await session.flush()
        assert texts(await session.scalars(IN_OUTBOX)) == [A_ROW]
        assert len(backend._leases) == len(A_ROW)
        await session.commit()
        product.price = 9
        await session.commit()
    assert await rows(engine) == [A_ROW, A_ROW]
    assert [what for what in backend.asked if what != "read"] == ["lease", "release"] * 2


@pytest.mark.parametrize("end", ["rollback", "error", "close"])
async def test_what_is_not_committed(engine: AsyncEngine, sessions: Sessions, end: str) -> None:
    """Its row is not there either."""

    async def work() -> None:
        async with sessions() as session:
            (await session.get_one(Product, 1)).price = 7
            await session.flush()
            if end == "error":
                raise KeyError
            await getattr(session, end)()

    if end == "error":
        with pytest.raises(KeyError):
            await work()
    else:
        await work()
    assert await rows(engine) == []


async def test_what_a_statement_changes(engine: AsyncEngine, sessions: Sessions) -> None:
    """In the database's transaction, on whatever way the statement goes."""
    async with sessions.begin() as session:
        await session.execute(sa.update(Product).values(price=7))
        assert texts(await session.scalars(IN_OUTBOX)) == [["product", "product:*"]]
        await (await session.connection()).execute(sa.delete(Product))
    assert await rows(engine) == [["product", "product:*"]]


async def test_a_session_that_was_made_elsewhere(engine: AsyncEngine, cache: Cache) -> None:
    """The same."""
    async with unit_of_work(cache, AsyncSession(engine), outbox=outbox) as session:
        (await session.get_one(Product, 1)).price = 7
        await session.commit()
    assert await rows(engine) == [A_ROW]


@pytest.mark.parametrize("isolation", ["read uncommitted", None])
async def test_what_is_read_uncommitted(engine: AsyncEngine, cache: Cache, isolation: Any) -> None:
    """It is held before each statement of a flush, and is in the outbox by then."""
    if isolation is None:
        engine = engine.execution_options(isolation_level="READ UNCOMMITTED")
    sessions = UnitsOfWork(cache, async_sessionmaker(engine), outbox=outbox, isolation=isolation)
    async with sessions.begin() as session:
        (await session.get_one(Product, 1)).price = 7
    assert await rows(engine) == [["product", "product:*"], ["product:1"]]


async def test_what_is_said_by_hand(engine: AsyncEngine, cache: Cache, sessions: Sessions) -> None:
    """Of changes that SQLAlchemy does not see: it is there at the commit."""
    async with sessions.begin() as session:
        await cache.invalidate("by_hand")
        await session.execute(sa.text("UPDATE product SET price = 7"))
    assert await rows(engine) == [["by_hand"]]


async def test_what_nobody_changes(engine: AsyncEngine, sessions: Sessions) -> None:
    """Who only reads writes nothing."""
    async with sessions.begin() as session:
        (await session.get_one(Product, 1)).price = 1
    assert await rows(engine) == []


# --- savepoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["session", "connection"])
@pytest.mark.parametrize("by", ["flush", "statement"])
async def test_a_savepoint_that_is_rolled_back(engine: AsyncEngine, sessions: Sessions, of: str, by: str) -> None:
    """It takes its rows away: what is changed once more is written once more."""

    async def change(session: AsyncSession, price: int) -> None:
        if by == "flush":
            (await session.get_one(Product, 1)).price = price
            await session.flush()
        else:
            await session.execute(sa.update(Product).values(price=price))

    async with sessions() as session:
        savepoint = await (session if of == "session" else await session.connection()).begin_nested()
        await change(session, 7)
        await savepoint.rollback()
        assert texts(await session.scalars(IN_OUTBOX)) == []
        await change(session, 8)
        assert len(texts(await session.scalars(IN_OUTBOX))) == 1
        await session.commit()
    assert await rows(engine) == [A_ROW if by == "flush" else ["product", "product:*"]]


async def test_savepoints_that_are_released(engine: AsyncEngine, sessions: Sessions) -> None:
    """However many there are: each writes what is new."""
    async with sessions.begin() as session:
        for number in (3, 4, 5):
            async with session.begin_nested():
                session.add(Product(id=number))
    assert await rows(engine) == [["product", "product:3"], ["product:4"], ["product:5"]]


async def test_savepoints_of_both_kinds(engine: AsyncEngine, sessions: Sessions) -> None:
    """What may be missing since one was rolled back is written once more: by the commit, not by each that follows."""
    async with sessions() as session:
        for number in (3, 4):
            async with session.begin_nested():
                session.add(Product(id=number))
            async with session.begin_nested() as savepoint:
                await session.execute(sa.update(Product).values(price=7))
                await savepoint.rollback()
        await session.commit()
    written = await rows(engine)
    assert written == [
        ["product", "product:3"],
        ["product", "product:4"],
        ["product", "product:3", "product:*", "product:4"],
    ]


@pytest.mark.parametrize("nested", [False, True])
async def test_a_flush_that_fails(engine: AsyncEngine, sessions: Sessions, *, nested: bool) -> None:
    """Says what the database has said, and writes nothing more."""

    async def fail(session: AsyncSession) -> None:
        if nested:
            async with session.begin_nested():
                session.add(Product(id=1))
        else:
            session.add(Product(id=1))
            await session.flush()

    async with sessions() as session:
        (await session.get_one(Product, 2)).price = 7
        await session.flush()
        session.expunge_all()
        with pytest.raises(sa.exc.IntegrityError):
            await fail(session)
        await (session.commit if nested else session.rollback)()
    assert any("product:2" in row for row in await rows(engine)) is nested


# --- the outbox is nobody's data ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["add", "statement"])
async def test_rows_that_are_written_by_hand(cache: Cache, engine: AsyncEngine, backend: Told, how: str) -> None:
    """Hold nothing, in a unit of work without the option either."""
    async with UnitsOfWork(cache, async_sessionmaker(engine))() as session:
        if how == "add":
            outbox.add(session, "a")
        else:
            await session.execute(sa.insert(outbox.table).values(tags='["a"]'))
        await session.commit()
    assert "lease" not in backend.asked
    assert await outbox.deliver(cache, engine) == 1


@pytest.mark.parametrize("how", ["row", "key", "list"])
async def test_who_looks_into_it(
    cache: Cache, engine: AsyncEngine, backend: Told, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Is stored with no tag of it, and without a warning."""
    reads_module._said.clear()
    reading = UnitsOfWork(cache, async_sessionmaker(engine), tag_reads=True)
    async with AsyncSession(engine) as session:
        outbox.add(session, "a")
        await session.commit()

    async def look() -> int:
        async with reading() as session:
            if how == "row":
                return len((await session.scalars(sa.select(outbox._row))).all())
            statement = sa.select(outbox.table.c.id)
            found = await session.scalars(statement.where(outbox.table.c.id == 1) if how == "key" else statement)
            return len(found.all())

    assert await cache.get_or_set("waiting", look) == 1
    explained = await cache.explain("waiting")
    assert explained.hit
    assert not caplog.records
    assert not any("outbox" in tag for tag in explained.tags)


# --- a backend that is down ----------------------------------------------------------------------------------


async def test_a_lease_that_cannot_be_written(
    engine: AsyncEngine, cache: Cache, backend: Told, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit goes through. This process serves nothing old meanwhile, and the relay invalidates."""
    await store(cache, "product:1")
    backend.fails = {"lease", "release", "invalidate"}
    async with sessions() as session:
        (await session.get_one(Product, 1)).price = 7
        await session.flush()
        assert cache.queued_invalidations == ("product", "product:1")
        await session.commit()
    for _ in range(2):
        await store(cache, "product:1")
        assert not (await cache.explain("product:1")).hit
    assert {record.levelno for record in caplog.records} == {logging.WARNING, logging.ERROR}
    assert "is queued, till it is" in caplog.text
    with pytest.raises(InvalidationError):
        await outbox.deliver(cache, engine)
    assert await rows(engine) == [A_ROW]
    backend.fails = set()
    assert await outbox.deliver(cache, engine) == 1
    assert await cause(cache, "product:1") is Cause.INVALIDATED


async def test_without_an_outbox_it_fails_the_flush(engine: AsyncEngine, cache: Cache, backend: Told) -> None:
    """Nothing would remember it."""
    backend.fails = {"lease"}
    async with UnitsOfWork(cache, async_sessionmaker(engine))() as session:
        (await session.get_one(Product, 1)).price = 7
        with pytest.raises(InvalidationError):
            await session.flush()


async def test_it_is_held_as_soon_as_that_can_be(cache: Cache, backend: Told, sessions: Sessions) -> None:
    """The next change of the same row holds it."""
    await store(cache, "product:1")
    async with sessions() as session:
        product = await session.get_one(Product, 1)
        backend.fails = {"lease", "invalidate"}
        product.price = 7
        await session.flush()
        assert not list(backend._leases)
        backend.fails = set()
        product.price = 8
        await session.flush()
        assert sorted(backend._leases) == ["|t|product", "|t|product:1"]
        await session.commit()
        assert not list(backend._leases)


async def test_what_is_said_by_hand_is_queued(
    engine: AsyncEngine, cache: Cache, backend: Told, sessions: Sessions
) -> None:
    """Where that is asked for. The row is written as the commit is due."""
    backend.fails = {"lease", "release", "invalidate"}
    async with sessions.begin() as session:
        assert not await cache.invalidate("by_hand", queue=True)
        await session.execute(sa.text("UPDATE product SET price = 7"))
    assert await rows(engine) == [["by_hand"]]


async def test_a_queue_that_is_full(
    engine: AsyncEngine,
    cache: Cache,
    backend: Told,
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The row is there, so the commit goes through. It is said as an error."""
    monkeypatch.setattr(pending_module, "MAX_QUEUED", 1)
    backend.fails = {"lease", "release", "invalidate"}
    async with sessions.begin() as session:
        (await session.get_one(Product, 1)).price = 7
    assert "The queue is full: it holds 1 invalidations at most. The outbox has it" in caplog.text
    assert await rows(engine) == [A_ROW]


# --- settings, and plain sessions ------------------------------------------------------------------------------


async def test_what_is_no_outbox_is_refused(cache: Cache, engine: AsyncEngine) -> None:
    """At once."""
    with pytest.raises(ConfigurationError, match="is no outbox"):
        UnitsOfWork(cache, async_sessionmaker(engine), outbox=outbox.table)  # type: ignore[call-overload]
    UnitsOfWork(cache, async_sessionmaker(engine), outbox=None)


async def test_autocommit_is_refused(cache: Cache, engine: AsyncEngine) -> None:
    """There the row is not committed with the change. Who only reads may have it."""
    maker = async_sessionmaker(engine.execution_options(isolation_level="AUTOCOMMIT"))
    async with UnitsOfWork(cache, maker, outbox=outbox)() as session:
        await session.get_one(Product, 1)
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            await session.execute(sa.update(Product).values(price=7))


@pytest.mark.parametrize("down", [False, True])
async def test_sync_sessions(cache: Cache, backend: Told, tmp_path: Path, *, down: bool) -> None:
    """The same, with plain calls."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.sqlite3")
    Base.metadata.create_all(engine)
    await store(cache, "product:1")
    if down:
        backend.fails = {"lease", "release", "invalidate"}

    def work() -> None:
        sessions = UnitsOfWork(cache, sessionmaker(engine), outbox=outbox)
        with sessions.begin() as session:
            session.add(Product(id=1))
        with unit_of_work(cache, Session(engine), outbox=outbox) as session:
            session.execute(sa.update(Product).values(price=7))
            session.commit()

    await anyio.to_thread.run_sync(work)
    with engine.connect() as connection:
        assert texts(connection.scalars(IN_OUTBOX)) == [A_ROW, ["product", "product:*"]]
    assert bool(cache.queued_invalidations) is down
    backend.fails = set()
    assert await outbox.deliver(cache, engine) == 2
    assert await cause(cache, "product:1") is Cause.INVALIDATED
    engine.dispose()
