"""Scopes: where tags go, from wherever they are added."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from math import inf

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from asynctag import Cache, InvalidTagError, add_tags, no_store
from asynctag.backends.base import Entry, Stamp
from asynctag.backends.memory import MemoryBackend
from asynctag.scope import Scope, current_scope, live_scope
from asynctag.testing import assert_hit, assert_miss, assert_tags

pytestmark = pytest.mark.anyio


@pytest.fixture
def cache() -> Cache:
    return Cache(MemoryBackend(), default_ttl=60)


async def test_outside_of_any_computation_nothing_happens() -> None:
    """`add_tags` and `no_store` may stand in code that is called from anywhere; bad tags are refused all the same."""
    add_tags("x")
    add_tags()
    no_store()
    assert live_scope() is None
    with pytest.raises(InvalidTagError):
        add_tags("")


async def test_tags_are_added_from_anywhere_within(cache: Cache) -> None:
    """Helpers, generators, context managers, class bodies: the scope is the computation's."""

    async def helper() -> None:
        await checkpoint()
        add_tags("helper")

    async def generator():  # type: ignore[no-untyped-def]
        add_tags("generator")
        yield 1

    async def compute() -> int:
        add_tags("a", "b")
        await helper()
        async for _ in generator():
            pass
        with anyio.CancelScope(shield=True):
            add_tags("shielded")
            await checkpoint()
        return 1

    await cache.get_or_set("k", compute)
    await assert_tags(cache, "k", tags={"a", "b", "helper", "generator", "shielded"})


async def test_the_innermost_computation_gathers_first(cache: Cache) -> None:
    """A part has its own tags only; the whole has those too. What comes after the part is the whole's."""

    async def part() -> int:
        add_tags("part")
        return 1

    async def whole() -> int:
        add_tags("before")
        await cache.get_or_set("part", part)
        add_tags("after")
        return 1

    await cache.get_or_set("whole", whole)
    await assert_tags(cache, "part", tags={"part"})
    await assert_tags(cache, "whole", tags={"before", "part", "after"})
    assert current_scope.get() is None


async def test_siblings_do_not_see_each_other(cache: Cache) -> None:
    """Two parts of one whole, at once."""

    @cache.cached(name="part")
    async def part(name: str) -> str:
        add_tags(name)
        await checkpoint()
        add_tags(f"{name}:late")
        return name

    async def whole() -> int:
        async with anyio.create_task_group() as group:
            for name in "abc":
                group.start_soon(part, name)
        return 1

    await cache.get_or_set("whole", whole)
    for name in "abc":
        await assert_tags(part, name, tags={name, f"{name}:late"})
    await assert_tags(cache, "whole", tags={f"{name}{late}" for name in "abc" for late in ("", ":late")})


async def test_tags_belong_to_the_namespace_of_the_computation(cache: Cache) -> None:
    """`add_tags` names data as the cache around it does."""
    shop = Cache(cache._filling().backend, namespace="shop", default_ttl=60)

    async def compute() -> int:
        add_tags("x")
        return 1

    await shop.get_or_set("k", compute)
    await cache.invalidate("x")
    await assert_hit(shop, "k")
    await shop.invalidate("x")
    await assert_miss(shop, "k")


async def test_no_store_on_a_condition(cache: Cache) -> None:
    """Until it is called nothing is decided; what is stored later is stored as ever."""
    empty = True

    @cache.cached(name="f")
    async def f() -> int:
        if empty:
            no_store()
        return 1

    await f()
    await assert_miss(f)
    empty = False
    await f()
    await assert_hit(f)


async def test_no_store_leaves_what_was_there(cache: Cache) -> None:
    """A refresh that is not to be stored does not drop what is valid."""
    keep_out = False

    @cache.cached(name="f")
    async def f() -> bool:
        if keep_out:
            no_store()
        return keep_out

    await f()
    keep_out = True
    assert await f.refresh() is True
    assert await f() is False


