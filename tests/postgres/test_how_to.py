"""The recipes for plain SQL of the page "How-to", as they stand there, on a real PostgreSQL."""

import asyncio
import re
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio.to_thread
import asyncpg
import psycopg
import pytest

from asynctag import Cache
from asynctag.testing import assert_hit, assert_miss
from tests.postgres.holding import HeldCommits, wait_for_a_waiting
from tests.postgres.servers import Server

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[2] / "docs" / "how-to.md"
SECTIONS = ["How-to", "Change data without an ORM", "What `SELECT ... FOR UPDATE` does, and does not"]

Write = Callable[[], Awaitable[object]]


def code_of(section: str) -> str:
    [text] = re.findall(rf"(?ms)^#+ {re.escape(section)}\n(.*?)(?=^#+ [A-Z]|\Z)", PAGE.read_text())
    return "\n".join(re.findall(r"(?ms)^```python\n(.*?)^```$", text))


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The code of these sections as a module, with a cache that is empty."""
    module = types.ModuleType("recipes")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look up their annotations
    for section in SECTIONS:
        code = code_of(section)
        assert code, section
        exec(compile(code, f"{PAGE} ({section})", "exec", dont_inherit=True), vars(module))
    assert isinstance(module.cache, Cache)
    return module


@pytest.fixture
async def pool(page: Any, postgres: Server) -> AsyncIterator[asyncpg.Pool]:
    """The pool of the recipes: the products 1 and 2 at 40 and 20, the second on a shelf."""
    postgres.run("CREATE TABLE shelves (id int PRIMARY KEY)")
    postgres.run(
        "CREATE TABLE products (id int PRIMARY KEY, price int, shelf int REFERENCES shelves ON DELETE CASCADE)"
    )
    postgres.run("INSERT INTO shelves VALUES (7)")
    postgres.run("INSERT INTO products VALUES (1, 40, NULL), (2, 20, 7)")
    pool = await asyncpg.create_pool(postgres.url, min_size=0)
    page.pool = pool
    yield pool
    pool.terminate()  # without waiting for a transaction that a failed test has left waiting


def test_every_recipe_is_tested(page: Any) -> None:
    """Each function of these sections is called in this module."""
    code = "\n".join(code_of(section) for section in SECTIONS[1:])
    for name in re.findall(r"(?m)^(?:async )?def (\w+)", code):
        assert name in ("in_transaction", "price_of") or f"page.{name}(" in Path(__file__).read_text(), name


# --- which block is inside -------------------------------------------------------------------------------


def writers(page: Any, url: str) -> dict[str, Write]:
    """Those that change the price of the first product to 45."""
    return {
        "asyncpg": lambda: page.reprice(1, 45),
        "psycopg": lambda: page.reprice_with_psycopg(url, 1, 45),
        "decorator": lambda: page.raise_prices(30, by=5),
        "for update": lambda: page.add_to_price(1, 5),
    }


@pytest.mark.parametrize("writer", ["asyncpg", "psycopg", "decorator", "for update"])
async def test_who_reads_before_the_commit_stores_nothing(
    page: Any, pool: asyncpg.Pool, postgres: Server, writer: str
) -> None:
    """While the commit waits in the database, the old row is read and not stored. After it, the new one is served."""
    held = HeldCommits(postgres, "products")
    assert await page.price_of(1) == 40
    await assert_hit(page.price_of, 1)
    write = asyncio.ensure_future(writers(page, postgres.url)[writer]())
    await anyio.to_thread.run_sync(held.wait_for_one)
    assert await page.price_of(1) == 40
    await assert_miss(page.price_of, 1)
    held.go_on()
    await write
    assert await page.price_of(1) == 45
    await assert_hit(page.price_of, 1)


async def test_the_other_way_round_old_data_stays(page: Any, pool: asyncpg.Pool) -> None:
    """What the order is for: let go of before the commit, the tag does not keep anybody from storing the old row."""
    async with pool.acquire() as connection, connection.transaction():
        async with page.cache.transaction():
            await connection.execute("UPDATE products SET price = 45 WHERE id = 1")
            await page.cache.invalidate("product:1")
        assert await page.price_of(1) == 40  # of another connection, before the commit
    assert await pool.fetchval("SELECT price FROM products WHERE id = 1") == 45
    assert await page.price_of(1) == 40


@pytest.mark.parametrize("autocommit", [True, False])
async def test_a_transaction_of_psycopg_may_be_a_savepoint(
    page: Any, pool: asyncpg.Pool, postgres: Server, autocommit: bool
) -> None:
    """It is one after any statement, without autocommit: then leaving it commits nothing."""
    async with await psycopg.AsyncConnection.connect(postgres.url, autocommit=autocommit) as connection:
        await connection.execute("SELECT 1")
        async with connection.transaction():
            await connection.execute("UPDATE products SET price = 45 WHERE id = 1")
        assert await pool.fetchval("SELECT price FROM products WHERE id = 1") == (45 if autocommit else 40)
    assert await pool.fetchval("SELECT price FROM products WHERE id = 1") == 45


async def test_an_error_rolls_back_and_drops(page: Any, pool: asyncpg.Pool) -> None:
    """The decorated function's error comes through; the row is as it was, and so is what is served."""

    @page.in_transaction
    async def fail(connection: asyncpg.Connection) -> None:
        await connection.execute("UPDATE products SET price = 45 WHERE id = 1")
        await page.cache.invalidate("product:1")
        raise ZeroDivisionError

    assert await page.price_of(1) == 40
    with pytest.raises(ZeroDivisionError):
        await fail()
    await assert_miss(page.price_of, 1)
    assert await page.price_of(1) == 40
    await assert_hit(page.price_of, 1)


