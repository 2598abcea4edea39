"""Transactions: tags are held from before a commit till after it, and what is read in between keeps to one state.

A block holds what is invalidated in it, at once, so that nobody is served or stores anything of it; its end invalidates
and lets go. What is computed in it is kept back until its end, since nobody else may have what is not committed, and is
dropped if something went wrong or if the block has changed anything itself.
"""

import inspect
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from contextvars import Token
from functools import update_wrapper
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, ParamSpec, Self, TypeVar

from anyio import CancelScope, get_cancelled_exc_class, move_on_after, sleep
from anyio.lowlevel import EventLoopToken, current_token

from asynctag.backends.base import OF_NO_EPOCH, Backend, Entry, Reading, Stamp, Written
from asynctag.errors import BackendError, ConfigurationError, LifecycleError
from asynctag.fill import Filler
from asynctag.lag import Lag
from asynctag.pending import Invalidator, new_holder
from asynctag.scope import Scope, current_scope, leave_scope, live_scope, scope_of_block

if TYPE_CHECKING:
    from asynctag.cache import Cache

logger = logging.getLogger("asynctag")

P = ParamSpec("P")
R = TypeVar("R")

#: The isolation of the database's transaction, in lower case or as SQL has it.
Isolation = Literal[
    "read uncommitted",
    "read committed",
    "repeatable read",
    "serializable",
    "READ UNCOMMITTED",
    "READ COMMITTED",
    "REPEATABLE READ",
    "SERIALIZABLE",
]

#: The looser comes first: what a stricter one allows, it allows too.
_LEVELS: Final = ("read committed", "repeatable read", "serializable", "read uncommitted")

#: Of a block that is told it later. Till then nothing is served that a level might not allow.
NOT_KNOWN: Final = "not known"

#: A lease is renewed after this part of its time.
RENEWED_AFTER: Final = 1 / 3

#: How many bytes of values a block keeps back, at most. What goes beyond is not stored.
MAX_HELD: Final = 32 * 1024 * 1024

#: Seconds that the end of a block waits for the backend, at most, and how often it is tried again if it is cancelled.
LAST_WORD: Final = 10.0
TRIES: Final = 5


class Options(NamedTuple):
    """What `Cache.transaction` was given. `lease` is in seconds; no `lag`: the cache's, or the outer block's."""

    isolation: str
    lag: Lag | None
    lease: float


def check_isolation(isolation: object) -> str:
    """One of the four levels, however it is written. Raises `ConfigurationError`."""
    level = " ".join(isolation.lower().split()) if isinstance(isolation, str) else None
    if level not in _LEVELS:
        raise ConfigurationError(f"isolation={isolation!r}: give one of {', '.join(map(repr, _LEVELS))}")
    return level


class _View(NamedTuple):
    """How a block sees what is cached. `since`: hits have to agree with the state as of then."""

    hits: bool
    stamp: Stamp | None  # None: each computation's own
    since: Stamp | None = None


_OUTSIDE: Final = _View(hits=True, stamp=OF_NO_EPOCH)


