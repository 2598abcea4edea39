"""One memory backend, several threads with an event loop each."""

import random
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asynctag import Cache
from asynctag.backends import memory
from asynctag.backends.memory import MemoryBackend

THREADS = 8
PATIENCE = 20.0
BACKENDS = ("asyncio", "trio")


def in_threads(*works: Callable[[], Coroutine[Any, Any, Any]], backends: tuple[str, ...] = BACKENDS) -> list[Any]:
    """Run each of `works` in a thread with a loop of its own, asyncio's and trio's by turns."""

    def run(number: int) -> Any:
        async def bounded() -> Any:
            with anyio.fail_after(PATIENCE):
                return await works[number]()

        return anyio.run(bounded, backend=backends[number % len(backends)])

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, range(len(works))))


class Signal:
    """An event between loops. Waiting for it yields; no time passes."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        while not self._event.is_set():
            await checkpoint()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await checkpoint()


def waiting(cache: Cache) -> int:
    """How many wait for flights."""
    return sum(len(flight._waiting) for flight in list(cache._filling().flights._open.values()))


def new_cache(**limits: int) -> Cache:
    return Cache(MemoryBackend(**limits), default_ttl=3_600)


@pytest.mark.parametrize("backends", [("asyncio",), ("trio",), BACKENDS])
def test_one_computation_across_threads(backends: tuple[str, ...]) -> None:
    """Whoever misses in another loop waits there for the one who computes here."""
    cache, computed = new_cache(), []

    @cache.cached(name="f")
    async def f() -> dict[str, int]:
        computed.append(1)
        await until(lambda: waiting(cache) == THREADS - 1)
        return {"n": 1}

    values = in_threads(*[f] * THREADS, backends=backends)
    assert values == [{"n": 1}] * THREADS
    assert len({id(value) for value in values}) == THREADS
    assert len(computed) == 1


@pytest.mark.parametrize("backends", [("asyncio", "asyncio"), ("trio", "trio"), BACKENDS, BACKENDS[::-1]])
def test_a_follower_in_another_thread_takes_over(backends: tuple[str, ...]) -> None:
    """The leader is cancelled in its loop; the one who waited in another computes."""
    cache, computed, inside = new_cache(), [], Signal()

    @cache.cached(name="f")
    async def f() -> int:
        computed.append(threading.get_ident())
        if len(computed) == 1:
            inside.set()
            await anyio.Event().wait()
        return len(computed)

    async def leader() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(f)
            await until(lambda: waiting(cache) == 1)
            group.cancel_scope.cancel()

    async def follower() -> int:
        await inside.wait()
        return await f()

    assert in_threads(leader, follower, backends=backends) == [None, 2]
    assert len(set(computed)) == 2


def test_a_follower_that_gives_up_in_another_thread_harms_nobody() -> None:
    """It is forgotten; the leader and the others go on."""
    cache, computed, gone = new_cache(), [], Signal()

    @cache.cached(name="f")
    async def f() -> int:
        computed.append(1)
        await gone.wait()
        await until(lambda: waiting(cache) == 1)
        return 1

    async def gives_up() -> None:
        await until(lambda: bool(computed))
        async with anyio.create_task_group() as group:
            group.start_soon(f)
            await until(lambda: waiting(cache) >= 1)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        gone.set()

    async def waits() -> int:
        await gone.wait()
        return await f()

    assert in_threads(f, gives_up, waits) == [1, None, 1]
    assert len(computed) == 1


def test_an_invalidation_in_another_thread_counts_at_once() -> None:
    """Read here, invalidated there, before and during a computation: nothing old is seen after it."""
    cache, rows = new_cache(), {"x": 0}
    step = [Signal() for _ in range(4)]

    @cache.cached(name="f", tags=["x"])
    async def f() -> int:
        value = rows["x"]
        if value == 1:
            step[2].set()
            await step[3].wait()
        return value

    async def reader() -> list[int]:
        values = [await f(), await f()]
        step[0].set()
        await step[1].wait()
        return [*values, await f(), await f()]

    async def writer() -> None:
        await step[0].wait()
        rows["x"] = 1
        await cache.invalidate("x")
        step[1].set()
        await step[2].wait()
        rows["x"] = 2
        await cache.invalidate("x")
        step[3].set()

    assert in_threads(reader, writer) == [[0, 0, 1, 2], None]


def test_tags_gathered_in_other_loops_are_apart() -> None:
    """Each thread's computation has its own scope."""
    cache, barrier = new_cache(), threading.Barrier(THREADS, timeout=PATIENCE)

    @cache.cached(name="part", tags=["part:{number}"])
    async def part(number: int) -> int:
        return number

    @cache.cached(name="whole")
    async def whole(number: int) -> int:
        barrier.wait()
        total = sum([await part(number * 100 + one) for one in range(20)])
        barrier.wait()
        return total

    in_threads(*[lambda number=number: whole(number) for number in range(THREADS)])  # type: ignore[misc]

    async def tags() -> list[frozenset[str]]:
        return [(await whole.explain(number)).tags for number in range(THREADS)]

    found = anyio.run(tags)
    assert found == [{f"part:{number * 100 + one}" for one in range(20)} for number in range(THREADS)]


