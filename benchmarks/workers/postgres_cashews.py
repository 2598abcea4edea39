"""cashews over PostgreSQL and Redis: the tags are deleted once the change is committed, as in its documentation."""

import logging
from typing import Any

from cashews import Cache  # type: ignore[import-not-found, unused-ignore]

from benchmarks.workers.on_postgres import WRITE, OnPostgres, main


class Cashews(OnPostgres):
    async def start(self) -> None:
        await super().start()
        self.cache = Cache()
        self.cache.setup(self.redis, max_connections=50, socket_timeout=5)
        await self.cache.init()

        async def version(row: int) -> int:
            return await self.version(row)

        self._cached: Any = self.cache(ttl=3600, key="version:{row}", tags=["row:{row}"])(version)

    async def cached(self, row: int) -> int:
        found: int = await self._cached(row)
        return found

    async def write(self, row: int) -> int:
        async with self.pool.acquire() as connection, connection.transaction():
            version: int = await connection.fetchval(WRITE, row)
            await self.pause()
        await self.cache.delete_tags(f"row:{row}")
        return version


if __name__ == "__main__":
    logging.disable()  # it writes a page for each connection that is lost
    main(Cashews)
