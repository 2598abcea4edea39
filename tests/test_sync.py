"""The cache without an event loop: it invalidates as the async side does, and the two sides meet in worker threads."""

import asyncio
import contextvars
import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from asynctag import (
    Cache,
    Cause,
    ConfigurationError,
    InvalidationError,
    InvalidTagError,
    LifecycleError,
    add_tags,
)
from asynctag.backends.base import Backend
from asynctag.backends.memory import MemoryBackend
from asynctag.sync import at_once
from asynctag.testing import FakeClock, assert_hit, assert_miss, fake_clock

__all__ = ["fake_clock"]

ROOT = Path(__file__).parent.parent

#: Longer than any step takes on a busy machine, in seconds.
PATIENCE = 10.0

#: Short enough for the thread that renews to come by at once.
SHORT = 0.03


class Told(MemoryBackend):
    """A memory that notes what it is asked for, fails where it is told to, and calls what a test wants to happen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: list[str] = []
        self.fails: set[str] = set()
        self.before: dict[str, Callable[[], object]] = {}

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if what in self.before:
            self.before[what]()
        if what in self.fails:
            raise InvalidationError(f"{what} fails")

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        self._note("invalidate")
        await super().invalidate(tags, soft=soft)

    async def lease(self, tags: Iterable[str], holder: str, duration: float) -> bool:
        self._note("lease")
        return await super().lease(tags, holder, duration)

    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        self._note("release")
        await super().release(tags, holder, lag=lag, serve=serve)


@pytest.fixture
def backend(fake_clock: FakeClock) -> Told:
    return Told(clock=fake_clock)


@pytest.fixture
def cache(backend: Told) -> Cache:
    return Cache(backend, default_ttl=100)


async def put(cache: Cache, *keys: str, **options: Any) -> None:
    """Store something under each key, tagged with it."""

    async def compute() -> str:
        return "a value"

    for key in keys:
        await cache.get_or_set(key, compute, tags=[key], **options)


def stored(cache: Cache, *keys: str, **options: Any) -> None:
    anyio.run(partial(put, cache, *keys, **options))


def cause(cache: Cache, key: str = "x") -> Cause | None:
    """Why what is stored under a key is no hit; None for a hit."""
    explained = anyio.run(cache.explain, key)
    return None if explained.hit else explained.cause


def in_thread(work: Callable[[], object], *, context: bool = False) -> None:
    """Run `work` in a thread, with the context of the caller or with none, and raise what it raises."""
    failed: list[BaseException] = []
    run = partial(contextvars.copy_context().run, work) if context else work

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def change(
    cache: Cache,
    *,
    first: Callable[[], object] = lambda: None,
    then: Callable[[], object] = lambda: None,
    error: type[BaseException] | None = None,
    **options: Any,
) -> None:
    """A transaction that changes "x"."""
    with cache.sync.transaction(**options):
        first()
        cache.sync.invalidate("x")
        then()
        if error is not None:
            raise error


CACHE = Cache(default_ttl=100)
CALLS: list[object] = []


class Shop:
    """Here, since methods want a class at module level."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __cache_key__(self) -> str:
        return self.name

    @CACHE.cached(name="open")
    async def is_open(self, day: int) -> bool:
        CALLS.append(self.name)
        return True


# --- what is invalidated ---------------------------------------------------------------------------


def test_what_is_invalidated_is_gone(cache: Cache, backend: Told) -> None:
    """With what was built from it, and nothing else; in one step."""

    async def build() -> str:
        await put(cache, "x")
        return "built"

    async def fill() -> None:
        await cache.get_or_set("parent", build)
        await put(cache, "y")

    anyio.run(fill)
    assert cache.sync.invalidate("x") is True
    assert backend.asked == ["invalidate"]
    assert cause(cache) is cause(cache, "parent") is Cause.INVALIDATED
    assert cause(cache, "y") is None


