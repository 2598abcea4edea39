"""Transactions: nobody is served what is not committed, nor, after the end, anything from before."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import nullcontext
from contextvars import Context
from typing import Any

import anyio
import pytest

from asynctag import Cache, Cause, ConfigurationError, Hit, InvalidationError, LifecycleError, Miss, add_tags
from asynctag.backends.memory import MemoryBackend
from asynctag.lag import Lag
from asynctag.testing import FakeClock, assert_hit, assert_miss, fake_clock
from asynctag.transaction import MAX_HELD, NOT_KNOWN, Options, Transaction
from tests.test_contract import Handle
from tests.told import Told, backend, cache

__all__ = ["backend", "cache", "fake_clock"]

pytestmark = pytest.mark.anyio

LEVELS: list[Any] = ["read uncommitted", "read committed", "repeatable read", "serializable"]


@pytest.fixture
def rows() -> dict[str, str]:
    """What everybody outside a transaction reads."""
    return {"x": "x@0", "y": "y@0"}


@pytest.fixture
def read(cache: Cache, rows: dict[str, str]) -> Callable[..., Awaitable[str]]:
    """Reads a row through the cache, tagged with its name; `view`: what a transaction sees instead."""

    async def read(row: str = "x", view: dict[str, str] | None = None, **options: Any) -> str:
        async def compute() -> str:
            return (rows if view is None else view)[row]

        value: str = await cache.get_or_set(row, compute, tags=[row], **options)
        return value

    return read


Read = Callable[..., Awaitable[str]]


async def outside(work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """What comes of `work`, run in a context of its own: as by somebody who has nothing to do with the caller."""
    done: list[Any] = []

    async def run() -> None:
        done.append(await work(*args))

    async with anyio.create_task_group() as group:
        Context().run(group.start_soon, run)
    return done[0]


async def fail(cache: Cache, *steps: Callable[[], Awaitable[object]], error: type[BaseException] = KeyError) -> None:
    """Take some steps in a transaction that fails."""
    with pytest.raises(error):
        await _fail(cache, steps, error)


async def _fail(cache: Cache, steps: Iterable[Callable[[], Awaitable[object]]], error: type[BaseException]) -> None:
    async with cache.transaction():
        for step in steps:
            await step()
        raise error


def kept_back(transaction: Transaction) -> dict[str, Any]:
    """What it holds to store it at its end."""
    assert transaction._entered is not None
    return transaction._entered[0].held


async def cause(cache: Cache, key: str = "x") -> Cause | None:
    """Why what is stored under a key is no hit; None for a hit."""
    explained = await cache.explain(key)
    return None if explained.hit else explained.cause


async def is_held_for(seconds: float, cache: Cache, read: "Read", clock: FakeClock) -> None:
    """What was held goes on being so, and counts as invalidated at the end of that time."""
    clock.advance(seconds - 1)
    await read()
    assert await cause(cache) is Cause.LEASED
    clock.advance(2)
    await read()  # its store makes an invalidation of the lease
    await read()
    await assert_hit(cache, "x")


# --- what is invalidated ---------------------------------------------------------------------------


async def test_a_tag_is_held_at_once_and_invalidated_at_the_end(cache: Cache, read: Read, rows: dict[str, str]) -> None:
    """From before the commit on nobody is served, and nobody's store counts; after the end all is new."""
    assert await read() == "x@0"
    async with cache.transaction():
        await cache.invalidate("x")
        explained = await cache.explain("x")
        assert explained.cause is Cause.LEASED
        assert "tag x is held by a transaction" in str(explained)
        assert await outside(read) == "x@0"  # computed: nothing is committed yet
        assert await cause(cache) is Cause.LEASED
        rows["x"] = "x@1"
        assert await outside(read) == "x@1"
    assert await cause(cache) is Cause.INVALIDATED
    assert await read() == "x@1"
    await assert_hit(cache, "x")


async def test_what_was_read_before_the_commit_is_not_stored_after_the_end(cache: Cache, rows: dict[str, str]) -> None:
    """A computation that was under way meanwhile has read the old row."""
    inside, over = anyio.Event(), anyio.Event()

    async def slow() -> str:
        value = rows["x"]
        inside.set()
        await over.wait()
        return value

    async def reader() -> None:
        assert await cache.get_or_set("x", slow, tags=["x"]) == "x@0"

    async with anyio.create_task_group() as group:
        async with cache.transaction():
            await cache.invalidate("x")
            Context().run(group.start_soon, reader)
            await inside.wait()
            rows["x"] = "x@1"
        over.set()
    await assert_miss(cache, "x")


@pytest.mark.parametrize("ends", ["commit", "error"])
async def test_what_is_not_committed_is_served_to_nobody(cache: Cache, read: Read, ends: str) -> None:
    """Computed in the block from its own row, it is nobody else's, whatever the end."""
    with pytest.raises(KeyError) if ends == "error" else nullcontext():
        async with cache.transaction():
            await cache.invalidate("x")
            assert await read(view={"x": "x@mine"}) == "x@mine"
            assert await outside(read) == "x@0"
            if ends == "error":
                raise KeyError
    assert await read() == "x@0"


async def test_what_is_computed_before_the_first_invalidation_is_not_stored_either(cache: Cache, read: Read) -> None:
    """A block that has changed anything stores nothing: it may have read its own rows before it said so."""
    async with cache.transaction() as transaction:
        assert await read("y", view={"y": "y@mine"}) == "y@mine"
        assert kept_back(transaction)
        await cache.invalidate("x")
        assert await read("y", view={"y": "y@mine"}) == "y@mine"
        assert not kept_back(transaction)
    await assert_miss(cache, "y")


async def test_each_call_is_one_question_and_the_end_is_one(cache: Cache, backend: Told) -> None:
    """However many tags; and a block that invalidates nothing asks nothing."""
    async with cache.transaction():
        pass
    assert backend.asked == []
    async with cache.transaction():
        await cache.invalidate(*(f"row:{number}" for number in range(100)))
        await cache.invalidate("x", "y")
    assert backend.asked == ["lease", "lease", "release"]


async def test_everything_that_invalidates_holds(cache: Cache, rows: dict[str, str]) -> None:
    """Keys, functions, namespaces, and softly: from the call on to the end, and hard."""

    @cache.cached(name="product", tags=["x"], stale_while_revalidate=100)
    async def product(number: int) -> str:
        return rows["x"]

    changes: list[Callable[[], Awaitable[object]]] = [
        lambda: cache.delete(product.key(1)),
        lambda: product.invalidate(1),
        product.invalidate_all,
        cache.clear,
        lambda: cache.invalidate("x", soft=True),
    ]
    for change in changes:
        await product(1)
        await assert_hit(product, 1)
        async with cache.transaction():
            await change()
            assert (await product.explain(1)).cause is Cause.LEASED
        assert (await product.explain(1)).cause is Cause.INVALIDATED


async def test_delete_says_whether_something_was_there(cache: Cache, read: Read) -> None:
    """As outside of a transaction."""
    await read()
    async with cache.transaction():
        assert await cache.delete("x") is True
        assert await cache.delete("x") is False
        assert await cache.delete("y") is False


async def test_two_transactions_hold_one_tag(cache: Cache, read: Read) -> None:
    """The end of one is not the other's."""
    await read()
    transactions = [cache.transaction(), cache.transaction()]
    for one in transactions:
        await outside(_enter_and_invalidate, one, cache)
    await transactions[0].__aexit__(None, None, None)
    assert await cause(cache) is Cause.LEASED
    await transactions[1].__aexit__(None, None, None)
    assert await cause(cache) is Cause.INVALIDATED


async def _enter_and_invalidate(transaction: Any, cache: Cache, tag: str = "x") -> None:
    await transaction.__aenter__()
    await cache.invalidate(tag)


