"""What readers do while a transaction holds a tag: compute, be served what was there before, or wait for its end."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asynctag import BackendError, Cache, Cause, ConfigurationError, Held, Miss, Wait
from asynctag.backends.base import Reading, Stamp
from asynctag.leased import FIRST_LOOK, LAST_LOOK
from asynctag.testing import FakeClock, fake_clock
from tests.test_transactions import LEVELS, Told, outside

__all__ = ["fake_clock"]

pytestmark = pytest.mark.anyio


class Asked(Told):
    """It notes what it is asked about leases, too."""

    async def read_held(self, keys: Sequence[str]) -> list[Reading]:
        await self._note("read_held")
        if "no answer" in self.fails:
            raise BackendError("no answer")
        return await super().read_held(keys)

    async def is_held(self, tag: str, since: Stamp) -> bool:
        await self._note("is_held")
        if "no word" in self.fails:
            raise BackendError("no word")
        return await super().is_held(tag, since)


@pytest.fixture
def backend(fake_clock: FakeClock) -> Asked:
    return Asked(clock=fake_clock)


@pytest.fixture
def rows() -> dict[str, str]:
    return {"x": "x@0", "y": "y@0"}


Read = Callable[..., Awaitable[str]]


def reading(cache: Cache, rows: dict[str, str]) -> Read:
    """Reads a row through the cache, tagged with its name."""

    async def read(row: str = "x", **options: Any) -> str:
        async def compute() -> str:
            return rows[row]

        value: str = await cache.get_or_set(row, compute, tags=[row], **options)
        return value

    return read


@pytest.fixture
def cache(backend: Asked) -> Cache:
    return Cache(backend, default_ttl=100, while_leased="serve_stale")


@pytest.fixture
def read(cache: Cache, rows: dict[str, str]) -> Read:
    return reading(cache, rows)


@pytest.fixture
def waiting(backend: Asked, rows: dict[str, str]) -> Read:
    """As `read`, by a cache whose readers wait for longer than a test lasts."""
    return reading(Cache(backend, default_ttl=100, while_leased=Wait(600)), rows)


class Looks:
    """Stands for the pauses of those who watch a tag: each ends when it is told to."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self._events: list[anyio.Event] = []

    async def __call__(self, seconds: float) -> None:
        self.pauses.append(seconds)
        event = anyio.Event()
        self._events.append(event)
        await event.wait()

    async def again(self) -> None:
        events, self._events = self._events, []
        for event in events:
            event.set()
        await anyio.wait_all_tasks_blocked()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks = Looks()
    monkeypatch.setattr("asynctag.fill.sleep", looks)
    return looks


@asynccontextmanager
async def held(cache: Cache, *tags: str, **options: Any) -> AsyncIterator[None]:
    """A transaction that has changed something, and of which the block itself is no part."""
    over = anyio.Event()

    async def hold(begun: anyio.Event) -> None:
        async with cache.transaction(**options):
            await cache.invalidate(*tags)
            begun.set()
            await over.wait()

    async with anyio.create_task_group() as group:
        begun = anyio.Event()
        group.start_soon(outside, hold, begun)
        await begun.wait()
        try:
            yield
        finally:
            over.set()


# --- serve_stale -----------------------------------------------------------------------------------


async def test_what_was_there_before_is_served_until_the_end(cache: Cache, read: Read, rows: dict[str, str]) -> None:
    """Before the commit and after it; from the block's end on, nothing of it is."""
    assert await read() == "x@0"
    async with held(cache, "x"):
        rows["x"] = "x@1"
        assert await read() == "x@0"
        assert await read() == "x@0"
    assert await read() == "x@1"
    rows["x"] = "x@2"
    assert await read() == "x@1"