class Block:
    """A transaction that is under way, or a savepoint in one. Safe to use from any number of tasks and threads.

    `root` is the transaction; it has what is held, and all that a savepoint leases. `around` is the innermost block on
    the way in, on whatever backend. With `alone` it is a transaction of its own in whatever block it is entered.
    """

    isolation: str
    lag: Lag
    lease: float

    def __init__(
        self, cache: "Cache", filler: Filler, options: Options, parent: Scope | None, *, alone: bool = False
    ) -> None:
        self.filler = filler
        self.around = parent.transaction if parent is not None else None
        self.outer = None if alone else open_block(parent, filler.backend)
        self.root: Block = self if self.outer is None else self.outer.root
        self.over = False
        self.dropped = False
        self.held: dict[str, Entry] = {}
        self._size = 0
        self.scope = scope_of_block(self, "a transaction", filler.backend, cache.namespace, parent)
        if self.outer is not None:
            self.root.lag = self.root.lag.and_of(options.lag)
            return
        self.isolation, self.lease = options.isolation, options.lease
        self.lag = cache._lag if options.lag is None else options.lag
        #: Before the first statement of the database's transaction. Older than the journal's is always safe.
        self.stamp = filler.backend.newest()
        self.holder = new_holder()
        #: What is invalidated here: in whose name, for those whom that cache tells of it.
        self.names: dict[str, None] = {}
        self.told: dict[Cache, dict[str, None]] = {}
        self._namespace = cache.namespace
        self._renew_at = 0.0
        self._changed = False
        self._in_doubt = False
        self._released: dict[str, Lag] = {}
        self._unsure: set[str] = set()  # of which nobody has said yet that they are held
        self._renewal: tuple[EventLoopToken, CancelScope] | None = None
        self._is_renewed = False
        self._heed_uncommitted()

    def tell_isolation(self, isolation: str) -> None:
        """It is this at least: never made looser, but for one that was not known."""
        root = self.root
        if root.isolation == NOT_KNOWN or _LEVELS.index(isolation) > _LEVELS.index(root.isolation):
            root.isolation = isolation
            root._heed_uncommitted()

    def _heed_uncommitted(self) -> None:
        if self.isolation == "read uncommitted":
            self.held = {}
            if self.scope.parent is not None:
                self.scope.parent.forbid_store()  # it may be built from what others never commit

    # --- what is read ------------------------------------------------------------------------------

    def _of(self, backend: Backend) -> "Block | None":
        """The innermost block on this backend that the caller is in."""
        block: Block | None = self
        while block is not None and block.filler.backend is not backend:
            block = block.around
        return block

    def _view(self, filler: Filler) -> _View:
        block = self._of(filler.backend)
        if block is None:  # the transaction is another backend's: what is computed here may not be committed
            root = self.root
            return _View(hits=root.over or root.isolation.startswith("read "), stamp=OF_NO_EPOCH)
        root = block.root
        if root.over or root.isolation == "read uncommitted":
            return _OUTSIDE
        if root.isolation == "read committed":
            return _View(hits=True, stamp=None)
        return _View(hits=root.isolation == "repeatable read", stamp=root.stamp, since=root.stamp)

    async def read(self, filler: Filler, key: str) -> Reading | None:
        """As `Filler.read`: what may be served in the block, and the stamp for what is computed instead."""
        view = self._view(filler)
        if not view.hits:
            return await self.reading(filler)
        return await self._seen(filler, view, await filler.read(key))

    async def read_many(self, filler: Filler, keys: Sequence[str]) -> list[Reading | None]:
        view = self._view(filler)
        if not view.hits:
            return [await self.reading(filler)] * len(keys)
        seen = []
        for reading in await filler.read_many(keys):
            seen.append(await self._seen(filler, view, reading))
        return seen

    async def reading(self, filler: Filler) -> Reading | None:
        """The stamp for what is computed in the block, whatever is cached."""
        stamp = self._view(filler).stamp
        if stamp is not None:
            return Reading(stamp, None)
        newest = await filler.read(_NOTHING)
        return None if newest is None else Reading(newest.stamp, None)

    async def _seen(self, filler: Filler, view: _View, reading: Reading | None) -> Reading | None:
        if reading is None:
            return None
        stamp = reading.stamp if view.stamp is None else view.stamp
        entry = reading.entry
        if entry is None or reading.stale or not await self._agrees(filler, view, entry):
            return Reading(stamp, None, miss=reading.miss)
        return Reading(stamp, entry)

    async def _agrees(self, filler: Filler, view: _View, entry: Entry) -> bool:
        """Whether a fresh hit is what the snapshot shows. The journal is asked after it was fetched, never before."""
        since = view.since
        if since is None:
            return True
        if entry.stamp.epoch != since.epoch:
            return False
        if entry.stamp.seq <= since.seq:  # it is valid and fresh: what is above its number, none of its tags has
            return True
        try:
            return await filler.backend.unchanged(entry.tags, since)
        except BackendError:
            return False

    # --- what is stored ----------------------------------------------------------------------------

    def hold(self, filler: Filler, entry: Entry) -> Written:
        """Keep `entry` back until the end, if it may be stored at all."""
        block, stamp = self._of(filler.backend), self._view(filler).stamp
        if block is None or block.over or entry.stamp is OF_NO_EPOCH:
            return Written(False)
        if stamp is not None and (entry.stamp.epoch != stamp.epoch or entry.stamp.seq > stamp.seq):
            return Written(False)  # from a look-up outside of the block, of which it knows nothing
        if block._stores_nothing() or block._size + entry.size > MAX_HELD:
            return Written(False)
        replaced = block.held.get(entry.key)
        block._size += entry.size - (replaced.size if replaced is not None else 0)
        block.held[entry.key] = entry
        return Written(False)

    def _stores_nothing(self) -> bool:
        root = self.root
        return self.dropped or root.dropped or root._changed or root.isolation == "read uncommitted"

    def drop(self) -> None:
        """Store nothing of what is computed here, now or later, nor of what is built from it."""
        self.dropped = True
        self.held = {}
        if self.scope.parent is not None:
            self.scope.parent.forbid_store()

    # --- what is invalidated -----------------------------------------------------------------------

    async def invalidate(
        self,
        cache: "Cache",
        names: Collection[str],
        lag: Lag | None,
        *,
        queue: bool = False,
        by: Invalidator | None = None,
    ) -> bool:
        """Hold `names` now, and invalidate them at the end. False where that could not be written and is queued.

        `by`: who writes it instead of the block's own, for a thread without an event loop.
        """
        root = self.root
        by = by or root.filler.invalidator
        holder, root._changed = root.holder, True
        lag_before, root.lag = root.lag, root.lag.and_of(lag)
        # Before anything is awaited: whatever becomes of it, the end invalidates them.
        root.names.update(dict.fromkeys(names))
        root.told.setdefault(cache, {}).update(dict.fromkeys(names))
        root._unsure.update(names)
        root.held = self.held = {}
        if root.scope.parent is not None:  # what is around would be built from what is not committed
            root.scope.parent.forbid_store()
        clock = root.filler.backend.clock
        due = clock() >= root._renew_at or root.lag.seconds > lag_before.seconds
        written = await root._lease(list(root.names) if due else names, by, queue=queue, namespace=cache.namespace)
        if root.over or root.holder != holder:  # the end came meanwhile, and may have missed them
            written = await by.invalidate(names, queue=queue, namespace=cache.namespace, lag=root.lag, holder=holder)
            await cache._tell(list(names))
        elif not root._is_renewed:
            root._is_renewed = by.keep_renewing(root)
        return written

    async def _lease(self, names: Collection[str], by: Invalidator, *, queue: bool = False, namespace: str) -> bool:
        """Whether that was written. `names` are all that are held, or some of them that are new."""
        asked = self.filler.backend.clock()
        sure = self._unsure.isdisjoint(names)
        # Should its holder die, after the commit perhaps, they stay held for as long as replicas may lack that.
        duration = self.lease + self.lag.seconds
        held = await by.lease(names, self.holder, duration, queue=queue, namespace=namespace)
        if held is None:
            return False
        self._unsure.difference_update(names)
        if len(names) == len(self.names):
            self._renew_at = asked + self.lease * RENEWED_AFTER
        if sure and not held:
            logger.warning(
                "the tags of a transaction may not have been held all the time: its lease of %.3g s had ended, or the "
                "journal was lost. They are held again, and its end invalidates them",
                self.lease,
            )
        return True

    async def renew(self) -> None:
        """Go on holding, in the background, as long as the block is under way."""
        with CancelScope() as scope:
            self._renewal = (current_token(), scope)
            while not self.over:
                await sleep(self.lease * RENEWED_AFTER)
                await self.renew_once(self.filler.invalidator)

    async def renew_once(self, by: Invalidator) -> None:
        names, holder = list(self.names), self.holder
        if self.over or not names:
            return
        try:
            await self._lease(names, by, namespace=self._namespace)
        except Exception as error:
            now = self.filler.backend.clock()
            self.filler.outage.warn(now, "the lease of a transaction cannot be renewed: %s", error)
        if holder in self._released:  # meanwhile, and that may have been written first
            await by.release(names, holder, self._released[holder], namespace=self._namespace)

    # --- the end -----------------------------------------------------------------------------------

    def doubt(self) -> None:
        """Nobody knows whether what was changed here is committed, or will be."""
        self.root._in_doubt = True

    async def end(self, error: type[BaseException] | None) -> None:
        """Hand over to the block around; or, of a transaction, let go of what is held, or store what was kept back."""
        self.over = True
        if error is not None:
            self.drop()
        if self.outer is not None:
            if not self.outer.over and not self.outer._stores_nothing():
                for entry in self.held.values():
                    self.outer.hold(self.filler, entry)
            return
        self._stop_renewing()
        if self._changed:
            await self.release(at_once=error is not None and issubclass(error, GeneratorExit))
        else:
            await self._store()

    async def release(self, *, at_once: bool = False) -> None:
        """Invalidate what is held, and let go of it. The block may go on, and stores nothing.

        In a savepoint this does nothing: the block around holds. `at_once`: nothing can be waited for any more.
        """
        if self.outer is not None or not self.names:
            return
        names, self.names = list(self.names), {}
        told, self.told = self.told, {}
        # Another name for what is held from now on: a later release must not end this one's lag.
        holder, self.holder = self.holder, new_holder()
        lag, self._in_doubt = self._lag_of_release(), False
        self._released = {holder: lag}
        self._unsure.difference_update(names)
        if at_once:
            self.filler.invalidator.release_at_once(names, holder, lag, namespace=self._namespace)
        else:
            await self._release(names, holder, lag)
            await self._tell(told)

    def _lag_of_release(self) -> Lag:
        """A commit that nobody has answered may come later, and may then be missed by replicas for their time.

        No probe can tell whether it comes, and nothing is served meanwhile.
        """
        return Lag(self.lease + self.lag.seconds) if self._in_doubt else self.lag

    def _stop_renewing(self) -> None:
        if self._renewal is not None:
            token, scope = self._renewal
            with suppress(RuntimeError):  # no event loop runs here
                if current_token() == token:
                    scope.cancel()

    async def _store(self) -> None:
        """What was kept back; unless it is kept back once more, by the transaction of another backend around it."""
        around = self.around
        while around is not None and around.root.over:
            around = around.around
        if self.held and around is None:
            await self.filler.write_many(list(self.held.values()))

    async def _release(self, names: list[str], holder: str, lag: Lag) -> None:
        """To the end, whoever cancels meanwhile."""
        cancelled: BaseException | None = None
        invalidator = self.filler.invalidator
        for _ in range(TRIES):
            try:
                with move_on_after(LAST_WORD, shield=True) as waiting:
                    await invalidator.release(names, holder, lag, namespace=self._namespace)
                if waiting.cancelled_caught:
                    invalidator.keep_release(
                        names, lag, TimeoutError(f"no answer within {LAST_WORD:g} s"), self._namespace
                    )
                break
            except get_cancelled_exc_class() as error:  # asyncio's own cancellation, which no shield holds off
                cancelled = error
        else:
            invalidator.keep_release(names, lag, RuntimeError("it was cancelled"), self._namespace)
        if cancelled is not None:
            raise cancelled

    async def _tell(self, told: "dict[Cache, dict[str, None]]") -> None:
        """Those who want to know what was invalidated. Their failures are no reason to fail what is committed."""
        for cache, names in told.items():
            try:
                await cache._tell(list(names))
            except Exception:
                logger.exception("a hook of after_invalidation failed, at the end of a transaction")


