"""No interleaving of a few readers and writers is served stale, hangs, or leaves anything behind.

All of them are run, on the real code: see `tests/interleaving`. The wrong variants show that the
enumeration would see it: each breaks one rule of the protocol, and must be caught.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asynctag.backends.base import Cause, Entry, Miss, Written
from asynctag.backends.memory import MemoryBackend
from asynctag.fill import MISSING, Filler, load
from asynctag.flight import Fate, Flight, Flights
from asynctag.scope import Scope
from asynctag.transaction import Block
from tests.interleaving.scenarios import LIGHT, SCENARIOS, explored, one_waits_for_many_flights
from tests.interleaving.scheduler import (
    Choice,
    Explored,
    OnAsyncio,
    Step,
    Violation,
    explore_on_asyncio,
    explore_on_trio,
    replay,
)
from tests.interleaving.world import stage

#: On trio the same scenarios run, as far as this many executions go: its turns take longer.
ON_TRIO = 30


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of failing computations need not be logged."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def explore(name: str, run: Callable[..., Explored] = explore_on_asyncio, **options: Any) -> Explored:
    return run(stage(name, SCENARIOS[name], remote=name not in LIGHT), **options)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_interleaving_holds(name: str) -> None:
    """Whatever the order, nobody gets old data, hangs, or sees the cancellation of another."""
    found = explored(name)
    assert found.complete
    assert found.states > 20


@pytest.mark.parametrize("name", SCENARIOS)
def test_interleavings_hold_on_trio(name: str) -> None:
    """The first of them, on the other event loop."""
    assert explore(name, explore_on_trio, limit=ON_TRIO).executions > 5


def test_the_same_executions_on_both_event_loops() -> None:
    """What a schedule does is the same on asyncio and on trio: as many executions, states and steps."""
    name = "A reader and two writers"
    here, there = explore(name), explore(name, explore_on_trio)
    assert here == there


def test_without_fingerprints_nothing_else_is_found() -> None:
    """Where the state cannot be seen, as on a server, the schedules are followed to their ends."""
    name = "A key without tags is deleted while it is computed"
    make = stage(name, SCENARIOS[name])

    def blind(runtime: Any) -> Any:
        world = make(runtime)
        return _Blind(world)

    found = explore_on_asyncio(blind, limit=200)
    assert (found.states, found.executions, found.complete) == (0, 200, False)


class _Blind:
    def __init__(self, making: Any) -> None:
        self._making = making

    async def __aenter__(self) -> Any:
        world = await self._making.__aenter__()
        world.fingerprint = lambda: None
        return world

    async def __aexit__(self, *error: Any) -> Any:
        return await self._making.__aexit__(*error)


def _refused_flights(caller: str) -> list[Step]:
    """Three flights in turn, each refused by an invalidation, and a caller who could wait for each of them."""
    schedule: list[Step] = []
    for number in (1, 2, 3):
        schedule += [(Choice.RUN, f"reader {number}")] * 2  # looks up and leads
        schedule += [(Choice.RUN, caller)] * 2  # looks up and waits; or wakes, looks up again and waits
        schedule += [(Choice.RUN, f"writer {number}")] * 2
        schedule += [(Choice.RUN, f"reader {number}")] * 2  # reads the row and stores: refused
    return schedule


def test_a_caller_of_many_waits_for_two_computations_at_most() -> None:
    """Also where the stores of all those before it are refused."""
    make = stage("many", one_waits_for_many_flights, remote=False)
    log = asyncio.run(replay(make, OnAsyncio(), _refused_flights("many"))).log
    assert 1 <= sum("many: waits for flight" in line for line in log) <= 2, "\n".join(log)
    assert sum("refused" in line for line in log) == 3


# --- wrong variants -------------------------------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch], None]
VARIANTS: dict[str, tuple[Break, str]] = {}


def variant(scenario: str) -> Callable[[Break], Break]:
    def add(breaks: Break) -> Break:
        VARIANTS[(breaks.__doc__ or "").rstrip(".")] = breaks, scenario
        return breaks

    return add


@variant("Two readers and a writer")
def stamped_at_the_store(patch: pytest.MonkeyPatch) -> None:
    """The stamp is taken when the entry is stored."""
    write = Filler.write

    async def stamped(self: Filler, entry: Entry) -> Written:
        entry.stamp = self.backend.inner._stamp  # type: ignore[attr-defined]
        return await write(self, entry)

    patch.setattr(Filler, "write", stamped)


@variant("Two readers and a writer")
def stamped_at_the_computation(patch: pytest.MonkeyPatch) -> None:
    """The stamp is taken when the value is there, before the store is sent."""
    make = Filler.entry

    def stamped(self: Filler, job: Any, kept: Any, stamp: Any, scope: Any, started: float) -> Entry:
        return make(self, job, kept, self.backend.inner._stamp, scope, started)  # type: ignore[attr-defined]

    patch.setattr(Filler, "entry", stamped)


@variant("Two readers and a writer")
def store_unchecked(patch: pytest.MonkeyPatch) -> None:
    """A store is not held against the journal; what was stored counts from then on."""
    write = MemoryBackend._write

    def unchecked(self: MemoryBackend, entry: Entry) -> Written:
        entry.stamp = self._stamp
        return write(self, entry)

    patch.setattr(MemoryBackend, "_write", unchecked)


@variant("Two readers and a writer")
def joined_during_the_store(patch: pytest.MonkeyPatch) -> None:
    """A flight may be joined after its store was sent."""
    patch.setattr(Flights, "close", lambda self, flight: None)


@variant("Two readers and a writer")
def unchecked_results_shared(patch: pytest.MonkeyPatch) -> None:
    """A result that no store has accepted is shared with all who wait."""
    patch.setattr(Flight, "serves", lambda self, came: self.fate in (Fate.ACCEPTED, Fate.UNCHECKED, Fate.FAILED))


@variant("A computation fails: its error goes to those who came before it began")
def errors_for_all(patch: pytest.MonkeyPatch) -> None:
    """An error is shared with all who wait, also with those who came after its data was read."""
    serves = Flight.serves
    patch.setattr(Flight, "serves", lambda self, came: self.fate is Fate.FAILED or serves(self, came))


@variant("A computation is not to be stored: its value is its own caller's")
def no_store_shared(patch: pytest.MonkeyPatch) -> None:
    """What is not to be stored is shared with those who wait."""
    store = Filler.store

    async def shared(self: Filler, job: Any, value: Any, reading: Any, flight: Any, scope: Any, started: float) -> Any:
        if scope.no_store and flight is not None:
            entry = self.entry(job, self.keep(job.codec, value), reading.stamp, scope, started)
            self.flights.land(flight, Fate.ACCEPTED, entry=entry)
        return await store(self, job, value, reading, flight, scope, started)

    patch.setattr(Filler, "store", shared)


@variant("The row of a child changes while its parent is computed")
def tags_stay_with_the_child(patch: pytest.MonkeyPatch) -> None:
    """A computed child does not hand its tags up."""
    patch.setattr(Scope, "hand_up", lambda self: setattr(self, "closed", True))


@variant("A parent is computed from a child that is cached already")
def tags_of_hits_stay(patch: pytest.MonkeyPatch) -> None:
    """A child that is hit does not hand its tags up."""
    patch.setattr(Scope, "absorb", lambda self, entry, backend, stale=False: None)


@variant("A parent is computed from a child that another task computes")
def tags_of_joined_stay(patch: pytest.MonkeyPatch) -> None:
    """A child that is joined does not hand its tags up."""

    def share(self: Filler, job: Any, flight: Flight, parent: Any) -> Any:
        assert flight.entry is not None
        return load(flight.entry, job.codec)

    patch.setattr(Filler, "_share", share)


@variant('A parent is built from the failure of its child, as "not found" is')
def tags_of_failures_stay(patch: pytest.MonkeyPatch) -> None:
    """A child that failed does not hand its tags up."""
    hand_up = Scope.hand_up

    def forgetful(self: Scope) -> None:
        if sys.exc_info()[0] is not None:
            self.tags.clear()
        hand_up(self)

    patch.setattr(Scope, "hand_up", forgetful)


def _delete_only(self: MemoryBackend, key: str) -> bool:
    node = self._entries.pop(key, None)
    if node is not None:
        self._unlink(node)
    return node is not None


@variant("A key without tags is deleted while it is computed")
def delete_without_its_tag(patch: pytest.MonkeyPatch) -> None:
    """A deletion takes the entry away and invalidates nothing."""

    async def delete(self: MemoryBackend, key: str) -> bool:
        return _delete_only(self, key)

    patch.setattr(MemoryBackend, "delete", delete)


@variant("A child is deleted while its parent is computed")
def delete_without_its_tag_for_parents(patch: pytest.MonkeyPatch) -> None:
    """A deletion takes the entry away, and parents do not hear of it."""
    delete_without_its_tag(patch)


@variant("A tag is added after the row was read")
def late_tags_ignored(patch: pytest.MonkeyPatch) -> None:
    """Tags that are added in the course of the computation do not count."""
    patch.setattr("tests.interleaving.scenarios.add_tags", lambda *tags: None)


@variant("A tag is added after the row was read")
def late_tags_count_from_then(patch: pytest.MonkeyPatch) -> None:
    """A tag counts from when it was added: what was invalidated before, is not seen."""
    gather, make = Scope.gather, Filler.entry

    def later(self: Scope, tags: Any, backend: Any, *args: Any, **options: Any) -> None:
        gather(self, tags, backend, *args, **options)
        self._said = backend.inner._stamp

    def stamped(self: Filler, job: Any, kept: Any, stamp: Any, scope: Any, started: float) -> Entry:
        return make(self, job, kept, scope._said or stamp, scope, started)

    patch.setattr(Scope, "gather", later)
    patch.setattr(Filler, "entry", stamped)


@variant("A child is softly invalidated under its parent")
def staleness_stays(patch: pytest.MonkeyPatch) -> None:
    """A parent of a stale child is stored as if the child were fresh."""
    absorb = Scope.absorb
    patch.setattr(Scope, "absorb", lambda self, entry, backend, stale=False: absorb(self, entry, backend))


@variant("A child is softly invalidated while one task computes it and another builds from it")
def staleness_of_a_store_stays(patch: pytest.MonkeyPatch) -> None:
    """That a child was stored stale is not handed up, nor to those who joined it."""
    settle = Filler.settle
    patch.setattr(
        Filler, "settle", lambda self, entry, written, scope: settle(self, entry, written._replace(stale=False), scope)
    )


@variant("A soft invalidation after a hard one, of the same tag")
def one_journal_for_soft_and_hard(patch: pytest.MonkeyPatch) -> None:
    """A soft invalidation takes the place of a hard one."""

    async def invalidate(self: MemoryBackend, tags: Any, *, soft: bool = False) -> None:
        names = list(tags)
        for name in names:
            if soft:
                self._hard.pop(name, None)
        self._invalidate(names, self._soft if soft else self._hard)

    patch.setattr(MemoryBackend, "invalidate", invalidate)


@variant("A leader with two followers is cancelled")
def cancellation_not_handed_on(patch: pytest.MonkeyPatch) -> None:
    """A leader that is cancelled does not land its flight."""
    land = Flights.land

    def forgetful(self: Flights, flight: Flight, fate: Fate, **about: Any) -> None:
        if fate is not Fate.CANCELLED:
            land(self, flight, fate, **about)

    patch.setattr(Flights, "land", forgetful)


@variant("Two computations ask for each other's keys")
def circles_not_seen(patch: pytest.MonkeyPatch) -> None:
    """A flight is joined though it waits for the one that joins it."""
    patch.setattr("asynctag.flight._waits_for", lambda flight, inside, seen: False)


@variant("A computation fails, and falls back on what is stale, and a writer comes")
def fallback_not_read_again(patch: pytest.MonkeyPatch) -> None:
    """A fallback is what was seen at the start, and not read again."""
    compute, seen = Filler.compute, {}

    async def remember(self: Filler, job: Any, reading: Any, flight: Any, *args: Any, **options: Any) -> Any:
        seen[flight] = reading
        return await compute(self, job, reading, flight, *args, **options)

    async def fall_back(self: Filler, job: Any, flight: Any, parent: Any, error: Exception) -> Any:
        reading = seen[flight]
        if reading.entry is None:
            return MISSING
        self.flights.land(flight, Fate.UNCHECKED, entry=reading.entry, stale=True)
        return load(reading.entry, job.codec)

    patch.setattr(Filler, "compute", remember)
    patch.setattr(Filler, "_fallback", fall_back)


@variant("The journal is lost while something is computed, and with it an invalidation")
def the_epoch_stays(patch: pytest.MonkeyPatch) -> None:
    """A journal that is lost begins again in the same epoch."""
    wipe = MemoryBackend.wipe

    async def forget(self: MemoryBackend) -> None:
        epoch = self._stamp.epoch
        await wipe(self)
        self._stamp = type(self._stamp)(epoch, 0)

    patch.setattr(MemoryBackend, "wipe", forget)


@variant("A namespace is cleared while something is computed in it, and used outside it")
def no_tag_of_the_namespace(patch: pytest.MonkeyPatch) -> None:
    """Entries do not carry their namespace's tag."""
    make = Filler.entry

    def without(self: Filler, *args: Any) -> Entry:
        entry = make(self, *args)
        entry.tags = tuple(tag for tag in entry.tags if tag.split("|")[1] != "n")
        return entry

    patch.setattr(Filler, "entry", without)


