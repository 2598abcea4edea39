"""Readers and writers of rows in PostgreSQL, in one of several processes that share a cache in Redis.

After Polaris (Meta's, which watches caches for what is older than it may be): each read is held against what was
acknowledged before it began. A write counts as acknowledged when the library's call for it has returned, not before.
"""

import asyncio
import os
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped, unused-ignore]

from benchmarks.workers.line import serve
from benchmarks.workers.tally import Tally

READERS, WRITERS = 6, 2

SOON = 0.004
"""Seconds that an application lets pass between two steps, at most."""

READ = "SELECT version FROM rows WHERE id = $1"
WRITE = "UPDATE rows SET version = version + 1 WHERE id = $1 RETURNING version"


class OnPostgres:
    """One process. A library is told by how it caches `version`, and how it writes."""

    def __init__(self, postgres: str, redis: str, tally: Path, process: int, processes: int, rows: int) -> None:
        self.postgres, self.redis = postgres, redis
        self.process, self.rows = process, rows
        self.tally = Tally(tally, processes, rows)
        self.chance = random.Random()
        self.pool: Any = None

    async def start(self) -> None:
        self.pool = await asyncpg.create_pool(self.postgres, min_size=1, max_size=READERS + WRITERS, timeout=5)

    async def version(self, row: int) -> int:
        """As a page has it: what is read, and then something else that takes time."""
        found: int = await self.pool.fetchval(READ, row)
        await self.pause()
        return found

    async def pause(self) -> None:
        await asyncio.sleep(self.chance.random() * SOON)

    async def cached(self, row: int) -> int:
        """`version` through the cache."""
        raise NotImplementedError

    async def write(self, row: int) -> int:
        """Raise the version of a row, and have every cache know. Gives the version."""
        raise NotImplementedError

    async def pid(self) -> int:
        return os.getpid()

    async def work(self, seconds: float) -> None:
        """Read and write for so long. What was counted is in the tally."""
        end = asyncio.get_running_loop().time() + seconds

        async def again(step: Callable[[int], Awaitable[None]]) -> None:
            while asyncio.get_running_loop().time() < end:
                try:
                    async with asyncio.timeout(5):
                        await step(self.chance.randrange(self.rows))
                except Exception:  # a fault: whoever asked would be told
                    self.tally.count(self.process, "failed")
                    await asyncio.sleep(0.01)

        await asyncio.gather(
            *(again(self._read) for _ in range(READERS)), *(again(self._write) for _ in range(WRITERS))
        )

    async def _read(self, row: int) -> None:
        required = self.tally.required(row)
        found = await self.cached(row)
        self.tally.count(self.process, "reads")
        if found < required:
            self.tally.count(self.process, "stale")
        await asyncio.sleep(0)

    async def _write(self, row: int) -> None:
        version = await self.write(row)
        self.tally.acknowledge(self.process, row, version)
        self.tally.count(self.process, "writes")
        await self.pause()


def main(kind: type[OnPostgres]) -> None:
    postgres, redis, tally, *numbers = sys.argv[1:]
    worker = kind(postgres, redis, Path(tally), *map(int, numbers))
    serve(worker, worker.start)
