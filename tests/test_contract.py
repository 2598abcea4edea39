"""The contract of backends, on every backend that needs no server, and on backends that break it."""

from collections.abc import Iterable
from typing import Any

import anyio
import pytest

from asynctag.backends.base import Backend, Entry, Reading, Stamp, Written
from asynctag.backends.memory import MemoryBackend
from asynctag.names import tag_name
from asynctag.testing import BackendContract, FakeClock

MAX_TAGS = 20_000


class TestMemoryBackend(BackendContract):
    @pytest.fixture
    def backend(self, clock: FakeClock) -> MemoryBackend:
        return MemoryBackend(clock=clock, max_tags=MAX_TAGS)

    async def lose(self, backend: Any) -> None:
        await backend.wipe()

    async def forget(self, backend: Backend) -> None:
        await backend.invalidate(tag_name("", f"filler:{number}") for number in range(MAX_TAGS))

    async def other_handle(self, backend: Backend) -> Backend:
        return Handle(backend)


class Handle(Backend):
    """Another way to the same backend, with the methods that a backend need not override left as they are."""

    in_process = True

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.clock = backend.clock

    async def read(self, key: str) -> Reading:
        return await self._backend.read(key)

    async def write(self, entry: Entry) -> Written:
        return await self._backend.write(entry)

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        await self._backend.invalidate(tags, soft=soft)

    async def delete(self, key: str) -> bool:
        return await self._backend.delete(key)

    async def lease(self, tags: Iterable[str], holder: str, duration: float) -> bool:
        return await self._backend.lease(tags, holder, duration)

    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        await self._backend.release(tags, holder, lag=lag, serve=serve)

    async def inspect(self, key: str) -> Reading:
        return await self._backend.inspect(key)

    async def agree(self, max_ttl: float) -> None:
        await self._backend.agree(max_ttl)


class TestDefaultMethods(TestMemoryBackend):
    """A backend that implements no more than it must keeps the contract too."""

    @pytest.fixture
    def backend(self, clock: FakeClock) -> Any:
        handle = Handle(MemoryBackend(clock=clock, max_tags=MAX_TAGS))
        handle.wipe = handle._backend.wipe  # type: ignore[attr-defined]
        return handle


# --- backends that break one rule each: the contract notices -------------------------------------------


class StampsAtTheWrite(MemoryBackend):
    """Versions are taken as an entry is stored: an invalidation during its computation is lost."""

    async def write(self, entry: Entry) -> Written:
        entry.stamp = self._stamp
        return await super().write(entry)


class WritesUnchecked(MemoryBackend):
    def _why_invalid(self, entry: Entry) -> Any:
        return super()._why_invalid(entry) if entry.key in self._entries else None


class FirstTagOnly(MemoryBackend):
    def _why_invalid(self, entry: Entry) -> Any:
        whole, entry.tags = entry.tags, entry.tags[:1]
        try:
            return super()._why_invalid(entry)
        finally:
            entry.tags = whole


class OlderReplacesNewer(MemoryBackend):
    async def write(self, entry: Entry) -> Written:
        old = self._entries.get(entry.key)
        if old is not None:
            self._unlink(self._entries.pop(entry.key))
        return await super().write(entry)


class SoftLiftsHard(MemoryBackend):
    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        names = list(tags)
        if soft:
            for tag in names:
                self._hard.pop(tag, None)
        await super().invalidate(names, soft=soft)


class DeleteWithoutTag(MemoryBackend):
    async def delete(self, key: str) -> bool:
        node = self._entries.pop(key, None)
        if node is None:
            return False
        self._unlink(node)
        return True


class ForgetsWithoutFloor(MemoryBackend):
    def _forget_oldest(self) -> None:
        floor = self._floor
        super()._forget_oldest()
        self._floor = floor


class KeepsTheEpoch(MemoryBackend):
    async def wipe(self) -> None:
        with self._lock:
            self._hard.clear()
            self._soft.clear()
            self._stamp = Stamp(self._stamp.epoch, 0)


class PeeksUnchecked(MemoryBackend):
    def peek(self, key: str) -> Entry | None:
        return self._entries.get(key)


class NeverExpires(MemoryBackend):
    def _look(self, key: str) -> Reading:
        reading = super()._look(key)
        return reading if reading.entry is None else Reading(reading.stamp, reading.entry, reading.stale)


class LeasesCountAtTheEnd(MemoryBackend):
    """Readers go on being served what a transaction is about to change."""

    async def lease(self, tags: Iterable[str], holder: str, duration: float) -> bool:
        return False


