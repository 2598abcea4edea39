"""The guarantees, one by one, and for each the rule that it stands on: taken out, the test fails.

`WITHOUT` at the end of the file takes the rules out and asserts that. Races are made by ordering their steps.
"""

import asyncio
import contextvars
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pydantic
import pytest
import sniffio
from anyio.lowlevel import checkpoint

from asynctag import BackendError, Cache, Hit, InvalidationError, Miss, add_tags, no_store
from asynctag import fill as fill_module
from asynctag import flight as flight_module
from asynctag.backends.base import Entry, Reading, Stamp, Written
from asynctag.backends.memory import MemoryBackend
from asynctag.codec import Codec, Kept
from asynctag.fill import MISSING, Filler
from asynctag.flight import Fate, Flight, Flights, Turn
from asynctag.pending import Pending
from asynctag.scope import Scope, current_scope
from asynctag.testing import FakeClock, assert_hit, assert_miss, assert_tags

pytestmark = pytest.mark.anyio

#: What takes longer hangs. Much shorter where a hang is what the test expects.
PATIENCE = 10.0


async def settle() -> None:
    """Let every task run until it waits for something that only this one does."""
    for _ in range(15):
        await checkpoint()


class Gate:
    """A place where a computation says that it is there, and waits."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.go = anyio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.go.wait()


class Caller:
    """Somebody who calls, in a task: what it got, or what it raised."""

    def __init__(self, group: anyio.abc.TaskGroup, call: Callable[[], Awaitable[Any]]) -> None:
        self.value: Any = MISSING
        self.error: Exception | None = None
        self.over = False
        self.cancel_scope = anyio.CancelScope()
        self._call = call
        group.start_soon(self._run)

    async def _run(self) -> None:
        with self.cancel_scope:
            try:
                self.value = await self._call()
            except Exception as error:
                self.error = error
        self.over = True


class Rows:
    """A database: a number a row, and how often it was read."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.reads = 0

    def __getitem__(self, name: str) -> int:
        self.reads += 1
        return self.rows.get(name, 0)

    def __setitem__(self, name: str, value: int) -> None:
        self.rows[name] = value


def new_cache(backend: MemoryBackend | None = None, **settings: Any) -> Cache:
    return Cache(MemoryBackend(clock=FakeClock()) if backend is None else backend, default_ttl=60, **settings)


def clock_of(cache: Cache) -> FakeClock:
    clock = cache._filling().backend.clock
    assert isinstance(clock, FakeClock)
    return clock


def flights_of(cache: Cache) -> Flights:
    return cache._filling().flights


# --- G1: no stale read ---------------------------------------------------------------------------------


async def test_invalidation_during_a_computation() -> None:
    """Data read before an invalidation is not cached after it. Fails with a stamp taken at the store, and
    with a store that nothing checks."""
    cache, rows, gate = new_cache(), Rows(), Gate()

    async def slow() -> int:
        value = rows["x"]
        await gate()
        return value

    async with anyio.create_task_group() as group:
        caller = Caller(group, lambda: cache.get_or_set("k", slow, tags=["x"], returns=int))
        await gate.reached.wait()
        rows["x"] = 1
        await cache.invalidate("x")
        gate.go.set()
    assert caller.value == 0  # it began before
    assert await cache.get_or_set("k", slow, tags=["x"], returns=int) == 1


async def test_late_tags_are_safe() -> None:
    """A tag that becomes known only after its invalidation still counts. Fails with a stamp taken at the store."""
    cache, rows = new_cache(), Rows()

    async def compute() -> int:
        value = rows["x"]
        if not value:
            rows["x"] = 1
            await cache.invalidate("x")
        add_tags("x")
        return value

    assert await cache.get_or_set("k", compute, returns=int) == 0
    assert await cache.get_or_set("k", compute, returns=int) == 1
    assert await cache.get_or_set("k", compute, returns=int) == 1
    assert rows.reads == 2


async def test_a_hit_is_checked() -> None:
    """The fast way to a hit asks the journal too. Fails with a `peek` that does not."""
    cache, rows = new_cache(), Rows()

    @cache.cached(name="f", tags=["x"])
    async def f() -> int:
        return rows["x"]

    assert [await f(), await f()] == [0, 0]
    rows["x"] = 1
    await cache.invalidate("x")
    assert [await f(), await f()] == [1, 1]
    assert rows.reads == 2


async def test_who_comes_after_an_invalidation_gets_nothing_from_before_it() -> None:
    """A caller that starts after `invalidate` may wait for a flight begun before it, but not have its result.
    Fails where results that no store accepted are shared."""
    cache, rows, gate = new_cache(), Rows(), Gate()

    async def slow() -> int:
        value = rows["x"]
        await gate()
        return value

    def call() -> Awaitable[int]:
        return cache.get_or_set("k", slow, tags=["x"], returns=int)

    async with anyio.create_task_group() as group:
        first = Caller(group, call)
        await gate.reached.wait()
        rows["x"] = 1
        await cache.invalidate("x")
        later = [Caller(group, call) for _ in range(5)]
        await settle()
        gate.go.set()
    assert first.value == 0
    assert [one.value for one in later] == [1] * 5
    assert rows.reads == 2