async def test_a_dead_holders_lease_ends_as_an_invalidation(
    cache: Cache, read: Read, rows: dict[str, str], fake_clock: FakeClock
) -> None:
    """A block that never ends: once its lease has, what was read before is not served, and stores count again."""
    await read()
    await outside(_enter_and_invalidate, cache.transaction(lease=5), cache)
    rows["x"] = "x@1"
    fake_clock.advance(4)
    assert await read() == "x@1"
    assert await cause(cache) is Cause.LEASED
    fake_clock.advance(2)
    assert await read() == "x@1"  # its store makes an invalidation of the lease
    assert await read() == "x@1"
    await assert_hit(cache, "x")


async def test_hooks_hear_of_it_at_the_end(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """A CDN that was purged before the commit would be filled with what was before it. Failures are in the log."""
    heard: list[tuple[str, ...]] = []
    cache.after_invalidation(heard.append)

    @cache.after_invalidation
    async def purge(tags: tuple[str, ...]) -> None:
        raise KeyError("no CDN")

    async with cache.transaction():
        await cache.invalidate("x")
        await cache.invalidate("x", "y")
        await cache.delete("k")
        assert heard == []
    assert heard == [("x", "y", "key k")]
    assert "a hook of after_invalidation failed" in caplog.text
    heard.clear()
    await fail(cache, lambda: cache.invalidate("x"))
    assert heard == [("x",)]


# --- what is stored --------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_what_a_block_computes_is_stored_at_its_end(cache: Cache, read: Read, isolation: Any) -> None:
    """Where it has changed nothing. Before, nobody has it."""
    async with cache.transaction(isolation=isolation):
        assert await read() == "x@0"
        await assert_miss(cache, "x")
    await assert_hit(cache, "x")


async def test_after_an_error_nothing_is_stored(cache: Cache, read: Read) -> None:
    """Whatever it is: what was read may have been rolled back."""
    for error in (KeyError, KeyboardInterrupt):
        await fail(cache, lambda: read(view={"x": "x@mine"}), error=error)
    await assert_miss(cache, "x")


async def test_a_session_that_was_rolled_back_stores_nothing(cache: Cache, read: Read) -> None:
    """Without an error, too, where somebody says so."""
    async with cache.transaction() as transaction:
        await read(view={"x": "x@mine"})
        transaction.drop_stores()
        await read("y", view={"y": "y@mine"})
        assert not kept_back(transaction)
    await assert_miss(cache, "x")
    await assert_miss(cache, "y")


async def test_a_store_is_checked_at_the_end(cache: Cache, read: Read) -> None:
    """What was invalidated meanwhile, by others, is not stored."""
    async with cache.transaction():
        await read()
        await read("y")
        await outside(cache.invalidate, "x")
    await assert_miss(cache, "x")
    await assert_hit(cache, "y")


async def test_read_uncommitted_stores_nothing(cache: Cache, read: Read) -> None:
    """What it reads may never be committed. What others have stored it may have."""
    await read("y")
    async with cache.transaction(isolation="read uncommitted"):
        assert await read(view={"x": "x@of somebody"}) == "x@of somebody"
        assert await read("y", view={"y": "y@of somebody"}) == "y@0"
    await assert_miss(cache, "x")


async def test_so_much_is_kept_back_and_no_more(cache: Cache) -> None:
    """A batch that reads all there is does not fill the memory."""

    async def large() -> str:
        return "x" * (MAX_HELD // 4)

    async with cache.transaction():
        for number in range(8):
            await cache.get_or_set(f"k{number % 6}", large)
    stored = [(await cache.explain(f"k{number}")).hit for number in range(6)]
    assert stored == [True, True, True, False, False, False]


async def test_set_and_lookup_keep_to_the_block(cache: Cache) -> None:
    """What is set there is stored at the end, as of the block, and dropped with it."""
    async with cache.transaction():
        found = await cache.lookup("x")
        assert isinstance(found, Miss)
        assert await cache.set("x", "x@0", since=found, tags=["x"]) is False
        assert await cache.get("x") is None
    assert await cache.get("x") == "x@0"
    async with cache.transaction():
        found = await cache.lookup("y")
        await outside(cache.invalidate, "y")
        assert await cache.set("y", "y@0", since=await cache.lookup("y"), tags=["y"]) is False
    assert await cache.get("y") is None
    async with cache.transaction():
        await cache.invalidate("z")
        assert await cache.set("x", "x@mine", since=await cache.lookup("x")) is False
    assert await cache.get("x") == "x@0"


@pytest.mark.parametrize("isolation", LEVELS)
async def test_what_was_looked_up_outside_of_a_block_and_is_set_in_it(cache: Cache, isolation: Any) -> None:
    """Its stamp may be newer than what the block sees, and older than what it must not store."""
    before = await cache.lookup("x")
    async with cache.transaction(isolation=isolation):
        await outside(cache.invalidate, "x")
        await cache.set("x", "of the snapshot", since=await outside(cache.lookup, "x"), tags=["x"])
        await cache.set("y", "of the block", since=before, tags=["y"])
    stored = await cache.get_many(["x", "y"])
    assert ("x" in stored) is (isolation == "read committed")
    assert ("y" in stored) is (isolation != "read uncommitted")


async def test_refresh_computes_as_of_the_block(cache: Cache, backend: Told, rows: dict[str, str]) -> None:
    """It asks for no number, and is stored at the end, or not at all."""

    @cache.cached(name="product", tags=["x"])
    async def product() -> str:
        return rows["x"]

    assert await product() == "x@0"
    rows["x"] = "x@1"
    backend.asked.clear()
    async with cache.transaction():
        assert await product.refresh() == "x@1"
        assert backend.asked == []
        assert await outside(product) == "x@0"
    assert await product() == "x@1"
    rows["x"] = "x@mine"
    async with cache.transaction(isolation="read committed"):
        assert await product.refresh() == "x@mine"
        await cache.invalidate("y")
    assert await product() == "x@1"


async def test_many_at_once_in_a_block(cache: Cache, rows: dict[str, str]) -> None:
    """Looked up, built together, and kept back."""
    built: list[list[str]] = []

    async def build(keys: list[str]) -> dict[str, str]:
        built.append(keys)
        return {key: rows[key] for key in keys if key in rows}

    async def ask(*keys: str) -> dict[str, str]:
        return await cache.get_or_set_many(keys, build, tags=lambda key: [key])

    assert await ask("x") == {"x": "x@0"}
    async with cache.transaction():
        assert await ask("x", "y", "z") == {"x": "x@0", "y": "y@0"}
        assert built == [["x"], ["y", "z"]]
        await assert_miss(cache, "y")
        assert await cache.get_many(["x", "y"]) == {"x": "x@0"}
    await assert_hit(cache, "y")
    async with cache.transaction():
        await cache.invalidate("y")
        await ask("x", "y")
    await assert_miss(cache, "y")


async def test_many_at_once_in_a_snapshot(cache: Cache, read: Read, rows: dict[str, str]) -> None:
    """Each is held against it."""
    snapshot = dict(rows)

    async def build(keys: list[str]) -> dict[str, str]:
        return {key: f"{snapshot[key]} of the snapshot" for key in keys}

    await read("y")
    async with cache.transaction():
        rows["x"] = "x@1"
        await outside(cache.invalidate, "x")
        await outside(read)
        assert await cache.get_many(["x", "y"]) == {"y": "y@0"}
        found = await cache.get_or_set_many(["x", "y"], build, tags=lambda key: [key])
        assert found == {"x": "x@0 of the snapshot", "y": "y@0"}


@pytest.mark.parametrize("who_leads", ["inside", "outside"])
async def test_many_at_once_lead_and_join_no_flight(cache: Cache, who_leads: str) -> None:
    """Nobody in a block waits for somebody outside, nor the other way round."""
    building, go = anyio.Event(), anyio.Event()
    got: dict[str, dict[str, str]] = {}

    async def ask(who: str, *, first: bool) -> None:
        async def build(keys: list[str]) -> dict[str, str]:
            if first:
                building.set()
                await go.wait()
            return dict.fromkeys(keys, f"row of {who}")

        got[who] = await cache.get_or_set_many(["x"], build)

    async with anyio.create_task_group() as group:
        async with cache.transaction():
            if who_leads == "inside":
                group.start_soon(lambda: ask("inside", first=True))
                await building.wait()
                await outside(lambda: ask("outside", first=False))
            else:
                Context().run(group.start_soon, lambda: ask("outside", first=True))
                await building.wait()
                await ask("inside", first=False)
            go.set()
    assert got == {who: {"x": f"row of {who}"} for who in ("inside", "outside")}


# --- isolation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", LEVELS)
async def test_a_hit_that_is_newer_than_the_block(
    cache: Cache, read: Read, rows: dict[str, str], isolation: Any
) -> None:
    """A snapshot does not show it; where every statement sees what is committed, it may be served."""
    snapshot = dict(rows)
    async with cache.transaction(isolation=isolation):
        rows["x"] = "x@1"
        await outside(cache.invalidate, "x")
        assert await outside(read) == "x@1"
        served = await read(view=snapshot)
    assert served == ("x@1" if isolation.startswith("read ") else "x@0")
    assert await read() == "x@1"  # what the snapshot showed has not replaced it


@pytest.mark.parametrize("isolation", LEVELS)
async def test_a_hit_that_has_not_changed_since(cache: Cache, read: Read, rows: dict[str, str], isolation: Any) -> None:
    """It agrees with the snapshot: newer or older, it is served. Not to a serializable one, which has to read rows."""
    await read("y")
    async with cache.transaction(isolation=isolation):
        await outside(cache.invalidate, "z")
        assert await outside(read) == "x@0"
        serves = isolation != "serializable"
        for row in ("x", "y"):
            value = await read(row, view={row: "from the row"})
            assert value == (rows[row] if serves else "from the row")
            hit = await cache.lookup(row)
            assert isinstance(hit, Hit) is serves


@pytest.mark.parametrize("change", ["softly", "by key", "pruned", "lost", "held"])
async def test_a_snapshot_is_served_nothing_that_may_have_changed(
    cache: Cache, backend: Told, read: Read, change: str
) -> None:
    """Softly, by an implicit tag, or so that the journal cannot say: it computes."""
    backend._max_tags = 10
    options = {"stale_while_revalidate": 100}
    async with cache.transaction():
        match change:
            case "softly":
                await outside(lambda: cache.invalidate("x", soft=True))
            case "by key":
                await outside(cache.delete, "x")
            case "pruned":
                await outside(cache.invalidate, *(f"other:{number}" for number in range(11)))
            case "lost":
                await backend.wipe()
            case "held":
                await outside(lambda: _enter_and_invalidate(cache.transaction(), cache))
        await outside(lambda: read(**options))
        assert await read(view={"x": "of the snapshot"}, **options) == "of the snapshot"


async def test_the_journal_is_asked_after_the_entry_was_fetched(
    cache: Cache, backend: Told, read: Read, rows: dict[str, str]
) -> None:
    """A row that changes between the two is not served: its invalidation is in the answer."""
    async with cache.transaction():
        await outside(cache.invalidate, "z")
        await outside(read)
        backend.waits["unchanged"] = anyio.Event()
        served: list[str] = []

        async def reader() -> None:
            served.append(await read(view={"x": "of the snapshot"}))

        async with anyio.create_task_group() as group:
            group.start_soon(reader)
            await anyio.wait_all_tasks_blocked()
            await outside(cache.invalidate, "x")
            backend.waits["unchanged"].set()
    assert served == ["of the snapshot"]


async def test_a_snapshots_stamp_is_from_before_its_first_statement(
    cache: Cache, read: Read, rows: dict[str, str]
) -> None:
    """What it computes later, from its old snapshot, is not stored, though its look-up came after the change."""
    snapshot = dict(rows)
    async with cache.transaction():
        rows["x"] = "x@1"
        await outside(cache.invalidate, "x")
        assert await read(view=snapshot) == "x@0"
    assert await read() == "x@1"


async def test_at_read_committed_each_computation_has_its_own_stamp(
    cache: Cache, read: Read, rows: dict[str, str]
) -> None:
    """What it computes after a change has seen that, and is stored."""
    async with cache.transaction(isolation="READ  Committed"):  # type: ignore[arg-type]
        rows["x"] = "x@1"
        await outside(cache.invalidate, "x")
        assert await read() == "x@1"
    await assert_hit(cache, "x")


async def test_a_backend_that_does_not_answer_is_computed_without(cache: Cache, backend: Told, read: Read) -> None:
    """Nothing of it is stored; nor is what cannot be held against the snapshot served."""
    await read("y")
    async with cache.transaction():
        await outside(cache.invalidate, "z")
        await outside(read)
        backend.fails = {"unchanged"}
        assert await read(view={"x": "of the snapshot"}) == "of the snapshot"
        backend.fails = {"read"}
        assert await read("y", view={"y": "of the snapshot"}) == "of the snapshot"
    backend.fails = set()
    assert await read("y") == "y@0"


async def test_a_backend_that_implements_no_more_than_it_must(read: Read, backend: Told) -> None:
    """It knows no stamp without asking: a snapshot computes and stores nothing; all that is invalidated counts."""
    cache = Cache(Handle(backend), default_ttl=100)
    await read()
    async with cache.transaction():
        assert await cache.get_or_set("x", lambda: _value("of the snapshot"), tags=["x"]) == "of the snapshot"
        assert await cache.get_or_set("new", lambda: _value("new")) == "new"
    await assert_miss(cache, "new")
    async with cache.transaction(isolation="read committed"):
        assert await cache.get_or_set("x", lambda: _value("new")) == "x@0"
        await cache.get_or_set("new", lambda: _value("new"))
    await assert_hit(cache, "new")
    async with cache.transaction():
        await cache.invalidate("x")
        assert await cause(cache) is Cause.LEASED
    assert await cause(cache) is Cause.INVALIDATED


# --- flights, and what is stale --------------------------------------------------------------------


@pytest.mark.parametrize("who_leads", ["inside", "outside"])
async def test_a_block_leads_and_joins_no_flight(cache: Cache, rows: dict[str, str], who_leads: str) -> None:
    """Each computes for itself: what one has read is not for the other."""
    reading, go = anyio.Event(), anyio.Event()
    got: dict[str, str] = {}

    async def ask(who: str, *, first: bool) -> None:
        async def compute() -> str:
            if first:
                reading.set()
                await go.wait()
            return f"row of {who}"

        got[who] = await cache.get_or_set("x", compute, tags=["x"])

    async with anyio.create_task_group() as group:
        async with cache.transaction():
            if who_leads == "inside":
                group.start_soon(lambda: ask("inside", first=True))
                await reading.wait()
                await outside(lambda: ask("outside", first=False))
            else:
                Context().run(group.start_soon, lambda: ask("outside", first=True))
                await reading.wait()
                await ask("inside", first=False)
            go.set()
    assert got == {"inside": "row of inside", "outside": "row of outside"}


async def test_a_block_is_served_nothing_stale(cache: Cache, read: Read, fake_clock: FakeClock) -> None:
    """Nor does it begin a renewal; nor does it fall back on what is stale."""
    options = {"stale_while_revalidate": 100, "stale_if_error": 100, "ttl": 10}
    async with cache:
        await read(**options)
        fake_clock.advance(11)
        assert (await cache.explain("x")).state == "stale"
        async with cache.transaction():
            assert await read(view={"x": "x@new"}, **options) == "x@new"
            assert (await cache.explain("x")).state == "stale"
            with pytest.raises(KeyError):
                await read(view={}, **options)


async def test_a_block_renews_nothing_early(cache: Cache, fake_clock: FakeClock) -> None:
    """An entry is served until its end, by whoever is in a transaction."""
    calls = 0

    async def compute() -> int:
        nonlocal calls
        calls += 1
        fake_clock.advance(1)
        return calls

    async def ask() -> int:
        return await cache.get_or_set("x", compute, early=100, ttl=100)

    await ask()
    async with cache, cache.transaction():
        assert [await ask() for _ in range(50)] == [1] * 50
    assert calls == 1


# --- nesting ---------------------------------------------------------------------------------------


async def test_a_savepoint_hands_its_leases_to_the_outer_block(cache: Cache, backend: Told, read: Read) -> None:
    """Its tags stay held until the outer one's end, also where it was rolled back."""
    await read()
    await read("y")
    async with cache.transaction():
        async with cache.transaction():
            await cache.invalidate("x")
        await fail(cache, lambda: cache.invalidate("y"))
        assert [await cause(cache, row) for row in "xy"] == [Cause.LEASED] * 2
    assert [await cause(cache, row) for row in "xy"] == [Cause.INVALIDATED] * 2
    assert backend.asked.count("release") == 1


async def test_a_savepoint_hands_over_what_it_kept_back(cache: Cache, read: Read) -> None:
    """Stored at the outer block's end; what a savepoint computed that was rolled back is dropped."""
    async with cache.transaction():
        async with cache.transaction():
            await read()
        await assert_miss(cache, "x")
        await fail(cache, lambda: read("y", view={"y": "y@mine"}))
    await assert_hit(cache, "x")
    await assert_miss(cache, "y")


async def test_an_outer_error_drops_what_savepoints_kept_back(cache: Cache, read: Read) -> None:
    """Their data goes with the transaction's."""

    async def savepoint() -> None:
        async with cache.transaction():
            await read(view={"x": "x@mine"})

    await fail(cache, savepoint)
    await assert_miss(cache, "x")


async def test_what_is_leased_in_the_outer_block_drops_what_a_savepoint_keeps(cache: Cache, read: Read) -> None:
    """In whatever order they come."""
    async with cache.transaction():
        async with cache.transaction():
            await read(view={"x": "x@mine"})
        await cache.invalidate("z")
        async with cache.transaction():
            await read("y", view={"y": "y@mine"})
    await assert_miss(cache, "x")
    await assert_miss(cache, "y")


async def test_a_savepoint_has_the_outer_isolation_and_stamp(cache: Cache, read: Read, rows: dict[str, str]) -> None:
    """The database's transaction is one, and its snapshot too."""
    snapshot = dict(rows)
    async with cache.transaction():
        rows["x"] = "x@1"
        await outside(cache.invalidate, "x")
        await outside(read)
        async with cache.transaction(isolation="read committed"):
            assert await read(view=snapshot) == "x@0"
    assert await read() == "x@1"


async def test_savepoints_of_two_caches_on_one_backend(backend: Told, read: Read) -> None:
    """They share the journal, and so the transaction; hooks hear what their own cache was asked."""
    shop, site = Cache(backend, namespace="shop", default_ttl=100), Cache(backend, default_ttl=100)
    heard: list[tuple[str, ...]] = []
    shop.after_invalidation(heard.append)
    async with site.transaction():
        await site.invalidate("x")
        async with shop.transaction():
            await shop.invalidate("x")
        assert "release" not in backend.asked
        assert heard == []
    assert backend.asked.count("release") == 1
    assert heard == [("x",)]


async def test_another_backends_cache_in_a_block_stores_nothing(cache: Cache, rows: dict[str, str]) -> None:
    """What is computed there may not be committed; its invalidations are no part of the transaction."""
    other = Cache(MemoryBackend(), default_ttl=100)
    await other.get_or_set("y", lambda: _value("y@0"))
    async with cache.transaction():
        assert await other.get_or_set("x", lambda: _value("x@mine")) == "x@mine"
        assert await other.get_or_set("y", lambda: _value("of the snapshot")) == "of the snapshot"
        async with other.transaction():
            assert await other.get_or_set("x", lambda: _value("x@mine")) == "x@mine"
    await assert_miss(other, "x")
    async with cache.transaction(isolation="read committed"):
        assert await other.get_or_set("y", lambda: _value("new")) == "y@0"
        await other.invalidate("x")
    assert not other._filling().backend._leases  # type: ignore[attr-defined]


async def _value(value: str) -> str:
    return value


# --- scopes around, and within ---------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["commit", "error"])
async def test_a_computation_with_a_transaction_that_changes_something(cache: Cache, ends: str) -> None:
    """It may be built from what is never committed: nobody else has it, neither from the cache nor from its flight."""
    inside, go = anyio.Event(), anyio.Event()
    calls: list[str] = []

    async def compute() -> str:
        calls.append("")
        value = "nothing"
        try:
            async with cache.transaction():
                await cache.invalidate("x")
                value = f"uncommitted {len(calls)}"
                inside.set()
                await go.wait()
                if ends == "error":
                    raise KeyError
        except KeyError:
            pass
        return value

    got: list[str] = []

    async def ask() -> None:
        got.append(await cache.get_or_set("page", compute))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await inside.wait()
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        go.set()
    assert sorted(got) == ["uncommitted 1", "uncommitted 2"]
    await assert_miss(cache, "page")


async def test_a_computation_with_a_transaction_that_only_reads(cache: Cache, read: Read) -> None:
    """It is stored, with the tags of what was read in the block, and its stamp is from before it."""

    async def compute() -> str:
        async with cache.transaction():
            add_tags("late")
            return f"page of {await read()}"

    assert await cache.get_or_set("page", compute) == "page of x@0"
    found = await cache.lookup("page")
    assert isinstance(found, Hit)
    assert found.tags == {"x", "late"}
    await cache.invalidate("x")
    await assert_miss(cache, "page")


@pytest.mark.parametrize("why", ["error", "read uncommitted", "rolled back"])
async def test_what_is_built_from_a_block_that_stores_nothing(cache: Cache, read: Read, why: str) -> None:
    """Is not stored either."""

    async def compute() -> str:
        isolation: Any = "read uncommitted" if why == "read uncommitted" else "repeatable read"
        value = ""
        try:
            async with cache.transaction(isolation=isolation) as transaction:
                value = await read(view={"x": "x@mine"})
                if why == "error":
                    raise KeyError
                if why == "rolled back":
                    transaction.drop_stores()
        except KeyError:
            pass
        return value

    assert await cache.get_or_set("page", compute) == "x@mine"
    await assert_miss(cache, "page")


async def test_a_savepoint_that_fails_in_a_computation(cache: Cache, read: Read) -> None:
    """What is built from what it has read is not stored with the rest."""

    async def compute() -> str:
        value = ""
        try:
            async with cache.transaction():
                value = await read(view={"x": "x@mine"})
                raise KeyError
        except KeyError:
            return value

    async with cache.transaction():
        assert await cache.get_or_set("page", compute) == "x@mine"
        await read("y")
    await assert_miss(cache, "page")
    await assert_hit(cache, "y")


async def test_parents_in_a_block_carry_their_childrens_tags(cache: Cache, read: Read) -> None:
    """As anywhere."""

    async def compute() -> str:
        return f"page of {await read()}"

    async with cache.transaction():
        await cache.get_or_set("page", compute)
    found = await cache.lookup("page")
    assert isinstance(found, Hit)
    assert found.tags == {"x"}


async def test_cached_functions_look_twice_at_hits_in_a_block(cache: Cache, rows: dict[str, str]) -> None:
    """The decorator's short way is not for transactions."""

    @cache.cached(name="product", tags=["x"])
    async def product() -> str:
        return rows["x"]

    async with cache.transaction():
        rows["x"] = "x@1"
        await outside(cache.invalidate, "x")
        assert await outside(product) == "x@1"
        rows["x"] = "x@0"  # as the snapshot shows it
        assert await product() == "x@0"
    async with cache.transaction(isolation="serializable"):
        rows["x"] = "from the row"
        assert await product() == "from the row"


async def test_a_disabled_cache_has_transactions_too(cache: Cache, backend: Told, read: Read) -> None:
    """Nothing is looked up or stored; what is invalidated is."""
    with cache.disabled():
        async with cache.transaction():
            assert await read() == "x@0"
            await cache.invalidate("x")
    assert backend.asked == ["lease", "release"]


# --- tasks, contexts, loops ------------------------------------------------------------------------


async def test_a_task_that_outlives_the_block(cache: Cache, backend: Told, read: Read, rows: dict[str, str]) -> None:
    """It invalidates at once, stores nothing, and leads no flight: it may still see what the block saw."""
    over = anyio.Event()
    done = anyio.Event()

    async def late() -> None:
        await over.wait()
        backend.asked.clear()
        await cache.invalidate("y")
        assert backend.asked == ["invalidate"]
        assert await read(view={"x": "x@of the block"}) == "x@of the block"
        await assert_miss(cache, "x")
        assert await cache.get("new") == "stored meanwhile"  # no snapshot counts any more
        await read("y", view={"y": "y@of the block"})
        assert await cache.set("z", "z", since=await cache.lookup("z")) is False
        async with cache.transaction():
            await read("y", view={"y": "y@of its own"})
        await assert_hit(cache, "y")  # a block of its own is another matter
        done.set()

    async with anyio.create_task_group() as group:
        async with cache.transaction():
            await cache.invalidate("x")
            group.start_soon(late)
        await cache.get_or_set("new", lambda: _value("stored meanwhile"))
        over.set()
        await done.wait()
    assert await read() == "x@0"
    await assert_miss(cache, "z")


async def test_a_computation_that_outlives_the_block_is_not_stored(cache: Cache) -> None:
    """It began within."""
    inside, go = anyio.Event(), anyio.Event()

    async def compute() -> str:
        inside.set()
        await go.wait()
        return "late"

    async with anyio.create_task_group() as group:
        async with cache.transaction() as transaction:
            held = kept_back(transaction)
            group.start_soon(lambda: cache.get_or_set("x", compute))
            await inside.wait()
        go.set()
    await assert_miss(cache, "x")
    assert held == {}


async def test_an_invalidation_that_is_under_way_as_the_block_ends(cache: Cache, backend: Told, read: Read) -> None:
    """It may come after the release: then it lets go by itself."""
    await read()
    backend.waits["lease"] = anyio.Event()
    async with anyio.create_task_group() as group:
        async with cache.transaction():
            group.start_soon(cache.invalidate, "x")
            await anyio.wait_all_tasks_blocked()
        backend.waits["lease"].set()
    assert await cause(cache) is Cause.INVALIDATED
    await read()
    await assert_hit(cache, "x")


async def test_many_tasks_in_a_block(cache: Cache, backend: Told) -> None:
    """All that they invalidate is held and let go of."""
    async with cache.transaction():
        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(cache.invalidate, f"row:{number}")
        assert len(backend._leases) == 50
    assert backend._leases == {}


async def test_leaving_in_another_task_and_context(cache: Cache, backend: Told, read: Read) -> None:
    """As the exit of a generator does that was entered elsewhere."""

    async def dependency() -> AsyncIterator[None]:
        async with cache.transaction():
            await cache.invalidate("x")
            yield

    await read()
    generator = dependency()
    await outside(generator.__anext__)
    assert await cause(cache) is Cause.LEASED
    await outside(lambda: anext(generator, None))
    assert await cause(cache) is Cause.INVALIDATED
    await read()
    await assert_hit(cache, "x")


async def test_leaving_in_another_thread_and_event_loop(cache: Cache, read: Read) -> None:
    """It lets go from there."""
    await read()
    transaction = cache.transaction()
    await _enter_and_invalidate(transaction, cache)
    thread = threading.Thread(target=lambda: anyio.run(lambda: transaction.__aexit__(None, None, None)))
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    assert await cause(cache) is Cause.INVALIDATED


@pytest.mark.parametrize("by", ["anyio", "itself"])
async def test_a_block_that_is_cancelled_holds_on(
    cache: Cache, backend: Told, read: Read, by: str, anyio_backend_name: str, fake_clock: FakeClock
) -> None:
    """A COMMIT that was under way may come later. The end itself is not cancelled, though it has to wait."""
    await read()
    inside = anyio.Event()
    backend.waits["release"] = anyio.Event()
    over = anyio.Event()

    async def block() -> None:
        try:
            async with cache.transaction():
                await cache.invalidate("x")
                inside.set()
                await anyio.sleep_forever()
        finally:
            over.set()

    async with anyio.create_task_group() as group:
        if by == "itself" and anyio_backend_name == "asyncio":
            task = asyncio.create_task(block())
            await inside.wait()
            for _ in range(3):  # asyncio's own cancellation comes as often as it is asked for
                task.cancel()
                await anyio.wait_all_tasks_blocked()
        else:
            group.start_soon(block)
            await inside.wait()
            group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
            assert not over.is_set()
            backend.waits.pop("release").set()
            await over.wait()
    await is_held_for(30, cache, read, fake_clock)
    if by == "itself" and anyio_backend_name == "asyncio":
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, None])
async def test_a_commit_that_nobody_answered(
    cache: Cache, read: Read, rows: dict[str, str], fake_clock: FakeClock, error: type[BaseException] | None
) -> None:
    """It lands after the block's end: who has read before that stores nothing, and the replicas' lag comes on top."""
    await read()
    with pytest.raises(error) if error else nullcontext():
        async with cache.transaction(lease=5, replica_lag=3, during_lag="serve") as transaction:
            await cache.invalidate("x")
            if error:
                raise error
            transaction.in_doubt()
    await read()
    rows["x"] = "x@1"  # the server was slow
    assert await read() == "x@1"
    await is_held_for(8, cache, read, fake_clock)