async def test_a_nested_call_of_a_thread_is_part_of_the_whole(cache: Cache) -> None:
    """Down into a worker thread, back into the loop, and down again."""

    @cache.cached(name="part")
    async def part() -> int:
        await anyio.to_thread.run_sync(add_tags, "deep")
        return 1

    def blocking() -> int:
        add_tags("thread")
        found: int = anyio.from_thread.run(part)
        anyio.from_thread.run_sync(add_tags, "back")
        return found

    await cache.get_or_set("whole", lambda: anyio.to_thread.run_sync(blocking))
    await assert_tags(part, tags={"deep"})
    await assert_tags(cache, "whole", tags={"thread", "deep", "back"})


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_threads_that_lose_the_context_need_a_copy(cache: Cache) -> None:
    """`run_in_executor` and a raw thread carry no context variable; `copy_context().run` does."""

    async def compute() -> int:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            await loop.run_in_executor(pool, add_tags, "lost")
            await loop.run_in_executor(pool, copy_context().run, add_tags, "executor")
        thread = threading.Thread(target=copy_context().run, args=(add_tags, "thread"))
        thread.start()
        await asyncio.to_thread(thread.join)
        return 1

    await cache.get_or_set("k", compute)
    await assert_tags(cache, "k", tags={"executor", "thread"})


async def test_a_task_that_outlives_its_computation_starts_afresh(cache: Cache) -> None:
    """What it caches is its own, under no parent; what was computed keeps out of it."""
    go = anyio.Event()

    @cache.cached(name="part", tags=["part"])
    async def part() -> int:
        add_tags("late")
        return 1

    async def straggler() -> None:
        await go.wait()
        no_store()
        await part()

    async with anyio.create_task_group() as group:

        async def compute() -> int:
            group.start_soon(straggler)
            return 1

        await cache.get_or_set("whole", compute)
        go.set()
    await assert_tags(part, tags={"part", "late"})
    await assert_tags(cache, "whole", tags=set())


def entry(stamp: int, *, fresh: float = inf, expires: float = inf) -> Entry:
    return Entry("k", None, None, None, 1, ("k",), Stamp(1, stamp), fresh, fresh, expires, expires)


def test_a_scope_keeps_the_soonest_ends_and_the_oldest_stale_stamp() -> None:
    """Whatever order they come in; a fresh entry's stamp does not count."""
    backend = MemoryBackend()
    scope = Scope("s", backend, "")
    assert (scope.fresh_until, scope.expires, scope.stale_stamp) == (inf, inf, None)
    scope.absorb(entry(9, fresh=5, expires=20), backend)
    scope.absorb(entry(1, fresh=7, expires=10), backend)
    assert (scope.fresh_until, scope.expires, scope.stale_stamp) == (5, 10, None)
    for stamp in (4, 3, 6):
        scope.absorb(entry(stamp), backend, stale=True)
    assert scope.stale_stamp == Stamp(1, 3)
    parent = Scope("p", backend, "")
    scope.parent = parent
    scope.hand_up()
    assert (parent.tags, parent.fresh_until, parent.expires, parent.stale_stamp) == ({"k"}, 5, 10, Stamp(1, 3))
    assert scope.closed
    scope.absorb(entry(2, fresh=1), backend)
    scope.gather({"late"}, backend)
    assert scope.tags == {"k"}
    assert scope.fresh_until == 5


def test_a_scope_may_be_added_to_from_many_threads() -> None:
    """No tag is lost, no end is lost."""
    backend = MemoryBackend()
    scope = Scope("s", backend, "")
    barrier = threading.Barrier(8, timeout=10)

    def add(thread: int) -> None:
        barrier.wait()
        for number in range(500):
            scope.gather({f"{thread}:{number}"}, backend, 1_000 - number - thread, 2_000 - number - thread)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert len(scope.tags) == 8 * 500
    assert (scope.fresh_until, scope.expires) == (1_000 - 499 - 7, 2_000 - 499 - 7)