class SlowAnswer(MemoryBackend):
    """A backend whose first answer to a write comes late: the write is done, and nobody knows yet."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock())
        self.gate: Gate | None = Gate()

    async def write(self, entry: Entry) -> Written:
        written = await super().write(entry)
        gate, self.gate = self.gate, None
        if gate is not None:
            await gate()
        return written


async def test_a_flight_is_joined_only_until_its_store_is_sent() -> None:
    """Between the store and its answer there may be an invalidation that the store did not see.
    Fails where the flight stays open till it lands."""
    backend, rows = SlowAnswer(), Rows()
    cache, gate = new_cache(backend), backend.gate
    assert gate is not None

    async def compute() -> int:
        return rows["x"]

    def call() -> Awaitable[int]:
        return cache.get_or_set("k", compute, tags=["x"], returns=int)

    async with anyio.create_task_group() as group:
        first = Caller(group, call)
        await gate.reached.wait()
        rows["x"] = 1
        await cache.invalidate("x")
        later = Caller(group, call)
        await settle()
        gate.go.set()
    assert first.value == 0
    assert later.value == 1


async def test_delete_holds_against_what_is_under_way() -> None:
    """A computation begun before `delete` does not bring the entry back. Fails without the implicit tag."""
    cache, rows, gate = new_cache(), Rows(), Gate()

    async def slow() -> int:
        value = rows["x"]
        await gate()
        return value

    async with anyio.create_task_group() as group:
        Caller(group, lambda: cache.get_or_set("k", slow, returns=int))
        await gate.reached.wait()
        rows["x"] = 1
        await cache.delete("k")
        gate.go.set()
    assert isinstance(await cache.lookup("k"), Miss)
    assert await cache.get_or_set("k", slow, returns=int) == 1


async def test_deleting_a_part_takes_what_was_built_from_it() -> None:
    """The implicit tag of a key goes up like any other. Fails without it."""
    cache, rows = new_cache(), Rows()

    async def part() -> int:
        return rows["x"]

    async def whole() -> int:
        return await cache.get_or_set("part", part, returns=int) + 10

    assert await cache.get_or_set("whole", whole, returns=int) == 10
    rows["x"] = 1
    await cache.delete("part")
    assert await cache.get_or_set("whole", whole, returns=int) == 11


async def test_an_invalidation_between_the_part_and_the_whole() -> None:
    """A part taken from the cache, then invalidated, before the whole is stored: the whole is not stored.
    Fails where hits hand no tags up, and with a stamp taken at the store."""
    cache, rows, gate = new_cache(), Rows(), Gate()

    @cache.cached(name="part", tags=["x"])
    async def part() -> int:
        return rows["x"]

    @cache.cached(name="whole")
    async def whole() -> int:
        value = await part()
        await gate()
        return value

    await part()
    async with anyio.create_task_group() as group:
        Caller(group, whole)
        await gate.reached.wait()
        rows["x"] = 1
        await cache.invalidate("x")
        gate.go.set()
    await assert_miss(whole)
    assert await whole() == 1


async def test_set_is_held_against_its_lookup() -> None:
    """`set` takes the stamp of the `lookup` from before the data was read. Fails with a stamp taken at the store."""
    cache, rows = new_cache(), Rows()
    found = await cache.lookup("k")
    value = rows["x"]
    rows["x"] = 1
    await cache.invalidate("x")
    assert await cache.set("k", value, tags=["x"], since=found) is False
    found = await cache.lookup("k")
    assert await cache.set("k", rows["x"], tags=["x"], since=found) is True
    assert await cache.get("k") == 1


async def test_a_fallback_never_serves_what_a_hard_invalidation_hit() -> None:
    """`stale_if_error` reads again, when the error is there. Fails where it serves what was there before."""
    cache, rows = new_cache(), Rows()
    broken = False

    @cache.cached(name="f", tags=["x"], stale_if_error=600)
    async def f() -> int:
        value = rows["x"]
        if broken:
            await cache.invalidate("x")  # after its own look-up found the stale entry
            raise OSError("down")
        return value

    assert await f() == 0
    broken = True
    clock_of(cache).advance(61)
    with pytest.raises(OSError, match="down"):
        await f()


# --- G2: nested ----------------------------------------------------------------------------------------


async def test_tags_go_up_on_misses_and_on_hits() -> None:
    """However deep, whether a part was computed or found. Fails where scopes hand nothing up, or hits nothing."""
    cache, rows = new_cache(), Rows()

    @cache.cached(name="row", tags=["row:{name}"])
    async def row(name: str) -> int:
        return rows[name]

    @cache.cached(name="table", tags=["table"])
    async def table(names: tuple[str, ...]) -> int:
        add_tags("late")
        return sum([await row(name) for name in names])

    @cache.cached(name="page")
    async def page(names: tuple[str, ...]) -> int:
        return await table(names)

    await row("a")
    for names in [("a", "b"), ("b",)]:
        await page(names)
        tags = {f"row:{name}" for name in names} | {"table", "late"}
        await assert_tags(page, names, tags=tags)
        for tag in tags:
            await cache.invalidate(tag)
            await assert_miss(page, names)
            rows[tag.removeprefix("row:")] = rows[tag.removeprefix("row:")] + 1
            assert await page(names) == sum(rows.rows.get(name, 0) for name in names)


async def test_a_whole_goes_with_the_function_of_its_part() -> None:
    """`invalidate_all`, `invalidate` and `clear` of a part take what was built from it. Fails without hand-up."""
    cache, rows = new_cache(namespace="shop"), Rows()

    @cache.cached(name="part")
    async def part(name: str) -> int:
        return rows[name]

    @cache.cached(name="whole")
    async def whole() -> int:
        return await part("x")

    for number, drop in enumerate((part.invalidate_all, lambda: part.invalidate("x"), cache.clear), 1):
        await whole()
        rows["x"] = number
        await drop()
        assert await whole() == number


async def test_a_failed_part_counts() -> None:
    """Who caught "not found" depends on what was not found. Fails where a failed child hands up nothing."""
    cache, rows = new_cache(), Rows()

    @cache.cached(name="part", tags=["row:{name}"])
    async def part(name: str) -> int:
        add_tags("gathered")
        if not rows[name]:
            raise LookupError(name)
        return rows[name]

    @cache.cached(name="whole")
    async def whole() -> str:
        try:
            return str(await part("x"))
        except LookupError:
            return "nothing"

    assert await whole() == "nothing"
    await assert_tags(whole, tags={"row:x", "gathered"})
    rows["x"] = 1
    await cache.invalidate("row:x")
    assert await whole() == "1"


async def test_a_cancelled_part_counts() -> None:
    """Who went on without a part that took too long depends on it. Fails where a failed child hands up nothing."""
    cache = new_cache()
    rounds: list[int] = []

    @cache.cached(name="part", tags=["x"])
    async def part(cancel_scope_at: int) -> int:
        add_tags("late")
        scopes[cancel_scope_at].cancel()
        await checkpoint()
        return 1

    scopes = [anyio.CancelScope()]

    @cache.cached(name="whole")
    async def whole() -> str:
        rounds.append(1)
        with scopes[0]:
            return str(await part(0))
        return "without"

    assert await whole() == "without"
    await assert_tags(whole, tags={"x", "late"})
    await cache.invalidate("late")
    await assert_miss(whole)


async def test_a_part_that_was_joined_counts() -> None:
    """The tags of a flight that others led go to whoever joined it. Fails where joiners get the value alone."""
    cache, gate = new_cache(), Gate()

    @cache.cached(name="part", tags=["x"])
    async def part() -> int:
        await gate()
        add_tags("late")
        return 1

    @cache.cached(name="whole")
    async def whole() -> int:
        return await part()

    async with anyio.create_task_group() as group:
        Caller(group, part)
        await gate.reached.wait()
        joiner = Caller(group, whole)
        await settle()
        gate.go.set()
    assert joiner.value == 1
    await assert_tags(whole, tags={"x", "late"})


async def test_a_part_that_nobody_waited_for_counts() -> None:
    """A joiner that gave up waiting depends on the part that it did without. Fails where giving up leaves no trace."""
    cache, gate = new_cache(), Gate()
    patience = anyio.CancelScope()

    @cache.cached(name="part", tags=["x"])
    async def part() -> int:
        add_tags("late")
        await gate()
        return 1

    @cache.cached(name="whole")
    async def whole() -> str:
        with patience:
            return str(await part())
        return "without"

    async with anyio.create_task_group() as group:
        Caller(group, part)
        await gate.reached.wait()
        joiner = Caller(group, whole)
        await settle()
        patience.cancel()
        await settle()
        assert joiner.value == "without"
        gate.go.set()
    await assert_tags(whole, tags={"x", "late"})


async def test_the_tags_of_a_shared_error_count() -> None:
    """Who gets the error of a flight that began after it came depends on what failed. Fails without the hand-up."""
    cache, gates = new_cache(), [Gate(), Gate()]
    begun: list[int] = []

    @cache.cached(name="part", tags=["x"])
    async def part() -> int:
        begun.append(1)
        add_tags(f"late:{len(begun)}")
        await gates[len(begun) - 1]()
        raise LookupError

    async def whole() -> str:
        try:
            return str(await part())
        except LookupError:
            return "nothing"

    async with anyio.create_task_group() as group:
        Caller(group, part)
        await gates[0].reached.wait()
        wholes = [Caller(group, lambda key=key: cache.get_or_set(key, whole)) for key in "ab"]  # type: ignore[misc]
        await settle()
        gates[0].go.set()
        await gates[1].reached.wait()
        await settle()
        gates[1].go.set()
    assert [one.value for one in wholes] == ["nothing"] * 2
    assert len(begun) == 2
    for key in "ab":
        assert {"x", "late:2"} <= (await assert_hit(cache, key)).tags


async def test_tags_come_from_tasks_and_threads() -> None:
    """Task groups, `gather`, worker threads and calls from them back into the loop. Fails without hand-up."""
    cache = new_cache()

    @cache.cached(name="row", tags=["row:{name}"])
    async def row(name: str) -> str:
        return name

    def in_thread(name: str) -> None:
        add_tags(f"thread:{name}")
        anyio.from_thread.run(row, f"from-thread-{name}")

    @cache.cached(name="page")
    async def page() -> str:
        async with anyio.create_task_group() as group:
            group.start_soon(row, "group-1")
            group.start_soon(row, "group-2")
            group.start_soon(anyio.to_thread.run_sync, in_thread, "anyio")
        if sniffio.current_async_library() == "asyncio":
            await asyncio.gather(row("gather-1"), row("gather-2"))
            await asyncio.to_thread(add_tags, "thread:asyncio")
        return "page"

    await page()
    wanted = {"row:group-1", "row:group-2", "thread:anyio", "row:from-thread-anyio"}
    if sniffio.current_async_library() == "asyncio":
        wanted |= {"row:gather-1", "row:gather-2", "thread:asyncio"}
    await assert_tags(page, tags=wanted)


async def test_nesting_goes_across_namespaces() -> None:
    """A parent in one namespace goes with the tags of a child in another; clearing one leaves what is not built
    from it; an un-namespaced `clear` takes all. Fails without hand-up."""
    backend, rows = MemoryBackend(clock=FakeClock()), Rows()
    shop, blog, root = (new_cache(backend, namespace=one) for one in ("shop", "blog", ""))

    @shop.cached(name="f", tags=["x"])
    async def product() -> int:
        return rows["product"]

    @blog.cached(name="f", tags=["x"])
    async def post() -> int:
        return rows["post"]

    @blog.cached(name="page")
    async def page() -> int:
        return await product()

    async def fill() -> None:
        await page()
        await post()

    await fill()
    await shop.invalidate("x")
    await assert_miss(page)
    await assert_hit(post)
    await fill()
    await blog.invalidate("x")
    await assert_miss(post)
    await assert_hit(page)
    await assert_hit(product)
    await fill()
    await shop.clear()
    await assert_miss(product)
    await assert_miss(page)
    await assert_hit(post)
    await fill()
    await root.clear()
    for one in (product, post, page):
        await assert_miss(one)


async def test_the_caches_of_two_backends_do_not_protect_each_other(caplog: pytest.LogCaptureFixture) -> None:
    """A parent of a child from another backend is not stored, with one warning that says why.
    Fails where such tags are taken up as if they could reach it."""
    here, there = new_cache(), new_cache()
    rows = Rows()

    @there.cached(name="part", tags=["x"])
    async def part() -> int:
        return rows["x"]

    @here.cached(name="whole")
    async def whole() -> int:
        await part()
        return await part()

    assert await whole() == 0
    rows["x"] = 1
    await there.invalidate("x")
    assert await whole() == 1
    await assert_miss(whole)
    warnings = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "whole() is not stored" in warnings[0].getMessage()
    assert "one backend" in warnings[0].getMessage()


# --- G3: no leak ---------------------------------------------------------------------------------------


async def test_concurrent_computations_keep_their_tags_apart() -> None:
    """Interleaved step by step, each has its own. Fails with a scope that is global."""
    cache = new_cache()
    turns = [anyio.Event() for _ in range(5)]

    @cache.cached(name="f")
    async def f(name: str, first: int) -> str:
        await turns[first].wait()
        add_tags(f"{name}:1")
        turns[first + 1].set()
        await turns[first + 2].wait()
        add_tags(f"{name}:2")
        turns[first + 3].set()
        return name

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(f, "a", 0)
            group.start_soon(f, "b", 1)
            await settle()
            turns[0].set()
            await turns[2].wait()
    await assert_tags(f, "a", 0, tags={"a:1", "a:2"})
    await assert_tags(f, "b", 1, tags={"b:1", "b:2"})


async def test_a_failure_leaves_nothing_behind() -> None:
    """No entry, no flight, no scope after an error or a cancellation. Fails where a leader that was cancelled
    does not land its flight."""
    cache, gate = new_cache(), Gate()
    error = ValueError("as it was raised")

    @cache.cached(name="fails")
    async def fails() -> int:
        raise error

    @cache.cached(name="waits")
    async def waits() -> int:
        await gate()
        return 1

    for _ in range(2):
        with pytest.raises(ValueError, match="as it was raised") as caught:
            await fails()
        assert caught.value is error
    async with anyio.create_task_group() as group:
        caller = Caller(group, waits)
        await gate.reached.wait()
        caller.cancel_scope.cancel()
    await assert_miss(fails)
    await assert_miss(waits)
    assert not flights_of(cache)._open
    assert current_scope.get() is None
    gate.go.set()
    with anyio.fail_after(PATIENCE):
        assert await waits() == 1


async def test_a_task_that_outlives_its_computation(caplog: pytest.LogCaptureFixture) -> None:
    """What it tags is no part of what was stored, does no harm to others, and is logged once.
    Fails where a closed scope still takes up tags."""
    caplog.set_level(logging.DEBUG, logger="asynctag")
    cache, gate = new_cache(), Gate()

    @cache.cached(name="part", tags=["part"])
    async def part() -> int:
        return 1

    scopes: list[Scope | None] = []

    async def straggler() -> None:
        scopes.append(current_scope.get())
        await gate()
        add_tags("late")
        add_tags("later")
        assert await part() == 1
        await assert_tags(part, tags={"part"})

    async with anyio.create_task_group() as group:

        @cache.cached(name="whole")
        async def whole() -> int:
            group.start_soon(straggler)
            return 1

        await whole()
        await gate.reached.wait()
        gate.go.set()
    await assert_tags(whole, tags=set())
    assert scopes[0] is not None
    assert not {one for one in scopes[0].tags if "late" in one}
    said = [one for one in caplog.records if "outlived" in one.getMessage()]
    assert len(said) == 1
    assert said[0].levelno == logging.DEBUG


# --- G6: state loss ------------------------------------------------------------------------------------


async def test_a_lost_journal_makes_misses() -> None:
    """What was cached, and what was being computed, before the journal was lost is not trusted.
    Fails where the epoch stays."""
    backend = MemoryBackend(clock=FakeClock())
    cache, rows, gate = new_cache(backend), Rows(), Gate()

    @cache.cached(name="f", tags=["x"], stale_while_revalidate=60, stale_if_error=60)
    async def f() -> int:
        return rows["x"]

    async def slow() -> int:
        value = rows["x"]
        await gate()
        return value

    await f()
    await cache.invalidate("x")
    await f()
    async with anyio.create_task_group() as group:
        Caller(group, lambda: cache.get_or_set("slow", slow, tags=["x"], returns=int))
        await gate.reached.wait()
        rows["x"] = 1
        await cache.invalidate("x")
        await backend.wipe()
        gate.go.set()
    assert await f() == 1
    assert await cache.get_or_set("slow", slow, tags=["x"], returns=int) == 1


# --- G7: nothing lost silently -------------------------------------------------------------------------


class Down(MemoryBackend):
    """A backend of which some methods do not answer."""

    def __init__(self, *down: str) -> None:
        super().__init__(clock=FakeClock())
        self.down = set(down)

    def peek(self, key: str) -> Entry | None:
        return None if "read" in self.down else super().peek(key)

    async def read(self, key: str) -> Reading:
        if "read" in self.down:
            raise BackendError("no answer")
        return await super().read(key)

    async def write(self, entry: Entry) -> Written:
        if "write" in self.down:
            raise BackendError("no answer")
        return await super().write(entry)

    async def write_many(self, entries: Sequence[Entry]) -> list[Written]:
        if "write" in self.down:
            raise BackendError("no answer")
        return await super().write_many(entries)

    async def agree(self, max_ttl: float) -> None:
        if "agree" in self.down:
            raise BackendError("no answer")
        await super().agree(max_ttl)

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        names = list(tags)
        if "invalidate" in self.down:
            raise InvalidationError("no answer", names)
        await super().invalidate(names, soft=soft)

    async def delete(self, key: str) -> bool:
        if "invalidate" in self.down:
            raise InvalidationError("no answer", [key])
        return await super().delete(key)


@pytest.mark.parametrize("down", [("read",), ("write",), ("read", "write"), ("agree",)])
async def test_a_backend_that_is_down_makes_reads_compute(
    down: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Every call gets its value, nothing is stored, and it is logged."""
    cache, rows = new_cache(Down(*down)), Rows()

    @cache.cached(name="f")
    async def f() -> int:
        return rows["x"]

    async def build(keys: list[str]) -> dict[str, int]:
        return {key: rows[key] for key in keys}

    for number in range(3):
        rows["x"] = number
        assert await f() == number
        assert await cache.get_or_set("k", f.uncached) == number
        assert await cache.get_or_set_many(["x"], build) == {"x": number}
    assert not len(cache._filling().backend)  # type: ignore[arg-type]
    assert await cache.get("k", "default") == "default"
    assert await cache.get_many(["k"]) == {}
    assert await cache.set("k", 1, since=await cache.lookup("k")) is False
    assert "no answer" in caplog.text


