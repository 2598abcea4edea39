"""Sessions of SQLAlchemy in units of work: what they change is held until it is committed, what they read is tagged."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import Context
from pathlib import Path
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, joinedload, sessionmaker
from sqlalchemy.pool import NullPool

from asynctag import Cache, Cause, ConfigurationError, InvalidationError, LifecycleError
from asynctag.integrations.sqlalchemy import UnitsOfWork, row_tags, table_tags, unit_of_work
from asynctag.integrations.sqlalchemy import reads as reads_module
from asynctag.sync import _renewer as renewer
from asynctag.testing import assert_hit, assert_miss, fake_clock
from tests.shop import Base, Book, Category, Item, Label, Line, Node, Order, Product, product_label
from tests.told import Told, backend, cache

__all__ = ["backend", "cache", "fake_clock"]

pytestmark = pytest.mark.anyio

Maker = async_sessionmaker[AsyncSession]
Sessions = Any


@pytest.fixture
def anyio_backend() -> str:
    """SQLAlchemy's async sessions are for asyncio."""
    return "asyncio"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database with a few rows."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.sqlite3", poolclass=NullPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Category(id=1, products=[Product(id=1, labels=[Label(id=1)]), Book(id=2)]))
        session.add_all([Category(id=2), Label(id=2), Order(id=1, lines=[Line(line=1)])])
        session.add_all([Node(id=1, children=[Node(id=2)]), Item(id=1)])
        session.flush()
        session.add(Item(id=2, node_id=2))
    engine.dispose()
    return f"sqlite+aiosqlite:///{tmp_path}/shop.sqlite3"


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url, poolclass=NullPool)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def enforce(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")

    yield engine
    await engine.dispose()


@pytest.fixture
def maker(engine: AsyncEngine) -> Maker:
    return async_sessionmaker(engine, expire_on_commit=False)


@pytest.fixture
def sessions(cache: Cache, maker: Maker) -> Sessions:
    return UnitsOfWork(cache, maker)


@pytest.fixture
def tagging(cache: Cache, maker: Maker) -> Sessions:
    reads_module._said.clear()
    return UnitsOfWork(cache, maker, tag_reads=True)


HELD, GONE, VALID = "held", "gone", "valid"


async def store(cache: Cache, *tags: str) -> None:
    """An entry for each tag, which carries it alone."""

    async def nothing() -> None:
        return None

    for tag in tags:
        await cache.get_or_set(tag, nothing, tags=[tag])


async def fates(cache: Cache, *tags: str) -> list[str]:
    """What became of the entries of `store`."""
    found = []
    for tag in tags:
        explained = await cache.explain(tag)
        found.append(VALID if explained.hit else HELD if explained.cause is Cause.LEASED else GONE)
    return found


async def apart(work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """What comes of `work` as by somebody else, in a context of its own."""
    return await asyncio.create_task(work(*args), context=Context())  # type: ignore[arg-type]


async def price_of(session: AsyncSession, number: int = 1) -> int:
    price: int = (await session.get_one(Product, number)).price
    return price


# --- what is changed is held ---------------------------------------------------------------------------


async def test_from_the_flush_to_the_commit(cache: Cache, sessions: Sessions) -> None:
    """The row, its table and `__cache_tags__`, as they were and as they are; nothing else."""
    tags = ["product", "product:1", "of_category:1", "of_category:2"]
    others = ["product:2", "product:*", "category", "label"]
    await store(cache, *tags, *others)
    async with sessions() as session:
        (await session.get_one(Product, 1)).category_id = 2
        assert await fates(cache, *tags) == [VALID] * 4
        await session.flush()
        assert await fates(cache, *tags) == [HELD] * 4
        await session.commit()
        assert await fates(cache, *tags) == [GONE] * 4
    assert await fates(cache, *others) == [VALID] * 4


async def test_a_row_whose_key_the_database_makes(cache: Cache, sessions: Sessions) -> None:
    """It is known once it is inserted: what was cached of there being no such row goes."""
    await store(cache, "product:3", "product:4")
    async with sessions.begin() as session:
        session.add(Product())
        await session.flush()
        assert await fates(cache, "product:3", "product:4") == [HELD, VALID]
    assert await fates(cache, "product:3", "product:4") == [GONE, VALID]


@pytest.mark.parametrize("end", ["commit", "rollback", "close", "error", "cancelled", "failed flush"])
async def test_every_end_lets_go(cache: Cache, sessions: Sessions, end: str) -> None:
    """At once: it is known in each case what became of the changes."""
    await store(cache, "product:1")
    with anyio.CancelScope() as scope:
        try:
            async with sessions() as session:
                (await session.get_one(Product, 1)).price = 7
                await session.flush()
                assert await fates(cache, "product:1") == [HELD]
                if end in ("commit", "rollback", "close"):
                    await getattr(session, end)()
                    assert await fates(cache, "product:1") == [GONE]
                elif end == "error":
                    raise KeyError
                elif end == "failed flush":
                    session.add(Label(id=1))
                    await session.commit()
                else:
                    scope.cancel()
                    await anyio.sleep_forever()
        except (KeyError, sa.exc.IntegrityError):
            pass
    assert await fates(cache, "product:1") == [GONE]


async def test_it_commits_several_times(cache: Cache, backend: Told, sessions: Sessions) -> None:
    """Each time what was changed since is held and let go of; two questions each, however many rows."""
    async with sessions() as session:
        for price in (7, 8):
            await apart(store, cache, "product:1", "product")
            backend.asked.clear()
            (await session.get_one(Product, 1)).price = price
            session.add_all(Label() for _ in range(10))
            await session.flush()
            assert await fates(cache, "product:1", "product") == [HELD, HELD]
            await session.commit()
            assert await fates(cache, "product:1", "product") == [GONE, GONE]
            assert backend.asked == ["lease", "release"]
    assert backend.asked == ["lease", "release"]


async def test_a_second_flush_holds_what_is_new(backend: Told, cache: Cache, sessions: Sessions) -> None:
    """A tag that is held already costs nothing."""
    async with sessions() as session:
        product = await session.get_one(Product, 1)
        for price in (2, 3):
            product.price = price
            await session.flush()
        assert backend.asked == ["lease"]
        session.add(Label())
        await session.commit()
    assert backend.asked == ["lease", "lease", "release"]


async def test_what_only_reads_asks_nothing(backend: Told, sessions: Sessions) -> None:
    """Nor what sets a value to what it was."""
    async with sessions() as session:
        (await session.get_one(Product, 1)).price = 1
        await session.commit()
    assert backend.asked == []


BULK: dict[str, Any] = {
    "update": lambda session: session.execute(sa.update(Label).values(name="x")),
    "delete": lambda session: session.execute(sa.delete(Label).where(Label.id == 2)),
    "insert": lambda session: session.execute(sa.insert(Label), [{"id": 8}, {"id": 9}]),
    "by key": lambda session: session.execute(sa.update(Label), [{"id": 1, "name": "x"}]),
    "core": lambda session: session.connection().execute(Label.__table__.update().values(name="x")),
    "bulk_save_objects": lambda session: session.bulk_save_objects([Label(id=8)]),
}


@pytest.mark.parametrize("name", BULK)
async def test_statements_that_name_no_rows(cache: Cache, sessions: Sessions, name: str) -> None:
    """Hold the table and all of its rows, before they are sent."""
    tags = ["label", "label:*"]
    await store(cache, *tags, "label:1")
    async with sessions() as session:
        sent: list[list[str]] = []

        @sa.event.listens_for(session.sync_session.get_bind(), "after_cursor_execute")
        def seen(*given: Any) -> None:
            sent.append(list(cache._filling().backend._leases))  # type: ignore[attr-defined]

        await session.run_sync(BULK[name])
        assert len(sent[-1]) == 2
        assert await fates(cache, *tags, "label:1") == [HELD, HELD, VALID]
        await session.commit()
    assert await fates(cache, *tags) == [GONE, GONE]


async def test_the_links_of_two_tables(cache: Cache, sessions: Sessions) -> None:
    """The rows at both ends, and the table between, whose rows nobody tells of."""
    tags = ["product:1", "label:2", "product_label", "product_label:*"]
    await store(cache, *tags, "product", "label")
    async with sessions.begin() as session:
        product = await session.get_one(Product, 1, options=[joinedload(Product.labels)])
        product.labels.append(await session.get_one(Label, 2))
    assert await fates(cache, *tags) == [GONE] * 4
    assert await fates(cache, "product", "label") == [VALID] * 2


async def test_a_statement_in_the_midst_of_a_flush(cache: Cache, sessions: Sessions) -> None:
    """Of somebody's handler: it may change other rows of a table of which the flush tells."""
    await store(cache, "product:*", "label:*", "label")

    def handler(mapper: Any, connection: sa.Connection, target: Any) -> None:
        connection.execute(sa.update(Product.__table__).values(price=9))  # type: ignore[arg-type]

    def before(session: Session, *given: Any) -> None:
        session.execute(sa.update(Label).values(name="x"))

    sa.event.listen(Product, "after_update", handler)
    sa.event.listen(Session, "before_flush", before)
    try:
        async with sessions.begin() as session:
            (await session.get_one(Product, 1)).price = 7
    finally:
        sa.event.remove(Product, "after_update", handler)
        sa.event.remove(Session, "before_flush", before)
    assert await fates(cache, "product:*", "label:*", "label") == [GONE] * 3


async def test_a_row_that_takes_anothers_place(cache: Cache, sessions: Sessions) -> None:
    """Deleted and inserted in one flush, with one UPDATE: the values that it had are the other object's."""
    tags = ["product:1", "of_category:1", "of_category:2"]
    await store(cache, *tags)
    async with sessions.begin() as session:
        await session.delete(await session.get_one(Product, 1, options=[joinedload(Product.labels)]))
        session.add(Product(id=1, category_id=2))
    assert await fates(cache, *tags) == [GONE] * 3


async def test_rows_that_are_changed_afterwards(cache: Cache, sessions: Sessions) -> None:
    """By `post_update`, for which there is no event: all rows of the tables that have it."""
    async with sessions.begin() as session:
        (await session.get_one(Category, 2)).favourite_id = 1
    await store(cache, "category:*", "category")
    async with sessions.begin() as session:
        (await session.get_one(Category, 1)).favourite = await session.get_one(Product, 2)
    assert await fates(cache, "category:*", "category") == [GONE] * 2


async def test_what_foreign_keys_do(cache: Cache, sessions: Sessions) -> None:
    """As the metadata has it, however deep: all rows of those tables."""
    tags = ["node", "node:*", "node:1", "item", "item:*"]
    await store(cache, *tags, "product")
    async with sessions.begin() as session:
        await session.delete(await session.get_one(Node, 1))
    assert await fates(cache, *tags) == [GONE] * 5
    async with sessions() as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(Node)) == 0
        assert (await session.get_one(Item, 2)).node_id is None
    assert await fates(cache, "product") == [VALID]


async def test_savepoints(cache: Cache, sessions: Sessions) -> None:
    """Theirs stays held to the end of the whole, whether they are rolled back or not."""
    tags = ["product:1", "product:2"]
    await store(cache, *tags)
    async with sessions() as session:
        async with session.begin_nested():
            (await session.get_one(Product, 1)).price = 7
        nested = await session.begin_nested()
        (await session.get_one(Product, 2)).price = 7
        await session.flush()
        await nested.rollback()
        assert await fates(cache, *tags) == [HELD, HELD]
        await session.commit()
        assert await fates(cache, *tags) == [GONE, GONE]
    await store(cache, *tags)
    await assert_hit(cache, "product:1")


async def test_tags_by_hand_are_let_go_with_the_rest(cache: Cache, sessions: Sessions) -> None:
    """What is invalidated in the unit of work is held as what it finds itself."""
    tags = table_tags(Label)
    await store(cache, *tags)
    async with sessions() as session:
        await cache.invalidate(*tags)
        await session.execute(sa.text("update label set name = 'x'"))
        assert await fates(cache, *tags) == [HELD, HELD]
        await session.commit()
        assert await fates(cache, *tags) == [GONE, GONE]


async def test_a_session_within_another(cache: Cache, sessions: Sessions) -> None:
    """One's commit is not the other's: what the inner has not committed stays held, and the reverse."""
    await store(cache, "product:1", "label:1")
    async with sessions() as outer:
        (await outer.get_one(Product, 1)).price = 7
        async with sessions() as inner:
            await inner.get_one(Label, 1)
            await outer.flush()
            await cache.invalidate("label:1")  # SQLite has one writer: for what the inner is about to change
            await outer.commit()
            assert await fates(cache, "product:1", "label:1") == [GONE, HELD]
            await inner.commit()
        await store(cache, "product:1", "label:1")
        async with sessions() as inner:
            await cache.invalidate("label:1")
            (await outer.get_one(Product, 1)).price = 8
            await outer.flush()
            await inner.get_one(Label, 1)
            await inner.commit()
            assert await fates(cache, "product:1", "label:1") == [HELD, GONE]


async def test_other_sessions_are_left_alone(backend: Told, sessions: Sessions, maker: Maker) -> None:
    """Also on an engine that is listened to."""
    async with sessions() as session:
        await session.get_one(Product, 1)
    async with maker() as session, session.begin():
        (await session.get_one(Product, 1)).price = 7
    assert backend.asked == []


# --- what goes wrong -----------------------------------------------------------------------------------


async def test_what_cannot_be_held_is_not_committed(backend: Told, cache: Cache, sessions: Sessions) -> None:
    """The flush raises, or the statement."""
    await store(cache, "product:1")
    backend.fails = {"lease"}
    with pytest.raises(InvalidationError, match="product"):
        async with sessions.begin() as session:
            (await session.get_one(Product, 1)).price = 7
    with pytest.raises(InvalidationError, match="product"):
        async with sessions.begin() as session:
            await session.execute(sa.update(Product).values(price=7))
    backend.fails = set()
    async with sessions() as session:
        assert await price_of(session) == 1


async def test_the_end_raises_nothing(
    backend: Told, cache: Cache, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    """It is committed by then: what could not be written is in the log, and queued."""
    await store(cache, "product:1")
    async with sessions() as session:
        (await session.get_one(Product, 1)).price = 7
        backend.fails = {"release"}
        await session.commit()
        backend.fails = set()
    assert "the end of a transaction could not be written" in caplog.text
    assert "product:1" in cache.queued_invalidations


@pytest.mark.parametrize("kind", ["in use", "holds rows", "connection", "twice"])
async def test_a_session_that_is_in_use_is_refused(cache: Cache, engine: AsyncEngine, maker: Maker, kind: str) -> None:
    """What it has read may be older than the unit of work."""
    async with engine.connect() as connection, maker() as session:
        if kind == "connection":
            await connection.begin()
            session = AsyncSession(connection)
        elif kind != "twice":
            await session.get_one(Product, 1)
        if kind == "holds rows":
            kept = await session.get_one(Product, 1)
            await session.commit()
            assert kept.price == 1
        if kind == "twice":
            await unit_of_work(cache, session).__aenter__()
        with pytest.raises(LifecycleError, match="transaction" if kind == "connection" else "already"):
            await unit_of_work(cache, session).__aenter__()
        await session.close()


async def test_a_session_that_was_made_elsewhere(cache: Cache, maker: Maker) -> None:
    """It is followed in the block, and closed at its end; then it is free again."""
    await store(cache, "product:1")
    session = maker()
    for _ in range(2):
        async with unit_of_work(cache, session) as same:
            assert same is session
            (await session.get_one(Product, 1)).price += 1
            await session.commit()
        assert await fates(cache, "product:1") == [GONE]
        await store(cache, "product:1")
    async with session:
        (await session.get_one(Product, 1)).price += 1
        await session.commit()
    assert await fates(cache, "product:1") == [VALID]


async def test_what_cannot_be_meant_is_refused(cache: Cache, maker: Maker, engine: AsyncEngine) -> None:
    """At once, with what to do."""
    with pytest.raises(ConfigurationError, match="give an async_sessionmaker or a sessionmaker"):
        UnitsOfWork(cache, engine)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="is no cache"):
        UnitsOfWork(maker, maker)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="isolation='snapshot'"):
        UnitsOfWork(cache, maker, isolation="snapshot")  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="tag_reads"):
        UnitsOfWork(cache, maker, tag_reads=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"'tag_read' is no option here.*Did you mean 'tag_reads'"):
        UnitsOfWork(cache, maker, tag_read=True)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="is no session"):
        unit_of_work(cache, engine)  # type: ignore[call-overload]
    with pytest.raises(LifecycleError, match=r"cache\.sync"):
        with UnitsOfWork(cache, sessionmaker())():
            pass
    unit = UnitsOfWork(cache, maker)()
    async with unit:
        with pytest.raises(LifecycleError, match="open already"):
            async with unit:
                pass