@variant("A transaction commits, and two readers come")
def nothing_is_held(patch: pytest.MonkeyPatch) -> None:
    """Tags are invalidated before the commit, and not held until it."""

    async def lease(self: MemoryBackend, tags: Any, holder: str, duration: float) -> bool:
        await self.invalidate(tags)
        return False

    async def release(self: MemoryBackend, *args: Any, **options: Any) -> None:
        pass

    patch.setattr(MemoryBackend, "lease", lease)
    patch.setattr(MemoryBackend, "release", release)


@variant("A transaction commits, and two readers come")
def only_let_go(patch: pytest.MonkeyPatch) -> None:
    """The end lets go of what is held, and invalidates nothing."""
    patch.setattr(MemoryBackend, "_invalidate", lambda self, tags, journal: self._take_number())


@variant("The journal is lost, and with it the lease of a transaction that then commits")
def only_what_is_held(patch: pytest.MonkeyPatch) -> None:
    """The end invalidates what is still held, and nothing else."""
    release = MemoryBackend.release

    async def held(self: MemoryBackend, tags: Any, holder: str, **options: Any) -> None:
        await release(self, [tag for tag in tags if tag in self._leases], holder, **options)

    patch.setattr(MemoryBackend, "release", held)


@variant("A transaction never ends, and its lease does; another one holds the same tag")
def one_holder_a_tag(patch: pytest.MonkeyPatch) -> None:
    """The end of one transaction lets go of what another holds."""
    patch.setattr("asynctag.transaction.new_holder", lambda: "somebody")


