"""aiocache over its memory cache, without the timeout that it puts around every operation by default."""

from typing import Any

from aiocache import cached, cached_stampede  # type: ignore[import-not-found, unused-ignore]

from benchmarks.workers.commands import Commands, Function, Library
from benchmarks.workers.line import serve


class Aiocache(Library):
    name = "aiocache"
    has_tags = False

    def __init__(self) -> None:
        self.functions: list[Any] = []

    def cached(self, function: Any, *tags: str) -> Function:
        return self.keep(cached(ttl=3600, timeout=0)(function))

    def guarded(self, function: Any, *tags: str) -> Function:
        return self.keep(cached_stampede(ttl=3600, lease=2, timeout=0)(function))

    def keep(self, function: Any) -> Function:
        self.functions.append(function)
        kept: Function = function
        return kept

    async def reset(self) -> None:
        for function in self.functions:
            for handle in function.cache._handlers.values():
                handle.cancel()
            await function.cache.clear()


if __name__ == "__main__":
    library = Aiocache()
    serve(Commands(library), library.start)
