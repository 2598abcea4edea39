"""How a value is obtained: from the backend, from a flight, or by computing and storing it."""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from asynctag.backends.base import Backend, Entry, Reading, Stamp, Written
from asynctag.background import Background
from asynctag.codec import Codec, Kept
from asynctag.errors import BackendError, ConfigurationError, CorruptEntryError
from asynctag.expiry import Expiry, renews_early
from asynctag.flight import Fate, Flight, Flights, Turn
from asynctag.scope import Scope, current_scope, live_scope

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


# Caches that share a backend share the flights too: one computation a key, by process.
_flights: WeakKeyDictionary[Backend, Flights] = WeakKeyDictionary()


class Filler:
    """Obtains values on one backend."""

    def __init__(self, backend: Backend, background: Background, max_ttl: float) -> None:
        self.backend = backend
        self.flights = _flights.setdefault(backend, Flights())
        self.background = background
        self.max_ttl = max_ttl
        self._agreed = False

    # --- the backend, failing open -----------------------------------------------------------------

    async def read(self, key: str) -> Reading | None:
        """A reading, or None where the backend does not answer: the caller then computes, and stores nothing."""
        try:
            if not self._agreed:
                await self.agree()
            return await self.backend.read(key)
        except BackendError as error:
            logger.warning("the backend cannot be read (%s): computing without it", error)
            return None

    async def read_many(self, keys: Sequence[str]) -> list[Reading] | list[None]:
        try:
            if not self._agreed:
                await self.agree()
            return await self.backend.read_many(keys)
        except BackendError as error:
            logger.warning("the backend cannot be read (%s): computing without it", error)
            return [None] * len(keys)

    async def write(self, entry: Entry) -> Written:
        try:
            return await self.backend.write(entry)
        except BackendError as error:
            logger.warning("%s could not be stored: %s", entry.key, error)
            return Written(False)

    async def agree(self) -> None:
        await self.backend.agree(self.max_ttl)
        self._agreed = True

    # --- one value -----------------------------------------------------------------------------------

    async def obtain(self, job: Job) -> Any:
        """The value of `job`: a hit, what a flight brought, or what its computation returns."""
        parent = live_scope()
        found = await self.find(job, parent)
        if found.value is not MISSING:
            return found.value
        try:
            return await self.compute(job, found.reading, found.flight, parent)
        finally:
            if found.flight is not None:
                self.flights.land(found.flight, Fate.CANCELLED)

    async def find(self, job: Job, parent: Scope | None) -> Found:
        """A value of `job` to serve, from the backend or from another's flight; else it is the caller's turn."""
        came = self.flights.begun
        landings = self.flights.landings(job.key)
        found = await self.look(job, parent)
        if found.value is MISSING:
            return await self._queue(job, parent, came, found.reading, landings, None)
        return found

    async def look(self, job: Job, parent: Scope | None) -> Found:
        """A value of `job` to serve from the backend."""
        reading = await self.read(job.key)
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

    async def refresh(self, job: Job) -> Any:
        """Compute `job` now and store it, whatever is cached."""
        flight = self.flights.lead_unless_open(job.key, self.backend.clock())
        try:
            return await self.compute(job, await self.read(job.key), flight, live_scope())
        finally:
            if flight is not None:
                self.flights.land(flight, Fate.CANCELLED)

    async def _wait(self, job: Job, flight: Flight, inside: tuple[Flight, ...], parent: Scope | None) -> bool:
        try:
            return await self.flights.wait(flight, inside)
        except BaseException:  # gave up: what the caller does instead depends on it too
            if parent is not None:
                parent.gather({*job.tags, *flight.tags}, self.backend)
            raise

    def _share(self, job: Job, flight: Flight, parent: Scope | None) -> Any:
        if flight.entry is None:
            if parent is not None:
                parent.gather({*job.tags, *flight.tags}, self.backend)
            if flight.error is not None:
                raise flight.error
            return ABSENT if job.may_be_absent else MISSING
        value = load(flight.entry, job.codec)
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
        else:
            due = now >= entry.renew_from and renews_early(now, entry.renew_from, entry.fresh_until)
        if due and not self._renew(job, now):
            return MISSING
        value = load(entry, job.codec)
        if value is not MISSING and parent is not None:
            parent.absorb(entry, self.backend, stale=reading.stale)
        return value

    def _renew(self, job: Job, now: float) -> bool:
        """Whether `job` is being renewed, or is from now on, by somebody whom the caller need not wait for."""
        if not job.in_background or not self.background.is_open:
            return False
        flight = self.flights.lead_unless_open(job.key, now)
        if flight is None:
            return True
        renew = partial(self._renew_now, job) if job.renew is None else job.renew
        return self.background.start(partial(renew, flight))

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
            except Exception as error:
                if not renewing:
                    value = await self._fallback(job, flight, parent, error)
                    if value is not MISSING:
                        return value
                if flight is not None:
                    self.flights.land(flight, Fate.FAILED, error=error)
                raise
            finally:
                scope.closed = True
                current_scope.reset(token)
            await self.store(job, value, reading, flight, scope, started)
            return value
        finally:
            scope.hand_up()

    async def compute_unstored(self, job: Job) -> Any:
        """Compute while the cache is disabled: nothing is looked up or stored, tags go up as ever."""
        scope = self.open_scope(job, live_scope(), (), renewing=False)
        token = current_scope.set(scope)
        try:
            return await job.compute()
        finally:
            current_scope.reset(token)
            scope.hand_up()

    def open_scope(self, job: Job, parent: Scope | None, flights: tuple[Flight, ...], *, renewing: bool) -> Scope:
        renewing = renewing or (parent is not None and parent.renewing)
        scope = Scope(job.name, self.backend, job.namespace, parent, renewing=renewing)
        scope.tags.update(job.tags)
        scope.flights = flights
        for flight in flights:
            flight.tags = scope.tags
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
    ) -> Written:
        """Store what was computed within `scope`, since `started`, and land the flight."""
        if scope.no_store:
            if flight is not None:
                self.flights.land(flight, Fate.UNSHARED, now=self.backend.clock())
            return Written(False)
        try:
            kept = self.keep(job.codec, value)
        except Exception as error:
            if flight is not None:
                self.flights.land(flight, Fate.FAILED, error=error)
            raise
        entry = self.entry(job, kept, reading.stamp if reading is not None else None, scope, started)
        if flight is not None:
            self.flights.close(flight)
        written = await self.write(entry) if self.may_store(entry, scope, reading) else Written(False)
        self.settle(entry, written, scope)
        if flight is not None:
            fate = Fate.ACCEPTED if written.accepted else unaccepted
            self.flights.land(flight, fate, entry=entry, stale=scope.stale_stamp is not None)
        return written

    def may_store(self, entry: Entry, scope: Scope, reading: Reading | None) -> bool:
        """Not without a stamp, nor built from something stale of before the journal was lost."""
        return reading is not None and (scope.stale_stamp is None or scope.stale_stamp.epoch == entry.stamp.epoch)

    def settle(self, entry: Entry, written: Written, scope: Scope) -> None:
        """Give the scope what its entry turned out to be, for the computation around it."""
        scope.fresh_until, scope.expires = entry.fresh_until, entry.expires
        if written.stale:
            scope.stale_stamp = entry.stamp

    def keep(self, codec: Codec, value: Any) -> Kept:
        """`value` as the backend keeps it, proven to come back the same."""
        if self.backend.in_process:
            return codec.keep(value)
        data = codec.encode(value)
        return Kept(data, codec.decode, len(data))

    def entry(self, job: Job, kept: Kept, stamp: Stamp | None, scope: Scope, started: float) -> Entry:
        if stamp is None:
            stamp = Stamp(-1, -1)
        if scope.stale_stamp is not None:
            stamp = min(stamp, scope.stale_stamp, key=lambda one: one.seq)
        now = self.backend.clock()
        times = job.expiry.times(now, now - started, scope.fresh_until, scope.expires)
        return Entry(job.key, kept.body, kept.thaw, job.codec, kept.size, tuple(scope.tags), stamp, *times)

    async def _fallback(self, job: Job, flight: Flight | None, parent: Scope | None, error: Exception) -> Any:
        """The stale value to serve instead of `error`, read again so that the journal has its say."""
        if not job.expiry.stale_if_error:
            return MISSING
        reading = await self.read(job.key)
        if reading is None or reading.entry is None:
            return MISSING
        value = load(reading.entry, job.codec)
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
        parent = live_scope()
        inside = _flights_around(parent)
        came = self.flights.begun
        landings = {name: self.flights.landings(job.key) for name, job in jobs.items()}
        readings = dict(zip(jobs, await self.read_many([job.key for job in jobs.values()]), strict=True))
        found: dict[str, Any] = {}
        led: dict[str, Flight] = {}
        joined: dict[str, Flight] = {}
        alone: list[str] = []
        again: list[str] = []
        try:
            for name, job in jobs.items():
                value = self.serve(job, readings[name], parent)
                if value is not MISSING:
                    found[name] = value
                    continue
                turn, flight = self.flights.board(job.key, self.backend.clock(), landings[name])
                if flight is not None:
                    (led if turn is Turn.LEAD else joined)[name] = flight
                else:
                    (alone if turn is Turn.ALONE else again).append(name)
            if led or alone:
                found |= await self._build(jobs, readings, [*led, *alone], led, build, parent)
        finally:
            self._land_all(led)
        # Only now, with its own flights landed: two callers that lead and join crosswise do not wait for each other.
        for name, flight in joined.items():
            job = jobs[name]
            if not await self._wait(job, flight, inside, parent):
                found |= await self._build(jobs, readings, [name], {}, build, parent)
                continue
            value = self._share(job, flight, parent) if flight.serves(came) else MISSING
            if value is not MISSING:
                found[name] = value
                continue
            mine = await self._queue(job, parent, came, readings[name], None, flight)
            if mine.value is not MISSING:
                found[name] = mine.value
                continue
            led = {name: mine.flight} if mine.flight is not None else {}
            try:
                found |= await self._build(jobs, {name: mine.reading}, [name], led, build, parent)
            finally:
                self._land_all(led)
        if again:
            found |= await self.obtain_many({name: jobs[name] for name in again}, build)
        return {name: found[name] for name in jobs if found.get(name, ABSENT) is not ABSENT}

    def _land_all(self, flights: Mapping[str, Flight]) -> None:
        for flight in flights.values():
            self.flights.land(flight, Fate.CANCELLED)

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
            except Exception as error:
                for flight in led.values():
                    self.flights.land(flight, Fate.FAILED, error=error)
                raise
            finally:
                scope.closed = True
                current_scope.reset(token)
            shared = scope.tags.difference(*(jobs[name].tags for name in names))
            parts = [self._part(jobs[name], scope, shared) for name in names if name in built]
            for name, part in zip((name for name in names if name in built), parts, strict=True):
                await self.store(jobs[name], built[name], readings[name], led.get(name), part, started)
            for name, flight in led.items():
                if name not in built:
                    self.flights.land(flight, Fate.ABSENT)
            for part in parts:
                scope.fresh_until = min(scope.fresh_until, part.fresh_until)
                scope.expires = min(scope.expires, part.expires)
                scope.stale_stamp = scope.stale_stamp or part.stale_stamp
            return dict(built)
        finally:
            scope.hand_up()

    def _part(self, job: Job, scope: Scope, shared: set[str]) -> Scope:
        part = Scope(job.name, self.backend, job.namespace)
        part.tags.update(job.tags, shared)
        part.fresh_until, part.expires, part.stale_stamp = scope.fresh_until, scope.expires, scope.stale_stamp
        part.no_store = scope.no_store
        return part


def check_built(built: Mapping[str, Any], names: list[str]) -> Mapping[str, Any]:
    """What a builder returned, if it is a mapping, and holds nothing that the builder was not asked for."""
    if not isinstance(built, Mapping):
        raise ConfigurationError(f"the builder returned {type(built).__name__}: return a dict from keys to values")
    strangers = [name for name in built if name not in names]
    if strangers:
        raise ConfigurationError(f"the builder returned {strangers[0]!r}, which it was not asked for: it got {names!r}")
    return built


def _flights_around(scope: Scope | None) -> tuple[Flight, ...]:
    """The flights that cannot land before the caller has its value."""
    if scope is None:
        return ()
    around: list[Flight] = []
    while scope is not None:
        around.extend(scope.flights)
        scope = scope.parent
    return tuple(around)


def load(entry: Entry, codec: Codec) -> Any:
    """The value of `entry` as the type of `codec`, or MISSING where it is not of that type."""
    try:
        if entry.codec is codec:
            return entry.load()
        # Stored as another type under the same key: decode what its bytes would be.
        return codec.decode(entry.codec.encode(entry.load()))
    except CorruptEntryError as error:
        logger.warning("%s is taken for a miss: %s", entry.key, error)
        return MISSING
