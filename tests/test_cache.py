"""The cache itself: binding, opening, values by key, and every input that cannot be meant."""

import enum
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asynctag import (
    BackendError,
    Cache,
    Cause,
    ConfigurationError,
    Hit,
    InvalidationError,
    InvalidKeyError,
    InvalidTagError,
    LifecycleError,
    Miss,
    UnsupportedTypeError,
    ValueNotCacheableError,
    add_tags,
)
from asynctag.backends.base import Entry, Reading, Written
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, RequestCache, cache_response
from asynctag.testing import FakeClock, assert_hit, assert_miss, assert_tags
from tests.http.driver import ask, running

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend(clock: FakeClock) -> MemoryBackend:
    return MemoryBackend(clock=clock)


@pytest.fixture
def cache(backend: MemoryBackend) -> Cache:
    return Cache(backend, default_ttl=60)


class Counter:
    """A computation that counts."""

    def __init__(self, value: Any = None) -> None:
        self.calls = 0
        self.value = value

    async def __call__(self) -> Any:
        self.calls += 1
        return self.calls if self.value is None else self.value


# --- binding and lifecycle -----------------------------------------------------------------------------


async def test_memory_unless_bound() -> None:
    """A cache that nobody binds keeps its values in memory."""
    cache, compute = Cache(default_ttl=60), Counter()
    assert "no backend yet" in repr(cache)
    assert [await cache.get_or_set("k", compute), await cache.get_or_set("k", compute)] == [1, 1]
    assert "MemoryBackend" in repr(cache)


async def test_bound_later(backend: MemoryBackend) -> None:
    """Decorators run at import; the backend comes with the settings."""
    cache = Cache(default_ttl=60)

    @cache.cached(name="f")
    async def f() -> int:
        return 1

    cache.bind(backend)
    await f()
    assert len(backend) == 1


async def test_a_second_bind_raises(backend: MemoryBackend) -> None:
    """Bound by call or as it was made; the message offers what tests want."""
    for cache in (Cache(backend), Cache()):
        if not cache._bound:
            cache.bind(backend)
        with pytest.raises(LifecycleError, match="override"):
            cache.bind(MemoryBackend())


async def test_a_bind_after_use_raises(backend: MemoryBackend) -> None:
    """What was invalidated in the memory that the cache used until then would be served from the backend."""
    cache = Cache(default_ttl=60)
    await cache.invalidate("product:1")
    with pytest.raises(LifecycleError, match="used before it is bound"):
        cache.bind(backend)


async def test_required_and_unbound_raises() -> None:
    """`require_backend` refuses every use, and names what to call."""
    cache = Cache(default_ttl=60, require_backend=True)

    @cache.cached(name="f")
    async def f() -> int:
        return 1

    uses: list[Callable[[], Any]] = [
        f,
        f.invalidate,
        f.explain,
        lambda: cache.get("k"),
        lambda: cache.get_or_set("k", f.uncached),
        lambda: cache.invalidate("x"),
        cache.clear,
        cache.__aenter__,
    ]
    for use in uses:
        with pytest.raises(LifecycleError, match=r"cache\.bind\(backend\)"):
            await use()
    cache.bind(MemoryBackend())
    assert await f() == 1


@pytest.mark.parametrize("backend", [None, MemoryBackend, "redis://localhost", {}])
async def test_no_backend_is_refused(backend: Any) -> None:
    """The class instead of an object, a URL: refused where they are given."""
    with pytest.raises(ConfigurationError, match="is no backend"):
        Cache().bind(backend)
    with pytest.raises(ConfigurationError, match="is no backend"), Cache().override(backend):
        pass


async def test_override(cache: Cache, backend: MemoryBackend) -> None:
    """Within the block another backend, decorated functions included; afterwards the one from before."""
    compute = Counter()

    @cache.cached(name="f")
    async def f() -> int:
        return int(await compute())

    assert await f() == 1
    other = MemoryBackend()
    with cache.override(other):
        assert [await f(), await f()] == [2, 2]
        with cache.override(MemoryBackend()):
            assert await f() == 3
        assert await f() == 2
    assert await f() == 1
    with pytest.raises(RuntimeError), cache.override(MemoryBackend()):
        raise RuntimeError
    assert await f() == 1
    assert len(backend) == len(other) == 1


