"""async-cache: its decorator with a TTL, without a limit."""

from typing import Any

from cache import AsyncTTL  # type: ignore[import-not-found, unused-ignore]

from benchmarks.workers.commands import Commands, Function, Library
from benchmarks.workers.line import serve


class AsyncCache(Library):
    name = "async-cache"
    has_tags = False

    def __init__(self) -> None:
        self.functions: list[Any] = []

    def cached(self, function: Any, *tags: str) -> Function:
        cached = AsyncTTL(time_to_live=3600, maxsize=None)(function)
        self.functions.append(cached)
        kept: Function = cached
        return kept

    async def reset(self) -> None:
        for function in self.functions:
            function.clear_cache()


if __name__ == "__main__":
    library = AsyncCache()
    serve(Commands(library), library.start)