class LeaseIsAnInvalidation(MemoryBackend):
    """What is read between the invalidation and the commit is stored."""

    async def lease(self, tags: Iterable[str], holder: str, duration: float) -> bool:
        await self.invalidate(tags)
        return False


class ReleasesAlone(MemoryBackend):
    """The end lets go and invalidates nothing."""

    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        for tag in tags:
            self._let_go(self._leases, tag, holder, self.clock())


class ReleasesWhatIsHeld(MemoryBackend):
    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        held = [tag for tag in tags if tag in self._leases or lag]
        await super().release(held, holder, lag=lag, serve=serve)


class OneHolderATag(MemoryBackend):
    async def lease(self, tags: Iterable[str], holder: str, duration: float) -> bool:
        return await super().lease(tags, "somebody", duration)

    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        await super().release(tags, "somebody", lag=lag, serve=serve)


class AlwaysHeld(MemoryBackend):
    async def lease(self, tags: Iterable[str], holder: str, duration: float) -> bool:
        await super().lease(tags, holder, duration)
        return True


class LeasesJustEnd(MemoryBackend):
    """A lease that has ended is gone, as a native TTL would take it, and invalidates nothing."""

    def _why_invalid(self, entry: Entry) -> Any:
        for tag in entry.tags:
            self._let_go(self._leases, tag, "", self.clock())
        return super()._why_invalid(entry)


class LeasesNeverEnd(MemoryBackend):
    def _let_go(self, leases: Any, tag: str, holder: str, now: float) -> bool:
        return super()._let_go(leases, tag, holder, now if holder else 0)


class LeftForEver(MemoryBackend):
    def _settle_some(self) -> None:
        pass


class LastWordEnds(MemoryBackend):
    """A lease that is renewed for a short while ends sooner than it would have."""

    async def lease(self, tags: Iterable[str], holder: str, duration: float) -> bool:
        names = list(tags)
        for tag in names:
            self._leases.get(tag, {}).pop(holder, None)
        return await super().lease(names, holder, duration)


class OneEndATag(MemoryBackend):
    """The first that ends takes the others with it."""

    def _let_go(self, leases: Any, tag: str, holder: str, now: float) -> bool:
        ended = super()._let_go(leases, tag, holder, now)
        return (leases.pop(tag, None) is not None) or ended if ended else ended


class NoLag(MemoryBackend):
    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        await super().release(tags, holder)


class LagsEndByThemselves(MemoryBackend):
    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        if lag or not any(holder in self._leases.get(tag, {}) for tag in tags):
            await super().release(tags, holder, lag=lag, serve=serve)


class OneLag(MemoryBackend):
    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        await super().release(tags, "lag", lag=lag, serve=serve)


class OneServedLag(OneLag):
    """The last one's end counts for the others too."""


class ServesWhatItHolds(MemoryBackend):
    """What is stored while replicas lag behind lives as long as anything else."""

    def _end_of_lags(self, tags: Iterable[str]) -> float:
        return float("inf")


class StoresWhatWasComputedInALag(MemoryBackend):
    def _settle_all(self, leases: Any, tags: Iterable[str], now: float) -> None:
        if leases is not self._lags:
            super()._settle_all(leases, tags, now)


class ServedLagsStay(MemoryBackend):
    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        if lag:
            await super().release(tags, holder, lag=lag, serve=serve)


class AllIsUnchanged(MemoryBackend):
    async def unchanged(self, tags: Any, since: Stamp) -> bool:
        return True


class SoftIsUnchanged(MemoryBackend):
    async def unchanged(self, tags: Any, since: Stamp) -> bool:
        return not any(tag in self._leases or self._hard.get(tag, 0) > since.seq for tag in tags)


class ServesDespiteAnyLease(MemoryBackend):
    """As if nothing were held, however long a lease is over."""

    def _has_ended(self, tag: str, now: float) -> bool:
        return False


class NumbersOnlyWhatIsFree(MemoryBackend):
    """What is released or invalidated while others hold it leaves no number."""

    def _invalidate(self, tags: Any, journal: Any) -> None:
        super()._invalidate([tag for tag in tags if tag not in self._leases], journal)


class ServesWhateverIsHeld(MemoryBackend):
    def _why_outdated(self, entry: Entry) -> Any:
        return None


class HeldWhateverHappens(MemoryBackend):
    async def is_held(self, tag: str, since: Stamp) -> bool:
        return tag in self._leases