async def test_disabled(cache: Cache, backend: MemoryBackend) -> None:
    """Nothing is found and nothing is stored; invalidations are still written, and tags go nowhere wrong."""
    compute = Counter()
    stored = await cache.get_or_set("k", compute, tags=["x"])
    found = await cache.lookup("k")

    @cache.cached(name="f")
    async def f() -> int:
        add_tags("x")
        return int(await compute())

    async def build(keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, 0)

    with cache.disabled():
        with cache.disabled():
            pass
        assert await cache.get_or_set("k", compute) == 2
        assert [await f(), await f.refresh(), await f()] == [3, 4, 5]
        assert await cache.get("k", "default") == "default"
        assert await cache.get_many(["k"]) == {}
        assert isinstance(await cache.lookup("k"), Miss)
        assert await cache.get_or_set_many(["k", "l"], build) == {"k": 0, "l": 0}
        assert await cache.set("k", 0, since=found) is False
        assert "disabled" in str(await cache.explain("k"))
    assert await cache.get("k") == stored
    with cache.disabled():
        await cache.invalidate("x")
    await assert_miss(cache, "k")
    assert len(backend) == 1


async def test_disabled_with_no_keys(cache: Cache) -> None:
    """Nothing to build is nothing, disabled or not."""

    async def build(keys: list[str]) -> dict[str, int]:
        raise AssertionError

    assert await cache.get_or_set_many([], build) == {}
    with cache.disabled():
        assert await cache.get_or_set_many([], build) == {}


async def test_opened_once_in_an_event_loop(cache: Cache) -> None:
    """A second opening raises; after closing it may be opened again, and used in between."""
    for _ in range(2):
        async with cache as opened:
            assert opened is cache
            with pytest.raises(LifecycleError, match="open already"):
                await cache.__aenter__()
        assert await cache.get_or_set("k", Counter()) == 1
    await cache.aclose()
    await Cache().aclose()


async def test_an_error_inside_is_not_changed_by_closing(cache: Cache) -> None:
    """It comes out as it was raised, in no group."""
    with pytest.raises(KeyError, match="mine"):
        async with cache:
            raise KeyError("mine")


async def test_caches_on_one_backend_agree_on_max_ttl(backend: MemoryBackend) -> None:
    """A process that would forget sooner is refused, as it opens or at its first use."""
    async with Cache(backend, max_ttl=100):
        pass
    with pytest.raises(ConfigurationError, match="max_ttl"):
        async with Cache(backend, max_ttl=200):
            pass
    with pytest.raises(ConfigurationError, match="max_ttl"):
        await Cache(backend, max_ttl=200, default_ttl=1).get_or_set("k", Counter())


