"""Invalidations that could not be written: kept in their order, and tried again until they are.

While an invalidation is queued this process treats its tags as leased: an entry that carries one is
a miss, a store that carries one is refused, nobody waits. Whoever reads looks at `Pending.names`
*before* asking the backend. An answer from before the invalidation was written may arrive after the
queue is empty again; by then the journal knows better, and was not asked.
"""

import logging
import os
import secrets
import threading
from collections.abc import Callable, Collection
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakKeyDictionary, WeakMethod

from anyio import move_on_after, sleep

from asynctag.backends.base import Backend
from asynctag.background import Background
from asynctag.errors import BackendError, InvalidationError
from asynctag.flight import Fate, Flight, Flights, Turn
from asynctag.lag import FIRST_ASKED, LAST_ASKED, NO_LAG, Lag
from asynctag.names import NAMESPACE, TAG, describe, listed
from asynctag.outage import outage_of

if TYPE_CHECKING:
    from asynctag.transaction import Block

logger = logging.getLogger("asynctag")

#: How many invalidations may be queued. The same tag, hard and soft, counts twice.
MAX_QUEUED: Final = 10_000

#: How many of them are written in one step, at most.
BATCH: Final = 1_000

#: Seconds before the first retry in the background, which double with each, and the most they come to.
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0

#: Seconds for the last try of a cache that closes.
LAST_TRY = 5.0

#: How many names a message lists.
SHOWN: Final = 20

#: The "key" of the flight that a flush is: one at a time in this process. No entry can have it.
_FLUSH: Final = f"|{NAMESPACE}|-flush"


class Batch(NamedTuple):
    """The oldest invalidations of the queue that can be written in one step, each with the number it had then.

    `lag_until`: when replicas have caught up with what was changed, on the backend's clock.
    """

    names: list[str]
    soft: bool
    numbers: list[int]
    lag_until: float


class Pending:
    """The invalidations of one backend that this process has yet to write. For any number of threads."""

    def __init__(self) -> None:
        #: The names whose entries are not to be served or stored. Replaced as a whole, never changed.
        self.names: frozenset[str] = frozenset()
        # In the order in which they came first. The number tells an invalidation from one of the same name that
        # comes while it is being written: that one has to be written again.
        self._queue: dict[tuple[str, bool], int] = {}
        self._lags: dict[str, float] = {}
        self._number = 0
        self._watchers: list[WeakMethod[Callable[[Pending], None]]] = []
        self.forked()

    def forked(self) -> None:
        """In a child: the queue is a copy, which the child writes too. Twice does no harm, and it can't ask."""
        #: Held while `names` changes, and by those who act on whether there are any. The garbage collector may end a
        #: retry while it is held.
        self.lock = threading.RLock()
        self._retrier: object | None = None
        self._set(frozenset(name for name, _ in self._queue))

    def watch(self, told: Callable[["Pending"], None]) -> None:
        """Have the method `told` called, with the lock held, when the queue is no longer empty, or empty again."""
        with self.lock:
            self._watchers = [one for one in self._watchers if one() not in (None, told)]
            self._watchers.append(WeakMethod(told))

    def _set(self, names: frozenset[str]) -> None:
        changed, self.names = bool(names) != bool(self.names), names
        if changed:
            for watcher in self._watchers:
                told = watcher()
                if told is not None:
                    told(self)

    def queued(self) -> tuple[str, ...]:
        """The names, the oldest first."""
        with self.lock:
            return tuple(dict.fromkeys(name for name, _ in self._queue))

    def add(self, names: Collection[str], *, soft: bool = False, lag_until: float = -inf) -> bool:
        """Queue them all, or none: whether there was room."""
        with self.lock:
            new = sum((name, soft) not in self._queue for name in set(names))
            if len(self._queue) + new > MAX_QUEUED:
                return False
            self._number += 1
            for name in names:
                self._queue[name, soft] = self._number
                if lag_until > self._lags.get(name, -inf):
                    self._lags[name] = lag_until
            self._set(self.names.union(names))
            return True

    def oldest(self) -> Batch | None:
        """What is to be written next; None where nothing is left."""
        with self.lock:
            batch: Batch | None = None
            for (name, soft), number in self._queue.items():
                lag_until = -inf if soft else self._lags.get(name, -inf)
                if batch is None:
                    batch = Batch([], soft, [], lag_until)
                elif (soft, lag_until) != (batch.soft, batch.lag_until) or len(batch.names) == BATCH:
                    break
                batch.names.append(name)
                batch.numbers.append(number)
            return batch

    def written(self, batch: Batch) -> bool:
        """Take what was written from the queue, but for what was queued again meanwhile. Whether nothing is left."""
        with self.lock:
            for name, number in zip(batch.names, batch.numbers, strict=True):
                if self._queue.get((name, batch.soft)) == number:
                    del self._queue[name, batch.soft]
                    if not batch.soft:
                        self._lags.pop(name, None)
            self._set(frozenset(name for name, _ in self._queue))
            return not self._queue

    # --- who retries

    def claim(self, retrier: object) -> bool:
        """Whether `retrier` is to retry from now on: there is something, and nobody else does."""
        with self.lock:
            if self._retrier is not None or not self._queue:
                return False
            self._retrier = retrier
            return True

    def needs(self, retrier: object) -> bool:
        """Whether there still is something to retry; if not, `retrier` is let go in the same step."""
        with self.lock:
            if not self._queue:
                self.let_go(retrier)
            return bool(self._queue)

    def let_go(self, retrier: object) -> None:
        with self.lock:
            if self._retrier is retrier:
                self._retrier = None


