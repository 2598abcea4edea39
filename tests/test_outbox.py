"""The outbox on SQLite, with the cache in memory: what is written with a change, and what a relay makes of it."""

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from anyio.lowlevel import checkpoint
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.schema import CreateTable

from asynctag import BackendError, Cache, Cause, ConfigurationError, InvalidationError, InvalidTagError, LifecycleError
from asynctag.backends.memory import MemoryBackend
from asynctag.integrations import outbox as outbox_module
from asynctag.integrations.outbox import Outbox
from asynctag.scope import current_scope
from asynctag.testing import FakeClock

pytestmark = pytest.mark.anyio
asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int] = mapped_column(unique=True)


outbox = Outbox(Base)


class Server(MemoryBackend):
    """Stands for a backend that may not answer. `written` has what was invalidated, by the calls that it came in."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock())
        self.down = False
        self.written: list[list[str]] = []
        #: Called before each answer.
        self.pause: Callable[[], Any] = checkpoint

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        names = list(tags)
        await self.pause()
        if self.down:
            raise BackendError("no answer")
        await super().invalidate(names, soft=soft)
        self.written.append(names)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def cache(server: Server) -> Cache:
    return Cache(server, default_ttl=60)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = sa.create_engine(f"sqlite:///{tmp_path / 'shop.sqlite'}", connect_args={"timeout": 0})
    Base.metadata.create_all(made)
    yield made
    made.dispose()


@pytest.fixture
async def async_engine(engine: sa.Engine) -> AsyncIterator[AsyncEngine]:
    """On the same file."""
    made = create_async_engine(engine.url.set(drivername="sqlite+aiosqlite"), connect_args={"timeout": 0})
    yield made
    await made.dispose()


def rows(engine: sa.Engine, table: sa.Table = outbox.table) -> list[tuple[str, str | None]]:
    with engine.connect() as connection:
        found = connection.execute(sa.select(table.c.tags, table.c.namespace).order_by(table.c.id))
        return [(tags, namespace) for tags, namespace in found]


def put(engine: sa.Engine, *tags: str, **options: Any) -> None:
    """A row in a transaction of its own, which is committed."""
    with Session(engine) as session:
        outbox.add(session, *tags, **options)
        session.commit()


def by_hand(engine: sa.Engine, statement: str, *parameters: Any) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(statement, parameters)


async def fill(cache: Cache, key: str = "page", tag: str = "product:1") -> None:
    """Have something cached that depends on a tag."""

    async def compute() -> int:
        return 1

    await cache.get_or_set(key, compute, tags=[tag])
    assert (await cache.explain(key)).hit


async def cause(cache: Cache, key: str = "page") -> Cause | None:
    explained = await cache.explain(key)
    return None if explained.hit else explained.cause


# --- the table -----------------------------------------------------------------------------------------


def test_the_table_is_one_of_the_applications(engine: sa.Engine) -> None:
    """By the base class or the metadata, in its schema: whoever makes the tables makes this one."""
    assert Base.metadata.tables["asynctag_outbox"] is outbox.table
    assert "asynctag_outbox" in sa.inspect(engine).get_table_names()
    metadata = sa.MetaData()
    assert Outbox(metadata, "gone", schema="shop").table is metadata.tables["shop.gone"]
    assert Outbox(sa.MetaData(schema="own")).table.fullname == "own.asynctag_outbox"


@pytest.mark.parametrize("dialect", [postgresql.dialect(), mysql.dialect()], ids=lambda dialect: dialect.name)
def test_the_table_is_for_other_databases_too(dialect: sa.Dialect) -> None:
    """With a number of 64 bits that the database gives."""
    made = str(CreateTable(outbox.table).compile(dialect=dialect))
    assert ("id BIGSERIAL" in made) or ("id BIGINT NOT NULL AUTO_INCREMENT" in made)
    assert "PRIMARY KEY (id)" in made


@pytest.mark.parametrize(
    ("name", "locked"), [("postgresql", True), ("mysql", True), ("mariadb", True), ("sqlite", False), ("oracle", False)]
)
def test_rows_are_locked_where_that_is_had(name: str, *, locked: bool) -> None:
    """Those of others are skipped, and not waited for."""
    statement = str(outbox._next(1, name).compile(dialect=mysql.dialect()))
    assert statement.endswith("FOR UPDATE SKIP LOCKED") is locked


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: Outbox(Product.__table__.c), "MetaData"),
        (lambda: Outbox(None), "MetaData"),
        (lambda: Outbox(Base), "'asynctag_outbox' already"),
        (lambda: Outbox(sa.MetaData(), ""), "name"),
        (lambda: Outbox(sa.MetaData(), namespace="a b"), "namespace='a b'"),
    ],
)
def test_what_cannot_be_meant(given: Callable[[], object], said: str) -> None:
    """Is refused as the module is imported, by its name."""
    with pytest.raises(ConfigurationError, match=said):
        given()


def test_numbers_are_never_given_twice(engine: sa.Engine) -> None:
    """A relay that has read a row deletes it by its number: it must not be that of a new one by then."""
    numbers = []
    for _ in range(2):
        with engine.begin() as connection:
            outbox.add(connection, "x")
            numbers.append(connection.scalar(sa.select(sa.func.max(outbox.table.c.id))))
            connection.execute(sa.delete(outbox.table))
    assert numbers[0] < numbers[1]


# --- what is written -----------------------------------------------------------------------------------


def test_tags_are_committed_with_the_change(engine: sa.Engine) -> None:
    """All of it, or nothing."""
    with Session(engine) as session:
        session.add(Product(id=1, price=7))
        outbox.add(session, "product:1", "products", "product:1")
        assert rows(engine) == []
        session.commit()
    assert rows(engine) == [('["product:1","products"]', "")]
    with Session(engine) as session:
        session.add(Product(id=2, price=7))
        outbox.add(session, "product:2")
        with pytest.raises(IntegrityError):
            session.commit()
    with Session(engine) as session:
        outbox.add(session, "product:3")
        session.flush()
        session.rollback()
    assert len(rows(engine)) == 1


@asyncio_only
async def test_it_is_for_async_sessions_too(engine: sa.Engine, async_engine: AsyncEngine) -> None:
    """Without an await: the row goes with the flush. Connections of both kinds, and sessions of a scope."""
    async with AsyncSession(async_engine) as session:
        outbox.add(session, "a")
        await session.commit()
    async with async_engine.begin() as connection:
        await connection.run_sync(outbox.add, "b")
    scoped = async_scoped_session(async_sessionmaker(async_engine), scopefunc=lambda: 1)
    outbox.add(scoped, "c")
    await scoped.commit()
    await scoped.remove()
    in_thread = scoped_session(sessionmaker(engine))
    outbox.add(in_thread, "d")
    in_thread.commit()
    in_thread.remove()
    assert [tags for tags, _ in rows(engine)] == ['["a"]', '["b"]', '["c"]', '["d"]']


@asyncio_only
async def test_what_is_no_session_is_refused(async_engine: AsyncEngine) -> None:
    """Saying what to give."""
    async with async_engine.connect() as connection:
        for given in (connection, async_engine, None):
            with pytest.raises(ConfigurationError, match="run_sync"):
                outbox.add(given, "x")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=r"add\(\)"):
            outbox.write(connection, ["|t|x"])  # type: ignore[arg-type]


def test_tags_are_checked_at_once(engine: sa.Engine) -> None:
    """Not by the relay, which nobody asks."""
    with Session(engine) as session:
        for tags in ((), ("",), (1,), ("x" * 2000,)):
            with pytest.raises(InvalidTagError):
                outbox.add(session, *tags)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError):
            outbox.add(session, "x", namespace="a b")
        assert not session.new


def test_long_lists_take_several_rows(engine: sa.Engine) -> None:
    """None is longer than the shortest text that a database has, whatever is in the tags, and every tag is there."""
    tags = [f"{number:03}" + "é" * 500 for number in range(40)]
    put(engine, *tags)
    written = [text for text, _ in rows(engine)]
    assert len(written) > 1
    assert all(len(text) < 65_536 and text.isascii() for text in written)
    with engine.connect() as connection:
        batch = outbox._take(None, connection)
    assert list(batch.names) == [f"|t|{tag}" for tag in tags]


async def test_what_a_block_holds_is_written(engine: sa.Engine, cache: Cache) -> None:
    """All of it, keys and functions as well, as the backend has them. A relay that comes later invalidates it."""

    @cache.cached(ttl=60, name="price_of")
    async def price(product_id: int) -> int:
        return product_id

    await price(1)
    await fill(cache)
    with Session(engine) as session:
        async with cache.transaction():
            await cache.invalidate("product:1")
            await price.invalidate(1)
            outbox.add_held(session, cache)
            session.commit()
    [(written, namespace)] = rows(engine)
    assert "|t|product:1" in written
    assert namespace is None
    await price(1)
    await fill(cache)
    assert await outbox.deliver(cache, engine) == 1
    assert await cause(cache) is Cause.INVALIDATED
    assert not (await price.explain(1)).hit


async def test_there_must_be_a_block(engine: sa.Engine, cache: Cache) -> None:
    """One on the cache's backend, which is under way."""
    with Session(engine) as session:
        with pytest.raises(LifecycleError, match="transaction"):
            outbox.add_held(session, cache)
        async with Cache(MemoryBackend()).transaction():
            with pytest.raises(LifecycleError, match="transaction"):
                outbox.add_held(session, cache)