async def test_readers_compute_unless_they_are_told_otherwise(backend: Asked, rows: dict[str, str]) -> None:
    """The default: nothing more is asked of the backend than ever."""
    cache = Cache(backend, default_ttl=100)
    read = reading(cache, rows)
    await read()
    async with held(cache, "x"):
        rows["x"] = "x@1"
        assert await read() == "x@1"
        assert await read(while_leased="serve_stale") == "x@0"
        backend.asked.clear()
        assert await read(while_leased="bypass") == "x@1"
        assert backend.asked == ["read", "write"]


async def test_a_function_says_it_for_itself(backend: Asked, rows: dict[str, str]) -> None:
    """Instead of the cache's default; one that says nothing has that."""
    cache = Cache(backend, default_ttl=100, while_leased="serve_stale")

    @cache.cached(tags=["x"], name="as the cache")
    async def as_the_cache() -> str:
        return rows["x"]

    @cache.cached(tags=["x"], name="bypassing", while_leased="bypass")
    async def bypassing() -> str:
        return rows["x"]

    assert await as_the_cache() == await bypassing() == "x@0"
    async with held(cache, "x"):
        rows["x"] = "x@1"
        assert await as_the_cache() == "x@0"
        assert await bypassing() == "x@1"
        assert (await as_the_cache.explain()).state == "stale"
        assert (await bypassing.explain()).state == "miss"


@pytest.mark.parametrize("isolation", LEVELS)
async def test_in_a_transaction_nothing_is_served_stale(
    cache: Cache, backend: Asked, read: Read, rows: dict[str, str], isolation: Any
) -> None:
    """Neither in the one that holds the tag, which has changed it, nor in another, at any level."""
    await read()
    async with cache.transaction(isolation=isolation):
        await cache.invalidate("x")
        rows["x"] = "x@1"
        assert await read() == "x@1"
        assert await cache.get_or_set_many(["x"], partial(_row, rows), tags=["x"]) == {"x": "x@1"}
        assert (await cache.explain("x")).state == "miss"

        async def in_another() -> str:
            async with cache.transaction(isolation=isolation):
                return await read()

        assert await outside(in_another) == "x@1"
        assert await outside(read) == "x@0"
    assert backend.asked.count("read_held") == 1


async def _row(rows: dict[str, str], keys: list[str]) -> dict[str, str]:
    return {key: rows[key] for key in keys}


async def test_another_holders_end_counts(cache: Cache, read: Read, rows: dict[str, str]) -> None:
    """Of two who hold a tag, one commits: what was there before is from before that."""
    await read()
    async with held(cache, "x"):
        async with held(cache, "x"):
            rows["x"] = "x@1"
            assert await read() == "x@0"
        assert await read() == "x@1"
    assert await read() == "x@1"


async def test_what_is_invalidated_meanwhile_is_not_served(cache: Cache, read: Read, rows: dict[str, str]) -> None:
    """Somebody outside of the transaction has changed it too, and has said so."""
    await read()
    async with held(cache, "x"):
        rows["x"] = "x@1"
        await cache.invalidate("x")
        assert await read() == "x@1"


async def test_after_a_lease_has_ended_nothing_is_served(
    cache: Cache, backend: Asked, read: Read, rows: dict[str, str], fake_clock: FakeClock
) -> None:
    """Its holder may have died after the commit."""
    await read()
    await backend.lease(["|t|x"], "dies", 30)
    rows["x"] = "x@1"
    fake_clock.advance(29)
    assert await read() == "x@0"
    fake_clock.advance(1)
    assert await read() == "x@1"


async def test_in_a_lag_nothing_is_served(cache: Cache, read: Read, rows: dict[str, str]) -> None:
    """It comes after the commit, also where another transaction holds the tag."""
    await read()
    async with held(cache, "x"):
        async with held(cache, "x", replica_lag=8):
            rows["x"] = "x@1"
            assert await read() == "x@0"
        assert await read() == "x@1"
    rows["x"] = "x@2"
    assert await read() == "x@2"
    assert (await cache.explain("x")).cause is Cause.LEASED