# Caches that share a backend share the queue too.
_pending: WeakKeyDictionary[Backend, Pending] = WeakKeyDictionary()


def _in_forked_child() -> None:
    for backend in list(_pending):
        _pending[backend].forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


class Invalidator:
    """Writes invalidations to one backend, and what could not be written later."""

    def __init__(self, backend: Backend, background: Background, flights: Flights) -> None:
        self.backend = backend
        self.background = background
        self.flights = flights
        self.pending = _pending.setdefault(backend, Pending())
        self.outage = outage_of(backend)

    async def invalidate(
        self,
        names: Collection[str],
        *,
        soft: bool = False,
        queue: bool = False,
        namespace: str = "",
        lag: Lag = NO_LAG,
        holder: str = "",
    ) -> bool:
        """Invalidate `names`, and let go of what `holder` holds; False where that could not be written and is queued.

        Who calls and is cancelled meanwhile cannot know either: what it wanted queued is. With a lag, soft is hard:
        what is renewed meanwhile may come from a replica.
        """
        soft = soft and not lag.seconds
        try:
            await self.write_what_is_queued()
            if lag.seconds or holder:
                await self._release(names, holder or new_holder(), lag)
            else:
                await self.backend.invalidate(names, soft=soft)
        except BackendError as error:
            self._queue_or_raise(names, soft, lag, error, namespace, queue=queue)
            return False
        except BaseException as error:
            if queue and not isinstance(error, Exception):
                if not self._keep(names, soft, lag, error, namespace):
                    logger.error("%s", _unwritten(error, names, namespace, full=True))
                elif not isinstance(error, GeneratorExit):  # that one may come without an event loop
                    self.see_to_retries()
            raise
        return True

    async def delete(self, name: str, *, namespace: str, lag: Lag = NO_LAG) -> bool:
        """Remove the entry under `name` and invalidate it as a tag. Whether an entry was there."""
        try:
            await self.write_what_is_queued()
            was_there = await self.backend.delete(name)
            if lag.seconds:
                await self._release([name], new_holder(), lag)
        except BackendError as error:
            raise _unwritten(error, [name], namespace) from error
        return was_there

    # --- transactions --------------------------------------------------------------------------------

    async def lease(
        self, names: Collection[str], holder: str, duration: float, *, queue: bool = False, namespace: str = ""
    ) -> bool | None:
        """Hold `names` for `duration` seconds: whether they are known to have been held already, without a break.

        None where that could not be written, and their invalidation is queued.
        """
        try:
            await self.write_what_is_queued()
            return await self.backend.lease(names, holder, duration)
        except BackendError as error:
            self._queue_or_raise(names, False, NO_LAG, error, namespace, queue=queue)
            return None

    async def release(self, names: Collection[str], holder: str, lag: Lag, *, namespace: str) -> None:
        """The end of a transaction. What could not be written is queued, and told in the log alone."""
        try:
            await self.write_what_is_queued()
            await self._release(names, holder, lag)
        except Exception as error:
            self.keep_release(names, lag, error, namespace)
            self.see_to_retries()

    def release_at_once(self, names: Collection[str], holder: str, lag: Lag, *, namespace: str) -> None:
        """As `release`, where nothing can be waited for: it is written if that takes no waiting, and else queued."""
        step = self.backend.release(names, holder, lag=lag.seconds, serve=lag.serve)
        try:
            step.send(None)
        except StopIteration:
            return
        except Exception as error:
            self.keep_release(names, lag, error, namespace)
        else:
            step.close()
            self.keep_release(names, lag, RuntimeError("its event loop was left"), namespace)

    def keep_release(self, names: Collection[str], lag: Lag, error: BaseException, namespace: str) -> None:
        kept = self.pending.add(names, lag_until=self._end_of(lag))
        logger.error(
            "the end of a transaction could not be written (%s): %s, as far as they are held, stay so until the lease "
            "ends, which counts as an invalidation%s",
            str(error) or type(error).__name__,
            _listed(names, namespace),
            ". It is queued besides" if kept else "",
            exc_info=None if isinstance(error, BackendError) else error,
        )

    async def _release(self, names: Collection[str], holder: str, lag: Lag) -> None:
        await self.backend.release(names, holder, lag=lag.seconds, serve=lag.serve)
        if lag.seconds and lag.caught_up is not None and self.background.is_open:
            self.background.start(partial(self._watch, names, holder, lag))

    async def _watch(self, names: Collection[str], holder: str, lag: Lag) -> None:
        """End a lag as soon as the replicas have caught up."""
        assert lag.caught_up is not None
        delay, failed = FIRST_ASKED, False
        with move_on_after(lag.seconds):
            while True:
                try:
                    if await lag.caught_up():
                        break
                except Exception:
                    if not failed:
                        logger.warning("the probe of replicas failed: it is asked again", exc_info=True)
                    failed = True
                await sleep(delay)
                delay = min(2 * delay, LAST_ASKED)
            try:
                await self.backend.release(names, holder)
            except Exception as error:
                self.outage.warn(self.backend.clock(), "a lag cannot be ended before its time: %s", error)

    def _end_of(self, lag: Lag) -> float:
        return self.backend.clock() + lag.seconds if lag.seconds else -inf

    def _queue_or_raise(
        self, names: Collection[str], soft: bool, lag: Lag, error: BackendError, namespace: str, *, queue: bool
    ) -> None:
        if not queue:
            raise _unwritten(error, names, namespace) from error
        if not self._keep(names, soft, lag, error, namespace):
            raise _unwritten(error, names, namespace, full=True) from error
        self.see_to_retries()

    def _keep(self, names: Collection[str], soft: bool, lag: Lag, error: BaseException, namespace: str) -> bool:
        first = not self.pending.names
        if not self.pending.add(names, soft=soft, lag_until=self._end_of(lag)):
            return False
        if first:
            logger.warning(
                "an invalidation could not be written (%s) and is queued, till it is: %s. Meanwhile this process "
                "serves and stores nothing that carries these tags",
                str(error) or type(error).__name__,
                _listed(names, namespace),
            )
        return True

    def keep_renewing(self, block: "Block") -> bool:
        """Have what `block` holds renewed as long as it is under way. Whether somebody does: an opened cache."""
        if not self.background.is_open:
            return False
        self.background.start(block.renew)
        return True

    # --- trying again --------------------------------------------------------------------------------

    async def flush(self) -> bool:
        """Try to write what is queued, in its order. Whether nothing is left.

        One flush runs at a time in this process; who comes meanwhile waits for it.
        """
        before, after = self.flights.begun, None
        while self.pending.names:
            turn, flight = self.flights.board(_FLUSH, self.backend.clock(), None, after)
            assert flight is not None
            if turn is Turn.LEAD:
                return await self._flush(flight)
            await self.flights.wait(flight, ())
            if flight.number > before and flight.fate is not Fate.CANCELLED:
                break
            after = flight
        return not self.pending.names

    async def write_what_is_queued(self) -> None:
        """Try to, unless somebody does so already: the backend is about to be asked for something anyway."""
        if self.pending.names:
            flight = self.flights.lead_unless_open(_FLUSH, self.backend.clock())
            if flight is not None:
                await self._flush(flight)

    async def _flush(self, flight: Flight) -> bool:
        try:
            while (batch := self.pending.oldest()) is not None:
                try:
                    lag = batch.lag_until - self.backend.clock()
                    if lag > 0:
                        await self.backend.release(batch.names, new_holder(), lag=lag)
                    else:
                        await self.backend.invalidate(batch.names, soft=batch.soft)
                except Exception as error:  # of whatever kind: what is queued stays so
                    self.outage.warn(
                        self.backend.clock(), "%d invalidations stay queued: %s", len(self.pending.names), error
                    )
                    break
                if self.pending.written(batch):
                    logger.info("all invalidations that were queued are written")
            self.flights.land(flight, Fate.UNCHECKED)
            return not self.pending.names
        finally:
            self.flights.land(flight, Fate.CANCELLED)

    def see_to_retries(self) -> None:
        """Have somebody retry in the background, if the cache is open in this event loop and nobody does so yet."""
        if self.background.is_open:
            retrier = object()
            if self.pending.claim(retrier):
                self.background.start(partial(self._retry, retrier))

    async def _retry(self, retrier: object) -> None:
        delay = FIRST_DELAY
        try:
            while self.pending.needs(retrier):
                await sleep(delay)
                await self.write_what_is_queued()
                delay = min(2 * delay, LONGEST_DELAY)
        finally:
            self.pending.let_go(retrier)

    async def finish(self, namespace: str) -> None:
        """The last try of a cache that closes. What is left stays queued, for the other caches on the backend."""
        if not self.pending.names:
            return
        try:
            with move_on_after(LAST_TRY):
                await self.flush()
        finally:
            self.tell_what_is_left(namespace)

    def tell_what_is_left(self, namespace: str) -> None:
        left = self.pending.queued()
        if left:
            logger.error(
                "%d invalidations are not written as the cache closes: %s. What carries these tags may be served "
                "old by other processes",
                len(left),
                _listed(left, namespace),
            )