def test_the_first_use_by_many_threads_makes_one_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that nobody bound makes its backend once: with two, an invalidation would reach one of them."""
    made: list[MemoryBackend] = []
    barrier = threading.Barrier(2)

    def make() -> MemoryBackend:
        made.append(MemoryBackend())
        with suppress(threading.BrokenBarrierError):
            barrier.wait(timeout=0.3)  # for the other one, should it get here too
        return made[-1]

    cache = Cache(default_ttl=60)

    async def use() -> Any:
        return cache._filling().backend

    monkeypatch.setattr(memory, "MemoryBackend", make)
    one, two = in_threads(use, use)
    assert one is two
    assert len(made) == 1


@pytest.mark.parametrize("limits", [{}, {"max_entries": 6, "max_tags": 8}], ids=["roomy", "tight"])
def test_nothing_older_than_what_was_acknowledged_is_read(limits: dict[str, int]) -> None:
    """Writers bump a row and invalidate; a reader that knows of an acknowledged bump never reads an older row:
    not from an entry, not from what was built from it, not from a flight."""
    cache, rows = new_cache(**limits), [0] * 6
    acknowledged = [0] * len(rows)
    locks = [threading.Lock() for _ in rows]
    barrier = threading.Barrier(THREADS, timeout=PATIENCE)
    stale: list[str] = []

    @cache.cached(name="row", tags=["row:{number}"], stale_while_revalidate=10)
    async def row(number: int) -> int:
        value = rows[number]
        if number % 2:
            await checkpoint()
        return value

    @cache.cached(name="page")
    async def page(first: int, second: int) -> list[int]:
        one = await row(first)
        await checkpoint()
        return [one, await row(second)]

    def check(number: int, known: int, value: int) -> None:
        if value < known:
            stale.append(f"row {number} was read as {value} by one who knew of {known}")

    async def work(seed: int) -> None:
        dice = random.Random(seed)
        barrier.wait()
        for turn in range(400):
            first, second = dice.sample(range(len(rows)), 2)
            before = [acknowledged[first], acknowledged[second]]
            match dice.randrange(6):
                case 0:
                    with locks[first]:
                        rows[first] += 1
                        new = rows[first]
                    await cache.invalidate(f"row:{first}")
                    with locks[first]:
                        acknowledged[first] = max(acknowledged[first], new)
                case 1 if turn % 10 == 0:
                    await cache.delete(row.key(first))
                case 2 | 3:
                    for number, known, value in zip((first, second), before, await page(first, second), strict=True):
                        check(number, known, value)
                case _:
                    check(first, before[0], await row(first))
            if dice.randrange(4) == 0:
                await checkpoint()

    in_threads(*[lambda seed=seed: work(seed) for seed in range(THREADS)])  # type: ignore[misc]
    assert not stale
    assert not cache._filling().flights._open
