"""Windows: what may be one, where they may stand, when they run, and what comes of it."""

import asyncio
import functools
import gc
import logging
import math
import typing
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, NewType

import anyio
import anyio.to_thread
import markupsafe
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from asynctag import Cache, ConfigurationError, Hit, LifecycleError, Window, WindowError, add_tags, no_store
from asynctag import windows as windows_module
from asynctag.backends.memory import MemoryBackend
from asynctag.cached import Cached
from asynctag.codec import Codec
from asynctag.failures import MAX_KINDS, Failures
from asynctag.placeholders import Placeholder
from asynctag.scope import current_scope
from asynctag.skeleton import Skeleton
from asynctag.testing import FakeClock, assert_hit, assert_miss, assert_tags, fake_clock
from asynctag.windows import WindowCall, side_by_side
from tests.test_cache import Remote
from tests.test_guarantees import Caller, Gate, settle
from tests.test_threads import in_threads
from tests.test_transactions import outside

pytestmark = pytest.mark.anyio

__all__ = ["fake_clock"]

#: Who is asking.
user: ContextVar[str] = ContextVar("user", default="nobody")


@pytest.fixture(params=[MemoryBackend, Remote])
def backend(request: pytest.FixtureRequest, fake_clock: FakeClock) -> MemoryBackend:
    """One that keeps values as they are, and one that keeps bytes."""
    made: MemoryBackend = request.param(clock=fake_clock)
    return made


@pytest.fixture
def cache(backend: MemoryBackend) -> Cache:
    return Cache(backend, default_ttl=60)


class Shop:
    """Windows on a cache, and how often each of them ran."""

    def __init__(self, cache: Cache) -> None:
        runs = self.runs = Counter[str]()
        self.cache = cache

        @cache.window(name="greeting")
        async def greeting(salute: str = "Hello") -> str:
            runs["greeting"] += 1
            await checkpoint()
            return f"{salute} <{user.get()}>"

        @cache.window(name="bold")
        async def bold() -> str:
            runs["bold"] += 1
            return markupsafe.Markup("<b>%s</b>") % user.get()

        @cache.window(name="cart")
        async def cart() -> dict[str, Any]:
            runs["cart"] += 1
            return {"of": user.get(), "items": [1, 2.5, None]}

        self.greeting, self.bold, self.cart = greeting, bold, cart

    def cached(
        self, make: Callable[[], Any], returns: Any = Any, name: str = "page", **options: Any
    ) -> Cached[[], Any]:
        """A cached function that returns what `make` does."""

        async def compute() -> Any:
            self.runs[name] += 1
            return make()

        return self.cache.cached(name=name, returns=returns, **options)(compute)


@pytest.fixture
def shop(cache: Cache) -> Shop:
    return Shop(cache)


async def as_user(name: str, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """What comes of `work` for a user."""

    token = user.set(name)
    try:
        return await work(*args)
    finally:
        user.reset(token)


def define(cache: Cache, result: Callable[[], Any], name: str = "w", **options: Any) -> Window[[], Any]:
    async def run() -> Any:
        return result()

    return cache.window(name=name, **options)(run)


# --- where it is called


async def test_elsewhere_it_is_an_ordinary_call(shop: Shop) -> None:
    """Awaited outside of what is cached, and within another window."""
    assert await shop.greeting() == "Hello <nobody>"
    assert await shop.greeting("Bye") == await shop.greeting(salute="Bye") == "Bye <nobody>"
    assert await shop.cart() == {"of": "nobody", "items": [1, 2.5, None]}
    nested = define(shop.cache, lambda: shop.greeting("Hi"))

    @shop.cache.window(name="outer")
    async def outer() -> str:
        return f"{await shop.greeting('Hi')}!"

    assert await shop.cached(lambda: f"{outer()}", str)() == "Hi <nobody>!"
    assert await (await nested()) == "Hi <nobody>"


async def test_elsewhere_it_has_no_timeout_and_no_fallback(cache: Cache) -> None:
    """As the function itself."""

    @cache.window(timeout=1e-9, fallback="-", name="w")
    async def broken() -> str:
        await checkpoint()
        raise OSError("down")

    with pytest.raises(OSError, match="down"):
        await broken()


IN_TEXT: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "f-string": lambda call: f"{call}",
    "padded": lambda call: f"{call:>10}",
    "format": lambda call: str.format("{}", call),
    "%": lambda call: "%s".__mod__(call),
    "call +": lambda call: call + "!",
    "+ call": lambda call: "Dear " + call,
    "bytes": bytes,
    "join of it": lambda call: "".join(call),
    "a template": lambda call: markupsafe.escape(call),
    "list": list,
}


@pytest.mark.parametrize("way", IN_TEXT.values(), ids=IN_TEXT)
async def test_elsewhere_it_is_no_text(shop: Shop, way: Callable[[Any], Any]) -> None:
    """A page that nobody fills would hold rubbish: said with what to do."""
    with pytest.raises(WindowError, match=r"greeting is put into text where nothing is cached.*: await it"):
        way(shop.greeting())


async def test_in_what_is_cached_it_is_not_awaited(shop: Shop) -> None:
    """What it returns would be everybody's: said with what to do. Nothing is stored, and nobody hangs."""

    async def compute() -> str:
        return await shop.greeting()

    page = shop.cache.cached(name="page")(compute)
    for _ in range(2):
        with pytest.raises(WindowError, match=r"greeting is awaited inside page\(\).* Place it, as text or as a value"):
            await page()
    await assert_miss(page)
    assert not shop.runs["greeting"]


async def test_after_the_computation_it_is_an_ordinary_call(shop: Shop) -> None:
    """For a task that outlived it; one that is still around counts."""
    gate, results = Gate(), []

    async def later() -> None:
        await gate()
        results.append(await shop.greeting())

    async with anyio.create_task_group() as group:

        async def compute() -> str:
            group.start_soon(later)
            return "page"

        assert await shop.cache.cached(name="page")(compute)() == "page"
        await gate.reached.wait()
        gate.go.set()
    assert results == ["Hello <nobody>"]


async def test_what_it_looks_like(shop: Shop) -> None:
    """In a log and to tools: its name, and the function's."""
    assert repr(shop.greeting) == "<window greeting>"
    assert repr(shop.greeting()) == "<call of <window greeting>>"
    assert shop.greeting.__name__ == "greeting"  # type: ignore[attr-defined]
    assert type(shop.greeting()) is WindowCall
    seen: list[Any] = []
    await shop.cached(lambda: seen.append(shop.greeting()), None)()
    assert type(seen[0]) is Placeholder
    assert isinstance(seen[0], str)


# --- what a value is with windows in it

Make = Callable[[Any, Any, Any], Any]

#: What is annotated, and how a value is made of what the windows greeting, bold and cart give.
VALUES: dict[str, tuple[Any, Make]] = {
    "f-string": (str, lambda greeting, bold, cart: f"<p>{greeting}, {greeting}</p>"),
    "whole": (str, lambda greeting, bold, cart: greeting),
    "join": (str, lambda greeting, bold, cart: " ".join(["a", greeting, str(bold)])),
    "bytes": (bytes, lambda greeting, bold, cart: b"<p>" + greeting.encode() + b"</p>"),
    "Markup": (markupsafe.Markup, lambda greeting, bold, cart: markupsafe.Markup("<p>%s</p>") % bold),
    "unannotated text": (Any, lambda greeting, bold, cart: f"{greeting}"),
    "unannotated value": (Any, lambda greeting, bold, cart: cart),
    "dict": (
        dict[str, Any],
        lambda greeting, bold, cart: {"a": cart, "b": [greeting, {"c": f"{greeting}!"}], "n": None},
    ),
    "unannotated": (Any, lambda greeting, bold, cart: {"a": [cart, 1, f"x{greeting}"], "n": 1.5}),
    "list": (list[dict[str, str]], lambda greeting, bold, cart: [{"a": greeting}, {}]),
    "tuple": (tuple[str, int], lambda greeting, bold, cart: (greeting, 1)),
}


@pytest.mark.parametrize(("returns", "make"), VALUES.values(), ids=VALUES)
async def test_a_value_is_what_plain_python_makes_of_it(shop: Shop, returns: Any, make: Make) -> None:
    """On a miss and on a hit, for everybody; the windows ran, and the function once."""
    page = shop.cached(lambda: make(shop.greeting(), shop.bold(), shop.cart()), returns)

    async def plain() -> Any:
        return make(await shop.greeting(), await shop.bold(), await shop.cart())

    for name in ("alice", "bob", "alice"):
        found, expected = await as_user(name, page), await as_user(name, plain)
        assert found == expected
        assert type(found) is type(expected)
    assert shop.runs["page"] == 1
    await assert_hit(page)