async def test_a_computation_around_a_read_that_failed_is_not_stored_stale() -> None:
    """Without a stamp there is nothing to hold a store against, though the backend is back by then.
    Fails with a stamp taken at the store."""
    backend = Down("read")
    cache, rows = new_cache(backend), Rows()

    async def compute() -> int:
        value = rows["x"]
        backend.down.clear()
        rows["x"] = 1
        await cache.invalidate("x")
        return value

    assert await cache.get_or_set("k", compute, tags=["x"], returns=int) == 0
    assert isinstance(await cache.lookup("k"), Miss)


async def test_an_invalidation_that_could_not_be_written_raises() -> None:
    """By tag, by key, of a function, of all: the caller knows, and knows the tags."""
    cache = new_cache(Down("invalidate"))

    @cache.cached(name="f")
    async def f() -> int:
        return 1

    for drop in (lambda: cache.invalidate("x", "y"), lambda: cache.delete("k"), f.invalidate, f.invalidate_all):
        with pytest.raises(InvalidationError) as caught:
            await drop()  # type: ignore[operator]
        assert caught.value.tags
    with pytest.raises(InvalidationError):
        await cache.clear()
    with pytest.raises(InvalidationError):
        await cache.invalidate("x", soft=True)
    assert cache.queued_invalidations == ()