# --- what is cached, inside ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine_level", "given", "level"),
    [
        (None, None, "serializable"),
        ("READ UNCOMMITTED", None, "read uncommitted"),
        ("AUTOCOMMIT", None, "repeatable read"),
        (None, "repeatable read", "repeatable read"),
    ],
)
async def test_the_isolation_is_the_connections(
    cache: Cache, url: str, engine_level: str | None, given: Any, level: str
) -> None:
    """Read without asking, also before the engine has connected for the first time; unless it is given."""
    engine = create_async_engine(url, poolclass=NullPool, **({"isolation_level": engine_level} if engine_level else {}))
    try:
        sessions = UnitsOfWork(cache, async_sessionmaker(engine), isolation=given)
        for known in (False, True):
            unit = sessions()
            async with unit as session:
                assert unit._entered is not None
                block = unit._entered[1].block
                before = level if known or engine_level or given else "not known"
                assert block.isolation == before
                await session.get_one(Product, 1)
                assert block.isolation == level
    finally:
        await engine.dispose()


async def test_its_own_changes_are_seen_inside_and_kept_from_others(cache: Cache, maker: Maker) -> None:
    """A cached function in the block computes from what is not committed, and nothing of it is stored."""
    sessions = UnitsOfWork(cache, maker, isolation="repeatable read")
    async with sessions() as session:

        async def price() -> int:
            return await cache.get_or_set("p", lambda: price_of(session), tags=row_tags(Product, 1))

        assert await price() == 1
        (await session.get_one(Product, 1)).price = 7
        await session.flush()
        assert await price() == 7
        await session.rollback()
        assert await price() == 1
    await assert_miss(cache, "p")