@pytest.mark.parametrize("cached_before", range(4))
@pytest.mark.parametrize(("returns", "make"), VALUES.values(), ids=VALUES)
async def test_nested(shop: Shop, returns: Any, make: Make, cached_before: int) -> None:
    """Handed on by two more cached functions, of which any may be there already: the same each way."""
    inner = shop.cached(lambda: make(shop.greeting(), shop.bold(), shop.cart()), returns, "inner")

    @shop.cache.cached(name="middle", returns=returns)
    async def middle() -> Any:
        return await inner()

    @shop.cache.cached(name="outer", returns=returns)
    async def outer() -> Any:
        return await middle()

    async def plain() -> Any:
        return make(await shop.greeting(), await shop.bold(), await shop.cart())

    for function in (inner, middle, outer)[:cached_before]:
        await as_user("carol", function)
    for name in ("alice", "bob"):
        found, expected = await as_user(name, outer), await as_user(name, plain)
        assert found == expected
        assert type(found) is type(expected)
    assert shop.runs["inner"] == 1


@pytest.mark.parametrize("cached_before", [False, True])
async def test_a_part_is_the_same_computed_and_found(shop: Shop, cached_before: bool) -> None:
    """What a computation gets of another that holds windows does not depend on whether that was there."""

    @shop.cache.cached(name="typed")
    async def typed() -> dict[str, str]:
        return {"whole": shop.bold(), "part": f"{shop.bold()}!", "text": f"{shop.bold()}"}

    @shop.cache.cached(name="untyped")
    async def untyped() -> Any:
        return {"whole": shop.bold(), "part": f"{shop.bold()}!", "text": f"{shop.bold()}"}

    @shop.cache.cached(name="page")
    async def page() -> dict[str, list[str]]:
        return {
            name: [type(part).__name__, str(markupsafe.escape(part))]
            for of, parts in (("typed", await typed()), ("untyped", await untyped()))
            for name, part in ((f"{of} {name}", part) for name, part in parts.items())
        }

    if cached_before:
        await typed()
        await untyped()
    assert await as_user("<alice>", page) == {
        "typed whole": ["str", "&lt;b&gt;&amp;lt;alice&amp;gt;&lt;/b&gt;"],
        "typed part": ["str", "&lt;b&gt;&amp;lt;alice&amp;gt;&lt;/b&gt;!"],
        "typed text": ["str", "&lt;b&gt;&amp;lt;alice&amp;gt;&lt;/b&gt;"],
        "untyped whole": ["Placeholder", "<b>&lt;alice&gt;</b>"],
        "untyped part": ["str", "&lt;b&gt;&amp;lt;alice&amp;gt;&lt;/b&gt;!"],
        "untyped text": ["Placeholder", "<b>&lt;alice&gt;</b>"],
    }


@pytest.mark.parametrize("cached_before", [0, 1, 2])
async def test_escaped_at_each_level(shop: Shop, cached_before: int) -> None:
    """What a page is escaped by, the window's text in it is escaped by."""
    plain = shop.cached(lambda: f"<i>{shop.greeting()}</i>", str, "plain")
    marked = shop.cached(lambda: markupsafe.Markup("<i>%s</i>") % shop.greeting(), markupsafe.Markup, "marked")

    @shop.cache.cached(name="outer")
    async def outer() -> markupsafe.Markup:
        return markupsafe.Markup("<p>%s %s</p>") % (await plain(), await marked())

    for function in (plain, marked)[:cached_before]:
        await function()
    for name in ("alice", "bob"):
        assert await as_user(name, outer) == (
            f"<p>&lt;i&gt;Hello &lt;{name}&gt;&lt;/i&gt; <i>Hello &lt;{name}&gt;</i></p>"
        )


async def test_a_page_may_leave_its_windows_out(shop: Shop) -> None:
    """What was placed and not used is not run."""
    page = shop.cached(lambda: shop.greeting() and "page", str)
    assert [await page(), await page()] == ["page", "page"]
    assert not shop.runs["greeting"]


# --- every way out


@asynccontextmanager
async def nothing(cache: Cache) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def disabled(cache: Cache) -> AsyncIterator[None]:
    with cache.disabled():
        yield


@asynccontextmanager
async def transaction(cache: Cache) -> AsyncIterator[None]:
    async with cache.transaction():
        yield


@asynccontextmanager
async def held(cache: Cache) -> AsyncIterator[None]:
    """While another's transaction holds the page's tag."""
    over = anyio.Event()

    async def hold(begun: anyio.Event) -> None:
        async with cache.transaction():
            await cache.invalidate("page")
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


@asynccontextmanager
async def opened(cache: Cache) -> AsyncIterator[None]:
    async with cache:
        yield
        await settle()


@asynccontextmanager
async def stale(cache: Cache) -> AsyncIterator[None]:
    clock = cache._filling().backend.clock
    assert isinstance(clock, FakeClock)
    clock.advance(61)
    async with cache:
        yield
        await settle()


async def by_function(page: Cached[[], Any], cache: Cache, compute: Callable[[], Awaitable[Any]]) -> Any:
    return await page()


async def by_refresh(page: Cached[[], Any], cache: Cache, compute: Callable[[], Awaitable[Any]]) -> Any:
    return await page.refresh()


async def by_uncached(page: Cached[[], Any], cache: Cache, compute: Callable[[], Awaitable[Any]]) -> Any:
    return await page.uncached()


async def by_get_or_set(page: Cached[[], Any], cache: Cache, compute: Callable[[], Awaitable[Any]]) -> Any:
    return await cache.get_or_set(page.key(), compute, tags=["page"])


async def by_get_or_set_many(page: Cached[[], Any], cache: Cache, compute: Callable[[], Awaitable[Any]]) -> Any:
    async def build(keys: list[str]) -> dict[str, Any]:
        return {key: await compute() for key in keys}

    found = await cache.get_or_set_many([page.key(), "another"], build, tags=["page"])
    assert found["another"] == found[page.key()]
    return found[page.key()]


async def by_get(page: Cached[[], Any], cache: Cache, compute: Callable[[], Awaitable[Any]]) -> Any:
    return await cache.get(page.key())


async def by_lookup(page: Cached[[], Any], cache: Cache, compute: Callable[[], Awaitable[Any]]) -> Any:
    found = await cache.lookup(page.key())
    assert isinstance(found, Hit)
    assert found.tags == {"page"}
    return found.value


async def by_get_many(page: Cached[[], Any], cache: Cache, compute: Callable[[], Awaitable[Any]]) -> Any:
    return (await cache.get_many([page.key(), "not there"]))[page.key()]


COMPUTING = [by_function, by_refresh, by_uncached, by_get_or_set, by_get_or_set_many]
LOOKING = [by_get, by_lookup, by_get_many]


def around_it(shop: Shop, find: Callable[[], Awaitable[Any]], name: str) -> Cached[[], Any]:
    """Another computation that uses what is found."""

    @shop.cache.cached(name=name)
    async def outer() -> Any:
        return {"page": await find(), "text": f"{shop.greeting()}"}

    return outer


@pytest.mark.parametrize(
    ("around", "way"),
    [
        *[(around, way) for around in (nothing, disabled, transaction, held, opened, stale) for way in COMPUTING],
        *[(around, way) for around in (nothing, transaction, opened) for way in LOOKING],
    ],
)
async def test_every_way_out_fills(shop: Shop, around: Callable[[Cache], Any], way: Any) -> None:
    """Whatever was asked, whether it was there or not, at first hand or in another computation, the value is filled."""
    cache, options = shop.cache, {"tags": ["page"], "while_leased": "serve_stale", "stale_while_revalidate": 60}

    async def compute() -> Any:
        return {"greeting": shop.greeting(), "cart": [shop.cart(), f"{shop.greeting('Bye')}!"]}

    for there in (False, True):
        page = cache.cached(name=f"page {there}", returns=Any, **options)(compute)
        find = functools.partial(way, page, cache, compute)
        outer = around_it(shop, find, f"around {there}")
        if not there and way in LOOKING:
            continue
        if there:
            await as_user("carol", page)
        async with around(cache):
            for name in ("alice", "bob", "alice"):
                expected = {
                    "greeting": f"Hello <{name}>",
                    "cart": [{"of": name, "items": [1, 2.5, None]}, f"Bye <{name}>!"],
                }
                assert await as_user(name, find) == expected
                assert await as_user(name, outer) == {"page": expected, "text": f"Hello <{name}>"}