async def test_an_error_is_no_doubt(cache: Cache, read: Read) -> None:
    """It comes of a rollback nearly always; who knows better says so, in a savepoint too."""
    await read()
    await fail(cache, lambda: cache.invalidate("x"))
    assert await cause(cache) is Cause.INVALIDATED
    async with cache.transaction():
        async with cache.transaction() as inner:
            await cache.invalidate("x")
            inner.in_doubt()
    assert await cause(cache) is Cause.LEASED
    with pytest.raises(LifecycleError):
        inner.in_doubt()


async def test_a_block_that_goes_on_after_its_release(cache: Cache, read: Read, fake_clock: FakeClock) -> None:
    """For a session that commits several times: what comes later is held anew, and nothing is stored."""
    await read()
    async with cache.transaction() as transaction:
        block = transaction.block
        await cache.invalidate("x")
        await block.release()
        assert await cause(cache) is Cause.INVALIDATED
        assert await read() == "x@0"
        await assert_miss(cache, "x")
        await outside(read)
        await assert_hit(cache, "x")
        await cache.invalidate("x")
        block.doubt()
        await block.release()
        await cache.invalidate("x")
        await block.release()  # ends no more than what was held since the last
        assert await cause(cache) is Cause.LEASED
    await is_held_for(30, cache, read, fake_clock)