async def test_memory_with_several_workers_warns(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An invalidation in one worker does not reach the memory of the others: said in the log."""
    for workers, said in [("1", False), ("", False), ("x", False), ("4", True)]:
        monkeypatch.setenv("WEB_CONCURRENCY", workers)
        Cache(MemoryBackend())
        assert ("WEB_CONCURRENCY" in caplog.text) is said


# --- values by key -------------------------------------------------------------------------------------


async def test_get_or_set(cache: Cache, clock: FakeClock) -> None:
    """Computed once, until it ends or a tag of it is invalidated."""
    compute = Counter()

    async def value() -> int:
        found: int = await cache.get_or_set("k", compute, ttl=10, tags=["x", "y"])
        return found

    assert [await value(), await value()] == [1, 1]
    await assert_tags(cache, "k", tags={"x", "y"})
    await cache.invalidate("y")
    assert [await value(), await value()] == [2, 2]
    clock.advance(10)
    assert [await value(), await value()] == [3, 3]


async def test_compute_may_be_anything_that_gives_an_awaitable(cache: Cache) -> None:
    """A lambda around a coroutine function will do."""
    counter = Counter()
    assert await cache.get_or_set("k", lambda: counter()) == 1


async def test_lookup_and_set(cache: Cache) -> None:
    """A miss gives the stamp, a hit the value and the tags."""
    found = await cache.lookup("k")
    assert isinstance(found, Miss)
    assert await cache.set("k", {"n": 1}, since=found, tags=["x"], ttl=5) is True
    hit = await cache.lookup("k")
    assert isinstance(hit, Hit)
    assert (hit.value, hit.tags) == ({"n": 1}, {"x"})
    assert (await cache.explain("k")).fresh_for == 5
    assert await cache.set("k", {"n": 2}, since=hit) is True
    assert await cache.get("k") == {"n": 2}


async def test_set_belongs_to_the_computation_around_it(cache: Cache) -> None:
    """The entry's tags and end go to whoever looked it up or set it."""

    async def whole() -> str:
        found = await cache.lookup("part")
        await cache.set("part", 1, since=found, tags=["x"], ttl=7)
        return "whole"

    await cache.get_or_set("whole", whole)
    await assert_tags(cache, "whole", tags={"x"})
    assert (await cache.explain("whole")).fresh_for == 7

    async def reader() -> Any:
        return await cache.get("part")

    await cache.get_or_set("reader", reader)
    await cache.invalidate("x")
    await assert_miss(cache, "reader")
    await assert_miss(cache, "whole")


async def test_get_gives_the_default(cache: Cache) -> None:
    """Where nothing is, and `None` unless another is given."""
    assert await cache.get("k") is None
    assert await cache.get("k", 1) == 1
    assert await cache.get("k", default="x", returns=int) == "x"


async def test_stale_values_are_not_looked_up(cache: Cache, clock: FakeClock) -> None:
    """`get` and `lookup` have nobody to renew them: what is stale is a miss, and may be replaced."""
    await cache.get_or_set("k", Counter(), ttl=10, stale_while_revalidate=10)
    clock.advance(11)
    found = await cache.lookup("k")
    assert isinstance(found, Miss)
    assert await cache.get_many(["k"]) == {}
    assert await cache.set("k", 2, since=found)
    assert await cache.get("k") == 2


async def test_many(cache: Cache) -> None:
    """One call for what misses, in the order asked for; what it leaves out is left out, and asked for again."""
    asked: list[list[str]] = []

    async def build(keys: list[str]) -> dict[str, str]:
        asked.append(keys)
        add_tags("gathered")
        return {key: key.upper() for key in reversed(keys) if key != "gone"}

    async def many(*keys: str) -> dict[str, str]:
        return await cache.get_or_set_many(keys, build, tags=lambda key: [f"row:{key}"], returns=str)

    assert list((await many("b", "a", "b")).items()) == [("b", "B"), ("a", "A")]
    assert await many("c", "gone", "a") == {"c": "C", "a": "A"}
    assert await many("gone", "a") == {"a": "A"}
    assert asked == [["b", "a"], ["c", "gone"], ["gone"]]
    await assert_tags(cache, "a", tags={"row:a", "gathered"})
    await cache.invalidate("row:a")
    assert list(await cache.get_many(["c", "a", "b"])) == ["c", "b"]
    await cache.invalidate("gathered")
    assert await cache.get_many(["c", "a", "b"]) == {}
    await cache.get_or_set_many(["z"], build, tags=["shared"])
    await assert_tags(cache, "z", tags={"shared", "gathered"})


async def test_many_go_up(cache: Cache) -> None:
    """Found or built, their tags are the computation's around them."""

    async def build(keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, 1)

    async def whole() -> dict[str, int]:
        found = await cache.get_or_set_many(["a", "b"], build, tags=lambda key: [key])
        return found | await cache.get_many(["c"])

    await cache.get_or_set("a", Counter(1), tags=["a"])
    await cache.get_or_set("c", Counter(2), tags=["c"])
    assert await cache.get_or_set("whole", whole) == {"a": 1, "b": 1, "c": 2}
    await assert_tags(cache, "whole", tags={"a", "b", "c"})


@pytest.mark.parametrize("built", [[], None, {"stranger": 1}, "k"])
async def test_what_many_return_is_checked(cache: Cache, built: Any) -> None:
    """No mapping, or a key that nobody asked for: an error, and nothing is stored or left hanging."""

    async def build(keys: list[str]) -> Any:
        return built

    for _ in range(2):
        with pytest.raises(ConfigurationError, match="the builder returned"):
            await cache.get_or_set_many(["k"], build)
    assert await cache.get("k") is None
    with anyio.fail_after(5):
        assert await cache.get_or_set("k", Counter()) == 1


async def test_delete(cache: Cache) -> None:
    """Whether something was there; what was built from it goes too."""

    async def whole() -> Any:
        return await cache.get_or_set("part", Counter())

    await cache.get_or_set("whole", whole)
    assert await cache.delete("part") is True
    assert await cache.delete("part") is False
    await assert_miss(cache, "whole")


async def test_soft_invalidation(cache: Cache) -> None:
    """What has a stale period is stale, the rest is gone."""
    await cache.get_or_set("with", Counter(), tags=["x"], stale_while_revalidate=9)
    await cache.get_or_set("without", Counter(), tags=["x"])
    await cache.invalidate("x", soft=True)
    assert (await cache.explain("with")).state == "stale"
    assert (await cache.explain("without")).state == "miss"


async def test_clear_is_by_namespace(backend: MemoryBackend) -> None:
    """Keys and tags of two namespaces are apart; a prefix of a name is another name."""
    caches = {name: Cache(backend, namespace=name, default_ttl=60) for name in ("", "a", "ab")}
    for one in caches.values():
        await one.get_or_set("k", Counter(), tags=["x"])
    assert len(backend) == 3
    await caches["a"].invalidate("x")
    assert [await one.get("k") for one in caches.values()] == [1, None, 1]
    await caches["ab"].clear()
    assert [await one.get("k") for one in caches.values()] == [1, None, None]
    for one in caches.values():
        await one.get_or_set("k", Counter(), tags=["x"])
    await caches[""].clear()
    assert [await one.get("k") for one in caches.values()] == [None] * 3


async def test_explain(cache: Cache, clock: FakeClock, backend: MemoryBackend) -> None:
    """It says in a sentence what is there and why it would miss."""

    async def said() -> str:
        return str(await cache.explain("k"))

    async def put() -> None:
        await cache.get_or_set("k", Counter(), tags=["x"], ttl=10, stale_while_revalidate=5)

    assert "a miss, nothing is stored" in await said()
    await put()
    explanation = await cache.explain("k")
    assert explanation.hit
    assert (explanation.fresh_for, explanation.kept_for, explanation.tags) == (10, 15, {"x"})
    assert explanation.size
    assert "fresh for 10 s" in await said()
    assert "the tags x" in await said()
    clock.advance(11)
    assert "stale, kept for 4 s" in await said()
    clock.advance(11)
    assert "it has expired" in await said()
    await put()
    await cache.invalidate("x")
    assert "a miss, tag x was invalidated" in await said()
    assert (await cache.explain("k")).cause is Cause.INVALIDATED
    await put()
    await cache.clear()
    assert "everything was invalidated" in await said()
    await put()
    await backend.wipe()
    assert "nothing is stored" in await said()


async def test_explain_names_what_is_of_another_namespace(backend: MemoryBackend) -> None:
    """A tag behind a miss is told with the namespace that it came from."""
    shop = Cache(backend, namespace="shop", default_ttl=60)
    blog = Cache(backend, namespace="blog", default_ttl=60)
    await blog.get_or_set("page", lambda: shop.get_or_set("product", Counter(), tags=["x"]))
    await shop.invalidate("x")
    assert "tag x of namespace shop was invalidated" in str(await blog.explain("page"))
    assert "tag x was invalidated" in str(await shop.explain("product"))
    await blog.get_or_set("page", lambda: shop.get_or_set("product", Counter(), tags=["x"]))
    await shop.delete("product")
    assert "key product of namespace shop was" in str(await blog.explain("page"))
    await blog.get_or_set("page", lambda: shop.get_or_set("product", Counter(), tags=["x"]))
    await shop.clear()
    assert "namespace shop was" in str(await blog.explain("page"))


async def test_the_assertions_print_the_explanation(cache: Cache) -> None:
    """What a test that fails says is what there is to know."""

    @cache.cached(name="f", tags=["f:{n}"], stale_while_revalidate=9)
    async def f(n: int) -> int:
        return n

    with pytest.raises(AssertionError, match="nothing is stored"):
        await assert_hit(f, 1)
    with pytest.raises(AssertionError, match="nothing is stored"):
        await assert_tags(f, 1, tags={"f:1"})
    await assert_miss(f, 1)
    await f(1)
    assert (await assert_hit(f, n=1)).tags == {"f:1"}
    with pytest.raises(AssertionError, match=r"f\(1\): a hit, fresh for 60 s"):
        await assert_miss(f, 1)
    with pytest.raises(AssertionError, match="lacks f:2 and it carries f:1 too"):
        await assert_tags(f, 1, tags={"f:2"})
    with pytest.raises(TypeError, match="give a set"):
        await assert_tags(f, 1, tags="f:1")
    await cache.invalidate("f:1", soft=True)
    for one in (assert_hit, assert_miss):
        with pytest.raises(AssertionError, match="stale"):
            await one(f, 1)


# --- a backend that is down ------------------------------------------------------------------------------


class Offline(MemoryBackend):
    """A backend that answers nothing while it is down."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.down = True

    def _check_line(self) -> None:
        if self.down:
            raise BackendError("no answer")

    def peek(self, key: str) -> Entry | None:
        return None

    async def read(self, key: str) -> Reading:
        self._check_line()
        return await super().read(key)

    async def write(self, entry: Entry) -> Written:
        self._check_line()
        return await super().write(entry)

    async def write_many(self, entries: Sequence[Entry]) -> list[Written]:
        self._check_line()
        return await super().write_many(entries)

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        self._check_line()
        await super().invalidate(tags, soft=soft)

    async def inspect(self, key: str) -> Reading:
        self._check_line()
        return await super().inspect(key)

    async def agree(self, max_ttl: float) -> None:
        self._check_line()
        await super().agree(max_ttl)


@pytest.fixture
def offline(clock: FakeClock) -> Offline:
    return Offline(clock)


async def test_opened_though_the_backend_is_down(offline: Offline, caplog: pytest.LogCaptureFixture) -> None:
    """An application starts without it: a warning, values are computed, and once it answers they are kept."""
    cache, compute = Cache(offline, default_ttl=60), Counter()
    async with cache:
        assert "does not answer" in caplog.text
        assert cache._background.is_open
        assert [await cache.get_or_set("k", compute), await cache.get_or_set("k", compute)] == [1, 2]
        offline.down = False
        assert [await cache.get_or_set("k", compute), await cache.get_or_set("k", compute)] == [3, 3]
        with pytest.raises(ConfigurationError, match="max_ttl"):
            await offline.agree(1.0)  # the cache has agreed with it on its own


async def test_who_starts_without_the_backend_agrees_with_it_later(offline: Offline, clock: FakeClock) -> None:
    """What another process has agreed on holds against one that could not ask when it started: it reads and writes
    nothing, but it may invalidate."""
    wrong, right = Cache(offline, max_ttl=100, default_ttl=60), Cache(offline, default_ttl=60)
    async with wrong:
        offline.down = False
        found = await right.lookup("k")
        for use in (
            lambda: wrong.get("k"),
            lambda: wrong.get_many(["k"]),
            lambda: wrong.get_or_set("k", Counter()),
            lambda: wrong.set("k", 1, since=found),
        ):
            with pytest.raises(ConfigurationError, match="max_ttl"):
                await use()
        assert not len(offline)
        await right.get_or_set("k", Counter(), tags=["x"])
        assert await wrong.invalidate("x") is True
        await assert_miss(right, "k")


async def test_a_lifespan_without_the_backend(offline: Offline) -> None:
    """The application starts, answers, and shuts down."""
    runs: list[int] = []

    @cache_response(60, public=True)
    async def page(request: Request) -> PlainTextResponse:
        runs.append(1)
        return PlainTextResponse("page", headers={"Vary": "Accept-Language"} if len(runs) > 2 else {})

    app = Starlette(routes=[Route("/", page)])
    app.add_middleware(CacheMiddleware, cache=Cache(offline, default_ttl=60))
    async with running(app) as said:
        assert [(await ask(app)).text, (await ask(app)).text] == ["page", "page"]
        offline.down = False
        assert not (await ask(app)).hit
        assert (await ask(app)).hit
        offline.down = True
        assert [(await ask(app)).hit, (await ask(app, method="HEAD")).hit] == [False, False]
    assert [one["type"] for one in said] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert len(runs) >= 5


async def test_everything_that_reads_computes(offline: Offline) -> None:
    """Whatever is called; only an invalidation says that it could not be written, and `explain` that it can't tell."""
    cache = Cache(offline, default_ttl=60, stale_while_revalidate=60, stale_if_error=60)
    compute = Counter(1)

    @cache.cached(name="f", tags=["x"])
    async def f() -> int:
        return int(await compute())

    async def build(keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, 1)

    for _ in range(2):
        assert [await f(), await f.refresh(), await f.uncached()] == [1] * 3
        assert await cache.get_or_set("k", f) == 1
        assert await cache.get_or_set_many(["k", "l"], build) == {"k": 1, "l": 1}
        found = await cache.lookup("k")
        assert found == Miss(None)
        assert await cache.set("k", 1, since=found) is False
        assert await cache.get("k", 2) == 2
        assert await cache.get_many(["k"]) == {}
    with pytest.raises(BackendError):
        await cache.explain("k")
    with pytest.raises(InvalidationError):
        await f.invalidate()
    offline.down = False
    found = await cache.lookup("k")
    offline.down = True
    assert await cache.set("k", 1, since=found) is False


async def test_a_backend_that_is_down_does_not_fill_the_log(
    offline: Offline, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning a second for each backend, which says how many there would have been, whoever uses it."""
    caches = [Cache(offline, default_ttl=60), Cache(offline, namespace="other", default_ttl=60)]
    apart = Cache(Offline(clock), default_ttl=60)

    async def use(cache: Cache) -> None:
        await cache.get_or_set("k", Counter())
        await cache.get_or_set_many(["k"], build)
        await cache._refresh(cache._job("k", (), int, cache._expiry(), Counter()))

    async def build(keys: list[str]) -> dict[str, int]:
        return {}

    for cache in caches * 10:
        await use(cache)
    assert len(caplog.records) == 1
    await use(apart)
    assert len(caplog.records) == 2
    clock.advance(0.9)
    await use(caches[0])
    assert len(caplog.records) == 2
    clock.advance(0.1)
    await use(caches[1])
    assert len(caplog.records) == 3
    assert "62 warnings before" in caplog.records[2].getMessage()
    assert all("no answer" in one.getMessage() for one in caplog.records)


# --- a backend outside this process ----------------------------------------------------------------------


class Remote(MemoryBackend):
    """A backend that keeps bytes, and has no idea what they are of."""

    in_process = False

    def peek(self, key: str) -> Entry | None:
        return None

    async def read(self, key: str) -> Reading:
        return _as_bytes(await super().read(key))

    async def read_many(self, keys: Sequence[str]) -> list[Reading]:
        return [await self.read(key) for key in keys]

    async def inspect(self, key: str) -> Reading:
        return _as_bytes(await super().inspect(key))


def _as_bytes(reading: Reading) -> Reading:
    entry = reading.entry
    if entry is None:
        return reading
    assert isinstance(entry.body, bytes)
    times = (entry.renew_from, entry.fresh_until, entry.stale_until, entry.expires)
    bare = Entry(entry.key, entry.body, None, None, entry.size, entry.tags, entry.stamp, *times)
    return Reading(reading.stamp, bare, reading.stale, reading.miss)


@dataclass
class Row:
    name: str
    parts: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, None),
        (1, int),
        ("text", str),
        (b"bytes", bytes),
        ({"a": [1, 2]}, dict[str, list[int]]),
        (Row("a", (1, 2)), Row),
        ([Row("a")], list[Row]),
    ],
    ids=str,
)
async def test_values_from_outside_this_process(clock: FakeClock, value: Any, kind: Any) -> None:
    """They come back as what is asked for, by whatever way, and never as what another asked for."""
    backend = Remote(clock=clock)
    cache = Cache(backend, default_ttl=60, stale_while_revalidate=60)
    compute = Counter(value)

    @cache.cached(name="f", tags=["x"], returns=kind)
    async def f() -> Any:
        compute.calls += 1
        return value

    async def build(keys: list[str]) -> dict[str, Any]:
        raise AssertionError("it is there")

    for _ in range(2):
        assert await f() == value
    assert compute.calls == 1
    key = f.key()
    assert (await cache.lookup(key, returns=kind)) == Hit(value, frozenset({"x"}), (await backend.read("k")).stamp)
    assert await cache.get_many([key], returns=kind) == {key: value}
    assert await cache.get_or_set_many([key], build, returns=kind) == {key: value}
    assert await cache.get(key, "miss", returns=dict[int, int]) == "miss"
    await assert_tags(f, tags={"x"})
    async with cache:
        clock.advance(61)
        assert await f() == value  # stale, and renewed
        await anyio.wait_all_tasks_blocked()
    assert compute.calls == 2
    await assert_hit(f)
    await cache.invalidate("x")
    await assert_miss(f)


async def test_bytes_that_are_no_value_are_a_miss(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever wrote them."""
    backend = Remote(clock=clock)
    cache, compute = Cache(backend, default_ttl=60), Counter()
    await cache.get_or_set("k", compute, returns=int)
    for entry in backend._entries.values():
        entry.body = b"\xc1"
    assert await cache.get("k", "miss", returns=int) == "miss"
    assert await cache.get_or_set("k", compute, returns=int) == 2
    assert "taken for a miss" in caplog.text


async def test_responses_from_outside_this_process(clock: FakeClock) -> None:
    """Before routing and at the endpoint, whatever tells them apart; a record that is no record is none."""
    backend = Remote(clock=clock)
    cache = Cache(backend, default_ttl=60)

    def page(**policy: Any) -> Any:
        @cache_response(60, tags=["{name}"], **policy)
        async def endpoint(request: Request) -> PlainTextResponse:
            return PlainTextResponse(request.headers.get("accept-language", "-"))

        return endpoint

    routes = [
        Route("/public/{name}", page(public=True)),
        Route("/guarded/{name}", page()),
        Route("/varied/{name}", page(public=True, vary=["Accept-Language"])),
    ]
    app = CacheMiddleware(Starlette(routes=routes), cache=cache)

    async def hits(name: str, **more: Any) -> list[bool]:
        return [(await ask(app, f"/{kind}/{name}", **more)).hit for kind in ("public", "guarded", "varied")]

    assert [await hits("x"), await hits("x"), await hits("y")] == [[False] * 3, [True] * 3, [False] * 3]
    assert (await ask(app, "/public/x")).text == "-"
    german = {"Accept-Language": "de"}
    assert [await hits("x", headers=german), await hits("x", headers=german)] == [[True, True, False], [True] * 3]
    assert (await ask(app, "/varied/x", headers=german)).text == "de"
    assert [await hits("x", method="HEAD"), await hits("x", method="HEAD")] == [[True] * 3] * 2
    await cache.invalidate("x")
    assert [await hits("x"), await hits("x"), await hits("y")] == [[False] * 3, [True] * 3, [True] * 3]
    for name, entry in backend._entries.items():
        entry.body = b"\xc1" if "record" in name else entry.body
    assert await hits("x") == [True] * 3  # at the endpoint
    for entry in backend._entries.values():
        entry.body = b"\xc1"
    assert [await hits("x"), await hits("x")] == [[False] * 3, [True] * 3]


# --- bad input -----------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


class Word(str, enum.Enum):  # noqa: UP042 - the old way is still written
    RED = "red"


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    *(({"namespace": one}, "namespace=") for one in ("a|b", "a b", "é", "x" * 101, None, 1, "a\n")),
    *(({"default_ttl": one}, "default_ttl=") for one in (0, -1, "60", True, float("nan"), float("inf"), [], 10**400)),
    ({"default_ttl": timedelta(seconds=-1)}, "default_ttl="),
    ({"default_ttl": timedelta(days=31)}, "max_ttl"),
    ({"default_ttl": 11, "max_ttl": timedelta(seconds=10)}, "max_ttl"),
    *(({"max_ttl": one}, "max_ttl=") for one in (0, -1, None, "1 day")),
    *(({"stale_while_revalidate": one}, "stale_while_revalidate=") for one in (-1, "1", float("inf"), None, False)),
    *(({"stale_if_error": one}, "stale_if_error=") for one in (-0.1, "1", float("nan"), 10**400)),
    *(({"jitter": one}, "jitter=") for one in (1, -0.1, "0.1", True, float("nan"))),
    *(({"early": one}, "early=") for one in (-1, float("inf"), "1", True, 10**400)),
]


@pytest.mark.parametrize(("settings", "named"), BAD_SETTINGS, ids=lambda one: str(one)[:40])
async def test_bad_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    """As the cache is made, naming the setting."""
    with pytest.raises(ConfigurationError, match=named):
        Cache(MemoryBackend(), **settings)


BAD_OPTIONS = [(one, named) for one, named in BAD_SETTINGS if not one.keys() & {"namespace", "default_ttl", "max_ttl"}]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        *((one, named) for one, named in BAD_OPTIONS if None not in one.values()),
        *(({"ttl": one}, "ttl=") for one in (0, -1, "60", True, float("nan"), timedelta(0), 10**400)),
        ({"ttl": timedelta(days=31)}, "max_ttl"),
    ],
    ids=lambda one: str(one)[:40],
)
async def test_bad_options_are_refused(cache: Cache, options: dict[str, Any], named: str) -> None:
    """At decoration, and before anything is computed."""
    with pytest.raises(ConfigurationError, match=named):
        cache.cached(name="f", **options)
    compute = Counter()
    with pytest.raises(ConfigurationError, match=named):
        await cache.get_or_set("k", compute, **options)
    assert not compute.calls