# --- what handlers write ---------------------------------------------------------------------------------


def test_names_are_written_at_once(engine: sa.Engine) -> None:
    """In the transaction, and once in it: what has been written need not be remembered by who writes."""
    with Session(engine) as session:
        outbox.write(session, ["|t|a", "|t|b"])
        assert session.scalar(sa.select(sa.func.count()).select_from(outbox.table)) == 1
        outbox.write(session, ["|t|b", "shop|n|", "|t|a"])
        outbox.write(session, ["|t|b"])
        session.commit()
        outbox.write(session, ["|t|a"])
        session.commit()
    assert rows(engine) == [('["|t|a","|t|b"]', None), ('["shop|n|"]', None), ('["|t|a"]', None)]


def test_names_of_a_savepoint_are_written_again(engine: sa.Engine) -> None:
    """Where it was rolled back they are gone with it, and what is changed again needs them again."""
    with Session(engine) as session:
        by_the_driver = session.connection().exec_driver_sql
        by_the_driver("BEGIN")  # which the driver leaves to the first change, after the savepoint
        outbox.write(session, ["|t|a"])
        with session.begin_nested() as savepoint:
            outbox.write(session, ["|t|a", "|t|b"])
            savepoint.rollback()
        outbox.write(session, ["|t|a", "|t|b"])
        with session.begin_nested():
            outbox.write(session, ["|t|b", "|t|c"])
        session.commit()
    assert rows(engine) == [('["|t|a"]', None), ('["|t|b"]', None), ('["|t|c"]', None)]


