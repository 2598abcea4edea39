"""Invalidations that could not be written: queued, retried, seen, and never dropped. (What they mean for readers is
in `test_guarantees.py`; here, too, for all interleavings of a few.)"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asynctag import BackendError, Cache, InvalidationError, InvalidTagError, add_tags
from asynctag import fill as fill_module
from asynctag import pending as pending_module
from asynctag.backends.base import Backend, Entry
from asynctag.backends.memory import MemoryBackend
from asynctag.fill import Filler
from asynctag.http import CacheMiddleware, RequestCache, cache_response
from asynctag.pending import BATCH, MAX_QUEUED, Batch, Pending
from asynctag.scope import current_scope
from asynctag.testing import FakeClock, assert_hit, assert_miss
from tests.http.driver import ask
from tests.interleaving.scheduler import Explored, Violation, explore_on_asyncio, explore_on_trio
from tests.interleaving.world import Clock, World, stage

pytestmark = pytest.mark.anyio


async def settle() -> None:
    for _ in range(15):
        await checkpoint()


class Down(MemoryBackend):
    """A backend that writes no invalidations while it is down. `written` are those that it did write."""

    def __init__(self, *, down: bool = True) -> None:
        super().__init__(clock=FakeClock())
        self.down = down
        self.asked = 0
        self.written: list[tuple[list[str], bool]] = []
        self.error: type[Exception] | Callable[[list[str]], Exception] = lambda names: BackendError("no answer")
        #: Called before each answer.
        self.pause: Callable[[], Any] = checkpoint

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        names = list(tags)
        self.asked += 1
        await self.pause()
        if self.down:
            raise self.error(names)
        await super().invalidate(names, soft=soft)
        self.written.append(([name.split("|", 2)[2] for name in names], soft))

    async def delete(self, key: str) -> bool:
        if self.down:
            raise self.error([key])
        return await super().delete(key)


@pytest.fixture
def backend() -> Down:
    return Down()


@pytest.fixture
def cache(backend: Down) -> Cache:
    return Cache(backend, default_ttl=60)


def pending_of(cache: Cache) -> Pending:
    return cache._filling().pending


async def queue(cache: Cache, *tags: str, soft: bool = False) -> None:
    assert await cache.invalidate(*tags, soft=soft, queue=True) is False


async def one() -> int:
    return 1


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level and record.name == "asynctag"]


# --- raising, or queueing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        lambda names: BackendError("no answer"),
        lambda names: InvalidationError("no answer", names),
        lambda names: InvalidationError("no answer"),
        lambda names: InvalidationError("no answer", ["what nobody asked for"]),
    ],
)
async def test_an_error_has_the_tags_as_they_were_written(backend: Down, error: Any) -> None:
    """Whatever the backend raises, the caller sees an InvalidationError in its own words, and what it came from."""
    cache, backend.error = Cache(backend, namespace="shop", default_ttl=60), error

    @cache.cached(name="f")
    async def f(n: int) -> int:
        return n

    def uses() -> Iterator[tuple[Any, tuple[str, ...]]]:
        yield lambda: cache.invalidate("x", "y:1"), ("x", "y:1")
        yield lambda: cache.invalidate("x", soft=True), ("x",)
        yield lambda: cache.delete("k"), ("key k",)
        yield lambda: f.invalidate(1), ("key f(1)",)
        yield f.invalidate_all, ("function f",)
        yield cache.clear, ("namespace shop",)

    for use, tags in uses():
        with pytest.raises(InvalidationError, match="no answer") as caught:
            await use()
        assert caught.value.tags == tags
        assert "queue=True" in str(caught.value)
        assert all(tag in str(caught.value) for tag in tags)
        assert isinstance(caught.value.__cause__, BackendError)
    assert cache.queued_invalidations == ()


async def test_an_error_names_what_the_backend_says(cache: Cache, backend: Down) -> None:
    """Of several tags, those that may not have been invalidated."""
    backend.error = lambda names: InvalidationError("half of it", names[1:])
    with pytest.raises(InvalidationError) as caught:
        await cache.invalidate("x", "y")
    assert caught.value.tags == ("y",)


async def test_what_is_written_is_true(cache: Cache, backend: Down) -> None:
    """With the option and without it, where nothing fails."""
    backend.down = False
    assert await cache.invalidate("x") is True
    assert await cache.invalidate("x", queue=True) is True
    assert await cache.clear() is True
    assert await cache.clear(queue=True) is True
    assert await cache.flush_invalidations() is True
    assert cache.queued_invalidations == ()


async def test_what_is_no_tag_is_not_queued(cache: Cache) -> None:
    """It never could be written."""
    for tags in ((), ("",), (1,), ("x" * 2000,)):
        with pytest.raises(InvalidTagError):
            await cache.invalidate(*tags, queue=True)
    assert cache.queued_invalidations == ()


async def test_another_error_passes_on(cache: Cache, backend: Down) -> None:
    """Of a backend that is broken, not down: the caller knows, and nothing is queued that would fail for ever."""
    backend.error = lambda names: ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        await cache.invalidate("x", queue=True)
    assert cache.queued_invalidations == ()


async def test_who_is_cancelled_has_queued(cache: Cache, backend: Down) -> None:
    """Whether it was written cannot be known: it is tried again, and the cancellation goes on."""
    backend.down, blocked = False, anyio.Event()

    async def pause() -> None:
        blocked.set()
        await anyio.sleep_forever()

    backend.pause = pause
    async with anyio.create_task_group() as group:
        group.start_soon(partial(cache.invalidate, "x", queue=True))
        group.start_soon(cache.invalidate, "y")
        await blocked.wait()
        await settle()
        group.cancel_scope.cancel()
    assert cache.queued_invalidations == ("x",)


async def test_it_is_seen(backend: Down, caplog: pytest.LogCaptureFixture) -> None:
    """By the application, in its own words, and in the log: a warning when it begins, and when it is over."""
    caplog.set_level(logging.INFO, logger="asynctag")
    shop, blog = (Cache(backend, namespace=name, default_ttl=60) for name in ("shop", "blog"))
    assert Cache().queued_invalidations == ()
    await queue(shop, "b", "a")
    await queue(shop, "c", "a", soft=True)
    await queue(blog, "a")
    assert await shop.clear(queue=True) is False
    assert shop.queued_invalidations == ("b", "a", "c", "tag a of namespace blog", "namespace shop")
    assert blog.queued_invalidations[3:] == ("a", "namespace shop")
    (warning,) = said(caplog, logging.WARNING)[:1]
    assert "no answer" in warning
    assert "queued" in warning
    assert "b, a" in warning
    assert not said(caplog, logging.INFO)
    assert await blog.flush_invalidations() is False
    backend.down = False
    assert await blog.flush_invalidations() is True
    assert shop.queued_invalidations == blog.queued_invalidations == ()
    assert len(said(caplog, logging.INFO)) == 1


async def test_it_is_bounded(cache: Cache, backend: Down) -> None:
    """A full queue raises and names the bound; what is in it already has room. Nothing is queued by halves."""
    many = [f"x:{number}" for number in range(MAX_QUEUED - 1)]
    await queue(cache, *many)
    for _ in range(3):
        await queue(cache, "x:0", "x:1")
    with pytest.raises(InvalidationError, match=f"{MAX_QUEUED}") as caught:
        await cache.invalidate("y", "z", queue=True)
    assert caught.value.tags == ("y", "z")
    await queue(cache, "y")
    with pytest.raises(InvalidationError):
        await cache.invalidate("y", soft=True, queue=True)
    assert cache.queued_invalidations == (*many, "y")
    backend.down = False
    assert await cache.flush_invalidations()
    assert [len(names) for names, _ in backend.written] == [BATCH] * (MAX_QUEUED // BATCH)
    assert [name for names, _ in backend.written for name in names] == [*many, "y"]


async def test_who_is_cancelled_with_a_full_queue_leaves_a_trace(
    cache: Cache, backend: Down, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is nobody to raise to, and no room: it is logged as an error."""
    monkeypatch.setattr(pending_module, "MAX_QUEUED", 1)
    await queue(cache, "x")
    backend.pause = anyio.sleep_forever
    async with anyio.create_task_group() as group:
        group.start_soon(partial(cache.invalidate, "y", queue=True))
        await settle()
        group.cancel_scope.cancel()
    assert cache.queued_invalidations == ("x",)
    (error,) = said(caplog, logging.ERROR)
    assert "y may not have been invalidated" in error


