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


BROKEN = {
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
    more = {"clock": clock, "order": (False, True)}
    arguments = {name: more[name] for name in names if name in more}

    async def run() -> None:
        await test(backend=backend, **arguments)

    with pytest.raises(AssertionError):
        anyio.run(run)
