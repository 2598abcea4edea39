"""The decorator: what it returns, its keys, methods, tags, types, and what it refuses."""

import asyncio
import dataclasses
import datetime
import enum
import functools
import inspect
import types
import typing
import uuid
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import pytest

from asynctag import (
    Cache,
    ConfigurationError,
    TagTemplateError,
    UnstableArgumentError,
    UnsupportedTypeError,
    ValueNotCacheableError,
    add_tags,
)
from asynctag.backends.memory import MemoryBackend
from asynctag.expiry import renews_early
from asynctag.testing import FakeClock, assert_hit, assert_miss, assert_tags

if TYPE_CHECKING:
    from decimal import Decimal

pytestmark = pytest.mark.anyio

T = TypeVar("T")
module_cache = Cache(default_ttl=60)


@module_cache.cached
async def at_module_level(number: int, /, power: int = 2, *, plus: int = 0) -> int:
    """Its docstring."""
    calls.append(number)
    return int(number**power) + plus


@module_cache.cached(name="later")
async def annotated_later() -> "Later":
    return Later(1)


@dataclasses.dataclass
class Later:
    n: int


@module_cache.cached(name="never")
async def annotated_for_type_checkers() -> "Decimal":
    raise AssertionError


calls: list[Any] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend(clock: FakeClock) -> MemoryBackend:
    return MemoryBackend(clock=clock)


@pytest.fixture
def cache(backend: MemoryBackend) -> Cache:
    return Cache(backend, default_ttl=60)


# --- what it returns -----------------------------------------------------------------------------------


async def test_a_function_stays_a_plain_function() -> None:
    """An instance with `__call__` would be taken for an ASGI application, and lose what inspection finds."""
    assert inspect.isfunction(at_module_level)
    assert inspect.iscoroutinefunction(at_module_level)
    assert at_module_level.__name__ == "at_module_level"
    assert at_module_level.__doc__ == "Its docstring."
    assert list(inspect.signature(at_module_level).parameters) == ["number", "power", "plus"]
    assert inspect.iscoroutinefunction(at_module_level.uncached)


async def test_without_brackets_and_with(cache: Cache) -> None:
    """`@cache.cached` takes the cache's defaults."""
    with module_cache.override(MemoryBackend()):
        assert [await at_module_level(3), await at_module_level(3)] == [9, 9]
        assert calls == [3]