# --- writing it later ------------------------------------------------------------------------------------


async def test_in_order_and_as_they_were(cache: Cache, backend: Down) -> None:
    """Hard and soft as they came; what can be written in one step is."""
    await queue(cache, "a")
    await queue(cache, "b", "c")
    await queue(cache, "d", soft=True)
    await queue(cache, "a", soft=True)
    await queue(cache, "e")
    await queue(cache, "b")
    backend.down = False
    assert await cache.flush_invalidations() is True
    assert backend.written == [(["a", "b", "c"], False), (["d", "a"], True), (["e"], False)]


async def test_the_next_invalidation_goes_after_the_queue(cache: Cache, backend: Down) -> None:
    """Of whatever kind it is, and on whichever cache of the backend."""
    other = Cache(backend, namespace="other", default_ttl=60)

    @cache.cached(name="f")
    async def f() -> int:
        return 1

    uses: list[Callable[[], Any]] = [
        lambda: cache.invalidate("y"),
        lambda: cache.invalidate("y", queue=True),
        lambda: other.invalidate("y", soft=True),
        lambda: cache.delete("k"),
        f.invalidate,
        f.invalidate_all,
        other.clear,
    ]
    for use in uses:
        backend.down, backend.written = True, []
        await queue(cache, "x")
        backend.down = False
        await use()
        assert backend.written[0] == (["x"], False)
        assert cache.queued_invalidations == ()