def new_holder() -> str:
    """A name for who holds tags that nobody else has."""
    return secrets.token_hex(8)


def as_written(name: str, namespace: str) -> str:
    """A name as a user of the cache in `namespace` wrote it: its own tags plain, what is no tag of it described."""
    of, kind, text = name.split("|", 2)
    return text if kind == TAG and of == namespace else describe(name, namespace)


def _listed(names: Collection[str], namespace: str) -> str:
    return listed([as_written(name, namespace) for name in names], SHOWN)


def _unwritten(
    error: BaseException, names: Collection[str], namespace: str, *, full: bool = False
) -> InvalidationError:
    """What is raised for `error`. Of the names, those that the backend says may not have been invalidated."""
    left = list(names)
    if isinstance(error, InvalidationError) and error.tags and set(error.tags) <= set(left):
        left = list(error.tags)
    # A backend's own InvalidationError says what is said here already: what is behind it is what matters.
    behind = error.__cause__ if isinstance(error, InvalidationError) and error.__cause__ is not None else error
    why = str(behind) or type(behind).__name__
    advice = (
        f"The queue is full: it holds {MAX_QUEUED} invalidations at most"
        if full
        else "Try again, or give cache.invalidate() queue=True, which keeps what could not be written and tries again"
    )
    return InvalidationError(
        f"{_listed(left, namespace)} may not have been invalidated ({why}). {advice}",
        [as_written(name, namespace) for name in left],
    )
