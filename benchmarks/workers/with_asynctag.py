"""asynctag over MemoryBackend."""

from typing import Any

from asynctag import Cache
from asynctag.backends.memory import MemoryBackend
from benchmarks.workers.commands import Commands, Function, Library, seconds_of
from benchmarks.workers.line import serve
from benchmarks.workers.pages import pages


def backend(max_entries: int = 1_000_000) -> MemoryBackend:
    return MemoryBackend(max_entries=max_entries, max_bytes=8 << 30)


class Asynctag(Library):
    name = "asynctag"

    def __init__(self) -> None:
        self.memory = backend()
        self.cache = Cache(self.memory, default_ttl=3600)

    def cached(self, function: Any, *tags: str) -> Function:
        cached: Function = self.cache.cached(function) if not tags else self.cache.cached(tags=tags)(function)
        return cached

    async def invalidate(self, tag: str) -> None:
        await self.cache.invalidate(tag)

    async def reset(self) -> None:
        await self.memory.wipe()


class AsynctagCommands(Commands):
    library: Asynctag

    def __init__(self, library: Asynctag) -> None:
        super().__init__(library)
        self.pages = pages(library.cache)

    async def enclose(self, function: Function) -> None:
        await self.library.cache.get_or_set(f"around:{next(self._ids)}", lambda: function(635), returns=str)

    async def page(self, kind: str, n: int) -> float:
        function = self.pages[kind]
        await function(635)
        return await seconds_of(function, n)

    async def ratio(self, trace: list[int], entries: int) -> float:
        """The share of hits on a trace, through the API, in a cache of `entries`."""
        computed = 0

        async def compute(key: int) -> int:
            nonlocal computed
            computed += 1
            return key

        get = Cache(backend(entries), default_ttl=3600).cached(name="compute")(compute)
        for key in trace:
            await get(key)
        return 1 - computed / len(trace)


if __name__ == "__main__":
    library = Asynctag()
    serve(AsynctagCommands(library), library.start)