async def test_what_is_invalidated_as_others_let_go(cache: Cache, backend: Told, read: Read) -> None:
    """In a task of the block: its lease is written after the release that did not know of it, and does not stay."""
    await read()
    async with cache.transaction() as transaction:
        gate = backend.waits["lease"] = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(cache.invalidate, "x")
            await anyio.wait_all_tasks_blocked()
            await transaction.block.release()
            gate.set()
        assert await cause(cache) is Cause.INVALIDATED


async def test_a_transaction_of_its_own_in_another(cache: Cache, read: Read) -> None:
    """Of another session: its end is not the other's, nor the other's its."""
    await read()
    async with cache.transaction():
        own = Transaction(cache, Options("repeatable read", None, 30), alone=True)
        async with own:
            await cache.invalidate("x")
        assert await cause(cache) is Cause.INVALIDATED
        async with own:
            await cache.invalidate("x")
            assert await cause(cache) is Cause.LEASED
    assert await cause(cache) is Cause.INVALIDATED


@pytest.mark.parametrize(
    ("isolation", "told", "hits"),
    [
        (NOT_KNOWN, "read committed", True),
        (NOT_KNOWN, "serializable", False),
        ("repeatable read", "read committed", True),
        ("repeatable read", "serializable", False),
    ],
)
async def test_an_isolation_that_is_told_later(cache: Cache, read: Read, isolation: str, told: str, hits: bool) -> None:
    """Before it is told nothing is served that it might not allow; what is told after it makes it no looser."""
    await read()
    async with Transaction(cache, Options(isolation, None, 30)) as transaction:
        block = transaction.block
        assert (await read(view={"x": "mine"}) == "x@0") is (isolation != NOT_KNOWN)
        block.tell_isolation(told)
        assert (await read(view={"x": "mine"}) == "x@0") is hits
        assert await read("y", view={"y": "of others"}) == "of others"
        block.tell_isolation("read uncommitted")
        block.tell_isolation("repeatable read")
        assert block.isolation == "read uncommitted"
    await assert_miss(cache, "y")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_that_comes_at_the_end(cache: Cache, backend: Told, read: Read) -> None:
    """It is not lost: it is raised once the end is written."""
    await read()
    backend.waits["release"] = anyio.Event()

    async def block() -> None:
        async with cache.transaction():
            await cache.invalidate("x")

    task = asyncio.create_task(block())
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    assert not task.done()
    backend.waits.pop("release").set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await cause(cache) is Cause.INVALIDATED