async def test_times_are_kept(cache: Cache, read: Read, rows: dict[str, str], fake_clock: FakeClock) -> None:
    """It is served as long as it would be without a lease: fresh, and within its stale period."""
    await read("x", ttl=10, stale_while_revalidate=10, stale_if_error=30)
    await read("y", ttl=10, stale_if_error=10)
    async with held(cache, "x", "y"):
        rows.update(x="x@1", y="y@1")
        fake_clock.advance(9)
        assert (await read("x"), await read("y")) == ("x@0", "y@0")
        fake_clock.advance(2)
        assert (await read("x"), await read("y")) == ("x@0", "y@1")
        fake_clock.advance(9)
        assert (await read("x"), await read("y")) == ("x@1", "y@1")


async def test_soft_invalidations_count(cache: Cache, read: Read, rows: dict[str, str]) -> None:
    """Without a stale period as hard ones."""
    await read("x", stale_while_revalidate=10)
    await read("y", stale_if_error=10)
    await cache.invalidate("x", "y", soft=True)
    async with held(cache, "x", "y"):
        rows.update(x="x@1", y="y@1")
        assert (await read("x"), await read("y")) == ("x@0", "y@1")


async def test_nothing_is_renewed(cache: Cache, read: Read, rows: dict[str, str], fake_clock: FakeClock) -> None:
    """What a renewal brought could not be stored: each reader would begin another."""
    async with cache:
        await read("x", ttl=10, stale_while_revalidate=10)
        async with held(cache, "x"):
            fake_clock.advance(12)
            rows["x"] = "x@1"
            assert [await read("x", ttl=10, stale_while_revalidate=10) for _ in range(3)] == ["x@0"] * 3
            await anyio.wait_all_tasks_blocked()
            assert cache._filling().flights.begun == 1


async def test_what_is_built_from_it_is_not_stored(cache: Cache, read: Read, rows: dict[str, str]) -> None:
    """Neither meanwhile nor after the end, though its computation goes on till then."""
    built, over = anyio.Event(), anyio.Event()

    async def page(*, slow: bool = False) -> str:
        child = await read()
        if slow:
            built.set()
            await over.wait()
        return f"page of {child}"

    assert await read() == "x@0"
    async with anyio.create_task_group() as group:
        async with held(cache, "x"):
            assert await cache.get_or_set("page", page) == "page of x@0"
            assert (await cache.explain("page")).state == "miss"
            group.start_soon(partial(cache.get_or_set, "page", partial(page, slow=True)))
            await built.wait()
            rows["x"] = "x@1"
        over.set()
    assert await cache.get_or_set("page", page) == "page of x@1"


async def test_a_renewal_is_built_from_nothing_of_it(cache: Cache, read: Read, rows: dict[str, str]) -> None:
    """As of other children that are stale: it computes them."""
    seen: list[str] = []

    async def page() -> str:
        seen.append(await read())
        return "page"

    async with cache:
        await read()
        await cache.get_or_set("page", page, ttl=10, stale_while_revalidate=50)
        async with held(cache, "x"):
            rows["x"] = "x@1"
            job = cache._job("page", [], str, cache._expiry(), page)
            await cache._filling().compute(job, None, None, None, renewing=True)
        assert seen == ["x@0", "x@1"]


async def test_many_at_once(cache: Cache, backend: Asked, rows: dict[str, str]) -> None:
    """With one question more, whatever their number; those that cannot be served are built together."""
    built: list[list[str]] = []

    async def build(keys: list[str]) -> dict[str, str]:
        built.append(keys)
        return {key: rows.get(key, f"{key}@0") for key in keys}

    async def read() -> dict[str, str]:
        return await cache.get_or_set_many(["x", "y", "z"], build, tags=lambda key: [key])

    await read()
    async with held(cache, "x", "y"):
        await cache.invalidate("y")
        rows.update(x="x@1", y="y@1")
        backend.asked.clear()
        assert await read() == {"x": "x@0", "y": "y@1", "z": "z@0"}
        assert backend.asked.count("read_held") == 1
        assert built == [["x", "y", "z"], ["y"]]