@variant("A transaction that has read its own row rolls back")
def stored_at_once(patch: pytest.MonkeyPatch) -> None:
    """What a transaction computes is stored before it has committed."""

    async def write(self: Filler, scope: Scope, entry: Entry) -> Written:
        return await self.write(entry)

    patch.setattr(Filler, "write_within", write)


@variant("A transaction that has read its own row rolls back")
def flights_across_transactions(patch: pytest.MonkeyPatch) -> None:
    """A computation in a transaction leads a flight, and shares what it has read."""
    compute = Filler.compute

    async def lead(self: Filler, job: Any, reading: Any, flight: Any, parent: Any, **options: Any) -> Any:
        flight = flight or self.flights.lead_unless_open(job.key, 0)
        try:
            return await compute(self, job, reading, flight, parent, **options)
        finally:
            if flight is not None:
                self.flights.land(flight, Fate.CANCELLED)

    patch.setattr(Filler, "compute", lead)
    patch.setattr(Flight, "serves", lambda self, came: self.fate in (Fate.ACCEPTED, Fate.UNCHECKED))


@variant("A computation holds a transaction that rolls back, and others wait for it")
def built_from_what_is_not_committed(patch: pytest.MonkeyPatch) -> None:
    """A computation around a transaction that changes something is stored and shared."""
    patch.setattr(Scope, "forbid_store", lambda self: None)