@pytest.mark.parametrize("statement", ["update product set price = 7", "select 1"])
async def test_text_that_may_have_changed_something(cache: Cache, sessions: Sessions, statement: str) -> None:
    """And was not committed: what was computed in the block is dropped. What only reads is no reason to."""
    async with sessions() as session:
        await session.execute(sa.text(statement))
        async with session.begin_nested():  # the end of this is no commit
            pass
        await cache.get_or_set("p", lambda: price_of(session), tags=row_tags(Product, 1))
    if statement.startswith("select"):
        await assert_hit(cache, "p")
    else:
        await assert_miss(cache, "p")


# --- what is read --------------------------------------------------------------------------------------


async def tags_of(cache: Cache, key: str = "k") -> set[str]:
    """The tags of what is stored under a key."""
    found = await cache.lookup(key)
    tags: frozenset[str] = getattr(found, "tags", frozenset({"nothing is stored"}))
    return set(tags)


READS: dict[str, tuple[Any, set[str]]] = {
    "get": (lambda s: s.get(Product, 1), {"product:1", "product:*"}),
    "get of nothing": (lambda s: s.get(Label, 99), {"label:99", "label:*"}),
    "a child class": (lambda s: s.get(Book, 2), {"product", "book", "product:2", "book:2"}),
    "a count": (lambda s: s.scalar(sa.select(sa.func.count()).select_from(Label)), {"label"}),
    "an empty list": (lambda s: s.execute(sa.select(Label).where(Label.id > 9)), {"label"}),
    "rows": (lambda s: s.scalars(sa.select(Label)), {"label", "label:1", "label:2"}),
    "columns": (lambda s: s.execute(sa.select(Label.id)), {"label"}),
    "a join": (
        lambda s: s.execute(sa.select(Product.id).join(Product.labels)),
        {"product", "product_label", "label"},
    ),
    "eager": (
        lambda s: s.get(Product, 1, options=[joinedload(Product.labels)]),
        {"product", "product_label", "label", "product:1", "label:1"},
    ),
    "core": (lambda s: s.execute(product_label.select()), {"product_label"}),
    "a link by its key": (
        lambda s: s.execute(product_label.select().filter_by(product_id=1, label_id=2)),
        {"product_label.label_id:2;product_label.product_id:1", "product_label:*"},
    ),
    "text that says what it reads": (
        lambda s: s.execute(sa.text("select 1 from label"), execution_options={"asynctag_tables": [Label]}),
        {"label"},
    ),
    "text in a condition": (lambda s: s.execute(sa.select(Label.id).where(sa.text("id > 0"))), {"label"}),
}