def test_soft_and_lags_are_as_on_the_async_side(cache: Cache) -> None:
    """Stale where that is wanted; held as long as replicas may lack it."""
    stored(cache, "x", "y", stale_while_revalidate=50)
    cache.sync.invalidate("x", soft=True)
    assert anyio.run(cache.explain, "x").cause is not Cause.INVALIDATED
    cache.sync.invalidate("y", replica_lag=8)
    assert cause(cache, "y") is Cause.LEASED


def test_the_lag_of_the_cache_counts(backend: Told) -> None:
    """Where none is given, and for a deletion too."""
    cache = Cache(backend, default_ttl=100, replica_lag=5)
    stored(cache, "x", "y")
    cache.sync.invalidate("x")
    cache.sync.delete("y")
    assert cause(cache) is Cause.LEASED
    stored(cache, "y")
    assert cause(cache, "y") is Cause.ABSENT


def test_a_key_and_all_of_a_namespace(backend: Told) -> None:
    """A deletion invalidates the key; `clear` leaves other namespaces alone."""
    cache, shop = Cache(backend, default_ttl=100), Cache(backend, namespace="shop", default_ttl=100)
    stored(cache, "x", "y")
    stored(shop, "x")
    cache.sync.delete("x")
    assert cause(cache) is Cause.ABSENT
    shop.sync.clear()
    assert cause(shop) is Cause.INVALIDATED
    assert cause(cache, "y") is None
    cache.sync.clear()
    assert cause(cache, "y") is Cause.INVALIDATED


def test_cached_functions(backend: Told) -> None:
    """One entry, or all of them; a method for its object."""

    @CACHE.cached(name="double")
    async def double(number: int, times: int = 2) -> int:
        CALLS.append(number)
        return number * times

    here, there = Shop("here"), Shop("there")

    async def ask() -> list[object]:
        CALLS.clear()
        await double(1)
        await double(2)
        await here.is_open(1)
        await there.is_open(1)
        return CALLS[:]

    with CACHE.override(backend):
        assert anyio.run(ask) == [1, 2, "here", "there"]
        double.sync.invalidate(number=1)
        here.is_open.sync.invalidate(1)
        assert anyio.run(ask) == [1, "here"]
        double.sync.invalidate_all()
        Shop.is_open.sync.invalidate(there, 1)
        assert anyio.run(ask) == [1, 2, "there"]
        here.is_open.sync.invalidate_all()
        assert anyio.run(ask) == ["here", "there"]
        assert repr(double.sync) == "<double, without an event loop>"


def test_what_cannot_be_meant(cache: Cache, backend: Told) -> None:
    """Is said at once, and nothing is sent."""
    with pytest.raises(InvalidTagError, match="got no tag"):
        cache.sync.invalidate()
    with pytest.raises(InvalidTagError):
        cache.sync.invalidate("")
    with pytest.raises(ConfigurationError, match="isolation"):
        cache.sync.transaction(isolation="snapshot")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="lease"):
        cache.sync.transaction(lease=0)
    assert backend.asked == []


def test_a_backend_without_a_blocking_side(cache: Cache) -> None:
    """Says so: it was written for event loops alone."""

    class Other(MemoryBackend):
        def blocking(self) -> Backend:
            return Backend.blocking(self)

    with pytest.raises(ConfigurationError, match="has no way for code without an event loop"):
        Cache(Other()).sync.invalidate("x")


@pytest.mark.anyio
async def test_in_the_thread_of_an_event_loop_it_refuses(cache: Cache, backend: Told) -> None:
    """Every call would have all tasks stand still: the error names what to write instead."""

    @cache.cached(name="f")
    async def f() -> int:
        return 1

    calls: list[Callable[[], object]] = [
        lambda: cache.sync.invalidate("x"),
        lambda: cache.sync.delete("x"),
        lambda: cache.sync.clear(),
        lambda: cache.sync.flush_invalidations(),
        lambda: cache.sync.transaction().__enter__(),
        lambda: f.sync.invalidate(),
        lambda: f.sync.invalidate_all(),
    ]
    for call in calls:
        with pytest.raises(LifecycleError, match=r"an event loop runs in this thread.*Write `a"):
            call()
    assert backend.asked == []
    await anyio.to_thread.run_sync(cache.sync.invalidate, "x")
    assert backend.asked == ["invalidate"]