async def test_a_queued_invalidation_counts_at_once() -> None:
    """However it is read: what carries its tag, or was built from what does, is computed until it is written, and
    nothing else is. Fails where reads do not ask for it, and where hits go by `peek`."""
    backend, rows = Down(), Rows()
    cache = new_cache(backend, stale_while_revalidate=60, stale_if_error=60)

    @cache.cached(name="row", tags=["{name}"])
    async def row(name: str) -> int:
        return rows[name]

    @cache.cached(name="whole")
    async def whole(name: str) -> int:
        return await row(name)

    async def build(keys: list[str]) -> dict[str, int]:
        return {key: rows[key[:1]] for key in keys}

    async def values(name: str) -> list[int | None]:
        many = await cache.get_or_set_many([f"{name}:many"], build, tags=[name])
        looked_up = await cache.lookup(f"{name}:many")
        return [
            await row(name),
            await whole(name),
            await cache.get_or_set(f"{name}:one", lambda: row.uncached(name), tags=[name]),
            many[f"{name}:many"],
            looked_up.value if isinstance(looked_up, Hit) else None,
            await cache.get(f"{name}:one"),
            (await cache.get_many([f"{name}:one"])).get(f"{name}:one"),
        ]

    assert [await values("x"), await values("y")] == [[0] * 7] * 2
    backend.down.add("invalidate")
    rows["x"] = 1
    assert await cache.invalidate("x", queue=True) is False
    rows.reads = 0
    for _ in range(2):
        assert await values("x") == [1, 1, 1, 1, None, None, None]
        assert await values("y") == [0] * 7
    assert rows.reads == 8
    await assert_miss(whole, "x")
    await assert_hit(whole, "y")

    backend.down.clear()
    assert await cache.invalidate("z") is True  # and what is queued goes before it
    assert [await values("x"), await values("y")] == [[1] * 7, [0] * 7]
    assert rows.reads == 11


async def test_what_began_before_a_queued_invalidation_is_shared_with_nobody_after_it() -> None:
    """A caller that starts after `invalidate` has returned False may wait for a flight begun before it, but not have
    its result. Fails where the store is sent: the journal would accept it, as it does not know yet."""
    backend, rows, gates = Down("invalidate"), Rows(), {"one": Gate(), "many": Gate()}
    cache = new_cache(backend)

    async def slow(key: str) -> int:
        value = rows["x"]
        await gates[key]()
        return value

    async def build(keys: list[str]) -> dict[str, int]:
        return {key: await slow(key) for key in keys}

    def call() -> Awaitable[int]:
        return cache.get_or_set("one", lambda: slow("one"), tags=["x"], returns=int)

    async def call_many() -> int:
        return (await cache.get_or_set_many(["many"], build, tags=["x"], returns=int))["many"]

    async with anyio.create_task_group() as group:
        first = [Caller(group, call), Caller(group, call_many)]
        for gate in gates.values():
            await gate.reached.wait()
        rows["x"] = 1
        assert await cache.invalidate("x", queue=True) is False
        later = [Caller(group, one) for one in (call, call_many) for _ in range(3)]
        await settle()
        for gate in gates.values():
            gate.go.set()
    assert [one.value for one in first] == [0, 0]
    assert [one.value for one in later] == [1] * 6
    assert not len(backend)


class SlowToAnswer(Down):
    """A backend whose answer to the next read comes late: it is from before what happens meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: Gate | None = None

    def peek(self, key: str) -> Entry | None:
        return None

    async def read(self, key: str) -> Reading:
        reading = await super().read(key)
        gate, self.gate = self.gate, None
        if gate is not None:
            await gate()
        return reading

    async def read_many(self, keys: Sequence[str]) -> list[Reading]:
        return [await self.read(key) for key in keys]

    async def inspect(self, key: str) -> Reading:
        return await self.read(key)


@pytest.mark.parametrize("way", ["get", "get_many", "get_or_set", "get_or_set_many", "explain", "stale_if_error"])
async def test_an_answer_from_before_a_queued_invalidation_was_written(way: str) -> None:
    """It arrives when the queue is empty again: its entry still is a miss. Fails where the queue is looked at
    when the answer is there."""
    backend, gate = SlowToAnswer(), Gate()
    cache = new_cache(backend)

    async def value() -> int:
        return 1

    async def failing() -> int:
        backend.gate = gate
        raise OSError("down")

    async def build(keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, 1)

    async def read() -> Any:
        if way == "get":
            return await cache.get("k", 1, returns=int)
        if way == "get_many":
            return (await cache.get_many(["k"])).get("k", 1)
        if way == "get_or_set":
            return await cache.get_or_set("k", value, tags=["x"])
        if way == "get_or_set_many":
            return (await cache.get_or_set_many(["k"], build, tags=["x"])).get("k")
        if way == "explain":
            return 0 if (await cache.explain("k")).hit else 1
        backend.gate = None
        await cache.get_or_set("k", failing, tags=["x"], stale_if_error=60)
        return 0

    await cache.get_or_set("k", lambda: build(["k"]), tags=["x"], returns=dict[str, int])
    found = await cache.lookup("k", returns=dict[str, int])
    assert await cache.set("k", 0, since=found, tags=["x"])
    backend.down.add("invalidate")
    assert await cache.invalidate("x", queue=True) is False
    backend.gate = gate
    async with anyio.create_task_group() as group:
        caller = Caller(group, read)
        await gate.reached.wait()
        backend.down.clear()
        assert await cache.flush_invalidations() is True
        assert cache.queued_invalidations == ()
        gate.go.set()
    if way == "stale_if_error":
        assert isinstance(caller.error, OSError)
    else:
        assert caller.value == 1


async def test_what_is_queued_again_while_it_is_written_is_written_again() -> None:
    """The number that is on its way may be older than the data of the second invalidation. Fails where what was
    written is taken from the queue by its name alone."""

    class Slow(Down):
        gate: Gate | None = None

        async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
            await super().invalidate(tags, soft=soft)
            gate, self.gate = self.gate, None
            if gate is not None:
                await gate()

    backend, rows, gate = Slow("invalidate"), Rows(), Gate()
    cache, other = new_cache(backend), new_cache(Other(backend))

    async def value() -> int:
        return rows["x"]

    assert await cache.invalidate("x", queue=True) is False
    async with anyio.create_task_group() as group:
        backend.down.clear()
        backend.gate = gate
        flush = Caller(group, cache.flush_invalidations)
        await gate.reached.wait()
        assert await other.get_or_set("k", value, tags=["x"]) == 0
        backend.down.add("invalidate")
        rows["x"] = 1
        assert await cache.invalidate("x", queue=True) is False
        gate.go.set()
    assert flush.value is False
    backend.down.clear()
    assert await cache.flush_invalidations() is True
    assert await cache.get_or_set("k", value, tags=["x"]) == 1
    assert await other.get_or_set("k", value, tags=["x"]) == 1


class Other(MemoryBackend):
    """What another process has of the same backend."""

    def __init__(self, backend: MemoryBackend) -> None:
        super().__init__(clock=backend.clock)
        self._backend = backend

    def peek(self, key: str) -> Entry | None:
        return self._backend.peek(key)

    async def read(self, key: str) -> Reading:
        return await self._backend.read(key)

    async def write(self, entry: Entry) -> Written:
        return await self._backend.write(entry)


# --- G8: one computation -------------------------------------------------------------------------------


async def test_a_thousand_misses_are_one_computation() -> None:
    """However many come at once. Fails where each leads a flight of its own."""
    cache, gate, computed = new_cache(), Gate(), []

    @cache.cached(name="f")
    async def f() -> dict[str, list[int]]:
        computed.append(1)
        await gate()
        return {"rows": [1]}

    async with anyio.create_task_group() as group:
        callers = [Caller(group, f) for _ in range(1_000)]
        await gate.reached.wait()
        await settle()
        gate.go.set()
    assert len(computed) == 1
    assert all(one.value == {"rows": [1]} for one in callers)
    assert not flights_of(cache)._open


async def test_a_cancelled_leader_is_followed_by_one() -> None:
    """One more computation, nobody hangs, nobody else is cancelled. Fails where it does not land its flight."""
    cache, gates, computed = new_cache(), [Gate(), Gate()], []

    @cache.cached(name="f")
    async def f() -> int:
        computed.append(1)
        await gates[len(computed) - 1]()
        return len(computed)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            leader = Caller(group, f)
            await gates[0].reached.wait()
            followers = [Caller(group, f) for _ in range(999)]
            await settle()
            leader.cancel_scope.cancel()
            await gates[1].reached.wait()
            await settle()
            gates[1].go.set()
    assert leader.value is MISSING
    assert len(computed) == 2
    assert [one.value for one in followers] == [2] * 999


async def test_a_cancelled_follower_cancels_nobody() -> None:
    """The leader and the other followers go on."""
    cache, gate, computed = new_cache(), Gate(), []

    @cache.cached(name="f")
    async def f() -> int:
        computed.append(1)
        await gate()
        return 1

    async with anyio.create_task_group() as group:
        leader = Caller(group, f)
        await gate.reached.wait()
        followers = [Caller(group, f) for _ in range(3)]
        await settle()
        followers[1].cancel_scope.cancel()
        await settle()
        assert followers[1].over
        assert not leader.over
        gate.go.set()
    assert [leader.value, followers[0].value, followers[2].value] == [1, 1, 1]
    assert followers[1].value is MISSING
    assert len(computed) == 1


async def test_nobody_waits_for_more_than_two_computations() -> None:
    """Those whom a flight left without a result share the next one, whatever becomes of it: an error too.
    Fails where only what was stored is shared."""
    cache, computed = new_cache(), []
    gates = [Gate() for _ in range(12)]

    @cache.cached(name="f")
    async def f() -> int:
        computed.append(LookupError(len(computed)))
        await gates[len(computed) - 1]()
        raise computed[-1]

    async with anyio.create_task_group() as group:
        leader = Caller(group, f)
        await gates[0].reached.wait()
        followers = [Caller(group, f) for _ in range(9)]
        await settle()
        for gate in gates:
            gate.go.set()
    assert leader.error is computed[0]
    assert len(computed) == 2
    assert all(one.error is computed[1] for one in followers)


async def test_a_refused_store_is_followed_by_one_computation_for_all() -> None:
    """Refused twice, the second is still younger than all who waited: they share it.
    Fails where only what was stored is shared."""
    cache, rows, gates = new_cache(), Rows(), [Gate() for _ in range(12)]

    @cache.cached(name="f", tags=["x"])
    async def f() -> int:
        value = rows["x"]
        await gates[rows.reads - 1]()
        rows["x"] = value + 1
        await cache.invalidate("x")
        return value

    async with anyio.create_task_group() as group:
        leader = Caller(group, f)
        await gates[0].reached.wait()
        followers = [Caller(group, f) for _ in range(9)]
        await settle()
        for gate in gates:
            gate.go.set()
    assert leader.value == 0
    assert [one.value for one in followers] == [1] * 9
    assert rows.reads == 2


class SlowLookUp(MemoryBackend):
    """A backend whose second look-up is answered late."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock())
        self.gate = Gate()
        self.reads = 0

    async def read(self, key: str) -> Reading:
        reading = await super().read(key)
        self.reads += 1
        if self.reads == 2:
            await self.gate()
        return reading