async def test_its_own_success_does_not_depend_on_the_queue(cache: Cache, backend: Down) -> None:
    """A queue that cannot be written holds nobody up; the other way round neither."""
    await queue(cache, "poison")
    backend.error, backend.down = lambda names: BackendError("not this one"), True

    async def pause() -> None:
        backend.down = backend.asked % 2 == 0  # the queue is tried first

    backend.asked, backend.pause = -1, pause
    assert await cache.invalidate("x") is True
    assert backend.written == [(["x"], False)]
    assert cache.queued_invalidations == ("poison",)


async def test_a_flush_goes_as_far_as_it_can(cache: Cache, backend: Down) -> None:
    """What was written is no longer queued, though what comes after it fails; a bug there harms nobody."""
    await queue(cache, "a")
    await queue(cache, "b", soft=True)
    await queue(cache, "c")
    steps = iter([False, True, False, False])

    async def pause() -> None:
        backend.down = next(steps)

    backend.pause, backend.error = pause, lambda names: ZeroDivisionError("a bug")
    assert await cache.flush_invalidations() is False
    assert cache.queued_invalidations == ("b", "c")
    assert await cache.flush_invalidations() is True
    assert [names for names, _ in backend.written] == [["a"], ["b"], ["c"]]


async def test_one_flush_at_a_time(cache: Cache, backend: Down) -> None:
    """Who asks for it meanwhile waits for the one that runs, and is told what came of one that began after it came;
    an invalidation does not wait. Nothing is written twice."""
    await queue(cache, "x")
    backend.down, go, flushed = False, anyio.Event(), []

    async def pause() -> None:
        if backend.asked == 2:
            await go.wait()

    async def flush() -> None:
        flushed.append(await cache.flush_invalidations())

    backend.pause = pause
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(flush)
        await settle()
        assert not flushed
        assert await cache.invalidate("y") is True
        assert cache.queued_invalidations == ("x",)
        go.set()
    assert flushed == [True] * 3
    assert backend.written == [(["y"], False), (["x"], False)]


async def test_those_who_wait_for_a_flush_share_the_next(cache: Cache, backend: Down) -> None:
    """One that began before they came may have left something: one more is made for all of them."""
    await queue(cache, "x")
    go, flushed = anyio.Event(), []

    async def pause() -> None:
        if backend.asked == 2:
            await go.wait()

    async def flush() -> None:
        flushed.append(await cache.flush_invalidations())

    backend.pause = pause
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(flush)
            await settle()
        go.set()
    assert flushed == [False] * 4
    assert backend.asked == 3
    assert not cache._filling().flights._open


async def test_a_flush_that_is_cancelled_lets_the_next_one_go(cache: Cache, backend: Down) -> None:
    """Nothing is lost, and nobody hangs."""
    await queue(cache, "x")
    backend.down, backend.pause = False, anyio.sleep_forever
    async with anyio.create_task_group() as group:
        group.start_soon(cache.flush_invalidations)
        await settle()
        group.cancel_scope.cancel()
    assert cache.queued_invalidations == ("x",)
    backend.pause = checkpoint
    with anyio.fail_after(5):
        assert await cache.flush_invalidations() is True


