"""The cache for threads without an event loop: what invalidates, and transactions.

It is the code of the async side, over a backend that waits by blocking (`Backend.blocking`): its coroutines end at
their first step, so no event loop is needed to run them.
"""

import atexit
import inspect
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Token
from functools import update_wrapper
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token

from asynctag.background import Background
from asynctag.errors import ConfigurationError, LifecycleError
from asynctag.expiry import Seconds
from asynctag.fill import Filler
from asynctag.lag import DuringLag, Lag
from asynctag.names import namespace_tag
from asynctag.pending import FIRST_DELAY, LONGEST_DELAY, Invalidator
from asynctag.scope import Scope, current_scope, leave_scope, live_scope
from asynctag.transaction import RENEWED_AFTER, Block, Isolation, Options, open_block

if TYPE_CHECKING:
    from asynctag.cache import Cache

logger = logging.getLogger("asynctag")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

#: Seconds that the thread which renews leases waits for more of them, before it ends.
IDLE: Final = 60.0


# --- without an event loop -----------------------------------------------------------------------------


def event_loop_runs_here() -> bool:
    try:
        current_token()
    except RuntimeError:
        return False
    return True


def refuse_in_event_loop(called: str, instead: str) -> None:
    """Raise `LifecycleError` in the thread of an event loop: all its tasks would stand still meanwhile."""
    if event_loop_runs_here():
        raise LifecycleError(
            f"{called} waits by blocking, and an event loop runs in this thread: all its tasks would stand still. "
            f"Write `{instead}`, or call it in a worker thread (anyio.to_thread.run_sync)"
        )


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """What comes of `work`, which waits by blocking alone."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise AssertionError("it waits for an event loop, and none runs here")


async def by_blocking(work: Awaitable[None]) -> None:
    """Wait for `work` in a thread without an event loop: in that which waits for this thread, or one of its own."""
    begun = False

    async def run() -> None:
        nonlocal begun
        begun = True
        await work

    try:
        anyio.from_thread.run(run)
    except RuntimeError:  # it may be that this is none of AnyIO's worker threads
        if begun:
            raise
        anyio.run(run)


# --- what is written ---------------------------------------------------------------------------------


class BlockingInvalidator(Invalidator):
    """Writes as another does, by blocking. What could not be written is in one queue with what it could not write."""

    def __init__(self, beside: Invalidator) -> None:
        self.backend = beside.backend.blocking()
        self.background = Background()  # never opened: no task is begun here
        self.flights = beside.flights
        self.pending = beside.pending
        self.outage = beside.outage

    def see_to_retries(self) -> None:
        """Have a thread retry, if nobody does so yet."""
        retrier = object()
        if self.pending.claim(retrier) and not _start(lambda: self._retry_in_thread(retrier), "asynctag-retries"):
            self.pending.let_go(retrier)

    def _retry_in_thread(self, retrier: object) -> None:
        delay = FIRST_DELAY
        try:
            while self.pending.needs(retrier):
                sleep(delay)
                at_once(self.write_what_is_queued())
                delay = min(2 * delay, LONGEST_DELAY)
        finally:
            self.pending.let_go(retrier)

    def keep_renewing(self, block: Block) -> bool:
        return _renewer.add(block, self)


def _start(work: Callable[[], None], name: str) -> bool:
    """Begin a thread that does not keep the interpreter from ending. Whether that could be: not while it ends."""
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError:
        return False
    return True


class Renewer:
    """Goes on holding what blocks hold that last long: one thread for all of this process, begun by the first."""

    def __init__(self) -> None:
        self.forked()

    def forked(self) -> None:
        """In a child: the thread is not there, and the blocks are the parent's."""
        self._changed = threading.Condition()
        self._due: dict[Block, tuple[float, BlockingInvalidator]] = {}
        self._wakes = 0.0
        self._is_running = False

    def add(self, block: Block, writer: BlockingInvalidator) -> bool:
        due = monotonic() + block.lease * RENEWED_AFTER
        with self._changed:
            self._due[block] = due, writer
            if not self._is_running:
                self._is_running = _start(self._run, "asynctag-leases")
            elif due < self._wakes:
                self._changed.notify()
            return self._is_running

    def drop(self, block: Block) -> None:
        with self._changed:
            self._due.pop(block, None)

    def _run(self) -> None:
        while self._renew_due():
            pass

    def _renew_due(self) -> bool:
        """Wait for those that are due, and renew them. False where there were none for long."""
        due = self._next()
        for block, writer in due:
            self._renew(block, writer)
        return bool(due)

    def _next(self) -> list[tuple[Block, BlockingInvalidator]]:
        """Those to renew, as soon as there are some; none where there were no blocks for long."""
        with self._changed:
            ends = monotonic() + IDLE
            while True:
                now = monotonic()
                for block in [one for one in self._due if one.over]:
                    del self._due[block]
                found = [(block, writer) for block, (due, writer) in self._due.items() if due <= now]
                if found:
                    for block, writer in found:
                        self._due[block] = now + block.lease * RENEWED_AFTER, writer
                    return found
                if not self._due and now >= ends:
                    self._is_running = False
                    return []
                # With nothing to do it wakes as it would have: the next block need not wake it then.
                idle = self._wakes if now < self._wakes < ends else ends
                self._wakes = min((due for due, _ in self._due.values()), default=idle)
                self._changed.wait(self._wakes - now)

    def _renew(self, block: Block, writer: BlockingInvalidator) -> None:
        at_once(block.renew_once(writer))


