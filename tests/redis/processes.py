"""A process of `test_processes`: random readers and writers, held against an oracle that knows nothing of asynctag.

The rows of the database are counters in the same server, under names of their own, by plain redis-py. A writer counts
one up, invalidates, and once that has returned the version is *acknowledged*. A reader looks first at what is
acknowledged; nothing that it is then given may be older. Values are dicts from rows to versions, nested: prices and
stocks into products, products into pages.

It prints "ready", begins when it is sent a line, and prints what came of it.
"""

import asyncio
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redis.asyncio import Redis

from asynctag import Cache, add_tags
from asynctag.backends.base import Entry, Reading, Stamp, Written
from asynctag.backends.redis import RedisBackend
from asynctag.cache import Hit
from asynctag.names import key_name

PRODUCTS = 6
#: Seconds that a row takes to arrive, at most.
SLOW = 0.003

Value = dict[str, int]


class Plan(NamedTuple):
    """What a process is to do. Each of its event loops runs in a thread of its own, over one backend."""

    url: str
    backend: str
    seed: str
    loops: int
    tasks: int
    operations: int


# --- backends -------------------------------------------------------------------------------------


class Counting(RedisBackend):
    """Counts what it says."""

    def count(self, what: str) -> None:
        counts[what] += 1

    def _count_reading(self, reading: Reading) -> Reading:
        if reading.entry is not None:
            self.count("stale hits" if reading.stale else "hits")
        elif reading.miss is not None:
            self.count(f"misses: {reading.miss.cause.value}")
        return reading

    async def read(self, key: str) -> Reading:
        return self._count_reading(await super().read(key))

    async def read_many(self, keys: Sequence[str]) -> list[Reading]:
        return [self._count_reading(one) for one in await super().read_many(keys)]

    async def write_many(self, entries: Sequence[Entry]) -> list[Written]:
        written = await super().write_many(entries)
        for one in written:
            self.count("stored" if one.miss is None else f"refused: {one.miss.cause.value}")
        return written


class StampsAtTheStore(Counting):
    """A wrong one: an entry counts as of when it is stored, and not as of when its data was read."""

    async def write_many(self, entries: Sequence[Entry]) -> list[Written]:
        now: Stamp = (await RedisBackend.read(self, key_name("", "nothing"))).stamp
        for entry in entries:
            entry.stamp = now
        return await super().write_many(entries)


class SaysSoTooSoon(Counting):
    """A wrong one: an invalidation returns before it is written."""

    async def invalidate(self, tags: Any, *, soft: bool = False) -> None:
        names = list(tags)

        async def later() -> None:
            await asyncio.sleep(SLOW)
            await RedisBackend.invalidate(self, names, soft=soft)

        task = asyncio.create_task(later())
        background.add(task)
        task.add_done_callback(background.discard)


BACKENDS = {kind.__name__: kind for kind in (Counting, StampsAtTheStore, SaysSoTooSoon)}

counts: Counter[str] = Counter()
background: set[asyncio.Task[None]] = set()


# --- the database ---------------------------------------------------------------------------------