async def test_a_write_that_is_refused_is_not_sent(cache: Cache, backend: Down) -> None:
    """The journal of the backend does not know yet, and would take it."""
    sent: list[str] = []
    write = backend._write

    def watched(entry: Entry) -> Any:
        sent.append(entry.key)
        return write(entry)

    backend._write = watched  # type: ignore[method-assign]
    found = await cache.lookup("k")
    await queue(cache, "x")

    async def late() -> int:
        add_tags("x")
        return 1

    async def build(keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, 1)

    assert await cache.set("k", 1, since=found, tags=["x"]) is False
    assert await cache.get_or_set("late", late) == 1
    many = await cache.get_or_set_many(["x", "y", "z"], build, tags=lambda key: [key])
    assert many == {"x": 1, "y": 1, "z": 1}
    assert sent == ["|k|y", "|k|z"]
    assert await cache.get_many(["x", "y", "z"]) == {"y": 1, "z": 1}


@pytest.mark.parametrize("soft", [False, True])
async def test_a_queued_clear_is_of_all(backend: Down, soft: bool) -> None:
    """What is in the namespace, or was built from it, is not served; the rest is."""
    shop, blog = (Cache(backend, namespace=name, default_ttl=60) for name in ("shop", "blog"))
    await shop.get_or_set("k", one)
    await blog.get_or_set("k", one)
    await blog.get_or_set("page", lambda: shop.get_or_set("k", one))
    assert await shop.clear(queue=True) is False
    await assert_miss(shop, "k")
    await assert_miss(blog, "page")
    await assert_hit(blog, "k")
    assert "namespace shop was invalidated" in str(await blog.explain("page"))


async def test_soft_counts_as_leased_till_it_is_written(cache: Cache, backend: Down) -> None:
    """Then it is soft again: what has a stale period is stale."""
    await cache.get_or_set("k", one, tags=["x"], stale_while_revalidate=9, stale_if_error=9)
    await queue(cache, "x", soft=True)
    await assert_miss(cache, "k")
    backend.down = False
    assert await cache.flush_invalidations()
    assert (await cache.explain("k")).state == "stale"


async def test_a_flush_needs_no_agreement(backend: Down) -> None:
    """An invalidation is written though nothing was read yet, and whatever `max_ttl` the journal has."""
    await backend.agree(10.0)
    cache = Cache(backend, default_ttl=60)
    await queue(cache, "x")
    backend.down = False
    assert await cache.flush_invalidations() is True
    assert await cache.invalidate("y") is True


# --- in the background -------------------------------------------------------------------------------------


