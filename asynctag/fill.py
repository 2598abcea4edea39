"""How a value is obtained: from the backend, from a flight, or by computing and storing it."""

import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from anyio import move_on_after, sleep

from asynctag.backends.base import OF_NO_EPOCH, Backend, Cause, Entry, Miss, Reading, Stamp, Written
from asynctag.background import Background
from asynctag.codec import Codec, Kept, WithWindows
from asynctag.errors import BackendError, ConfigurationError, CorruptEntryError, ValueNotCacheableError, WindowError
from asynctag.expiry import Expiry, renews_early
from asynctag.flight import Fate, Flight, Flights, Turn
from asynctag.leased import FIRST_LOOK, LAST_LOOK, Held, check_verdict
from asynctag.names import NOBODYS
from asynctag.outage import outage_of
from asynctag.pending import Invalidator
from asynctag.placeholders import places_here
from asynctag.same import texts
from asynctag.scope import Scope, current_scope, gathering_scope, leave_scope, live_scope, nearest_open
from asynctag.skeleton import Skeleton
from asynctag.thaw import ATOMS
from asynctag.windows import Window, Windows

logger = logging.getLogger("asynctag")


class _Missing:
    """Stands where a value would."""


#: Nothing was found. `None` is a value like any other.
MISSING: Final = _Missing()

#: It was asked for, and there is no such value.
ABSENT: Final = _Missing()


class Job(NamedTuple):
    """One value to obtain. `tags` are names in the backend: the declared and the implicit ones."""

    name: str
    key: str
    tags: tuple[str, ...]
    codec: Codec
    expiry: Expiry
    namespace: str
    compute: Callable[[], Awaitable[Any]]
    in_background: bool = True
    #: Whether those who build it may find that there is no such value.
    may_be_absent: bool = False
    #: Renews it in the background, landing the flight, where that takes more than calling `compute`.
    renew: Callable[[Flight], Coroutine[Any, Any, None]] | None = None


class Found(NamedTuple):
    """What a search brought: a value and its entry, or MISSING and what the caller is to compute with.

    The reading's stamp is what the result is to be stored with. With a flight, others wait for the
    caller, who has to land it, whatever happens.
    """

    value: Any
    entry: Entry | None = None
    stale: bool = False
    reading: Reading | None = None
    flight: Flight | None = None


class Looked(NamedTuple):
    """A look-up that was made already: what it brought, and how many flights had begun and landed before it."""

    came: int
    landings: int
    reading: Reading | None


#: Before the "key" of the flight that a watch over a tag is: one a tag at a time. No entry can have it.
_WATCH: Final = "|-held|"

# Caches that share a backend share the flights too: one computation a key, by process.
_flights: WeakKeyDictionary[Backend, Flights] = WeakKeyDictionary()


def _forget_flights() -> None:
    """In a forked child nobody computes what was in flight in its parent."""
    for backend in list(_flights):
        _flights[backend].reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_flights)