async def test_a_ttl_is_required() -> None:
    """By call or as default: the message offers both."""
    cache = Cache(MemoryBackend())
    compute = Counter()
    with pytest.raises(ConfigurationError, match=r"ttl=.*default_ttl"):
        await cache.get_or_set("k", compute)
    with pytest.raises(ConfigurationError, match=r"ttl=.*default_ttl"):
        cache.cached(name="f")
    with pytest.raises(ConfigurationError, match=r"ttl=.*default_ttl"):
        await cache.set("k", 1, since=await cache.lookup("k"))
    assert not compute.calls
    assert await cache.get_or_set("k", compute, ttl=timedelta(minutes=1)) == 1
    assert (await cache.explain("k")).fresh_for == pytest.approx(60, abs=5)


@pytest.mark.parametrize("key", ["", None, 1, b"k", "x" * 1025, "é" * 513, "\ud800", Colour.RED, Word.RED, ("k",)])
async def test_bad_keys_are_refused(cache: Cache, key: Any) -> None:
    """Everywhere, before anything is computed or looked up."""
    compute = Counter()

    async def build(keys: list[str]) -> dict[str, int]:
        raise AssertionError

    uses: list[Callable[[], Any]] = [
        lambda: cache.get_or_set(key, compute),
        lambda: cache.lookup(key),
        lambda: cache.get(key),
        lambda: cache.get_many([key]),
        lambda: cache.get_or_set_many([key], build),
        lambda: cache.delete(key),
        lambda: cache.explain(key),
        lambda: cache.set(key, 1, since=Miss(None)),
    ]
    for use in uses:
        with pytest.raises(InvalidKeyError, match="is not a key"):
            await use()
    assert not compute.calls


