"""An outbox: what is to be invalidated is committed with the change itself, and a relay invalidates it afterwards.

Who commits and then invalidates may die in between, or find no backend. A row in the same transaction outlives that.
Whoever commits still invalidates at once, as without an outbox. The relay does it once more, and deletes the row when
that is acknowledged: at least once, never less.

No row is passed over. A row that can be seen is committed, whatever its number, so each pass of the relay reads what is
there from the start, and remembers nothing: a lower number that is committed later is found then. The order among rows
does not matter, since no invalidation undoes another.
"""

import json
import logging
import reprlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from anyio import CancelScope, create_task_group, sleep, to_thread

try:
    import sqlalchemy as sa
except ModuleNotFoundError as error:  # pragma: no cover - depends on what is installed
    raise ModuleNotFoundError(
        "asynctag.integrations.outbox needs SQLAlchemy: pip install asynctag[sqlalchemy]"
    ) from error
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, SessionTransaction, registry, scoped_session

from asynctag.cache import Cache
from asynctag.errors import BackendError, ConfigurationError, InvalidationError, InvalidTagError, LifecycleError
from asynctag.expiry import Seconds, seconds
from asynctag.names import FUNCTION, KEY, NAMESPACE, TAG, check_namespace, tag_name
from asynctag.scope import current_scope
from asynctag.tags import check_tag, check_tags
from asynctag.transaction import open_block

__all__ = ["Outbox"]

logger = logging.getLogger("asynctag")

#: How many rows are read at a time.
BATCH: Final = 500

#: How many names are invalidated in one step, at most.
MOST_AT_ONCE: Final = 1_000

#: Characters of JSON in one row, at most: MySQL's TEXT holds 65,535.
MAX_TEXT: Final = 60_000

#: Seconds that the relay waits after failures, at most.
LONGEST_PAUSE: Final = 60.0

#: In the `info` of a table: it is an outbox, which nothing cached depends on.
IS_OUTBOX: Final = "asynctag.outbox"

#: They have FOR UPDATE SKIP LOCKED: relays keep the rows of a batch for themselves until it is done.
LOCKING: Final = frozenset({"postgresql", "mysql", "mariadb"})

AnySession: TypeAlias = Session | AsyncSession | scoped_session[Any] | async_scoped_session[Any]

#: Runs a function of a plain connection, on one that is open.
Run: TypeAlias = Callable[[Callable[[sa.Connection], Any]], Awaitable[Any]]


