"""aiocache over its Redis cache, without the timeout that it puts around every operation by default. It has no tags."""

from typing import Any
from urllib.parse import urlsplit

from aiocache import Cache, cached, cached_stampede  # type: ignore[import-not-found, unused-ignore]

from benchmarks.workers.commands import Function
from benchmarks.workers.over_redis import OverRedis, main
from benchmarks.workers.with_aiocache import Aiocache


class AiocacheOnRedis(Aiocache):
    def __init__(self, url: str) -> None:
        super().__init__()
        parts = urlsplit(url)
        self.settings: dict[str, Any] = {
            "cache": Cache.REDIS,
            "endpoint": parts.hostname,
            "port": parts.port,
            "db": int(parts.path.strip("/") or 0),
            "ttl": 3600,
            "timeout": 0,
        }

    def cached(self, function: Any, *tags: str) -> Function:
        return self.keep(cached(**self.settings)(function))

    def guarded(self, function: Any, *tags: str) -> Function:
        return self.keep(cached_stampede(lease=2, **self.settings)(function))

    async def reset(self) -> None:
        await self.functions[0].cache.clear()


def commands(url: str) -> OverRedis:
    return OverRedis(AiocacheOnRedis(url), url)


if __name__ == "__main__":
    main(commands)
