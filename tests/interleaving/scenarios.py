"""The scenarios: a few processes each, small enough that all their interleavings can be run.

They take caches and backends from the world alone, so that they run on any backend.
"""

from collections.abc import Awaitable, Callable
from functools import cache as once
from functools import partial
from typing import Any

from asynctag import Cache, add_tags, no_store
from asynctag.cache import Hit, Miss
from tests.interleaving.scheduler import Explored, explore_on_asyncio
from tests.interleaving.world import Build, Failed, World, in_memory, in_memory_of_two, stage

SCENARIOS: dict[str, Build] = {}
#: Those that are too large with every answer on its way as a step of its own.
LIGHT: set[str] = set()
#: Those whose readers ask through two clients: these share no flights, where a backend has two.
APART: set[str] = set()


def name_of(build: Build) -> str:
    return (build.__doc__ or "").rstrip(".")


def scenario(build: Build) -> Build:
    SCENARIOS[name_of(build)] = build
    return build


def light(build: Build) -> Build:
    LIGHT.add(name_of(build))
    return scenario(build)


def apart(build: Build) -> Build:
    APART.add(name_of(build))
    return build


@once
def explored(name: str, *, clients: int = 1) -> Explored:
    """All interleavings of a scenario, in memory: run once for all tests that ask."""
    backends = in_memory if clients == 1 else in_memory_of_two
    return explore_on_asyncio(stage(name, SCENARIOS[name], backends, remote=name not in LIGHT))


def reader(world: World, cache: Cache, key: str = "k", row: str = "x", **options: Any) -> Callable[[], Awaitable[None]]:
    """Asks for a value made from one row and tagged with it."""
    options = {"tags": [row], **options}
    return partial(world.ask, lambda: cache.get_or_set(key, lambda: world.row(row), **options))


def writer(world: World, cache: Cache, row: str = "x", *, soft: bool = False) -> Callable[[], Awaitable[None]]:
    return partial(world.commit, row, lambda: cache.invalidate(row, soft=soft), soft=soft)


def parent(world: World, cache: Cache, child_row: str = "x", **options: Any) -> Callable[[], Awaitable[None]]:
    """Asks for a value made from a cached child."""

    async def compute() -> str:
        child: str = await cache.get_or_set("child", lambda: world.row(child_row), tags=[child_row], **options)
        return f"page of {child}"

    return partial(world.ask, lambda: cache.get_or_set("parent", compute, **options))


# --- fills and invalidations ----------------------------------------------------------------------


@apart
@scenario
def fill_and_invalidate(world: World) -> None:
    """Two readers and a writer."""
    world.process("writer", writer(world, world.cache(0)))
    world.process("reader 1", reader(world, world.cache(1)), kind="reader")
    world.process("reader 2", reader(world, world.cache(0)), kind="reader")
    world.after(reader(world, world.cache(1)))


@scenario
def two_writers(world: World) -> None:
    """A reader and two writers."""
    world.process("writer 1", writer(world, world.cache(0)), kind="writer")
    world.process("writer 2", writer(world, world.cache(1)), kind="writer")
    world.process("reader", reader(world, world.cache(0)))
    world.after(reader(world, world.cache(1)))


@light
def join_after_invalidation(world: World) -> None:
    """Three readers and a writer: flights are joined, and followed by others."""
    world.process("writer", writer(world, world.cache(0)))
    for number in (1, 2, 3):
        world.process(f"reader {number}", reader(world, world.cache(0)), kind="reader")
    world.after(reader(world, world.cache(1)))


def late_tag(world: World, cache: Cache) -> Callable[[], Awaitable[None]]:
    async def compute() -> str:
        await world.point("reads row x")
        value = world.row_now("x")
        await world.point("adds the tag x")
        add_tags("x")
        return value

    return partial(world.ask, lambda: cache.get_or_set("k", compute))


@apart
@scenario
def a_late_tag(world: World) -> None:
    """A tag is added after the row was read."""
    world.process("writer", writer(world, world.cache(0)))
    world.process("reader 1", late_tag(world, world.cache(0)), kind="reader")
    world.process("reader 2", late_tag(world, world.cache(1)), kind="reader")
    world.after(late_tag(world, world.cache(0)))


@apart
@light
def other_tags(world: World) -> None:
    """The tags of a value are others than they were in the version before."""

    async def compute() -> str:
        value = await world.row("x")
        add_tags("x")
        if value == "x@0":
            return value
        add_tags("y")
        return f"{value} {await world.row('y')}"

    def ask(cache: Cache) -> Callable[[], Awaitable[None]]:
        return partial(world.ask, lambda: cache.get_or_set("k", compute))

    async def write() -> None:
        await writer(world, world.cache(1))()
        await world.point("writes row y")
        await writer(world, world.cache(1), row="y")()

    world.before(ask(world.cache(0)))
    world.process("writer", write)
    world.process("reader 1", ask(world.cache(0)), kind="reader")
    world.process("reader 2", ask(world.cache(1)), kind="reader")
    world.after(ask(world.cache(0)))