async def test_one_key_instead_of_many_is_refused(cache: Cache) -> None:
    """A string is a sequence of strings: not what was meant."""

    async def build(keys: list[str]) -> dict[str, int]:
        raise AssertionError

    with pytest.raises(ConfigurationError, match=r"\['key'\]"):
        await cache.get_many("key")
    with pytest.raises(ConfigurationError, match=r"\['key'\]"):
        await cache.get_or_set_many("key", build)


@pytest.mark.parametrize(
    "tag", ["", None, 1, b"t", "x" * 1025, "é" * 513, "\ud800", Colour.RED, Word.RED, ["t"], {"t"}]
)
async def test_bad_tags_are_refused(cache: Cache, tag: Any) -> None:
    """In an invalidation, in `tags=`, in `add_tags`."""
    compute = Counter()

    async def adds() -> None:
        add_tags("good", tag)

    uses: list[Callable[[], Any]] = [
        lambda: cache.invalidate(tag),
        lambda: cache.invalidate("good", tag, soft=True),
        lambda: cache.get_or_set("k", compute, tags=[tag]),
        lambda: cache.set("k", 1, since=Miss(None), tags=[tag]),
        lambda: cache.get_or_set("k", adds),
    ]
    for use in uses:
        with pytest.raises(InvalidTagError):
            await use()
    with pytest.raises(InvalidTagError):
        add_tags(tag)
    assert not compute.calls
    assert await cache.get("k") is None