@variant("A repeatable-read transaction reads while another one changes the row")
def hits_unchecked(patch: pytest.MonkeyPatch) -> None:
    """A snapshot is served whatever is valid now."""

    async def agrees(self: Block, filler: Filler, view: Any, entry: Entry) -> bool:
        return True

    patch.setattr(Block, "_agrees", agrees)


@variant("The journal is lost, and with it a lease, while a repeatable-read transaction reads")
def any_epoch(patch: pytest.MonkeyPatch) -> None:
    """A snapshot is served what was stored after the journal was lost."""
    agrees = Block._agrees

    async def trusting(self: Block, filler: Filler, view: Any, entry: Entry) -> bool:
        return entry.stamp.epoch != view.since.epoch or await agrees(self, filler, view, entry)

    patch.setattr(Block, "_agrees", trusting)


@variant("A repeatable-read transaction reads while another one changes the row")
def a_snapshot_stamped_late(patch: pytest.MonkeyPatch) -> None:
    """What a snapshot shows is stored with the stamp of its look-up."""
    view = Block._view
    patch.setattr(Block, "_view", lambda self, filler: view(self, filler)._replace(stamp=None))


@variant("A transaction never ends, and its lease does; another one holds the same tag")
def leases_just_end(patch: pytest.MonkeyPatch) -> None:
    """A lease that has ended is gone, and invalidates nothing."""
    why = MemoryBackend._why_invalid

    def forgetful(self: MemoryBackend, entry: Entry) -> Any:
        for tag in entry.tags:
            self._let_go(self._leases, tag, "", self.clock())
        return why(self, entry)

    patch.setattr(MemoryBackend, "_why_invalid", forgetful)