async def test_set_in_a_computation(shop: Shop) -> None:
    """What is stored by hand may hold windows too, where they can be placed."""
    cache = shop.cache

    @cache.cached(name="outer")
    async def outer() -> str:
        found = await cache.lookup("k")
        await cache.set("k", {"a": shop.greeting()}, since=found)
        return "outer"

    await outer()
    for name in ("alice", "bob"):
        assert await as_user(name, cache.get, "k") == {"a": f"Hello <{name}>"}


async def test_those_who_join_a_flight(shop: Shop) -> None:
    """One computes; each of them gets the page as theirs."""
    gate = Gate()

    @shop.cache.cached(name="page")
    async def page() -> list[str]:
        shop.runs["page"] += 1
        await gate()
        return [shop.greeting()]

    names = ["alice", "bob", "carol"]
    async with anyio.create_task_group() as group:
        callers = [Caller(group, functools.partial(as_user, name, page)) for name in names]
        await gate.reached.wait()
        await settle()
        gate.go.set()
    assert [caller.value for caller in callers] == [[f"Hello <{name}>"] for name in names]
    assert shop.runs["page"] == 1
    assert shop.runs["greeting"] == 3


async def test_a_page_that_is_not_stored(shop: Shop) -> None:
    """Its windows are filled all the same, and for whoever is waiting."""

    def value() -> str:
        no_store()
        return f"{shop.greeting()}!"

    page = shop.cached(value, str)
    for name in ("alice", "bob"):
        assert await as_user(name, page) == f"Hello <{name}>!"
    assert shop.runs["page"] == 2


async def test_what_is_not_stored_and_cannot_be_filled(shop: Shop) -> None:
    """A value that no codec takes, with windows in it, is not handed out with rubbish in it; without any it is."""

    class Box:
        pass

    box = Box()
    for holds in (lambda: [box, shop.greeting()], lambda: [box, {"a": f"{shop.greeting()}!"}]):
        with pytest.raises(WindowError, match=r"the windows in what page.*\(\) returns cannot be filled: value.*Box"):
            await shop.cached(holds, Any, f"page {id(holds)}").uncached()
    without = shop.cached(lambda: [box, bool(shop.greeting())], Any, "without")
    assert await without.uncached() == [box, True]

    @shop.cache.cached(name="outer")
    async def outer() -> str:
        return f"{(await shop.cached(lambda: [box, shop.greeting()], Any, 'inner').uncached())[1]}!"

    assert await outer() == "Hello <nobody>!"