async def test_a_look_up_from_before_a_landing_is_made_again() -> None:
    """A miss that was answered before the flight landed does not start another computation after it.
    Fails where landings are not noticed."""
    backend, computed = SlowLookUp(), []
    cache, gate = new_cache(backend), Gate()

    async def compute() -> int:
        computed.append(1)
        await gate()
        return 1

    async with anyio.create_task_group() as group:
        Caller(group, lambda: cache.get_or_set("k", compute))
        await gate.reached.wait()
        late = Caller(group, lambda: cache.get_or_set("k", compute))
        await backend.gate.reached.wait()
        gate.go.set()
        await settle()
        backend.gate.go.set()
    assert late.value == 1
    assert len(computed) == 1


async def test_errors_are_the_callers_and_are_not_cached() -> None:
    """The very exception that was raised; the next call computes."""
    cache, rows = new_cache(), Rows()

    @cache.cached(name="f")
    async def f() -> int:
        if not rows["x"]:
            raise errors[-1]
        return 1

    errors = [KeyError("x"), ExceptionGroup("several", [ValueError(1)])]
    while errors:
        with pytest.raises((KeyError, ExceptionGroup)) as caught:
            await f()
        assert caught.value is errors.pop()
        assert caught.value.__cause__ is None
    rows["x"] = 1
    assert await f() == 1


async def test_no_store_computes_side_by_side() -> None:
    """What is not to be stored is not shared: those who waited compute at once, not one after another.
    Fails where the key takes a flight again."""
    cache, first, inside = new_cache(), Gate(), []
    everybody = anyio.Event()

    @cache.cached(name="f")
    async def f() -> int:
        no_store()
        inside.append(1)
        number = len(inside)
        if number == 1:
            await first()
        else:
            if number == 6:
                everybody.set()
            await everybody.wait()
        return number

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            leader = Caller(group, f)
            await first.reached.wait()
            followers = [Caller(group, f) for _ in range(5)]
            await settle()
            first.go.set()
    assert leader.value == 1
    assert sorted(one.value for one in followers) == [2, 3, 4, 5, 6]
    await assert_miss(f)


async def test_no_store_goes_up() -> None:
    """What is built from something that is not to be stored is not stored. Fails without hand-up."""
    cache, computed = new_cache(), []

    @cache.cached(name="part")
    async def part() -> int:
        no_store()
        return 1

    @cache.cached(name="whole")
    async def whole() -> int:
        computed.append(1)
        return await part()

    assert [await whole(), await whole()] == [1, 1]
    assert len(computed) == 2
    await assert_miss(whole)


async def test_a_call_within_itself_does_not_hang() -> None:
    """A computation that asks for its own key computes it, instead of waiting for itself.
    Fails where the circle is not seen."""
    cache, depth = new_cache(), []

    @cache.cached(name="f", tags=["x"])
    async def f() -> int:
        depth.append(1)
        return 1 if len(depth) > 3 else await f() + 1

    async def in_a_task() -> int:
        async with anyio.create_task_group() as group:
            caller = Caller(group, f)
        return int(caller.value)

    with anyio.fail_after(PATIENCE):
        assert await f() == 4
        await cache.invalidate("x")
        depth[:] = [1, 1]
        assert await cache.get_or_set("k", in_a_task) == 2


async def test_calls_crosswise_do_not_hang() -> None:
    """Two tasks, each inside of what the other asks for. Fails where the circle is not seen."""
    cache = new_cache()
    inside = {"a": anyio.Event(), "b": anyio.Event()}
    deeper: set[str] = set()

    @cache.cached(name="f")
    async def f(name: str, other: str) -> str:
        if name in deeper:
            return name
        deeper.add(name)
        inside[name].set()
        await inside[other].wait()
        return name + await f(other, name)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            a, b = Caller(group, lambda: f("a", "b")), Caller(group, lambda: f("b", "a"))
    assert a.value in ("ab", "aba")
    assert b.value in ("ba", "bab")


async def test_many_crosswise_do_not_hang() -> None:
    """`get_or_set_many` that lead and join each other's keys both come to an end."""
    cache, gates = new_cache(), {"a": Gate(), "b": Gate()}

    async def build(keys: list[str]) -> dict[str, str]:
        await gates[keys[0]]()
        return {key: key for key in keys}

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            first = Caller(group, lambda: cache.get_or_set_many(["a", "c"], build))
            await gates["a"].reached.wait()
            second = Caller(group, lambda: cache.get_or_set_many(["b", "c", "a"], build))
            await gates["b"].reached.wait()
            third = Caller(group, lambda: cache.get_or_set_many(["c", "b", "a"], build))
            await settle()
            gates["b"].go.set()
            await settle()
            gates["a"].go.set()
    assert first.value == {"a": "a", "c": "c"}
    assert second.value == {"b": "b", "c": "c", "a": "a"}
    assert list(third.value) == ["c", "b", "a"]