async def test_a_cancelled_invalidation_is_held(cache: Cache, backend: Told, read: Read, fake_clock: FakeClock) -> None:
    """Whether it was written cannot be known: the end holds it, and then it is invalidated."""
    await read()
    backend.waits["lease"] = anyio.Event()
    with anyio.CancelScope() as scope:
        async with cache.transaction():
            async with anyio.create_task_group() as group:
                group.start_soon(cache.invalidate, "x")
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
    await is_held_for(30, cache, read, fake_clock)


def test_a_loop_that_is_shut_down_in_the_middle() -> None:
    """Its tasks are cancelled: what they hold ends with the lease's time."""
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)

    async def main() -> None:
        inside = asyncio.Event()
        task = asyncio.create_task(_hang(Cache(backend), inside))
        await inside.wait()
        assert backend._leases
        assert not task.done()

    asyncio.run(main())
    asyncio.run(_ends_with_its_time(backend, clock))


async def _ends_with_its_time(backend: MemoryBackend, clock: FakeClock) -> None:
    cache = Cache(backend, default_ttl=100)

    async def read() -> str:
        async def compute() -> str:
            return "x@0"

        return await cache.get_or_set("x", compute, tags=["x"])

    clock.advance(29)
    await read()
    await assert_miss(cache, "x")
    clock.advance(2)
    await read()  # its store makes an invalidation of the lease
    await read()
    await assert_hit(cache, "x")


