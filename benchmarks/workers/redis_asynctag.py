"""asynctag over RedisBackend, and redis-py by itself in the same process."""

from collections.abc import Sequence
from importlib.metadata import version
from time import perf_counter
from typing import Any, cast

from redis.asyncio import Redis

from asynctag import Cache
from asynctag.backends.base import Entry
from asynctag.backends.redis import RedisBackend
from asynctag.codec import codec_for
from asynctag.names import key_name, tag_name
from benchmarks.rounds import turned
from benchmarks.workers import functions
from benchmarks.workers.over_redis import PATIENCE, TAGS, OverRedis, main, spend
from benchmarks.workers.payloads import TEXT, prose
from benchmarks.workers.with_asynctag import Asynctag

BATCH = 1_000

GROUPS = 7
"""How many tags all entries of one size of `dependents` carry: so many invalidations are timed."""


class AsynctagOnRedis(Asynctag):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.backend = RedisBackend.from_url(url, timeout=PATIENCE, connect_timeout=PATIENCE)
        self.cache = Cache(self.backend, default_ttl=3600)

    async def reset(self) -> None:
        await self.backend.wipe()


class AsynctagCommands(OverRedis):
    library: AsynctagOnRedis

    def __init__(self, url: str) -> None:
        super().__init__(AsynctagOnRedis(url), url)
        self.redis = Redis.from_url(url)
        self.names: dict[bytes, bytes] = {}
        self.sized: Any = self.library.cache.cached(functions.sized)

    async def versions(self) -> dict[str, str]:
        info = await self.redis.info("server")
        return {
            "Valkey": str(info["valkey_version"]),
            "redis-py": version("redis"),
            "hiredis": version("hiredis"),
        }

    # --- redis-py

    async def gets(self, n: int, callers: int) -> dict[str, Any]:
        """redis-py's `GET` of the bytes that `hits` reads."""
        return await self.spend(self.redis.get, await self.names_of(self.page, range(callers)), n, callers)

    async def names_of(self, function: Any, arguments: Sequence[int]) -> list[bytes]:
        """The names in Redis of what a cached function keeps for these arguments."""
        for argument in arguments:
            await function(argument)
        wanted = [key_name("", function.key(argument)).encode() for argument in arguments]
        if not self.names.keys() >= set(wanted):
            async for name in self.redis.scan_iter(match="*entry:*", count=10_000):
                self.names[name.partition(b"entry:")[2]] = name
        return [self.names[key] for key in wanted]

    # --- hits, and their parts

    async def reads(self, n: int, callers: int) -> dict[str, Any]:
        """What the backend does for a hit, and the decoding: without the keys, flights and scopes of the cache."""
        await self.fill(callers)
        backend, decode, page = self.library.backend, codec_for(str, owner="benchmarks").decode, cast(Any, self.page)

        async def read(name: str) -> Any:
            entry = (await backend.read(name)).entry
            assert entry is not None
            return decode(entry.body)

        return await self.only_hits(read, [key_name("", page.key(number)) for number in range(callers)], n, callers)

    async def fill(self, pages: int) -> None:
        await spend(self.page, range(pages), pages, min(pages, 50))

    async def first_hits(self, n: int, callers: int) -> dict[str, Any]:
        """Hits of `n` pages that others have stored, the first of each, by which it becomes known here."""
        await self.fill(n + 1)
        other = AsynctagOnRedis(self.url)
        page = other.cached(functions.page, *TAGS)
        await page(n)  # connects
        before = functions.read
        try:
            spent = await self.spend(page, range(n), n, callers)
        finally:
            await other.backend.aclose()
        if functions.read != before:
            raise RuntimeError("the function ran while hits were measured")
        return spent

    async def sized_hits(self, size: int, n: int, callers: int) -> dict[str, Any]:
        return await self.only_hits(self.sized, self._of_size(size, callers), n, callers)

    async def sized_gets(self, size: int, n: int, callers: int) -> dict[str, Any]:
        """redis-py's `GET` of the bytes that `sized_hits` reads, compressed or not."""
        return await self.spend(
            self.redis.get, await self.names_of(self.sized, self._of_size(size, callers)), n, callers
        )

    async def plain_gets(self, size: int, n: int, callers: int) -> dict[str, Any]:
        """redis-py's `GET` of the text as it is."""
        names = [f"plain:{number}" for number in self._of_size(size, callers)]
        for name in names:
            await self.redis.set(name, prose(size))
        return await self.spend(self.redis.get, names, n, callers)

    async def sized_bytes(self, size: int) -> int:
        """The bytes of an entry in Redis."""
        (name,) = await self.names_of(self.sized, self._of_size(size, 1))
        return int(await self.redis.strlen(name))

    @staticmethod
    def _of_size(size: int, callers: int) -> list[int]:
        return [size * 1_000 + number for number in range(callers)]

    # --- writes

    async def stores(self, n: int) -> dict[str, Any]:
        """Values that are there already, stored with five tags."""
        cache = self.library.cache
        since = await cache.lookup("page")

        async def store(number: int) -> None:
            tags = [tag.format(page_id=number) for tag in TAGS]
            assert await cache.set(f"page:{number}", TEXT, since=since, ttl=3600, tags=tags, returns=str)

        return await self.spend(store, self.new_pages(n), n, 1)

    async def dependents(self, sizes: list[int], number: int) -> dict[str, list[float]]:
        """Seconds of invalidations of one tag each, by how many entries carry it. All entries are there at once."""
        for size in sizes:
            await self._fill_group(size)
        for other in range(200):
            await self.library.invalidate(f"nobody:{other}")
        took: dict[str, list[float]] = {str(size): [] for size in sizes}
        for group in range(GROUPS):
            for size in turned(sizes, GROUPS * number + group):
                started = perf_counter()
                await self.library.invalidate(f"group:{size}:{group}")
                took[str(size)].append(perf_counter() - started)
        return took

    async def _fill_group(self, size: int) -> None:
        """Store `size` small entries afresh, each with its key and the tags that all of them carry."""
        backend, body = self.library.backend, codec_for(str, owner="benchmarks").encode("member")
        stamp, end = (await backend.read(key_name("", "none"))).stamp, backend.clock() + 3600
        groups = tuple(tag_name("", f"group:{size}:{group}") for group in range(GROUPS))
        for begin in range(0, size, BATCH):
            keys = [key_name("", f"member:{size}:{number}") for number in range(begin, min(begin + BATCH, size))]
            entries = [
                Entry(key, body, None, None, len(body), (key, *groups), stamp, end, end, end, end) for key in keys
            ]
            if not all(written.accepted for written in await backend.write_many(entries)):
                raise RuntimeError("an entry was not stored")


if __name__ == "__main__":
    main(AsynctagCommands)
