"""Caches over a database of versioned rows, with a scheduling point wherever others may come between.

The oracle: a row has a version, a writer makes a new one and invalidates, and once the invalidation
has returned the version is *acknowledged*. A read notes what is acknowledged when it starts, and
nothing that it returns may be older.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from sys import intern
from typing import Any

from asynctag import Cache
from asynctag import fill as fill_module
from asynctag.backends.base import Backend, Entry, Reading, Stamp, Written
from asynctag.backends.memory import MemoryBackend
from asynctag.codec import NOT_GIVEN, codec_for
from asynctag.flight import Fate, Flight, Flights
from asynctag.names import describe
from asynctag.scope import current_scope
from tests.interleaving.fingerprint import Canon
from tests.interleaving.scheduler import Execution, Process, Runtime, Status, current_process

#: That of all values here: what comes from a server does not say how it was encoded.
_CODEC = codec_for(NOT_GIVEN, owner="the world")


class Failed(Exception):  # noqa: N818 - said of a computation
    """A computation that failed. It says which versions it had read."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SteppedBackend(Backend):
    """A backend as if at the end of a wire: others may come before a command runs, and before its answer arrives."""

    def __init__(self, inner: Backend, execution: Execution, *, remote: bool, client: int = 0) -> None:
        self.inner = inner
        self.clock = inner.clock
        self.in_process = inner.in_process  # type: ignore[misc]
        #: Of which entries it has seen the tags: of these, a client of a server asks in another way.
        self.seen: dict[str, tuple[str, ...]] = {}
        self._execution = execution
        self._remote = remote
        self._client = client

    def peek(self, key: str) -> Entry | None:
        return None if self._remote else self.inner.peek(key)

    async def _answer(self, about: str) -> None:
        if self._remote:
            await self._execution.point(f"gets the answer {about}")

    def _told(self, asked: str, told: str = "") -> None:
        if told:
            self._execution.note(told)
        self._execution.asked.append(intern(f"client {self._client} {asked}: {told}"))

    def _see(self, key: str, reading: Reading) -> None:
        if reading.entry is not None:
            self.seen[key] = reading.entry.tags
            about = f"{'a stale ' if reading.stale else ''}hit: {_value(reading.entry)} of {reading.entry.stamp.seq}"
        else:
            about = f"miss ({reading.miss.cause.value if reading.miss else '?'}), as of {reading.stamp.seq}"
        self._told(f"looks up {key}", about)

    def _see_written(self, entry: Entry, written: Written) -> None:
        if written.accepted:
            self.seen[entry.key] = entry.tags
        outcome = "accepted" if written.accepted else f"refused ({written.miss.cause.value if written.miss else '?'})"
        about = f"{_value(entry)} of {entry.stamp.seq} {outcome}{', stale' * written.stale}"
        self._told(f"stores {entry.key} with {sorted(entry.tags)}", about)

    async def read(self, key: str) -> Reading:
        what = describe(key)
        await self._execution.point(f"looks up {what}")
        reading = await self.inner.read(key)
        self._see(key, reading)
        await self._answer(f"about {what}")
        return reading

    async def read_many(self, keys: Sequence[str]) -> list[Reading]:
        what = ", ".join(describe(key) for key in keys)
        await self._execution.point(f"looks up {what}")
        readings = await self.inner.read_many(keys)
        for key, reading in zip(keys, readings, strict=True):
            self._see(key, reading)
        await self._answer(f"about {what}")
        return readings

    async def write(self, entry: Entry) -> Written:
        what = describe(entry.key)
        await self._execution.point(f"stores {what}")
        written = await self.inner.write(entry)
        self._see_written(entry, written)
        await self._answer(f"about storing {what}")
        return written

    async def write_many(self, entries: Sequence[Entry]) -> list[Written]:
        await self._execution.point("stores " + ", ".join(describe(entry.key) for entry in entries))
        written = await self.inner.write_many(entries)
        for entry, one in zip(entries, written, strict=True):
            self._see_written(entry, one)
        await self._answer("about storing")
        return written

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        names = list(tags)
        what = f"invalidates{' softly' * soft} {', '.join(describe(name) for name in names)}"
        await self._execution.point(what)
        await self.inner.invalidate(names, soft=soft)
        self._told(what)

    async def lease(self, tags: Iterable[str], holder: str, duration: float) -> bool:
        names = list(tags)
        what = f"holds {', '.join(describe(name) for name in names)}"
        await self._execution.point(what)
        held = await self.inner.lease(names, holder, duration)
        self._told(what)
        return held

    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        names = list(tags)
        what = f"lets go of {', '.join(describe(name) for name in names)}"
        process = current_process()
        # It is not to be cancelled here: the end of a transaction shields itself.
        may_be_cancelled, process.may_be_cancelled = process.may_be_cancelled, False
        try:
            await self._execution.point(what)
        finally:
            process.may_be_cancelled = may_be_cancelled
        await self.inner.release(names, holder, lag=lag, serve=serve)
        self._told(what)

    def newest(self) -> Stamp:
        return self.inner.newest()

    async def unchanged(self, tags: Sequence[str], since: Stamp) -> bool:
        names = list(tags)
        what = f"asks whether {', '.join(describe(name) for name in names)} are as they were"
        await self._execution.point(what)
        unchanged = await self.inner.unchanged(names, since)
        self._told(what, "yes" if unchanged else "no")
        return unchanged

    async def read_held(self, keys: Sequence[str]) -> list[Reading]:
        what = ", ".join(describe(key) for key in keys)
        await self._execution.point(f"looks up {what} in spite of leases")
        readings = await self.inner.read_held(keys)
        for key, reading in zip(keys, readings, strict=True):
            self._see(key, reading)
        await self._answer(f"about {what} in spite of leases")
        return readings

    async def delete(self, key: str) -> bool:
        what = f"deletes {describe(key)}"
        await self._execution.point(what)
        was_there = await self.inner.delete(key)
        self._told(what, "an entry was there" if was_there else "no entry was there")
        return was_there

    async def inspect(self, key: str) -> Reading:
        return await self.inner.inspect(key)

    async def agree(self, max_ttl: float) -> None:
        await self.inner.agree(max_ttl)

    async def aclose(self) -> None:
        await self.inner.aclose()