async def _hang(cache: Cache, inside: asyncio.Event) -> None:
    async with cache.transaction():
        await cache.invalidate("x")
        inside.set()
        await asyncio.Event().wait()


def _leave_a_loop(cache: Cache) -> None:
    """A loop that is closed with a transaction in it, which nobody has ended."""
    loop, inside = asyncio.new_event_loop(), asyncio.Event()
    task = loop.create_task(_hang(cache, inside))
    loop.run_until_complete(inside.wait())
    assert not task.done()
    loop.close()
    del task
    gc.collect()


@pytest.mark.usefixtures("caplog")
def test_a_loop_that_is_left_in_the_middle() -> None:
    """What it left behind is ended by the garbage collector, where nothing can be awaited: that is written, too."""
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    _leave_a_loop(Cache(backend))
    assert backend._stamp.seq == 2
    asyncio.run(_ends_with_its_time(backend, clock))


@pytest.mark.usefixtures("caplog")
def test_a_loop_that_is_left_on_a_backend_that_takes_time() -> None:
    """Then it is queued, in the process, and the lease ends by itself."""

    class Slow(MemoryBackend):
        async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
            await asyncio.sleep(1)

    backend = Slow()
    cache = Cache(backend)
    _leave_a_loop(cache)
    assert cache.queued_invalidations == ("x",)
    assert backend._leases


# --- a backend that fails --------------------------------------------------------------------------


async def test_a_lease_that_cannot_be_written_raises(cache: Cache, backend: Told, read: Read) -> None:
    """Before the commit: who has not caught that, does not commit. The end invalidates in any case."""
    await read()
    backend.fails = {"lease"}
    with pytest.raises(InvalidationError, match="x may not have been invalidated"):
        async with cache.transaction():
            await cache.invalidate("x")
    assert await cause(cache) is Cause.INVALIDATED
    assert cache.queued_invalidations == ()


async def test_a_lease_that_is_queued(cache: Cache, backend: Told, read: Read) -> None:
    """It counts in this process at once, and is invalidated at the end."""
    await read()
    backend.fails = {"lease", "invalidate"}
    async with cache.transaction():
        assert await cache.invalidate("x", queue=True) is False
        assert cache.queued_invalidations == ("x",)
        await outside(read)
    assert backend.asked.count("release") == 1
    backend.fails = set()
    assert await cause(cache) is not None
    assert await cache.flush_invalidations()
    await read()
    await assert_hit(cache, "x")