class Sleeps:
    """Stands for `sleep`: says for how long, and is woken by the test."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.contexts: list[str] = []
        self._asleep = anyio.Event()
        self._woken = anyio.Event()

    async def __call__(self, delay: float) -> None:
        self.delays.append(delay)
        self.contexts.append(request.get())
        assert current_scope.get() is None
        self._asleep.set()
        await self._woken.wait()
        self._woken = anyio.Event()

    async def wake(self) -> None:
        await self._asleep.wait()
        self._asleep = anyio.Event()
        self._woken.set()
        await settle()


request: ContextVar[str] = ContextVar("request", default="none")


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> Sleeps:
    sleeps = Sleeps()
    monkeypatch.setattr(pending_module, "sleep", sleeps)
    return sleeps


async def test_it_is_retried_in_the_background(cache: Cache, backend: Down, sleeps: Sleeps) -> None:
    """Of an opened cache, in a fresh context, less and less often, until it is written."""
    request.set("opener")
    with anyio.fail_after(5):
        async with cache:
            request.set("caller")

            async def compute() -> int:
                await queue(cache, "x")
                return 1

            await cache.get_or_set("k", compute)
            await queue(cache, "y")
            backend.asked = 0
            for number in range(8):
                assert backend.asked == number
                await sleeps.wake()
            backend.down = False
            await sleeps.wake()
            assert cache.queued_invalidations == ()
            await settle()
            assert sleeps.delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
            assert set(sleeps.contexts) == {"opener"}
            # The next time it begins anew.
            backend.down = True
            await queue(cache, "x")
            backend.down = False
            await sleeps.wake()
            assert cache.queued_invalidations == ()
            assert sleeps.delays[9:] == [0.1]


async def test_what_was_queued_before_it_was_opened_is_retried(cache: Cache, backend: Down, sleeps: Sleeps) -> None:
    """Opening begins it."""
    await queue(cache, "x")
    async with cache:
        backend.down = False
        with anyio.fail_after(5):
            await sleeps.wake()
        assert cache.queued_invalidations == ()


@pytest.mark.parametrize("read", [lambda cache: cache.get("k"), lambda cache: cache.get_many(["k"])])
async def test_others_take_over(cache: Cache, backend: Down, sleeps: Sleeps, read: Any) -> None:
    """A cache that closes retries no more: another one that is open begins at its next read. One does it at a time."""
    other = Cache(backend, namespace="other", default_ttl=60)
    with anyio.fail_after(5):
        async with other:
            async with cache:
                await queue(cache, "x")
                await queue(other, "y")
                await other.get("k")
                await settle()
                assert len(sleeps.delays) == 1
            assert cache.queued_invalidations == ("x", "tag y of namespace other")
            await settle()
            assert len(sleeps.delays) == 1
            for _ in range(2):
                await read(other)
                await settle()
            assert len(sleeps.delays) == 2
            backend.down = False
            await sleeps.wake()
            assert other.queued_invalidations == ()


async def test_who_is_cancelled_is_followed_by_a_retry(cache: Cache, backend: Down, sleeps: Sleeps) -> None:
    """Without a call to cause it."""
    backend.down, backend.pause = False, anyio.sleep_forever
    with anyio.fail_after(5):
        async with cache:
            async with anyio.create_task_group() as group:
                group.start_soon(partial(cache.invalidate, "x", queue=True))
                await settle()
                group.cancel_scope.cancel()
            backend.pause = checkpoint
            await sleeps.wake()
            assert cache.queued_invalidations == ()


async def test_closing_tries_once_more(cache: Cache, backend: Down, caplog: pytest.LogCaptureFixture) -> None:
    """Left with a queue, whether opened or not; what remains is an error in the log, and stays queued."""
    for close in (partial(cache.__aexit__, None, None, None), cache.aclose):
        backend.down = True
        if close is not cache.aclose:
            await cache.__aenter__()
        await queue(cache, "x")
        backend.down = False
        await close()
        assert cache.queued_invalidations == ()
    assert not said(caplog, logging.ERROR)
    backend.down = True
    await queue(cache, "x", "y")
    await cache.aclose()
    (error,) = said(caplog, logging.ERROR)
    assert "x, y" in error
    assert cache.queued_invalidations == ("x", "y")


async def test_closing_does_not_hang(
    cache: Cache, backend: Down, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a backend that never answers; and if it is cancelled, the log still has what is left."""
    await queue(cache, "x")
    backend.pause = anyio.sleep_forever
    monkeypatch.setattr(pending_module, "LAST_TRY", 0)
    with anyio.fail_after(5):
        await cache.aclose()
    assert len(said(caplog, logging.ERROR)) == 1
    monkeypatch.setattr(pending_module, "LAST_TRY", 100)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(cache.aclose)
            await settle()
            group.cancel_scope.cancel()
    assert len(said(caplog, logging.ERROR)) == 2


async def test_a_backend_that_breaks_ends_no_retry(cache: Cache, backend: Down, sleeps: Sleeps) -> None:
    """An error that is no BackendError neither ends it nor the application's task group."""
    with anyio.fail_after(5):
        async with cache:
            await queue(cache, "x")
            backend.error = lambda names: ZeroDivisionError("a bug")
            await sleeps.wake()
            await sleeps.wake()
            backend.down = False
            await sleeps.wake()
            assert cache.queued_invalidations == ()


# --- who shares it -----------------------------------------------------------------------------------------


async def test_the_queue_is_the_backends(cache: Cache, backend: Down) -> None:
    """All caches on it see it; one on another backend does not, also while it overrides the first."""
    other, apart = Cache(backend, default_ttl=60), Cache(MemoryBackend(), default_ttl=60)
    for each in (cache, apart):
        await each.get_or_set("k", one, tags=["x"])
    await queue(cache, "x")
    assert other.queued_invalidations == ("x",)
    assert apart.queued_invalidations == ()
    await assert_miss(other, "k")
    await assert_hit(apart, "k")
    with cache.override(MemoryBackend()):
        assert cache.queued_invalidations == ()
        await cache.get_or_set("k", one, tags=["x"])
        await assert_hit(cache, "k")
    with apart.override(backend):
        await assert_miss(apart, "k")
    await assert_miss(cache, "k")