_renewer: Final = Renewer()

# Those that a forked child is not in, though its context has them; and those to be closed with the interpreter.
_blocks: "WeakSet[SyncBlock]" = WeakSet()
_used: "WeakSet[SyncCache]" = WeakSet()


def _in_forked_child() -> None:
    _renewer.forked()
    for block in list(_blocks):
        block.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


@atexit.register
def _at_exit() -> None:
    for one in list(_used):
        one._try_last()


# --- transactions --------------------------------------------------------------------------------------


class SyncBlock(Block):
    """A transaction of code without an event loop, or a savepoint in one of whatever kind."""

    def __init__(
        self,
        cache: "Cache",
        filler: Filler,
        options: Options,
        parent: Scope | None,
        writer: BlockingInvalidator,
        *,
        alone: bool = False,
    ) -> None:
        super().__init__(cache, filler, options, parent, alone=alone)
        self.writer = writer
        _blocks.add(self)

    def disown(self) -> None:
        """Leave it to the parent of this process, which is in it still: its end is not to be written here."""
        self.over = True
        if self.outer is None:
            self.names, self.told = {}, {}

    async def end(self, error: type[BaseException] | None) -> None:
        # It is waited for whatever the error is, and also as a generator is left.
        await super().end(None if error is None else BaseException)

    def _stop_renewing(self) -> None:
        super()._stop_renewing()
        _renewer.drop(self)

    async def _store(self) -> None:
        """Nothing: what async code has computed in it is dropped."""

    async def _release(self, names: list[str], holder: str, lag: Lag) -> None:
        try:
            await self.writer.release(names, holder, lag, namespace=self._namespace)
        except BaseException as error:  # what a signal raises: of what the backend says nothing is raised
            self.writer.keep_release(names, lag, error, self._namespace)
            self.writer.see_to_retries()
            raise


class SyncTransaction:
    """What `Cache.sync.transaction` gives: a context manager, and a decorator of plain functions.

    May be entered again once it was left. A decorated function enters one of its own at each call.
    """

    def __init__(self, cache: "Cache", options: Options, *, alone: bool = False) -> None:
        self._cache = cache
        self._options = options
        self._alone = alone
        self._entered: tuple[SyncBlock, Token[Scope | None]] | None = None

    def __repr__(self) -> str:
        return f"<sync transaction, {self._options.isolation}: {'open' if self._entered else 'not open'}>"

    def __enter__(self) -> Self:
        """Begin: before the first statement of the database's transaction. Asks the backend nothing.

        Raises `LifecycleError` where it is open already, and in a thread where an event loop runs.
        """
        refuse_in_event_loop("with cache.sync.transaction()", "async with cache.transaction()")
        if self._entered is not None:
            raise LifecycleError("this transaction is open already: make another with cache.sync.transaction()")
        filler = self._cache._filling()
        writer = self._cache.sync._writer(filler)
        block = SyncBlock(self._cache, filler, self._options, live_scope(), writer, alone=self._alone)
        self._entered = block, current_scope.set(block.scope)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End: after the commit, or the rollback. Raises nothing of what the backend says."""
        if exc_type is not None and not issubclass(exc_type, Exception):
            self.in_doubt()  # interrupted as it waited for the answer to a COMMIT, maybe
        self.leave(exc_type)

    def leave(self, error: type[BaseException] | None) -> None:
        """As leaving the block by `error`, where it is known how the database's transaction ended."""
        block = self.block
        assert self._entered is not None
        leave_scope(self._entered[1])
        self._entered = None
        at_once(block.end(error))

    def in_doubt(self) -> None:
        """Say that a COMMIT was sent and not answered: the connection was lost, or waiting for it was given up.

        It may be carried out later than the block's end, so what was invalidated is held for the lease's time more. A
        block that is left by `KeyboardInterrupt` or `GeneratorExit` sees to that by itself.
        """
        self.block.doubt()

    @property
    def block(self) -> SyncBlock:
        """What runs, for integrations. Raises `LifecycleError` where nothing does."""
        if self._entered is None:
            raise LifecycleError("this transaction is not open")
        return self._entered[0]

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """A plain function, each call of which is a transaction."""
        if (
            not callable(function)
            or inspect.iscoroutinefunction(function)
            or inspect.isgeneratorfunction(function)
            or inspect.isasyncgenfunction(function)
        ):
            raise ConfigurationError(
                f"@cache.sync.transaction() goes over a function that is done when it returns, not over {function!r}. "
                f"Over an async function, write @cache.transaction()"
            )

        def in_transaction(*args: P.args, **kwargs: P.kwargs) -> R:
            with SyncTransaction(self._cache, self._options):
                return function(*args, **kwargs)

        return update_wrapper(in_transaction, function)


