"""Whatever is done in whatever order: what is read is never older than what was acknowledged.

A model of rows that change, nested cached functions that are built from them, invalidations hard and soft, deletes,
clears, time that passes, a journal that forgets, and computations that stay under way while all of that happens.
"""

from functools import partial
from typing import Any

import anyio
import anyio.abc
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asynctag import Cache, add_tags
from asynctag.backends.memory import MemoryBackend
from asynctag.flight import Fate, Flight
from asynctag.scope import Scope
from asynctag.testing import FakeClock

NAMES = ("a", "b", "c")
ROWS = st.sampled_from(NAMES)
PAGES = st.sampled_from([("a",), ("a", "b"), ("b", "c"), ("c", "missing"), NAMES])
#: How old a softly invalidated row may be, at most: its time to live, and the stale period after it.
TTL, STALE = 20, 30


class Flying:
    """A computation that has read its rows, and waits before it returns."""

    def __init__(self) -> None:
        self.go = anyio.Event()
        self.result: Any = None
        self.known: dict[str, int] = {}


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.portal_scope = anyio.from_thread.start_blocking_portal("asyncio")
        self.portal = self.portal_scope.__enter__()
        self.clock = FakeClock()
        self.backend = MemoryBackend(clock=self.clock, max_entries=12, max_tags=6)
        self.cache = Cache(self.backend, namespace="rows", default_ttl=TTL)
        self.pages = Cache(self.backend, namespace="pages", default_ttl=TTL)
        #: The rows: a number that only grows. `missing` is a row that never is.
        self.rows = dict.fromkeys(NAMES, 0)
        #: For each row the least number that a read may return: its value at the last acknowledged hard invalidation.
        self.least = dict.fromkeys(NAMES, 0)
        self.flying: list[tuple[Flying, Any]] = []
        self.hold: Flying | None = None
        self.opened = [self.portal.wrap_async_context_manager(one) for one in (self.cache, self.pages)]
        for one in self.opened:
            one.__enter__()
        self._decorate()

    def _decorate(self) -> None:
        @self.cache.cached(name="row", tags=["{name}"], stale_while_revalidate=STALE)
        async def row(name: str) -> int:
            if name not in self.rows:
                raise LookupError(name)
            return self.rows[name]

        @self.cache.cached(name="late")
        async def late(name: str) -> list[int]:
            value = self.rows[name]
            await checkpoint()
            add_tags(name)
            return [value]

        @self.pages.cached(name="page", stale_while_revalidate=STALE)
        async def page(names: tuple[str, ...]) -> dict[str, int]:
            found: dict[str, int] = {}
            for name in names:
                try:
                    found[name] = await row(name)
                except LookupError:
                    continue
            held, self.hold = self.hold, None
            if held is not None:
                await held.go.wait()
            return found

        @self.pages.cached(name="site")
        async def site(names: tuple[str, ...]) -> dict[str, int]:
            found: dict[str, int] = {}

            async def add(part: tuple[str, ...]) -> None:
                for name, value in (await page(part)).items():
                    found[name] = min(value, found.get(name, value))

            async with anyio.create_task_group() as group:
                for name in names:
                    group.start_soon(add, (name,))
                group.start_soon(add, names)
            return found

        self.row, self.late, self.page, self.site = row, late, page, site

    def run(self, function: Any, *args: Any) -> Any:
        return self.portal.call(function, *args)

    def check(self, what: str, found: dict[str, int], known: dict[str, int]) -> None:
        for name, value in found.items():
            assert value >= known.get(name, 0), f"{what}: {name} is {value}, after {known[name]} was acknowledged"
            assert value <= self.rows[name]

    # --- what may happen

    @rule(name=ROWS)
    def change_and_invalidate(self, name: str) -> None:
        self.rows[name] += 1
        self.run(self.cache.invalidate, name)
        self.least[name] = self.rows[name]

    @rule(name=ROWS)
    def change_and_soften(self, name: str) -> None:
        self.rows[name] += 1
        self.run(partial(self.cache.invalidate, name, soft=True))

    @rule(name=ROWS)
    def change_unsaid(self, name: str) -> None:
        self.rows[name] += 1

    @rule(name=ROWS)
    def change_and_delete(self, name: str) -> None:
        self.rows[name] += 1
        self.run(self.cache.delete, self.row.key(name))
        # Of `late` nothing was said.
        self.run(self.late.invalidate, name)
        self.least[name] = self.rows[name]

    @rule(which=st.sampled_from(["rows", "all rows", "everything"]))
    def change_and_clear(self, which: str) -> None:
        for name in self.rows:
            self.rows[name] += 1
        match which:
            case "rows":
                self.run(self.cache.clear)
            case "all rows":
                self.run(self.row.invalidate_all)
                self.run(self.late.invalidate_all)
            case _:
                self.run(Cache(self.backend).clear)
        self.least = dict(self.rows)

    @rule()
    def lose_the_journal(self) -> None:
        for name in self.rows:
            self.rows[name] += 1
        self.run(self.backend.wipe)
        self.least = dict(self.rows)

    @rule(seconds=st.sampled_from([1, TTL, STALE, TTL + STALE]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(number=st.integers(0, 10))
    def others_invalidate(self, number: int) -> None:
        self.run(self.cache.invalidate, f"other:{number}", f"another:{number}")

    # --- what is read

    @rule(name=ROWS)
    def read_a_row(self, name: str) -> None:
        self.check("row", {name: self.run(self.row, name)}, self.least)

    @rule(name=ROWS)
    def read_late(self, name: str) -> None:
        self.check("late", {name: self.run(self.late, name)[0]}, self.least)

    @rule(names=PAGES)
    def read_a_page(self, names: tuple[str, ...]) -> None:
        if self.flying:  # it might wait for one that is under way
            return
        self.check("page", self.run(self.page, names), self.least)

    @rule(names=PAGES)
    def read_a_site(self, names: tuple[str, ...]) -> None:
        if self.flying:
            return
        self.check("site", self.run(self.site, names), self.least)

    @rule(name=ROWS)
    def refresh(self, name: str) -> None:
        assert self.run(self.row.refresh, name) == self.rows[name]

    @precondition(lambda self: len(self.flying) < 3)
    @rule(names=PAGES)
    def a_page_is_under_way(self, names: tuple[str, ...]) -> None:
        """A caller that computes, or that waits for one who does: it may get what was acknowledged as it came."""
        flying = self.run(_make_flying)
        flying.known = dict(self.least)
        self.hold = flying
        self.flying.append((flying, self.portal.start_task_soon(self.page, names)))
        self.run(_settle)
        self.hold = None

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def one_is_given_up(self, data: st.DataObject) -> None:
        flying, future = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        future.cancel()
        self.run(_settle)
        self.portal.call(flying.go.set)  # a renewal may be what waits there

    @precondition(lambda self: self.flying)
    @rule()
    def all_land(self) -> None:
        flying, self.flying = self.flying, []
        for one, _ in flying:
            self.portal.call(one.go.set)
        for one, future in flying:
            self.check("a page under way", future.result(timeout=10), one.known)

    @invariant()
    def nothing_is_left_open(self) -> None:
        if not self.flying:
            self.run(_settle)
            assert not self.cache._filling().flights._open

    def teardown(self) -> None:
        try:
            if self.flying:
                self.all_land()
        finally:
            for one in self.opened:
                one.__exit__(None, None, None)
            self.portal_scope.__exit__(None, None, None)


async def _make_flying() -> Flying:
    return Flying()


async def _settle() -> None:
    for _ in range(12):
        await checkpoint()


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def hits_hand_nothing_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scope, "absorb", lambda self, entry, backend, *, stale=False: None)


def nothing_is_refused(patch: pytest.MonkeyPatch) -> None:
    intact = MemoryBackend._write

    def write(self: MemoryBackend, entry: Any) -> Any:
        entry.stamp = self._stamp
        return intact(self, entry)

    patch.setattr(MemoryBackend, "_write", write)


def whatever_landed_is_shared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Flight, "serves", lambda self, came: self.fate in (Fate.ACCEPTED, Fate.UNCHECKED, Fate.FAILED))


