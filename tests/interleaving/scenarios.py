"""The scenarios: a few processes each, small enough that all their interleavings can be run.

They take caches and backends from the world alone, so that they run on any backend.
"""

from collections.abc import Awaitable, Callable
from functools import cache as once
from functools import partial
from typing import Any

from asynctag import Cache, add_tags, no_store
from asynctag.cache import Hit, Miss
from asynctag.scope import current_scope
from tests.interleaving.scheduler import Explored, explore_on_asyncio
from tests.interleaving.world import Build, Failed, World, in_memory, in_memory_of_two, stage

SCENARIOS: dict[str, Build] = {}
#: Those that are too large with every answer on its way as a step of its own.
LIGHT: set[str] = set()
#: Those that go another way on a server: time does not pass there, and clients hear later that a journal is lost.
OTHERWISE: set[str] = set()
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


def otherwise(build: Build) -> Build:
    OTHERWISE.add(name_of(build))
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


# --- transactions ------------------------------------------------------------------------------------


def committed(world: World, cache: Cache, row: str = "x", **options: Any) -> Callable[[], Awaitable[None]]:
    """Asks for a row through the cache; nothing that comes back may be uncommitted."""

    async def ask() -> str:
        value: str = await cache.get_or_set("k", lambda: world.row(row), tags=[row], **options)
        if int(value.partition("@")[2]) > world.rows[row]:
            world.execution.problem(f"got {value}, which is not committed")
        return value

    return partial(world.ask, ask)


def transaction(
    world: World, cache: Cache, row: str = "x", *, commits: bool = True, reads: bool = False
) -> Callable[[], Awaitable[None]]:
    """Changes a row in a transaction, and commits or rolls back.

    `reads`: it reads its own row through the cache, before it says what it changes.
    """

    async def read_own() -> str:
        await world.point(f"reads its own {row}")
        return f"{row}@99"

    async def change() -> None:
        try:
            async with cache.transaction():
                if reads:
                    await cache.get_or_set("k", read_own, tags=[row])
                await cache.invalidate(row)
                await world.point(f"{'commits' if commits else 'rolls back'} {row}")
                if not commits:
                    raise Failed
                world.rows[row] += 1
                version = world.rows[row]
        except Failed:
            return
        world.acknowledged[row] = max(world.acknowledged[row], version)

    return change


@light
def a_transaction_commits(world: World) -> None:
    """A transaction commits, and two readers come."""
    world.process("transaction", transaction(world, world.cache(0)))
    world.process("reader 1", committed(world, world.cache(1)), kind="reader")
    world.process("reader 2", committed(world, world.cache(1)), kind="reader")
    world.after(committed(world, world.cache(1)))


@light
def a_transaction_rolls_back(world: World) -> None:
    """A transaction that has read its own row rolls back."""
    world.before(lambda: world.cache(0).lookup("k"))
    world.process("transaction", transaction(world, world.cache(0), commits=False, reads=True))
    world.process("reader 1", committed(world, world.cache(0)), kind="reader")
    world.process("reader 2", committed(world, world.cache(0)), kind="reader")
    world.after(committed(world, world.cache(0)))


@light
def two_transactions(world: World) -> None:
    """Two transactions on one tag, one of which rolls back."""

    other = world.cache(1).transaction()

    async def begin() -> None:
        await other.__aenter__()
        await world.cache(1).invalidate("x")
        current_scope.set(None)

    world.before(begin)
    world.process("commits", transaction(world, world.cache(0)))
    world.process("rolls back", lambda: other.__aexit__(None, None, None))
    world.process("reader", committed(world, world.cache(1)))
    world.after(committed(world, world.cache(0)))


@otherwise
@light
def a_transaction_is_cancelled(world: World) -> None:
    """A transaction is cancelled at any moment."""
    cache = world.cache(0)
    world.process("transaction", transaction(world, cache), cancellable=True)
    world.process("reader", committed(world, cache))
    world.after(committed(world, cache))

    async def nothing_is_held() -> None:
        world.clock.now += 40  # nobody knows of its commit: it may be held for the lease's time
        await cache.invalidate("another")
        await cache.get_or_set("k", lambda: world.row("x"), tags=["x"])
        if not isinstance(await cache.lookup("k"), Hit):
            world.execution.problem("something is still held")

    world.after(nothing_is_held)