def test_a_failure_is_raised_with_the_tags(cache: Cache, backend: Told) -> None:
    """As on the async side; nothing is queued unasked."""
    backend.fails = {"invalidate"}
    with pytest.raises(InvalidationError, match="x may not have been invalidated") as raised:
        cache.sync.invalidate("x")
    assert raised.value.tags == ("x",)
    assert cache.queued_invalidations == ()


# --- transactions --------------------------------------------------------------------------------------


def test_a_tag_is_held_at_once_and_invalidated_at_the_end(cache: Cache, backend: Told) -> None:
    """One step for each call and one for the end."""
    stored(cache, "x", "y", "z")
    with cache.sync.transaction():
        cache.sync.invalidate("x")
        assert cause(cache) is Cause.LEASED
        cache.sync.invalidate("y", "z")
        assert cause(cache, "y") is Cause.LEASED
    assert backend.asked == ["lease", "lease", "release"]
    assert {cause(cache, key) for key in "xyz"} == {Cause.INVALIDATED}
    stored(cache, "x")
    assert cause(cache) is None


def test_nothing_is_sent_if_nothing_was_invalidated(cache: Cache, backend: Told) -> None:
    """Nor is a thread begun."""
    with cache.sync.transaction(replica_lag=5):
        pass
    assert backend.asked == []


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_error_ends_it_too(cache: Cache, backend: Told, error: type[BaseException]) -> None:
    """Whatever it is: the tags are let go of, at once or with the lease's time, and the error goes on."""
    stored(cache, "x")
    with pytest.raises(error):
        change(cache, error=error)
    assert backend.asked == ["lease", "release"]
    # What is no error but an interruption may have come as a COMMIT was under way, which may still be carried out.
    assert cause(cache) is (Cause.INVALIDATED if error is KeyError else Cause.LEASED)


def test_a_generator_that_is_left_in_the_middle(cache: Cache, backend: Told) -> None:
    """The garbage collector ends it, and with it the block; hooks are told."""
    told: list[tuple[str, ...]] = []
    cache.after_invalidation(told.append)

    def rows() -> Iterator[int]:
        with cache.sync.transaction():
            cache.sync.invalidate("x")
            yield 1

    one = rows()
    next(one)
    del one
    gc.collect()
    assert backend.asked == ["lease", "release"]
    assert told == [("x",)]


def test_savepoints(cache: Cache, backend: Told) -> None:
    """They hand what they hold to the block around, whatever their end; the longest lag counts."""
    stored(cache, "x")
    with cache.sync.transaction():
        with pytest.raises(KeyError):
            change(cache, error=KeyError, replica_lag=5)
        assert backend.asked == ["lease"]
        assert cause(cache) is Cause.LEASED
    assert backend.asked == ["lease", "release"]
    assert cause(cache) is Cause.LEASED  # by the lag


def test_deletions_and_functions_are_held_too(cache: Cache, backend: Told) -> None:
    """Nothing goes past the block."""

    @cache.cached(name="f")
    async def f() -> int:
        return 1

    stored(cache, "x", "y")
    with cache.sync.transaction():
        cache.sync.delete("x")
        f.sync.invalidate()
        cache.sync.clear()
        assert cause(cache) is Cause.LEASED
    assert backend.asked == ["lease", "lease", "lease", "release"]
    assert cause(cache, "y") is Cause.INVALIDATED


def test_as_a_decorator(cache: Cache, backend: Told) -> None:
    """Each call is a transaction of its own, and the function keeps its name and its result."""

    @cache.sync.transaction(isolation="READ COMMITTED")
    def change(tag: str) -> str:
        """Changes something."""
        cache.sync.invalidate(tag)
        return tag

    assert (change("x"), change("y"), change.__name__) == ("x", "y", "change")
    assert backend.asked == ["lease", "release"] * 2


def test_what_it_does_not_go_over(cache: Cache) -> None:
    """Functions that are not done when they return: the block would end before their first step."""

    async def f() -> None: ...

    def rows() -> Iterator[int]:
        yield 1

    for function in (f, rows, 1):
        with pytest.raises(ConfigurationError, match="done when it returns"):
            cache.sync.transaction()(function)  # type: ignore[arg-type]