async def test_many_do_not_wait_for_more_than_two_computations() -> None:
    """The bound holds for `get_or_set_many` too: it takes the second flight's result, whatever became of it."""
    cache, computed = new_cache(), []
    gates = [Gate() for _ in range(6)]

    async def compute() -> int:
        number = len(computed)
        computed.append(number)
        await gates[number]()
        await cache.invalidate("x")  # each store is refused
        return number

    async def build(keys: list[str]) -> dict[str, int]:
        return {key: await compute() for key in keys}

    def one() -> Awaitable[int]:
        return cache.get_or_set("k", compute, tags=["x"])

    async with anyio.create_task_group() as group:
        Caller(group, one)
        await gates[0].reached.wait()
        second = Caller(group, one)
        await settle()
        many = Caller(group, lambda: cache.get_or_set_many(["k"], build, tags=["x"]))
        await settle()
        gates[0].go.set()
        await gates[1].reached.wait()
        await settle()
        for gate in gates[1:]:
            gate.go.set()
    assert second.value == 1
    assert many.value == {"k": 1}
    assert len(computed) == 2


async def test_what_does_not_exist_is_asked_for_once_by_many() -> None:
    """A key that `build` leaves out: those who waited do not ask one after another."""
    cache, asked = new_cache(), []
    gates = [Gate() for _ in range(8)]

    async def build(keys: list[str]) -> dict[str, int]:
        asked.append(keys)
        await gates[len(asked) - 1]()
        return {}

    async with anyio.create_task_group() as group:
        first = Caller(group, lambda: cache.get_or_set_many(["gone"], build))
        await gates[0].reached.wait()
        later = [Caller(group, lambda: cache.get_or_set_many(["gone"], build)) for _ in range(5)]
        await settle()
        for gate in gates:
            gate.go.set()
    assert all(one.value == {} for one in (first, *later))
    assert len(asked) <= 2


# --- G9: same values -----------------------------------------------------------------------------------


async def test_values_are_shared_with_nobody() -> None:
    """Neither later hits, nor the joiners, nor the leader see what somebody does to its value.
    Fails where values are kept by reference."""
    cache, gate = new_cache(), Gate()

    @cache.cached(name="f")
    async def f() -> dict[str, list[int]]:
        await gate()
        return {"rows": []}

    async with anyio.create_task_group() as group:
        callers = [Caller(group, f)]
        await gate.reached.wait()
        callers += [Caller(group, f) for _ in range(3)]
        await settle()
        gate.go.set()
    for number, caller in enumerate(callers):
        assert caller.value == {"rows": []}
        caller.value["rows"].append(number)
    hits = [await f(), await f()]
    assert hits == [{"rows": []}] * 2
    hits[0]["rows"].append(1)
    assert hits[1] == {"rows": []}
    assert await f() == {"rows": []}


async def test_none_is_a_value() -> None:
    """`None` is cached like any other value. Fails where it is taken for a miss."""
    cache, computed = new_cache(), []

    @cache.cached(name="f")
    async def f(value: int) -> int | None:
        computed.append(value)
        return None

    async def compute() -> None:
        computed.append(-1)

    for _ in range(3):
        assert await f(1) is None
        assert await cache.get_or_set("k", compute) is None
    assert computed == [1, -1]
    assert await cache.get("k", "default") is None
    assert await cache.get_many(["k", "other"]) == {"k": None}


async def test_arguments_of_different_types_have_different_entries() -> None:
    """`1`, `True`, `1.0` and `"1"` are equal or alike, and share nothing."""
    cache = new_cache()

    @cache.cached(name="f")
    async def f(value: Any) -> str:
        return repr(value)

    values = (1, True, 1.0, "1", b"1", None, "None", 0, False, -0.0, 0.0, (1,), [1])
    for _ in range(2):
        assert [await f(one) for one in values] == [repr(one) for one in values]


class Product(pydantic.BaseModel):
    name: str
    price: int = 0
    note: str | None = None


async def test_a_model_comes_back_with_the_same_fields_set() -> None:
    """So that `exclude_unset` gives the same for a hit as for a miss."""
    cache = new_cache()

    @cache.cached(name="f")
    async def f() -> list[Product]:
        return [Product(name="a"), Product(name="b", price=0), Product(name="c", note=None)]

    for _ in range(3):
        found = await f()
        assert [one.model_fields_set for one in found] == [{"name"}, {"name", "price"}, {"name", "note"}]
        assert [type(one) for one in found] == [Product] * 3


# --- G10: safe input -----------------------------------------------------------------------------------


class Bytes(MemoryBackend):
    """Values as bytes, as a server keeps them; anybody may have written there."""

    in_process = False

    def peek(self, key: str) -> Entry | None:
        return None

    def scribble(self, data: bytes) -> None:
        for entry in self._entries.values():
            entry.body = data