@light
def a_savepoint(world: World) -> None:
    """A savepoint holds a tag, and its transaction goes on."""
    cache = world.cache(0)

    async def change() -> None:
        async with cache.transaction():
            async with cache.transaction():
                await cache.invalidate("x")
            await world.point("commits x")
            world.rows["x"] += 1
        world.acknowledged["x"] = world.rows["x"]

    world.process("transaction", change)
    world.process("reader", committed(world, cache))
    world.after(committed(world, cache))


def snapshot(world: World, cache: Cache, *keys: str) -> Callable[[], Awaitable[None]]:
    """Reads a row through the cache, under several keys, in a repeatable-read transaction: always as it was first."""

    async def read() -> None:
        need = dict(world.acknowledged)
        async with cache.transaction():
            await world.point("its first statement")
            seen = f"x@{world.rows['x']}"
            if world.rows["x"] < need["x"]:
                world.execution.problem("a snapshot from before what it needs")
            for key in keys:
                value = await cache.get_or_set(key, lambda: _given_row(world, seen), tags=["x"])
                if value != seen:
                    world.execution.problem(f"got {value} in a snapshot of {seen}")

    return read


async def _given_row(world: World, seen: str) -> str:
    await world.point("reads the row in its snapshot")
    return seen


@light
def a_snapshot_and_a_transaction(world: World) -> None:
    """A repeatable-read transaction reads while another one changes the row."""
    cache = world.cache(0)
    world.before(lambda: cache.lookup("k"))  # a client that has seen nothing knows no stamp to begin with
    world.process("snapshot", snapshot(world, cache, "k"))
    world.process("transaction", transaction(world, cache))
    world.process("reader", committed(world, cache))
    world.after(committed(world, cache))


@light
def a_lease_is_lost(world: World) -> None:
    """The journal is lost, and with it the lease of a transaction that then commits."""
    cache = world.cache(0)

    async def change() -> None:
        async with cache.transaction():
            await cache.invalidate("x")
            await world.point("the journal is lost")
            await world.lose_journal()
            await world.point("commits x")
            world.rows["x"] += 1
        world.acknowledged["x"] = world.rows["x"]

    world.process("transaction", change)
    world.process("reader", committed(world, cache))
    world.after(committed(world, cache))


@otherwise
@light
def a_snapshot_and_the_journal(world: World) -> None:
    """The journal is lost, and with it a lease, while a repeatable-read transaction reads."""
    cache = world.cache(0)

    async def change() -> None:
        async with cache.transaction():
            await cache.invalidate("x")
            world.rows["x"] += 1
            await world.lose_journal()
        world.acknowledged["x"] = world.rows["x"]
        await committed(world, cache)()

    world.before(lambda: cache.lookup("k"))  # a client that has seen nothing knows no stamp to begin with
    world.process("snapshot", snapshot(world, cache, "k"))
    world.process("transaction", change)
    world.after(committed(world, cache))


@light
def a_computation_with_a_transaction(world: World) -> None:
    """A computation holds a transaction that rolls back, and others wait for it."""
    cache = world.cache(0)

    async def compute() -> str:
        try:
            async with cache.transaction():
                await cache.invalidate("x")
                value = f"x@99 of {world.caller()}"
                raise Failed
        except Failed:
            return value

    async def ask() -> None:
        value = await cache.get_or_set("page", compute)
        if not value.endswith(f" of {world.caller()}"):
            world.execution.problem(f"got {value}, which is another's")

    for number in (1, 2):
        world.process(f"asks {number}", ask)

    async def look() -> None:
        if isinstance(await cache.lookup("page"), Hit):
            world.execution.problem("what was built from a transaction that rolled back is stored")

    world.after(look)


@otherwise
@light
def a_holder_dies(world: World) -> None:
    """A transaction never ends, and its lease does; another one holds the same tag."""
    cache = world.cache(0)
    other = cache.transaction()

    async def begin() -> None:
        await other.__aenter__()
        await cache.invalidate("x")
        current_scope.set(None)

    async def die() -> None:
        await cache.transaction(lease=10).__aenter__()
        try:
            await cache.invalidate("x")
        finally:
            current_scope.set(None)
        await world.point("commits x and dies")
        world.rows["x"] += 1
        await world.point("the lease ends")
        world.clock.now += 20
        world.acknowledged["x"] = world.rows["x"]

    world.before(begin)
    world.process("transaction", die)
    world.process("another", lambda: other.__aexit__(None, None, None))
    world.process("reader", committed(world, cache))
    world.after(committed(world, cache))
    world.after(committed(world, cache))