@apart
@scenario
def delete_and_fill(world: World) -> None:
    """A key without tags is deleted while it is computed."""
    cache = world.cache(0)
    world.process("deleter", partial(world.commit, "x", lambda: cache.delete("k")))
    world.process("reader 1", reader(world, world.cache(0), tags=[]), kind="reader")
    world.process("reader 2", reader(world, world.cache(1), tags=[]), kind="reader")
    world.after(reader(world, world.cache(1), tags=[]))


@scenario
def delete_under_a_parent(world: World) -> None:
    """A child is deleted while its parent is computed."""
    cache = world.cache(0)

    async def compute() -> str:
        child: str = await cache.get_or_set("child", lambda: world.row("x"))
        return f"page of {child}"

    ask = partial(world.ask, lambda: cache.get_or_set("parent", compute))
    world.process("deleter", partial(world.commit, "x", lambda: cache.delete("child")))
    world.process("reader", ask)
    world.after(ask)


@light
def clear_a_namespace(world: World) -> None:
    """A namespace is cleared while something is computed in it, and used outside it."""
    shop, site = world.cache(0, namespace="shop"), world.cache(0)

    async def compute() -> str:
        child: str = await shop.get_or_set("child", lambda: world.row("x"))
        return f"page of {child}"

    ask = partial(world.ask, lambda: site.get_or_set("parent", compute))
    world.process("clearer", partial(world.commit, "x", shop.clear))
    world.process("reader 1", ask)
    world.process("reader 2", reader(world, shop, key="child", tags=[]))
    world.after(ask)


@light
def clear_everything(world: World) -> None:
    """All is cleared while something is computed in a namespace."""
    shop, site = world.cache(0, namespace="shop"), world.cache(1)
    world.process("clearer", partial(world.commit, "x", site.clear))
    world.process("reader 1", reader(world, shop, tags=[]), kind="reader")
    world.process("reader 2", reader(world, shop, tags=[]), kind="reader")
    world.after(reader(world, shop, tags=[]))


@apart
@light
def the_journal_is_lost(world: World) -> None:
    """The journal is lost while something is computed, and with it an invalidation."""
    cache = world.cache(0)

    async def lose() -> None:
        await cache.invalidate("x")
        await world.point("the journal is lost")
        await world.lose_journal()

    world.process("writer", partial(world.commit, "x", lose))
    world.process("reader 1", reader(world, world.cache(0)), kind="reader")
    world.process("reader 2", reader(world, world.cache(1)), kind="reader")
    world.after(reader(world, world.cache(1)))


# --- nesting --------------------------------------------------------------------------------------


@light
def a_child_changes(world: World) -> None:
    """The row of a child changes while its parent is computed."""
    cache = world.cache(0)
    world.process("writer", writer(world, world.cache(1)))
    world.process("reader 1", parent(world, cache), kind="reader")
    world.process("reader 2", parent(world, cache), kind="reader")
    world.after(parent(world, cache))
    world.after(reader(world, cache, key="child"))


@apart
@light
def a_child_is_hit(world: World) -> None:
    """A parent is computed from a child that is cached already."""
    cache = world.cache(0)
    world.before(reader(world, cache, key="child"))
    world.process("writer", writer(world, world.cache(1)))
    world.process("reader 1", parent(world, cache), kind="reader")
    world.process("reader 2", parent(world, world.cache(1)), kind="reader")
    world.after(parent(world, cache))


@light
def a_child_is_joined(world: World) -> None:
    """A parent is computed from a child that another task computes."""
    cache = world.cache(0)
    world.process("reader of the child", reader(world, cache, key="child"))
    world.process("reader of the parent", parent(world, cache))
    world.process("writer", writer(world, world.cache(1)))
    world.after(parent(world, cache))


@light
def a_failing_child(world: World) -> None:
    """A parent is built from the failure of its child, as "not found" is."""
    cache = world.cache(0)

    async def child() -> str:
        raise Failed(await world.row("x"))

    async def compute() -> str:
        try:
            return str(await cache.get_or_set("child", child, tags=["x"]))
        except Failed as error:
            return f"without {error}"

    ask = partial(world.ask, lambda: cache.get_or_set("parent", compute))
    world.process("writer", writer(world, world.cache(1)))
    world.process("reader of the child", partial(world.ask, lambda: cache.get_or_set("child", child, tags=["x"])))
    world.process("reader of the parent", ask)
    world.after(ask)