async def test_peeking_is_for_empty_queues(cache: Cache, backend: Down) -> None:
    """However the cache came to the backend: hits are told at once again when all is written."""
    backend.down = False
    late, disabled = Cache(default_ttl=60), Cache(backend, default_ttl=60)
    caches = [cache, late, disabled]
    await cache.get_or_set("k", one)

    def peeks() -> list[bool]:
        return [each._peek("|k|k") is not None for each in caches]

    late.bind(backend)
    assert peeks() == [True] * 3
    backend.down = True
    await queue(cache, "x")
    assert peeks() == [False] * 3
    caches.append(Cache(backend, default_ttl=60))
    with disabled.disabled():
        assert peeks() == [False] * 4
        backend.down = False
        await cache.flush_invalidations()
        assert peeks() == [True, True, False, True]
    assert peeks() == [True] * 4


def test_for_any_number_of_threads() -> None:
    """What one thread queues holds for the others when it has returned, and each can write it."""
    backend = Down()
    cache = Cache(backend, default_ttl=60)
    queued, looked, errors = threading.Event(), threading.Event(), []

    async def first() -> None:
        await cache.get_or_set("k", one, tags=["x"])
        await queue(cache, "x")
        queued.set()
        assert looked.wait(10)
        assert cache.queued_invalidations == ()
        assert cache._peek("|k|other") is not None

    async def second() -> None:
        assert queued.wait(10)
        other = Cache(backend, default_ttl=60)
        await assert_miss(other, "k")
        await other.get_or_set("other", one)
        backend.down = False
        assert await other.flush_invalidations()
        looked.set()

    def run(work: Callable[[], Any], loop: str) -> None:
        try:
            anyio.run(work, backend=loop)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=arguments) for arguments in ((first, "asyncio"), (second, "trio"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not errors
    assert looked.is_set()


def test_many_threads_lose_nothing() -> None:
    """Queued by some while others write: in the end all is written, and hits are told at once again."""
    backend = Down()
    backend.pause = one
    cache = Cache(backend, default_ttl=60)
    start = threading.Barrier(4)

    def invalidate(number: int) -> None:
        async def run() -> None:
            start.wait(10)
            for tag in range(100):
                backend.down = (tag // 10 + number) % 2 == 0
                await cache.invalidate(f"{number}:{tag}", queue=True)
                if tag % 7 == 0:
                    await cache.flush_invalidations()

        anyio.run(run)

    threads = [threading.Thread(target=invalidate, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    backend.down = False
    assert anyio.run(cache.flush_invalidations)
    written = {name for names, _ in backend.written for name in names}
    assert written == {f"{number}:{tag}" for number in range(4) for tag in range(100)}
    assert pending_of(cache).names == frozenset()
    assert cache._peek.__self__ is backend  # type: ignore[attr-defined]


FORK = """
import os, sys, threading
import anyio
from asynctag import Cache
from tests.test_pending import Down, one, pending_of, queue

backend = Down()
cache = Cache(backend, default_ttl=60)

async def main():
    await cache.get_or_set("k", one, tags=["x"])
    await queue(cache, "x")

async def child():
    assert cache.queued_invalidations == ("x",)
    assert await cache.get("k") is None
    backend.down = False
    assert await cache.invalidate("y")
    assert [names for names, _ in backend.written] == [["x"], ["y"]]
    assert cache._peek("|k|k") is None
    await cache.get_or_set("k", one, tags=["x"])
    assert cache._peek("|k|k") is not None

anyio.run(main)
pending, held, done = pending_of(cache), threading.Event(), threading.Event()

def hold():
    with pending.lock:
        held.set()
        done.wait(10)

holder = threading.Thread(target=hold)
holder.start()
held.wait(10)
pid = os.fork()
if pid == 0:
    try:
        anyio.run(child)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
_, status = os.waitpid(pid, 0)
done.set()
holder.join()
assert cache.queued_invalidations == ("x",)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_queue_of_its_own() -> None:
    """A copy of its parent's: it cannot know when that one writes, and twice does no harm. A lock that a thread of the
    parent holds is none in the child."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- responses ---------------------------------------------------------------------------------------------


async def test_responses_too(cache: Cache, backend: Down) -> None:
    """A page that carries a queued tag is rendered by every request, and stored again once it is written. The other
    pages are hits, before routing and at the endpoint."""
    runs: list[str] = []

    @cache_response(60, tags=["{name}"], public=True)
    async def public(request: Request) -> PlainTextResponse:
        name = request.path_params["name"]
        runs.append(name)
        return PlainTextResponse(name)

    @cache_response(60, tags=["{name}"])
    async def guarded(request: Request) -> PlainTextResponse:
        return await public.__wrapped__(request)  # type: ignore[attr-defined,no-any-return]

    routes = [Route("/public/{name}", public), Route("/guarded/{name}", guarded)]
    app = CacheMiddleware(Starlette(routes=routes), cache=cache)

    async def hits() -> list[bool]:
        return [(await ask(app, f"/{kind}/{name}")).hit for kind in ("public", "guarded") for name in "xy"]

    assert [await hits(), await hits()] == [[False] * 4, [True] * 4]
    tagged = RequestCache(cache, None)
    assert await tagged.invalidate("x", queue=True) is False
    assert [await hits(), await hits()] == [[False, True] * 2] * 2
    backend.down = False
    assert await tagged.invalidate("z") is True
    assert [await hits(), await hits()] == [[False, True] * 2, [True] * 4]
    backend.down = True
    assert await cache.clear(queue=True) is False
    assert await hits() == [False] * 4
    assert not cache._filling().flights._open


# --- all interleavings of a few ----------------------------------------------------------------------------


class Fails(MemoryBackend):
    """What becomes of the first invalidations, by a letter each: Written, Lost, or Unknown, which is written too."""

    def __init__(self, clock: Clock, fates: str) -> None:
        super().__init__(clock=clock)
        self.fates = fates

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        names, fate, self.fates = list(tags), self.fates[:1], self.fates[1:]
        if fate != "L":
            await super().invalidate(names, soft=soft)
        if fate in ("L", "U"):
            raise BackendError("no answer")


def scenario(build: Callable[[World, Cache], None], fates: str, *, remote: bool) -> Any:
    """A scenario on a backend that fails, with the answers to invalidations as steps of their own."""

    def whole(world: World) -> None:
        cache, backend = world.cache(0), world.backends[0]
        invalidate, fingerprint = backend.invalidate, world.fingerprint

        async def answered(tags: Iterable[str], *, soft: bool = False) -> None:
            await invalidate(tags, soft=soft)
            await world.point("gets the answer about invalidating")

        def with_queue() -> Hashable:
            pending, inner = pending_of(cache), backend.inner
            queue = tuple((*key, number - pending._number) for key, number in pending._queue.items())
            return fingerprint(), queue, inner.fates  # type: ignore[attr-defined]

        backend.invalidate = answered  # type: ignore[method-assign]
        world.fingerprint = with_queue  # type: ignore[method-assign]
        build(world, cache)

    @asynccontextmanager
    async def failing(clock: Clock) -> AsyncIterator[list[Backend]]:
        yield [Fails(clock, fates)]

    return stage(build.__doc__ or "", whole, failing, remote=remote)


async def row(world: World) -> str:
    """The row, which is some time on its way."""
    value = await world.row("x")
    if not world.remote:
        await world.point("gets row x")
    return value


def reads(world: World, cache: Cache, key: str = "k") -> Callable[[], Any]:
    return partial(world.ask, lambda: cache.get_or_set(key, lambda: row(world), tags=["x"]))


def writes(world: World, cache: Cache) -> Callable[[], Any]:
    return partial(world.commit, "x", lambda: cache.invalidate("x", queue=True))


def looks(world: World, cache: Cache) -> Callable[[], Any]:
    return partial(world.ask, lambda: cache.get("k"))


def two_readers(world: World, cache: Cache) -> None:
    """Two readers, a writer whose invalidation is queued, and a flush."""
    world.process("writer", writes(world, cache))
    world.process("reader 1", reads(world, cache), kind="reader")
    world.process("reader 2", reads(world, cache), kind="reader")
    world.process("flush", cache.flush_invalidations)
    world.after(reads(world, cache))


def two_writers(world: World, cache: Cache) -> None:
    """A reader, two writers, and a flush: an invalidation may be queued again while it is written."""
    world.process("writer 1", writes(world, cache), kind="writer")
    world.process("writer 2", writes(world, cache), kind="writer")
    world.process("reader", reads(world, cache))
    world.process("flush", cache.flush_invalidations)
    world.after(reads(world, cache))


def found_before(world: World, cache: Cache) -> None:
    """Something is stored; two look it up while an invalidation is queued and written."""
    world.before(reads(world, cache))
    world.process("writer", writes(world, cache))
    world.process("reader", reads(world, cache))
    world.process("look-up", looks(world, cache))
    world.process("flush", cache.flush_invalidations)
    world.after(reads(world, cache))


def parents(world: World, cache: Cache) -> None:
    """A parent is built from a stored child while the child's invalidation is queued and written."""

    async def compute() -> str:
        child: str = await cache.get_or_set("child", lambda: world.row("x"), tags=["x"])
        return f"page of {child}"

    ask_for_it = partial(world.ask, lambda: cache.get_or_set("parent", compute))
    world.before(reads(world, cache, "child"))
    world.process("writer", writes(world, cache))
    world.process("parent 1", ask_for_it, kind="parent")
    world.process("parent 2", ask_for_it, kind="parent")
    world.process("flush", cache.flush_invalidations)
    world.after(ask_for_it)


#: Each scenario, what becomes of the first invalidations, and whether every other answer is a step of its own too.
SCENARIOS: list[tuple[Callable[[World, Cache], None], str, bool]] = [
    (two_readers, "L", False),
    (two_readers, "UL", False),
    (two_writers, "LWL", False),
    (found_before, "L", True),
    (found_before, "U", False),
    (parents, "L", False),
]


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("build", "fates", "remote"), SCENARIOS, ids=[f"{one.__name__}-{fates}" for one, fates, _ in SCENARIOS]
)
def test_every_interleaving_holds(build: Any, fates: str, remote: bool) -> None:
    """Whatever the order, and whether what failed was written all the same: nobody gets old data, or hangs."""
    make = scenario(build, fates, remote=remote)
    explored: Explored = explore_on_asyncio(make)
    assert explored.complete
    assert explored.states > 20
    assert explore_on_trio(make, limit=20).executions == 20


def served(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fill_module, "_without", lambda reading, leased, with_entry=False: reading)


def stored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Filler, "_refuse", lambda self, entry: None)


def looked_at_afterwards(patch: pytest.MonkeyPatch) -> None:
    intact = fill_module._without

    async def read(self: Filler, key: str) -> Any:
        reading = await self.backend.read(key)
        return intact(reading, self.pending.names)

    patch.setattr(Filler, "read", read)


def forgotten_first(patch: pytest.MonkeyPatch) -> None:
    """What is about to be written is taken from the queue before it is."""
    oldest = Pending.oldest

    def taken(self: Pending) -> Batch | None:
        batch = oldest(self)
        if batch is not None:
            self.written(batch)
        return batch

    patch.setattr(Pending, "oldest", taken)


def known_by_name(patch: pytest.MonkeyPatch) -> None:
    """What was queued again while it was written counts as written."""

    def written(self: Pending, batch: Batch) -> bool:
        for name in batch.names:
            self._queue.pop((name, batch.soft), None)
        self._set(frozenset(name for name, _ in self._queue))
        return not self._queue

    patch.setattr(Pending, "written", written)


def not_queued_at_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pending, "add", lambda self, names, **about: True)


WRONG: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[World, Cache], None], str, bool]] = [
    (served, found_before, "L", True),
    (stored, two_readers, "L", False),
    (looked_at_afterwards, found_before, "L", True),
    (forgotten_first, found_before, "L", True),
    (known_by_name, two_writers, "LWL", False),
    (not_queued_at_all, two_readers, "L", False),
]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("breaks", "build", "fates", "remote"), WRONG, ids=[f"{one.__name__}-{two.__name__}" for one, two, *_ in WRONG]
)
def test_a_wrong_variant_is_caught(
    breaks: Any, build: Any, fates: str, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rule taken out there is an interleaving in which somebody gets old data."""
    breaks(monkeypatch)
    with pytest.raises(Violation) as caught:
        explore_on_asyncio(scenario(build, fates, remote=remote))
    assert any("was acknowledged before it asked" in problem for problem in caught.value.problems)