@light
def served_while_it_is_held(world: World) -> None:
    """A transaction commits, and two readers are served what was there before it"""
    cache, served = world.cache(0), world.cache(1, while_leased="serve_stale")
    world.before(committed(world, served))
    world.process("transaction", transaction(world, cache))
    world.process("reader 1", committed(world, served), kind="reader")
    world.process("reader 2", committed(world, served), kind="reader")
    world.after(committed(world, served))


async def holding(cache: Cache) -> Callable[[], Awaitable[None]]:
    """A transaction that holds a tag from now on; what ends it."""
    block = cache.transaction()
    await block.__aenter__()
    await cache.invalidate("x")
    current_scope.set(None)

    async def end() -> None:
        await block.__aexit__(None, None, None)

    return end


def held_by_another(world: World, cache: Cache) -> None:
    """Another transaction holds the tag from the beginning, and changes nothing."""
    ends: list[Callable[[], Awaitable[None]]] = []

    async def begin() -> None:
        ends.append(await holding(cache))

    world.before(begin)
    world.process("another", lambda: ends[0]())


@light
def served_while_two_hold_it(world: World) -> None:
    """Another transaction holds the tag too, and a reader is served what was there before them"""
    cache, served = world.cache(0), world.cache(1, while_leased="serve_stale")
    world.before(committed(world, served))
    held_by_another(world, cache)
    world.process("transaction", transaction(world, cache))
    world.process("reader", committed(world, served))
    world.after(committed(world, served))


@light
def built_from_what_is_held(world: World) -> None:
    """A page is built from a value that is served as it was before a transaction"""
    served = world.cache(1, while_leased="serve_stale")
    world.before(committed(world, served))

    async def page() -> str:
        child: str = await served.get_or_set("k", lambda: world.row("x"), tags=["x"])
        return f"page of {child}"

    ask = partial(world.ask, lambda: served.get_or_set("page", page))
    world.process("transaction", transaction(world, world.cache(0)))
    world.process("reader", ask)
    world.after(ask)


@otherwise
@light
def served_while_a_holder_dies(world: World) -> None:
    """A transaction never ends, and its lease does; a reader is served what was there before"""
    cache, served = world.cache(0), world.cache(0, while_leased="serve_stale")
    world.before(committed(world, served))
    held_by_another(world, cache)

    async def die() -> None:
        await cache.transaction(lease=10).__aenter__()
        try:
            await cache.invalidate("x")
        finally:
            current_scope.set(None)
        await world.point("commits x and dies")
        world.rows["x"] += 1
        await world.point("the lease ends")
        world.clock.now += 20
        world.acknowledged["x"] = world.rows["x"]

    world.process("transaction", die)
    world.process("reader", committed(world, served))
    world.after(committed(world, served))
    world.after(committed(world, served))


def lagging(world: World, during: Any) -> None:
    """Two changes, each with a lag of its own; a reader reads from a replica, which has each at the end of its lag."""
    cache = world.cache(0)
    ends: list[float] = []  # of the lags of x@1, x@2

    def replicated() -> int:
        return max((version for version, end in enumerate(ends, 1) if end <= world.clock.now), default=0)

    async def from_replica() -> str:
        await world.point("reads row x from the replica")
        return f"x@{replicated()}"

    async def change(lag: float) -> None:
        world.rows["x"] += 1
        await cache._invalidate(["|t|x"], lag=cache._lag.changed(lag, during))
        ends.append(world.clock.now + lag)

    async def time_passes() -> None:
        for _ in range(2):
            await world.point("time passes")
            world.clock.now += 10
            world.acknowledged["x"] = max(world.acknowledged["x"], replicated())

    async def ask() -> None:
        for _ in range(2):
            await world.ask(lambda: cache.get_or_set("k", from_replica, tags=["x"]))

    world.before(lambda: change(10))
    world.process("writer", lambda: change(20))
    world.process("time", time_passes)
    world.process("reader", ask)
    world.after(ask)


@otherwise
@light
def a_replica_lags(world: World) -> None:
    """Two changes, and a replica that lags behind."""
    lagging(world, "bypass")


@otherwise
@light
def a_replica_lags_and_is_served(world: World) -> None:
    """Two changes, and a replica that lags behind and is served meanwhile."""
    lagging(world, "serve")