@pytest.mark.parametrize("name", READS)
async def test_what_is_read_tags_the_computation(cache: Cache, tagging: Sessions, name: str) -> None:
    """Look-ups by key with the row, everything else with its tables, and with the rows of which objects are made."""
    action, tags = READS[name]

    async def compute() -> None:
        async with tagging() as session:
            await action(session)

    await cache.get_or_set("k", compute)
    assert await tags_of(cache) == tags


UNSEEN: dict[str, Any] = {
    "text": lambda s: s.execute(sa.text("select 1 from label")),
    "of the driver": lambda s: s.run_sync(lambda one: one.connection().exec_driver_sql("select 1 from label").all()),
    "a subquery as text": lambda s: s.execute(sa.select(Label.id).where(sa.text("id in (select id from product)"))),
    "a table as text": lambda s: s.execute(sa.select(product_label.c.label_id).select_from(sa.text("product"))),
    "a column as text": lambda s: s.execute(sa.select(Label.id, sa.literal_column("(select max(id) from product)"))),
    "an entity from text": lambda s: s.execute(sa.select(Label).from_statement(sa.text("select * from label"))),
    "a function": lambda s: s.execute(sa.select(sa.func.total_changes())),
}


@pytest.mark.parametrize("name", UNSEEN)
async def test_what_cannot_be_seen_is_not_stored(
    cache: Cache, tagging: Sessions, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """It says so once a statement, and what to do."""

    async def compute() -> None:
        async with tagging() as session:
            await UNSEEN[name](session)

    for _ in range(2):
        await cache.get_or_set("k", compute)
    await assert_miss(cache, "k")
    [record] = caplog.records
    assert "which tables this statement reads" in record.getMessage()
    assert "asynctag_tables=[Product]" in record.getMessage()


async def test_a_session_that_was_opened_outside(
    cache: Cache, tagging: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have rows that fire no event: what reads with it is not stored. It says so once a function."""

    async with tagging() as session:
        for _ in range(2):
            await cache.get_or_set("k", lambda: price_of(session))
    await assert_miss(cache, "k")

    async def parent() -> int:
        async with tagging() as session:
            return await cache.get_or_set("child", lambda: price_of(session))

    await cache.get_or_set("parent", parent)
    await assert_miss(cache, "child")
    await assert_miss(cache, "parent")  # it might be; that what keeps its child out keeps it out too is safe
    assert [record.getMessage().split()[0] for record in caplog.records] == ["k", "child"]
    assert "Open the session inside" in caplog.text


async def test_outside_of_computations_nothing_is_said(tagging: Sessions, caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing to tag."""
    async with tagging() as session:
        await session.execute(sa.text("select 1"))
        await price_of(session)
    assert caplog.records == []


async def test_nested_computations_with_sessions_of_their_own(cache: Cache, tagging: Sessions) -> None:
    """Each has its tags, and the outer those of the inner."""

    async def inner() -> int:
        async with tagging() as session:
            return await price_of(session)

    async def outer() -> int:
        async with tagging() as session:
            await session.get(Label, 1)
            return await cache.get_or_set("inner", inner)

    await cache.get_or_set("outer", outer)
    assert await tags_of(cache, "outer") == {"label:1", "label:*", "product:1", "product:*"}


async def test_tags_are_of_the_units_cache(backend: Told, cache: Cache, maker: Maker) -> None:
    """Where a function of another namespace reads: they have to be those that its changes invalidate."""
    sessions = UnitsOfWork(cache, maker, tag_reads=True)
    others = Cache(backend, default_ttl=100, namespace="other")

    async def compute() -> int:
        async with sessions() as session:
            return await price_of(session)

    assert await others.get_or_set("k", compute) == 1
    await assert_hit(others, "k")
    async with sessions.begin() as session:
        (await session.get_one(Product, 1)).price = 7
    assert await others.get_or_set("k", compute) == 7


# --- without an event loop -----------------------------------------------------------------------------


@pytest.fixture
def sync_maker(url: str) -> Iterator[sessionmaker[Session]]:
    engine = sa.create_engine(url.replace("+aiosqlite", ""), poolclass=NullPool)
    yield sessionmaker(engine)
    engine.dispose()


def in_thread(work: Callable[[], None]) -> None:
    """Run it where no event loop does."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("end", ["begin", "commit", "rollback", "error"])
async def test_sync_sessions(cache: Cache, backend: Told, sync_maker: sessionmaker[Session], end: str) -> None:
    """The same, with plain calls."""
    await store(cache, "product:1", "label:*")
    held: list[int] = []

    def change(session: Session) -> None:
        session.get_one(Product, 1).price = 7
        session.flush()
        session.execute(sa.update(Label).values(name="x"))
        held.append(len(backend._leases))
        assert any(not block.over for block in renewer._due)  # by a thread, as long as it lasts

    def work() -> None:
        sessions = UnitsOfWork(cache, sync_maker)
        if end == "begin":
            with sessions.begin() as session:
                change(session)
            return
        with sessions() as session:
            change(session)
            if end == "error":
                raise KeyError
            getattr(session, end)()
            held.append(len(backend._leases))

    if end == "error":
        with pytest.raises(KeyError):
            in_thread(work)
    else:
        in_thread(work)
    assert held[0] == 5  # product, product:1, of_category:1, label, label:*
    assert held[1:] == ([] if end in ("begin", "error") else [0])
    assert await fates(cache, "product:1", "label:*") == [GONE, GONE]
    assert [what for what in backend.asked if what in ("lease", "release")] == ["lease", "lease", "release"]


async def test_a_sync_session_of_others(cache: Cache, sync_maker: sessionmaker[Session]) -> None:
    """And one that fails as it commits."""
    await store(cache, "product:1")

    def work() -> None:
        with unit_of_work(cache, sync_maker()) as session:
            session.get_one(Product, 1).price = 7
            session.flush()
            session.add(Label(id=1))
            session.commit()

    with pytest.raises(sa.exc.IntegrityError):
        in_thread(work)
    assert await fates(cache, "product:1") == [GONE]