class Filler:
    """Obtains values on one backend. `windows` are those that its cache has defined, by their names in entries."""

    def __init__(
        self, backend: Backend, background: Background, max_ttl: float, windows: dict[str, Window[..., Any]]
    ) -> None:
        self.backend = backend
        self.windows = Windows(backend, windows)
        self.flights = _flights.setdefault(backend, Flights())
        self.background = background
        self.invalidator = Invalidator(backend, background, self.flights)
        self.pending = self.invalidator.pending
        self.outage = outage_of(backend)
        self.max_ttl = max_ttl
        self.can_peek = type(backend).peek is not Backend.peek
        self.can_add = backend.in_process and _adds(type(backend))
        self._agreed = False

    # --- the backend, failing open -----------------------------------------------------------------

    async def read(self, key: str) -> Reading | None:
        """A reading, or None where the backend does not answer: the caller then computes, and stores nothing."""
        leased = self.pending.names  # before the backend is asked: see `asynctag.pending`
        if leased:
            self.invalidator.see_to_retries()
        try:
            if not self._agreed:
                await self.agree()
            reading = await self.backend.read(key)
        except BackendError as error:
            self._cannot_read(error)
            return None
        return _without(reading, leased) if leased else reading

    async def read_many(self, keys: Sequence[str]) -> list[Reading] | list[None]:
        leased = self.pending.names
        if leased:
            self.invalidator.see_to_retries()
        try:
            if not self._agreed:
                await self.agree()
            readings = await self.backend.read_many(keys)
        except BackendError as error:
            self._cannot_read(error)
            return [None] * len(keys)
        return [_without(reading, leased) for reading in readings] if leased else readings

    async def read_within(self, scope: Scope | None, key: str) -> Reading | None:
        """As `read`, for what runs in `scope`: as the transaction sees it, if there is one."""
        if scope is None or scope.transaction is None:
            return await self.read(key)
        return await scope.transaction.read(self, key)

    async def read_many_within(self, scope: Scope | None, keys: Sequence[str]) -> Sequence[Reading | None]:
        if scope is None or scope.transaction is None:
            return await self.read_many(keys)
        return await scope.transaction.read_many(self, keys)

    async def read_held(self, keys: Sequence[str]) -> Sequence[Reading | None]:
        """As `read_many`, of entries with tags that are held: see `Backend.read_held`."""
        leased = self.pending.names
        try:
            readings = await self.backend.read_held(keys)
        except BackendError as error:
            self._cannot_read(error)
            return [None] * len(keys)
        return [_without(reading, leased) for reading in readings] if leased else readings

    async def inspect(self, key: str) -> Reading:
        """As `read`, with the entry where there is one. Raises `BackendError`: there is nothing to explain."""
        leased = self.pending.names
        reading = await self.backend.inspect(key)
        return _without(reading, leased, with_entry=True) if leased else reading

    async def write_within(self, scope: Scope, entry: Entry) -> Written:
        """As `write`, for what runs in `scope`: a transaction stores it at its end, or not at all."""
        if scope.transaction is None:
            return await self.write(entry)
        return scope.transaction.hold(self, entry)

    async def write_many_within(self, scope: Scope, entries: Sequence[Entry]) -> list[Written]:
        if scope.transaction is None:
            return await self.write_many(entries)
        return [scope.transaction.hold(self, entry) for entry in entries]

    async def write(self, entry: Entry) -> Written:
        refused = self._refuse(entry)
        if refused is not None:
            return refused
        try:
            if not self._agreed:
                await self.agree()
            return await self.backend.write(entry)
        except BackendError as error:
            self._warn("%s could not be stored: %s", entry.key, error)
            return Written(False)

    async def write_many(self, entries: Sequence[Entry]) -> list[Written]:
        refused = [self._refuse(entry) for entry in entries]
        sent = [entry for entry, refusal in zip(entries, refused, strict=True) if refusal is None]
        written: Sequence[Written] = ()
        if sent:
            try:
                if not self._agreed:
                    await self.agree()
                written = await self.backend.write_many(sent)
            except BackendError as error:
                self._warn("%d values could not be stored: %s", len(sent), error)
                written = [Written(False)] * len(sent)
        answers = iter(written)
        return [next(answers) if refusal is None else refusal for refusal in refused]

    def _refuse(self, entry: Entry) -> Written | None:
        """The answer to a write that need not be sent: it has no stamp to be held against, or a tag that is leased."""
        if entry.stamp is OF_NO_EPOCH:
            return Written(False)
        tag = _first_of(self.pending.names, entry)
        return None if tag is None else Written(False, miss=Miss(Cause.INVALIDATED, tag))

    async def agree(self) -> None:
        await self.backend.agree(self.max_ttl)
        self._agreed = True

    def _cannot_read(self, error: BackendError) -> None:
        self._warn("the backend cannot be read (%s): computing without it", error)

    def _warn(self, message: str, *args: object) -> None:
        self.outage.warn(self.backend.clock(), message, *args)

    # --- one value -----------------------------------------------------------------------------------

    async def obtain(self, job: Job, looked: Looked | None = None) -> Any:
        """The value of `job`: a hit, what a flight brought, or what its computation returns."""
        value = await self._obtain(job, looked)
        return value if type(value) is not Skeleton else await self.hand_out(value)

    async def _obtain(self, job: Job, looked: Looked | None) -> Any:
        parent = live_scope()
        try:
            found = await self.find(job, parent, looked)
        except BaseException:  # what the caller does instead depends on it too
            if parent is not None:
                parent.gather(job.tags, self.backend)
            raise
        if found.value is not MISSING:
            return found.value
        try:
            return await self.compute(job, found.reading, found.flight, parent)
        finally:
            if found.flight is not None:
                self.flights.land(found.flight, Fate.CANCELLED)

    async def find(self, job: Job, parent: Scope | None, looked: Looked | None = None) -> Found:
        """A value of `job` to serve, from the backend or from another's flight; else it is the caller's turn.

        In a transaction nobody waits for another, nor is waited for.
        """
        if parent is not None and parent.transaction is not None:
            return await self.look(job, parent)
        if looked is None:
            came = self.flights.begun
            landings = self.flights.landings(job.key)
            found = self._found(job, await self.read(job.key), parent)
        else:
            came, landings, reading = looked
            found = self._found(job, reading, parent)
        if found.value is MISSING and _is_leased(found.reading) and job.expiry.while_leased is not None:
            found = await self._despite_lease(job, found, parent, may_wait=not _flights_around(parent))
        if found.value is MISSING:
            return await self._queue(job, parent, came, found.reading, landings, None)
        return found

    async def look(self, job: Job, parent: Scope | None) -> Found:
        """A value of `job` to serve from the backend."""
        found = self._found(job, await self.read_within(parent, job.key), parent)
        if found.value is MISSING and _is_leased(found.reading) and job.expiry.while_leased is not None:
            return await self._despite_lease(job, found, parent, may_wait=False)
        return found

    def _found(self, job: Job, reading: Reading | None, parent: Scope | None) -> Found:
        value = self.serve(job, reading, parent)
        if value is MISSING or reading is None:
            return Found(MISSING, reading=reading)
        return Found(value, reading.entry, reading.stale, reading)

    async def _queue(
        self,
        job: Job,
        parent: Scope | None,
        came: int,
        reading: Reading | None,
        landings: int | None,
        after: Flight | None,
    ) -> Found:
        """Join a flight or lead one, for a caller who came when `came` flights had begun.

        It has found nothing in `reading`, or was left without a result by the flight `after`.
        """
        inside = _flights_around(parent)
        refusals = 0
        while True:
            turn, flight = self.flights.board(job.key, self.backend.clock(), landings, after)
            if flight is None:
                if turn is Turn.ALONE:
                    return Found(MISSING, reading=reading)
                landings = self.flights.landings(job.key)
                found = await self.look(job, parent)
                if found.value is not MISSING:
                    return found
                reading = found.reading
            elif turn is Turn.LEAD:
                if after is None:
                    return Found(MISSING, reading=reading, flight=flight)
                return await self._look_again(job, flight, parent)
            else:
                if not await self._wait(job, flight, inside, parent):
                    return Found(MISSING, reading=reading)
                if flight.serves(came):
                    value = self._share(job, flight, parent)
                    if value is not MISSING:
                        return Found(value, flight.entry, flight.stale)
                refusals += flight.fate is Fate.REFUSED
                if refusals == 2:  # nobody waits for more than two
                    return Found(MISSING, reading=reading)
                after, landings = flight, None

    async def _look_again(self, job: Job, flight: Flight, parent: Scope | None) -> Found:
        """The look-up with which a flight begins that is to serve those whom another left without a result."""
        try:
            found = await self.look(job, parent)
        except BaseException:
            self.flights.land(flight, Fate.CANCELLED)
            raise
        if found.value is MISSING:
            return found._replace(flight=flight)
        self.flights.land(flight, Fate.UNCHECKED, entry=found.entry, stale=found.stale)
        return found

    # --- while a transaction holds a tag -------------------------------------------------------------

    async def _despite_lease(self, job: Job, found: Found, parent: Scope | None, *, may_wait: bool) -> Found:
        """What the reader of a leased tag gets instead, if there is anything. `found` is why it has to ask."""
        readings = {job.name: found.reading}
        values = await self._despite_leases({job.name: job}, readings, [job.name], parent, may_wait=may_wait)
        reading = readings[job.name]
        if not values or reading is None:
            return Found(MISSING, reading=reading)
        return Found(values[job.name], reading.entry, reading.stale, reading)

    async def _despite_leases(
        self,
        jobs: Mapping[str, Job],
        readings: dict[str, Reading | None],
        names: list[str],
        parent: Scope | None,
        *,
        may_wait: bool,
    ) -> dict[str, Any]:
        """What is served of `names`, which were found leased. What was read goes into `readings`.

        Nobody in a transaction is served what it may have changed itself, or waits for another. Nothing is waited for
        while others wait for the caller.
        """
        behaviour = jobs[names[0]].expiry.while_leased
        if behaviour is None or (parent is not None and parent.transaction is not None):
            return {}
        before = dict(zip(names, await self.read_held([jobs[name].key for name in names]), strict=True))
        name = next((name for name in names if _holds_entry(before[name])), None)
        if name is None:  # replicas have yet to catch up, or a holder may be dead: nothing comes of waiting either
            return {}
        reading, first = readings[name], before[name]
        assert reading is not None
        assert reading.miss is not None
        assert first is not None
        assert first.entry is not None
        tag, since = reading.miss.tag or "", first.entry.stamp
        held = Held(jobs[name].key, tag, partial(self._released, tag, since) if may_wait else None)
        verdict = check_verdict(await behaviour(held), behaviour)
        values: dict[str, Any] = {}
        if held.waited:
            again = await self.read_many([jobs[name].key for name in names])
            readings |= dict(zip(names, again, strict=True))
            values = {name: self.serve(jobs[name], readings[name], parent) for name in names}
            values = {name: value for name, value in values.items() if value is not MISSING}
            names = [name for name in names if name not in values and _is_leased(readings[name])]
            if verdict == "serve_stale" and names:
                before = dict(zip(names, await self.read_held([jobs[name].key for name in names]), strict=True))
        if verdict == "serve_stale":
            for name in names:
                one = before[name]
                value = self._serve_held(jobs[name], one, parent)
                if value is not MISSING and one is not None:
                    values[name], readings[name] = value, one._replace(stale=True)
        return values

    def _serve_held(self, job: Job, reading: Reading | None, parent: Scope | None) -> Any:
        """As `serve`, of what was there before a lease. It is not renewed: nothing could be stored."""
        if reading is None or reading.entry is None or (parent is not None and parent.renewing):
            return MISSING
        if not may_serve_held(reading, self.backend.clock()):
            return MISSING
        value = self.load(reading.entry, job.codec)
        if value is not MISSING and parent is not None:
            parent.absorb(reading.entry, self.backend, stale=True)
        return value

    async def _released(self, tag: str, since: Stamp, within: float) -> bool:
        """Wait until `tag` is let go of. One of those who wait looks, in this process; the others wait for that one."""
        key, after = f"{_WATCH}{tag}", None
        with move_on_after(within):
            while True:
                turn, flight = self.flights.board(key, self.backend.clock(), None, after)
                assert flight is not None
                if turn is Turn.LEAD:
                    try:
                        await self._watch(tag, since)
                        self.flights.land(flight, Fate.UNCHECKED)
                    finally:
                        self.flights.land(flight, Fate.CANCELLED)
                    return True
                await self.flights.wait(flight, ())
                if flight.fate is not Fate.CANCELLED:
                    return True
                after = flight
        return False

    async def _watch(self, tag: str, since: Stamp) -> None:
        pause = FIRST_LOOK
        try:
            while await self.backend.is_held(tag, since):
                await sleep(pause)
                pause = min(2 * pause, LAST_LOOK)
        except BackendError as error:
            self._cannot_read(error)

    async def refresh(self, job: Job) -> Any:
        """Compute `job` now and store it, whatever is cached.

        A number is taken from the journal first: with its newer stamp, the result is not replaced by
        that of a computation which began before.
        """
        parent, numbered = live_scope(), True
        if parent is not None and parent.transaction is not None:  # as of the transaction, and stored at its end
            return await self._finish(await self.compute(job, await parent.transaction.reading(self), None, parent))
        try:
            await self.backend.invalidate([NOBODYS])
        except BackendError as error:
            self._warn("the backend cannot be written (%s): %s is computed and not stored", error, job.name)
            numbered = False
        flight = self.flights.lead_unless_open(job.key, self.backend.clock())
        try:
            reading = await self.read(job.key) if numbered else None
            value = await self.compute(job, reading, flight, parent)
        finally:
            if flight is not None:
                self.flights.land(flight, Fate.CANCELLED)
        return await self._finish(value)

    async def _wait(self, job: Job, flight: Flight, inside: tuple[Flight, ...], parent: Scope | None) -> bool:
        try:
            return await self.flights.wait(flight, inside)
        except BaseException:  # gave up: what the caller does instead depends on it too
            self._hand_on(job, flight, parent)
            raise

    def _hand_on(self, job: Job, flight: Flight, parent: Scope | None) -> None:
        """Give a caller who got no value from a flight what its computation has gathered."""
        if parent is None:
            return
        parent.gather(job.tags, self.backend)
        scope = flight.scope
        if scope is not None:
            limits = (scope.fresh_until, scope.expires, scope.stale_stamp)
            parent.gather(scope.tags, self.backend, *limits, no_store=scope.no_store)

    def _share(self, job: Job, flight: Flight, parent: Scope | None) -> Any:
        if flight.entry is None:
            self._hand_on(job, flight, parent)
            if flight.error is not None:
                raise flight.error.with_traceback(flight.traceback)
            return ABSENT if job.may_be_absent else MISSING
        value = self.load(flight.entry, job.codec)
        if value is not MISSING and parent is not None:
            parent.absorb(flight.entry, self.backend, stale=flight.stale)
        return value

    def serve(self, job: Job, reading: Reading | None, parent: Scope | None) -> Any:
        """The value of what was read, if it may be served; starts its renewal where that is due."""
        if reading is None or reading.entry is None:
            return MISSING
        entry, now = reading.entry, self.backend.clock()
        if reading.stale:
            due = True
            if parent is not None and parent.renewing:
                return MISSING
            if now >= entry.stale_until or entry.stale_until <= entry.fresh_until:
                return MISSING
        elif parent is not None and parent.transaction is not None:
            due = False
        else:
            due = now >= entry.renew_from and renews_early(now, entry.renew_from, entry.fresh_until)
        if due and not self._renew(job, now):
            return MISSING
        value = self.load(entry, job.codec)
        if value is not MISSING and parent is not None:
            parent.absorb(entry, self.backend, stale=reading.stale)
        return value

    def load(self, entry: Entry, codec: Codec) -> Any:
        """As `load`, and MISSING too for a skeleton with windows that this process does not have, or not any more."""
        value = load(entry, codec)
        if type(value) is Skeleton:
            try:
                self.windows.check(value.places)
            except CorruptEntryError as error:
                logger.warning("%s is taken for a miss: %s", entry.key, error)
                return MISSING
        return value

    # --- values with windows -------------------------------------------------------------------------

    async def hand_out(self, skeleton: Skeleton) -> Any:
        """The value for whoever asked: with placeholders for a computation, and filled for everybody else.

        Raises what a window raises, and `WindowError` for what cannot stand where it was placed.
        """
        return (await self.hand_out_all({"": skeleton}))[""]

    async def hand_out_all(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """As `hand_out`, of those `values` that are skeletons: the windows of all of them run side by side."""
        skeletons = {name: value for name, value in values.items() if type(value) is Skeleton}
        if not skeletons:
            return dict(values)
        scope = gathering_scope()
        if scope is None:
            results = await self.windows.fill(place for one in skeletons.values() for place in one.places)
            return {**values, **{name: one.filled(results) for name, one in skeletons.items()}}
        if scope.backend is not self.backend and scope.backend is not None:
            raise WindowError(
                f"a value with windows of a cache on another backend is used in {scope.name}, where nobody knows them. "
                f"Give both caches one backend"
            )
        places = places_here(scope)
        return {**values, **{name: one.placed(places) for name, one in skeletons.items()}}

    async def _finish(self, value: Any) -> Any:
        return value if type(value) is not Skeleton else await self.hand_out(value)

    def cut_out(self, codec: Codec, value: Any, scope: Scope | None, *, stored: bool = True) -> Any:
        """What was computed in `scope`: as a skeleton where windows were placed in it."""
        places = scope.root.places if scope is not None else None
        if scope is None or places is None:
            return value
        try:
            return codec.skeleton(value, places) or value
        except ValueNotCacheableError as error:
            if stored and not scope.no_store:
                raise
            if nearest_open(scope.parent) is None and any(map(places.stands_in, texts(value))):
                raise WindowError(f"the windows in what {scope.name} returns cannot be filled: {error}") from error
            return value

    def _renew(self, job: Job, now: float) -> bool:
        """Whether `job` is being renewed, or is from now on, by somebody whom the caller need not wait for."""
        if not job.in_background or not self.background.is_open:
            return False
        flight = self.flights.lead_unless_open(job.key, now)
        if flight is None:
            return True
        renew = partial(self._renew_now, job) if job.renew is None else job.renew
        self.background.start(partial(renew, flight))
        return True

    async def _renew_now(self, job: Job, flight: Flight) -> None:
        try:
            reading = await self.read(job.key)
            entry = None if reading is None or reading.stale else reading.entry
            if entry is not None and self.backend.clock() < entry.renew_from:  # somebody was faster
                self.flights.land(flight, Fate.UNCHECKED, entry=entry)
                return
            await self.compute(job, reading, flight, None, renewing=True)
        except Exception:
            logger.warning("the renewal of %s failed", job.name, exc_info=True)
        finally:
            self.flights.land(flight, Fate.CANCELLED)

    # --- computing -----------------------------------------------------------------------------------

    async def compute(
        self,
        job: Job,
        reading: Reading | None,
        flight: Flight | None,
        parent: Scope | None,
        *,
        renewing: bool = False,
    ) -> Any:
        """Run the computation in a scope of its own and store its result, stamped with its own look-up."""
        scope = self.open_scope(job, parent, (flight,) if flight is not None else (), renewing=renewing)
        started = self.backend.clock()
        token = current_scope.set(scope)
        try:
            try:
                value = await job.compute()
                kept = self.cut_out(job.codec, value, scope)
            except Exception as error:
                if not renewing and scope.transaction is None:
                    value = await self._fallback(job, flight, parent, error)
                    if value is not MISSING:
                        return value
                if flight is not None:
                    self._land_failed(flight, scope, error)
                raise
            finally:
                scope.closed = True
                leave_scope(token)
            await self.store(job, kept, reading, flight, scope, started)
            return kept  # a skeleton for a computation too: it gets from a miss what it gets from a hit
        finally:
            scope.hand_up()

    async def compute_unstored(self, job: Job) -> Any:
        """Compute while the cache is disabled: nothing is looked up or stored, tags go up as ever."""
        scope = self.open_scope(job, live_scope(), (), renewing=False)
        token = current_scope.set(scope)
        try:
            value = await job.compute()
            kept = self.cut_out(job.codec, value, scope, stored=False)
        finally:
            leave_scope(token)
            scope.hand_up()
        return await self._finish(kept)

    async def build_unstored(
        self, jobs: Mapping[str, Job], build: Callable[[list[str]], Awaitable[Mapping[str, Any]]]
    ) -> dict[str, Any]:
        """As `compute_unstored`, of many values that are built together."""
        names = list(jobs)
        scope = self.open_scope(jobs[names[0]], live_scope(), (), renewing=False)
        for job in jobs.values():
            scope.tags.update(job.tags)
        token = current_scope.set(scope)
        try:
            built = check_built(await build(names), names)
            kept = {name: self.cut_out(jobs[name].codec, built[name], scope, stored=False) for name in built}
        finally:
            leave_scope(token)
            scope.hand_up()
        kept = await self.hand_out_all(kept)
        return {name: kept[name] for name in jobs if name in kept}

    def _land_failed(self, flight: Flight, scope: Scope, error: Exception) -> None:
        fate = Fate.UNSHARED if scope.no_store else Fate.FAILED
        self.flights.land(flight, fate, error=error, now=self.backend.clock())

    def open_scope(self, job: Job, parent: Scope | None, flights: tuple[Flight, ...], *, renewing: bool) -> Scope:
        renewing = renewing or (parent is not None and parent.renewing)
        scope = Scope(job.name, self.backend, job.namespace, parent, renewing=renewing)
        scope.refuse_windows(job.tags, "an argument or a tag")
        scope.tags.update(job.tags)
        scope.flights = flights
        for flight in flights:
            flight.scope = scope
        return scope

    async def store(
        self,
        job: Job,
        value: Any,
        reading: Reading | None,
        flight: Flight | None,
        scope: Scope,
        started: float,
        *,
        unaccepted: Fate = Fate.UNCHECKED,
        before: Entry | None = None,
    ) -> Written:
        """Store what was computed within `scope`, since `started`, and land the flight. `before` is stored first."""
        entry = self._prepare(job, value, reading, flight, scope, started)
        if entry is None:
            return Written(False)
        if before is None:
            written = await self.write_within(scope, entry)
        else:
            written = (await self.write_many_within(scope, [before, entry]))[-1]
        self._conclude(job, entry, written, flight, scope, unaccepted)
        return written

    def _prepare(
        self, job: Job, value: Any, reading: Reading | None, flight: Flight | None, scope: Scope, started: float
    ) -> Entry | None:
        """The entry to send, its flight closed; None for what is not to be stored."""
        if scope.no_store:
            if flight is not None:
                self.flights.land(flight, Fate.UNSHARED, now=self.backend.clock())
            return None
        try:
            kept = self.keep(job.codec, value)
        except Exception as error:
            if flight is not None:
                self.flights.land(flight, Fate.FAILED, error=error)
            raise
        if flight is not None:
            self.flights.close(flight)
        return self.entry(job, kept, reading.stamp if reading is not None else None, scope, started)

    def _conclude(
        self, job: Job, entry: Entry, written: Written, flight: Flight | None, scope: Scope, unaccepted: Fate
    ) -> None:
        if written.miss is not None and written.miss.cause is Cause.TOO_LARGE:
            logger.warning("%s is larger than the backend keeps: it is computed by every call", job.name)
        self.settle(entry, written, scope)
        if flight is not None:
            fate = Fate.ACCEPTED if written.accepted else unaccepted
            self.flights.land(flight, fate, entry=entry, stale=scope.stale_stamp is not None)

    def settle(self, entry: Entry, written: Written, scope: Scope) -> None:
        """Give the scope what its entry turned out to be, for the computation around it."""
        scope.fresh_until, scope.expires = entry.fresh_until, entry.expires
        if written.stale:
            scope.stale_stamp = entry.stamp

    def keep(self, codec: Codec, value: Any) -> Kept:
        """`value` as the backend keeps it, proven to come back the same."""
        if self.backend.in_process:
            return codec.keep(value)
        data = codec.encode(value) if type(value) is not Skeleton else value.encode()
        return Kept(data, codec.decode, len(data))

    def lasting(self, key: str, value: Any, codec: Codec, tags: Iterable[str], reading: Reading | None) -> Entry:
        """An entry with a value that was not computed, to be kept for as long as any is."""
        kept, end = self.keep(codec, value), self.backend.clock() + self.max_ttl
        stamp = reading.stamp if reading is not None else OF_NO_EPOCH
        return Entry(key, kept.body, kept.thaw, codec, kept.size, in_order(tags), stamp, end, end, end, end)

    def entry(self, job: Job, kept: Kept, stamp: Stamp | None, scope: Scope, started: float) -> Entry:
        if stamp is None:
            stamp = OF_NO_EPOCH
        stale = scope.stale_stamp
        if stale is not None:
            stamp = min(stamp, stale) if stale.epoch == stamp.epoch else OF_NO_EPOCH
        now = self.backend.clock()
        times = job.expiry.times(now, now - started, scope.fresh_until, scope.expires)
        codec: Any = job.codec if type(kept.body) is not Skeleton else job.codec.with_windows
        return Entry(job.key, kept.body, kept.thaw, codec, kept.size, in_order(scope.tags), stamp, *times)

    async def _fallback(self, job: Job, flight: Flight | None, parent: Scope | None, error: Exception) -> Any:
        """The stale value to serve instead of `error`, read again so that the journal has its say."""
        if not job.expiry.stale_if_error:
            return MISSING
        reading = await self.read(job.key)
        if reading is None or reading.entry is None:
            return MISSING
        value = self.load(reading.entry, job.codec)
        if value is MISSING:
            return MISSING
        logger.warning("%s failed: serving what was cached before", job.name, exc_info=error)
        if parent is not None:
            parent.absorb(reading.entry, self.backend, stale=reading.stale)
        if flight is not None:
            self.flights.land(flight, Fate.UNCHECKED, entry=reading.entry, stale=reading.stale)
        return value

    # --- many values ---------------------------------------------------------------------------------

    async def obtain_many(
        self,
        jobs: Mapping[str, Job],
        build: Callable[[list[str]], Awaitable[Mapping[str, Any]]],
    ) -> dict[str, Any]:
        """The values of `jobs`; `build` gets the names that miss, at once, and may leave some out."""
        return await self.hand_out_all(await self._obtain_many(jobs, build))

    async def _obtain_many(
        self,
        jobs: Mapping[str, Job],
        build: Callable[[list[str]], Awaitable[Mapping[str, Any]]],
    ) -> dict[str, Any]:
        parent = live_scope()
        if parent is not None and parent.transaction is not None:
            return await self._obtain_many_alone(jobs, build, parent)
        inside = _flights_around(parent)
        came = self.flights.begun
        landings: dict[str, int] = {}
        after: dict[str, Flight] = {}  # those that left a name without a result
        found: dict[str, Any] = {}
        readings: dict[str, Reading | None] = {}
        fresh = missing = list(jobs)
        may_wait = not inside
        while missing:
            # Those that no flight has left over yet are looked up here, the others by whoever leads the next flight.
            landings |= {name: self.flights.landings(jobs[name].key) for name in fresh}
            values = await self._look_many(jobs, fresh, readings, parent, may_wait=may_wait)
            may_wait = False
            found |= values
            boarded = self._board_many(jobs, [name for name in missing if name not in values], landings, after)
            fresh, missing = boarded.again, list(boarded.again)
            try:
                led = boarded.led
                found |= (seen := await self._look_many(jobs, [n for n in led if n in after], readings, parent))
                for name in seen:
                    reading = readings[name]
                    assert reading is not None
                    self.flights.land(led[name], Fate.UNCHECKED, entry=reading.entry, stale=reading.stale)
                names = [name for name in led if name not in seen] + boarded.alone
                if names:
                    found |= await self._build(jobs, readings, names, led, build, parent)
            finally:
                for flight in boarded.led.values():
                    self.flights.land(flight, Fate.CANCELLED)
            # Only now, its own flights landed: two callers that lead and join crosswise do not wait for each other.
            for name, flight in boarded.joined.items():
                job = jobs[name]
                if not await self._wait(job, flight, inside, parent):
                    found |= await self._build(jobs, readings, [name], {}, build, parent)
                    continue
                value = self._share(job, flight, parent) if flight.serves(came) else MISSING
                if value is MISSING:
                    after[name] = flight
                    missing.append(name)
                else:
                    found[name] = value
        return {name: found[name] for name in jobs if found.get(name, ABSENT) is not ABSENT}

    async def _obtain_many_alone(
        self,
        jobs: Mapping[str, Job],
        build: Callable[[list[str]], Awaitable[Mapping[str, Any]]],
        parent: Scope,
    ) -> dict[str, Any]:
        """As `obtain_many`, in a transaction: without flights."""
        readings: dict[str, Reading | None] = {}
        found = await self._look_many(jobs, list(jobs), readings, parent)
        missing = [name for name in jobs if name not in found]
        if missing:
            found |= await self._build(jobs, readings, missing, {}, build, parent)
        return {name: found[name] for name in jobs if name in found}

    async def _look_many(
        self,
        jobs: Mapping[str, Job],
        names: Sequence[str],
        readings: dict[str, Reading | None],
        parent: Scope | None,
        *,
        may_wait: bool = False,
    ) -> dict[str, Any]:
        """The values among `names` that the backend has; what was read goes into `readings`."""
        if not names:
            return {}
        read = await self.read_many_within(parent, [jobs[name].key for name in names])
        readings |= dict(zip(names, read, strict=True))
        values = {name: self.serve(jobs[name], readings[name], parent) for name in names}
        found = {name: value for name, value in values.items() if value is not MISSING}
        leased = [name for name in names if name not in found and _is_leased(readings[name])]
        if leased:
            found |= await self._despite_leases(jobs, readings, leased, parent, may_wait=may_wait)
        return found

    def _board_many(
        self,
        jobs: Mapping[str, Job],
        names: Sequence[str],
        landings: Mapping[str, int],
        after: Mapping[str, Flight],
    ) -> "_Boarded":
        boarded = _Boarded({}, {}, [], [])
        now = self.backend.clock()
        for name in names:
            left_by = after.get(name)
            turn, flight = self.flights.board(jobs[name].key, now, None if left_by else landings[name], left_by)
            if flight is not None:
                (boarded.led if turn is Turn.LEAD else boarded.joined)[name] = flight
            else:
                (boarded.alone if turn is Turn.ALONE else boarded.again).append(name)
        return boarded

    async def _build(
        self,
        jobs: Mapping[str, Job],
        readings: Mapping[str, Reading | None],
        names: list[str],
        led: Mapping[str, Flight],
        build: Callable[[list[str]], Awaitable[Mapping[str, Any]]],
        parent: Scope | None,
    ) -> dict[str, Any]:
        """Build `names` in one scope. What is gathered in it counts for each of them."""
        scope = self.open_scope(jobs[names[0]], parent, tuple(led.values()), renewing=False)
        for name in names:
            scope.tags.update(jobs[name].tags)
        started = self.backend.clock()
        token = current_scope.set(scope)
        try:
            try:
                built = check_built(await build(names), names)
                kept = {name: self.cut_out(jobs[name].codec, value, scope) for name, value in built.items()}
            except Exception as error:
                for flight in led.values():
                    self._land_failed(flight, scope, error)
                raise
            finally:
                scope.closed = True
                leave_scope(token)
            await self._store_parts(jobs, kept, readings, led, scope, started)
            for name, flight in led.items():
                if name not in built:
                    self.flights.land(flight, Fate.ABSENT)
            return kept
        finally:
            scope.hand_up()

    async def _store_parts(
        self,
        jobs: Mapping[str, Job],
        built: Mapping[str, Any],
        readings: Mapping[str, Reading | None],
        led: Mapping[str, Flight],
        scope: Scope,
        started: float,
    ) -> None:
        """Store what was built together, each with its own tags and those that were gathered for all, in one go."""
        names = list(built)
        shared = scope.tags.difference(*(jobs[name].tags for name in names))
        sent: list[tuple[str, Entry, Scope]] = []
        for name in names:
            part = self._part(jobs[name], scope, shared)
            entry = self._prepare(jobs[name], built[name], readings[name], led.get(name), part, started)
            part.tags = set()  # they are the entry's now
            if entry is not None:
                sent.append((name, entry, part))
        answers = await self.write_many_within(scope, [entry for _, entry, _ in sent])
        for (name, entry, part), written in zip(sent, answers, strict=True):
            self._conclude(jobs[name], entry, written, led.get(name), part, Fate.UNCHECKED)
            scope.fresh_until = min(scope.fresh_until, part.fresh_until)
            scope.expires = min(scope.expires, part.expires)
            scope.stale_stamp = scope.stale_stamp or part.stale_stamp

    def _part(self, job: Job, scope: Scope, shared: set[str]) -> Scope:
        part = Scope(job.name, self.backend, job.namespace)
        part.tags.update(job.tags, shared)
        part.fresh_until, part.expires, part.stale_stamp = scope.fresh_until, scope.expires, scope.stale_stamp
        part.no_store = scope.no_store
        return part


class _Boarded(NamedTuple):
    """The turns of a caller of many values: flights to lead, flights to join, names to build alone or look up again."""

    led: dict[str, Flight]
    joined: dict[str, Flight]
    alone: list[str]
    again: list[str]


def check_built(built: Mapping[str, Any], names: list[str]) -> Mapping[str, Any]:
    """What a builder returned, if it is a mapping, and holds nothing that the builder was not asked for."""
    if not isinstance(built, Mapping):
        raise ConfigurationError(f"the builder returned {type(built).__name__}: return a dict from keys to values")
    asked = set(names)
    strangers = [name for name in built if name not in asked]
    if strangers:
        raise ConfigurationError(f"the builder returned {strangers[0]!r}, which it was not asked for: it got {names!r}")
    return built


def _adds(kind: type[Backend]) -> bool:
    """Whether `add` of a backend is its own: one that overrides only how it writes is to be asked to write."""
    for base in kind.__mro__:
        if "add" in vars(base):
            return base is not Backend
        if "write" in vars(base) or "write_many" in vars(base):
            return False
    return False


def _is_leased(reading: Reading | None) -> bool:
    return reading is not None and reading.is_leased


def _holds_entry(reading: Reading | None) -> bool:
    return reading is not None and reading.entry is not None


def may_serve_held(reading: Reading, now: float) -> bool:
    """Whether what was there before a lease may still be served: as long as it would be without one."""
    entry = reading.entry
    if entry is None or now >= entry.stale_until:
        return False
    return not reading.stale or entry.stale_until > entry.fresh_until


def _flights_around(scope: Scope | None) -> tuple[Flight, ...]:
    """The flights that cannot land before the caller has its value."""
    if scope is None:
        return ()
    around: list[Flight] = []
    while scope is not None:
        around.extend(scope.flights)
        scope = scope.parent
    return tuple(around)


def _first_of(leased: frozenset[str], entry: Entry) -> str | None:
    """The first tag of `entry` that is leased, if one is."""
    if not leased or leased.isdisjoint(entry.tags):
        return None
    return next(tag for tag in entry.tags if tag in leased)


def _without(reading: Reading, leased: frozenset[str], *, with_entry: bool = False) -> Reading:
    """What was read, as a miss where the entry carries a tag that was leased before the backend was asked."""
    tag = _first_of(leased, reading.entry) if reading.entry is not None and reading.miss is None else None
    if tag is None:
        return reading
    return Reading(reading.stamp, reading.entry if with_entry else None, miss=Miss(Cause.INVALIDATED, tag))


def in_order(tags: Iterable[str]) -> tuple[str, ...]:
    """In one order in every process: those that have read an entry know the next one with its tags by their bytes.

    In this one, what users have written comes first: of several that were invalidated, the first is named.
    """
    return tuple(sorted(tags, reverse=True))


def load(entry: Entry, codec: Codec) -> Any:
    """The value of `entry` as the type of `codec`, or MISSING where it is not of that type."""
    its_codec: Codec | WithWindows | None = entry.codec
    try:
        if its_codec is codec or (type(its_codec) is WithWindows and its_codec.codec is codec):
            return entry.load()
        if its_codec is None:  # bytes, from outside this process
            decoded = entry.decoded
            known = decoded is not None and (decoded[0] is codec or decoded[0] is codec.with_windows)
            return decoded[1] if decoded is not None and known else _decode(entry, codec)
        # Stored as another type under the same key: decode what its bytes would be.
        return codec.decode(its_codec.encode(entry.load()))
    except CorruptEntryError as error:
        logger.warning("%s is taken for a miss: %s", entry.key, error)
        return MISSING


def _decode(entry: Entry, codec: Codec) -> Any:
    """The value of the bytes of `entry`, kept with it where nobody can change it."""
    value = codec.decode(entry.body)
    if type(value) in ATOMS:
        entry.decoded = codec, value
    elif type(value) is Skeleton:  # whose windows are looked for each time
        entry.decoded = codec.with_windows, value
    return value