async def test_an_end_that_cannot_be_written_is_logged_and_queued(
    cache: Cache, backend: Told, read: Read, fake_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What is committed is committed: nothing is raised. The lease's end invalidates, if nothing else does."""
    await read()
    backend.fails = {"release"}
    async with cache.transaction(lease=5):
        await cache.invalidate("x")
    assert "the end of a transaction could not be written (release fails): x, as far as they are held" in caplog.text
    assert cache.queued_invalidations == ("x",)
    await read()
    assert await cause(cache) is not None
    assert await cache.flush_invalidations()
    assert await cause(cache) is Cause.LEASED  # the lease is there, until its end
    fake_clock.advance(6)
    await read()
    await read()
    await assert_hit(cache, "x")


async def test_an_end_that_fails_in_an_unheard_of_way(
    cache: Cache, backend: Told, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logged and queued too; an error of the block is raised as it was."""

    async def broken(*args: object, **more: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(backend, "release", broken)
    await fail(cache, lambda: cache.invalidate("x"))
    assert "ZeroDivisionError" in caplog.text
    assert cache.queued_invalidations == ("x",)


async def test_an_end_that_gets_no_answer(
    cache: Cache, backend: Told, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is waited for so long and no longer, though it is not cancelled."""
    monkeypatch.setattr("asynctag.transaction.LAST_WORD", 0.01)
    backend.waits["release"] = anyio.Event()
    async with cache.transaction():
        await cache.invalidate("x")
    assert "no answer within 0.01 s" in caplog.text
    assert cache.queued_invalidations == ("x",)


async def test_what_is_queued_is_written_first(cache: Cache, backend: Told) -> None:
    """In the order in which it came."""
    backend.fails = {"invalidate"}
    assert await cache.invalidate("y", queue=True) is False
    backend.fails = set()
    backend.asked.clear()
    async with cache.transaction():
        await cache.invalidate("x")
    assert backend.asked == ["invalidate", "lease", "release"]
    assert cache.queued_invalidations == ()


async def test_what_is_queued_is_a_miss_in_a_block(cache: Cache, backend: Told, read: Read) -> None:
    """Hits there are held against the queue as those elsewhere."""
    await read()
    backend.fails = {"invalidate"}
    await cache.invalidate("x", queue=True)
    async with cache.transaction(isolation="read committed"):
        assert await read(view={"x": "new"}) == "new"


# --- renewal ---------------------------------------------------------------------------------------


class Sleeps:
    """Stands for `sleep`: lets a while pass when it is told to."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._events: list[anyio.Event] = []
        self.asked: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        event = anyio.Event()
        self._events.append(event)
        await event.wait()

    async def pass_by(self) -> None:
        self._clock.advance(self.asked[-1])
        events, self._events = self._events, []
        for event in events:
            event.set()
        await anyio.wait_all_tasks_blocked()


async def test_a_living_holder_renews(
    cache: Cache, backend: Told, read: Read, fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the background of the opened cache, in time, and for all tags; not once the block is over."""
    sleeps = Sleeps(fake_clock)
    monkeypatch.setattr("asynctag.transaction.sleep", sleeps)
    async with cache:
        await read()
        tasks = len(anyio.get_running_tasks())
        async with cache.transaction(lease=30):
            await cache.invalidate("x")
            await cache.invalidate("y")
            for _ in range(9):
                await anyio.wait_all_tasks_blocked()
                await sleeps.pass_by()
            assert sleeps.asked == [10.0] * 10
            assert backend.asked.count("lease") == 11
            assert await outside(read) == "x@0"
            assert await outside(read) == "x@0"
            assert await cause(cache) is Cause.LEASED
        await anyio.wait_all_tasks_blocked()
        assert len(anyio.get_running_tasks()) == tasks


async def test_a_block_that_was_left_elsewhere_is_not_renewed(
    cache: Cache, backend: Told, fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the event loop where it was entered, it is found to be over."""
    sleeps = Sleeps(fake_clock)
    monkeypatch.setattr("asynctag.transaction.sleep", sleeps)
    transaction = cache.transaction()
    async with cache:
        await outside(_enter_and_invalidate, transaction, cache)
        await anyio.wait_all_tasks_blocked()
        thread = threading.Thread(target=lambda: anyio.run(lambda: transaction.__aexit__(None, None, None)))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        await sleeps.pass_by()
    assert backend.asked == ["lease", "release"]
    assert backend._leases == {}


async def test_a_renewal_that_fails_is_tried_again(
    cache: Cache,
    backend: Told,
    fake_clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is told in the log; and so is a lease that may not have been held all the time."""
    sleeps = Sleeps(fake_clock)
    monkeypatch.setattr("asynctag.transaction.sleep", sleeps)
    async with cache, cache.transaction(lease=30):
        await cache.invalidate("x")
        await anyio.wait_all_tasks_blocked()
        backend.fails = {"lease"}
        await sleeps.pass_by()
        assert "cannot be renewed" in caplog.text
        backend.fails = set()
        assert "may not have been held" not in caplog.text
        await backend.wipe()
        await sleeps.pass_by()
        assert "may not have been held" in caplog.text
        assert len(backend._leases) == 1


async def test_a_cache_that_is_not_open_renews_with_the_next_invalidation(
    cache: Cache, backend: Told, fake_clock: FakeClock
) -> None:
    """All that the block holds, in the same question."""
    async with cache.transaction(lease=30):
        await cache.invalidate("x")
        fake_clock.advance(20)
        await cache.invalidate("y")
        fake_clock.advance(20)
        await backend.invalidate(["|t|other"])  # would settle what has ended
        assert len(backend._leases) == 2
        assert backend.asked.count("lease") == 2


async def test_nothing_is_renewed_where_nothing_is_held(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that only reads starts no task."""
    started: list[object] = []
    async with cache:
        monkeypatch.setattr(cache._background, "start", started.append)
        async with cache.transaction():
            pass
        assert started == []


# --- replicas that lag behind ----------------------------------------------------------------------


@pytest.mark.parametrize("by", ["a transaction", "an invalidation", "the cache's default", "a deletion", "clear"])
async def test_after_a_lag_nothing_of_a_replica_is_served(
    cache: Cache, backend: Told, rows: dict[str, str], fake_clock: FakeClock, by: str
) -> None:
    """Readers compute meanwhile, and store nothing; what they began meanwhile is not stored later either."""
    lagging = Cache(backend, default_ttl=100, replica_lag=8)
    replica = dict(rows)

    async def ask() -> str:
        async def compute() -> str:
            return replica["x"]

        return await cache.get_or_set("x", compute, tags=["x"])

    await ask()
    rows["x"] = "x@1"
    match by:
        case "a transaction":
            async with cache.transaction(replica_lag=8):
                await cache.invalidate("x")
        case "an invalidation":
            await cache.invalidate("x", replica_lag=8)
        case "the cache's default":
            await lagging.invalidate("x", soft=True)
        case "a deletion":
            assert await lagging.delete("x") is True
        case "clear":
            await lagging.clear()
    fake_clock.advance(7)
    for _ in range(2):
        assert await ask() == "x@0"
    assert isinstance(await cache.lookup("x"), Miss)
    early = await cache.lookup("x")
    fake_clock.advance(2)
    replica["x"] = "x@1"
    assert isinstance(early, Miss)
    assert not await cache.set("x", "x@0", since=early, tags=["x"])
    assert await ask() == "x@1"
    assert await ask() == "x@1"
    await assert_hit(cache, "x")


async def test_a_transaction_without_a_lag_in_a_cache_that_has_one(backend: Told, read: Read) -> None:
    """What is said of the transaction counts for all that is invalidated in it."""
    cache = Cache(backend, default_ttl=100, replica_lag=8)
    await read()
    async with cache.transaction(replica_lag=0):
        await cache.invalidate("x")
    assert await cause(cache) is Cause.INVALIDATED
    async with cache.transaction():
        await cache.invalidate("x")
    assert backend._leases
    assert backend.asked.count("release") == 2


async def test_the_longest_lag_of_a_transaction_counts(cache: Cache, backend: Told, fake_clock: FakeClock) -> None:
    """Of its savepoints, and of what is invalidated in it with one of its own."""
    for longest in (5, 9):
        async with cache.transaction(replica_lag=2):
            async with cache.transaction(replica_lag=5):
                await cache.invalidate("x")
            await cache.invalidate("y", replica_lag=longest)
            await cache.invalidate("z", replica_lag=longest - 4)
        ends = {end - fake_clock.now for holders in backend._leases.values() for end in holders.values()}
        assert ends == {longest}
        fake_clock.advance(10)
        await backend.invalidate(["|t|other"])
        assert backend._leases == {}
    async with cache.transaction(replica_lag=2):
        async with cache.transaction(replica_lag=5):
            await cache.invalidate("x")
    assert [end - fake_clock.now for end in backend._leases["|t|x"].values()] == [5]


@pytest.mark.parametrize("said", ["of the transaction", "of an invalidation", "of a later one"])
async def test_who_dies_is_taken_to_have_committed_till_the_replicas_have_it(
    cache: Cache, backend: Told, fake_clock: FakeClock, said: str
) -> None:
    """A lease that is shorter than the lag does not end before the replicas show the commit."""
    replica = {"x": "x@0"}

    async def compute() -> str:
        return replica["x"]

    async def ask() -> str:
        return await cache.get_or_set("x", compute, tags=["x"])

    async def begin_and_die() -> None:
        dead = cache.transaction(lease=5, replica_lag=8 if said == "of the transaction" else 0)
        await dead.__aenter__()
        await cache.invalidate("x", **({"replica_lag": 8} if said == "of an invalidation" else {}))
        if said == "of a later one":
            await cache.invalidate("y", replica_lag=8)

    await outside(begin_and_die)
    fake_clock.advance(7)
    for _ in range(2):
        await ask()
    fake_clock.advance(7)
    replica["x"] = "x@1"
    for _ in range(3):
        assert await ask() == "x@1"
    await assert_hit(cache, "x")


async def test_two_lags_end_early_only_as_both_probes_say() -> None:
    """One probe knows nothing of the replicas that the other asks; a lag that has none lasts."""
    told = {"one": True, "other": False}

    async def one() -> bool:
        return told["one"]

    async def other() -> bool:
        return told["other"]

    lag = Lag(8.0, caught_up=one)
    assert lag.and_of(Lag(20.0, caught_up=one)).caught_up is one
    assert lag.and_of(Lag(20.0)).caught_up is None
    assert Lag(8.0).and_of(Lag(20.0, caught_up=one)).caught_up is None
    both = lag.and_of(Lag(20.0, caught_up=other)).caught_up
    assert both is not None
    assert not await both()
    told["other"] = True
    assert await both()
    told["one"] = False
    assert not await both()


async def test_serving_during_a_lag(cache: Cache, read: Read, rows: dict[str, str], fake_clock: FakeClock) -> None:
    """What is read from a replica is stored and served, and gone once the lag is over."""
    await read()
    async with cache.transaction(replica_lag=8, during_lag="serve"):
        await cache.invalidate("x")
        assert await cause(cache) is Cause.LEASED
    assert await read() == "x@0"
    await assert_hit(cache, "x")
    rows["x"] = "x@1"
    assert await read() == "x@0"
    fake_clock.advance(9)
    assert await read() == "x@1"


async def test_a_probe_ends_a_lag(
    cache: Cache, backend: Told, read: Read, fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the replicas have caught up. A probe that fails is asked again."""
    sleeps = Sleeps(fake_clock)
    monkeypatch.setattr("asynctag.pending.sleep", sleeps)
    answers: list[bool | Exception] = [False, KeyError("no replica"), True]

    async def caught_up() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with cache:
        await read()
        async with cache.transaction(replica_lag=60, caught_up=caught_up):
            await cache.invalidate("x")
            await anyio.wait_all_tasks_blocked()
            assert len(answers) == 3  # nothing is committed yet
        await anyio.wait_all_tasks_blocked()
        for left in (2, 1):
            assert len(answers) == left
            assert backend._leases
            await sleeps.pass_by()
        assert backend._leases == {}
    assert answers == []


async def test_a_probe_of_the_cache(backend: Told, fake_clock: FakeClock) -> None:
    """For plain invalidations too; without an opened cache the lag lasts as long as it may."""
    asked = 0

    async def caught_up() -> bool:
        nonlocal asked
        asked += 1
        return True

    cache = Cache(backend, default_ttl=100, replica_lag=60, during_lag="serve", caught_up=caught_up)
    await cache.invalidate("x")
    assert backend._lags
    assert not asked
    async with cache:
        await cache.invalidate("x")
        await anyio.wait_all_tasks_blocked()
    assert asked == 1
    assert [len(holders) for holders in backend._lags.values()] == [1]


async def test_a_lag_that_is_queued(cache: Cache, backend: Told, fake_clock: FakeClock) -> None:
    """Written later, it lasts as long as is left of it."""
    backend.fails = {"release"}
    assert await cache.invalidate("x", soft=True, replica_lag=10, queue=True) is False
    async with cache.transaction(replica_lag=10):
        await cache.invalidate("y")
    assert cache.queued_invalidations == ("x", "y")
    backend.fails = set()
    fake_clock.advance(4)
    assert await cache.flush_invalidations()
    ends = [max(holders.values()) - fake_clock.now for holders in backend._leases.values()]
    assert sorted(ends) == [6, 36]  # y's lease, which is of 30 s and the lag's 10, is still there
    backend.fails = {"release"}
    await cache.invalidate("z", replica_lag=10, queue=True)
    backend.fails = set()
    fake_clock.advance(11)
    backend.asked.clear()
    assert await cache.flush_invalidations()
    assert backend.asked == ["invalidate"]


# --- how it is written -----------------------------------------------------------------------------


async def test_the_decorator(cache: Cache, backend: Told, read: Read) -> None:
    """Each call is a transaction, also within another one of it; the function stays what it was."""

    @cache.transaction(isolation="SERIALIZABLE")
    async def rename(number: int, *, depth: int = 0) -> int:
        """Renames."""
        await cache.invalidate(f"row:{number}")
        if depth:
            await rename(number + 1, depth=depth - 1)
        return number

    assert rename.__name__ == "rename"
    assert rename.__doc__ == "Renames."
    assert await rename(1) == 1
    assert backend.asked == ["lease", "release"]
    backend.asked.clear()
    assert await rename(1, depth=2) == 1
    assert backend.asked == ["lease", "lease", "lease", "release"]

    @cache.cached(name="page")
    @cache.transaction()
    async def page() -> str:
        return await read()

    assert await page() == "x@0"
    await assert_hit(page)


async def test_a_transaction_may_be_entered_again(cache: Cache, backend: Told) -> None:
    """Once it was left; not before."""
    transaction = cache.transaction()
    assert "not open" in repr(transaction)
    for _ in range(2):
        async with transaction:
            with pytest.raises(LifecycleError, match="open already"):
                await transaction.__aenter__()
            await cache.invalidate("x")
    with pytest.raises(LifecycleError, match="not open"):
        await transaction.__aexit__(None, None, None)
    with pytest.raises(LifecycleError, match="not open"):
        transaction.drop_stores()
    assert backend.asked == ["lease", "release"] * 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"isolation": "snapshot"}, "isolation='snapshot'"),
        ({"isolation": None}, "isolation=None"),
        ({"replica_lag": -1}, "replica_lag=-1"),
        ({"replica_lag": "8"}, "replica_lag='8'"),
        ({"during_lag": "wait"}, "during_lag='wait'"),
        ({"caught_up": True, "replica_lag": 1}, "caught_up=True"),
        ({"caught_up": lambda: True}, "replica_lag= too"),
        ({"lease": 0}, "lease=0"),
        ({"lease": float("inf")}, "lease=inf"),
    ],
)
def test_what_cannot_be_meant(cache: Cache, options: dict[str, Any], says: str) -> None:
    """Is refused as it is written."""
    with pytest.raises(ConfigurationError, match=says):
        cache.transaction(**options)
    if "isolation" not in options and "lease" not in options:
        with pytest.raises(ConfigurationError, match=says):
            Cache(**options)


def test_only_async_functions_are_decorated(cache: Cache) -> None:
    """A plain one has ended before anything has."""
    with pytest.raises(ConfigurationError, match="async def"):
        cache.transaction()(len)  # type: ignore[arg-type]


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("as_written", [str.upper, str.title, lambda level: level.replace(" ", "  ")])
def test_levels_are_written_as_one_likes(cache: Cache, isolation: str, as_written: Callable[[str], Any]) -> None:
    """As SQL has them, or as the documentation does."""
    assert isolation in repr(cache.transaction(isolation=as_written(isolation)))
