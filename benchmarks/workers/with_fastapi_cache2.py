"""fastapi-cache2 over its memory backend, outside a route. Pickle is what gives a model back as one."""

from typing import Any

from fastapi_cache import FastAPICache  # type: ignore[import-not-found, unused-ignore]
from fastapi_cache.backends.inmemory import InMemoryBackend  # type: ignore[import-not-found, unused-ignore]
from fastapi_cache.coder import PickleCoder  # type: ignore[import-not-found, unused-ignore]
from fastapi_cache.decorator import cache  # type: ignore[import-not-found, unused-ignore]

from benchmarks.workers.commands import Commands, Function, Library
from benchmarks.workers.line import serve


class FastapiCache2(Library):
    name = "fastapi-cache2"
    has_tags = False

    def __init__(self) -> None:
        self.backend = InMemoryBackend()
        FastAPICache.init(self.backend, prefix="bench", coder=PickleCoder)

    def cached(self, function: Any, *tags: str) -> Function:
        cached: Function = cache(expire=3600)(function)
        return cached

    async def reset(self) -> None:
        await self.backend.clear("bench")


if __name__ == "__main__":
    library = FastapiCache2()
    serve(Commands(library), library.start)