async def test_the_backend_does_not_answer(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Computed and filled without it."""
    from asynctag import BackendError

    async def down(*args: Any) -> Any:
        raise BackendError("no answer")

    backend: Any = shop.cache._filling().backend
    backend.read = backend.write = down
    backend.peek = lambda key: None
    page = shop.cached(lambda: [shop.greeting()])
    for name in ("alice", "bob"):
        assert await as_user(name, page) == [f"Hello <{name}>"]
    assert shop.runs["page"] == 2


async def test_instead_of_an_error(shop: Shop) -> None:
    """What was cached before is filled for whoever gets it."""
    clock: Any = shop.cache._filling().backend.clock
    broken: list[Exception] = []

    def value() -> str:
        if broken:
            raise broken[0]
        return f"{shop.greeting()}!"

    page = shop.cached(value, str, stale_if_error=60)
    await page()
    clock.advance(61)
    broken.append(OSError("down"))
    for name in ("alice", "bob"):
        assert await as_user(name, page) == f"Hello <{name}>!"


async def test_a_renewal_runs_no_window(shop: Shop) -> None:
    """In the background nobody is served."""
    clock: Any = shop.cache._filling().backend.clock
    page = shop.cached(lambda: f"{shop.greeting()} {shop.runs['page']}", str, stale_while_revalidate=60)
    async with shop.cache:
        assert await as_user("alice", page) == "Hello <alice> 1"
        clock.advance(61)
        assert await as_user("bob", page) == "Hello <bob> 1"
        await settle()
        assert (shop.runs["page"], shop.runs["greeting"]) == (2, 2)
        assert await as_user("alice", page) == "Hello <alice> 2"


# --- what it is placed with


async def test_arguments_are_the_functions(cache: Cache) -> None:
    """Positional, by keyword, by default, as it was defined; defaults are those of now."""
    calls: list[Any] = []

    @cache.window(name="w")
    async def w(a: int, b: str = "b", *, c: list[Any] | None = None, d: dict[str, float] = {}) -> str:  # noqa: B006
        calls.append((a, b, c, d))
        return "w"

    @cache.cached(name="page")
    async def page() -> str:
        return f"{w(1)}{w(2, 'x')}{w(a=3, c=[1, 'a', None, {'x': [True]}])}{w(4, d={'x': 1})}"

    for _ in range(2):
        assert await page() == "wwww"
        assert sorted(calls) == [
            (1, "b", None, {}), (2, "x", None, {}), (3, "b", [1, "a", None, {"x": [True]}], {}),
            (4, "b", None, {"x": 1.0}),
        ]  # fmt: skip
        calls.clear()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"a": object()}, "a is of type object"),
        ({"a": {1, 2}}, "a is of type set"),
        ({"a": b"x"}, "a is of type bytes"),
        ({"a": (1,)}, "a is of type tuple"),
        ({"a": math.nan}, "a is nan, which JSON does not have"),
        ({"a": [1, {"x": -math.inf}]}, "a[1]['x'] is -inf, which JSON does not have"),
        ({"a": 2**64}, "a is above 64 bits"),
        ({"a": [-(2**63) - 1]}, "a[0] is above 64 bits"),
        ({"a": {1: 2}}, "a has a key that is no text, 1"),
        ({"a": {"x": {"\ud800": 1}}}, "a['x'] has a key that is no text, '\\ud800'"),
        ({"a": "x\udfff"}, "a is 'x\\udfff', which holds half a surrogate pair"),
        ({"a": markupsafe.Markup("x")}, "a is of type Markup"),
        ({"a": functools.reduce(lambda inner, _: [inner], range(40), [])}, "is nested too deeply"),
    ],
)
async def test_arguments_are_json(cache: Cache, arguments: dict[str, Any], said: str) -> None:
    """Said with what is not, and where, and where the request's own come from; outside of what is cached too."""

    @cache.window(name="w")
    async def w(a: Any) -> str:
        return "w"

    @cache.cached(name="page")
    async def page() -> str:
        return w(**arguments)

    with pytest.raises(WindowError) as caught:
        await page()
    assert str(caught.value).startswith("w: ")
    assert said in str(caught.value)
    assert "what belongs to the request, it asks for when it is filled" in str(caught.value)
    with pytest.raises(WindowError):
        w(**arguments)


async def test_a_value_that_holds_itself(cache: Cache) -> None:
    """Is no JSON."""
    around: list[Any] = []
    around.append(around)
    w: Any = cache.window(name="w")(takes_anything)
    with pytest.raises(WindowError, match="nested too deeply"):
        w(around)


async def takes_anything(a: Any) -> str:
    return "w"


async def test_arguments_are_what_is_annotated(cache: Cache) -> None:
    """Said with the arguments and where."""

    @cache.window(name="w")
    async def w(a: int, b: list[str] | None = None, c: typing.Literal["x", "y"] = "x") -> str:
        return "w"

    call: Any = w
    for arguments, said in [
        ({"a": "1"}, "Expected `int`, got `str` - at `$.a`"),
        ({"a": True}, "Expected `int`, got `bool` - at `$.a`"),
        ({"a": 1, "b": ["x", 2]}, "Expected `str`, got `int` - at `$.b[1]`"),
        ({"a": 1, "c": "z"}, "Invalid enum value 'z' - at `$.c`"),
    ]:
        with pytest.raises(WindowError) as caught:
            call(**arguments)
        assert str(caught.value) == f"w is placed with {arguments!r}, which it does not take: {said}"
    for missing in ({}, {"a": 1, "d": 2}):
        with pytest.raises(TypeError):
            call(**missing)


async def test_a_window_as_an_argument(shop: Shop) -> None:
    """What it returns is not there yet: neither itself, nor text that holds it."""

    def page(make: Callable[[], Any]) -> Cached[[], Any]:
        return shop.cached(make, Any, f"page {id(make)}")

    with pytest.raises(WindowError, match="greeting: salute is the placeholder of bold"):
        await page(lambda: shop.greeting(shop.bold()))()
    with pytest.raises(WindowError, match="greeting: an argument holds the placeholder of a window"):
        await page(lambda: shop.greeting(f"<{shop.bold()}>"))()
    anything: Any = shop.cache.window(name="w")(takes_anything)
    with pytest.raises(WindowError, match=r"a\['x'\]\[0\] is the placeholder of bold"):
        await page(lambda: anything({"x": [shop.bold()]}))()
    with pytest.raises(WindowError, match="an argument holds the placeholder"):
        await page(lambda: anything({f"{shop.bold()}": 1}))()


async def test_a_window_in_a_key_or_a_tag(shop: Shop) -> None:
    """Each time it would be another one: never found again, or never invalidated."""
    cache = shop.cache

    @cache.cached(name="part", tags=["of:{name}"])
    async def part(name: str) -> str:
        return name

    async def many() -> Any:
        async def build(keys: list[str]) -> dict[str, str]:
            return dict.fromkeys(keys, "x")

        return await cache.get_or_set_many([f"{shop.greeting()}"], build)

    async def tagged() -> None:
        add_tags("fine", f"of:{shop.greeting()}")

    for compute, said in [
        (lambda: part(f"{shop.greeting()}"), "an argument or a tag holds the placeholder of a window"),
        (lambda: part.uncached(f"a {shop.greeting()}"), "an argument or a tag holds the placeholder of a window"),
        (lambda: cache.get_or_set(f"{shop.greeting()}", part), "an argument or a tag holds the placeholder"),
        (many, "an argument or a tag holds the placeholder of a window"),
        (tagged, "page 4: a tag holds the placeholder of a window, and what that returns is not there yet"),
    ]:
        page = cache.cached(name=f"page {4 if compute is tagged else id(compute)}")(awaiting(compute))
        for _ in range(2):
            with pytest.raises(WindowError) as caught:
                await page()
            assert said in str(caught.value).replace("page 4()", "page 4")
        await assert_miss(page)
    assert not cache._filling().flights._open


def awaiting(call: Callable[[], Awaitable[Any]]) -> Callable[[], Any]:
    async def compute() -> Any:
        return await call()

    return compute


async def test_a_window_of_another_backend(shop: Shop) -> None:
    """Those who read the page there do not know it: neither placed, nor in what another cache gives."""
    other = Cache(MemoryBackend(), default_ttl=60)
    theirs = define(other, lambda: "theirs", "theirs")

    @other.cached(name="part")
    async def part() -> str:
        return f"{theirs()}!"

    with pytest.raises(WindowError, match=r"theirs is a window of a cache on another backend than that of page\(\)"):
        await shop.cached(lambda: f"{theirs()}", str)()

    async def with_part() -> str:
        return await part()

    outer = shop.cache.cached(name="outer")(with_part)
    for _ in range(2):
        with pytest.raises(
            WindowError, match=r"a value with windows of a cache on another backend is used in outer\(\)"
        ):
            await outer()
    assert await part() == "theirs!"


async def test_a_window_of_another_cache_on_the_backend(cache: Cache, backend: MemoryBackend) -> None:
    """It is known by its namespace too; two of one name do not take each other's places."""
    other = Cache(backend, default_ttl=60, namespace="other")
    ours, theirs = define(cache, lambda: "ours"), define(other, lambda: "theirs")

    @cache.cached(name="page")
    async def page() -> str:
        return f"{ours()}, {theirs()}"

    @other.cached(name="around")
    async def around() -> str:
        return f"<{await page()}>, {theirs()}"

    for _ in range(2):
        assert await page() == "ours, theirs"
        assert await around() == "<ours, theirs>, theirs"


# --- what it may be


async def takes(*args: Any) -> str:
    return ""


async def takes_keywords(**kwargs: Any) -> str:
    return ""


async def takes_by_position(a: int, /) -> str:
    return ""


async def takes_a_set(a: set[int]) -> str:
    return ""


async def takes_an_object(a: "Shop") -> str:
    return ""


async def takes_keys(a: dict[int, str]) -> str:
    return ""


async def takes_either(a: list[int] | list[str]) -> str:
    return ""


async def generates() -> AsyncIterator[str]:
    yield ""


def is_not_async() -> str:
    return ""


class Methods:
    async def method(self) -> str:
        return ""

    @staticmethod
    async def static() -> str:
        return ""


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (is_not_async, "goes over an async function (async def), not over 'is_not_async'"),
        (generates, "goes over an async function (async def), not over 'generates'"),
        (functools.partial(takes_anything, 1), "goes over an async function"),
        (5, "not over 5"),
        (Methods.method, "Methods.method stands in a class"),
        (Methods.__dict__["static"], "goes over an async function (async def), not over <staticmethod"),
        (Shop, "not over 'Shop'"),
        (takes, "takes *args: Any: name the parameters"),
        (takes_keywords, "takes **kwargs: Any: name the parameters"),
        (takes_by_position, "takes a: int: name the parameters"),
        (takes_a_set, "takes a: set[int]: the parameters of a window are JSON"),
        (takes_an_object, "takes a: 'Shop': the parameters of a window are JSON"),
        (takes_keys, "takes a: dict[int, str]: the parameters of a window are JSON"),
        (takes_either, "its parameters cannot be told apart"),
    ],
)
def test_what_is_no_window(cache: Cache, function: Any, said: str) -> None:
    """Said as it is decorated, with what it is."""
    with pytest.raises(ConfigurationError) as caught:
        cache.window(name="w")(function)
    assert said in str(caught.value)
    assert not cache._windows


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": -1}, "timeout=-1"),
        ({"timeout": "1"}, "timeout='1'"),
        ({"timeout": math.inf}, "timeout=inf"),
        ({"timeout": math.nan}, "timeout=nan"),
        ({"fallback": object()}, "fallback is of type object: give text, Markup, or another JSON value"),
        ({"fallback": [b"x"]}, "fallback[0] is of type bytes"),
        ({"fallback": {"a": math.nan}}, "fallback['a'] is nan"),
    ],
)
def test_options_that_cannot_be_meant(cache: Cache, options: dict[str, Any], said: str) -> None:
    """Said with the value."""
    with pytest.raises(ConfigurationError) as caught:
        cache.window(name="w", **options)(takes_anything)
    assert said in str(caught.value)


def test_a_name_of_its_own(cache: Cache) -> None:
    """A function in a function needs one, and no two have the same on a cache."""

    async def local() -> str:
        return ""

    with pytest.raises(ConfigurationError, match="name="):
        cache.window(local)
    window = cache.window(name="w")(local)
    with pytest.raises(ConfigurationError, match=r"'w' is taken on this cache .* would fill each other's places"):
        cache.window(name="w")(takes_anything)
    with pytest.raises(ConfigurationError, match="<window w> is a window already"):
        cache.window(name="again")(window)  # type: ignore[arg-type]
    assert cache.window(name="w")(local).name == "w"  # defined again: a module that was loaded anew
    assert Cache().window(takes_anything).name == f"{__name__}.takes_anything"


Currency = NewType("Currency", str)


async def takes_much(
    a: Currency,
    b: typing.Annotated[int, msgspec.Meta(ge=0)],
    c: typing.Optional[list[dict[str, float | None]]] = None,  # noqa: UP045
    d: bool | None = None,
    e: object = None,
    f: list[Any] | None = None,
    g: "str" = "",
    h: dict[str, Any] | str = "",
    i=None,  # type: ignore[no-untyped-def]
) -> str:
    return f"{a}{b}{c}{d}{e}{f}{g}{h}{i}"


async def test_annotations_that_are_json(cache: Cache) -> None:
    """However they are written."""
    w: Any = cache.window(name="w")(takes_much)
    arguments = {
        "a": "EUR",
        "b": 1,
        "c": [{"x": 1.5}],
        "d": True,
        "e": {"x": [1]},
        "f": [None],
        "g": "g",
        "h": {},
        "i": [1],
    }
    assert await w(**arguments) == "".join(map(str, arguments.values()))
    with pytest.raises(WindowError, match=r"Expected `int` >= 0 - at `\$.b`"):
        w("EUR", -1)