@variant("Two changes, and a replica that lags behind")
def no_lag(patch: pytest.MonkeyPatch) -> None:
    """What was changed is invalidated, and not held until replicas have caught up."""
    release = MemoryBackend.release

    async def at_once(self: MemoryBackend, tags: Any, holder: str, **options: Any) -> None:
        await release(self, tags, holder)

    patch.setattr(MemoryBackend, "release", at_once)


@variant("Two changes, and a replica that lags behind and is served meanwhile")
def stored_for_good_in_a_lag(patch: pytest.MonkeyPatch) -> None:
    """What is stored while replicas lag behind lives as long as anything else."""
    patch.setattr(MemoryBackend, "_end_of_lags", lambda self, tags: float("inf"))


@variant("Two changes, and a replica that lags behind and is served meanwhile")
def one_end_a_tag(patch: pytest.MonkeyPatch) -> None:
    """Of two lags on one tag the last one's end counts."""
    patch.setattr("asynctag.pending.new_holder", lambda: "the lag")


@variant("Another transaction holds the tag too, and a reader is served what was there before them")
def ends_leave_no_number(patch: pytest.MonkeyPatch) -> None:
    """What one holder has changed is not noted while another one holds the tag."""
    invalidate = MemoryBackend._invalidate

    def forgetful(self: MemoryBackend, tags: Any, journal: Any) -> None:
        invalidate(self, [tag for tag in tags if tag not in self._leases], journal)

    patch.setattr(MemoryBackend, "_invalidate", forgetful)


@variant("A transaction commits, and two readers are served what was there before it")
def served_after_the_end(patch: pytest.MonkeyPatch) -> None:
    """What was there before the lease is served though the tag was let go of meanwhile."""
    patch.setattr(MemoryBackend, "_why_outdated", lambda self, entry: None)
    why = MemoryBackend._why_invalid

    def leased(self: MemoryBackend, entry: Entry) -> Any:
        miss = why(self, entry)
        return Miss(Cause.LEASED, "|t|x") if miss is not None and miss.cause is Cause.INVALIDATED else miss

    patch.setattr(MemoryBackend, "_why_invalid", leased)


@variant("A transaction never ends, and its lease does; a reader is served what was there before")
def served_in_ended_leases(patch: pytest.MonkeyPatch) -> None:
    """What was there before is served however long the lease is over."""
    patch.setattr(MemoryBackend, "_has_ended", lambda self, tag, now: False)


@variant("A page is built from a value that is served as it was before a transaction")
def served_as_if_it_were_untagged(patch: pytest.MonkeyPatch) -> None:
    """What is built from it carries none of its tags."""
    absorb = Scope.absorb

    def without(self: Scope, entry: Entry, backend: Any, *, stale: bool = False) -> None:
        if not stale:
            absorb(self, entry, backend)

    patch.setattr(Scope, "absorb", without)


@pytest.mark.parametrize("wrong", VARIANTS)
def test_a_wrong_variant_is_caught(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The enumeration sees what breaks when a rule of the protocol is left out, and says by which schedule."""
    breaks, name = VARIANTS[wrong]
    breaks(monkeypatch)
    with pytest.raises(Violation) as caught:
        explore(name)
    assert caught.value.problems
    assert len(caught.value.schedule) > 2
    print(f"{wrong}: {caught.value}")
