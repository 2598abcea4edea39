"""Units of work as users open them: a transaction of the cache around the life of a session, async or not."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypedDict, TypeVar, Unpack, overload

import sqlalchemy as sa
from anyio import CancelScope
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker
from sqlalchemy.util import await_only

from asynctag.cache import Cache
from asynctag.errors import ConfigurationError, LifecycleError
from asynctag.expiry import Seconds, yes_or_no
from asynctag.integrations.outbox import Outbox
from asynctag.integrations.sqlalchemy.events import UNIT, listen_to_rows
from asynctag.integrations.sqlalchemy.reads import Reads
from asynctag.integrations.sqlalchemy.statements import isolation_of, isolation_of_engine
from asynctag.integrations.sqlalchemy.unit import Unit, level_of_block
from asynctag.lag import DuringLag, Probe
from asynctag.signatures import nearest_name
from asynctag.sync import SyncTransaction, at_once
from asynctag.transaction import NOT_KNOWN, Isolation, Options, Transaction

AnyAsyncSession = TypeVar("AnyAsyncSession", bound=AsyncSession)
AnySession = TypeVar("AnySession", bound=Session)
Opened = TypeVar("Opened")


class UnitOptions(TypedDict, total=False):
    """What units of work may be given. Seconds, or a `timedelta`."""

    isolation: Isolation | None
    replica_lag: Seconds | None
    during_lag: DuringLag | None
    caught_up: Probe | None
    lease: Seconds
    tag_reads: bool
    outbox: Outbox | None


class Settings:
    """What units of work were given, checked."""

    def __init__(self, cache: Cache, options: UnitOptions) -> None:
        if not isinstance(cache, Cache):
            raise ConfigurationError(f"{cache!r} is no cache: give the one whose entries your changes make invalid")
        known = UnitOptions.__annotations__
        for name in options:
            if name not in known:
                raise TypeError(f"{name!r} is no option here. {nearest_name(name, known)}")
        self.cache = cache
        self.tag_reads = yes_or_no(options.get("tag_reads", False), "tag_reads")
        if self.tag_reads:
            listen_to_rows()
        self.outbox = options.get("outbox")
        if self.outbox is not None and not isinstance(self.outbox, Outbox):
            raise ConfigurationError(
                f"outbox={self.outbox!r} is no outbox: give an asynctag.integrations.outbox.Outbox"
            )
        isolation = options.get("isolation")
        self.tells_isolation = isolation is None
        self._options = cache._transaction_options(
            "repeatable read" if isolation is None else isolation,
            options.get("replica_lag"),
            options.get("during_lag"),
            options.get("caught_up"),
            options.get("lease", 30),
        )

    def options(self, session: Session) -> Options:
        """Those of a block around `session`: at its isolation, as far as that is known before it connects."""
        if not self.tells_isolation:
            return self._options
        level = None
        if isinstance(session.bind, sa.Engine):
            level = isolation_of_engine(session.bind)
        elif isinstance(session.bind, sa.Connection):
            level = isolation_of(session.bind)
        return self._options._replace(isolation=NOT_KNOWN if level is None else level_of_block(level))

    def reads(self) -> Reads | None:
        """To be asked for where the user's code enters the unit: it keeps in which computation that is."""
        return Reads(self.cache.namespace, self.cache._filling().backend) if self.tag_reads else None


def check_unused(session: Session) -> None:
    """Raise `LifecycleError` for a session that has read something, or whose commit would not be seen."""
    if UNIT in session.info:
        raise LifecycleError("this session is in a unit of work already: one is enough")
    if session.in_transaction() or session.identity_map.keys():
        raise LifecycleError(
            "this session is in use already, and what it has read may be older than the unit of work: enter "
            "unit_of_work() before its first statement"
        )
    if isinstance(session.bind, sa.Connection) and session.bind.in_transaction():
        raise LifecycleError(
            "this session's connection is in a transaction, the commit of which the unit of work would not see: give "
            "the session an engine"
        )


class AsyncUnitOfWork(Generic[AnyAsyncSession]):
    """A session, in a transaction of the cache as long as it lives. Its context manager gives the session."""

    def __init__(self, settings: Settings, make: Callable[[], AnyAsyncSession], *, begin: bool = False) -> None:
        self._settings = settings
        self._make = make
        self._begin = begin
        self._begun: AsyncSessionTransaction | None = None
        self._entered: tuple[AnyAsyncSession, Transaction, Unit] | None = None

    async def __aenter__(self) -> AnyAsyncSession:
        """Begin. Asks neither the database nor the backend. Raises `LifecycleError` for a session that is in use."""
        if self._entered is not None:
            raise LifecycleError("this unit of work is open already: make another")
        session, settings = self._make(), self._settings
        followed = session.sync_session
        check_unused(followed)
        reads = settings.reads()
        transaction = await Transaction(settings.cache, settings.options(followed), alone=True).__aenter__()
        unit = Unit(
            settings.cache,
            transaction.block,
            followed,
            await_only,
            tells_isolation=settings.tells_isolation,
            reads=reads,
            outbox=settings.outbox,
        )
        self._entered = session, transaction, unit
        if self._begin:
            self._begun = await session.begin()
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End: commit, where it was begun so, and close the session. Of the backend's failures nothing is raised."""
        if self._entered is None:
            raise LifecycleError("this unit of work is not open")
        session, transaction, unit = self._entered
        self._entered = None
        try:
            try:
                if self._begun is not None:
                    await self._begun.__aexit__(kind, error, traceback)
            finally:
                with CancelScope(shield=True):
                    await session.__aexit__(kind, error, traceback)
        except BaseException as failed:
            unit.leave()
            await transaction.leave(type(failed))
            raise
        unit.leave()
        await transaction.leave(kind)