@pytest.mark.parametrize("data", [b"", b"\xc1", b"not it", b"\x80\x04\x95pickle", b"\x91\xa1x", b"\xc0" * 3])
async def test_a_corrupt_entry_is_a_miss(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that are not the value's are computed again, never handed out, never raised.
    Fails where an error in decoding reaches the caller."""
    backend, computed = Bytes(clock=FakeClock()), []
    cache = new_cache(backend)

    @cache.cached(name="f", stale_if_error=60)
    async def f() -> dict[str, int]:
        computed.append(1)
        return {"n": 1}

    await f()
    await f()
    assert len(computed) == 1
    backend.scribble(data)
    assert await f() == {"n": 1}
    assert len(computed) == 2
    assert "taken for a miss" in caplog.text
    backend.scribble(data)
    assert await cache.get(f.key(), "default", returns=dict[str, int]) == "default"
    assert await cache.get_many([f.key()], returns=dict[str, int]) == {}


async def test_an_entry_of_another_type_is_a_miss() -> None:
    """A key that held text gives no number. Fails where an entry's type is not looked at."""
    cache = new_cache()

    async def text() -> str:
        return "text"

    async def number() -> int:
        return 1

    assert await cache.get_or_set("k", text, returns=str) == "text"
    assert await cache.get_or_set("k", number, returns=int) == 1
    assert await cache.get("k", returns=str) is None
    assert await cache.get("k", returns=int) == 1


# --- stale on purpose ----------------------------------------------------------------------------------


async def test_stale_is_served_while_it_is_renewed() -> None:
    """In an opened cache: at once, with one renewal in the background."""
    cache, rows, gate = new_cache(), Rows(), Gate()
    gate.go.set()

    @cache.cached(name="f", tags=["x"], stale_while_revalidate=60)
    async def f() -> int:
        value = rows["x"]
        await gate()
        return value

    async with cache:
        assert await f() == 0
        rows["x"], gate.go = 1, anyio.Event()
        await cache.invalidate("x", soft=True)
        assert [await f(), await f(), await f()] == [0] * 3
        await settle()
        assert rows.reads == 2
        gate.go.set()
        await settle()
        assert await f() == 1
        rows["x"] = 2
        clock_of(cache).advance(61)
        assert await f() == 1
        await settle()
        assert await f() == 2
        await cache.invalidate("x")
        rows["x"] = 3
        assert await f() == 3


async def test_stale_is_renewed_in_the_foreground() -> None:
    """Where the cache is not open there is nobody to renew: the caller computes."""
    cache, rows = new_cache(), Rows()

    @cache.cached(name="f", tags=["x"], stale_while_revalidate=60)
    async def f() -> int:
        return rows["x"]

    assert await f() == 0
    rows["x"] = 1
    await cache.invalidate("x", soft=True)
    assert await f() == 1


async def test_stale_if_error() -> None:
    """An error within the period is answered by what was cached before; after it, the error comes through."""
    cache, rows = new_cache(), Rows()
    down = False

    @cache.cached(name="f", tags=["x"], stale_if_error=60)
    async def f() -> int:
        if down:
            raise OSError("down")
        return rows["x"]

    assert await f() == 0
    down, rows["x"] = True, 1
    clock_of(cache).advance(61)
    assert await f() == 0
    clock_of(cache).advance(60)
    with pytest.raises(OSError, match="down"):
        await f()
    down = False
    assert await f() == 1
    down = True
    await cache.invalidate("x", soft=True)
    assert await f() == 1
    await cache.invalidate("x")
    with pytest.raises(OSError, match="down"):
        await f()


async def test_what_is_built_from_stale_is_stale() -> None:
    """A parent of a stale child takes its stamp and its end, and is renewed as it is; a renewal computes stale
    children. Fails where a stale part hands up no staleness."""
    cache, rows = new_cache(), Rows()

    @cache.cached(name="part", tags=["x"], ttl=10, stale_while_revalidate=600)
    async def part() -> int:
        return rows["x"]

    @cache.cached(name="whole", ttl=60, stale_while_revalidate=600)
    async def whole() -> int:
        return await part()

    async with cache:
        assert await part() == 0
        rows["x"] = 1
        await cache.invalidate("x", soft=True)
        assert await whole() == 0
        assert (await whole.explain()).state == "stale"
        await settle()
        assert await part() == 1
        assert await whole() == 0  # stale, and renewed now
        await settle()
        assert await whole() == 1
        await assert_hit(whole)
        # Both stale: the renewal of the whole computes the part, and does not wait for a second round.
        rows["x"] = 2
        await cache.invalidate("x", soft=True)
        assert await whole() == 1
        await settle()
        assert await whole() == 2
        await assert_hit(whole)


async def test_without_a_stale_period_a_parent_of_something_stale_is_not_stored() -> None:
    """It would be stale, and may not be. Fails where a stale part hands up no staleness."""
    cache, rows = new_cache(), Rows()

    @cache.cached(name="part", tags=["x"], stale_while_revalidate=600)
    async def part() -> int:
        return rows["x"]

    @cache.cached(name="whole")
    async def whole() -> int:
        return await part()

    async with cache:
        await part()
        rows["x"] = 1
        await cache.invalidate("x", soft=True)
        assert await whole() == 0
        await assert_miss(whole)
        await settle()
        assert await whole() == 1
        await assert_hit(whole)


request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


async def test_renewals_run_in_a_fresh_context() -> None:
    """Neither the request nor the scope of who found the stale entry reaches its renewal."""
    cache, seen = new_cache(), []

    @cache.cached(name="part", tags=["part"], stale_while_revalidate=60)
    async def part() -> int:
        scope = current_scope.get()
        assert scope is not None
        seen.append((request.get(), scope.parent))
        add_tags(f"late:{len(seen)}")
        return 1

    @cache.cached(name="whole")
    async def whole() -> int:
        no_store()
        return await part()

    request.set("opener")
    async with cache:
        request.set("first")
        await part()
        request.set("second")
        clock_of(cache).advance(61)
        await whole()
        await settle()
        await assert_tags(part, tags={"part", "late:2"})
    assert seen == [("first", None), ("opener", None)]


async def test_a_failed_renewal_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The stale value is served to its end, the error goes to the log, and the cache stays open."""
    cache = new_cache()
    down = False

    @cache.cached(name="f", stale_while_revalidate=60)
    async def f() -> int:
        if down:
            raise OSError("down")
        return 1

    async with cache:
        await f()
        down = True
        clock_of(cache).advance(61)
        for _ in range(3):
            assert await f() == 1
            await settle()
        assert "the renewal of f() failed" in caplog.text
        clock_of(cache).advance(60)
        with pytest.raises(OSError, match="down"):
            await f()


async def test_a_renewal_that_is_cut_off_leaves_no_flight() -> None:
    """Closing the cache cancels renewals; whoever comes next computes."""
    cache, gate = new_cache(), Gate()
    gate.go.set()

    @cache.cached(name="f", stale_while_revalidate=60)
    async def f() -> int:
        await gate()
        return 1

    for steps in range(4):
        gate.go.set()
        with anyio.fail_after(PATIENCE):
            assert await f() == 1
        clock_of(cache).advance(61)
        gate.go = anyio.Event()
        async with cache:
            assert await f() == 1
            for _ in range(steps):
                await checkpoint()
        assert not flights_of(cache)._open


async def test_a_parent_lives_no_longer_than_its_parts() -> None:
    """Its TTL ends with the soonest of what it was built from, on hits and on misses; `inherit_ttl=False` says
    otherwise. Fails where a part hands up no end."""
    cache, rows = new_cache(), Rows()

    @cache.cached(name="part", ttl=10)
    async def part() -> int:
        return rows["x"]

    @cache.cached(name="whole", ttl=60)
    async def whole() -> int:
        return await part()

    @cache.cached(name="free", ttl=60, inherit_ttl=False)
    async def free() -> int:
        return await part()

    async def ends() -> list[float | None]:
        return [(await one.explain()).fresh_for for one in (part, whole, free)]

    await whole()
    await free()
    assert await ends() == [10, 10, 60]
    clock_of(cache).advance(4)
    await whole.invalidate()
    await whole()
    assert await ends() == [6, 6, 56]
    rows["x"] = 1
    clock_of(cache).advance(7)
    assert [await whole(), await free()] == [1, 0]


# --- the rules, taken out one at a time ----------------------------------------------------------------

Breaker = Callable[[pytest.MonkeyPatch], None]


def stamp_at_the_store(patch: pytest.MonkeyPatch) -> None:
    intact = Filler.entry

    def entry(self: Filler, job: Any, kept: Any, stamp: Any, scope: Any, started: float) -> Entry:
        made = intact(self, job, kept, stamp, scope, started)
        made.stamp = self.backend._stamp  # type: ignore[attr-defined]
        return made

    patch.setattr(Filler, "entry", entry)


def store_unchecked(patch: pytest.MonkeyPatch) -> None:
    intact = MemoryBackend._write

    def write(self: MemoryBackend, entry: Entry) -> Written:
        entry.stamp = self._stamp
        return intact(self, entry)

    patch.setattr(MemoryBackend, "_write", write)


def peek_unchecked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryBackend, "peek", lambda self, key: self._entries.get(key))


def share_unchecked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Flight, "serves", lambda self, came: self.fate in (Fate.ACCEPTED, Fate.UNCHECKED, Fate.FAILED))


def share_only_what_was_stored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Flight, "serves", lambda self, came: self.fate is Fate.ACCEPTED)


def join_after_the_store(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Flights, "close", lambda self, flight: None)


def delete_without_a_tag(patch: pytest.MonkeyPatch) -> None:
    async def delete(self: MemoryBackend, key: str) -> bool:
        node = self._entries.pop(key, None)
        if node is not None:
            self._unlink(node)
        return node is not None

    patch.setattr(MemoryBackend, "delete", delete)


def scopes_hand_nothing_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scope, "hand_up", lambda self: setattr(self, "closed", True))


def failures_hand_nothing_up(patch: pytest.MonkeyPatch) -> None:
    intact = Scope.hand_up

    def hand_up(self: Scope) -> None:
        if sys.exc_info()[0] is None:
            intact(self)

    patch.setattr(Scope, "hand_up", hand_up)


def hits_hand_nothing_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scope, "absorb", lambda self, entry, backend, *, stale=False: None)


def joiners_get_the_value_alone(patch: pytest.MonkeyPatch) -> None:
    intact = Filler._share
    patch.setattr(Filler, "_share", lambda self, job, flight, parent: intact(self, job, flight, None))


def giving_up_leaves_no_trace(patch: pytest.MonkeyPatch) -> None:
    intact = Filler._wait
    patch.setattr(Filler, "_wait", lambda self, job, flight, inside, parent: intact(self, job, flight, inside, None))


def stale_parts_pass_for_fresh(patch: pytest.MonkeyPatch) -> None:
    intact = Scope._shorten

    def shorten(self: Scope, fresh_until: float, expires: float, stale_stamp: Stamp | None) -> None:
        intact(self, fresh_until if stale_stamp is None else 1e12, expires, None)

    patch.setattr(Scope, "_shorten", shorten)


def parts_hand_up_no_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scope, "_shorten", lambda *_: None)


def foreign_tags_are_taken_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scope, "_refuse_foreign", lambda self: None)


def one_scope_for_all(patch: pytest.MonkeyPatch) -> None:
    class Global:
        value: Any = None

        def get(self) -> Any:
            return self.value

        def set(self, value: Any) -> Any:
            before, self.value = self.value, value
            return before

        def reset(self, token: Any) -> None:
            self.value = token

    shared = Global()
    for name in ("asynctag.scope", "asynctag.fill", "asynctag.cached", "asynctag.background"):
        patch.setattr(sys.modules[name], "current_scope", shared)


def closed_scopes_take_up_tags(patch: pytest.MonkeyPatch) -> None:
    intact = Scope.gather

    def gather(self: Scope, *args: Any, **kwargs: Any) -> None:
        closed, self.closed = self.closed, False
        intact(self, *args, **kwargs)
        self.closed = closed

    patch.setattr(Scope, "gather", gather)


def the_cancelled_do_not_land(patch: pytest.MonkeyPatch) -> None:
    intact = Flights.land

    def land(self: Flights, flight: Flight, fate: Fate, **more: Any) -> None:
        if fate is not Fate.CANCELLED:
            intact(self, flight, fate, **more)

    patch.setattr(Flights, "land", land)


def everybody_leads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Flights, "board", lambda self, key, *_: (Turn.LEAD, Flight(key, 0)))


def landings_go_unnoticed(patch: pytest.MonkeyPatch) -> None:
    intact = Flights.board
    patch.setattr(
        Flights, "board", lambda self, key, now, landings, after=None: intact(self, key, now, None, after=after)
    )


def no_side_by_side(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Flights, "_set_side_by_side", lambda *_: None)


def circles_go_unseen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(flight_module, "_waits_for", lambda *_: False)


def values_by_reference(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Codec, "keep", lambda self, value: Kept(value, None, 1))


def none_is_a_miss(patch: pytest.MonkeyPatch) -> None:
    intact = fill_module.load

    def load(entry: Entry, codec: Codec) -> Any:
        value = intact(entry, codec)
        return MISSING if value is None else value

    patch.setattr(fill_module, "load", load)
    patch.setattr(MemoryBackend, "peek", lambda self, key: None)


def types_go_unseen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fill_module, "load", lambda entry, codec: entry.load())


def the_epoch_stays(patch: pytest.MonkeyPatch) -> None:
    async def wipe(self: MemoryBackend) -> None:
        self._hard.clear()
        self._soft.clear()

    patch.setattr(MemoryBackend, "wipe", wipe)


def fallbacks_from_before(patch: pytest.MonkeyPatch) -> None:
    async def fallback(self: Filler, job: Any, flight: Any, parent: Any, error: Exception) -> Any:
        return self.backend._entries[job.key].load()  # type: ignore[attr-defined]

    patch.setattr(Filler, "_fallback", fallback)


def queued_ones_are_served(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fill_module, "_without", lambda reading, leased, with_entry=False: reading)


def queued_ones_are_peeked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cache, "_on_pending", lambda self, pending: None)


def queued_ones_are_stored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Filler, "_refuse", lambda self, entry: None)


def the_queue_is_looked_at_afterwards(patch: pytest.MonkeyPatch) -> None:
    class Late:
        def __init__(self, filler: Filler) -> None:
            self.pending = filler.invalidator.pending

        def __bool__(self) -> bool:
            return True

        def isdisjoint(self, tags: Iterable[str]) -> bool:
            return self.pending.names.isdisjoint(tags)

        def __contains__(self, tag: str) -> bool:
            return tag in self.pending.names

    class Names:
        def __init__(self, filler: Filler) -> None:
            self.names = Late(filler)

    intact = Filler.__init__

    def init(self: Filler, *args: Any) -> None:
        intact(self, *args)
        late: Any = Names(self)
        late.lock, late.watch = self.pending.lock, self.pending.watch
        late.queued = self.pending.queued
        self.pending = late

    patch.setattr(Filler, "__init__", init)


def what_was_written_goes_by_its_name(patch: pytest.MonkeyPatch) -> None:
    def written(self: Pending, batch: Any) -> bool:
        for name in batch.names:
            self._queue.pop((name, batch.soft), None)
        self._set(frozenset(name for name, _ in self._queue))
        return not self._queue

    patch.setattr(Pending, "written", written)


WITHOUT: list[tuple[Breaker, Callable[..., Awaitable[None]]]] = [
    (stamp_at_the_store, test_invalidation_during_a_computation),
    (store_unchecked, test_invalidation_during_a_computation),
    (stamp_at_the_store, test_late_tags_are_safe),
    (peek_unchecked, test_a_hit_is_checked),
    (share_unchecked, test_who_comes_after_an_invalidation_gets_nothing_from_before_it),
    (join_after_the_store, test_a_flight_is_joined_only_until_its_store_is_sent),
    (delete_without_a_tag, test_delete_holds_against_what_is_under_way),
    (delete_without_a_tag, test_deleting_a_part_takes_what_was_built_from_it),
    (hits_hand_nothing_up, test_an_invalidation_between_the_part_and_the_whole),
    (stamp_at_the_store, test_an_invalidation_between_the_part_and_the_whole),
    (stamp_at_the_store, test_set_is_held_against_its_lookup),
    (fallbacks_from_before, test_a_fallback_never_serves_what_a_hard_invalidation_hit),
    (scopes_hand_nothing_up, test_tags_go_up_on_misses_and_on_hits),
    (hits_hand_nothing_up, test_tags_go_up_on_misses_and_on_hits),
    (scopes_hand_nothing_up, test_a_whole_goes_with_the_function_of_its_part),
    (failures_hand_nothing_up, test_a_failed_part_counts),
    (failures_hand_nothing_up, test_a_cancelled_part_counts),
    (joiners_get_the_value_alone, test_a_part_that_was_joined_counts),
    (giving_up_leaves_no_trace, test_a_part_that_nobody_waited_for_counts),
    (joiners_get_the_value_alone, test_the_tags_of_a_shared_error_count),
    (scopes_hand_nothing_up, test_tags_come_from_tasks_and_threads),
    (scopes_hand_nothing_up, test_nesting_goes_across_namespaces),
    (foreign_tags_are_taken_up, test_the_caches_of_two_backends_do_not_protect_each_other),
    (one_scope_for_all, test_concurrent_computations_keep_their_tags_apart),
    (the_cancelled_do_not_land, test_a_failure_leaves_nothing_behind),
    (closed_scopes_take_up_tags, test_a_task_that_outlives_its_computation),
    (the_epoch_stays, test_a_lost_journal_makes_misses),
    (stamp_at_the_store, test_a_computation_around_a_read_that_failed_is_not_stored_stale),
    (queued_ones_are_served, test_a_queued_invalidation_counts_at_once),
    (queued_ones_are_peeked_at, test_a_queued_invalidation_counts_at_once),
    (queued_ones_are_stored, test_what_began_before_a_queued_invalidation_is_shared_with_nobody_after_it),
    *(
        (the_queue_is_looked_at_afterwards, partial(test_an_answer_from_before_a_queued_invalidation_was_written, way))
        for way in ("get", "get_many", "get_or_set", "get_or_set_many", "explain", "stale_if_error")
    ),
    (what_was_written_goes_by_its_name, test_what_is_queued_again_while_it_is_written_is_written_again),
    (everybody_leads, test_a_thousand_misses_are_one_computation),
    (the_cancelled_do_not_land, test_a_cancelled_leader_is_followed_by_one),
    (share_only_what_was_stored, test_nobody_waits_for_more_than_two_computations),
    (share_only_what_was_stored, test_a_refused_store_is_followed_by_one_computation_for_all),
    (landings_go_unnoticed, test_a_look_up_from_before_a_landing_is_made_again),
    (no_side_by_side, test_no_store_computes_side_by_side),
    (scopes_hand_nothing_up, test_no_store_goes_up),
    (circles_go_unseen, test_a_call_within_itself_does_not_hang),
    (circles_go_unseen, test_calls_crosswise_do_not_hang),
    (values_by_reference, test_values_are_shared_with_nobody),
    (none_is_a_miss, test_none_is_a_value),
    (types_go_unseen, test_an_entry_of_another_type_is_a_miss),
    (stale_parts_pass_for_fresh, test_what_is_built_from_stale_is_stale),
    (stale_parts_pass_for_fresh, test_without_a_stale_period_a_parent_of_something_stale_is_not_stored),
    (parts_hand_up_no_end, test_a_parent_lives_no_longer_than_its_parts),
]


def _function(scenario: Callable[..., Awaitable[None]]) -> Any:
    return scenario.func if isinstance(scenario, partial) else scenario


def _id(scenario: Callable[..., Awaitable[None]]) -> str:
    given = scenario.args if isinstance(scenario, partial) else ()
    return "-".join([_function(scenario).__name__, *given])


@pytest.mark.parametrize(
    ("breaker", "scenario"), WITHOUT, ids=[f"{rule.__name__}-{_id(test)}" for rule, test in WITHOUT]
)
async def test_without_its_rule_it_fails(
    breaker: Breaker,
    scenario: Callable[..., Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No test above passes by chance: with a rule taken out, the test that is about it fails."""
    monkeypatch.setattr(sys.modules[__name__], "PATIENCE", 0.2)
    breaker(monkeypatch)
    code = _function(scenario).__code__
    takes_log = "caplog" in code.co_varnames[: code.co_argcount]
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        await (scenario(caplog) if takes_log else scenario())