class Outbox:
    """A table of tags that are to be invalidated, and the relay that does it.

    `metadata` is the application's, or the base class of its models: `create_all` and Alembic see the table there.
    `name` and `schema` are the table's. `namespace` is that of the cache whose tags `add` takes. One outbox belongs to
    one backend of caches.

    | column | holds |
    | --- | --- |
    | `id` | a number that is never given twice |
    | `tags` | a JSON list of tags, as text |
    | `namespace` | that of the tags, `''` unless told; NULL: they are names as the backend has them |
    | `written_at` | when, by the database's clock |
    | `problem` | why the row cannot be read, where it cannot: the relay leaves it alone then |

    Others may write rows too, such as a trigger: `INSERT INTO asynctag_outbox (tags) VALUES ('["product:635"]')`.

    Raises `ConfigurationError` for values that cannot be meant.
    """

    def __init__(
        self, metadata: Any, name: str = "asynctag_outbox", *, schema: str | None = None, namespace: str = ""
    ) -> None:
        found = getattr(metadata, "metadata", metadata)
        if not isinstance(found, sa.MetaData):
            raise ConfigurationError(
                f"Outbox({reprlib.repr(metadata)}): give the MetaData of your tables, or the base class of your models"
            )
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"Outbox(name={name!r}): give the name of a table, such as 'asynctag_outbox'")
        self.namespace = check_namespace(namespace)
        full_name = f"{schema or found.schema}.{name}" if schema or found.schema else name
        if full_name in found.tables:
            raise ConfigurationError(f"there is a table {full_name!r} already: give the outbox another name=")
        #: The table.
        self.table = sa.Table(
            name,
            found,
            sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
            sa.Column("tags", sa.Text, nullable=False),
            sa.Column("namespace", sa.String(100), server_default=""),
            sa.Column("written_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
            sa.Column("problem", sa.Text),
            schema=schema,
            info={IS_OUTBOX: True},
            # A number that is given again would have its new row deleted, by a relay that has read the old one.
            sqlite_autoincrement=True,
        )
        self._row: type[Any] = type("OutboxRow", (), {"__doc__": f"A row of {full_name}."})
        registry(metadata=found).map_imperatively(self._row, self.table)
        # What was written at once: with a transaction, or a savepoint, that is rolled back it is forgotten.
        self._written: WeakKeyDictionary[SessionTransaction, set[str]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<Outbox {self.table.fullname}, namespace={self.namespace!r}>"

    # --- what is written -----------------------------------------------------------------------------

    def add(self, session: AnySession | sa.Connection, *tags: str, namespace: str | None = None) -> None:
        """Have `tags` invalidated once the transaction of `session` is committed, whatever happens then.

        The row goes with the session's next flush, which the commit makes at the latest; on a `Connection` at once. On
        an `AsyncConnection`: `await connection.run_sync(outbox.add, "product:635")`. `namespace`: instead of the
        outbox's. This does not invalidate by itself: go on doing so, and nobody has to wait for the relay.

        Raises `InvalidTagError` for what is no tag, `ConfigurationError` for what is no session.
        """
        if not tags:
            raise InvalidTagError('add() got no tag: name one, such as add(session, "product:635")')
        space = self.namespace if namespace is None else check_namespace(namespace)
        self._put(session, check_tags(tags), space)

    def add_held(self, session: AnySession | sa.Connection, cache: Cache) -> None:
        """`add` all that `cache.transaction()` around holds by now: call it before the commit.

        What a cached function or a key invalidated is among it. Raises `LifecycleError` outside of such a block.
        """
        block = open_block(current_scope.get(), cache._filling().backend)
        if block is None:
            raise LifecycleError("add_held() is for within `async with cache.transaction():`, before the commit")
        self._put(session, list(block.root.names), None)

    def write(self, target: Session | sa.Connection, names: Iterable[str]) -> None:
        """Insert `names`, as the backend has them (`asynctag.names`), at once: for handlers of SQLAlchemy's events.

        In a session, what is there already in its transaction is not written again, unless that was in a savepoint
        of the session that has been rolled back. It does not know of savepoints of the connection itself.

        Raises `InvalidTagError` for what is no name, `ConfigurationError` for an async session or connection.
        """
        checked = list(dict.fromkeys(map(_check_name, names)))
        if isinstance(target, sa.Connection):
            self._insert(target, checked, None)
            return
        if not isinstance(target, Session):
            raise ConfigurationError(
                f"write({reprlib.repr(target)}): give a Session or a Connection, as handlers of events have, of an "
                "async one too. Elsewhere use add()"
            )
        connection = target.connection(bind_arguments={"mapper": sa.inspect(self._row)})
        innermost = target.get_nested_transaction() or target.get_transaction()
        known: set[str] = set()
        transaction = innermost
        while transaction is not None:
            known |= self._written.get(transaction, set())
            transaction = transaction.parent
        new = [name for name in checked if name not in known]
        self._insert(connection, new, None)
        if innermost is not None:
            self._written.setdefault(innermost, set()).update(new)

    def _put(self, target: AnySession | sa.Connection, texts: Collection[str], namespace: str | None) -> None:
        session: Any = target() if isinstance(target, scoped_session | async_scoped_session) else target
        if isinstance(session, AsyncSession):
            session = session.sync_session
        if isinstance(session, Session):
            for packed in _packed(texts):
                row = self._row()
                row.tags, row.namespace = packed, sa.null() if namespace is None else namespace
                session.add(row)
        elif isinstance(session, sa.Connection):
            self._insert(session, texts, namespace)
        else:
            raise ConfigurationError(
                f"{reprlib.repr(target)} is no session: give a Session, an AsyncSession or a Connection. An "
                "AsyncConnection has run_sync(outbox.add, ...)"
            )

    def _insert(self, connection: sa.Connection, texts: Collection[str], namespace: str | None) -> None:
        rows = [{"tags": packed, "namespace": namespace} for packed in _packed(texts)]
        if rows:
            connection.execute(sa.insert(self.table), rows)

    # --- what is delivered ---------------------------------------------------------------------------

    def relay(
        self, cache: Cache, engine: AsyncEngine | sa.Engine, *, every: Seconds = 1
    ) -> AbstractAsyncContextManager[None]:
        """Deliver what is there every so many seconds, as long as the block is open: `async with outbox.relay(...):`.

        Any number of processes may run one. What fails is logged, and tried again after pauses that double up to a
        minute. `engine` is to the database itself, and no replica.

        Raises `ConfigurationError` as `deliver` does, and where `every` (seconds, or a `timedelta`) is not above 0.
        """
        self._check(cache, engine)
        return self._relaying(cache, engine, seconds(every, "every", zero=False))

    @asynccontextmanager
    async def _relaying(self, cache: Cache, engine: AsyncEngine | sa.Engine, every: float) -> AsyncIterator[None]:
        group = create_task_group()
        await group.__aenter__()  # Not by `async with`, which would wrap what is raised in the block.
        try:
            context = copy_context()
            context.run(current_scope.set, None)
            context.run(group.start_soon, partial(self._go_on, cache, engine, every))
            yield
        finally:
            group.cancel_scope.cancel()
            await group.__aexit__(None, None, None)

    async def _go_on(self, cache: Cache, engine: AsyncEngine | sa.Engine, every: float) -> None:
        pause, failed = every, False
        while True:
            try:
                await self.deliver(cache, engine)
            except Exception as error:
                logger.warning(
                    "the outbox %s is not delivered (%s). What is in it stays, and is tried again in %.3g s",
                    self.table.fullname,
                    _in_short(error),
                    pause,
                    exc_info=None if isinstance(error, BackendError | SQLAlchemyError | OSError) else error,
                )
                failed = True
                await sleep(pause)
                pause = min(2 * pause, max(every, LONGEST_PAUSE))
            else:
                if failed:
                    logger.info("the outbox %s is delivered again", self.table.fullname)
                pause, failed = every, False
                await sleep(every)

    async def deliver(self, cache: Cache, engine: AsyncEngine | sa.Engine) -> int:
        """Invalidate what is committed by now, and delete it once that is acknowledged. How many rows.

        Rows that another relay has at hand are left to it. One that cannot be read stays, with the reason in its column
        `problem`, and is logged as an error. The cache's `replica_lag` counts, and its hooks (`after_invalidation`) are
        called: rows whose hook fails stay for the next time.

        Raises `InvalidationError` where the backend does not answer, SQLAlchemy's errors, and those of hooks after all
        other rows were delivered: the rows are all there then. `ConfigurationError` where the cache has another
        namespace than the outbox.
        """
        self._check(cache, engine)
        delivered, after, failed = 0, None, None
        while True:
            async with _connected(engine) as run:
                batch: _Batch = await run(partial(self._take, after))
                error = await self._invalidate(cache, list(batch.names))
                if error is None:
                    delivered += len(batch.ids)
                if batch.problems or (batch.ids and error is None):
                    await run(partial(self._finish, batch.ids if error is None else [], batch.problems))
            failed = failed or error
            after = batch.last
            if not batch.full:
                break
        if failed is not None:
            raise failed
        return delivered

    def _check(self, cache: object, engine: object) -> None:
        if not isinstance(cache, Cache) or not isinstance(engine, AsyncEngine | sa.Engine):
            given = reprlib.repr(engine if isinstance(cache, Cache) else cache)
            raise ConfigurationError(f"{given}: give a cache and an engine, as in deliver(cache, engine)")
        if cache.namespace != self.namespace:
            raise ConfigurationError(
                f"this outbox has tags of the namespace {self.namespace!r} and the cache is in {cache.namespace!r}: "
                f"give Outbox(..., namespace={cache.namespace!r}), or the cache of that namespace"
            )

    def _take(self, after: int | None, connection: sa.Connection) -> "_Batch":
        """The next rows after a number. They stay locked until the connection's transaction ends, where that is had."""
        dialect = connection.dialect.name
        if dialect in LOCKING:
            # Of a higher level would be locks of MySQL's that others' inserts wait for, and conflicts of PostgreSQL's.
            connection.execution_options(isolation_level="READ COMMITTED")
        batch = _Batch.of(connection.execute(self._next(after, dialect)))
        if dialect not in LOCKING:
            connection.rollback()  # Nothing is to be held while the backend is waited for.
        return batch

    def _next(self, after: int | None, dialect: str) -> sa.Select[Any]:
        columns: list[sa.ColumnElement[Any]] = [self.table.c.tags, self.table.c.namespace]
        if dialect == "sqlite":  # Where a text may be any bytes, on which the driver would fail.
            columns = [sa.cast(column, sa.LargeBinary) for column in columns]
        statement = sa.select(self.table.c.id, *columns).where(self.table.c.problem.is_(None))
        if after is not None:
            statement = statement.where(self.table.c.id > after)
        statement = statement.order_by(self.table.c.id).limit(BATCH)
        return statement.with_for_update(skip_locked=True) if dialect in LOCKING else statement

    def _finish(self, ids: list[int], problems: dict[int, str], connection: sa.Connection) -> None:
        if ids:
            connection.execute(sa.delete(self.table).where(self.table.c.id.in_(ids)))
        for number, problem in problems.items():
            connection.execute(sa.update(self.table).where(self.table.c.id == number).values(problem=problem))
        connection.commit()
        for number, problem in problems.items():
            logger.error(
                "the row %s of the outbox %s cannot be read, and nothing is invalidated for it: %s. Correct it and set "
                "its problem to NULL, or delete it",
                number,
                self.table.fullname,
                problem,
            )

    async def _invalidate(self, cache: Cache, names: list[str]) -> Exception | None:
        """Invalidate at once, whatever block is around. What a hook raised, after it was done."""
        failed: Exception | None = None
        invalidator = cache._filling().invalidator
        for start in range(0, len(names), MOST_AT_ONCE):
            some = names[start : start + MOST_AT_ONCE]
            await invalidator.invalidate(some, namespace=cache.namespace, lag=cache._lag)
            try:
                await cache._tell(some)
            except Exception as error:
                failed = error
        return failed


class _Batch(NamedTuple):
    """Rows that were read: those to invalidate, and those that cannot be read. `full`: there may be more."""

    ids: list[int]
    names: dict[str, None]
    problems: dict[int, str]
    last: int | None
    full: bool

    @classmethod
    def of(cls, rows: Iterable[Any]) -> "_Batch":
        ids: list[int] = []
        names: dict[str, None] = {}
        problems: dict[int, str] = {}
        last, count = None, 0
        for number, tags, namespace in rows:
            last, count = number, count + 1
            try:
                names.update(dict.fromkeys(_read_names(tags, namespace)))
            except (ValueError, RecursionError, ConfigurationError) as error:
                problems[number] = _in_short(error)
            else:
                ids.append(number)
        return cls(ids, names, problems, last, count == BATCH)


def _read_names(tags: str | bytes, namespace: str | bytes | None) -> list[str]:
    """What a row says. Raises what `_Batch.of` catches: anybody may have written it."""
    texts = json.loads(_text(tags))
    if not isinstance(texts, list):
        raise ValueError(f"the tags are {reprlib.repr(texts)}, and no JSON list")
    if namespace is None:
        return [_check_name(text) for text in texts]
    space = check_namespace(_text(namespace))
    return [tag_name(space, check_tag(text)) for text in texts]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _check_name(name: object) -> str:
    """A whole name as the backend has it, or `InvalidTagError`."""
    parts = name.split("|", 2) if isinstance(name, str) else []
    if len(parts) != 3 or parts[1] not in (KEY, TAG, FUNCTION, NAMESPACE):
        raise InvalidTagError(f"{reprlib.repr(name)} is no name as a backend has it, such as '|t|product:635'")
    space, kind, text = parts
    check_namespace(space)
    if kind != NAMESPACE:
        check_tag(text)
    return f"{space}|{kind}|{text}"


def _packed(texts: Iterable[str]) -> Iterator[str]:
    """JSON lists of the texts, none of them too long for a column. ASCII, whatever the database is made for."""
    row: list[str] = []
    size = 0
    for text in texts:
        encoded = json.dumps(text)
        if row and size + len(encoded) > MAX_TEXT:
            yield f"[{','.join(row)}]"
            row, size = [], 0
        row.append(encoded)
        size += len(encoded) + 1
    if row:
        yield f"[{','.join(row)}]"


def _in_short(error: BaseException) -> str:
    """What is behind it, in one line of ASCII. SQLAlchemy's have the statement besides, and ours advice for others."""
    while isinstance(error, InvalidationError) and error.__cause__ is not None:
        error = error.__cause__
    said = str(getattr(error, "orig", None) or error).partition("\n")[0]
    return (said or type(error).__name__)[:500].encode("ascii", "backslashreplace").decode()


@asynccontextmanager
async def _connected(engine: AsyncEngine | sa.Engine) -> AsyncIterator[Run]:
    """A connection. What is not committed on it is rolled back. That of a plain engine is used in threads."""
    if isinstance(engine, AsyncEngine):
        connection = await engine.connect()
        try:
            yield connection.run_sync
        finally:
            with CancelScope(shield=True):
                await connection.close()
    else:
        plain = await to_thread.run_sync(engine.connect)
        try:
            yield lambda work: to_thread.run_sync(work, plain)
        finally:
            with CancelScope(shield=True):
                await to_thread.run_sync(plain.close)