class Database:
    """Rows with versions, and what is acknowledged of them. A connection of its own for each event loop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._clients: dict[asyncio.AbstractEventLoop, Redis] = {}

    @property
    def _client(self) -> Any:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = Redis.from_url(self._url, decode_responses=True)
        return self._clients[loop]

    async def close(self) -> None:
        await self._client.aclose()

    async def read(self, row: str) -> Value:
        counts["rows read"] += 1
        version = int(await self._client.get(f"row:{row}") or 0)
        await asyncio.sleep(random.uniform(0, SLOW))
        return {row: version}

    async def write(self, row: str, invalidate: Callable[[], Awaitable[object]], *, soft: bool = False) -> None:
        version = await self._client.incr(f"row:{row}")
        await invalidate()
        await self._client.zadd("acknowledged softly" if soft else "acknowledged", {row: version}, gt=True)

    async def acknowledged(self, *, softly: bool = False) -> Value:
        hard = {row: int(score) for row, score in await self._client.zrange("acknowledged", 0, -1, withscores=True)}
        if softly:
            for row, score in await self._client.zrange("acknowledged softly", 0, -1, withscores=True):
                hard[row] = max(hard.get(row, 0), int(score))
        return hard


# --- what is cached ---------------------------------------------------------------------------------


@dataclass
class Site:
    """Values built from each other, and for each row the one way to invalidate what depends on it."""

    backend: RedisBackend
    db: Database
    stale: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = Cache(self.backend, default_ttl=60, stale_while_revalidate=60)
        self.shop = Cache(self.backend, namespace="shop", default_ttl=60)
        cached, db = self.cache.cached, self.db

        @cached(name="price", tags=["price:{product}"])
        async def price(product: int) -> Value:
            return await db.read(f"price:{product}")

        @cached(name="title")
        async def title(product: int) -> Value:
            return await db.read(f"title:{product}")

        @cached(name="news")
        async def news() -> Value:
            value = await db.read("news")
            add_tags("news")  # late: an invalidation may have come since it was read
            return value

        @cached(name="product")
        async def product(number: int) -> Value:
            parts = await asyncio.gather(price(number), title(number), self.stock(number))
            return {row: version for part in parts for row, version in part.items()}

        @cached(name="page")
        async def page(number: int) -> Value:
            value = await product(number) | await product((number + 1) % PRODUCTS)
            return value | await self.offer() | await news()

        self.price, self.title, self.news, self.product, self.page = price, title, news, product, page

    async def stock(self, product: int) -> Value:
        key = f"stock:{product}"
        return await self.cache.get_or_set(key, lambda: self.db.read(key), returns=Value)

    async def offer(self) -> Value:
        return await self.shop.get_or_set("offer", lambda: self.db.read("offer"), returns=Value)

    async def tiles(self, first: int) -> Value:
        """Several prices at once, under keys of their own."""
        numbers = [(first + step) % PRODUCTS for step in range(3)]

        async def build(keys: list[str]) -> dict[str, Value]:
            return {key: await self.db.read(key.removeprefix("tile of ")) for key in keys}

        keys = [f"tile of price:{number}" for number in numbers]
        tiles = await self.cache.get_or_set_many(
            keys, build, tags=lambda key: [key.removeprefix("tile of ")], returns=Value
        )
        return {row: version for tile in tiles.values() for row, version in tile.items()}

    # --- readers and writers

    async def operate(self, dice: random.Random) -> None:
        """One operation, of whatever kind."""
        number = dice.randrange(PRODUCTS)
        reads: list[Callable[[], Awaitable[Value]]] = [
            lambda: self.price(number),
            lambda: self.product(number),
            lambda: self.page(number),
            lambda: self.stock(number),
            lambda: self.tiles(number),
            self.news,
        ]
        writes: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            (f"price:{number}", lambda: self.cache.invalidate(f"price:{number}")),
            (f"title:{number}", lambda: self.title.invalidate(number)),
            (f"stock:{number}", lambda: self.cache.delete(f"stock:{number}")),
            ("offer", self.shop.clear),
            ("news", lambda: self.cache.invalidate("news")),
        ]
        draw = dice.random()
        if draw < 0.80:
            await self.check(dice.choice(reads))
        elif draw < 0.85:
            await self.check(lambda: self.look(number), softly=True)
        elif draw < 0.88:
            await self.check(lambda: self.product.refresh(number))
        elif draw < 0.91:
            counts["soft invalidations"] += 1
            await self.db.write("news", lambda: self.cache.invalidate("news", soft=True), soft=True)
        else:
            counts["invalidations"] += 1
            await self.db.write(*dice.choice(writes))

    async def look(self, number: int) -> Value:
        """A page, if it is there and fresh: then it is not older than the soft invalidations either."""
        found = await self.cache.lookup(self.page.key(number), returns=Value)
        return found.value if isinstance(found, Hit) else {}

    async def check(self, read: Callable[[], Awaitable[Value]], *, softly: bool = False) -> None:
        need = await self.db.acknowledged(softly=softly)
        value = await read()
        counts["reads"] += 1
        for row, version in value.items():
            if version < need.get(row, 0):
                self.stale.append(f"got version {version} of {row}, though {need[row]} was acknowledged before")


# --- the process ----------------------------------------------------------------------------------


async def work(plan: Plan, site: Site, loop: int) -> None:
    async def task(number: int) -> None:
        dice = random.Random(f"{plan.seed} {loop} {number}")
        for _ in range(plan.operations):
            await site.operate(dice)

    async with site.cache:
        await asyncio.gather(*(task(number) for number in range(plan.tasks)))
        await asyncio.gather(*(one for one in background if one.get_loop() is asyncio.get_running_loop()))
    await site.db.close()


def main() -> None:
    plan = Plan(*json.loads(sys.argv[1]))
    site = Site(BACKENDS[plan.backend].from_url(plan.url, timeout=20, connect_timeout=20), Database(plan.url))
    failed: list[str] = []

    def run(loop: int) -> None:
        try:
            asyncio.run(work(plan, site, loop))
        except BaseException as error:
            failed.append(repr(error))
            raise

    print("ready", flush=True)
    sys.stdin.readline()
    threads = [threading.Thread(target=run, args=[loop]) for loop in range(plan.loops)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"stale": site.stale, "failed": failed, "counts": counts}), flush=True)


if __name__ == "__main__":
    main()