async def test_who_only_looks_is_served_nothing_stale(cache: Cache, backend: Asked, read: Read) -> None:
    """As ever: `get`, `lookup` and `get_many` find what is fresh. They wait for nothing either."""
    await read()
    async with held(cache, "x"):
        assert await cache.get("x") is None
        assert isinstance(await cache.lookup("x"), Miss)
        assert await cache.get_many(["x"]) == {}
        assert "read_held" not in backend.asked


async def test_explanations_say_what_is_served(cache: Cache, backend: Asked, read: Read) -> None:
    """And by what it is held; a cache that computes says that it is a miss."""
    await read()
    async with held(cache, "x"):
        explained = await cache.explain("x")
        assert explained.state == "stale"
        assert str(explained) == "x: served as it was, while tag x is held by a transaction. It carries the tags x."
        assert (
            await Cache(backend, default_ttl=100, while_leased=Wait(then="serve_stale")).explain("x")
        ).state == "stale"
        assert (await Cache(backend, default_ttl=100, while_leased="wait").explain("x")).state == "miss"
        await cache.invalidate("x")
        assert (await cache.explain("x")).state == "miss"


async def test_those_whom_a_flight_left_without_a_result_are_served_too(
    cache: Cache, read: Read, rows: dict[str, str]
) -> None:
    """A computation was under way as the tag was leased: its result is refused, and one of them looks again."""
    inside, over = anyio.Event(), anyio.Event()
    values: list[str] = []

    async def slow() -> str:
        inside.set()
        await over.wait()
        return "refused"

    async def join() -> None:
        values.append(await read())

    await read()
    async with anyio.create_task_group() as group:
        group.start_soon(partial(cache._refresh, cache._job("x", ["x"], str, cache._expiry(), slow)))
        await inside.wait()
        await cache.delete("x")
        stamp = await cache.lookup("x")
        for _ in range(3):
            group.start_soon(join)
        await anyio.wait_all_tasks_blocked()
        assert await cache.set("x", "x@0", tags=["x"], since=stamp)
        async with held(cache, "x"):
            rows["x"] = "x@1"
            over.set()
            await anyio.wait_all_tasks_blocked()
            assert values == ["x@0"] * 3


async def test_what_is_queued_counts(cache: Cache, backend: Asked, read: Read, rows: dict[str, str]) -> None:
    """An invalidation that could not be written yet: this process serves nothing that it is about."""
    await read()
    async with held(cache, "x"):
        backend.fails.add("invalidate")
        assert not await cache.invalidate("x", queue=True)
        rows["x"] = "x@1"
        assert await read() == "x@1"
        backend.fails.clear()
        await cache.flush_invalidations()


