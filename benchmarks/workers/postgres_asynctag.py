"""asynctag over PostgreSQL and Redis: a transaction of the cache around that of the database."""

from typing import Any

from asynctag import Cache
from asynctag.backends.redis import RedisBackend
from benchmarks.workers.on_postgres import WRITE, OnPostgres, main

LEASE = 2
"""Seconds: what a process that is killed holds counts as invalidated after them."""


class Asynctag(OnPostgres):
    async def start(self) -> None:
        await super().start()
        self.cache = await Cache(RedisBackend.from_url(self.redis), default_ttl=3600).__aenter__()

        @self.cache.cached(name="version", tags=["row:{row}"])
        async def cached(row: int) -> int:
            return await self.version(row)

        self._cached: Any = cached

    async def cached(self, row: int) -> int:
        found: int = await self._cached(row)
        return found

    async def write(self, row: int) -> int:
        async with self.cache.transaction(isolation="read committed", lease=LEASE), self.pool.acquire() as connection:
            async with connection.transaction():
                version: int = await connection.fetchval(WRITE, row)
                await self.cache.invalidate(f"row:{row}")
                await self.pause()
        return version


if __name__ == "__main__":
    main(Asynctag)