@asyncio_only
async def test_handlers_of_async_sessions_write(engine: sa.Engine, async_engine: AsyncEngine) -> None:
    """As the session flushes, and on a connection as a statement is sent."""

    class Followed(Session):
        pass

    @sa.event.listens_for(Followed, "after_flush")
    def flushed(session: Session, context: object) -> None:
        outbox.write(session, [f"|t|product:{one.id}" for one in session.new if isinstance(one, Product)])

    @sa.event.listens_for(async_engine.sync_engine, "before_cursor_execute")
    def sent(connection: sa.Connection, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("UPDATE"):
            outbox.write(connection, ["|t|products"])

    async with AsyncSession(async_engine, sync_session_class=Followed) as session:
        session.add(Product(id=1, price=1))
        await session.commit()
        await session.execute(sa.update(Product).values(price=2))
        await session.commit()
    assert rows(engine) == [('["|t|product:1"]', None), ('["|t|products"]', None)]


@pytest.mark.parametrize("name", ["product:1", "|x|product:1", "|t|", "a b|t|x", 1, "|t|" + "x" * 2000])
def test_what_is_no_name_is_refused(engine: sa.Engine, name: Any) -> None:
    """Before anything is written."""
    with engine.begin() as connection:
        with pytest.raises((InvalidTagError, ConfigurationError)):
            outbox.write(connection, ["|t|a", name])
    assert rows(engine) == []


# --- what is delivered -----------------------------------------------------------------------------------


async def test_what_is_there_is_invalidated_and_deleted(engine: sa.Engine, cache: Cache, server: Server) -> None:
    """Once, and what comes later by the next time."""
    await fill(cache)
    put(engine, "product:1", "products")
    put(engine, "product:1")
    assert await outbox.deliver(cache, engine) == 2
    assert await cause(cache) is Cause.INVALIDATED
    assert server.written == [["|t|product:1", "|t|products"]]
    assert rows(engine) == []
    assert await outbox.deliver(cache, engine) == 0
    assert len(server.written) == 1


@asyncio_only
async def test_it_is_for_async_engines_too(async_engine: AsyncEngine, engine: sa.Engine, cache: Cache) -> None:
    """The same."""
    await fill(cache)
    put(engine, "product:1")
    assert await outbox.deliver(cache, async_engine) == 1
    assert await cause(cache) is Cause.INVALIDATED
    assert rows(engine) == []


async def test_others_may_write_rows(engine: sa.Engine, cache: Cache) -> None:
    """A trigger, or a program in another language."""
    by_hand(
        engine,
        "CREATE TRIGGER changed AFTER INSERT ON product BEGIN "
        "INSERT INTO asynctag_outbox (tags) VALUES (json_array('product:' || NEW.id)); END",
    )
    await fill(cache)
    by_hand(engine, "INSERT INTO product VALUES (1, 7)")
    assert await outbox.deliver(cache, engine) == 1
    assert await cause(cache) is Cause.INVALIDATED


async def test_each_tag_is_of_its_namespace(engine: sa.Engine, server: Server) -> None:
    """That of the outbox, unless told; a cache delivers those of others on its backend."""
    shop = Cache(server, namespace="shop")
    metadata = sa.MetaData()
    of_the_shop = Outbox(metadata, "of_the_shop", namespace="shop")
    metadata.create_all(engine)
    with engine.begin() as connection:
        of_the_shop.add(connection, "a")
        of_the_shop.add(connection, "b", namespace="")
    assert await of_the_shop.deliver(shop, engine) == 2
    assert server.written == [["shop|t|a", "|t|b"]]


async def test_a_cache_of_another_namespace_is_refused(engine: sa.Engine, server: Server, cache: Cache) -> None:
    """Its tags would be others than those that were written. So is what is no cache and no engine."""
    with pytest.raises(ConfigurationError, match="'shop'"):
        await outbox.deliver(Cache(server, namespace="shop"), engine)
    with pytest.raises(ConfigurationError, match="'shop'"):
        outbox.relay(Cache(server, namespace="shop"), engine)
    with pytest.raises(ConfigurationError, match="engine"):
        await outbox.deliver(engine, cache)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="engine"):
        await outbox.deliver(cache, Session(engine))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="every"):
        outbox.relay(cache, engine, every=0)