# --- one snapshot ---------------------------------------------------------------------------------------


async def test_what_is_read_in_a_snapshot_agrees(
    page: Any, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was changed and cached anew after the first read is not served in it, but computed from the snapshot."""
    price_of = page.price_of
    has_begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def stopping(product_id: int) -> int:
        """Between the first product and the second."""
        if product_id == 2:
            has_begun.set()
            await may_go_on.wait()
        return int(await price_of(product_id))

    monkeypatch.setattr(page, "price_of", stopping)
    reading = asyncio.ensure_future(page.prices_of(1, 2))
    await has_begun.wait()
    await page.reprice(2, 25)
    assert await price_of(2) == 25
    await assert_hit(price_of, 2)
    may_go_on.set()
    assert await reading == [40, 20]
    assert await price_of(2) == 25
    await assert_hit(price_of, 1)  # what was computed in the snapshot is good enough for others


# --- what changes rows without naming them ---------------------------------------------------------------


async def test_rows_that_a_condition_has_changed(page: Any, pool: asyncpg.Pool) -> None:
    """Their prices are new, and the others' are hits."""
    assert await page.price_of(1) == 40
    assert await page.price_of(2) == 20
    assert await page.raise_prices(30, by=5) == 1
    await assert_miss(page.price_of, 1)
    await assert_hit(page.price_of, 2)
    assert await page.raise_prices(1000, by=5) == 0


async def test_rows_that_were_copied(page: Any, pool: asyncpg.Pool) -> None:
    """By the table's tag what was read of the table goes, also that there was nothing."""
    assert await page.price_of(3) is None
    await page.import_products([(3, 15)])
    assert await page.price_of(3) == 15


async def test_rows_that_a_cascade_has_deleted(page: Any, pool: asyncpg.Pool, postgres: Server) -> None:
    """The trigger tells of those that no statement has named, and of no others, nor again in the next transaction."""
    postgres.run(page.TELL)
    assert await page.price_of(1) == 40
    assert await page.price_of(2) == 20
    await page.drop_shelf(7)
    await assert_hit(page.price_of, 1)
    assert await page.price_of(2) is None
    await page.drop_shelf(7)
    await assert_hit(page.price_of, 2)


async def test_what_a_trigger_tells(page: Any, pool: asyncpg.Pool, postgres: Server) -> None:
    """Rows that are new, changed, or have another id; nothing of a savepoint that was rolled back."""
    postgres.run(page.TELL)

    async def told(connection: asyncpg.Connection) -> set[str]:
        return set((await connection.fetchval("SELECT current_setting('cache.tags', true)") or "").split())

    async with pool.acquire() as connection:
        async with connection.transaction():
            await connection.execute("INSERT INTO products VALUES (3, 15)")
            savepoint = connection.transaction()
            await savepoint.start()
            await connection.execute("UPDATE products SET price = 45 WHERE id = 1")
            assert await told(connection) == {"product:1", "product:3"}
            await savepoint.rollback()
            await connection.execute("UPDATE products SET id = 4 WHERE id = 2")
            assert await told(connection) == {"product:2", "product:3", "product:4"}
        async with connection.transaction():
            assert await told(connection) == set()


# --- FOR UPDATE -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("for_update", "sum_of_both"), [(True, 40 + 5 + 5), (False, 40 + 5)])
async def test_for_update_orders_writers(
    page: Any, pool: asyncpg.Pool, postgres: Server, for_update: bool, sum_of_both: int
) -> None:
    """The second waits until the first has committed, and counts on from there. Without it, it has read before that."""
    if not for_update:
        code = code_of(SECTIONS[2])
        assert " FOR UPDATE" in code
        exec(code.replace(" FOR UPDATE", ""), vars(page))
    held = HeldCommits(postgres, "products")
    first = asyncio.ensure_future(page.add_to_price(1, 5))
    await anyio.to_thread.run_sync(held.wait_for_one)
    second = asyncio.ensure_future(page.add_to_price(1, 5))
    await anyio.to_thread.run_sync(wait_for_a_waiting, postgres, "transactionid")
    held.go_on()
    await asyncio.gather(first, second)
    assert await page.price_of(1) == sum_of_both


@pytest.mark.parametrize("is_held", [True, False])
async def test_for_update_holds_up_nobody_who_fills_the_cache(page: Any, pool: asyncpg.Pool, is_held: bool) -> None:
    """A reader gets the old row while another has it for update, and has changed it. Only a held tag is not stored."""
    has_written, may_commit = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        async with AsyncExitStack() as stack:
            if is_held:
                await stack.enter_async_context(page.cache.transaction())
            connection = await stack.enter_async_context(pool.acquire())
            await stack.enter_async_context(connection.transaction())
            await connection.fetchval("SELECT price FROM products WHERE id = 1 FOR UPDATE")
            await connection.execute("UPDATE products SET price = 45 WHERE id = 1")
            await page.cache.invalidate("product:1")
            has_written.set()
            await may_commit.wait()

    writing = asyncio.ensure_future(write())
    await has_written.wait()
    assert await page.price_of(1) == 40
    may_commit.set()
    await writing
    assert await pool.fetchval("SELECT price FROM products WHERE id = 1") == 45
    assert await page.price_of(1) == (45 if is_held else 40)