async def test_no_tag_and_one_string_of_tags_are_refused(cache: Cache) -> None:
    """`invalidate()` names nothing; `tags="x"` would be one tag a letter."""
    with pytest.raises(InvalidTagError, match="got no tag"):
        await cache.invalidate()
    with pytest.raises(InvalidTagError, match="give a list"):
        await cache.get_or_set("k", Counter(), tags="product:1")


@pytest.mark.parametrize("since", [None, 1, (1, 2), object()])
async def test_since_is_what_lookup_gave(cache: Cache, since: Any) -> None:
    """Anything else than the answer of `lookup` is refused, and says where to get it."""
    with pytest.raises(ConfigurationError, match="lookup"):
        await cache.set("k", 1, since=since)


async def test_types_that_cannot_be_kept_are_refused(cache: Cache) -> None:
    """Before anything is computed."""
    compute = Counter()
    with pytest.raises(UnsupportedTypeError):
        await cache.get_or_set("k", compute, returns=object.__init__)
    assert not compute.calls


async def test_values_that_would_change_are_refused(cache: Cache) -> None:
    """With the path to what would not come back, and nothing stored; the next call computes."""
    for _ in range(2):
        with pytest.raises(ValueNotCacheableError) as caught:
            await cache.get_or_set("k", Counter({"rows": [1, {2}]}))
        assert "rows" in caught.value.path
    found = await cache.lookup("k")
    with pytest.raises(ValueNotCacheableError):
        await cache.set("k", object(), since=found)
    assert await cache.get("k") is None