async def test_attributes_of_the_function_are_kept(cache: Cache) -> None:
    """Whatever they are called."""

    async def function() -> str:
        return "w"

    function.name = function.timeout = function.cache = "mine"  # type: ignore[attr-defined]
    function.marked = True  # type: ignore[attr-defined]
    window: Any = cache.window(name="w", timeout=5)(function)
    assert (window.name, window.timeout, window.cache, window.marked) == ("w", 5, cache, True)
    assert await window() == "w"


def test_dependencies_without_the_integration(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that declares one is not called without it: said with what to import."""
    fastapi = pytest.importorskip("fastapi")
    monkeypatch.setattr(windows_module, "_injectors", [])

    async def by_default(name: str = fastapi.Depends(lambda: "alice")) -> str:
        return name

    async def by_annotation(name: typing.Annotated[str, fastapi.Depends(lambda: "alice")]) -> str:
        return name

    async def by_text(name: str) -> str:
        return name

    by_text.__annotations__["name"] = "typing.Annotated[str, Named]"
    monkeypatch.setitem(by_text.__globals__, "Named", fastapi.Depends(lambda: "alice"))
    for function in (by_default, by_annotation, by_text):
        with pytest.raises(
            ConfigurationError, match=r"w declares a dependency of FastAPI \(name\): import asynctag.integr"
        ):
            cache.window(name="w")(function)


async def test_an_unbound_cache() -> None:
    """That has to be bound says so where a window is placed; others are on memory."""
    cache = Cache(default_ttl=60, require_backend=True)
    w = define(cache, lambda: "w")
    other = Cache(default_ttl=60)
    with pytest.raises(LifecycleError):
        await other.cached(name="page")(returning(w))()
    memory = Cache(default_ttl=60)
    assert await memory.cached(name="page")(returning(define(memory, lambda: "w")))() == "w"


def returning(window: Window[[], Any]) -> Callable[[], Any]:
    async def page() -> str:
        return f"{window()}"

    return page


# --- when they run


def page_of(cache: Cache, *windows: Window[[], Any], name: str = "page") -> Cached[[], Any]:
    @cache.cached(name=name)
    async def page() -> Any:
        return [window() for window in windows]

    return page


async def test_side_by_side(cache: Cache) -> None:
    """Each of ten waits for the next one to have begun, the last for the first: on a miss, on a hit, of many values."""
    begun = [anyio.Event() for _ in range(10)]

    def ring(number: int) -> Window[[], Any]:
        async def run() -> int:
            begun[number].set()
            await begun[(number + 1) % 10].wait()
            return number

        return cache.window(name=f"w{number}")(run)

    windows = [ring(number) for number in range(10)]
    page = page_of(cache, *windows)
    for _ in range(2):
        with anyio.fail_after(10):
            assert await page() == list(range(10))
        begun[:] = [anyio.Event() for _ in range(10)]

    async def build(keys: list[str]) -> dict[str, Any]:
        return {key: windows[int(key)]() for key in keys}

    keys = [str(number) for number in range(10)]
    for find in (lambda: cache.get_or_set_many(keys, build), lambda: cache.get_many(keys)):
        with anyio.fail_after(10):
            assert await find() == {key: int(key) for key in keys}
        begun[:] = [anyio.Event() for _ in range(10)]


async def test_once_a_serve(shop: Shop) -> None:
    """However often it stands there with the same arguments, at whatever depth; with others, it is another."""
    inner = shop.cached(lambda: [shop.greeting(), f"{shop.greeting()}"], Any, "inner")

    @shop.cache.cached(name="page")
    async def page() -> Any:
        return [await inner(), shop.greeting(), f"{shop.greeting('Hello')} {shop.greeting('Bye')}", await inner()]

    for times in (1, 2, 3):
        await page()
        assert shop.runs["greeting"] == 3 * times  # by its default, as an argument, and another one

    async def build(keys: list[str]) -> dict[str, Any]:
        return dict.fromkeys(keys, shop.bold())

    await shop.cache.get_or_set_many(["a", "b"], build)
    await shop.cache.get_many(["a", "b"])
    assert shop.runs["bold"] == 2


async def test_in_the_callers_context(cache: Cache) -> None:
    """Context variables are those of who is served; what several set in theirs stays there."""
    seen: list[str] = []

    def run() -> str:
        seen.append(user.get())
        user.set("changed")
        return ""

    page = page_of(cache, define(cache, run, "a"), define(cache, run, "b"))
    user.set("alice")
    await page()
    assert seen == ["alice", "alice"]
    assert user.get() == "alice"


async def test_outside_of_every_computation(shop: Shop) -> None:
    """A window runs when the page is done: what it reads is no part of it."""
    seen: list[Any] = []
    w = define(shop.cache, lambda: seen.append(current_scope.get()) or "w")
    page = page_of(shop.cache, w)
    await page()
    await page()
    assert seen == [None, None]


async def test_a_value_of_its_own(cache: Cache) -> None:
    """What is served to one is not shared with the next, nor is the fallback."""

    def fail() -> Any:
        raise OSError("down")

    page = page_of(cache, define(cache, fail, fallback={"items": []}), define(cache, list, "empty"))
    for _ in range(3):
        first, second = await page()
        assert (first, second) == ({"items": []}, [])
        first["items"].append(1)
        second.append(1)


# --- those that fail


class BoomError(Exception):
    pass


class Abort(BaseException):
    pass


def failing(cache: Cache, error: BaseException, name: str = "failing", **options: Any) -> Window[[], Any]:
    async def run() -> Any:
        await checkpoint()
        raise error

    return cache.window(name=name, **options)(run)


@pytest.mark.parametrize("others", [0, 1, 5])
@pytest.mark.parametrize("error", [BoomError("down"), Abort("down")])
async def test_an_error_reaches_the_caller_as_it_was_raised(cache: Cache, error: BaseException, others: int) -> None:
    """No group around it; the others are ended. The page stays cached."""
    ended: list[int] = []

    def waiting(number: int) -> Window[[], Any]:
        async def run() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(number)

        return cache.window(name=f"waiting {number}")(run)

    page = page_of(cache, *(waiting(number) for number in range(others)), failing(cache, error))
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            await page()
        assert caught.value is error
        assert sorted(ended) == list(range(others))
        ended.clear()
    await assert_hit(page)


async def test_the_first_error_counts(cache: Cache) -> None:
    """What others raise as they are ended does not hide it."""

    async def raising() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("while it was ended")

    page = page_of(cache, cache.window(name="raising")(raising), failing(cache, BoomError("first")))
    for _ in range(2):
        with pytest.raises(BoomError, match="first"):
            await page()


@pytest.mark.parametrize("fallback", ["", "-", None, 0, {"a": [1]}, markupsafe.Markup("<i>-</i>")])
async def test_a_fallback(cache: Cache, fallback: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Served in its place, and the error is logged; the others are as ever."""
    page = page_of(cache, failing(cache, BoomError("down"), fallback=fallback), define(cache, lambda: "fine"))
    for _ in range(2):
        assert await page() == [fallback, "fine"]
    record = caplog.records[0]
    assert record.getMessage() == "the window failing failed: its fallback is served"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], BoomError)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