async def test_what_can_be_told_at_once_is_not_read(
    cache: Cache, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hit in memory takes a look, and no coroutine of the backend's."""

    @cache.cached(name="number")
    async def number() -> int:
        return 1

    assert await number() == 1
    monkeypatch.setattr(backend, "read", None)
    assert await number() == 1


async def test_one_key_however_a_call_is_spelled(cache: Cache) -> None:
    """By position, by name, by default."""
    with module_cache.override(MemoryBackend()):
        assert at_module_level.key(3).endswith("test_cached.at_module_level(3,2,0)")
        for spelling in (
            lambda: at_module_level(3),
            lambda: at_module_level(3, 2),
            lambda: at_module_level(3, plus=0, power=2),
        ):
            assert await spelling() == 9
        assert calls == [3]


async def use_it(use: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    found = use(*args, **kwargs)
    if inspect.isawaitable(found):
        await found


async def test_a_wrong_call_is_the_usual_error() -> None:
    """Too few arguments, unknown ones: `TypeError`, for every way in."""
    wrong: Any = at_module_level
    for use in (wrong, wrong.key, wrong.invalidate, wrong.refresh, wrong.explain):
        for args, kwargs in [((), {}), ((1, 2, 3), {}), ((1,), {"unknown": 1}), ((), {"number": 1})]:
            with pytest.raises(TypeError):
                await use_it(use, args, kwargs)


async def test_everything_that_hangs_on_it(cache: Cache, clock: FakeClock) -> None:
    """`key`, `invalidate`, `invalidate_all`, `refresh`, `uncached`, `explain`."""

    @cache.cached(name="f")
    async def f(n: int) -> int:
        calls.append(n)
        return len(calls)

    assert [await f(1), await f(2), await f(1)] == [1, 2, 1]
    assert await cache.get(f.key(1), returns=int) == 1
    await f.invalidate(1)
    assert [await f(1), await f(2)] == [3, 2]
    await f.invalidate_all()
    assert [await f(1), await f(2)] == [4, 5]
    clock.advance(30)
    assert await f.refresh(1) == 6
    assert await f(1) == 6
    assert (await f.explain(1)).fresh_for == 60
    assert (await f.explain(2)).fresh_for == 30
    assert await f.uncached(1) == 7
    assert await f(1) == 6
    assert await cache.delete(f.key(1)) is True
    await assert_miss(f, 1)


async def test_keys_of_a_namespace_are_the_caches_own(backend: MemoryBackend) -> None:
    """`.key()` is what the cache's `lookup`, `delete` and `explain` take."""
    cache = Cache(backend, namespace="shop", default_ttl=60)

    @cache.cached(name="f", tags=["x"])
    async def f(n: int) -> int:
        return n

    await f(1)
    assert f.key(1) == "f(1)"
    assert await cache.get("f(1)", returns=int) == 1
    await assert_hit(cache, "f(1)")


async def test_refresh_while_others_wait(cache: Cache) -> None:
    """A refresh computes, whatever is cached and whatever is under way; its result stays."""
    gates = [anyio.Event(), anyio.Event()]
    inside = [anyio.Event(), anyio.Event()]
    values: list[int] = []

    @cache.cached(name="f")
    async def f() -> int:
        number = len(calls)
        calls.append(number)
        inside[number].set()
        await gates[number].wait()
        return number

    async def call(what: Callable[[], Any]) -> None:
        values.append(await what())

    async with anyio.create_task_group() as group:
        group.start_soon(call, f)
        await inside[0].wait()
        group.start_soon(call, f.refresh)
        await inside[1].wait()
        gates[1].set()
        while not values:
            await anyio.lowlevel.checkpoint()
        gates[0].set()
    assert values == [1, 0]
    assert len(calls) == 2


# --- keys ----------------------------------------------------------------------------------------------


async def test_two_closures_do_not_share(cache: Cache) -> None:
    """They have one qualified name: a name of their own is required, and may be given once."""

    def make(number: int, **options: Any) -> Any:
        @cache.cached(**options)
        async def f() -> int:
            return number

        return f

    with pytest.raises(ConfigurationError, match=r"name="):
        make(1)
    one, two = make(1, name="f:1"), make(2, name="f:2")
    assert [await one(), await two(), await one()] == [1, 2, 1]
    with pytest.raises(ConfigurationError, match="is taken"):
        make(3, name="f:1")


async def test_the_same_closure_may_be_decorated_again(cache: Cache) -> None:
    """A factory that runs again, over the same things, makes the same function: no clash."""
    shared = [1]

    def make() -> Any:
        @cache.cached(name="f")
        async def f() -> list[int]:
            return shared

        return f

    assert [await make()(), await make()()] == [[1], [1]]


async def test_a_new_version_has_new_entries(cache: Cache) -> None:
    """`version=` marks a change of meaning; `invalidate_all` takes them all."""

    def make(version: Any) -> Any:
        async def f() -> str:
            return str(version)

        made = Cache(cache._filling().backend, default_ttl=60)
        return made.cached(name="f", version=version)(f)

    versions = [make(one) for one in (None, 1, 2, "2.1")]
    assert [await one() for one in versions] == ["None", "1", "2", "2.1"]
    await versions[0].invalidate_all()
    for one in versions:
        await assert_miss(one)
    for bad in (1.5, True, "a b", "", "x" * 51, [1]):
        with pytest.raises(ConfigurationError, match="version="):
            make(bad)


async def test_an_argument_without_a_stable_key(cache: Cache) -> None:
    """An error that names it and offers ways out, before anything is computed."""

    @cache.cached(name="f")
    async def f(session: object, n: int) -> int:
        raise AssertionError

    for use in (f, f.invalidate, f.refresh, f.explain):
        with pytest.raises(UnstableArgumentError, match=r"'session'.*exclude=.*key=") as caught:
            await use(object(), 1)
        assert "__cache_key__" in str(caught.value)


async def test_exclude(cache: Cache) -> None:
    """Excluded parameters do not count, and are handed over as they are."""

    @cache.cached(name="f", exclude={"session"})
    async def f(session: object, n: int) -> int:
        calls.append(session)
        return n

    one, two = object(), object()
    assert [await f(one, 1), await f(two, 1), await f(session=two, n=2)] == [1, 1, 2]
    assert calls == [one, two]
    with pytest.raises(ConfigurationError, match=r"'sesion'.*Did you mean 'session'"):
        cache.cached(name="g", exclude={"sesion"})(f.__wrapped__)


async def test_excluded_arguments_are_not_kept_for_a_renewal(cache: Cache, clock: FakeClock) -> None:
    """What does not count for the key is often bound to the request: renewed in the foreground, by who came."""

    @cache.cached(name="f", exclude={"session"}, stale_while_revalidate=60)
    async def f(session: str) -> str:
        return session

    async with cache:
        assert await f("first") == "first"
        clock.advance(61)
        assert await f("second") == "second"


async def test_key(cache: Cache) -> None:
    """A function of some parameters says what tells the entries apart."""

    @cache.cached(name="f", key=lambda user: user["id"])
    async def f(user: dict[str, Any], trace: object = None) -> Any:
        return user["name"]

    assert await f({"id": 1, "name": "a"}, object()) == "a"
    assert await f({"id": 1, "name": "b"}) == "a"
    assert await f({"id": 2, "name": "b"}) == "b"
    for bad in (lambda usr: 1, lambda user, /: 1, str.upper):
        with pytest.raises(ConfigurationError, match="key="):
            cache.cached(name="g", key=bad)(f.__wrapped__)

    async def awaited(user: Any) -> int:
        return 1

    with pytest.raises(ConfigurationError, match="is async"):
        cache.cached(name="h", key=awaited)(f.__wrapped__)


# --- methods -------------------------------------------------------------------------------------------


class Repository:
    def __init__(self, region: str) -> None:
        self.region = region

    def __cache_key__(self) -> str:
        return self.region

    @module_cache.cached(tags=["product:{number}"])
    async def product(self, number: int) -> str:
        """A product."""
        calls.append((self.region, number))
        return f"{self.region}:{number}"

    @module_cache.cached(exclude={"self"})
    async def shared(self, number: int) -> str:
        calls.append((self.region, number))
        return f"{self.region}:{number}"


class Special(Repository):
    async def product(self, number: int) -> str:  # type: ignore[override]
        return "special " + await super().product(number)


class Heir(Repository):
    pass


async def test_a_method_is_bound_for_everything() -> None:
    """The call, the key and each invalidation know whose it is."""
    with module_cache.override(MemoryBackend()):
        east, west, other_east = Repository("east"), Repository("west"), Repository("east")
        for _ in range(2):
            assert [await one.product(1) for one in (east, west, other_east)] == ["east:1", "west:1", "east:1"]
        assert len(calls) == 2
        assert east.product.key(1) == other_east.product.key(number=1) != west.product.key(1)
        assert east.product.key(1) == Repository.product.key(east, 1)
        await assert_tags(east.product, 1, tags={"product:1"})
        await east.product.invalidate(1)
        await assert_miss(east.product, 1)
        await assert_hit(west.product, 1)
        assert await east.product.refresh(1) == "east:1"
        assert await east.product.uncached(1) == "east:1"
        await assert_hit(east.product, 1)
        await west.product.invalidate_all()
        await assert_miss(east.product, 1)
        assert await Repository.product(east, 1) == "east:1"
        await assert_hit(east.product, 1)


async def test_a_method_looks_like_one() -> None:
    """Its names, its docstring, its object."""
    bound = Repository("east").product
    assert bound.__name__ == "product"
    assert "Repository.product of" in repr(bound)
    assert bound.__wrapped__.__self__.region == "east"
    assert Repository.product.__doc__ == "A product."


async def test_excluded_self_is_shared() -> None:
    """All objects share the entries: that is what was asked for."""
    with module_cache.override(MemoryBackend()):
        assert [await Repository(one).shared(1) for one in ("east", "west")] == ["east:1"] * 2
        await Repository("x").shared.invalidate(1)
        assert await Repository("west").shared(1) == "west:1"


async def test_methods_and_inheritance() -> None:
    """`super()` finds the method; an heir's entries are its own."""
    with module_cache.override(MemoryBackend()):
        assert await Special("east").product(1) == "special east:1"
        assert await Repository("east").product(1) == "east:1"
        assert await Heir("east").product(1) == "east:1"
        assert Heir("east").product.key(1) != Repository("east").product.key(1)


def refusal_in_a_class(make: Callable[[], object]) -> str:
    """Python 3.11 wraps what `__set_name__` raises."""
    with pytest.raises((ConfigurationError, RuntimeError)) as caught:
        make()
    error = caught.value if isinstance(caught.value, ConfigurationError) else caught.value.__cause__
    assert isinstance(error, ConfigurationError)
    return str(error)


async def test_a_method_needs_what_tells_its_objects_apart(cache: Cache) -> None:
    """Refused as the class is made, with the two ways out."""

    def make() -> object:
        class Plain:
            @cache.cached(name="plain")
            async def f(self) -> int:
                return 1

        return Plain

    said = refusal_in_a_class(make)
    assert "__cache_key__" in said
    assert "exclude={'self'}" in said


async def test_class_and_static_methods_are_refused(cache: Cache) -> None:
    """In both orders, with advice."""

    def over_static() -> object:
        class C:
            @cache.cached(name="a")
            @staticmethod
            async def f() -> int:
                return 1

        return C

    def over_class() -> object:
        class C:
            @cache.cached(name="b")  # type: ignore[arg-type]
            @classmethod
            async def f(cls) -> int:
                return 1

        return C

    def below_static() -> object:
        class C:
            @staticmethod
            @cache.cached(name="c")
            async def f(n: int) -> int:
                return 1

        return C.f(1)

    def below_class() -> object:
        class C:
            @classmethod
            @cache.cached(name="d")
            async def f(cls) -> int:
                return 1

        return C

    for make in (over_static, over_class, below_static, below_class):
        assert "module level" in refusal_in_a_class(make)


# --- what may be decorated -----------------------------------------------------------------------------


async def test_what_is_no_async_function_is_refused(cache: Cache) -> None:
    """At decoration, saying what to write."""

    def plain() -> int:
        return 1

    async def generator() -> AsyncIterator[int]:
        yield 1

    class Callable_:  # noqa: N801
        async def __call__(self) -> int:
            return 1

    refused: list[tuple[Any, str]] = [
        (plain, "async def"),
        (generator, "async generator"),
        (Callable_(), "async def"),
        (Callable_, "async def"),
        (functools.partial(generator), "async def"),
        (60, "ttl=60"),
    ]
    for what, said in refused:
        with pytest.raises(ConfigurationError, match=said):
            cache.cached(name="f")(what)


async def test_nothing_is_cached_twice(cache: Cache) -> None:
    """A decorator over a decorator is a mistake."""

    @cache.cached(name="f")
    async def f() -> int:
        return 1

    with pytest.raises(ConfigurationError, match="cached already"):
        cache.cached(name="g")(f)


@pytest.mark.parametrize("name", ["", "a|b", "a(b", "a@b", "x" * 201, "a\n", 1, b"f"])
async def test_bad_names_are_refused(cache: Cache, name: Any) -> None:
    """A name stands in keys, in a place of its own."""

    async def f() -> int:
        return 1

    with pytest.raises(ConfigurationError, match="name="):
        cache.cached(name=name)(f)


# --- tags ----------------------------------------------------------------------------------------------


class Size(enum.Enum):
    SMALL = "s"


async def test_templates(cache: Cache) -> None:
    """Text by type, defaults applied, braces doubled."""
    day, number = datetime.date(2024, 5, 17), uuid.UUID(int=1)

    @cache.cached(name="f", tags=["n:{n}", "s:{s}", "d:{d}", "u:{u}", "e:{e}", "{{n}}", "plain"])
    async def f(n: int, s: str, d: datetime.date, u: uuid.UUID, e: Size = Size.SMALL) -> int:
        return 1

    await f(1, "x", day, number)
    wanted = {"n:1", "s:x", "d:2024-05-17", f"u:{number}", "e:s", "{n}", "plain"}
    await assert_tags(f, 1, "x", day, number, tags=wanted)


async def test_bad_templates_are_refused_at_decoration(cache: Cache) -> None:
    """Unknown names, with the nearest; types without one safe text; anything but a name in braces."""

    async def f(product_id: int, price: float, flags: list[int], *more: int) -> int:
        return 1

    refused: list[tuple[Any, str]] = [
        (["x:{product}"], "product_id"),
        (["x:{price}"], "no one text"),
        (["x:{flags}"], "no one text"),
        (["x:{more}"], "any number of arguments"),
        (["x:{product_id.real}"], "more in braces"),
        (["x:{product_id!r}"], "more in braces"),
        (["x:{product_id:03}"], "more in braces"),
        (["x:{}"], "more in braces"),
        (["x:{0}"], "more in braces"),
        (["x:{product_id"], "malformed"),
        ("x:{product_id}", "give a list"),
        ([1], "give strings"),
        (1, "give a list"),
        (lambda other: ["x"], "'other'"),
    ]
    for tags, said in refused:
        with pytest.raises(TagTemplateError, match=said):
            cache.cached(name="f", tags=tags)(f)


async def test_tags_from_a_function(cache: Cache) -> None:
    """Of the parameters it names; a parameter without an annotation is checked when it is called."""

    @cache.cached(name="f", tags=lambda ids: [f"row:{one}" for one in ids])
    async def f(ids: list[int], other: int = 0) -> int:
        return 1

    await f([1, 2])
    await assert_tags(f, [1, 2], tags={"row:1", "row:2"})

    @cache.cached(name="g", tags=["n:{n}"])
    async def g(n: Any) -> int:
        return 1

    with pytest.raises(Exception, match="no one text"):
        await g(1.5)
    await assert_miss(g, 1.5)


# --- types ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: int
    y: float | None = None


async def test_values_come_back_as_annotated(cache: Cache) -> None:
    """Same type, equal, a hit as a miss."""
    value = {"a": (Point(1), {Size.SMALL}), "b": (Point(2, 0.5), set())}

    @cache.cached(name="f")
    async def f() -> dict[str, tuple[Point, set[Size]]]:
        return value

    for _ in range(2):
        found = await f()
        assert found == value
        assert type(found["a"][0]) is Point


async def test_returns_stands_for_the_annotation(cache: Cache) -> None:
    """And is what is decoded to."""

    @cache.cached(name="f", returns=list[Point])
    async def f():  # type: ignore[no-untyped-def]
        return [Point(1)]

    assert await f() == await f() == [Point(1)]


async def test_without_an_annotation_values_are_builtins(cache: Cache) -> None:
    """JSON-like ones; anything else is refused, and says what to do."""

    @cache.cached(name="f")
    async def f(value):  # type: ignore[no-untyped-def]
        return {"object": Point(1)} if value == "object" else [value, None, {"a": 1.5}]

    for _ in range(2):
        assert await f("x") == ["x", None, {"a": 1.5}]
        with pytest.raises(ValueNotCacheableError, match="annotate the return type"):
            await f("object")


async def test_an_annotation_may_be_resolved_later() -> None:
    """By the first call at the latest."""
    with module_cache.override(MemoryBackend()):
        for _ in range(2):
            assert await annotated_later() == Later(1)


async def test_an_annotation_that_cannot_be_resolved(cache: Cache) -> None:
    """A name under `TYPE_CHECKING` only: the first call says so, and offers `returns=`."""
    with pytest.raises(ConfigurationError, match=r"'Decimal'.*TYPE_CHECKING.*returns="):
        await annotated_for_type_checkers()


@pytest.mark.parametrize("annotation", [T, list[T], AsyncIterator[int], types.GeneratorType, Callable[[], int]])  # type: ignore[valid-type]
async def test_types_that_cannot_be_kept_are_refused_at_decoration(cache: Cache, annotation: Any) -> None:
    """Type variables, generators, functions."""

    async def f() -> Any:
        raise AssertionError

    f.__annotations__["return"] = annotation
    with pytest.raises(UnsupportedTypeError):
        cache.cached(name="f")(f)


async def test_a_value_of_another_type_is_refused(cache: Cache) -> None:
    """The caller learns it at once, not at the hit; nothing is stored."""

    @cache.cached(name="f")
    async def f() -> int:
        return typing.cast(int, "1")

    for _ in range(2):
        with pytest.raises(ValueNotCacheableError):
            await f()
    await assert_miss(f)


# --- expiry --------------------------------------------------------------------------------------------


async def test_options_override_the_defaults(backend: MemoryBackend) -> None:
    """Each by itself."""
    cache = Cache(backend, default_ttl=10, stale_while_revalidate=5, stale_if_error=7, inherit_ttl=False)

    async def f() -> int:
        return 1

    for number, (options, ends) in enumerate(
        [
            ({}, (10, 17)),
            ({"ttl": 20}, (20, 27)),
            ({"ttl": datetime.timedelta(minutes=1)}, (60, 67)),
            ({"stale_if_error": 0}, (10, 15)),
            ({"stale_if_error": 0, "stale_while_revalidate": 0}, (10, 10)),
            ({"jitter": 0.0, "early": 1.0}, (10, 17)),
        ]
    ):
        made: Any = cache.cached(name=f"f{number}", **options)(f)
        await made()
        explanation = await made.explain()
        assert (explanation.fresh_for, explanation.kept_for) == ends


async def test_early_renewal(backend: MemoryBackend, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What took long to compute is renewed by one of those who come shortly before its end."""
    cache, draws = Cache(backend, default_ttl=100), [0.0, 0.9999]
    monkeypatch.setattr(renews_early, "__defaults__", (lambda: draws.pop(0),))

    @cache.cached(name="f", early=1.0)
    async def f() -> int:
        clock.advance(5)
        calls.append(1)
        return len(calls)

    assert await f() == 1
    clock.advance(49)
    assert await f() == 1
    assert len(draws) == 2
    clock.advance(40)
    assert await f() == 1  # the dice said no
    assert await f() == 2  # and now yes
    assert not draws


# --- in the open ---------------------------------------------------------------------------------------


def test_each_event_loop_may_be_its_own() -> None:
    """A test client may give each request a loop of its own: entries and flights stand it."""
    cache = Cache(default_ttl=60)

    @cache.cached(name="f")
    async def f() -> int:
        calls.append(1)
        add_tags("x")
        return len(calls)

    async def twice() -> list[int]:
        async with anyio.create_task_group() as group:
            group.start_soon(f)
            group.start_soon(f)
        return [await f(), await f()]

    assert asyncio.run(twice()) == [1, 1]
    assert anyio.run(twice, backend="trio") == [1, 1]
    anyio.run(cache.invalidate, "x")
    assert anyio.run(twice) == [2, 2]