async def test_nothing_is_logged_in_the_ordinary_course(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """Misses, hits, invalidations: no news."""
    caplog.set_level(logging.DEBUG, logger="asynctag")
    for _ in range(2):
        await cache.get_or_set("k", Counter(), tags=["x"])
        await cache.invalidate("x")
        await cache.delete("k")
        await cache.clear()
    assert not caplog.records


# --- renewals at the end of the program ------------------------------------------------------------------


async def test_a_cache_that_is_closed_before_a_renewal_began_leaves_no_flight(cache: Cache, clock: FakeClock) -> None:
    """A task that is cancelled before its first step never lands its flight by itself: who came later would wait."""
    compute = Counter()
    options: Any = {"ttl": 10, "stale_while_revalidate": 60}
    async with cache:
        await cache.get_or_set("k", compute, **options)
        clock.advance(11)
        assert await cache.get_or_set("k", compute, **options) == 1  # stale; its renewal has not begun
    assert cache._filling().flights._open == {}
    with anyio.fail_after(5):
        assert await cache.get_or_set("k", compute, **options) == 2


async def test_what_a_request_computes_is_renewed_while_it_is_there(cache: Cache, clock: FakeClock) -> None:
    """What `RequestCache.get_or_set` computes may need the request's session, which is gone afterwards."""
    cache = Cache(cache._filling().backend, default_ttl=10, stale_while_revalidate=60)
    request, compute = RequestCache(cache, None), Counter()
    async with cache:
        assert await request.get_or_set("k", compute) == 1
        clock.advance(11)
        assert await request.get_or_set("k", compute) == 2


async def test_a_refresh_without_a_backend_computes() -> None:
    """Reads fail open, and what `refresh` reads is no exception."""

    class Down(MemoryBackend):
        async def invalidate(self, tags: Any, *, soft: bool = False) -> None:
            raise InvalidationError("no answer")

    cache = Cache(Down(), default_ttl=60)

    @cache.cached(name="f")
    async def f() -> int:
        return 1

    assert await f.refresh() == 1
    await assert_miss(f)