async def test_a_transaction_around_holds_nothing_back(engine: sa.Engine, cache: Cache, server: Server) -> None:
    """What is deleted has been invalidated, and is not only held until some block's end."""
    put(engine, "product:1")
    async with cache.transaction():
        await outbox.deliver(cache, engine)
        assert server.written == [["|t|product:1"]]


async def test_the_lag_of_replicas_counts(engine: sa.Engine, server: Server) -> None:
    """What a reader finds on a replica just after the relay may be old."""
    lagging = Cache(server, default_ttl=60, replica_lag=8)
    await fill(lagging)
    put(engine, "product:1")
    await outbox.deliver(lagging, engine)
    assert await cause(lagging) is Cause.LEASED


async def test_many_rows_go_in_batches(
    engine: sa.Engine, cache: Cache, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is deleted as soon as it is invalidated; so many names at once that no server is held up."""
    monkeypatch.setattr(outbox_module, "BATCH", 2)
    monkeypatch.setattr(outbox_module, "MOST_AT_ONCE", 3)
    for number in range(5):
        put(engine, f"a{number}", f"b{number}")
    left: list[int] = []

    async def look() -> None:
        left.append(len(rows(engine)))

    server.pause = look
    assert await outbox.deliver(cache, engine) == 5
    assert left == [5, 5, 3, 3, 1]
    assert list(map(len, server.written)) == [3, 1, 3, 1, 2]


async def test_hooks_are_told(engine: sa.Engine, cache: Cache) -> None:
    """Those that purge a CDN, say."""
    told: list[tuple[str, ...]] = []
    cache.after_invalidation(told.append)
    put(engine, "product:1", "products")
    await outbox.deliver(cache, engine)
    assert told == [("product:1", "products")]


async def test_a_hook_that_fails_stops_no_others(
    engine: sa.Engine, cache: Cache, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows stay, so that it is called again; the backend has been told of everything."""
    monkeypatch.setattr(outbox_module, "BATCH", 1)

    @cache.after_invalidation
    def purge(tags: tuple[str, ...]) -> None:
        if tags == ("a",):
            raise RuntimeError("the CDN says no")

    put(engine, "a")
    put(engine, "b")
    with pytest.raises(RuntimeError, match="the CDN"):
        await outbox.deliver(cache, engine)
    assert server.written == [["|t|a"], ["|t|b"]]
    assert [tags for tags, _ in rows(engine)] == ['["a"]']


async def test_rows_stay_while_the_backend_is_down(engine: sa.Engine, cache: Cache, server: Server) -> None:
    """Nothing is deleted that was not acknowledged."""
    await fill(cache)
    put(engine, "product:1")
    server.down = True
    with pytest.raises(InvalidationError):
        await outbox.deliver(cache, engine)
    assert len(rows(engine)) == 1
    server.down = False
    assert await outbox.deliver(cache, engine) == 1
    assert await cause(cache) is Cause.INVALIDATED


@asyncio_only
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_who_is_cancelled_loses_nothing(
    engine: sa.Engine, async_engine: AsyncEngine, cache: Cache, server: Server, kind: str
) -> None:
    """The row stays, and the connection goes back whole."""
    put(engine, "product:1")
    used: Any = async_engine if kind == "async" else engine
    asked = anyio.Event()

    async def never() -> None:
        asked.set()
        await anyio.sleep_forever()

    server.pause = never
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(outbox.deliver, cache, used)
            await asked.wait()
            assert used.pool.checkedout() == 1
            scope.cancel()
    assert scope.cancelled_caught
    assert len(rows(engine)) == 1
    assert used.pool.checkedout() == 0
    connected: list[object] = []
    sa.event.listen(used.pool, "connect", lambda made, record: connected.append(made))
    server.pause = checkpoint
    assert await outbox.deliver(cache, used) == 1
    assert not connected


@pytest.mark.parametrize("begins", [False, True])
async def test_nobody_waits_for_a_relay(engine: sa.Engine, cache: Cache, server: Server, *, begins: bool) -> None:
    """While it waits for the backend, others write; and what they write is not deleted with what it has read.

    Also where transactions begin with a BEGIN, which pysqlite leaves out for those that only read.
    """
    if begins:

        @sa.event.listens_for(engine, "begin")
        def begun(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

    put(engine, "a")

    async def pause() -> None:
        server.pause = checkpoint
        assert await outbox.deliver(cache, engine) == 1  # another relay
        put(engine, "b")

    server.pause = pause
    assert await outbox.deliver(cache, engine) == 1
    assert [tags for tags, _ in rows(engine)] == ['["b"]']


# --- rows that cannot be read -------------------------------------------------------------------------------

JUNK: dict[str, tuple[Any, Any]] = {
    "no JSON": ("product:1", ""),
    "empty": ("", ""),
    "no list": ('{"product": 1}', ""),
    "one text": ('"product:1"', ""),
    "no texts": ("[1]", ""),
    "no tag": ('[""]', ""),
    "a tag that is too long": (f'["{"x" * 2000}"]', ""),
    "a lone surrogate": ('["\\ud800"]', ""),
    "too deep": ("[" * 100_000, ""),
    "too large a number": (f"[{'9' * 5000}]", ""),
    "no namespace": ('["x"]', "ä b"),
    "no names": ('["product:1"]', None),
    "a kind that is none": ('["|x|product:1"]', None),
    "names in no namespace": ('["a b|t|x"]', None),
    "no UTF-8": (b"\xff", ""),
    "a namespace in no UTF-8": ('["x"]', b"\xff"),
    "a number": (5, ""),
}


@pytest.mark.parametrize("kind", JUNK)
async def test_junk_stops_no_others(
    engine: sa.Engine, cache: Cache, server: Server, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, with its number, and stays for whoever can make something of it."""
    put(engine, "a")
    by_hand(
        engine, "INSERT INTO asynctag_outbox (tags, namespace) VALUES (CAST(? AS TEXT), CAST(? AS TEXT))", *JUNK[kind]
    )
    put(engine, "b")
    with caplog.at_level(logging.INFO, "asynctag"):
        assert await outbox.deliver(cache, engine) == 2
        assert await outbox.deliver(cache, engine) == 0
    assert server.written == [["|t|a", "|t|b"]]
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "the row 2 of the outbox asynctag_outbox" in record.getMessage()
    with engine.connect() as connection:
        [(number, problem)] = connection.execute(sa.select(outbox.table.c.id, outbox.table.c.problem))
    assert number == 2
    assert problem
    assert problem.isascii()
    assert problem in record.getMessage()

    by_hand(engine, "UPDATE asynctag_outbox SET tags = '[\"c\"]', namespace = '', problem = NULL")
    assert await outbox.deliver(cache, engine) == 1
    assert server.written[1:] == [["|t|c"]]
    assert rows(engine) == []


async def test_junk_is_passed(engine: sa.Engine, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a batch has nothing else in it."""
    monkeypatch.setattr(outbox_module, "BATCH", 1)
    for _ in range(3):
        by_hand(engine, "INSERT INTO asynctag_outbox (tags) VALUES ('x')")
    put(engine, "a")
    assert await outbox.deliver(cache, engine) == 1
    with engine.connect() as connection:
        assert all(connection.scalars(sa.select(outbox.table.c.problem)).all())


async def test_an_empty_list_is_done(engine: sa.Engine, cache: Cache, server: Server) -> None:
    """It says that there is nothing to invalidate."""
    by_hand(engine, "INSERT INTO asynctag_outbox (tags) VALUES ('[]')")
    assert await outbox.deliver(cache, engine) == 1
    assert server.written == []
    assert rows(engine) == []


# --- the relay ---------------------------------------------------------------------------------------------


class Sleeps:
    """Stands for `sleep`: says for how long, and is woken by the test."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.scopes: list[object] = []
        self._asleep = anyio.Event()
        self._woken = anyio.Event()

    async def __call__(self, delay: float) -> None:
        self.delays.append(delay)
        self.scopes.append(current_scope.get())
        self._woken = anyio.Event()
        self._asleep.set()
        await self._woken.wait()

    async def pass_by(self) -> None:
        """Until the relay sleeps for the first time, or again after it was woken."""
        self._woken.set()
        await self._asleep.wait()
        self._asleep = anyio.Event()


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> Sleeps:
    sleeps = Sleeps()
    monkeypatch.setattr(outbox_module, "sleep", sleeps)
    return sleeps


async def test_the_relay_delivers_what_comes(engine: sa.Engine, cache: Cache, server: Server, sleeps: Sleeps) -> None:
    """At once as it begins, and every so many seconds; nothing of what goes on around it reaches it."""
    put(engine, "a")
    with anyio.fail_after(5):
        async with cache.transaction(), outbox.relay(cache, engine, every=3):
            await sleeps.pass_by()
            assert server.written == [["|t|a"]]
            put(engine, "b")
            await sleeps.pass_by()
            assert server.written == [["|t|a"], ["|t|b"]]
            await sleeps.pass_by()
    assert sleeps.delays == [3, 3, 3]
    assert sleeps.scopes == [None] * 3


async def test_the_relay_goes_on_trying(
    engine: sa.Engine, cache: Cache, server: Server, sleeps: Sleeps, caplog: pytest.LogCaptureFixture
) -> None:
    """Less and less often, with a warning each time, until the backend is back; then as before."""
    put(engine, "product:1")
    server.down = True
    with anyio.fail_after(5), caplog.at_level(logging.INFO, "asynctag"):
        async with outbox.relay(cache, engine, every=3):
            for _ in range(7):
                await sleeps.pass_by()
            assert len(rows(engine)) == 1
            server.down = False
            await sleeps.pass_by()
            assert rows(engine) == []
            server.down = True
            put(engine, "product:1")
            await sleeps.pass_by()
    assert sleeps.delays == [3, 6, 12, 24, 48, 60, 60, 3, 3]
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING"] * 7 + ["INFO", "WARNING"]
    assert "is not delivered (no answer). What is in it stays" in caplog.messages[0]
    assert not any(record.exc_info for record in caplog.records)


async def test_the_relay_lives_with_a_database_that_is_down(
    engine: sa.Engine, cache: Cache, sleeps: Sleeps, caplog: pytest.LogCaptureFixture
) -> None:
    """Or has no such table yet. The message is of one line."""
    by_hand(engine, "DROP TABLE asynctag_outbox")
    with pytest.raises(OperationalError):
        await outbox.deliver(cache, engine)
    with anyio.fail_after(5):
        async with outbox.relay(cache, engine):
            await sleeps.pass_by()
            assert caplog.messages == [
                "the outbox asynctag_outbox is not delivered (no such table: asynctag_outbox). What is in it "
                "stays, and is tried again in 1 s"
            ]
            Base.metadata.create_all(engine)
            put(engine, "a")
            await sleeps.pass_by()
            assert rows(engine) == []


async def test_a_hook_that_fails_is_told_whole(
    engine: sa.Engine, cache: Cache, sleeps: Sleeps, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody else would know where."""

    @cache.after_invalidation
    def purge(tags: tuple[str, ...]) -> None:
        raise RuntimeError("the CDN says no")

    put(engine, "a")
    with anyio.fail_after(5):
        async with outbox.relay(cache, engine):
            await sleeps.pass_by()
    assert caplog.records[0].exc_info
    assert len(rows(engine)) == 1


async def test_what_the_block_raises_stays_what_it_is(engine: sa.Engine, cache: Cache, sleeps: Sleeps) -> None:
    """And the relay ends with it."""

    async def work() -> None:
        async with outbox.relay(cache, engine):
            await sleeps.pass_by()
            raise KeyError

    with anyio.fail_after(5), pytest.raises(KeyError):
        await work()


async def test_who_is_cancelled_ends_the_relay(engine: sa.Engine, cache: Cache, sleeps: Sleeps) -> None:
    """And is cancelled."""
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with outbox.relay(cache, engine):
            await sleeps.pass_by()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught


def test_databases_may_be_told_by_class(engine: sa.Engine) -> None:
    """Of a session with several, the outbox's is named by its table."""
    with Session(binds={Base: engine, outbox.table: engine}) as session:
        session.add(Product(id=1, price=1))
        outbox.add(session, "a")
        outbox.write(session, ["|t|b"])
        session.commit()
    assert len(rows(engine)) == 2