# --- flights --------------------------------------------------------------------------------------


@light
def the_leader_is_cancelled(world: World) -> None:
    """A leader with two followers is cancelled."""
    cache = world.cache(0)
    world.process("leader", reader(world, cache), cancellable=True)
    world.process("follower 1", reader(world, cache), kind="follower")
    world.process("follower 2", reader(world, cache), kind="follower")
    world.after(reader(world, cache))


@light
def leader_cancelled_and_a_writer(world: World) -> None:
    """A leader is cancelled, and a writer comes."""
    cache = world.cache(0)
    world.process("leader", reader(world, cache), cancellable=True)
    world.process("writer", writer(world, world.cache(1)))
    world.process("follower", reader(world, cache))
    world.after(reader(world, cache))


@light
def any_is_cancelled(world: World) -> None:
    """A follower is cancelled, also while it waits."""
    cache = world.cache(0)
    world.process("follower", reader(world, cache), cancellable=True)
    world.process("leader", reader(world, cache))
    world.process("another", reader(world, cache))
    world.after(reader(world, cache))


@light
def a_parent_is_cancelled(world: World) -> None:
    """A parent is cancelled in its child, which others wait for."""
    cache = world.cache(0)
    world.process("reader of the parent", parent(world, cache), cancellable=True)
    world.process("reader of the child", reader(world, cache, key="child"))
    world.process("writer", writer(world, world.cache(1)))
    world.after(parent(world, cache))


@scenario
def errors_are_shared(world: World) -> None:
    """A computation fails: its error goes to those who came before it began."""
    cache = world.cache(0)

    async def compute() -> str:
        raise Failed(await world.row("x"))

    world.process("writer", writer(world, world.cache(1)))
    for number in (1, 2):
        ask = partial(world.ask, lambda: cache.get_or_set("k", compute, tags=["x"]))
        world.process(f"reader {number}", ask, kind="reader")


@light
def nothing_is_stored(world: World) -> None:
    """A computation is not to be stored: its value is its own caller's."""
    cache = world.cache(0)

    async def compute() -> str:
        value = await world.row("x")
        no_store()
        return f"{value} for {world.caller()}"

    async def ask() -> None:
        value = await cache.get_or_set("k", compute, tags=["x"])
        if not value.endswith(f" for {world.caller()}"):
            world.execution.problem(f"got what was not to be stored: {value!r}")

    for number in (1, 2, 3):
        world.process(f"reader {number}", partial(world.ask, ask))

    async def look() -> None:
        if isinstance(await cache.lookup("k"), Hit):
            world.execution.problem("what was not to be stored is stored")

    world.after(look)


@light
def flights_that_cross(world: World) -> None:
    """Two computations ask for each other's keys."""
    cache = world.cache(0)

    def crossing(own: str, other: str) -> Callable[[], Awaitable[None]]:
        async def compute() -> str:
            return str(await cache.get_or_set(other, lambda: world.row(other), tags=[other]))

        return partial(world.ask, lambda: cache.get_or_set(own, compute))

    world.process("reader 1", crossing("x", "y"))
    world.process("reader 2", crossing("y", "x"))
    world.process("writer", writer(world, world.cache(1)))
    world.after(reader(world, cache, key="x"))
    world.after(reader(world, cache, key="y", row="y"))


def reader_of_many(world: World, cache: Cache, *rows: str) -> Callable[[], Awaitable[None]]:
    async def build(keys: list[str]) -> dict[str, str]:
        await world.point(f"reads rows {', '.join(keys)}")
        return {key: world.row_now(key) for key in keys}

    async def ask() -> str:
        found = await cache.get_or_set_many(rows, build, tags=lambda key: [key])
        if list(found) != list(rows):
            world.execution.problem(f"asked for {rows}, got {list(found)}")
        return " ".join(found.values())

    return partial(world.ask, ask)


@light
def many_crosswise(world: World) -> None:
    """Several keys at once, in opposite orders."""
    cache = world.cache(0)
    world.process("writer", writer(world, world.cache(1)))
    world.process("reader of x and y", reader_of_many(world, cache, "x", "y"))
    world.process("reader of y and x", reader_of_many(world, cache, "y", "x"))
    world.after(reader_of_many(world, cache, "x", "y"))


@light
def many_and_a_writer(world: World) -> None:
    """Several keys at once, one of them alone, and a writer."""
    cache = world.cache(0)
    world.process("reader of x and y", reader_of_many(world, cache, "x", "y"))
    world.process("reader of x", reader(world, cache, key="x"))
    world.process("writer", writer(world, world.cache(1)))
    world.after(reader_of_many(world, cache, "x", "y"))