@pytest.mark.parametrize("fails", ["no answer", "no word"])
async def test_a_backend_that_does_not_answer_is_computed_without(
    backend: Asked, rows: dict[str, str], fails: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A question that gets no answer is nobody's error, and ends the waiting."""
    cache = Cache(backend, default_ttl=100, while_leased=Wait(600))
    read = reading(cache, rows)
    await read()
    async with held(cache, "x"):
        rows["x"] = "x@1"
        backend.fails.add(fails)
        with caplog.at_level(logging.WARNING, "asynctag"):
            assert await read() == "x@1"
        assert "cannot be read" in caplog.text


# --- wait ------------------------------------------------------------------------------------------


async def test_who_waits_gets_what_is_there_after_the_end(
    cache: Cache, backend: Asked, waiting: Read, rows: dict[str, str], looks: Looks
) -> None:
    """One of them looks at the tag, whatever their number and their keys; then one a key computes, and it is stored."""
    values: list[str] = []

    async def wait(key: str) -> None:
        async def compute() -> str:
            values.append("computed")
            return rows["x"]

        value = await waiter.get_or_set(key, compute, tags=["x"])
        values.append(f"{key}: {value}")

    waiter = Cache(backend, default_ttl=100, while_leased=Wait(600))
    for key in ("a", "b"):
        await wait(key)
    values.clear()
    async with anyio.create_task_group() as group:
        async with held(cache, "x"):
            rows["x"] = "x@1"
            for key in ("a", "b") * 3:
                group.start_soon(wait, key)
            await anyio.wait_all_tasks_blocked()
            for _ in range(7):
                await looks.again()
            assert values == []
            assert backend.asked.count("is_held") == 8
            assert looks.pauses == [0.01, 0.02, 0.04, 0.08, 0.16, 0.16, 0.16, 0.16]
        await looks.again()
    assert sorted(values) == ["a: x@1"] * 3 + ["b: x@1"] * 3 + ["computed"] * 2
    assert backend.asked.count("is_held") == 9
    rows["x"] = "x@2"
    assert await waiting("x") == "x@2"
    assert await waiter.get("a") == "x@1"


def test_the_pauses_are_as_documented() -> None:
    """A hundredth of a second at first, about a sixth at most."""
    assert (FIRST_LOOK, LAST_LOOK) == (0.01, 0.16)


@pytest.mark.parametrize(("then", "comes"), [("bypass", "x@1"), ("serve_stale", "x@0")])
async def test_waiting_has_an_end(cache: Cache, backend: Asked, rows: dict[str, str], then: Any, comes: str) -> None:
    """Then the reader does what it is told: computes, and stores nothing; or is served what was there before."""
    read = reading(Cache(backend, default_ttl=100, while_leased=Wait(0.02, then=then)), rows)
    await read()
    async with held(cache, "x"):
        rows["x"] = "x@1"
        assert await read() == comes
        assert backend.asked.count("is_held") >= 1
        assert cache._filling().flights._open == {}
    assert (await cache.explain("x")).state == "miss"


@pytest.mark.parametrize("then", ["bypass", "serve_stale"])
async def test_what_another_has_filled_meanwhile_is_served(
    cache: Cache, backend: Asked, rows: dict[str, str], looks: Looks, then: Any
) -> None:
    """Who has waited looks up again, and asks for what was there before only if it is held again."""
    values: list[str] = []
    waiting = reading(Cache(backend, default_ttl=100, while_leased=Wait(600, then=then)), rows)

    async def wait() -> None:
        values.append(await waiting())

    await waiting()
    async with anyio.create_task_group() as group:
        async with held(cache, "x"):
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
        rows["x"] = "x@1"
        assert await reading(cache, rows)() == "x@1"
        rows["x"] = "x@2"
        await looks.again()
    assert values == ["x@1"]
    assert backend.asked.count("read_held") == 1


async def test_who_waited_for_one_holder_and_meets_another(
    cache: Cache, backend: Asked, rows: dict[str, str], looks: Looks
) -> None:
    """What was there before the first is old, though it could have been served then."""
    values: list[str] = []
    waiting = reading(Cache(backend, default_ttl=100, while_leased=Wait(600, then="serve_stale")), rows)

    async def wait() -> None:
        values.append(await waiting())

    await waiting()
    async with anyio.create_task_group() as group:
        async with held(cache, "x"):
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            rows["x"] = "x@1"
        async with held(cache, "x"):
            await looks.again()
            assert values == ["x@1"]


@pytest.mark.parametrize("why", ["a lag", "a lease that has ended"])
async def test_nobody_waits_where_nothing_comes_of_it(
    cache: Cache, backend: Asked, waiting: Read, rows: dict[str, str], looks: Looks, fake_clock: FakeClock, why: str
) -> None:
    """Replicas that lag behind, and a holder that may be dead: readers compute at once."""
    await waiting()
    if why == "a lag":
        await cache.invalidate("x", replica_lag=8)
    else:
        await backend.lease(["|t|x"], "dead", 5)
        fake_clock.advance(6)
    rows["x"] = "x@1"
    assert await waiting() == "x@1"
    assert "is_held" not in backend.asked


async def test_waiting_ends_as_a_lag_begins(
    cache: Cache, backend: Asked, waiting: Read, rows: dict[str, str], looks: Looks
) -> None:
    """The transaction is over then."""
    values: list[str] = []

    async def wait() -> None:
        values.append(await waiting())

    await waiting()
    async with anyio.create_task_group() as group:
        async with held(cache, "x", replica_lag=8):
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            rows["x"] = "x@1"
        await looks.again()
    assert values == ["x@1"]


async def test_who_is_cancelled_waits_no_longer_and_another_looks(
    cache: Cache, backend: Asked, waiting: Read, rows: dict[str, str], looks: Looks
) -> None:
    """The one that looked at the tag for all: the next one does so from then on."""
    values: list[str] = []
    first = anyio.CancelScope()

    async def wait(scope: anyio.CancelScope) -> None:
        with scope:
            values.append(await waiting())

    await waiting()
    async with anyio.create_task_group() as group:
        async with held(cache, "x"):
            group.start_soon(wait, first)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(wait, anyio.CancelScope())
            await anyio.wait_all_tasks_blocked()
            assert len(looks.pauses) == 1
            first.cancel()
            await anyio.wait_all_tasks_blocked()
            assert first.cancelled_caught
            assert len(looks.pauses) == 2
            rows["x"] = "x@1"
        await looks.again()
    assert values == ["x@1"]
    assert cache._filling().flights._open == {}


async def test_in_a_transaction_nobody_waits(cache: Cache, backend: Asked, waiting: Read, looks: Looks) -> None:
    """Two that each read what the other one holds would wait for each other."""
    await waiting("x")
    await waiting("y")
    begun = [anyio.Event(), anyio.Event()]

    async def change(own: int, other: int) -> None:
        async with cache.transaction():
            await cache.invalidate("xy"[own])
            begun[own].set()
            await begun[other].wait()
            await waiting("xy"[other])

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(outside, change, 0, 1)
            group.start_soon(outside, change, 1, 0)
    assert "is_held" not in backend.asked


async def test_nobody_waits_whom_others_wait_for(
    cache: Cache, backend: Asked, waiting: Read, rows: dict[str, str], looks: Looks
) -> None:
    """A computation that others have joined: among them may be one that the holder waits for."""
    await waiting("x")
    waiter = Cache(backend, default_ttl=100, while_leased=Wait(600))

    async def page() -> str:
        return f"page of {await waiting('x')}"

    async def many(keys: list[str]) -> dict[str, str]:
        return {key: await waiting("x") for key in keys}

    async def page_of_many() -> str:
        return str(await waiter.get_or_set_many(["x"], partial(_row, rows)))

    async def hold() -> None:
        async with cache.transaction():
            await cache.invalidate("x")
            assert await outside(partial(waiter.get_or_set, "page of many", page_of_many)) == "{'x': 'x@0'}"
            # Outside of the transaction's context, as by a request to the same server.
            assert await outside(partial(waiter.get_or_set, "page", page)) == "page of x@0"
            assert await outside(partial(waiter.get_or_set_many, ["a"], many)) == {"a": "x@0"}

    with anyio.fail_after(10):
        await hold()
    assert "is_held" not in backend.asked


async def test_a_holder_that_waits_for_a_reader_that_waits(cache: Cache, backend: Asked, rows: dict[str, str]) -> None:
    """Nobody can see that it does: the reader's time ends, and both go on."""
    read = reading(Cache(backend, default_ttl=100, while_leased=Wait(timedelta(milliseconds=20))), rows)
    await read()
    with anyio.fail_after(10):
        async with cache.transaction():
            await cache.invalidate("x")
            assert await outside(read) == "x@0"
    assert "is_held" in backend.asked


async def test_many_wait_once(cache: Cache, backend: Asked, rows: dict[str, str], looks: Looks) -> None:
    """For the first that is held; then all are looked up again."""
    waiter = Cache(backend, default_ttl=100, while_leased=Wait(600))
    found: list[dict[str, str]] = []

    async def read() -> None:
        found.append(await waiter.get_or_set_many(["x", "y"], partial(_row, rows), tags=lambda key: [key]))

    await read()
    async with anyio.create_task_group() as group:
        async with held(cache, "x", "y"):
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            assert len(found) == 1
            rows.update(x="x@1", y="y@1")
        await looks.again()
    assert found[1] == {"x": "x@1", "y": "y@1"}
    assert await waiter.get_many(["x", "y"]) == {"x": "x@1", "y": "y@1"}


# --- behaviours of one's own -----------------------------------------------------------------------


async def test_a_behaviour_of_ones_own(cache: Cache, backend: Asked, rows: dict[str, str], looks: Looks) -> None:
    """An async function, or an object: it is told what is held, may wait, and says what is done."""
    met: list[Held] = []

    async def by_tag(held: Held) -> Any:
        met.append(held)
        return "serve_stale" if held.tag == "|t|x" else "bypass"

    class Patient:
        async def __call__(self, held: Held, /) -> Any:
            assert await held.released(600)
            return "serve_stale"

    read = reading(Cache(backend, default_ttl=100, while_leased=by_tag), rows)
    values: list[str] = []

    async def wait() -> None:
        values.append(await read("x", while_leased=Patient()))

    await read("x")
    await read("y")
    async with anyio.create_task_group() as group:
        async with held(cache, "x", "y"):
            rows.update(x="x@1", y="y@1")
            assert (await read("x"), await read("y")) == ("x@0", "y@1")
            assert [(one.key, one.tag, one.waited) for one in met] == [
                ("|k|x", "|t|x", False),
                ("|k|y", "|t|y", False),
            ]
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
        await looks.again()
    assert values == ["x@1"]


async def test_a_behaviour_that_raises(cache: Cache, backend: Asked, read: Read) -> None:
    """It reaches who reads, and leaves nothing behind."""

    async def fail(held: Held) -> Any:
        raise KeyError(held.tag)

    async def wrong(held: Held) -> Any:
        return "stale"

    async def for_ever(held: Held) -> Any:
        await held.released(float("inf"))

    await read()
    async with held(cache, "x"):
        with pytest.raises(KeyError):
            await read(while_leased=fail)
        with pytest.raises(ConfigurationError, match='returned \'stale\': return "bypass" or "serve_stale"'):
            await read(while_leased=wrong)
        with pytest.raises(ConfigurationError, match="finite number of seconds"):
            await read(while_leased=for_ever)
        await checkpoint()
        assert cache._filling().flights._open == {}


def _plain(held: Held) -> Any:
    return "bypass"


class _Class:
    async def __call__(self, held: Held) -> Any:
        return "bypass"


@pytest.mark.parametrize("given", ["stale", "", 1, True, ["wait"], _plain, _Class, object(), Wait])
def test_what_cannot_be_meant(given: Any) -> None:
    """It is refused at once, by the cache and by the function, with what there is."""
    with pytest.raises(ConfigurationError, match=r'while_leased=.*"bypass".*"serve_stale".*Wait\(seconds\)'):
        Cache(while_leased=given)
    with pytest.raises(ConfigurationError, match="while_leased="):
        Cache(default_ttl=1).cached(while_leased=given)


@pytest.mark.parametrize("options", [{"seconds": 0}, {"seconds": -1}, {"seconds": float("inf")}, {"then": "wait"}])
def test_what_cannot_be_waited_for(options: dict[str, Any]) -> None:
    """A time without end is none."""
    with pytest.raises(ConfigurationError, match=r"Wait\("):
        Wait(**options)


def test_times_are_given_as_one_likes() -> None:
    """Seconds, or a `timedelta`; the cache's default is no behaviour at all."""
    assert Wait(timedelta(seconds=2)).seconds == timedelta(seconds=2)
    assert Cache(while_leased="wait")._defaults.while_leased == Wait(1.0)
    assert Cache()._defaults.while_leased is None