def test_it_is_entered_once_at_a_time(cache: Cache, backend: Told) -> None:
    """And may be entered again after its end."""
    transaction = cache.sync.transaction()
    assert "not open" in repr(transaction)
    for _ in range(2):
        with transaction:
            cache.sync.invalidate("x")
            with pytest.raises(LifecycleError, match="open already"):
                transaction.__enter__()
    with pytest.raises(LifecycleError, match="not open"):
        transaction.__exit__(None, None, None)
    assert backend.asked == ["lease", "release"] * 2


def test_a_lease_that_cannot_be_written_raises(cache: Cache, backend: Told) -> None:
    """Before the commit, so that nothing is committed that others may not see; the end invalidates all the same."""
    with pytest.raises(InvalidationError, match="x may not have been invalidated"):
        change(cache, first=lambda: backend.fails.add("lease"))
    assert backend.asked == ["lease", "release"]


def test_an_end_that_cannot_be_written_is_logged(cache: Cache, backend: Told, caplog: pytest.LogCaptureFixture) -> None:
    """And queued, and nothing is raised over what is committed."""
    with cache.sync.transaction():
        cache.sync.invalidate("x")
        backend.fails = {"release", "invalidate"}
    assert "the end of a transaction could not be written (release fails): x, as far as they are held" in caplog.text
    assert cache.queued_invalidations == ("x",)
    backend.fails = set()
    assert cache.sync.flush_invalidations()