def soft_lifts_hard(patch: pytest.MonkeyPatch) -> None:
    intact = MemoryBackend._invalidate

    def invalidate(self: MemoryBackend, tags: Any, journal: Any) -> None:
        names = list(tags)
        if journal is self._soft:
            for name in names:
                self._hard.pop(name, None)
        intact(self, names, journal)

    patch.setattr(MemoryBackend, "_invalidate", invalidate)


def forgets_without_a_floor(patch: pytest.MonkeyPatch) -> None:
    intact = MemoryBackend._forget_oldest

    def forget(self: MemoryBackend) -> None:
        floor = self._floor
        intact(self)
        self._floor = floor

    patch.setattr(MemoryBackend, "_forget_oldest", forget)


A = ("a",)
UNDER_WAY = [("a_page_is_under_way", A), ("change_and_invalidate", "a")]
FOUND_OLD: dict[Any, list[tuple[Any, ...]]] = {
    hits_hand_nothing_up: [("read_a_row", "a"), ("read_a_page", A), ("change_and_invalidate", "a"), ("read_a_page", A)],
    nothing_is_refused: [*UNDER_WAY, ("all_land",), ("read_a_page", A)],
    whatever_landed_is_shared: [*UNDER_WAY, ("a_page_is_under_way", A), ("all_land",)],
    soft_lifts_hard: [
        ("read_a_row", "a"),
        ("change_and_invalidate", "a"),
        ("change_and_soften", "a"),
        ("read_a_row", "a"),
    ],
    forgets_without_a_floor: [
        ("read_a_row", "a"),
        ("change_and_invalidate", "a"),
        *(("others_invalidate", number) for number in range(4)),
        ("read_a_row", "a"),
    ],
}


def play(steps: list[tuple[Any, ...]]) -> None:
    world = World()
    try:
        for name, *args in steps:
            getattr(world, name)(*args)
    finally:
        world.teardown()


@pytest.mark.parametrize("breaker", FOUND_OLD, ids=lambda breaker: breaker.__name__)
def test_the_model_notices_a_rule_that_is_taken_out(breaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few of its steps find nothing wrong, and without the rule something old. (Seeking finds them too, in time.)"""
    play(FOUND_OLD[breaker])
    breaker(monkeypatch)
    with pytest.raises(AssertionError, match="was acknowledged"):
        play(FOUND_OLD[breaker])