class HeldInAnyEpoch(MemoryBackend):
    async def is_held(self, tag: str, since: Stamp) -> bool:
        return await super().is_held(tag, Stamp(self._stamp.epoch, since.seq))


class KeepsTheEpochOfWhatIsHeld(MemoryBackend):
    def _read_held(self, key: str) -> Reading:
        node = self._entries.get(key)
        return Reading(self._stamp, node) if node is not None else super()._read_held(key)

    async def wipe(self) -> None:
        self._stamp = Stamp(self._stamp.epoch + 1, 0)


class NewestIsAhead(MemoryBackend):
    def newest(self) -> Stamp:
        return Stamp(self._stamp.epoch, self._stamp.seq + 10)


BROKEN = {
    LeasesCountAtTheEnd: "test_a_leased_tag_makes_entries_invalid",
    LeaseIsAnInvalidation: "test_a_write_with_a_leased_tag_is_refused",
    ReleasesAlone: "test_a_release_invalidates",
    ReleasesWhatIsHeld: "test_a_release_invalidates_what_is_no_longer_held",
    OneHolderATag: "test_each_holder_holds",
    AlwaysHeld: "test_a_lease_that_goes_on_says_so",
    LeasesJustEnd: "test_a_lease_that_has_ended_counts_until_somebody_writes",
    LeasesNeverEnd: "test_a_lease_that_has_ended_counts_until_somebody_writes",
    LeftForEver: "test_a_lease_that_has_ended_is_settled_by_invalidations_of_others",
    LastWordEnds: "test_a_lease_is_renewed",
    OneEndATag: "test_one_holders_end_leaves_the_others",
    NoLag: "test_a_lag_holds_tags_past_the_release",
    LagsEndByThemselves: "test_a_lag_may_end_sooner",
    OneLag: "test_each_lag_has_an_end_of_its_own",
    OneServedLag: "test_each_lag_that_is_served_invalidates",
    ServesWhatItHolds: "test_a_lag_that_is_served_lets_entries_be_stored",
    StoresWhatWasComputedInALag: "test_each_lag_that_is_served_invalidates",
    ServedLagsStay: "test_a_lag_that_is_served_may_end_sooner",
    AllIsUnchanged: "test_what_was_forgotten_is_not_said_to_be_unchanged",
    SoftIsUnchanged: "test_what_has_changed_is_never_said_to_be_unchanged",
    ServesDespiteAnyLease: "test_what_a_dead_holder_may_have_changed_is_not_served",
    NumbersOnlyWhatIsFree: "test_what_was_invalidated_while_it_is_held_is_not_from_before",
    ServesWhateverIsHeld: "test_what_is_not_valid_is_not_served_as_from_before_either",
    HeldWhateverHappens: "test_what_a_dead_holder_may_have_changed_is_not_served",
    HeldInAnyEpoch: "test_what_is_held_may_be_read_as_from_before",
    KeepsTheEpochOfWhatIsHeld: "test_a_lost_journal_holds_nothing_from_before",
    NewestIsAhead: "test_the_newest_stamp_is_none_that_is_yet_to_come",
    StampsAtTheWrite: "test_a_write_is_refused_if_its_tag_was_invalidated_meanwhile",
    WritesUnchecked: "test_tags_need_not_be_known_in_advance",
    FirstTagOnly: "test_each_tag_invalidates",
    OlderReplacesNewer: "test_a_write_with_an_older_stamp_is_superseded",
    SoftLiftsHard: "test_hard_and_soft_are_kept_apart",
    DeleteWithoutTag: "test_delete_refuses_what_began_before_it",
    ForgetsWithoutFloor: "test_forgetting_costs_misses_never_staleness",
    KeepsTheEpoch: "test_a_lost_journal_makes_everything_a_miss",
    PeeksUnchecked: "test_peek_finds_nothing_that_read_would_not",
    NeverExpires: "test_entries_expire",
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_the_contract_fails_for_a_backend_that_breaks_a_rule(kind: type[MemoryBackend]) -> None:
    """Each rule that is taken out is noticed by the test that is about it."""
    clock = FakeClock()
    backend, contract = kind(clock=clock, max_tags=MAX_TAGS), TestMemoryBackend()
    test = getattr(contract, BROKEN[kind])
    names = test.__func__.__code__.co_varnames[: test.__func__.__code__.co_argcount]
    more = {"clock": clock, "order": (False, True), "what": "release"}
    arguments = {name: more[name] for name in names if name in more}

    async def run() -> None:
        await test(backend=backend, **arguments)

    with pytest.raises(AssertionError):
        anyio.run(run)