@light
def many_is_cancelled(world: World) -> None:
    """A caller of several keys is cancelled, and another waits for some of them."""
    cache = world.cache(0)
    world.process("reader of x and y", reader_of_many(world, cache, "x", "y"), cancellable=True)
    world.process("reader of y and x", reader_of_many(world, cache, "y", "x"))
    world.after(reader_of_many(world, cache, "x", "y"))


def one_waits_for_many_flights(world: World) -> None:
    """A caller of several keys, and flights whose stores are refused: by its schedule alone, it is too large."""
    cache = world.cache(0)
    world.process("many", reader_of_many(world, cache, "x"))
    for number in (1, 2, 3):
        world.process(f"writer {number}", writer(world, cache), kind="writer")
        world.process(f"reader {number}", reader(world, cache, key="x"), kind="reader")


# --- stale on purpose --------------------------------------------------------------------------------


def fresh_page(world: World, cache: Cache) -> Callable[[], Awaitable[None]]:
    """What is served as fresh knows of the soft invalidations too."""

    async def look() -> str:
        found = await cache.lookup("parent")
        return found.value if isinstance(found, Hit) else "a miss"

    return partial(world.ask, look, fresh=True)


@light
def a_stale_child(world: World) -> None:
    """A child is softly invalidated under its parent."""
    cache = world.cache(0, stale_while_revalidate=100)
    world.open_caches()
    world.before(reader(world, cache, key="child"))
    world.process("soft writer", writer(world, world.cache(1), soft=True))
    world.process("reader", parent(world, cache))
    world.process("reader of what is fresh", fresh_page(world, cache))
    world.after(fresh_page(world, cache))


@light
def a_child_is_softened_in_flight(world: World) -> None:
    """A child is softly invalidated while one task computes it and another builds from it."""
    world.remote = True  # the row is on its way for a while, though the cache's answers are not
    cache = world.cache(0, stale_while_revalidate=100)
    world.process("soft writer", writer(world, world.cache(1), soft=True))
    world.process("reader of the child", reader(world, cache, key="child"))
    world.process("reader of the parent", parent(world, cache))
    world.after(fresh_page(world, cache))


@scenario
def soft_then_hard(world: World) -> None:
    """A soft invalidation after a hard one, of the same tag."""
    cache = world.cache(0, stale_while_revalidate=100)
    world.open_caches()
    world.before(reader(world, cache))
    world.process("writer", writer(world, world.cache(1)))
    world.process("soft writer", lambda: cache.invalidate("x", soft=True))
    world.process("reader", reader(world, cache))
    world.after(reader(world, cache))


def expired_before(world: World, cache: Cache, **options: Any) -> None:
    async def expire() -> None:
        await reader(world, cache, **options)()
        world.clock.now += 150

    world.before(expire)


@scenario
def renewal_in_the_foreground(world: World) -> None:
    """A stale entry is renewed by its callers, and a writer comes."""
    cache = world.cache(0, stale_while_revalidate=100)
    expired_before(world, cache)
    world.process("writer", writer(world, world.cache(1)))
    world.process("reader 1", reader(world, cache), kind="reader")
    world.process("reader 2", reader(world, cache), kind="reader")
    world.after(reader(world, cache))


@scenario
def renewal_in_the_background(world: World) -> None:
    """A stale entry is served while it is renewed, and a writer comes."""
    cache = world.cache(0, stale_while_revalidate=100)
    world.open_caches()
    expired_before(world, cache)
    world.process("writer", writer(world, world.cache(1)))
    world.process("reader 1", reader(world, cache), kind="reader")
    world.process("reader 2", reader(world, cache), kind="reader")
    world.after(reader(world, cache))


@scenario
def fallback_and_invalidate(world: World) -> None:
    """A computation fails, and falls back on what is stale, and a writer comes."""
    cache = world.cache(0, stale_if_error=100)
    expired_before(world, cache)

    async def fail() -> str:
        raise Failed(await world.row("x"))

    ask = partial(world.ask, lambda: cache.get_or_set("k", fail, tags=["x"]))
    world.process("writer", writer(world, world.cache(1)))
    world.process("reader 1", ask, kind="reader")
    world.process("reader 2", ask, kind="reader")
    world.after(ask)


@light
def lookup_and_set(world: World) -> None:
    """A value is looked up, made and set, the form without a computation."""
    cache = world.cache(0)

    async def look_and_set() -> str:
        found = await cache.lookup("k")
        if isinstance(found, Hit):
            return str(found.value)
        assert isinstance(found, Miss)
        value = await world.row("x")
        await cache.set("k", value, since=found, tags=["x"])
        return value

    world.process("writer", writer(world, world.cache(1)))
    world.process("reader 1", partial(world.ask, look_and_set))
    world.process("reader 2", reader(world, cache))
    world.after(partial(world.ask, look_and_set))