async def test_the_traceback_of_a_failure_with_a_fallback_is_logged_once_a_minute(
    cache: Cache, fake_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """For each window and type of exception; each other time is a line, however often a client has it fail."""
    errors: list[Exception] = []

    def define_failing(name: str) -> Window[[], Any]:
        async def fail() -> None:
            raise errors[-1]

        window = cache.window(name=name, fallback="-")(fail)
        window._failures.clock = fake_clock
        return window

    pages = [page_of(cache, define_failing(name), name=f"page {name}") for name in ("one", "two")]

    async def logged(number: int, error: Exception) -> list[tuple[bool, str]]:
        errors.append(error)
        caplog.clear()
        assert await pages[number]() == ["-"]
        return [(record.exc_info is not None, record.getMessage()) for record in caplog.records]

    one, two = "the window one failed: its fallback is served", "the window two failed: its fallback is served"
    for _ in range(2):
        assert await logged(0, BoomError("first")) == [(True, one)]
        for _ in range(3):
            fake_clock.advance(19)
            again = f"{one}, as after the last traceback: BoomError('again')"
            assert await logged(0, BoomError("again")) == [(False, again)]
        assert await logged(1, BoomError("first")) == [(True, two)]
        assert await logged(0, LookupError("other")) == [(True, one)]
        ((has_traceback, line),) = await logged(0, LookupError("\n" * 1000))
        assert not has_traceback
        assert len(line) < 300
        assert line.count("\n") == 0
        fake_clock.advance(60)


async def test_a_failure_that_cannot_be_told_has_its_fallback_all_the_same(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own text may fail. However many kinds there are, little is kept of them."""

    class UntoldError(Exception):
        def __str__(self) -> str:
            raise ValueError("not even this")

        __repr__ = __str__

    page = page_of(cache, failing(cache, UntoldError(), fallback="-"))
    for _ in range(2):
        assert await page() == ["-"]
    assert "as after the last traceback: <UntoldError instance" in caplog.records[1].getMessage()
    failures = Failures()
    for number in range(2 * MAX_KINDS):
        failures.warn("a window", BoomError(), which=str(number))
        assert len(failures._silent_until) <= MAX_KINDS


@pytest.mark.parametrize("ended_by", ["another's failure", "a cancellation"])
@pytest.mark.parametrize("raises", [False, True])
async def test_nothing_is_said_of_the_fallback_of_a_window_that_is_ended(
    cache: Cache, ended_by: str, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It has not failed, and nobody is served anything: as where a client goes away."""
    begun = anyio.Event()

    async def wait() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            if raises and ended_by == "another's failure":
                raise OSError("while it was ended")

    async def fail() -> None:
        await begun.wait()
        if ended_by == "a cancellation":
            await anyio.sleep_forever()
        raise BoomError

    page = page_of(cache, cache.window(name="waits", fallback="-")(wait), cache.window(name="fails")(fail))
    async with anyio.create_task_group() as group:
        caller = Caller(group, page)
        await begun.wait()
        if ended_by == "a cancellation":
            caller.cancel_scope.cancel()
    assert caplog.records == []


async def test_a_fallback_is_text_where_text_is(cache: Cache) -> None:
    """Escaped as what the window returns would be, unless it is Markup."""
    plain = failing(cache, BoomError(), "plain", fallback="<none>")
    marked = failing(cache, BoomError(), "marked", fallback=markupsafe.Markup("<none>"))
    number = failing(cache, BoomError(), "number", fallback=5)

    @cache.cached(name="page")
    async def page() -> markupsafe.Markup:
        return markupsafe.Markup("%s %s") % (plain(), marked())

    @cache.cached(name="wrong")
    async def wrong() -> str:
        return f"{number()}!"

    for _ in range(2):
        assert await page() == "&lt;none&gt; <none>"
        with pytest.raises(WindowError, match="number returned what cannot stand where it was placed: 5"):
            await wrong()


@pytest.mark.parametrize("others", [0, 2])
async def test_a_timeout(cache: Cache, others: int, caplog: pytest.LogCaptureFixture) -> None:
    """A window that takes longer fails the serve, or is its fallback; one without a timeout is waited for."""
    ended: list[str] = []

    async def slow() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("slow")
        return ""

    fine = [define(cache, lambda: "fine", f"fine {number}") for number in range(others)]
    strict = cache.window(timeout=1e-9, name="strict")(slow)
    page = page_of(cache, strict, *fine)
    for _ in range(2):
        with pytest.raises(
            TimeoutError, match="the window strict took longer than its timeout of 1e-09 s: give it a long"
        ):
            await page()
    lenient = cache.window(timeout=1e-9, fallback="-", name="lenient")(slow)
    page = page_of(cache, lenient, *fine, name="lenient page")
    for _ in range(2):
        assert await page() == ["-", *["fine"] * others]
    assert ended == ["slow"] * 4

    async def patient() -> str:
        for _ in range(50):
            await checkpoint()
        return "done"

    assert await page_of(cache, cache.window(timeout=None, name="patient")(patient), name="p")() == ["done"]


@pytest.mark.parametrize("count", [1, 3])
async def test_who_is_cancelled_ends_the_windows(cache: Cache, count: int) -> None:
    """None of them runs on; the fallback is not what a cancellation brings, and the page stays."""
    begun: list[int] = []
    ended: list[int] = []

    def waiting(number: int) -> Window[[], Any]:
        async def run() -> None:
            begun.append(number)
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(number)

        return cache.window(name=f"waiting {number}", fallback="-")(run)

    page = page_of(cache, *map(waiting, range(count)))
    for _ in range(2):
        async with anyio.create_task_group() as group:
            caller = Caller(group, page)
            while len(begun) < count:
                await checkpoint()
            caller.cancel_scope.cancel()
        assert caller.cancel_scope.cancelled_caught
        assert sorted(ended) == list(range(count))
        begun.clear()
        ended.clear()
    await assert_hit(page)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("others", [0, 1])
async def test_a_window_that_is_cancelled_by_itself(cache: Cache, others: int) -> None:
    """As by a task that it awaits: it is not served as if it had returned nothing, nor is its caller cancelled."""
    fine = [define(cache, lambda: "fine") for _ in range(others)]
    page = page_of(cache, failing(cache, asyncio.CancelledError("mine")), *fine)
    for _ in range(2):
        with pytest.raises(WindowError, match="the window failing was cancelled, by itself or by what it waits for"):
            await page()
    lenient = failing(cache, asyncio.CancelledError("mine"), "lenient", fallback="-")
    assert await page_of(cache, lenient, *fine, name="lenient page")() == ["-", *["fine"] * others]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_failure_that_nobody_waits_for_any_more(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """Who was cancelled in the moment in which a window failed leaves no complaint behind."""

    async def fail() -> None:
        caller.cancel_scope.cancel()
        raise BoomError("down")

    wait = cache.window(name="waits")(waiting_for_ever)
    page = page_of(cache, cache.window(name="fails")(fail), wait, name="cancelled")
    async with anyio.create_task_group() as group:
        caller = Caller(group, page)
    assert caller.cancel_scope.cancelled_caught
    gc.collect()
    assert not caplog.records


async def waiting_for_ever() -> None:
    await anyio.sleep_forever()


async def test_nobody_hangs_behind_windows(cache: Cache) -> None:
    """Whoever computed a page and waits for its windows keeps nobody from getting theirs."""
    gate = Gate()

    async def run() -> str:
        if user.get() == "slow":
            await gate()
            raise BoomError("down")
        return user.get()

    page = page_of(cache, cache.window(name="w")(run))
    async with anyio.create_task_group() as group:
        slow = Caller(group, functools.partial(as_user, "slow", page))
        await gate.reached.wait()
        assert await as_user("alice", page) == ["alice"]
        assert not cache._filling().flights._open
        gate.go.set()
    assert isinstance(slow.error, BoomError)


async def test_a_page_that_cannot_be_cut_out_lands_its_flight(shop: Shop) -> None:
    """Those who wait for it are told what its own caller is."""
    gate = Gate()

    @shop.cache.cached(name="page")
    async def page() -> Any:
        await gate()
        return {shop.greeting(): 1}

    async with anyio.create_task_group() as group:
        callers = [Caller(group, page) for _ in range(3)]
        await gate.reached.wait()
        await settle()
        gate.go.set()
    assert [type(caller.error) for caller in callers] == [WindowError] * 3
    assert not shop.cache._filling().flights._open


async def test_side_by_side_of_nothing() -> None:
    """No windows, no results."""
    assert await side_by_side([]) == []


# --- what cannot stand


async def test_what_does_not_fit(shop: Shop) -> None:
    """A result that cannot stand where its window was placed is an error of the serve: said with the window."""
    for returns, make in [
        (str, lambda: f"{shop.cart()}!"),
        (bytes, lambda: shop.cart().encode()),
        (markupsafe.Markup, lambda: markupsafe.Markup("<p>%s") % shop.cart()),
        (str, lambda: shop.cart()),
        (dict[str, str], lambda: {"a": shop.cart()}),
        (list[str], lambda: [shop.cart()]),
    ]:
        page = shop.cached(make, returns, f"page {id(make)}")
        for _ in range(2):
            with pytest.raises(WindowError, match="cart"):
                await page()
        await assert_hit(page)


async def test_where_none_can_stand(shop: Shop) -> None:
    """A key, a cut text, a number: said as the page is computed, and nothing is stored."""
    for returns, make, said in [
        (Any, lambda: {"x": [{shop.greeting(): 1}]}, "value['x'][0]: a window stands in a key: place it in a value"),
        (dict[str, int], lambda: {f"a {shop.greeting()}": 1}, "a window stands in a key"),
        (
            str,
            lambda: f"a page, {shop.greeting()}"[:40],
            "value: the placeholder of a window was cut or changed, near 'a page",
        ),
        (
            Any,
            lambda: [{"a": f"{shop.greeting()}"[5:-5]}],
            "value[0]['a']: the placeholder of a window was cut or changed",
        ),
        (str, lambda: shop.greeting()[:9], "the placeholder of greeting was cut"),
        (bytes, lambda: shop.greeting().encode()[4:], "was cut or changed"),
        (str, lambda: f"{shop.greeting()}".replace("&", "und"), "was cut or changed"),
    ]:
        page = shop.cached(make, returns, f"page {id(make)}")
        for _ in range(2):
            with pytest.raises(WindowError) as caught:
                await page()
            assert said in str(caught.value)
        await assert_miss(page)
    assert not shop.runs["greeting"]


async def test_a_placeholder_that_was_kept(shop: Shop) -> None:
    """From another computation it is refused, with whose it was; as text it is text, which nobody's window fills."""
    kept: list[Any] = []
    await shop.cached(lambda: kept.append(shop.greeting()), None, "first")()
    for returns, make in [(Any, lambda: kept[0]), (str, lambda: kept[0]), (dict[str, str], lambda: {"a": kept[0]})]:
        for place in (lambda: None, shop.bold):
            page = shop.cached(lambda place=place, make=make: (place(), make())[1], returns, f"{id(place)} {id(make)}")
            with pytest.raises(
                WindowError, match=r"a placeholder of greeting was kept from first\(\): place the window anew"
            ):
                await page()
    text = str(kept[0])
    page = shop.cached(lambda: f"{text} {shop.bold()}", str, "text")
    assert await page() == await page() == f"{text} <b>nobody</b>"


async def test_a_window_that_changed(cache: Cache) -> None:
    """A page in the cache that was placed with what it does not take any more is computed anew."""
    computed: list[int] = []

    async def before(a: str) -> str:
        return f"before {a}"

    async def after(a: int) -> str:
        return f"after {a}"

    window: Any = cache.window(name="w")(before)
    argument: Any = "x"

    @cache.cached(name="page")
    async def page() -> str:
        computed.append(1)
        return f"{window(argument)}!"

    assert await page() == "before x!"
    cache._windows.clear()
    window, argument = cache.window(name="w")(after), 1
    assert await page() == await page() == "after 1!"
    assert len(computed) == 2


# --- tags


async def test_the_tags_of_a_window_stay_out(shop: Shop) -> None:
    """What it reads and tags is nothing of the page, on a miss, on a hit, nested, in a transaction."""
    cache = shop.cache

    @cache.cached(tags=["user:{name}"], name="profile")
    async def profile(name: str) -> str:
        add_tags(f"late:{name}")
        return f"profile of {name}"

    @cache.window(name="w")
    async def w() -> str:
        add_tags("from the window")
        no_store()
        return await profile(user.get())

    page = shop.cached(lambda: f"{w()}!", str, tags=["page"])

    @cache.cached(name="outer", tags=["outer"])
    async def outer() -> str:
        return f"<{await page()}>"

    async with cache.transaction():
        assert await as_user("alice", outer) == "<profile of alice!>"
    for name in ("alice", "bob"):
        assert await as_user(name, outer) == f"<profile of {name}!>"
        assert await as_user(name, page) == f"profile of {name}!"
    await assert_tags(page, tags={"page"})
    await assert_tags(outer, tags={"page", "outer"})
    await cache.invalidate("user:alice")
    await assert_hit(page)
    await assert_hit(outer)
    await assert_miss(profile, "alice")
    await cache.invalidate("page")
    await assert_miss(page)
    await assert_miss(outer)


async def test_a_window_that_is_cached_itself(shop: Shop) -> None:
    """One decorator over the other: stored by itself, under its own tags, and invalidated by itself."""
    cache, runs = shop.cache, shop.runs

    @cache.window(name="stock")
    @cache.cached(tags=["stock:{product}"], ttl=30, name="stock")
    async def stock(product: int = 1) -> str:
        runs["stock"] += 1
        return f"{runs['stock']} left of {product}"

    page = shop.cached(lambda: f"{stock(5)}!", str)
    assert [await page(), await page(), await stock(5)] == ["1 left of 5!", "1 left of 5!", "1 left of 5"]
    await assert_tags(page, tags=())
    await cache.invalidate("stock:5")
    assert [await page(), await page()] == ["2 left of 5!", "2 left of 5!"]
    assert runs["page"] == 1
    await stock.invalidate(5)  # type: ignore[attr-defined]
    assert await page() == "3 left of 5!"


async def test_windows_behind_a_window(shop: Shop) -> None:
    """What a window gets from the cache is filled there, for whom it runs."""
    part = shop.cached(lambda: f"({shop.greeting()})", str, "part")

    @shop.cache.window(name="w")
    async def w() -> str:
        return await part()

    page = shop.cached(lambda: f"[{w()}]", str)
    for name in ("alice", "bob"):
        assert await as_user(name, page) == f"[(Hello <{name}>)]"
    assert (shop.runs["part"], shop.runs["page"]) == (1, 1)


# --- in whose computation they are placed


async def test_each_computation_has_placeholders_of_its_own(shop: Shop) -> None:
    """One after the other, also in one block or in a task that goes on; those within one share them."""
    seen: dict[str, list[str]] = {}

    async def place(of: str) -> None:
        inner = shop.cached(lambda: seen.setdefault(of, []).append(str(shop.greeting())), None, f"inner {of}")

        @shop.cache.cached(name=f"outer {of}")
        async def outer() -> None:
            seen.setdefault(of, []).append(str(shop.greeting()))
            async with shop.cache.transaction():
                await inner()

        await outer()

    await place("a")
    async with shop.cache.transaction():
        await place("b")
        await place("c")
        async with shop.cache.transaction():
            await place("d")
    nonces = {of: {text[:22] for text in texts} for of, texts in seen.items()}
    assert all(len(texts) == 2 and len(nonces[of]) == 1 for of, texts in seen.items())
    assert len(set.union(*nonces.values())) == 4


async def test_a_block_holds_no_windows(shop: Shop) -> None:
    """However long it goes on."""
    async with shop.cache.transaction() as transaction:
        for number in range(3):
            assert await shop.cached(lambda: f"{shop.greeting()}!", str, f"page {number}")() == "Hello <nobody>!"
        assert transaction.block.scope.places is None


@pytest.mark.parametrize("in_block", [False, True])
async def test_a_task_that_outlives_its_computation(shop: Shop, in_block: bool) -> None:
    """What it had begun before goes on, what it begins afterwards is its own: nothing of a placeholder is served."""
    gate, results = Gate(), []

    @shop.cache.cached(name="begun before")
    async def before() -> str:
        first = f"{shop.greeting()}"
        await gate()
        return f"{first} {shop.greeting('Bye')} {await after()}"

    @shop.cache.cached(name="begun after")
    async def after() -> str:
        return f"({shop.greeting()})"

    async def run() -> None:
        results.append(await before())
        results.append(await after())

    async def page_with_task(group: Any) -> str:
        group.start_soon(run)
        await gate.reached.wait()
        return f"{shop.greeting()}!"

    async with anyio.create_task_group() as group:
        page = shop.cache.cached(name="page", exclude={"group"})(page_with_task)
        if in_block:
            async with shop.cache.transaction():
                assert await page(group) == "Hello <nobody>!"
        else:
            assert await page(group) == "Hello <nobody>!"
        gate.go.set()
    assert results == ["Hello <nobody> Bye <nobody> (Hello <nobody>)", "(Hello <nobody>)"]


async def test_in_threads_of_a_computation(shop: Shop) -> None:
    """A worker thread places windows in the computation that entered it."""

    @shop.cache.cached(name="page")
    async def page() -> str:
        parts: list[str] = []

        async def part(number: int) -> None:
            parts.append(await anyio.to_thread.run_sync(lambda: f"{number}: {shop.greeting(str(number))}"))

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(part, number)
        return "; ".join(sorted(parts))

    for name in ("alice", "bob"):
        assert await as_user(name, page) == "; ".join(f"{number}: {number} <{name}>" for number in range(8))


# --- nobody gets another's


async def test_ten_thousand_serves_to_two_users(shop: Shop) -> None:
    """Through pages in pages, computed, found and invalidated meanwhile, in tasks side by side: to each their own."""
    inner = shop.cached(lambda: {"greeting": shop.greeting(), "cart": shop.cart()}, Any, "inner", tags=["inner"])

    @shop.cache.cached(name="outer", tags=["outer"])
    async def outer() -> Any:
        await checkpoint()
        return {"inner": await inner(), "text": f"{shop.greeting()}: {shop.greeting('Bye')}"}

    served = 0

    async def serve(name: str, times: int) -> None:
        nonlocal served
        user.set(name)
        other = {"alice": "bob", "bob": "alice"}[name]
        for number in range(times):
            found = str(await (outer() if number % 3 else inner()))
            assert other not in found
            assert found.count(f"<{name}>") == (3 if number % 3 else 1)
            served += 1
            if number % 50 == 0:
                await shop.cache.invalidate("inner" if number % 100 else "outer")

    each = 1000 if type(shop.cache._filling().backend) is MemoryBackend else 100
    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(serve, ["alice", "bob"][number % 2], each)
    assert served == 10 * each
    assert shop.runs["inner"] < served // 20


def test_users_in_threads_with_loops_of_their_own() -> None:
    """The same over one cache in eight threads, on asyncio and on trio by turns."""
    shop = Shop(Cache(MemoryBackend(), default_ttl=60))
    inner = shop.cached(lambda: [shop.greeting(), shop.cart()], Any, "inner", tags=["inner"])

    @shop.cache.cached(name="outer")
    async def outer() -> Any:
        await checkpoint()
        return {"inner": await inner(), "text": f"{shop.greeting()}"}

    def serve(name: str) -> Callable[[], Any]:
        async def run() -> int:
            user.set(name)
            for number in range(250):
                found = await outer()
                assert found == {
                    "inner": [f"Hello <{name}>", {"of": name, "items": [1, 2.5, None]}],
                    "text": f"Hello <{name}>",
                }
                if number % 25 == 0:
                    await shop.cache.invalidate("inner")
            return 250

        return run

    assert sum(in_threads(*[serve(f"user {number}") for number in range(8)])) == 2000


# --- text of users


def corpus(shop: Shop) -> list[str]:
    """What somebody might write who wants more than text."""
    shown: list[str] = []
    return [
        '<!--#include virtual="/admin" -->',
        '<esi:include src="http://evil/"/>',
        "<!--esi <esi:vars>$(HTTP_COOKIE)</esi:vars>-->",
        "{{ 7 * 7 }}",
        "{% window 'greeting' %}",
        "${7*7}",
        "<%= 7*7 %>",
        "#{7*7}",
        "cos\nsystem\n(S'id'\ntR.",
        "\x80\x04\x95",
        "\xc1\x93\xc4\x00",
        "|greeting",
        "greeting()",
        "2468024680246802468024&10000001357913579135791357913",
        "0" * 22 + "&1000000" + "1" * 22,
        "&amp;1000000",
        "\\u00261000000",
        "%261000000",
        "</script><script>alert(1)</script>",
        "' onclick='x",
        '"}, {"a": "',
        "\u2028",
        *shown,
    ]


async def old_placeholders(shop: Shop) -> list[str]:
    """Those of computations that are over, whole and in halves."""
    seen: list[str] = []
    for number in range(3):
        await shop.cached(lambda: seen.append(str(shop.greeting())), None, f"spy {number}")()
    halves = [part for text in seen for part in (text[:30], text[22:], text[:22], text[-22:], text[14:-14])]
    return [*seen, *halves, "".join(seen), seen[0][:22] + seen[1][22:]]


async def test_text_of_users_stays_text(shop: Shop) -> None:
    """Byte for byte, wherever it stands: in pages, keys, values, arguments and results; computed and found."""
    texts = [*corpus(shop), *await old_placeholders(shop)]

    @shop.cache.window(name="echo")
    async def echo(text: str) -> str:
        return text

    @shop.cache.cached(name="page")
    async def page(text: str) -> str:
        return f"{text}{shop.greeting()}{text}{echo(text)}{text}"

    @shop.cache.cached(name="data")
    async def data(text: str) -> bytes:
        return text.encode() + shop.greeting().encode() + text.encode() + echo(text).encode()

    @shop.cache.cached(name="value")
    async def value(text: str) -> Any:
        return {"a": shop.greeting(), text: text, "b": [{text: [text, echo(text), f"{text}{echo(text)}"]}]}

    @shop.cache.cached(name="marked")
    async def marked(text: str) -> markupsafe.Markup:
        return markupsafe.Markup("<p title='%s'>%s %s</p>") % (text, shop.greeting(), echo(text))

    @shop.cache.cached(name="all")
    async def everything(text: str) -> list[Any]:
        return [await page(text), await value(text), str(await marked(text))]

    for text in texts:
        for _ in range(2):
            greeting = "Hello <nobody>"
            expected = [
                f"{text}{greeting}{text}{text}{text}",
                {"a": greeting, text: text, "b": [{text: [text, text, f"{text}{text}"]}]},
            ]
            assert await page(text) == expected[0]
            assert await value(text) == expected[1]
            assert await data(text) == f"{text}{greeting}{text}{text}".encode()
            escaped = markupsafe.Markup("<p title='%s'>%s %s</p>") % (text, greeting, text)
            found = await marked(text)
            assert found.unescape() == escaped.unescape()
            assert all(found.count(one) == escaped.count(one) for one in "<>'\"")
            assert (await everything(text))[:2] == expected


async def test_bytes_of_users_stay_bytes(shop: Shop) -> None:
    """Skeletons, pickles and whatever else is not text."""
    taken: list[bytes] = [b"\xc1\x93\xc4\x00\xc4\x00\x91", b"\x80\x04\x95\x00.", b"\xd4\x05x", bytes(range(256))]
    for number, data in enumerate(taken):
        page = shop.cached(lambda data=data: data + shop.greeting().encode() + data, bytes, f"page {number}")
        alone = shop.cached(lambda data=data: (shop.greeting(), data)[1], bytes, f"alone {number}")
        value = shop.cached(lambda data=data: {"a": data, "b": shop.greeting()}, Any, f"value {number}")
        for _ in range(2):
            assert await page() == data + b"Hello <nobody>" + data
            assert await alone() == data
            assert await value() == {"a": data, "b": "Hello <nobody>"}


# --- values without windows


async def test_hits_without_windows_are_as_ever(shop: Shop) -> None:
    """Their entries have the codec itself, by which the decorator knows them at once; also beside windows."""
    cache = Cache(MemoryBackend(), default_ttl=60)
    shop = Shop(cache)
    plain = shop.cached(lambda: {"a": 1}, dict[str, int], "plain")
    beside = shop.cached(lambda: (shop.greeting(), {"a": 1})[1], dict[str, int], "beside")
    windowed = shop.cached(lambda: {"a": shop.greeting()}, dict[str, str], "windowed")
    for function in (plain, beside, windowed):
        await function()
    entries = {name: cache._filling().backend.peek(f"|k|{name}()") for name in ("plain", "beside", "windowed")}
    codecs = {name: entry.codec for name, entry in entries.items() if entry is not None}
    assert type(codecs["plain"]) is Codec
    assert codecs["beside"] is codecs["plain"]
    assert codecs["windowed"].codec is not codecs["windowed"]
    assert type(entries["windowed"].body) is Skeleton  # type: ignore[union-attr]
    calls: list[str] = []

    async def obtain(job: Any) -> Any:
        calls.append(job.name)
        return "by the long way"

    cache._obtain = obtain  # type: ignore[method-assign]
    assert await plain() == await beside() == {"a": 1}
    assert await windowed() == "by the long way"
    assert calls == ["windowed()"]


async def test_pages_beside_windows_are_cached_as_ever(shop: Shop) -> None:
    """Whatever else was placed in the same computation: values without windows are kept by the same rules."""

    @shop.cache.cached(name="number")
    async def number() -> int:
        return 2**63

    @shop.cache.cached(name="by tuples")
    async def by_tuples() -> dict[tuple[int, int], float]:
        return {(1, 2): math.inf}

    @shop.cache.cached(name="page")
    async def page() -> str:
        greeting = shop.greeting()
        return f"{greeting} {await number()} {await by_tuples()}"

    for _ in range(2):
        assert await page() == f"Hello <nobody> {2**63} {{(1, 2): inf}}"
    await assert_hit(number)
    await assert_hit(by_tuples)