def test_a_signal_while_the_end_is_written(cache: Cache, backend: Told, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody knows whether it was: the tags are queued, and the interrupt goes on."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change(cache, then=lambda: backend.before.update(release=interrupt))
    assert "the end of a transaction could not be written" in caplog.text
    assert cache.queued_invalidations == ("x",)
    backend.before = {}
    assert cache.sync.flush_invalidations()


def test_a_thread_is_outside_unless_it_takes_the_context_along(cache: Cache, backend: Told) -> None:
    """As for tags: a raw thread knows nothing of the block, and what it invalidates counts at once."""
    with cache.sync.transaction():
        in_thread(lambda: cache.sync.invalidate("x"))
        assert backend.asked == ["invalidate"]
        in_thread(lambda: cache.sync.invalidate("y"), context=True)
        assert backend.asked == ["invalidate", "lease"]
    assert backend.asked == ["invalidate", "lease", "release"]


def test_a_thread_that_outlives_the_block(cache: Cache, backend: Told) -> None:
    """What it invalidates after the end counts at once."""
    with cache.sync.transaction():
        context = contextvars.copy_context()
    context.run(cache.sync.invalidate, "x")
    assert backend.asked == ["invalidate"]


def test_two_threads_hold_one_tag(cache: Cache) -> None:
    """The end of one leaves the other's."""
    stored(cache, "x")
    with cache.sync.transaction():
        cache.sync.invalidate("x")

        def another() -> None:
            with cache.sync.transaction():
                cache.sync.invalidate("x")

        in_thread(another)
        assert cause(cache) is Cause.LEASED
    assert cause(cache) is Cause.INVALIDATED


# --- renewal -------------------------------------------------------------------------------------------


def test_a_block_that_lasts_is_renewed(cache: Cache, backend: Told) -> None:
    """By a daemon thread, as long as it lasts."""
    stored(cache, "x")
    renewed = threading.Event()
    with cache.sync.transaction(lease=SHORT):
        cache.sync.invalidate("x")
        backend.before = {"lease": renewed.set}
        assert renewed.wait(PATIENCE)
        assert cause(cache) is Cause.LEASED
    (thread,) = [one for one in threading.enumerate() if one.name == "asynctag-leases"]
    assert thread.daemon
    assert backend.asked[-1] == "release"
    stored(cache, "x")
    assert cause(cache) is None


def test_a_renewal_that_fails_is_tried_again(cache: Cache, backend: Told, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning; the block goes on."""
    tried, renewed = threading.Semaphore(0), threading.Event()
    with cache.sync.transaction(lease=SHORT):
        cache.sync.invalidate("x")
        backend.fails, backend.before = {"lease"}, {"lease": tried.release}
        assert tried.acquire(timeout=PATIENCE)
        assert tried.acquire(timeout=PATIENCE)
        backend.fails, backend.before = set(), {"lease": renewed.set}
        assert renewed.wait(PATIENCE)
    assert "the lease of a transaction cannot be renewed" in caplog.text


def test_an_end_that_overtakes_a_renewal(cache: Cache, backend: Told) -> None:
    """What was held once more after the end was written is let go of again, or it would be held for a lease more."""
    begun, ended, released = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert ended.wait(PATIENCE)

    with cache.sync.transaction(lease=SHORT):
        cache.sync.invalidate("x")
        backend.before = {"lease": wait}
        assert begun.wait(PATIENCE)
    backend.before = {"release": released.set}
    ended.set()
    assert released.wait(PATIENCE)
    cache.sync.invalidate("y")  # not before the release is through: both take the lock
    stored(cache, "x")
    assert cause(cache) is None
    assert backend.asked == ["lease", "lease", "release", "release", "invalidate"]


# --- where the two sides meet --------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_worker_thread_in_an_async_block(cache: Cache, backend: Told) -> None:
    """What it invalidates is held for the block, and let go of by its end."""
    await put(cache, "x", "y", "z")

    def nested() -> None:
        with cache.sync.transaction():
            cache.sync.invalidate("y")

    async with cache.transaction():
        await anyio.to_thread.run_sync(cache.sync.invalidate, "x")
        await anyio.to_thread.run_sync(nested)
        await cache.invalidate("z")
        assert backend.asked == ["lease"] * 3
        assert (await cache.explain("x")).cause is Cause.LEASED
    assert backend.asked == ["lease"] * 3 + ["release"]
    for key in "xyz":
        assert (await cache.explain(key)).cause is Cause.INVALIDATED


@pytest.mark.anyio
async def test_what_a_worker_thread_holds_is_renewed(cache: Cache, backend: Told) -> None:
    """Also where the cache is not opened, and no task could do it."""
    renewed = threading.Event()
    async with cache.transaction(lease=SHORT):
        await anyio.to_thread.run_sync(cache.sync.invalidate, "x")
        backend.before = {"lease": renewed.set}
        assert await anyio.to_thread.run_sync(renewed.wait, PATIENCE)
    assert backend.asked[-1] == "release"


@pytest.mark.anyio
async def test_in_an_opened_cache(cache: Cache, backend: Told) -> None:
    """Which has a task group for its event loops: there is none in the thread."""
    async with cache:
        await anyio.to_thread.run_sync(cache.sync.invalidate, "x")
        async with cache.transaction():
            await anyio.to_thread.run_sync(cache.sync.invalidate, "x")
    assert backend.asked == ["invalidate", "lease", "release"]


@pytest.mark.anyio
async def test_the_end_comes_while_a_worker_thread_holds(cache: Cache, backend: Told) -> None:
    """A thread that was left behind: what it held after the end is invalidated and let go of at once."""
    begun, ended, done = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert ended.wait(PATIENCE)

    def work() -> None:
        cache.sync.invalidate("y")
        done.set()

    async with cache.transaction():
        await cache.invalidate("x")
        backend.before = {"lease": wait}
        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        assert await anyio.to_thread.run_sync(begun.wait, PATIENCE)
    backend.before = {}
    ended.set()
    assert await anyio.to_thread.run_sync(done.wait, PATIENCE)
    thread.join(PATIENCE)
    assert backend.asked == ["lease", "lease", "release", "release"]
    await put(cache, "y")
    await assert_hit(cache, "y")


def test_async_code_in_a_sync_block(cache: Cache, backend: Told) -> None:
    """What it invalidates is held for the block; what it computes is its own, and stored neither then nor later."""

    async def work() -> None:
        await put(cache, "y")
        await cache.invalidate("x")
        async with cache.transaction():
            await cache.invalidate("z")

    stored(cache, "x")
    with cache.sync.transaction():
        anyio.run(work)
        assert backend.asked == ["lease", "lease"]
        assert contextvars.Context().run(cause, cache) is Cause.LEASED
    assert backend.asked == ["lease", "lease", "release"]
    assert cause(cache) is Cause.INVALIDATED
    assert cause(cache, "y") is Cause.ABSENT


def test_what_async_code_computes_in_a_block_that_changes_nothing(cache: Cache) -> None:
    """Is not stored either: nothing can be awaited at the end."""
    with cache.sync.transaction():
        stored(cache, "x")
    assert cause(cache) is Cause.ABSENT


@pytest.mark.anyio
async def test_a_computation_whose_thread_invalidates(cache: Cache) -> None:
    """What was read before is not stored, if it has the tag; and nothing that was built in a transaction's midst is."""

    async def compute() -> str:
        add_tags("x")
        await anyio.to_thread.run_sync(cache.sync.invalidate, "x")
        return "a value"

    def transaction() -> None:
        with cache.sync.transaction():
            cache.sync.invalidate("somewhere else")

    async def change() -> str:
        await anyio.to_thread.run_sync(transaction)
        return "a value"

    assert await cache.get_or_set("key", compute) == "a value"
    await assert_miss(cache, "key")
    assert await cache.get_or_set("other", change) == "a value"
    await assert_miss(cache, "other")


# --- hooks ---------------------------------------------------------------------------------------------


def test_hooks_are_called(cache: Cache) -> None:
    """After each invalidation, with the tags as they were written; after a transaction, once."""
    told: list[tuple[str, ...]] = []
    cache.after_invalidation(told.append)
    cache.sync.invalidate("x", "y")
    cache.sync.delete("key")
    with cache.sync.transaction():
        cache.sync.invalidate("x")
        cache.sync.invalidate("z")
        assert len(told) == 2
    assert told == [("x", "y"), ("key key",), ("x", "z")]


def test_an_async_hook_without_any_event_loop(cache: Cache) -> None:
    """It is waited for, in an event loop of its own."""
    told: list[tuple[str, ...]] = []

    @cache.after_invalidation
    async def hook(tags: tuple[str, ...]) -> None:
        await asyncio.sleep(0)
        told.append(tags)

    cache.sync.invalidate("x")
    with cache.sync.transaction():
        cache.sync.invalidate("y")
    assert told == [("x",), ("y",)]


@pytest.mark.anyio
async def test_an_async_hook_from_a_worker_thread(cache: Cache) -> None:
    """It runs in the event loop that waits for the thread: where its client and its connections are."""
    here, ran = threading.current_thread(), []

    @cache.after_invalidation
    async def hook(tags: tuple[str, ...]) -> None:
        await anyio.lowlevel.checkpoint()
        ran.append((threading.current_thread(), tags))

    await anyio.to_thread.run_sync(cache.sync.invalidate, "x")
    assert ran == [(here, ("x",))]
    await cache.invalidate("y")
    assert ran == [(here, ("x",)), (here, ("y",))]


@pytest.mark.anyio
@pytest.mark.parametrize("error", [KeyError, RuntimeError])
async def test_what_a_hook_raises(cache: Cache, error: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    """Reaches who has invalidated, once; at the end of a transaction it is logged."""
    calls: list[object] = []

    @cache.after_invalidation
    async def hook(tags: tuple[str, ...]) -> None:
        calls.append(tags)
        raise error("the CDN is away")

    with pytest.raises(error, match="the CDN is away"):
        await anyio.to_thread.run_sync(cache.sync.invalidate, "x")
    with pytest.raises(error, match="the CDN is away"):
        await anyio.to_thread.run_sync(in_thread, lambda: cache.sync.invalidate("x"))

    def transaction() -> None:
        with cache.sync.transaction():
            cache.sync.invalidate("x")

    await anyio.to_thread.run_sync(transaction)
    assert "a hook of after_invalidation failed, at the end of a transaction" in caplog.text
    assert len(calls) == 3


# --- what could not be written -------------------------------------------------------------------------


def test_what_is_queued_is_tried_again_by_a_thread(cache: Cache, backend: Told) -> None:
    """Till it is written; meanwhile this process serves nothing that carries the tags, in any event loop."""
    stored(cache, "x")
    written = threading.Event()
    backend.fails = {"invalidate"}
    assert cache.sync.invalidate("x", queue=True) is False
    assert cache.queued_invalidations == ("x",)
    anyio.run(assert_miss, cache, "x")
    backend.fails, backend.before = set(), {"invalidate": written.set}
    assert written.wait(PATIENCE)
    assert cache.sync.flush_invalidations() or cache.sync.flush_invalidations()
    assert cause(cache) is Cause.INVALIDATED


def test_the_next_invalidation_tries_first(cache: Cache, backend: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, and before the thread comes to it."""
    monkeypatch.setattr("asynctag.sync.FIRST_DELAY", PATIENCE)
    backend.fails = {"invalidate"}
    assert not cache.sync.invalidate("x", queue=True)
    assert not cache.sync.invalidate("y", queue=True)
    backend.fails = set()
    backend.asked.clear()
    assert cache.sync.invalidate("z")
    assert backend.asked == ["invalidate", "invalidate"]
    assert cache.queued_invalidations == ()


def test_closing_tries_a_last_time(
    cache: Cache, backend: Told, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left is an error in the log, by its tags."""
    monkeypatch.setattr("asynctag.sync.FIRST_DELAY", PATIENCE)
    cache.sync.close()
    backend.fails = {"invalidate"}
    cache.sync.invalidate("x", queue=True)
    cache.sync.close()
    assert "1 invalidations are not written as the cache closes: x" in caplog.text
    caplog.clear()
    backend.fails = set()
    cache.sync.close()
    assert cache.queued_invalidations == ()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


AT_EXIT = """
import logging
from asynctag import Cache, InvalidationError
from asynctag.backends.memory import MemoryBackend

logging.basicConfig(format="%(message)s")

class Failing(MemoryBackend):
    async def invalidate(self, tags, *, soft=False):
        raise InvalidationError("no answer")

cache = Cache(Failing())
cache.sync.invalidate("x", queue=True)
print("the end of the script")
"""


def test_the_interpreter_ends_with_something_queued() -> None:
    """It is tried, and told: nothing is lost in silence. The threads do not hold the end up."""
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT], cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert done.stdout == "the end of the script\n"
    assert "1 invalidations are not written as the cache closes: x" in done.stderr


FORK = """
import os, threading
from asynctag import Cache
from asynctag.backends.memory import MemoryBackend
from tests.test_sync import Told

backend = Told()
cache = Cache(backend)
with cache.sync.transaction(lease=0.03):
    cache.sync.invalidate("x")
    child = os.fork()
    if child == 0:
        backend.asked.clear()
        cache.sync.invalidate("y")
        assert backend.asked == ["invalidate"], backend.asked
if child == 0:
    assert backend.asked == ["invalidate"], backend.asked
    renewed = threading.Event()
    with cache.sync.transaction(lease=0.03):
        cache.sync.invalidate("x")
        backend.before = {"lease": renewed.set}
        assert renewed.wait(10)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert backend.asked[-1] == "release"
print("good")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_not_in_its_parents_transaction() -> None:
    """It ends nothing of it, and renews what it holds itself."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr


def test_many_threads(cache: Cache) -> None:
    """Whatever they do side by side, at the end nothing is held."""
    stored(cache, "x")

    def work() -> None:
        for _ in range(50):
            with cache.sync.transaction():
                cache.sync.invalidate("x")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    stored(cache, "x")
    assert cause(cache) is None


def test_nothing_waits_for_an_event_loop() -> None:
    """A step that would is a mistake of ours, and is said instead of being left half done."""

    class Never:
        def __await__(self) -> Iterator[None]:
            yield

    async def never() -> None:
        await Never()

    with pytest.raises(AssertionError, match="waits for an event loop"):
        at_once(never())


def test_the_repr_names_the_cache(cache: Cache) -> None:
    """And what it is."""
    assert repr(cache.sync) == f"<{cache!r}, without an event loop>"