#: A key that nothing is stored under: looked up for the journal's stamp.
_NOTHING: Final = "|k|"


def open_block(scope: Scope | None, backend: Backend) -> Block | None:
    """The innermost block on `backend` around what runs in `scope`, if its transaction is under way."""
    block = scope.transaction if scope is not None else None
    if block is not None:
        block = block._of(backend)
    return None if block is None or block.root.over else block


class Transaction:
    """What `Cache.transaction` gives: an async context manager, and a decorator of async functions.

    May be entered again once it was left. A decorated function enters one of its own at each call.
    """

    def __init__(
        self, cache: "Cache", options: Options, around: Callable[[], Scope | None] = live_scope, *, alone: bool = False
    ) -> None:
        self._cache = cache
        self._alone = alone
        self._options = options
        self._around = around
        self._entered: tuple[Block, Token[Scope | None]] | None = None

    def __repr__(self) -> str:
        return f"<transaction, {self._options.isolation}: {'open' if self._entered else 'not open'}>"

    async def __aenter__(self) -> Self:
        """Begin: before the first statement of the database's transaction. Asks the backend nothing.

        Raises `LifecycleError` where it is open already.
        """
        if self._entered is not None:
            raise LifecycleError("this transaction is open already: make another with cache.transaction()")
        block = Block(self._cache, self._cache._filling(), self._options, self._around(), alone=self._alone)
        self._entered = block, current_scope.set(block.scope)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End: after the commit, or the rollback. Raises nothing of what the backend says."""
        if exc_type is not None and not issubclass(exc_type, Exception):
            self.in_doubt()  # cancelled as it waited for the answer to a COMMIT, maybe
        await self.leave(exc_type)

    async def leave(self, error: type[BaseException] | None) -> None:
        """As leaving the block by `error`, where it is known how the database's transaction ended."""
        block = self.block
        assert self._entered is not None
        leave_scope(self._entered[1])
        self._entered = None
        await block.end(error)

    def drop_stores(self) -> None:
        """Store nothing of what is computed in the block: for a session that was rolled back, with no error raised."""
        self.block.drop()

    def in_doubt(self) -> None:
        """Say that a COMMIT was sent and not answered: the connection was lost, or waiting for it was given up.

        It may be carried out later than the block's end, so what was invalidated is held for the lease's time more. A
        block that is left by a cancellation, `KeyboardInterrupt` or `GeneratorExit` sees to that by itself.
        """
        self.block.doubt()

    @property
    def block(self) -> Block:
        """What runs, for integrations. Raises `LifecycleError` where nothing does."""
        if self._entered is None:
            raise LifecycleError("this transaction is not open")
        return self._entered[0]

    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """An async function, each call of which is a transaction."""
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(f"@cache.transaction() goes over an async function (async def), not {function!r}")

        async def in_transaction(*args: P.args, **kwargs: P.kwargs) -> R:
            async with Transaction(self._cache, self._options, self._around, alone=self._alone):
                return await function(*args, **kwargs)

        return update_wrapper(in_transaction, function)