class UnitOfWork(Generic[AnySession]):
    """As `AsyncUnitOfWork`, of a session of code without an event loop, on `cache.sync`."""

    def __init__(self, settings: Settings, make: Callable[[], AnySession], *, begin: bool = False) -> None:
        self._settings = settings
        self._make = make
        self._begin = begin
        self._begun: SessionTransaction | None = None
        self._entered: tuple[AnySession, SyncTransaction, Unit] | None = None

    def __enter__(self) -> AnySession:
        """Begin. Asks neither the database nor the backend. Raises `LifecycleError` for a session that is in use, and
        in a thread where an event loop runs.
        """
        if self._entered is not None:
            raise LifecycleError("this unit of work is open already: make another")
        session, settings = self._make(), self._settings
        check_unused(session)
        reads = settings.reads()
        transaction = SyncTransaction(settings.cache, settings.options(session), alone=True).__enter__()
        unit = Unit(
            settings.cache,
            transaction.block,
            session,
            at_once,
            by=transaction.block.writer,
            tells_isolation=settings.tells_isolation,
            reads=reads,
            outbox=settings.outbox,
        )
        self._entered = session, transaction, unit
        if self._begin:
            self._begun = session.begin()
        return session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End: commit, where it was begun so, and close the session. Of the backend's failures nothing is raised."""
        if self._entered is None:
            raise LifecycleError("this unit of work is not open")
        session, transaction, unit = self._entered
        self._entered = None
        try:
            try:
                if self._begun is not None:
                    self._begun.__exit__(kind, error, traceback)
            finally:
                session.close()
        except BaseException as failed:
            unit.leave()
            transaction.leave(type(failed))
            raise
        unit.leave()
        transaction.leave(kind)


class UnitsOfWork(Generic[Opened]):
    """Makes sessions whose changes are invalidated in `cache`, whatever flushes and commits them.

    `maker`: an `async_sessionmaker`, or a `sessionmaker` for code without an event loop. `isolation` is read from the
    connection, unless it is given. `replica_lag`, `during_lag`, `caught_up` and `lease` are those of
    `Cache.transaction`. With `tag_reads`, what a session reads tags the cached computation that has opened it. What is
    invalidated goes into `outbox` too, in the session's transaction; where the backend does not answer, flushes and
    commits go on then, and without one they raise `InvalidationError`.

    Raises `ConfigurationError` for values that cannot be meant.
    """

    @overload
    def __init__(
        self: "UnitsOfWork[AsyncUnitOfWork[AnyAsyncSession]]",
        cache: Cache,
        maker: async_sessionmaker[AnyAsyncSession],
        **options: Unpack[UnitOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: "UnitsOfWork[UnitOfWork[AnySession]]",
        cache: Cache,
        maker: sessionmaker[AnySession],
        **options: Unpack[UnitOptions],
    ) -> None: ...

    def __init__(self, cache: Cache, maker: Any, **options: Unpack[UnitOptions]) -> None:
        if not isinstance(maker, async_sessionmaker | sessionmaker):
            raise ConfigurationError(f"{maker!r} makes no sessions: give an async_sessionmaker or a sessionmaker")
        self._settings = Settings(cache, options)
        self._maker = maker
        self._opens: Any = AsyncUnitOfWork if isinstance(maker, async_sessionmaker) else UnitOfWork

    def __call__(self) -> Opened:
        """A session in a unit of work, closed at its end: `async with sessions() as session:`."""
        opened: Opened = self._opens(self._settings, self._maker)
        return opened

    def begin(self) -> Opened:
        """The same, committed at the end unless that is an error: `async with sessions.begin() as session:`."""
        opened: Opened = self._opens(self._settings, self._maker, begin=True)
        return opened


@overload
def unit_of_work(
    cache: Cache, session: AnyAsyncSession, **options: Unpack[UnitOptions]
) -> AsyncUnitOfWork[AnyAsyncSession]: ...


@overload
def unit_of_work(cache: Cache, session: AnySession, **options: Unpack[UnitOptions]) -> UnitOfWork[AnySession]: ...


def unit_of_work(cache: Cache, session: Any, **options: Unpack[UnitOptions]) -> Any:
    """The same for a session that was made elsewhere and was not used yet. It is closed at the end.

    Options and errors are those of `UnitsOfWork`.
    """
    settings = Settings(cache, options)
    if isinstance(session, AsyncSession):
        return AsyncUnitOfWork(settings, lambda: session)
    if isinstance(session, Session):
        return UnitOfWork(settings, lambda: session)
    raise ConfigurationError(f"{session!r} is no session: give an AsyncSession or a Session")