# --- the cache -----------------------------------------------------------------------------------------


class SyncCache:
    """A cache, for threads without an event loop: tasks of Celery, signals of Django, scripts, `def` routes.

    Made by `Cache.sync`. It writes into the same journal, at once, and waits by blocking. Values are neither read nor
    computed by it: cached functions are async. In a thread where an event loop runs it raises `LifecycleError`.
    """

    def __init__(self, cache: "Cache") -> None:
        self._cache = cache
        self._writers: WeakKeyDictionary[Filler, BlockingInvalidator] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<{self._cache!r}, without an event loop>"

    def _writer(self, filler: Filler) -> BlockingInvalidator:
        writer = self._writers.get(filler)
        if writer is None:
            writer = self._writers.setdefault(filler, BlockingInvalidator(filler.invalidator))
            _used.add(self)
        return writer

    def invalidate(
        self, *tags: str, soft: bool = False, queue: bool = False, replica_lag: Seconds | None = None
    ) -> bool:
        """Drop every entry that carries one of `tags`, and whatever was built from it. True once that is written.

        As `Cache.invalidate`, but for `queue`: what could not be written is tried again by a thread, before the next
        invalidation, and as the interpreter ends. In a `transaction`, of this kind or of the async kind around the
        worker thread, the tags are held at once, and invalidated at its end, hard.

        Raises `InvalidationError` where it could not be written and is not queued, `InvalidTagError` for what is no
        tag, `LifecycleError` in a thread where an event loop runs.
        """
        refuse_in_event_loop("cache.sync.invalidate()", "await cache.invalidate()")
        names, lag = self._cache._names_and_lag(tags, replica_lag)
        return self._invalidate(names, soft=soft, queue=queue, lag=lag)

    def clear(self, *, queue: bool = False) -> bool:
        """Invalidate everything in the cache's namespace, or, without a namespace, everything in the backend.

        `queue`, and what is returned and raised: as for `invalidate`.
        """
        refuse_in_event_loop("cache.sync.clear()", "await cache.clear()")
        return self._invalidate([namespace_tag(self._cache.namespace)], queue=queue)

    def delete(self, key: str) -> None:
        """Remove what is stored under `key`, and whatever was built from it. It does not tell whether something was.

        In a transaction it is held until the end, as what is invalidated there. Raises as `invalidate` does.
        """
        refuse_in_event_loop("cache.sync.delete()", "await cache.delete()")
        cache = self._cache
        filler, name = cache._filling(), cache._key(key)
        writer, block = self._writer(filler), open_block(current_scope.get(), filler.backend)
        if block is not None:
            at_once(block.invalidate(cache, [name], None, by=writer))
            return
        at_once(writer.delete(name, namespace=cache.namespace, lag=cache._lag))
        at_once(cache._tell([name]))

    def _invalidate(self, names: list[str], *, soft: bool = False, queue: bool = False, lag: Lag | None = None) -> bool:
        writer = self._writer(self._cache._filling())
        return at_once(self._cache._invalidate(names, soft=soft, queue=queue, lag=lag, by=writer))

    def transaction(
        self,
        *,
        isolation: Isolation = "repeatable read",
        replica_lag: Seconds | None = None,
        during_lag: DuringLag | None = None,
        lease: Seconds = 30,
    ) -> SyncTransaction:
        """A block around a transaction of the database: entered before its first statement, left after its commit.

        A context manager, and a decorator of plain functions. As `Cache.transaction`, but that it computes nothing,
        and asks no probe (`caught_up`): with a `replica_lag`, that lasts its whole time. A thread renews the `lease`
        as long as the block lasts. In another one on the same backend, of this kind or of the async kind around the
        worker thread, it is a savepoint.

        Raises `ConfigurationError` for values that cannot be meant. Leaving it raises nothing of what the backend says.
        """
        return SyncTransaction(
            self._cache, self._cache._transaction_options(isolation, replica_lag, during_lag, None, lease)
        )

    def flush_invalidations(self) -> bool:
        """Try now to write the invalidations that are queued in this process, in their order. Whether none is left."""
        refuse_in_event_loop("cache.sync.flush_invalidations()", "await cache.flush_invalidations()")
        writer = self._writer(self._cache._filling())
        at_once(writer.write_what_is_queued())
        return not writer.pending.names

    def close(self) -> None:
        """Give back the connections that it has made. It makes others if it is used again.

        Queued invalidations are tried once more. What cannot be written even now is logged as an error, by its tags.
        """
        self._try_last()
        filler = self._cache._filler
        if filler is not None:
            filler.backend.close_blocking()

    def _try_last(self) -> None:
        for writer in list(self._writers.values()):
            at_once(writer.write_what_is_queued())
            writer.tell_what_is_left(self._cache.namespace)