def _value(entry: Entry) -> Any:
    return _CODEC.decode(entry.body) if entry.codec is None else entry.load()


class SteppedFlights(Flights):
    """Flights whose waiting callers the scheduler knows of; between a landing and a caller's waking others may come."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self._world = world

    async def wait(self, flight: Flight, inside: tuple[Flight, ...]) -> bool:
        execution, process = self._world.execution, current_process()
        execution.note(f"waits for flight {flight.number}")
        process.waits_for, process.status = flight, Status.WAITING
        try:
            landed = await super().wait(flight, inside)
        finally:
            process.waits_for, process.status = None, Status.RUNNING
        if landed:
            await execution.point(f"wakes: flight {flight.number} has landed")
            if flight.fate is not Fate.CANCELLED:
                self._world.waited_for(flight)
        return landed

    def land(self, flight: Flight, fate: Fate, **about: Any) -> None:
        first = flight.fate is None
        super().land(flight, fate, **about)
        if first and flight.fate is not None:
            self._world.execution.note(f"flight {flight.number} lands: {fate.name.lower()}")
            for process in self._world.execution.processes:
                if process.waits_for is flight and process.status is Status.WAITING:
                    process.status = Status.RUNNING


#: Makes the backends of one execution: one for each client that shares the data.
Backends = Callable[[Clock], AbstractAsyncContextManager[list[Backend]]]


@asynccontextmanager
async def in_memory(clock: Clock) -> AsyncIterator[list[Backend]]:
    yield [MemoryBackend(clock=clock)]


@asynccontextmanager
async def in_memory_of_two(clock: Clock) -> AsyncIterator[list[Backend]]:
    """Two clients of one memory, each with flights of its own, as those of a server have them."""
    memory = MemoryBackend(clock=clock)
    yield [memory, memory]


class World:
    """What the processes of a scenario share."""

    def __init__(self, name: str, execution: Execution, inner: list[Backend], clock: Clock, *, remote: bool) -> None:
        self.name = name
        self.execution = execution
        self.clock = clock
        self.remote = remote
        self.rows = {"x": 0, "y": 0}
        self.acknowledged = {"x": 0, "y": 0}
        #: As `acknowledged`, by soft invalidations: what is served as *fresh* may not be older.
        self.softly = {"x": 0, "y": 0}
        self.notes: dict[str, Any] = {}
        self.backends = [SteppedBackend(one, execution, remote=remote, client=at) for at, one in enumerate(inner)]
        self.flights = [SteppedFlights(self) for _ in inner]
        for backend, flights in zip(self.backends, self.flights, strict=True):
            fill_module._flights[backend] = flights
        self._made: list[tuple[int, dict[str, Any], Cache]] = []
        self._before: list[Callable[[], Awaitable[object]]] = []
        self._after: list[Callable[[], Awaitable[object]]] = []
        self._waited: dict[str, list[str]] = {}
        self._exits = AsyncExitStack()
        self._opens = False
        self._lose: Callable[[], Awaitable[None]] = getattr(inner[0], "wipe", _cannot_be_lost)
        execution.at_end_of_process = _scope_left

    # --- for the scenario -------------------------------------------------------------------------

    def cache(self, client: int = 0, **options: Any) -> Cache:
        """A cache of one of the clients (there may be fewer than asked for)."""
        client %= len(self.backends)
        for made_for, made_with, cache in self._made:
            if (made_for, made_with) == (client, options):
                return cache
        cache = Cache(self.backends[client], **{"default_ttl": 100, **options})
        self._made.append((client, options, cache))
        return cache

    def open_caches(self) -> None:
        """Renewals run in the background, as processes of their own."""
        self._opens = True

    def before(self, work: Callable[[], Awaitable[object]]) -> None:
        self._before.append(work)

    def after(self, work: Callable[[], Awaitable[object]]) -> None:
        self._after.append(work)

    def process(
        self, name: str, work: Callable[[], Any], *, cancellable: bool = False, kind: str | None = None
    ) -> None:
        """A process of the scenario. Those of one `kind` do exactly the same, but for the client that they use."""
        self.execution.add(name, work, cancellable=cancellable, kind=kind if len(self.backends) == 1 else None)

    async def point(self, at: str) -> None:
        await self.execution.point(at)

    def caller(self) -> str:
        return current_process().name

    async def lose_journal(self) -> None:
        """All that the backend holds is gone, as after a restart."""
        await self._lose()
        self.execution.asked.append("the journal is lost")

    async def row(self, name: str) -> str:
        """The row as it is now; others may come before, and before it has arrived."""
        await self.execution.point(f"reads row {name}")
        value = self.row_now(name)
        if self.remote:
            await self.execution.point(f"gets row {name}")
        return value

    def row_now(self, name: str) -> str:
        self.execution.note(f"{name}@{self.rows[name]}")
        return f"{name}@{self.rows[name]}"

    async def commit(self, row: str, invalidate: Callable[[], Awaitable[object]], *, soft: bool = False) -> None:
        """A new version of the row, then the invalidation that makes it known."""
        self.rows[row] += 1
        version = self.rows[row]
        self.execution.note(f"{row}@{version} is in the database")
        await invalidate()
        promised = self.softly if soft else self.acknowledged
        promised[row] = max(promised[row], version)
        self.execution.note(f"{row}@{version} is acknowledged")

    async def ask(self, call: Callable[[], Awaitable[object]], *, fresh: bool = False) -> None:
        """Read, and hold what comes back, values or errors, against what was acknowledged at the start."""
        need = dict(self.acknowledged)
        if fresh:
            need = {row: max(version, self.softly[row]) for row, version in need.items()}
        self._waited[current_process().name] = []
        try:
            value = await call()
        except Failed as error:
            value = str(error)
        self.execution.note(f"has {value!r}")
        for part in str(value).split():
            row, at, version = part.partition("@")
            if at and int(version) < need[row]:
                self.execution.problem(f"got {part}, though {row}@{need[row]} was acknowledged before it asked")

    def waited_for(self, flight: Flight) -> None:
        """Nobody waits for more than two computations of a key. (Of one that was cancelled, nothing is to be had.)"""
        waited = self._waited.setdefault(current_process().name, [])
        waited.append(flight.key)
        if waited.count(flight.key) > 2:
            self.execution.problem(f"waited for {waited.count(flight.key)} computations of {describe(flight.key)}")

    # --- for the exploration ------------------------------------------------------------------------

    async def begin(self) -> None:
        for _, _, cache in self._made:
            if self._opens:
                self._see_background(cache)
                await self._exits.enter_async_context(cache)
        for number, work in enumerate(self._before, 1):
            await self.execution.run_alone(f"before {number}", _as_coroutine(work))

    def _see_background(self, cache: Cache) -> None:
        background: Any = cache._background
        start = background.start

        def started(work: Callable[[], Any]) -> None:
            _, body = self.execution.adopt("renewal", work)
            start(body)

        background.start = started

    async def end(self, *, finished: bool) -> None:
        try:
            if finished:
                self._no_open_flight("is left open at the end")
                for number, work in enumerate(self._after, 1):
                    await self.execution.run_alone(f"after {number}", _as_coroutine(work))
        finally:
            problems = list(self.execution.problems)
            await self.execution.drain()
            await self._exits.aclose()
            if not problems:
                self._no_open_flight("is left open after all were cancelled")
            else:
                self.execution.problems[:] = problems

    def forget(self) -> None:
        """Let go of it all: its flights know their world, and would be kept for ever."""
        for backend in self.backends:
            del fill_module._flights[backend]

    def _no_open_flight(self, how: str) -> None:
        for flights in self.flights:
            for key in flights._open:
                self.execution.problem(f"the flight of {describe(key)} {how}")

    def fingerprint(self) -> Hashable | None:
        """The state of all, if it can be seen: what a server holds cannot."""
        inner = self.backends[0].inner
        if not isinstance(inner, MemoryBackend) or any(one.inner is not inner for one in self.backends):
            return None
        canon = Canon(inner._stamp)
        # The canon counts the flights of all clients from where those of the last one are.
        last = self.flights[-1].begun
        flights = *map(canon.of_flights, self.flights), *(one.begun - last for one in self.flights)
        shared = canon.of([self.rows, self.acknowledged, self.softly, self.clock.now])
        seen = tuple(tuple(sorted((key, *sorted(tags)) for key, tags in one.seen.items())) for one in self.backends)
        stored = _memory_state(inner, canon)
        processes = []
        for p in sorted(self.execution.processes, key=_order):
            waited = tuple(sorted(self._waited.get(p.name, ())))
            where = p.kind, p.status.value, p.at, p.may_be_cancelled, p.was_cancelled
            processes.append((where, waited, canon.of_calls(p.coroutine)))
        return stored, shared, seen, flights, tuple(processes)


def _order(process: Process) -> tuple[object, ...]:
    """Processes of one kind can be taken for each other: of two states that differ in this, one is enough."""
    return process.kind, process.status.value, process.at, process.was_cancelled, process.may_be_cancelled


def _memory_state(backend: MemoryBackend, canon: Canon) -> Hashable:
    now = backend._stamp.seq
    return (
        backend._floor - now,
        tuple(sorted((tag, number - now) for tag, number in backend._hard.items())),
        tuple(sorted((tag, number - now) for tag, number in backend._soft.items())),
        canon.of_leases(backend._leases),
        canon.of_leases(backend._lags),
        tuple(
            (canon.of(node), node.checked is backend._stamp, canon.of(node.checked))
            for _, node in sorted(backend._entries.items())
        ),
    )


async def _cannot_be_lost() -> None:
    raise NotImplementedError("this backend has no wipe()")


def _as_coroutine(work: Callable[[], Awaitable[object]]) -> Callable[[], Any]:
    async def run() -> None:
        await work()

    return run


def _scope_left() -> str | None:
    scope = current_scope.get()
    return None if scope is None else f"left the scope of {scope.name} in its context"


Build = Callable[[World], None]


def stage(name: str, build: Build, backends: Backends = in_memory, *, remote: bool = True) -> Callable[[Runtime], Any]:
    """A scenario on some backends, to be explored."""

    @asynccontextmanager
    async def make(runtime: Runtime) -> AsyncIterator[World]:
        clock = Clock()
        async with backends(clock) as inner:
            world = World(name, Execution(runtime), inner, clock, remote=remote)
            build(world)
            try:
                yield world
            finally:
                world.forget()

    return make
